"""How far raters agree: Fleiss' kappa with its interval (2209.07858 §3.5; formula: Fleiss 1971)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from truing.stats.intervals import Interval, bootstrap


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Kappa of a table [items, categories] of votes, every row with the same number of raters (at least 2).

    Categories count as unordered. 1 is full agreement, 0 what chance gives; the floor for n raters is -1/(n-1), not
    minus infinity. None where it is undefined: no items, or all votes in one category. Raises ValueError where rows
    have different numbers of raters: leave items with missing raters out first.

    >>> round(fleiss_kappa([[3, 0], [2, 1], [0, 3]]), 3)
    0.55
    """
    votes = np.asarray(counts, dtype=np.float64)
    if votes.ndim != 2:
        raise ValueError(f"The votes have shape {votes.shape}; expected [items, categories].")
    if not len(votes):
        return None
    raters = votes.sum(1)
    if (votes < 0).any() or (raters != raters[0]).any() or raters[0] < 2:
        found = f"{raters.min():g} to {raters.max():g}"
        raise ValueError(f"Rows have {found} raters; expected the same number, at least 2, in every row.")
    n = raters[0]
    observed = float(((votes**2).sum(1) - n).mean() / (n * (n - 1)))
    shares = votes.sum(0) / votes.sum()
    expected = float((shares**2).sum())
    return None if np.count_nonzero(shares) < 2 else (observed - expected) / (1 - expected)


def kappa_interval(ratings: Sequence[Sequence[int]], categories: int, *, n_boot: int = 1000, seed: int = 0) -> Interval:
    """Fleiss' kappa of ratings [items, raters] from 0 to ``categories`` - 1, its interval resampling items.

    Raises ValueError for a rating outside of that range, or items with different numbers of raters.
    """
    if not ratings:
        return Interval(None, None, None, 0, "kappa", "no item has all its ratings")
    if len({len(row) for row in ratings}) > 1:
        raise ValueError("Items have different numbers of raters: leave those with missing raters out first.")
    table = np.asarray(ratings)
    if table.min() < 0 or table.max() >= categories:
        raise ValueError(f"Ratings run from {table.min()} to {table.max()}; expected 0 to {categories - 1}.")
    counts = np.stack([(table == value).sum(1) for value in range(categories)], 1)
    found = bootstrap(fleiss_kappa, [counts], n_boot=n_boot, seed=seed, unit="kappa")
    if found.value is None:
        return Interval(None, None, None, len(table), "kappa", "all ratings are equal: kappa is undefined")
    return found
