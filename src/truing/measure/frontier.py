"""How much reward may a KL buy? Gain against √KL, its bound, and best of n at its exact KL (2204.05862 §4.3).

Tilting a policy by e^(βr) gains βσ² for a KL of β²σ²/2, so no policy near its start gains more than σ_w·√(2·KL), where
σ_w² is the mean over prompts of the variance of scores *within* a prompt. A larger gain at a small KL means that
KL, reward or baseline is wrong; far from the start a score with a long upper tail may pass it. KL is per reply, in
nats. Everything here is resampled by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from truing import stats
from truing.stats import Interval
from truing.stats.intervals import Array, resampled_sums

SMALL_KL = 0.5
"""Nats up to which passing the bound is an alarm."""
FEWEST = 3
"""Points that a line needs."""
N_BOOT = 2000


def by_prompt(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    """Means [evaluations, prompts] of a column of ``evaluations.jsonl``, prompts in order of first appearance.

    Raises ValueError if some evaluation lacks a prompt.
    """
    steps, prompts = sorted({row["step"] for row in rows}), list(dict.fromkeys(row["id"] for row in rows))
    place = ({s: i for i, s in enumerate(steps)}, {p: i for i, p in enumerate(prompts)})
    sums, counts = np.zeros((len(steps), len(prompts))), np.zeros((len(steps), len(prompts)))
    for row in rows:
        cell = place[0][row["step"]], place[1][row["id"]]
        sums[cell] += row[name]
        counts[cell] += 1
    if not counts.all():
        raise ValueError("Not every evaluation has replies to every prompt: evaluations.jsonl is not whole.")
    return sums / counts


def kl_estimate(kl: ArrayLike, prompts: Sequence[Any] | None = None) -> tuple[float, float | None]:
    """Mean KL per reply (nats) of replies [N] and its standard error by prompt.

    >>> kl_estimate([1.0, 3.0])
    (2.0, 1.0)
    """
    x = np.asarray(kl, dtype=np.float64)
    return float(x.mean()), stats.se(x, prompts)


def within_variance(scores: Sequence[ArrayLike]) -> Array:
    """Unbiased variance [P] of each prompt's scores. Raises ValueError for a prompt with fewer than two."""
    each = [np.asarray(s, dtype=np.float64) for s in scores]
    if not each or min(map(len, each)) < 2:
        raise ValueError("The variance within prompts needs two or more replies to each prompt.")
    return np.array([s.var(ddof=1) for s in each])


def sigma_within(scores: Sequence[ArrayLike], *, seed: int = 0) -> Interval:
    """σ_w: root of the mean variance within prompts, from k ≥ 2 scores of each prompt's replies (PM units).

    The variance is unbiased; what prompts differ by is no part of it.
    """
    variance = within_variance(scores)
    found = stats.mean_interval(variance, n_boot=N_BOOT, seed=seed)
    ends = [None if x is None else math.sqrt(x) for x in (found.value, found.low, found.high)]
    return Interval(ends[0], ends[1], ends[2], sum(map(len, map(np.atleast_1d, scores))), "PM units", found.note)


def bound(sigma: float, kl: Any) -> Any:
    """The largest gain near the start at a KL of so many nats: σ_w·√(2·KL)."""
    return sigma * np.sqrt(2 * np.asarray(kl, dtype=np.float64))


def tilted(scores: ArrayLike, beta: float, probabilities: ArrayLike | None = None) -> tuple[float, float]:
    """KL (nats) and gain of the policy ∝ π0·e^(β·score) over a prompt's replies: the best there is at its KL.

    ``probabilities`` [N] are π0's (uniform by default: samples of it; then only small KL mean anything).
    """
    x = np.asarray(scores, dtype=np.float64)
    p = np.full(len(x), 1 / len(x)) if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    logq = np.log(p) + beta * (x - x.max())
    logq -= np.log(np.exp(logq).sum())
    q = np.exp(logq)
    return float((q * (logq - np.log(p))).sum()), float(((q - p) * x).sum())


# Best of n


def kl_best_of(n: int) -> float:
    """KL of best of n from its policy, for scores without ties: log n − (n − 1)/n nats.

    >>> round(kl_best_of(16), 2), round(kl_best_of(64), 2)
    (1.84, 3.17)
    """
    return math.log(n) - (n - 1) / n


def expected_best(scores: ArrayLike, n: int) -> float:
    """Unbiased estimate of E[max of n] from N ≥ n scores: the mean of the maximum over all subsets of n of them.

    Raises ValueError for n > N.
    """
    x = np.sort(np.asarray(scores, dtype=np.float64))
    if not 1 <= n <= len(x):
        raise ValueError(f"Best of {n} needs {n} replies to each prompt; there are {len(x)}.")
    whole = math.comb(len(x), n)
    return float(sum(math.comb(i, n - 1) / whole * float(s) for i, s in enumerate(x)))


