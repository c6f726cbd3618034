"""Calibration and discrimination of probabilities (2207.05221 App A)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from truing.stats.intervals import CELLS, Array, Interval, Labels, codes_of, column, columns, mean_interval, share


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table; ``low`` and ``high`` are the smallest and largest confidence in it."""

    low: float
    high: float
    n: int
    mean_confidence: float
    accuracy: float
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """The columns of reliability.csv."""
        return {
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "mean_confidence": self.mean_confidence,
            "accuracy": self.accuracy,
            "accuracy_low": self.interval.low,
            "accuracy_high": self.interval.high,
        }


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of a calibration chart with its two errors (None without rows)."""

    bins: tuple[Bin, ...]
    ece: float | None
    rms: float | None


def _bin_of(confidence: Array, bins: int) -> Array:
    """Bin of each row: equal counts; equal confidences share the bin of their middle rank."""
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1.")
    _, back, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    place = (middle * bins // len(confidence)).astype(int)
    return np.cumsum(np.diff(place, prepend=place[0]) > 0)[back]  # empty bins are skipped


def _gaps(confidence: Array, correct: Array, bins: int) -> tuple[Array, Array]:
    """Per bin: share of the rows, accuracy minus mean confidence."""
    where = _bin_of(confidence, bins)
    counts = np.bincount(where)
    return counts / counts.sum(), np.bincount(where, correct - confidence) / counts


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 10, clusters: Labels = None) -> Reliability:
    """Calibration chart over equal-count bins, ties kept together (2207.05221 A.1-A.2).

    ``confidence`` and ``correct`` lie in [0, 1]; ``correct`` may be a share. Fewer distinct confidences than bins
    give fewer bins. The result does not depend on the order of rows.
    """
    p, c = columns(confidence=confidence, correct=correct)
    if not len(p):
        return Reliability((), None, None)
    where = _bin_of(p, bins)
    rows = []
    for i in range(where.max() + 1):
        inside = where == i
        of = None if clusters is None else [c for c, take in zip(clusters, inside, strict=True) if take]
        right = c[inside]
        if clusters is None and np.isin(right, (0, 1)).all():
            interval = share(int(right.sum()), len(right))
        else:
            interval = mean_interval(right, of, unit="share", n_boot=500)
        rows.append(
            Bin(
                float(p[inside].min()),
                float(p[inside].max()),
                int(inside.sum()),
                float(p[inside].mean()),
                float(right.mean()),
                interval,
            )
        )
    return Reliability(tuple(rows), ece(p, c, bins), rms_calibration_error(p, c, bins))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float | None:
    """Expected calibration error: mean over equal-count bins of |accuracy - confidence|.

    Bins are weighted by their rows, which matters only where ties make them unequal. None without rows.
    """
    p, c = columns(confidence=confidence, correct=correct)
    if not len(p):
        return None
    weight, gap = _gaps(p, c, bins)
    return float(weight @ np.abs(gap))


def rms_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float | None:
    """Root of the mean squared gap over the same bins (2207.05221 A.2). None without rows."""
    p, c = columns(confidence=confidence, correct=correct)
    if not len(p):
        return None
    weight, gap = _gaps(p, c, bins)
    return float(math.sqrt(weight @ gap**2))


def ece_null(
    confidence: ArrayLike, bins: int = 10, n_draws: int = 1000, seed: int = 0, quantile: float = 0.95
) -> float | None:
    """ECE that a perfectly calibrated predictor with these confidences stays below with probability ``quantile``.

    Answers are drawn right with exactly their confidence; an ECE below this number is no evidence of miscalibration.
    """
    p = column(confidence, "confidence")
    if not len(p):
        return None
    order = np.argsort(p, kind="stable")
    p = p[order]
    where = _bin_of(p, bins)
    starts = np.flatnonzero(np.diff(where, prepend=-1))
    expected = np.add.reduceat(p, starts)
    rng = np.random.default_rng(seed)
    draws: list[Array] = []
    step = max(1, CELLS // len(p))
    for start in range(0, n_draws, step):
        right = rng.random((min(step, n_draws - start), len(p))) < p
        draws.append(np.abs(np.add.reduceat(right, starts, axis=1, dtype=np.float64) - expected).sum(1) / len(p))
    return float(np.quantile(np.concatenate(draws), quantile))


def probability_scores(
    p: ArrayLike, correct: ArrayLike, clusters: Labels = None, *, seed: int = 0, bins: int = 10
) -> dict[str, Interval]:
    """Everything about probabilities and outcomes, with intervals that resample clusters, in one pass.

    ``ece``, ``ece_null_95``, ``rms_calibration_error``, ``brier``, ``brier_constant``, ``skill`` and ``auroc`` as the
    functions of these names. The intervals of ``ece`` and ``rms_calibration_error`` reflect the resamples at the
    value, because resampling inflates them, and are widened to hold it (``bootstrap`` with kind ``basic``).
    """
    x, c = columns(p=p, correct=correct)
    values = {name: statistic(x, c) for name, statistic in _SCORES.items() if name not in ("ece", _RMS)}
    values |= {"ece": ece(x, c, bins), _RMS: rms_calibration_error(x, c, bins)}
    codes, count = codes_of(clusters, len(x))
    drawn = _resampled_scores(x, c, codes, count, bins, seed) if count > 1 else {}
    out = {name: _score_interval(name, values[name], drawn.get(name), c) for name in _SCORES}
    null = Interval(ece_null(x, bins, seed=seed), None, None, len(x), "probability", "" if len(x) else "no rows")
    return {"ece": out.pop("ece"), "ece_null_95": null, **out}


def calibration(
    confidence: ArrayLike, correct: ArrayLike, clusters: Labels = None, *, seed: int = 0, bins: int = 10
) -> dict[str, Interval]:
    """The numbers ``ece`` and ``ece_null_95`` of ``probability_scores``."""
    found = probability_scores(confidence, correct, clusters, seed=seed, bins=bins)
    return {name: found[name] for name in ("ece", "ece_null_95")}


def _score_interval(name: str, value: float | None, drawn: Array | None, c: Array) -> Interval:
    unit, n = _UNITS[name], len(c)
    if value is None:
        note = f"{int((c > 0).sum())} of {n} rows are right: undefined with one class only" if n else "no rows"
        note = note if np.isin(c, (0, 1)).all() else "undefined for shares of right answers"
        return Interval(None, None, None, n, unit, note)
    if drawn is None:
        return Interval(value, None, None, n, unit, "one cluster only: no interval")
    known = drawn[~np.isnan(drawn)]
    if len(known) <= len(drawn) / 2:
        return Interval(value, None, None, n, unit, "undefined in most resamples: no interval")
    low, high = np.quantile(known, [0.025, 0.975])
    if name in ("ece", _RMS):
        low, high = max(0.0, min(2 * value - high, value)), max(2 * value - low, value)
    note = f"undefined in {len(drawn) - len(known)} of {len(drawn)} resamples" if len(known) < len(drawn) else ""
    return Interval(value, low, high, n, unit, note)


def _resampled_scores(p: Array, c: Array, codes: Array, count: int, bins: int, seed: int) -> dict[str, Array]:
    """Scores of resamples [1000, fewer beyond 20,000 rows], NaN where undefined.

    No resample is sorted or copied: it only weights rows that are in order already.
    """
    order = np.argsort(p, kind="stable")
    p, c, codes = p[order], c[order], codes[order]
    starts = np.flatnonzero(np.diff(p, prepend=-np.inf))
    squares = np.stack([(p - c) ** 2, c, c**2], 1)
    rng = np.random.default_rng(seed)
    left = int(min(1000, max(200, 2e7 // len(p))))
    parts = []
    while left:
        rows = min(left, max(1, CELLS // len(p)))
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weight = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)[:, codes].astype(np.float64)
        parts.append(_weighted_scores(weight, p[starts], c, starts, squares, bins))
        left -= rows
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weighted_scores(
    weight: Array, values: Array, c: Array, starts: Array, squares: Array, bins: int
) -> dict[str, Array]:
    """Scores of rows under weights [R, N]; rows are in order of p, ``values`` are its distinct values."""
    rows = len(weight)
    n = weight.sum(1)
    counts = np.add.reduceat(weight, starts, axis=1)
    right = np.add.reduceat(weight * c, starts, axis=1)
    place = np.minimum((np.cumsum(counts, 1) - counts / 2) * bins // n[:, None], bins - 1).astype(int)
    place = (place + bins * np.arange(rows)[:, None]).ravel()
    gaps = np.bincount(place, (right - counts * values).ravel(), rows * bins).reshape(rows, bins)
    sizes = np.bincount(place, counts.ravel(), rows * bins).reshape(rows, bins)
    score, base, square = (weight @ squares).T / n
    constant = square - base**2
    wrong = counts - right
    both = right.sum(1) * wrong.sum(1)
    pairs = (right * (np.cumsum(wrong, 1) - wrong / 2)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ece": np.abs(gaps).sum(1) / n,
            _RMS: np.sqrt(np.where(sizes > 0, gaps**2 / sizes, 0).sum(1) / n),
            "brier": score,
            "brier_constant": constant,
            "skill": np.where(constant > 1e-12, 1 - score / constant, np.nan),
            "auroc": np.where(both > 0, pairs / both, np.nan),
        }


def brier(p: ArrayLike, correct: ArrayLike) -> float | None:
    """Mean squared difference of probability and outcome, 0-1 (2207.05221 A.3). None without rows."""
    x, c = columns(p=p, correct=correct)
    return float(((x - c) ** 2).mean()) if len(x) else None


def brier_constant(correct: ArrayLike) -> float | None:
    """Brier score of the best constant, base·(1-base) for outcomes of 0 and 1. None without rows."""
    c = column(correct, "correct")
    return float(((c - c.mean()) ** 2).mean()) if len(c) else None


def skill(p: ArrayLike, correct: ArrayLike) -> float | None:
    """1 - brier/brier_constant; None where all outcomes are equal, since no predictor can then show skill."""
    score, constant = brier(p, correct), brier_constant(correct)
    return None if score is None or not constant else 1 - score / constant


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Chance that a right row scores above a wrong one, ties counting half. None if one class is empty."""
    x, c = columns(scores=scores, labels=labels)
    if not np.isin(c, (0, 1)).all():
        raise ValueError("AUROC needs labels of 0 and 1; cut soft labels at a threshold first.")
    positive = c == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return None
    return float((rankdata(x)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def _auroc_if_binary(p: Array, c: Array) -> float | None:
    return auroc(p, c) if np.isin(c, (0, 1)).all() else None


_RMS = "rms_calibration_error"
_SCORES: dict[str, Callable[[Array, Array], float | None]] = {
    "ece": ece,
    _RMS: rms_calibration_error,
    "brier": brier,
    "brier_constant": lambda p, c: brier_constant(c),
    "skill": skill,
    "auroc": _auroc_if_binary,
}
_UNITS = {
    "ece": "probability",
    _RMS: "probability",
    "brier": "probability²",
    "brier_constant": "probability²",
    "skill": "share",
    "auroc": "probability",
}


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Correlation; None with fewer than two rows or a constant column."""
    a, b = columns(x=x, y=y)
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
