"""``truing rlhf prompts``: a model writes prompts after ten that people wrote (2204.05862 §4.1).

Each call shows other examples, drawn at random, and gives one prompt. It is kept if it is whole, of a fair length,
unlike the examples and those that were kept, and unlike what is held out. Every row says which examples it was
written after, by which model and with which seed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import WritePrompts
from truing.data.files import write_rows
from truing.data.near import Near, key_of
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.measure.labels import in_chunks
from truing.measure.serving import open_in_run, server_notes
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.models.load import is_remote
from truing.models.remote import AnyLM, savings
from truing.runs import Run
from truing.stats import Interval
from truing.text import HUMAN
from truing.train.cost import replying, timed

CHUNK = 64
"""Calls between two savings."""
KEPT = "calls-so-far.jsonl"
OUT = "prompts.jsonl"
LEFT_OUT = ("unfinished", "length", "no words", "duplicate", "like an example", "held out")
"""Why a prompt is not kept, in the order in which it is looked at."""
_OPENING = re.compile(r"^(?:human:|\d+[.)]|[-*•])\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Examples:
    """What a model is shown: prompts of one kind by call, and what its own must not be like."""

    rows: Sequence[PromptRow]
    held_out: Sequence[PromptRow]
    shots: int
    seed: int

    def of(self, call: int) -> list[PromptRow]:
        """The examples of a call: a kind drawn as often as it comes, then as many of that kind as are shown."""
        random = np.random.default_rng([self.seed, 5, call])
        kind = self.rows[int(random.integers(len(self.rows)))].kind
        same = [row for row in self.rows if row.kind == kind]
        return [same[i] for i in random.permutation(len(same))[: self.shots]]

    def text(self, call: int) -> str:
        """What the model continues."""
        return "".join(f"{HUMAN} {first_turn(row)}" for row in self.of(call)) + HUMAN


def first_turn(row: PromptRow) -> str:
    """The first human turn, in one paragraph: a blank line would end an example."""
    words = next(turn.text for turn in row.dialogue.turns if turn.role == "human")
    return re.sub(r"\n\s*\n", "\n", words.strip())


def parse(text: str) -> str:
    """One prompt from a continuation: its first paragraph, without a number, a bullet or quotation marks around it.

    >>> parse(' 4. "Why is the sky blue?"\\n\\nAssistant: It scatters')
    'Why is the sky blue?'
    """
    words = _OPENING.sub("", text.strip().split("\n\n")[0].strip())
    return words[1:-1].strip() if len(words) > 1 and words[0] + words[-1] in ('""', "''", "“”", "‘’") else words


class Sieve:
    """Which prompts are kept, one after another; ``left_out`` counts the others by reason."""

    def __init__(self, config: WritePrompts, examples: Examples) -> None:
        self.config, self.left_out = config, Counter[str]()
        self.examples = Near(first_turn(row) for row in examples.rows)
        turns = [t.text for row in examples.held_out for t in row.dialogue.turns if t.role == "human"]
        self.held_out, self.held_keys = Near(turns), {key_of(text) for text in turns}
        self.keys, self.kept = set[str](), Near()

    def keep(self, text: str, finish: str) -> bool:
        """Whether a parsed prompt is kept; then later ones must differ from it."""
        why = self._why_not(text, finish)
        if why:
            self.left_out[why] += 1
            return False
        self.keys.add(key_of(text))
        self.kept.add(text)
        return True

    def _why_not(self, text: str, finish: str) -> str:
        c, words = self.config, len(text.split())
        if finish != "stop":
            return "unfinished"
        if not c.min_words <= words <= c.max_words:
            return "length"
        if not re.search(r"[^\W\d_]", text) or re.search(r"\b(?:human|assistant):", text, re.IGNORECASE):
            return "no words"
        if key_of(text) in self.held_keys or self.held_out.likeness(text) >= c.likeness:
            return "held out"
        if key_of(text) in self.keys or self.kept.likeness(text) >= c.likeness:
            return "duplicate"
        return "like an example" if self.examples.likeness(text) >= c.likeness else ""


def write_prompts(config: WritePrompts) -> Run | dict[str, Any]:
    """Write ``n`` prompts with a model into ``prompts.jsonl`` of the run; the same command again goes on.

    Raises DataError for example files that cannot be read, ValueError for options that mean nothing and for too few
    examples.
    """
    _check(config)
    held_out = load_prompt_rows(config.exclude) if config.exclude else []
    rows = load_prompt_rows(config.examples, not_in=[row.dialogue for row in held_out])
    fewest = min(Counter(row.kind for row in rows).values())
    if fewest <= config.shots:
        raise ValueError(
            f"--shots {config.shots} examples are shown at a time, and of one kind there are {fewest}: every call "
            "would show the same. Give more --examples or fewer --shots."
        )
    examples = Examples(rows, held_out, config.shots, config.seed)
    if config.dry_run:
        return {"lines": _expected(config, examples)}
    files = [f for f in (*config.examples, *config.exclude) if Path(f).exists()]
    run = Run.open("rlhf prompts", config, data_files=files, slug=Path(config.model).name)
    if run.done:
        return run
    lm = open_in_run(run, config, run.compute(config))
    show_prompt(lm, examples.text(0))
    calls, kept, sieve = _until_enough(run, config, lm, examples)
    write_rows(run.path / OUT, kept) if kept else None
    run.write_samples({"id": r["id"], "prompt": r["prompt"], "likeness": r["likeness"]} for r in kept)
    numbers = prompt_numbers(kept, len(calls), sieve, config.seed)
    notes = [f"Written after {config.shots} of {len(rows):,} examples at a time; {len(held_out):,} prompts excluded."]
    if len(kept) >= config.n or len(calls) >= config.n * config.calls_per_prompt:
        if len(kept) < config.n:
            notes.append(f"Only {len(kept)} of {config.n} prompts after {len(calls)} calls (--calls-per-prompt).")
        run.finish(numbers, [*notes, *server_notes(run, config.temperature)])
        (run.path / KEPT).unlink()
    else:
        run.stop(numbers, [*notes, f"Stopped after {len(calls)} calls; the same command goes on."])
    return run


def _until_enough(
    run: Run, config: WritePrompts, lm: AnyLM, examples: Examples
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Sieve]:
    """Call the model until enough prompts are kept, or calls or time are over: calls, rows, and their sieve."""
    part = savings(config.model, CHUNK)
    most = config.n * config.calls_per_prompt
    sieve, kept, calls = Sieve(config, examples), list[dict[str, Any]](), list[dict[str, Any]]()

    def work(some: Sequence[int], _: int) -> list[dict[str, Any]]:
        return written(lm, config, examples, some)

    planned = 0
    while planned < most and len(kept) < config.n:
        planned = min(most, planned + CHUNK)
        found = in_chunks(run, KEPT, range(planned), work, label=None, max_time=config.max_time, **part)
        for call in found[len(calls) :]:
            if len(kept) < config.n and sieve.keep(call["prompt"], call["finish"]):
                kept.append(_row(call, config, examples, sieve))
        calls = found
        print(f"Prompts: {len(kept):,} of {config.n:,} after {len(calls):,} calls", file=sys.stderr, flush=True)
        if len(calls) < planned:
            break
    return calls, kept, sieve


def written(lm: AnyLM, config: WritePrompts, examples: Examples, calls: Sequence[int]) -> list[dict[str, Any]]:
    """What the model wrote in some calls: each its own prompt, seed and examples."""
    seeds = [[int(np.random.default_rng([config.seed, 6, call]).integers(2**31))] for call in calls]
    drawn = lm.sample(
        [examples.text(call) for call in calls],
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stop=["\n\n"],
        seed=seeds,
    )
    return [
        {"call": call, "prompt": parse(samples[0].text), "finish": samples[0].finish, "seed": samples[0].seed}
        for call, samples in zip(calls, drawn, strict=True)
    ]


def _row(call: dict[str, Any], config: WritePrompts, examples: Examples, sieve: Sieve) -> dict[str, Any]:
    shown = examples.of(call["call"])
    return {
        "id": f"written-{config.seed}-{call['call']}",
        "prompt": call["prompt"],
        "kind": shown[0].kind,
        "source": "model-written",
        "model": config.model,
        "seed": call["seed"],
        "examples": [row.id for row in shown],
        "likeness": round(sieve.examples.likeness(call["prompt"]), 4),
    }


def prompt_numbers(kept: Sequence[dict[str, Any]], calls: int, sieve: Sieve, seed: int) -> dict[str, Any]:
    """Numbers of a run; duplicates and overlap are counted anew over what was written."""
    n, keys = len(kept), [key_of(row["prompt"]) for row in kept]
    used = n + sieve.left_out.total()
    numbers: dict[str, Any] = {"prompts": _count(n, "prompts"), "calls": _count(calls, "calls")}
    numbers["kept"] = stats.share(n, used)
    numbers |= {f"left_out/{why.replace(' ', '_')}": stats.share(sieve.left_out[why], used) for why in LEFT_OUT}
    numbers["exact_duplicates"] = _count(n - len(set(keys)), "prompts", n)
    numbers["overlap"] = _count(sum(key in sieve.held_keys for key in keys), "prompts", n)
    lengths = [len(row["prompt"].split()) for row in kept]
    numbers["words"] = stats.mean_interval(lengths, unit="words", seed=seed)
    numbers["likeness"] = stats.mean_interval([row["likeness"] for row in kept], unit="share of trigrams", seed=seed)
    return numbers


def _count(count: int, unit: str, of: int | None = None) -> Interval:
    return Interval(count, None, None, count if of is None else of, unit)


def _check(config: WritePrompts) -> None:
    least = {"n": 1, "shots": 1, "min_words": 1, "max_words": config.min_words, "calls_per_prompt": 1}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if not 0 < config.likeness <= 1:
        raise ValueError(f"likeness is {config.likeness}; expected above 0, and 1 or less.")
    if not config.temperature > 0:
        raise ValueError(f"temperature is {config.temperature}; at 0 one prompt would be written again and again.")


def _expected(config: WritePrompts, examples: Examples) -> list[str]:
    """What it would take, if every second prompt is kept."""
    first = f"{config.n:,} prompts after {config.shots} of {len(examples.rows):,} examples each."
    if is_remote(config.model):
        return [first, "The time is the server's."]
    compute = choose(config.device, config.dtype, config.threads)
    lm, loading = timed(lambda: LM.load(config.model, device=compute.device, dtype=compute.dtype))
    work: Callable[[int, int], Any] = lambda start, stop: written(lm, config, examples, range(start, stop))  # noqa: E731
    cost = loading + replying(lm.engine, work, 2 * config.n, CHUNK)
    return [f"{first} If every second one is kept:", *cost.lines(compute)]
