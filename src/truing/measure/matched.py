"""Is a gain real, or only a change of length or of endings? Differences of two arms on the same prompts.

Raw gains of RLHF can be all length, or all "it now finishes within the limit" (gains need baselines of
like length). Intervals resample prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from truing.stats import Interval, bootstrap, mean_interval

BINS = 4


def gain(
    after: ArrayLike,
    after_prompts: Sequence[Hashable],
    before: ArrayLike,
    before_prompts: Sequence[Hashable],
    *,
    unit: str = "",
    seed: int = 0,
) -> Interval:
    """Mean of ``after`` minus mean of ``before``, rows unpaired, with its bootstrap interval over prompts."""
    values, arm, prompts = _stack(after, after_prompts, before, before_prompts)

    def difference(x: np.ndarray, second: np.ndarray) -> float | None:
        return float(x[second].mean() - x[~second].mean()) if second.any() and (~second).any() else None

    return bootstrap(difference, [values, arm], prompts, seed=seed, unit=unit)


def matched_gain(
    after: ArrayLike,
    after_lengths: ArrayLike,
    after_prompts: Sequence[Hashable],
    before: ArrayLike,
    before_lengths: ArrayLike,
    before_prompts: Sequence[Hashable],
    *,
    bins: int = BINS,
    unit: str = "",
    seed: int = 0,
) -> Interval:
    """The gain among replies of like length: differences within length bins, weighted by the smaller count of each.

    Bins hold equal counts of both arms' replies together; a bin that one arm never visits has no weight.
    """
    values, arm, prompts = _stack(after, after_prompts, before, before_prompts)
    lengths = np.concatenate([np.asarray(after_lengths, float), np.asarray(before_lengths, float)])
    place = np.searchsorted(length_edges(lengths, bins), lengths, side="left")

    def difference(x: np.ndarray, second: np.ndarray, where: np.ndarray) -> float | None:
        total = weight = 0.0
        for b in range(bins):
            mine, theirs = x[second & (where == b)], x[~second & (where == b)]
            w = min(len(mine), len(theirs))
            if w:
                total, weight = total + w * (mine.mean() - theirs.mean()), weight + w
        return float(total / weight) if weight else None

    return bootstrap(difference, [values, arm, place], prompts, seed=seed, unit=unit)


def length_edges(lengths: ArrayLike, bins: int = BINS) -> np.ndarray:
    """Inner edges of bins with equal counts; a length equal to an edge belongs below it."""
    return np.unique(np.quantile(np.asarray(lengths, float), np.linspace(0, 1, bins + 1)[1:-1]))


def by_length(
    after: ArrayLike, after_lengths: ArrayLike, before: ArrayLike, before_lengths: ArrayLike, bins: int = BINS
) -> list[dict[str, Any]]:
    """Rows for ``figures.length_matched``: mean of ``before`` (a) and ``after`` (b) in each length bin."""
    x, y = np.asarray(before, float), np.asarray(after, float)
    lx, ly = np.asarray(before_lengths, float), np.asarray(after_lengths, float)
    edges = [-np.inf, *length_edges(np.concatenate([lx, ly]), bins), np.inf]
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        a, b = x[(lx > low) & (lx <= high)], y[(ly > low) & (ly <= high)]
        span = f"≤ {high:.0f}" if low == -np.inf else f"> {low:.0f}" if high == np.inf else f"{low + 1:.0f}–{high:.0f}"
        rows.append({"label": span, "a": mean_interval(a), "b": mean_interval(b), "n_a": len(a), "n_b": len(b)})
    return rows


def exceeds(difference: Interval, errors: float = 2.0) -> bool:
    """Whether a difference is above 0 by more than that many standard errors (its 95% interval's width over 3.92)."""
    if difference.value is None or difference.low is None or difference.high is None:
        return False
    return difference.value > errors * (difference.high - difference.low) / (2 * 1.96)


def _stack(
    after: ArrayLike, after_prompts: Sequence[Hashable], before: ArrayLike, before_prompts: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray, list[Hashable]]:
    x, y = np.asarray(after, float), np.asarray(before, float)
    arm = np.arange(len(x) + len(y)) < len(x)
    return np.concatenate([x, y]), arm, [*after_prompts, *before_prompts]
