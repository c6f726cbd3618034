"""How one token is drawn, from which random numbers, and when a reply is over. Knows no model and no cache."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from truing.models.memory import STATES_SHARE
from truing.models.tree import Ids, gather_logprobs, unwrap
from truing.text import cut_at_stop
from truing.types import Finish, Sample


def distribution(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """What ``draw`` draws from: non-negative weights [N, V] (temperature > 0), 0 for tokens cut off.

    First ``top_k``, then ``top_p`` over what is left; rows sum to what was kept, not to 1.
    """
    logits = logits.float() / temperature
    if top_k:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    weights = logits.softmax(-1)
    if top_p < 1:
        ranked, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        weights = weights.scatter(-1, order, ranked.masked_fill(before >= top_p, 0.0))
    return weights


def noise_shape(vocabulary: int) -> tuple[int, int]:
    """Blocks and width of the square in which a vocabulary is drawn from: one noise number for each of both."""
    width = math.isqrt(vocabulary - 1) + 1
    return -(-vocabulary // width), width


def draw(
    logits: Tensor, noise: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """One token per row of logits [N, V], and its raw log-probability (temperature 1, untruncated, nats, float32).

    ``noise`` [N, sum(noise_shape(V))] is standard exponential. A block of the vocabulary wins a race (weight over
    noise, the largest first), then a token of that block another: exact, and a rounding error of size e in the
    logits changes the token with a probability of about e. (Inverting one uniform number changes it with V · e.)
    """
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        weights = distribution(logits, temperature, top_p, top_k)
        blocks, width = noise_shape(logits.shape[-1])
        square = F.pad(weights, (0, blocks * width - weights.shape[-1])).view(-1, blocks, width)
        block = (square.sum(-1) / noise[:, :blocks]).argmax(-1)
        inside = square[torch.arange(len(square), device=block.device), block]
        tokens = block * width + (inside / noise[:, blocks:]).argmax(-1)
    return tokens, gather_logprobs(logits, tokens)


@dataclass(frozen=True, slots=True)
class Settings:
    """How one reply is drawn and when it ends, as `Engine.sample` explains them."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stops: tuple[str, ...] = ()
    stops_after: tuple[str, ...] = ()

    @property
    def drawing(self) -> tuple[float, float, int]:
        """What `draw` takes: temperature, top_p, top_k."""
        return self.temperature, self.top_p, self.top_k


