"""Means of rows that come in two kinds of groups at once: several people judge several prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from truing.stats.intervals import Interval, codes_of, column, se, wilson


def crossed_interval(
    values: ArrayLike, first: Sequence[Hashable], second: Sequence[Hashable] | None = None, *, unit: str = "share"
) -> Interval:
    """Mean with the interval of a two-way cluster-robust standard error (Cameron, Gelbach, Miller 2011).

    The variance is that by the ``first`` groups plus that by the ``second`` minus that by both together, never less
    than either alone; Student's t with as many degrees of freedom as there are groups of the fewer kind, less one. A
    share of exactly 0 or 1 gets the Wilson interval for that many groups, and ends stay inside 0–1. A kind with one
    group alone cannot be resampled and is left out; with no other there is no interval.
    """
    x = column(values)
    n = len(x)
    if n == 0:
        return Interval(None, None, None, 0, unit, "no rows")
    kinds = [groups for groups in (first, second) if groups is not None and codes_of(groups, n)[1] > 1]
    value = float(x.mean())
    if not kinds:
        return Interval(value, None, None, n, unit, "one cluster only: no interval")
    fewest = min(codes_of(groups, n)[1] for groups in kinds)
    if unit == "share" and value in (0.0, 1.0):
        return Interval(value, *wilson(value * fewest, fewest), n, unit)
    variances = [(se(x, groups) or 0.0) ** 2 for groups in kinds]
    variance = max(variances)
    if len(kinds) == 2:
        variance = max(variance, sum(variances) - (se(x, list(zip(*kinds, strict=True))) or 0.0) ** 2)
    half = float(scipy_stats.t.ppf(0.975, fewest - 1)) * math.sqrt(variance)
    low, high = value - half, value + half
    return (
        Interval(value, max(0.0, low), min(1.0, high), n, unit)
        if unit == "share"
        else Interval(value, low, high, n, unit)
    )
