"""Does a row belong to the rows that were seen? Mahalanobis distances, and a linear layer that saw a few outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from truing.stats.intervals import Interval

Array = NDArray[np.float64]
MANY_ROWS = 10
"""Rows per dimension from which on a covariance is taken as it is; with fewer it is shrunk towards its diagonal."""
RIDGE = 1.0
"""Weight of ½‖w‖² beside the summed log-loss of a linear layer, on standardised features."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance (1/N) of rows [N, d], with the covariance shrunk by ``shrinkage`` towards its diagonal.

    ``axes`` [r, d] and ``variances`` [r] are the principal axes of the standardised rows; features that never differ
    count for nothing. Without shrinkage and with N ≤ d the pseudo-inverse stands for the inverse.
    """

    mean: Array
    deviations: Array
    axes: Array
    variances: Array
    shrinkage: float
    num_rows: int

    @classmethod
    def fit(cls, rows: ArrayLike, shrinkage: float | None = None) -> Gaussian:
        """The Gaussian of rows [N, d]; ``shrinkage`` 0 to 1, by default Ledoit and Wolf's where N < 10 d, else 0.

        Raises ValueError for fewer than two rows, or a shrinkage outside 0 to 1.
        """
        x = np.asarray(rows, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"A Gaussian needs two rows at least; rows of the shape {x.shape} were given.")
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage}; expected 0 (none) to 1 (the diagonal alone).")
        mean = x.mean(0)
        deviations = x.std(0)
        deviations[deviations <= 1e-12 * np.abs(x).max(initial=1e-300)] = np.inf  # never differs
        z = (x - mean) / deviations
        _, scales, axes = np.linalg.svd(z, full_matrices=False)
        kept = scales > scales.max(initial=0.0) * max(x.shape) * np.finfo(float).eps
        if shrinkage is None:
            shrinkage = ledoit_wolf(z) if len(x) < MANY_ROWS * x.shape[1] else 0.0
        return cls(mean, deviations, axes[kept], scales[kept] ** 2 / len(x), float(shrinkage), len(x))

    def full(self, rows: ArrayLike) -> Array:
        """(v − μ)ᵀ Σ⁻¹ (v − μ) of rows [n, d]: the squared Mahalanobis distance."""
        z = self._standardised(rows)
        along = (z @ self.axes.T) ** 2
        found = (along / ((1 - self.shrinkage) * self.variances + self.shrinkage)).sum(1)
        if self.shrinkage:  # off the axes only the diagonal's share is left of the covariance
            found += np.maximum(0.0, (z**2).sum(1) - along.sum(1)) / self.shrinkage
        return found

    def diagonal(self, rows: ArrayLike) -> Array:
        """(v − μ)ᵀ Σ_diag⁻¹ (v − μ) of rows [n, d]."""
        return (self._standardised(rows) ** 2).sum(1)

    def relative(self, rows: ArrayLike) -> Array:
        """Full minus diagonal distance of rows [n, d]: simplified relative Mahalanobis (2204.05862 §5.4)."""
        return self.full(rows) - self.diagonal(rows)

    @property
    def fitted_distance(self) -> float:
        """Mean full distance of the rows it was fitted on: min(d, N − 1) without shrinkage."""
        return float((self.variances / ((1 - self.shrinkage) * self.variances + self.shrinkage)).sum())

    def refuse_fitted(self, rows: ArrayLike) -> float:
        """Mean full distance of rows that are to be judged. Raises ValueError if it was fitted on just these rows.

        A covariance is exactly as far from its own rows, on average, as it has dimensions; others lie farther off.
        """
        distance = float(self.full(rows).mean())
        if len(np.asarray(rows)) == self.num_rows and abs(distance - self.fitted_distance) < 1e-9 * distance:
            raise ValueError(
                f"The covariance was fitted on the {self.num_rows} rows that it is to judge (mean distance "
                f"{distance:.6g}, its own {self.fitted_distance:.6g}): their scores would look perfect."
            )
        return distance

    def _standardised(self, rows: ArrayLike) -> Array:
        return (np.asarray(rows, dtype=np.float64) - self.mean) / self.deviations


def ledoit_wolf(rows: ArrayLike) -> float:
    """How far the covariance of centred rows [N, d] is best shrunk towards a multiple of the identity, 0 to 1.

    Ledoit and Wolf (2004), J. Multivariate Analysis 88: the least expected squared error.
    """
    x = np.asarray(rows, dtype=np.float64)
    n, d = x.shape
    gram = x @ x.T / n if n < d else x.T @ x / n  # both have the covariance's Frobenius norm
    norm, trace = float((gram**2).sum()), float(np.trace(gram))
    distance = norm - trace**2 / d
    noise = float((((x**2).sum(1)) ** 2).sum() / n**2 - norm / n)
    return 1.0 if distance <= 0 else min(1.0, max(0.0, noise / distance))


@dataclass(frozen=True)
class LinearLayer:
    """w·v + b: the log odds of being an outlier."""

    weights: Array
    bias: float

    def score(self, rows: ArrayLike) -> Array:
        """Log odds [n] of rows [n, d]."""
        return np.asarray(rows, dtype=np.float64) @ self.weights + self.bias


def expose(inside: ArrayLike, outliers: ArrayLike, times: int = 1) -> LinearLayer:
    """One linear layer by logistic regression: ``inside`` [N, d] against ``outliers`` [M, d], each of them repeated.

    2204.05862 §5.4 repeats each of M outliers N // M times. Features are standardised by the inside rows, and
    ½‖w‖² on that scale keeps the layer finite where the classes can be told apart. Raises ValueError without rows.
    """
    a, b = np.asarray(inside, dtype=np.float64), np.asarray(outliers, dtype=np.float64)
    if not len(a) or not len(b) or times < 1:
        raise ValueError(f"{len(a)} rows inside and {len(b)} outliers, each {times} times; expected one at least.")
    mean, deviations = a.mean(0), a.std(0)
    deviations[deviations <= 1e-12 * np.abs(a).max(initial=1e-300)] = 1.0
    x = (np.concatenate([a, b]) - mean) / deviations
    y = np.repeat([0.0, 1.0], [len(a), len(b)])
    weight = np.where(y == 1, float(times), 1.0)

    def loss(theta: Array) -> tuple[float, Array]:
        logits = x @ theta[:-1] + theta[-1]
        wrong = weight * (expit(logits) - y)
        value = (weight * (np.logaddexp(0, logits) - y * logits)).sum() + RIDGE / 2 * (theta[:-1] ** 2).sum()
        return float(value), np.append(x.T @ wrong + RIDGE * theta[:-1], wrong.sum())

    options = {"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-5}
    theta = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
    weights = theta[:-1] / deviations
    return LinearLayer(weights, float(theta[-1] - weights @ mean))


@dataclass(frozen=True)
class Judged:
    """Scores of inside and outside rows in one split or draw, and which rows these are: rows may come in several."""

    inside_ids: NDArray[np.int64]
    inside: Array
    outside_ids: NDArray[np.int64]
    outside: Array


def auroc_draws(parts: Sequence[Judged], n_boot: int = 1000, seed: int = 0) -> tuple[float, Array]:
    """Mean over parts of the chance that an outside row scores above an inside one, and the same of resamples [n_boot].

    Ties count half. Inside and outside rows are each drawn with replacement, the same rows in every part; equal seeds
    draw equal rows, so that methods can be compared pair by pair.
    """
    rng = np.random.default_rng(seed)
    times = []
    for name in ("inside_ids", "outside_ids"):
        ids = np.unique(np.concatenate([getattr(part, name) for part in parts]))
        counts = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=n_boot).astype(np.float64)
        times.append({"ids": ids, "counts": counts})
    values, draws = [], np.zeros(n_boot)
    for part in parts:
        w_in, w_out = (
            np.append(np.ones((1, len(ids))), t["counts"][:, np.searchsorted(t["ids"], ids)], axis=0)
            for t, ids in zip(times, (part.inside_ids, part.outside_ids), strict=True)
        )
        won = np.zeros(n_boot + 1)
        for start in range(0, len(part.outside), 512):
            some = part.outside[start : start + 512, None]
            above = (some > part.inside) + 0.5 * (some == part.inside)
            won += ((w_out[:, start : start + 512] @ above) * w_in).sum(1)
        found = won / np.maximum(1e-300, w_in.sum(1) * w_out.sum(1))
        values.append(found[0])
        draws += found[1:] / len(parts)
    return float(np.mean(values)), draws


def interval_of(value: float, draws: Array, n: int) -> Interval:
    """A value with the 95% percentile interval of its resamples."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, min(low, value), max(high, value), n, "probability")


def disjoint(**ids: Sequence[int]) -> None:
    """Raise ValueError where two sets of row ids share one, which would leak what is judged into what was fitted."""
    names = list(ids)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            if both := set(ids[one]) & set(ids[two]):
                raise ValueError(f"{len(both)} rows are {one} and {two} at once, the first is {min(both)}.")
