"""Does the judge that trains a policy rise above the judge that does not? (2204.05862 §4.2)

Judges are compared by their gains since the start on the same prompts, so that shifting one changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from truing import stats
from truing.data.comparisons import conversation_key, split_by_conversation
from truing.stats import Interval
from truing.stats.intervals import Array
from truing.text import to_hh
from truing.types import Comparison, Dialogue


def halves(rows: Sequence[Comparison], seed: int = 0) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons for train-PMs and for test-PMs: two halves that share no conversation (`check_apart`)."""
    train, test = split_by_conversation(rows, 0.5, seed)
    check_apart(train, test)
    return train, test


def beginnings(rows: Iterable[Comparison]) -> set[str]:
    """Every first human turn, and every beginning of a dialogue that ends in a human turn."""
    out = set()
    for c in rows:
        out.add(conversation_key(c))
        turns = c.prompt.turns
        out |= {to_hh(Dialogue(turns[: i + 1])) for i, turn in enumerate(turns) if turn.role == "human"}
    return out


def check_apart(*parts: Sequence[Comparison]) -> None:
    """Raise ValueError if two parts share a first human turn or a beginning: a gap between judges would be hidden."""
    seen: set[str] = set()
    for part in parts:
        found = beginnings(part)
        if both := seen & found:
            raise ValueError(
                f"{len(both)} beginnings of dialogues stand in two parts, the first is {min(both)[:80]!r}. Split by "
                "conversation, so that neither judge has seen what the other was trained on."
            )
        seen |= found


def gains(table: Array) -> Array:
    """Gains [evaluations, prompts] since the first evaluation, of scores in that shape; constants cancel."""
    scores = np.asarray(table, dtype=np.float64)
    return scores - scores[0]


def curve(samples: Sequence[int], table: Array, *, unit: str = "PM units", seed: int = 0) -> list[tuple[int, Interval]]:
    """(samples, mean over prompts with its interval) of a table [evaluations, prompts]."""
    means = [stats.mean_interval(row, unit=unit, seed=seed) for row in table]
    return list(zip(map(int, samples), means, strict=True))


def onset(samples: Sequence[int], gap: Array) -> int | None:
    """Samples from which on the mean gap is more than two standard errors above 0, to the end; None if it is not.

    ``gap`` [evaluations, prompts] is training gain − test gain. One evaluation above two errors is no onset if a later
    one is not: among twenty, chance alone gives such ones.
    """
    found = None
    for when, row in zip(samples, gap, strict=True):
        error = stats.se(row)
        if error is None or not row.mean() > 2 * error:
            found = None
        elif found is None:
            found = int(when)
    return found


def peak(samples: Sequence[int], gain: Array, *, unit: str = "", seed: int = 0) -> tuple[int, Interval]:
    """Samples at the highest mean gain, and how far the mean falls from there to the end (paired by prompt).

    The highest of several noisy means is partly luck, so a small fall says little.
    """
    best = int(gain.mean(1).argmax())
    return int(samples[best]), stats.difference_interval(gain[best], gain[-1], unit=unit, seed=seed)
