"""Numbers with 95% intervals, by bootstrap over clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Labels = Sequence[Hashable] | Array | None
CELLS = 200_000  # numbers held at once while resampling: they should fit into the processor's cache


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95% interval; ``n`` counts rows. What is undefined is None, and ``note`` says why.

    >>> Interval(0.5, 0.4, 0.6, 100, "share").as_dict()
    {'value': 0.5, 'low': 0.4, 'high': 0.6, 'n': 100, 'unit': 'share'}
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            x = getattr(self, name)
            if x is not None:
                if not math.isfinite(x):
                    raise ValueError(f"Interval.{name} is {x}; an undefined number must be None, with a note.")
                object.__setattr__(self, name, float(x))

    def as_dict(self) -> dict[str, Any]:
        """The keys value, low, high, n, unit, as ``summary.json`` holds them."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.note})" if self.note else "undefined"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{bounds}"


def column(values: ArrayLike, name: str = "values") -> Array:
    """A float64 column; ValueError names the first row that is not finite."""
    x = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x))[0])
        raise ValueError(f"{name}[{row}] is {x[row]}; expected finite numbers. Leave undefined rows out first.")
    return x


def columns(**arrays: ArrayLike) -> list[Array]:
    """Finite columns of one length, by name."""
    found = [column(a, name) for name, a in arrays.items()]
    if len({len(c) for c in found}) > 1:
        lengths = ", ".join(f"{name} has {len(c)}" for name, c in zip(arrays, found, strict=True))
        raise ValueError(f"The columns must have one length; {lengths} rows.")
    return found


def codes_of(clusters: Labels, n: int) -> tuple[Array, int]:
    """Cluster of each row as 0..count-1, in order of first appearance."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ValueError(f"There are {n} rows and {len(clusters)} cluster labels; give one label per row.")
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(c, len(seen)) for c in clusters), dtype=np.int64, count=n)
    return codes, len(seen)


def resampled_sums(table: Array, n_boot: int, seed: int) -> Array:
    """Column sums [n_boot, K] of ``table`` [clusters, K] over clusters drawn with replacement."""
    count = len(table)
    rng = np.random.default_rng(seed)
    sums = np.empty((n_boot, table.shape[1]))
    step = max(1, CELLS // count)
    for start in range(0, n_boot, step):
        rows = min(step, n_boot - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        sums[start : start + rows] = times.astype(np.float64) @ table
    return sums


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927). Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError("A share of 0 rows has no interval.")
    z = 1.959963984540054
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def share(successes: int, n: int, unit: str = "share") -> Interval:
    """A share of independent rows with its Wilson interval; undefined for n = 0."""
    if n == 0:
        return Interval(None, None, None, 0, unit, "no rows")
    return Interval(successes / n, *wilson(successes, n), n, unit)


def mean_interval(
    values: ArrayLike, clusters: Labels = None, *, unit: str = "", n_boot: int = 2000, seed: int = 0
) -> Interval:
    """Mean with the percentile interval of a bootstrap over clusters (each row its own cluster by default).

    A share (boolean values, or ``unit="share"``) of exactly 0 or 1 gets the Wilson interval for as many rows as there
    are clusters, because resampling equal rows would claim certainty. With a single cluster low and high are None.
    """
    is_share = unit == "share" or np.asarray(values).dtype == bool
    x = column(values)
    n = len(x)
    if n == 0:
        return Interval(None, None, None, 0, unit, "no rows")
    codes, count = codes_of(clusters, n)
    value = float(x.mean())
    if count == 1:
        return Interval(value, None, None, n, unit, "one cluster only: no interval")
    if (x == x[0]).all():
        if is_share and x[0] in (0.0, 1.0):
            return Interval(value, *wilson(x[0] * count, count), n, unit)
        return Interval(value, value, value, n, unit)
    sums = resampled_sums(np.stack([np.bincount(codes, x), np.bincount(codes)], 1), n_boot, seed)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return Interval(value, low, high, n, unit)


def difference_interval(
    a: ArrayLike, b: ArrayLike, clusters: Labels = None, *, unit: str = "", n_boot: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the paired difference a - b with its bootstrap interval over clusters."""
    x, y = columns(a=a, b=b)
    found = mean_interval(x - y, clusters, n_boot=n_boot, seed=seed)  # without the unit: a difference is no share
    return Interval(found.value, found.low, found.high, found.n, unit, found.note)


def se(values: ArrayLike, clusters: Labels = None) -> float | None:
    """Standard error of the mean, robust to clusters (CR1, as statsmodels); None with fewer than two clusters."""
    x = column(values)
    codes, count = codes_of(clusters, len(x))
    if count < 2:
        return None
    residual = np.bincount(codes, x - x.mean())
    return float(math.sqrt(count / (count - 1) * (residual**2).sum()) / len(x))


def bootstrap(
    statistic: Callable[..., float | None],
    arrays: Sequence[ArrayLike],
    clusters: Labels = None,
    n_boot: int | None = None,
    seed: int = 0,
    *,
    unit: str = "",
    kind: Literal["percentile", "basic"] = "percentile",
) -> Interval:
    """Any statistic of equally long arrays with its bootstrap interval over clusters.

    ``n_boot`` is 1,000 unless given, fewer beyond 20,000 rows (never below 200).
    Resamples in which the statistic is None are left out (the note counts them; more than half: no interval).
    ``basic`` reflects the resamples at the value, which takes out the upward bias of statistics that resampling
    inflates, such as ECE; the interval is then widened to hold the value.
    """
    found = [np.asarray(a) for a in arrays]
    n = len(found[0])
    if any(len(c) != n for c in found):
        raise ValueError(f"The arrays must have one length; they have {[len(c) for c in found]} rows.")
    codes, count = codes_of(clusters, n)
    value = statistic(*found) if n else None
    if value is None:
        return Interval(None, None, None, n, unit, "no rows" if n == 0 else "undefined on these rows")
    if count == 1:
        return Interval(value, None, None, n, unit, "one cluster only: no interval")
    n_boot = n_boot or int(min(1000, max(200, 2e7 // n)))
    rng = np.random.default_rng(seed)
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    drawn: list[float] = []
    for _ in range(n_boot):
        pick = rng.integers(0, count, count)
        before = np.cumsum(sizes[pick]) - sizes[pick]
        rows = order[np.repeat(starts[pick] - before, sizes[pick]) + np.arange(sizes[pick].sum())]
        result = statistic(*(c[rows] for c in found))
        if result is not None:
            drawn.append(result)
    if len(drawn) <= n_boot / 2:
        return Interval(value, None, None, n, unit, "undefined in most resamples: no interval")
    low, high = np.quantile(drawn, [0.025, 0.975])
    if kind == "basic":
        low, high = min(2 * value - high, value), max(2 * value - low, value)
    note = f"undefined in {n_boot - len(drawn)} of {n_boot} resamples" if len(drawn) < n_boot else ""
    return Interval(value, low, high, n, unit, note)