@dataclass
class Row:
    """One reply in the making."""

    request: int
    index: int
    prompt: tuple[int, ...]
    seed: int
    limit: int = 0
    told: str = ""
    """What has been streamed of its text."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"
    rest: list[int] = field(default_factory=list)
    """What is read after the last drawn token, for a trace."""
    lower: list[Tensor] = field(default_factory=list)
    """Its states for a trace: [tokens, H] each."""
    stream: np.random.Generator | None = None

    @property
    def over(self) -> bool:
        """Whether the reply has ended."""
        return self.finish == "stop" or len(self.ids) >= self.limit

    def anew(self) -> Row:
        """Itself, to be drawn again from the start: the same tokens, and what was told is not told twice."""
        self.ids, self.logprobs, self.stream = [], [], None
        self.rest, self.lower = [], []
        return self

    def noise(self, size: int) -> np.ndarray:
        """Standard exponential float32 [size] for the next token: from prompt, seed and place in the reply alone."""
        if self.stream is None:
            digest = hashlib.blake2b(np.array(self.prompt, dtype="<i8").tobytes(), digest_size=8).digest()
            words = [self.seed % 2**64, int.from_bytes(digest, "little")]
            self.stream = np.random.Generator(np.random.Philox(key=np.array(words, dtype=np.uint64)))
        return np.maximum(self.stream.standard_exponential(size, dtype=np.float32), np.float32(1e-30))


class Ends:
    """Decides when a reply is over. The text is decoded only after a token that could complete a stop string."""

    def __init__(
        self,
        eos_ids: frozenset[int],
        stops: Sequence[str],
        decode: Callable[[list[int]], str] | None,
        stops_after: Sequence[str] = (),
    ):
        self.eos_ids, self.decode = eos_ids, decode or (lambda ids: "")
        self.stops, self.stops_after = list(stops), list(stops_after)
        self.may_complete: dict[int, bool] = {}

    def take(self, row: Row, token: int, logprob: float) -> bool:
        """Add a drawn token to its row; True if the reply is over."""
        row.ids.append(token)
        row.logprobs.append(logprob)
        if token in self.eos_ids or (self._suspect(token) and self._cut(row.ids)[1]):
            row.finish = "stop"
            return True
        return len(row.ids) >= row.limit

    def _suspect(self, token: int) -> bool:
        if token not in self.may_complete:
            stops = [*self.stops, *self.stops_after]
            alone = self.decode([token]) if stops else ""
            # alone, a token may lose a space or be part of a character: then its text says nothing
            unsure = not alone.strip() or "\ufffd" in alone
            self.may_complete[token] = any(unsure or stop[-1].isspace() or stop[-1] in alone for stop in stops)
        return self.may_complete[token]

    def _cut(self, ids: list[int]) -> tuple[str, bool]:
        return cut_at_stop(self.decode(ids), self.stops, self.stops_after)

    def text(self, row: Row) -> str:
        """What was said so far, without eos and without what a stop string (not one of `stops_after`) began."""
        said = row.ids[:-1] if row.ids and row.ids[-1] in self.eos_ids else row.ids
        return self._cut(said)[0] if said else ""

    def news(self, row: Row, over: bool) -> str:
        """The part of a row's text that is certain and has not been told; the parts of a reply make its text.

        Until the reply is over, what may be a part of a character or of a stop string is held back.
        """
        text = self.text(row)
        if not over:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)]
        if not text.startswith(row.told):  # a decoder that changes its mind: the rest comes at the end
            return text[len(row.told) :] if over else ""
        piece, row.told = text[len(row.told) :], text
        return piece

    def sample(self, row: Row) -> Sample:
        """The finished reply."""
        return Sample(self.text(row), tuple(row.ids), tuple(row.logprobs), row.finish, row.seed)


@dataclass
class Trace:
    """Asks `Engine.sample` for the states after the lower ``layers`` layers of all that it reads.

    After a reply, its eos left out, the tokens ``then`` are read too. ``found[prompt, reply]`` holds the ids read
    (prompt, reply and ``then``, as far as they were) and their states [T, H]. Nothing is found of models that cannot
    take trees, and nothing where the states would take more than half of the memory that is free.
    """

    layers: int
    then: tuple[int, ...] = ()
    window: int | None = None
    """The longest sequence that the model reads, set by the engine."""
    found: dict[tuple[int, int], tuple[list[int], Tensor]] = field(default_factory=dict)

    def fits(self, rows: Sequence[Row], bytes_per_token: int, free: int | None) -> bool:
        """Whether the states of these replies, each as long as it may become, leave enough memory free.

        What a reply's tokens leave stands twice for a while: step by step for all rows, and row by row.
        """
        tokens = sum(len(row.prompt) + 2 * (row.limit + len(self.then)) for row in rows)
        return free is None or tokens * bytes_per_token <= STATES_SHARE * free

    def rest(self, row: Row, eos_ids: frozenset[int]) -> list[int]:
        """What is still to be read when a reply is over."""
        last = [] if row.ids[-1] in eos_ids else row.ids[-1:]
        fits = self.window is None or len(row.prompt) + len(row.ids) + len(self.then) <= self.window
        return [*last, *self.then] if self.then and fits else []

    def keep(self, row: Row, eos_ids: frozenset[int]) -> None:
        """Take what was read of a finished row."""
        if row.lower:
            states = torch.cat(row.lower)
            said = row.ids[:-1] if row.ids[-1] in eos_ids else row.ids
            self.found[row.request, row.index] = [*row.prompt, *said, *self.then][: len(states)], states
            row.lower = []


def trace_of(model: Any, layers: int, then: Sequence[int] = ()) -> Trace | None:
    """A trace of a model's lower layers; None where there are none, or where the model does not know ``then``."""
    known = all(token < unwrap(model).config.vocab_size for token in then)
    return Trace(layers, tuple(then)) if layers and known else None


