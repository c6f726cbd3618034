"""pass@k: from how many samples of each problem were right to numbers of one model, or of two (2204.05862 App B.8).

The paper takes the best of ten settings for every model and k. A maximum over settings is a little high, and would be
a gain out of nothing if only one of two models had it: both are searched alike, or not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from truing import stats
from truing.stats import Interval

Setting = tuple[float, float]
"""Temperature and top-p; at temperature 0 top-p changes nothing and is 1."""


def pass_at_k(n: int, right: ArrayLike, k: int) -> np.ndarray:
    """1 − C(n − c, k) / C(n, k): the chance that one of k samples is right, without bias, from c right ones of n.

    ``right`` is c, of any shape. Drawing k of the n again and again, or 1 − (1 − c/n)^k, would be biased low
    (Chen et al. 2021, §2.1). Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    c = np.asarray(right)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples; k must be 1 or more and at most the number of samples.")
    if c.size and not 0 <= c.min() <= c.max() <= n:
        raise ValueError(f"{c.max() if c.max() > n else c.min()} right of {n} samples.")
    none_right = np.ones(c.shape)
    for i in range(k):
        none_right *= np.maximum(n - c - i, 0) / (n - i)
    return 1 - none_right


def grid_of(temperatures: Sequence[float], top_ps: Sequence[float]) -> list[Setting]:
    """All settings, those at temperature 0 once. Raises ValueError for numbers out of range or none."""
    if not temperatures or any(not t >= 0 for t in temperatures):
        raise ValueError(f"--temperatures are {list(temperatures)}; expected one or more, each 0 or more.")
    if not top_ps or any(not 0 < p <= 1 for p in top_ps):
        raise ValueError(f"--top-ps are {list(top_ps)}; expected one or more, each above 0 and at most 1.")
    return list(dict.fromkeys((t, p if t else 1.0) for t in temperatures for p in top_ps))


@dataclass(frozen=True)
class Tally:
    """How many samples of each problem were right: ``right`` [S, T], of ``drawn`` [S] at each of the settings [S]."""

    settings: tuple[Setting, ...]
    drawn: tuple[int, ...]
    right: np.ndarray

    def at(self, k: int) -> np.ndarray:
        """pass@k of every problem at every setting [S, T]; at temperature 0 all samples are the one that was drawn."""
        rows = zip(self.settings, self.drawn, self.right, strict=True)
        return np.array([pass_at_k(n, c, k if t else 1) for (t, _), n, c in rows])

    def best(self, k: int) -> Setting:
        """The setting with the highest mean pass@k; of equal ones the first."""
        return self.settings[int(self.at(k).mean(1).argmax())]


def numbers_of(
    after: Tally,
    before: Tally | None,
    ks: Sequence[int],
    fixed: Setting,
    clusters: Sequence[str],
    seed: int = 0,
) -> dict[str, Interval]:
    """pass@k with intervals over clusters of problems: at the best setting of each model, and at the fixed one.

    In every resample the best setting is chosen anew, so that intervals know of the choice. With ``before`` also its
    numbers and the differences after − before, problem by problem. Raises ValueError if the two models were not
    sampled on one grid, or if the fixed setting is not in it.
    """
    both = [after, *([before] if before else [])]
    if any((t.settings, t.drawn) != (after.settings, after.drawn) for t in both):
        raise ValueError("The two models were sampled at different settings; the best of each are not comparable.")
    if fixed not in after.settings:
        raise ValueError(f"The fixed setting {fixed} is not among {list(after.settings)}.")
    place = after.settings.index(fixed)
    numbers: dict[str, Interval] = {}
    for k in ks:
        tables = [t.at(k) for t in both]
        names = [f"pass@{k}", f"pass@{k}/before"][: len(both)]
        for name, table in zip(names, tables, strict=True):
            numbers[name] = _best(table, clusters, seed)
        if before:
            numbers[f"pass@{k}/difference"] = _best_difference(tables[0], tables[1], clusters, seed)
        names = [f"pass@{k}/fixed", f"pass@{k}/fixed/before"][: len(both)]
        for name, table in zip(names, tables, strict=True):
            numbers[name] = stats.mean_interval(table[place], clusters, unit="share", seed=seed)
        if before:
            pair = (tables[0][place], tables[1][place])
            numbers[f"pass@{k}/fixed/difference"] = stats.difference_interval(*pair, clusters, unit="share", seed=seed)
    return numbers


def _best(table: np.ndarray, clusters: Sequence[str], seed: int) -> Interval:
    row = table[int(table.mean(1).argmax())]
    if row.mean() in (0, 1):  # none or all: resampling would claim certainty
        return stats.mean_interval(row, clusters, unit="share", seed=seed)
    found = stats.bootstrap(_most, [table.T], clusters, seed=seed, unit="share", kind="basic")
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _best_difference(a: np.ndarray, b: np.ndarray, clusters: Sequence[str], seed: int) -> Interval:
    def gap(one: np.ndarray, other: np.ndarray) -> float:
        return _most(one) - _most(other)

    return stats.bootstrap(gap, [a.T, b.T], clusters, seed=seed, unit="share", kind="basic")


def _most(rows: np.ndarray) -> float:
    """The best setting's mean over problems, of [T, S]."""
    return float(rows.mean(0).max())


# ---------------------------------------------------------------- tables


def grid_rows(tallies: Mapping[str, Tally], ks: Sequence[int]) -> list[dict[str, Any]]:
    """One row per model and setting: mean pass@k."""
    return [
        {"model": name, "temperature": t, "top_p": p} | {f"pass@{k}": float(tally.at(k)[i].mean()) for k in ks}
        for name, tally in tallies.items()
        for i, (t, p) in enumerate(tally.settings)
    ]


def family_rows(tallies: Mapping[str, Tally], families: Sequence[str], fixed: Setting) -> list[dict[str, Any]]:
    """One row per family: its problems; of each model the share of samples that are right at the fixed setting, and of
    problems that any sample at any setting solves. Best first.
    """
    rows = []
    for family in dict.fromkeys(families):
        mine = np.array([f == family for f in families])
        row: dict[str, Any] = {"family": family, "problems": int(mine.sum())}
        for name, tally in tallies.items():
            place = tally.settings.index(fixed)
            row[f"right_{name}"] = float(tally.right[place, mine].mean() / tally.drawn[place])
            row[f"solved_{name}"] = float((tally.right[:, mine] > 0).any(0).mean())
        rows.append(row)
    last = list(tallies)[-1]
    return sorted(rows, key=lambda r: (-r[f"right_{last}"], -r[f"solved_{last}"]))
