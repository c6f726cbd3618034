"""Gain against √KL on toy policies whose KL and gain are known exactly; each test names its mistake (hh.md §10)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats as sp

from truing.measure.frontier import (
    best_of,
    bound,
    by_prompt,
    check_baselines,
    course,
    expected_best,
    kl_best_of,
    kl_estimate,
    sigma_within,
    tilted,
    within_variance,
)
from truing.stats import Interval

RNG = np.random.default_rng


def toy(prompts: int = 40, symbols: int = 400, seed: int = 0) -> np.ndarray:
    """Scores [prompts, symbols] of all replies of a uniform policy: normal, of other mean and spread at each prompt."""
    rng = RNG(seed)
    normal = sp.norm.ppf((np.arange(symbols) + 0.5) / symbols)
    return rng.normal(0, 5, (prompts, 1)) + rng.uniform(0.5, 2, (prompts, 1)) * normal


def climb(scores: np.ndarray, by: np.ndarray, betas: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gain and KL [betas, prompts] of policies ∝ π0·e^(β·by), computed here a second way."""
    gain, kl = [], []
    for beta in betas:
        q = np.exp(beta * (by - by.mean(1, keepdims=True)))
        q /= q.sum(1, keepdims=True)
        gain.append((q * scores).sum(1) - scores.mean(1))
        kl.append((q * np.log(q * scores.shape[1])).sum(1))
    return np.array(gain), np.array(kl)


def rms(scores: np.ndarray) -> float:
    return float(np.sqrt(scores.var(1).mean()))


# ---------------------------------------------------------------- the bound


def test_a_tilted_policy_climbs_at_sigma_root_two():
    """hh.md §19 row 17: slope = σ_w√2 within 5% for KL < 0.5; σ_w from samples, 16 replies to each prompt."""
    scores = toy()
    gain, kl = climb(scores, scores, np.linspace(0.07, 0.75, 10))
    assert 0.4 < kl.mean(1).max() < 0.5
    drawn = [RNG(i).choice(row, 16) for i, row in enumerate(scores)]
    found = course(range(10), gain, kl, within_variance(drawn))
    assert found.slope.value == pytest.approx(rms(scores) * np.sqrt(2), rel=0.05)
    assert found.r2 is not None and found.r2 > 0.99 and found.above == []
    assert found.slope.low < found.slope.value < found.slope.high
    assert found.ratio.value == pytest.approx(1, abs=0.1)
    last = found.points[-1]
    sigma = np.sqrt(within_variance(drawn).mean())
    assert last["excess"].value == pytest.approx(gain[-1].mean() - sigma * np.sqrt(2 * kl[-1].mean()))


def test_the_best_policy_stands_at_the_bound():
    """hh.md §10: the optimal tilt at 1.000–0.990 of the bound while KL is small, and never above it."""
    scores = toy()
    for beta in (0.01, 0.1, 0.3, 0.5):
        pairs = [tilted(row, beta) for row in scores]
        kl, gain = np.mean(pairs, 0)
        assert 0.99 <= gain / bound(rms(scores), kl) <= 1.0005
    gain, kl = climb(scores, scores, [0.3])
    assert np.allclose(pairs_of(scores, 0.3), (kl[0], gain[0]))
    p = np.array([0.7, 0.2, 0.1])
    assert tilted([0.0, 0.0, np.log(2)], 1.0, p)[1] == pytest.approx((0.2 / 1.1 - 0.1) * np.log(2))