def best_of(scores: Sequence[ArrayLike], n: int, *, seed: int = 0) -> Interval:
    """Gain of the best of n replies over the mean reply (PM units), mean over prompts."""
    gains = [expected_best(s, n) - float(np.asarray(s, dtype=np.float64).mean()) for s in scores]
    return stats.mean_interval(gains, unit="PM units", seed=seed)


# A policy in training


@dataclass(frozen=True)
class Course:
    """A policy's way from its start: per evaluation after the first, gain and KL, and what they say of the bound.

    ``points`` are dicts of ``samples``, ``kl``, ``kl_se``, ``score`` (the gain), ``low``, ``high`` and ``excess``
    (gain − bound, an Interval). ``slope`` is that of the line through the origin, gain on √KL, over the ``early``
    points; ``r2`` its share of the variance explained, None for fewer than three of them. ``ratio`` is the last gain
    over its bound.
    """

    points: list[dict[str, Any]]
    early: list[int]
    slope: Interval
    r2: float | None
    ratio: Interval

    @property
    def above(self) -> list[dict[str, Any]]:
        """Points at a small KL that are surely above the bound: something is measured wrongly."""
        return [p for p in self.points if p["kl"] <= SMALL_KL and p["excess"].low is not None and p["excess"].low > 0]


def course(samples: Sequence[int], gain: Array, kl: Array, variance: Array, *, seed: int = 0) -> Course:
    """Follow a policy: gain (over the start) and kl [evaluations, prompts], variance within prompts of the start [P].

    ``samples`` [evaluations] were seen before each. The early half are the points up to half of the largest √KL.
    """
    count, prompts = gain.shape
    table = np.concatenate([gain, kl, variance[None]]).T
    value = table.mean(0, keepdims=True)
    boots = resampled_sums(table, N_BOOT, seed) / prompts if prompts > 1 else value
    split = [(m[:, :count], np.sqrt(np.maximum(m[:, count:-1], 0)), np.sqrt(m[:, -1:])) for m in (value, boots)]
    (y, x, sigma), (ys, xs, sigmas) = split

    def interval(one: float, many: Array, unit: str) -> Interval:
        if prompts == 1:
            return Interval(one, None, None, 1, unit, "one prompt only: no interval")
        low, high = np.quantile(many, [0.025, 0.975]).tolist()
        return Interval(one, low, high, prompts, unit)

    root2, points = math.sqrt(2), []
    excess, excesses = y - sigma * x * root2, ys - sigmas * xs * root2
    for i in range(count):
        found = interval(float(y[0, i]), ys[:, i], "PM units")
        mean, error = kl_estimate(kl[i])
        points.append(
            {"samples": int(samples[i]), "kl": mean, "kl_se": error, "score": found.value}
            | {"low": found.low, "high": found.high}
            | {"excess": interval(float(excess[0, i]), excesses[:, i], "PM units")}
        )
    early = [i for i in range(count) if 0 < x[0, i] <= x[0].max() / 2]
    early = early if len(early) >= FEWEST else [i for i in range(count) if x[0, i] > 0]
    slope, r2 = _line(x, y, xs, ys, early, interval)
    share = Interval(None, None, None, prompts, "share", "the policy has not moved")
    if x[0, -1] > 0 and sigma[0, 0] > 0:
        below = np.maximum(sigmas[:, 0] * xs[:, -1] * root2, 1e-12)
        share = interval(float(y[0, -1] / (sigma[0, 0] * x[0, -1] * root2)), ys[:, -1] / below, "share")
    return Course(points, early, slope, r2, share)


def _line(x: Array, y: Array, xs: Array, ys: Array, rows: list[int], interval: Any) -> tuple[Interval, float | None]:
    """Slope of y = slope·x over some evaluations, with what resampled prompts give; and R² about the mean of y."""
    unit = "PM units per √nat"
    if len(rows) < FEWEST:
        return Interval(None, None, None, len(rows), unit, f"fewer than {FEWEST} evaluations with a KL above 0"), None
    a, b = x[0, rows], y[0, rows]
    slope = float((a * b).sum() / (a * a).sum())
    many = (xs[:, rows] * ys[:, rows]).sum(1) / np.maximum((xs[:, rows] ** 2).sum(1), 1e-12)
    spread = float(((b - b.mean()) ** 2).sum())
    r2 = 1 - float(((b - slope * a) ** 2).sum()) / spread if spread > 0 else None
    return interval(slope, many, unit), r2


# What a gain must be compared with


def check_baselines(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a claim of a gain without its baselines: π0, best of n, and replies of like length.

    ``rows`` maps a policy to its columns; each cell is an Interval (or its dict). Raises ValueError naming the first
    empty one.
    """
    for policy, cells in rows.items():
        for column in BASELINES:
            cell = cells.get(column)
            if cell is None or (cell.get("value") if isinstance(cell, Mapping) else cell.value) is None:
                raise ValueError(
                    f"The gain of {policy} has no comparison with {BASELINES[column]}: a gain without it is no "
                    "finding. Draw more replies, or do not claim it."
                )


BASELINES = {"over_start": "its start", "over_best_of": "best of n", "length_matched": "replies of like length"}
"""Columns that a table of gains must fill, and what each compares with."""
