"""What a run will take, for ``--dry-run``: tokens counted over the whole job, time and memory measured on parts of it.

The parts are done by the functions that the run itself calls.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from truing.models.draw import length_class
from truing.models.memory import peak_memory
from truing.types import Sample

T = TypeVar("T")
SECONDS = 5.0
"""A part is large enough when it takes this long."""
COMMON = 0.25
"""Share of a part's tokens that are a common beginning, above which it stands for no longer job."""
CHUNKS = 32
"""Chunks whose tokens are counted; of longer jobs, so many spread evenly."""
REPLIES = 16
"""Replies drawn to their end, to know how long they are."""


def _since_start() -> float:
    """Seconds since this process began, where the system says; at most 15, for a notebook began long ago."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return min(15.0, float(Path("/proc/uptime").read_text().split()[0]) - began)
    except (OSError, ValueError, IndexError):
        return 5.0


AROUND = _since_start() + 3.0
"""Seconds of Python's start, and about those of opening the run and drawing its page."""


@dataclass(frozen=True)
class Cost:
    """Tokens that are read, seconds, and bytes that come on top of what the measured parts took."""

    tokens: float = 0.0
    seconds: float = 0.0
    more_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        most = max(self.more_bytes, other.more_bytes)  # one after the other: only one of them is in memory
        return Cost(self.tokens + other.tokens, self.seconds + other.seconds, most)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.tokens * times, self.seconds * times, self.more_bytes)

    def lines(self, compute: Any = None) -> list[str]:
        """For people; ``compute`` is the device, dtype and threads it was measured on, None where nothing is read."""
        tokens = [] if compute is None else [f"About {round(self.tokens):,} tokens through the model."]
        seconds = self.seconds + AROUND
        took = f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
        took = f"{seconds:.0f} seconds" if seconds < 180 else took
        where = "" if compute is None else f" on {compute}"
        peak = peak_memory(getattr(compute, "device", "cpu"))
        memory = [] if peak is None else [f"About {(peak + self.more_bytes) / 2**30:.2f} GiB of memory at most."]
        return [*tokens, f"About {took}{where}, measured on a part of the work.", *memory]


class Reader(Protocol):
    """What reads tokens and counts them: an Engine or a ScalarModel; while ``counting`` it does nothing else."""

    tokens_run: int
    counting: bool


def timed(work: Callable[[], T], reader: Any = None) -> tuple[T, Cost]:
    """What some work gives, and what it takes: its time, and the tokens that ``reader`` reads in it."""
    before, began = getattr(reader, "tokens_run", 0), time.perf_counter()
    found = work()
    return found, Cost(getattr(reader, "tokens_run", 0) - before, time.perf_counter() - began)


def reading(reader: Reader, work: Callable[[int, int], object], count: int, size: int) -> Cost:
    """Cost of a job of ``count`` items that are only read: ``work(start, stop)`` for every ``size`` of them.

    Time goes by tokens. A part is taken so large that what its items begin with in common is, as in a whole chunk, not
    most of it; a chunk at most.
    """
    tokens = _over_chunks(reader, work, count, size)
    n, most = min(count, 4), min(count, size)
    _, part = timed(lambda: work(0, n), reader)  # whatever is slower the first time
    while True:
        each, before = part.seconds / max(1, part.tokens), _tokens(reader, work, *_middle(count, n))
        while n < most:
            n = min(most, 2 * n)
            grown = _tokens(reader, work, *_middle(count, n))
            common = max(0, 2 * before - grown) / max(1, grown)
            before = grown
            if grown * each > 12 * SECONDS or (grown * each > SECONDS and common < COMMON):
                break
        first, last = _middle(count, n)
        _, part = timed(lambda first=first, last=last: work(first, last), reader)  # type: ignore[misc]
        if n == most or part.seconds > SECONDS / 2:
            return Cost(tokens, part.seconds / max(1, part.tokens) * tokens)


def _over_chunks(reader: Reader, work: Callable[[int, int], object], count: int, size: int) -> float:
    """Tokens that ``work`` would read in all chunks."""
    starts, scale = _some_chunks(count, size)
    return sum(_tokens(reader, work, start, min(start + size, count)) for start in starts) * scale


