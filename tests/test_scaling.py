"""Log-linear fits on planted lines, against plain least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from truing.stats.scaling import log_linear, scaling_fit

SIZES, AMOUNTS = [1e5, 1e6, 1e7], [100, 400, 1600, 6400]
GRID = list(itertools.product(SIZES, AMOUNTS))
PARAMS, PAIRS = [p for p, _ in GRID], [d for _, d in GRID]


def line(a: float = 0.2, b: float = 0.015, c: float = 0.03) -> np.ndarray:
    return np.array([a + b * np.log(p) + c * np.log(d) for p, d in GRID])


def test_a_planted_line_is_found_with_the_natural_logarithm() -> None:
    """Planted: log10, which gives slopes 2.3 times as large."""
    a, b, c, r2 = log_linear(PARAMS, PAIRS, line())  # type: ignore[misc]
    assert (a, b, c, r2) == pytest.approx((0.2, 0.015, 0.03, 1.0))


def test_noisy_cells_give_the_numbers_of_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api")
    y = line() + np.random.default_rng(0).normal(0, 0.02, len(GRID))
    theirs = sm.OLS(y, sm.add_constant(np.stack([np.log(PARAMS), np.log(PAIRS)], 1))).fit()
    a, b, c, r2 = log_linear(PARAMS, PAIRS, y)  # type: ignore[misc]
    assert (a, b, c) == pytest.approx(tuple(theirs.params)) and r2 == pytest.approx(theirs.rsquared)


@pytest.mark.parametrize("cells", [[0, 1, 2, 3], [0, 4, 8], [0, 1], [0, 5, 10]])
def test_cells_that_tell_nothing_apart_give_no_fit(cells: list[int]) -> None:
    """One size, one amount, two cells, or sizes that grow in step with amounts."""
    p, d = [PARAMS[i] for i in cells], [PAIRS[i] for i in cells]
    if cells == [0, 5, 10]:
        d = [100, 1000, 10_000]
    assert log_linear(p, d, [0.6] * len(cells)) is None
    found = scaling_fit(np.ones((len(cells), 9)), p, d)
    assert found["slope_params"].value is None and "several sizes" in found["slope_params"].note


def test_intervals_hold_the_planted_slopes_and_widen_with_clusters() -> None:
    held, widths = 0, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        chance = np.clip(line() + rng.normal(0, 0.01, len(GRID)), 0, 1)
        right = rng.random((len(GRID), 400)) < chance[:, None]
        found = scaling_fit(right, PARAMS, PAIRS, n_boot=200, seed=seed)
        low, high = found["slope_pairs"].low, found["slope_pairs"].high
        held += low <= 0.03 <= high  # type: ignore[operator]
        a, b, c, _ = log_linear(PARAMS, PAIRS, right.mean(1))  # type: ignore[misc]
        assert (found["slope_params"].value, found["slope_pairs"].value) == pytest.approx((b, c))
        assert found["fitted"].value == pytest.approx(a + b * np.log(1e7) + c * np.log(6400))
        widths.append(high - low)  # type: ignore[operator]
    assert held >= 8 and np.mean(widths) < 0.04
    rng = np.random.default_rng(1)
    same = np.repeat(rng.random(40) < line()[:, None], 10, axis=1)  # all cells find the same conversations hard
    plain = scaling_fit(same, PARAMS, PAIRS, n_boot=300)["fitted"]
    grouped = scaling_fit(same, PARAMS, PAIRS, np.repeat(np.arange(40), 10), n_boot=300)["fitted"]
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)  # type: ignore[operator]