@dataclass
class Job:
    """One call of ``sample``: what its prompts ask for, who hears of it, and how many of its replies are over."""

    each: Sequence[Settings]
    ends: Sequence[Ends]
    progress: Callable[[int, int], None] | None
    on_text: Callable[[int, int, str], None] | None
    total: int
    done: int
    trace: Trace | None = None

    def draw(self, rows: Sequence[Row], logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of every row, drawn with its prompt's settings, and its log-probability."""
        size = sum(noise_shape(logits.shape[-1]))
        noise = torch.from_numpy(np.stack([row.noise(size) for row in rows])).to(logits.device)
        ways = [self.each[row.request].drawing for row in rows]
        if len(set(ways)) == 1:
            return draw(logits, noise, *ways[0])
        tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        logprobs = torch.empty(len(rows), device=logits.device)
        for way in dict.fromkeys(ways):
            places = torch.tensor([i for i, other in enumerate(ways) if other == way], device=logits.device)
            tokens[places], logprobs[places] = draw(logits[places], noise[places], *way)
        return tokens, logprobs

    def take(self, rows: Sequence[Row], tokens: Sequence[int], logprobs: Sequence[float]) -> list[bool]:
        """Add the drawn tokens to their rows and tell of them; which rows go on."""
        alive = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            ends = self.ends[row.request]
            over = ends.take(row, token, logprob)
            alive.append(not over)
            if self.on_text is not None and (piece := ends.news(row, over)):
                self.on_text(row.request, row.index, piece)
        self.done += alive.count(False)
        if self.progress is not None and not all(alive):
            self.progress(self.done, self.total)
        return alive


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:k])), 0)


def reply_seed(seed: int, index: int) -> int:
    """The seed of reply ``index`` to one prompt: the call's own for the first, derived from both (48 bits) after."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=6).digest(), "little")


def make_rows(prompts: Sequence[Ids], n: int, seeds: int | Sequence[Sequence[int]]) -> list[Row]:
    """One row per reply; with one seed for all, equal prompts count on, so that no two replies share a stream."""
    if not isinstance(seeds, int) and (len(seeds) != len(prompts) or any(len(s) != n for s in seeds)):
        raise ValueError(f"seeds must be one number, or {n} numbers for each of the {len(prompts)} prompts.")
    rows, asked = [], Counter[tuple[int, ...]]()
    for request, given in enumerate(prompts):
        prompt = tuple(int(i) for i in given)
        for index in range(n):
            seed = reply_seed(seeds, asked[prompt] + index) if isinstance(seeds, int) else seeds[request][index]
            rows.append(Row(request, index, prompt, seed))
        asked[prompt] += n
    return rows


def length_class(tokens: int) -> int:
    """Prompts of one class are decoded together: those of up to 256 tokens, then of lengths within a factor of 4."""
    return max(4, ((tokens - 1).bit_length() + 1) // 2)


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose prompts are of like length (`length_class`), longest first; those of equal prompts side by side."""
    ordered = sorted(rows, key=lambda r: (-len(r.prompt), r.prompt, r.request, r.index))
    return [list(g) for _, g in itertools.groupby(ordered, lambda r: length_class(len(r.prompt)))]


def fill_holes(alive: Sequence[bool]) -> list[int]:
    """Which row stands at each place of the smaller batch: holes are filled from the end, the others stay.

    >>> fill_holes([True, False, True, False, True])
    [0, 4, 2]
    """
    order = [i if ok else -1 for i, ok in enumerate(alive)]
    left = [i for i in order if i >= 0]
    return [i if i >= 0 else left.pop() for i in order[: len(left)]]


def check_settings(
    n: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stops: Sequence[str],
    stops_after: Sequence[str],
    decode: Any,
) -> None:
    """Raises ValueError, saying what was given and what is possible."""
    if n < 1:
        raise ValueError(f"n is {n}; at least one reply to each prompt must be asked for.")
    if max_tokens < 0:
        raise ValueError(f"max_tokens is {max_tokens}; expected 0 (empty replies) or more.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; expected 0 (the likeliest token) or a positive number.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a number above 0 and up to 1 (keep every token).")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; expected 0 (keep every token) or a positive number.")
    for name, strings in (("stops", stops), ("stops_after", stops_after)):
        if isinstance(strings, str) or "" in strings:
            raise ValueError(f"{name} must be a list of non-empty strings.")
    if (stops or stops_after) and decode is None:
        raise ValueError("Stop strings need `decode`, which turns token ids into text.")
