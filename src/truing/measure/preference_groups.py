"""Where a preference model is right: by source, turn, score gap and length; and among replies that score high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.data.comparisons import conversation_key
from truing.stats import Interval, mean_interval
from truing.train.pm_numbers import correctness
from truing.types import Comparison

LAST_TURN = 5
"""Dialogues of so many human turns or more are one group."""
GAPS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Edges of the groups of |Δ|, PM units; the last one is open."""
LENGTHS = {"much_shorter": -0.5, "shorter": -0.1, "alike": 0.1, "longer": 0.5, "much_longer": 1.0}
"""Groups of (characters of chosen − rejected) / characters of the longer one, each up to its number."""
TOP = (50, 25, 10)
"""Percent of the pairs left by a threshold that both scores exceed."""


def groups_of(gaps: np.ndarray, comparisons: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Name → which comparisons belong to it, bool [P]; groups of a family share no comparison and cover them all."""
    sizes = np.abs(np.asarray(gaps, dtype=np.float64))
    turns = np.array([sum(t.role == "human" for t in c.prompt.turns) for c in comparisons])
    sources = np.array([c.source for c in comparisons])
    found = {f"source/{s}": sources == s for s in sorted({*sources.tolist()}) if s}
    found |= {f"turn/{t}": turns == t for t in range(LAST_TURN)}
    found[f"turn/{LAST_TURN}+"] = turns >= LAST_TURN
    edges = [*GAPS, np.inf]
    for low, high in zip(edges, edges[1:], strict=False):
        name = f"gap/{low:g}-{high:g}" if np.isfinite(high) else f"gap/{low:g}+"
        found[name] = (sizes >= low) & (sizes < high)
    place = np.searchsorted(list(LENGTHS.values()), relative_lengths(comparisons))
    found |= {f"length/{name}": place == i for i, name in enumerate(LENGTHS)}
    return {name: rows for name, rows in found.items() if rows.any()}


def relative_lengths(comparisons: Sequence[Comparison]) -> np.ndarray:
    """(characters of chosen − rejected) / characters of the longer one, in [−1, 1]; [P]."""
    sizes = np.array([(len(c.chosen), len(c.rejected)) for c in comparisons], dtype=np.float64).reshape(-1, 2)
    return (sizes[:, 0] - sizes[:, 1]) / np.maximum(1, sizes.max(1))


def group_numbers(gaps: np.ndarray, comparisons: Sequence[Comparison], *, seed: int = 0) -> dict[str, Interval]:
    """``accuracy/FAMILY/GROUP`` of `groups_of`; intervals resample whole conversations (2204.05862 §3.2-3.3)."""
    right, keys = correctness(gaps), np.array([conversation_key(c) for c in comparisons])
    return {
        f"accuracy/{name}": mean_interval(right[rows], keys[rows], unit="share", seed=seed)
        for name, rows in groups_of(gaps, comparisons).items()
    }


def above_thresholds(
    chosen: np.ndarray, rejected: np.ndarray, comparisons: Sequence[Comparison], *, seed: int = 0
) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Accuracy on pairs both of whose scores exceed a rising threshold (2204.05862 §3.3, Fig 25).

    Numbers ``accuracy_above/top_50`` …, and rows for thresholds that leave 100 to 5% of the pairs. Scores float [P]
    each, centred; where none is left there is no row.
    """
    lower, right = np.minimum(chosen, rejected), correctness(chosen - rejected)
    keys = np.array([conversation_key(c) for c in comparisons])

    def above(percent: float) -> tuple[float, Interval]:
        threshold = float(np.quantile(lower, 1 - percent / 100))
        rows = lower >= threshold
        return threshold, mean_interval(right[rows], keys[rows], unit="share", seed=seed)

    numbers = {f"accuracy_above/top_{percent}": above(percent)[1] for percent in TOP}
    rows = []
    for percent in (100, *range(95, 0, -5)):
        threshold, found = above(percent)
        rows.append({"threshold": threshold} | found.as_dict())
    return numbers, rows