def pairs_of(scores: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    found = np.array([tilted(row, beta) for row in scores])
    return found[:, 0], found[:, 1]


def test_a_policy_that_follows_a_noisy_judge_is_linear_but_below():
    scores = toy()
    noise = RNG(1).normal(size=scores.shape) * scores.std(1, keepdims=True)
    gain, kl = climb(scores, scores + noise, np.linspace(0.03, 0.3, 8))
    found = course(range(8), gain, kl, scores.var(1))
    assert found.slope.value / (rms(scores) * np.sqrt(2)) == pytest.approx(0.71, abs=0.04)
    assert found.r2 is not None and found.r2 > 0.98 and found.above == []


@pytest.mark.parametrize("broken", ["kl per token", "baseline", "sigma"])
def test_a_curve_above_the_bound_is_flagged(broken: str):
    """A KL divided by the reply's length, another baseline or too small a spread: each shows above the bound."""
    scores = toy()
    gain, kl = climb(scores, scores, np.linspace(0.05, 0.5, 8))
    variance = scores.var(1)
    assert course(range(8), gain, kl, variance).above == []
    wrong = {
        "kl per token": (gain, kl / 4, variance),
        "baseline": (gain + 1.0, kl, variance),
        "sigma": (gain, kl, variance / 4),
    }[broken]
    assert course(range(8), *wrong).above


def test_sigma_is_the_spread_within_prompts_and_unbiased():
    """The total spread would count what prompts differ by: here it is four times as large."""
    scores = toy(prompts=300)
    assert scores.std() > 3 * rms(scores)
    found = [sigma_within([RNG((s, i)).choice(row, 2) for i, row in enumerate(scores)]) for s in range(12)]
    squares = [x.value**2 for x in found]
    assert np.mean(squares) == pytest.approx(rms(scores) ** 2, rel=0.06), "with ddof=0 it would be half"
    assert sum(x.low <= rms(scores) <= x.high for x in found) >= 9
    with pytest.raises(ValueError, match="two or more replies"):
        sigma_within([[1.0], [2.0]])


def test_only_the_early_half_makes_the_line():
    """Beyond half of the largest √KL the curve may bend: that must not move slope or R²."""
    x = np.linspace(0.1, 1, 10)
    gain = np.where(x <= 0.5, 2 * x, 1.0)[:, None] * np.ones(5)
    kl = (x**2)[:, None] * np.ones(5)
    found = course(range(10), gain, kl, np.ones(5))
    assert found.early == [0, 1, 2, 3, 4]
    assert found.slope.value == pytest.approx(2) and found.r2 == pytest.approx(1)
    still = course([0, 1], np.zeros((2, 5)), np.zeros((2, 5)), np.ones(5))
    assert still.slope.value is None and still.ratio.value is None and still.r2 is None


def test_intervals_resample_prompts():
    """Prompts that gain differently make the slope uncertain, however many replies each has."""
    x = np.sqrt(np.linspace(0.02, 0.4, 8))
    rates = RNG(0).normal(1, 1, 30)
    found = course(range(8), x[:, None] * rates, np.tile((x**2)[:, None], 30), np.ones(30))
    width = found.slope.high - found.slope.low
    assert width == pytest.approx(3.92 * rates.std() / np.sqrt(30), rel=0.2)


# ---------------------------------------------------------------- best of n


def test_best_of_n_equals_every_subset():
    scores = RNG(0).normal(size=9)
    for n in (1, 2, 4, 9):
        subsets = [max(s) for s in itertools.combinations(scores, n)]
        assert expected_best(scores, n) == pytest.approx(np.mean(subsets))
    with pytest.raises(ValueError, match="Best of 10 needs 10 replies"):
        expected_best(scores, 10)


def test_best_of_n_against_simulation():
    """The plain maximum of N samples' first n, averaged, is unbiased too, and far noisier; both meet the truth."""
    rng = RNG(1)
    truth = rng.normal(size=(40_000, 16)).max(1).mean()
    drawn = rng.normal(size=(400, 64))
    found = best_of(list(drawn), 16)
    assert found.value == pytest.approx(truth, abs=0.04) and found.low < truth < found.high
    once = drawn[:, :16].max(1) - drawn.mean(1)
    assert (found.high - found.low) < 0.8 * 3.92 * once.std() / 20


def test_kl_of_best_of_n():
    """log n − (n − 1)/n, not log n: against the exact KL of the largest of n uniform numbers on a fine grid."""
    for n, nats in ((1, 0.0), (4, 0.64), (16, 1.84), (64, 3.17)):
        assert kl_best_of(n) == pytest.approx(nats, abs=0.005)
        u = (np.arange(200_000) + 0.5) / 200_000
        density = n * u ** (n - 1)
        assert kl_best_of(n) == pytest.approx(np.mean(density * np.log(np.maximum(density, 1e-300))), abs=1e-3)


def test_best_of_n_stands_near_the_best_tilt():
    scores = toy(prompts=20, symbols=2000)
    for n in (4, 16):
        gain = np.mean([expected_best(row[::10], n) - row.mean() for row in scores])
        best = bound(rms(scores), kl_best_of(n))
        assert 0.75 * best < gain < best


def test_kl_has_a_standard_error_by_prompt():
    kl = np.repeat(RNG(2).exponential(1, 50), 4)
    mean, by_reply = kl_estimate(kl)
    same, by_prompt_ = kl_estimate(kl, np.repeat(np.arange(50), 4))
    assert mean == same == pytest.approx(kl.mean()) and by_prompt_ > 1.8 * by_reply


# ---------------------------------------------------------------- rows of a run, and what a claim needs


def test_rows_become_means_by_prompt():
    rows = [{"step": s, "id": p, "x": 10 * s + i} for s in (0, 2) for p in ("a", "b") for i in (0, 4)]
    assert by_prompt(rows, "x").tolist() == [[2, 2], [22, 22]]
    with pytest.raises(ValueError, match="not whole"):
        by_prompt(rows[:-2], "x")


def test_a_gain_without_its_baselines_is_refused():
    """hh.md §20 row 43: π0, best of n and replies of like length, each column filled."""
    full = {name: Interval(0.1, 0.0, 0.2, 9) for name in ("over_start", "over_best_of", "length_matched")}
    check_baselines({"rlhf": full})
    for name in full:
        with pytest.raises(ValueError, match="gain of rlhf"):
            check_baselines({"rlhf": full, "b": full} | {"rlhf": {k: v for k, v in full.items() if k != name}})
        with pytest.raises(ValueError, match="no comparison"):
            check_baselines({"rlhf": full | {name: Interval(None, None, None, 0, note="empty bin")}})