def _some_chunks(count: int, size: int) -> tuple[list[int], float]:
    """Where chunks begin, of many some that are spread evenly; and how much more all of them hold."""
    starts = list(range(0, count, size))
    some = [starts[i * len(starts) // CHUNKS] for i in range(CHUNKS)] if len(starts) > CHUNKS else starts
    return some, count / sum(min(start + size, count) - start for start in some)


def _middle(count: int, n: int) -> tuple[int, int]:
    """First and last of n items in the middle of so many."""
    return (count - n) // 2, (count - n) // 2 + n


def _tokens(reader: Reader, work: Callable[[int, int], object], start: int, stop: int) -> int:
    """Tokens that ``work`` would read."""
    before, reader.counting = reader.tokens_run, True
    try:
        work(start, stop)
    finally:
        reader.counting = False
    return reader.tokens_run - before


Draw = Callable[[Sequence[int], int, int], list[list[Sample]]]


def sampling(engine: Any, draw: Draw, prompts: Sequence[int], n: int, max_tokens: int, size: int) -> Cost:
    """Cost of ``n`` replies to each of the prompts, of so many tokens each, ``size`` prompts at a time.

    ``draw(places, n, most)`` draws n replies of at most ``most`` tokens to the prompts at these places. How long
    replies are is seen on a few; what a step takes, on these few and on a whole batch. Then chunks are played through
    as the engine decodes them, prompts of like length together: rows that end leave the batch, waiting ones enter.
    """
    if max_tokens == 0:
        return Cost()
    count = len(prompts)
    starts, scale = _some_chunks(count, size)
    batches = [
        b for start in starts for b in _batches(engine, prompts, range(start, min(start + size, count)), n, max_tokens)
    ]
    common = max((places for places, _ in batches), key=len)
    few = [common[i] for i in spread(len(common), max(1, REPLIES // n))]
    each = min(n, max(1, REPLIES // len(few)))
    draw(few[:1], 1, 2)  # whatever is slower the first time
    _, first = timed(lambda: draw(few, each, 1), engine)
    drawn, whole = timed(lambda: draw(few, each, max_tokens), engine)
    lengths = [len(s.token_ids) for samples in drawn for s in samples]
    played = _widths(lengths, len(lengths))
    step, per_row = max(0.0, whole.seconds - first.seconds) / max(1, len(played) - 1), 0.0
    rows = next(rows for places, rows in batches if places is common)
    taken = engine.row_bytes(max(prompts[i] for i in few) + max_tokens) * len(lengths)
    if rows > 2 * len(lengths) and max_tokens > 1:
        many, short = [common[i] for i in spread(len(common), -(-rows // n))], min(6, max_tokens)
        _, first = timed(lambda: draw(many, n, 1), engine)
        _, longer = timed(lambda: draw(many, n, short), engine)
        wide = max(0.0, longer.seconds - first.seconds) / (short - 1)
        mean = sum(played[1:]) / max(1, len(played) - 1)
        per_row = max(0.0, wide - step) / max(1.0, rows - mean)
        step = max(0.0, step - per_row * mean)
        taken = engine.row_bytes(max(prompts[i] for i in many) + short) * rows
    begun = _over_chunks(engine, lambda start, stop: draw(range(start, stop), n, 1), count, size)
    begun *= 1 if engine.trees else n  # without trees every reply reads its prompt
    most = max(rows * engine.row_bytes(max(prompts[i] for i in places) + max_tokens) for places, rows in batches)
    cost = Cost(begun, first.seconds / max(1, first.tokens) * begun, max(0, most - taken))
    pick = random.Random(0)
    for places, rows in batches:
        widths = _widths([pick.choice(lengths) for _ in range(len(places) * n)], rows)
        read = sum(widths) - len(places) * n  # a reply's last token is drawn and not read
        cost += Cost(read, step * len(widths) + per_row * sum(widths)) * scale
    return cost


def _batches(
    engine: Any, prompts: Sequence[int], chunk: Sequence[int], n: int, max_tokens: int
) -> list[tuple[list[int], int]]:
    """The places of a chunk that are decoded together, and how many of their replies at once."""
    classes: dict[int, list[int]] = {}
    for place in chunk:
        classes.setdefault(length_class(prompts[place]), []).append(place)
    longest = [max(prompts[i] for i in places) + max_tokens for places in classes.values()]
    return [
        (places, engine.rows_at_once(len(places) * n, most))
        for places, most in zip(classes.values(), longest, strict=True)
    ]


def replying(reader: Reader, work: Callable[[int, int], object], count: int, size: int) -> Cost:
    """Cost of replies whose prompts and settings only ``work`` knows, ``size`` at a time.

    A chunk takes a time for its steps and one for each reply: both follow from a small and a larger part.
    """
    few, more = min(count, REPLIES), min(count, size, 3 * REPLIES)
    work(0, min(2, few))  # whatever is slower the first time
    _, two = timed(lambda: work(*_middle(count, more)), reader)
    fixed, each = 0.0, two.seconds / more
    if more > few:
        _, one = timed(lambda: work(*_middle(count, few)), reader)
        each = min(each, max(0.0, two.seconds - one.seconds) / (more - few))
        fixed = two.seconds - each * more
    return Cost(two.tokens * count / more, fixed * -(-count // size) + each * count)


def _widths(lengths: Sequence[int], size: int) -> list[int]:
    """How many rows stand in the batch at each step, as `Engine` fills it."""
    waiting, rows, out = list(reversed(lengths)), list[int](), list[int]()
    while rows or waiting:
        free = size - len(rows)
        if waiting and free * 4 >= size:
            rows += [waiting.pop() for _ in range(min(free, len(waiting)))]
        out.append(len(rows))
        rows = [left - 1 for left in rows if left > 1]
    return out


def spread(count: int, wanted: int) -> list[int]:
    """So many places out of ``count``, evenly, each in the middle of its part."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
