"""Scaling fits: accuracy as a line in the logarithms of parameters and data (2204.05862 App A.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from truing.stats.intervals import Array, Interval, Labels, codes_of


def log_linear(params: ArrayLike, data: ArrayLike, accuracy: ArrayLike) -> tuple[float, float, float, float] | None:
    """(a, b, c, R²) of the least-squares fit accuracy = a + b ln params + c ln data over cells [C].

    None where the cells do not tell them apart: fewer than three, or one size, or one amount of data, or both in step.
    """
    p, d, y = (np.asarray(x, dtype=np.float64) for x in (params, data, accuracy))
    design = np.stack([np.ones(len(p)), np.log(p), np.log(d)], 1)
    if np.linalg.matrix_rank(design - design.mean(0) * [0, 1, 1]) < 3:
        return None
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - design @ fit) ** 2).sum())
    return float(fit[0]), float(fit[1]), float(fit[2]), 1 - left / spread if spread > 0 else 1.0


def scaling_fit(
    correct: ArrayLike,
    params: Sequence[float],
    data: Sequence[float],
    clusters: Labels = None,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """The fit of cells [C] from their right and wrong answers on the same rows, ``correct`` [C, rows].

    ``slope_params`` and ``slope_pairs`` (accuracy per e-fold), ``r2``, and ``fitted``: accuracy on the line at the most
    parameters and data. Intervals resample conversations (the same for all cells) and cells, so that they hold the
    noise of the test set and that of training. Undefined, with a note, where there are too few cells.
    """
    right = np.asarray(correct, dtype=np.float64)
    p, d = np.asarray(params, dtype=np.float64), np.asarray(data, dtype=np.float64)
    codes, count = codes_of(clusters, right.shape[1])
    sizes = np.bincount(codes, minlength=count)
    sums = np.stack([np.bincount(codes, row, count) for row in right], 1)  # [clusters, C]

    def numbers(cells: Array, accuracy: Array) -> tuple[float, ...] | None:
        found = log_linear(p[cells], d[cells], accuracy[cells])
        if found is None:
            return None
        a, b, c, r2 = found
        return b, c, r2, a + b * math.log(p.max()) + c * math.log(d.max())

    names = {"slope_params": "share per e-fold", "slope_pairs": "share per e-fold", "r2": "share", "fitted": "share"}
    every = np.arange(len(p))
    value = numbers(every, right.mean(1))
    if value is None:
        note = "a fit needs several sizes and several amounts of data"
        return {name: Interval(None, None, None, len(p), unit, note) for name, unit in names.items()}
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(n_boot):
        some = rng.integers(0, count, count)
        cells = rng.integers(0, len(p), len(p))
        if found := numbers(cells, sums[some].sum(0) / sizes[some].sum()):
            drawn.append(found)
    known = len(drawn) > n_boot / 2
    out = {}
    for i, (name, unit) in enumerate(names.items()):
        if not known:
            out[name] = Interval(value[i], None, None, len(p), unit, "undefined in most resamples: no interval")
            continue
        low, high = np.quantile([x[i] for x in drawn], [0.025, 0.975]).tolist()
        out[name] = Interval(value[i], min(low, value[i]), max(high, value[i]), len(p), unit)
    return out
