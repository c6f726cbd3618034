"""Every number against something else that computes it: closed forms, brute force, scipy, scikit-learn, statsmodels."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats as sp
from scipy.optimize import minimize
from sklearn import metrics

from truing import stats

RNG = np.random.default_rng


def grouped(seed: int, clusters: int = 60, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    labels = np.repeat(np.arange(clusters), size)
    return rng.normal(size=clusters)[labels] + rng.normal(size=len(labels)), labels


# --- Intervals


def test_mean_interval_agrees_with_t_interval_and_contains_its_value() -> None:
    x = RNG(0).normal(3, 2, 400)
    got = stats.mean_interval(x)
    low, high = sp.t.interval(0.95, 399, x.mean(), sp.sem(x))
    assert got.value == pytest.approx(x.mean())
    assert (got.low, got.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_clustered_mean_bootstrap_equals_the_generic_one_that_copies_rows() -> None:
    x, labels = grouped(1, clusters=40, size=3)
    x, labels = x[:-2], labels[:-2]  # unequal clusters
    fast = stats.mean_interval(x, labels, n_boot=4000)
    slow = stats.bootstrap(lambda v: float(v.mean()), [x], labels, n_boot=4000, seed=5)
    assert fast.low == pytest.approx(slow.low, abs=0.03) and fast.high == pytest.approx(slow.high, abs=0.03)


def test_se_equals_statsmodels_cluster_robust() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="needs `pip install statsmodels`")
    x, labels = grouped(2)
    ref = sm.OLS(x, np.ones((len(x), 1))).fit(cov_type="cluster", cov_kwds={"groups": labels})
    assert stats.se(x, labels) == pytest.approx(float(ref.bse[0]), rel=1e-9)
    assert stats.se(x) == pytest.approx(sp.sem(x))
    assert stats.se(x, np.zeros(len(x))) is None


def test_clustered_intervals_cover_where_naive_ones_do_not() -> None:
    covered = naive = 0
    for seed in range(200):
        x, labels = grouped(seed, clusters=50, size=8)
        for is_clustered in (True, False):
            i = stats.mean_interval(x, labels if is_clustered else None, n_boot=400, seed=seed)
            hit = i.low <= 0 <= i.high
            covered, naive = covered + hit * is_clustered, naive + hit * (not is_clustered)
    assert 180 <= covered <= 199 and naive < 160


def test_copying_every_row_inside_its_cluster_leaves_the_interval() -> None:
    x, labels = grouped(3)
    once, five = stats.mean_interval(x, labels), stats.mean_interval(np.tile(x, 5), np.tile(labels, 5))
    assert once.low == pytest.approx(five.low) and once.high == pytest.approx(five.high)


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = RNG(4)
    base = rng.normal(0, 5, 300)
    a, b = base + 0.5 + rng.normal(0, 0.1, 300), base
    got = stats.difference_interval(a, b)
    assert got.value == pytest.approx((a - b).mean()) and 0.45 < got.low < got.high < 0.55
    same = stats.difference_interval(np.ones(5), np.zeros(5), unit="share")
    assert (same.value, same.low, same.high, same.unit) == (1, 1, 1, "share")


def test_wilson_solves_the_score_equation() -> None:
    for k, n in ((0, 5), (3, 20), (50, 100), (7, 7)):
        ref = sp.binomtest(k, n).proportion_ci(method="wilson")
        assert stats.wilson(k, n) == (pytest.approx(ref.low, abs=1e-12), pytest.approx(ref.high, abs=1e-12))


def test_extremes_of_intervals() -> None:
    assert stats.mean_interval([]).value is None and stats.share(0, 0).note
    sure = stats.mean_interval(np.ones(20, bool), unit="share")
    assert sure.value == 1 and sure.high == 1 and sure.low == pytest.approx(stats.wilson(20, 20)[0])
    assert stats.mean_interval(np.zeros(20)).high == 0  # a mean rating of 0, not a share
    alone = stats.mean_interval([1.0, 2.0], ["x", "x"])
    assert alone.value == 1.5 and alone.low is None and alone.note
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        stats.mean_interval([1, float("nan")])
    with pytest.raises(ValueError, match="3 rows and 2 cluster labels"):
        stats.mean_interval([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="must be None"):
        stats.Interval(float("nan"), None, None, 1)


def test_bootstrap_interval_of_auroc_agrees_with_hanley_mcneil_and_counts_undefined_resamples() -> None:
    rng = RNG(6)
    y = np.repeat([0, 1], 100)
    s = rng.normal(size=200) + 0.74 * y  # AUROC near 0.7
    got = stats.bootstrap(stats.auroc, [s, y], n_boot=500)
    assert (got.high - got.low) / 3.92 == pytest.approx(0.037, abs=0.006)
    rare = stats.bootstrap(stats.auroc, [[1.0, 2, 3, 4], [0, 0, 0, 1]])
    assert rare.value == 1 and "of 1000 resamples" in rare.note
    assert stats.bootstrap(stats.auroc, [[1.0, 2], [1, 1]]).value is None


def test_a_large_job_is_fast() -> None:
    start = time.process_time()
    stats.mean_interval(RNG(0).normal(size=40_000), np.arange(40_000) // 2)
    assert time.process_time() - start < 5


# --- Calibration


def brute_ece(p: np.ndarray, c: np.ndarray, power: int = 1) -> float:
    """Equal counts by sorting and slicing; for distinct p and a multiple of ten rows."""
    groups = np.split(np.argsort(p), 10)
    return float(np.mean([abs(c[g].mean() - p[g].mean()) ** power for g in groups]) ** (1 / power))


def test_ece_and_rms_equal_slices_of_ten() -> None:
    rng = RNG(0)
    p = rng.beta(5, 1, 730)  # skewed, so that equal-width bins would differ
    c = (rng.random(730) < p**2).astype(float)
    assert stats.ece(p, c) == pytest.approx(brute_ece(p, c))
    assert stats.rms_calibration_error(p, c) == pytest.approx(brute_ece(p, c, 2))
    y, x = __import__("sklearn.calibration", fromlist=["x"]).calibration_curve(c, p, n_bins=10, strategy="quantile")
    table = stats.reliability(p, c)
    assert [b.n for b in table.bins] == [73] * 10
    assert [b.accuracy for b in table.bins] == pytest.approx(y.tolist(), abs=0.03)
    assert [b.mean_confidence for b in table.bins] == pytest.approx(x.tolist(), abs=0.01)
    assert table.ece == stats.ece(p, c) and table.rms == stats.rms_calibration_error(p, c)


def test_ties_stay_together_whatever_the_order() -> None:
    rng = RNG(1)
    p = rng.integers(0, 11, 137) / 10  # a model that says 0%, 10%, ... 100%
    c = (rng.random(137) < 0.5).astype(float)
    errors = set()
    for seed in range(20):
        order = RNG(seed).permutation(137)
        errors.add(round(stats.ece(p[order], c[order]), 12))
        for a, b in itertools.pairwise(stats.reliability(p[order], c[order]).bins):
            assert a.high < b.low
    assert len(errors) == 1
    assert stats.ece(np.full(50, 0.7), np.arange(50) < 20) == pytest.approx(0.3)
    assert len(stats.reliability([0.5, 0.9, 0.1], [1, 1, 0]).bins) == 3


def test_null_band_is_the_spread_of_a_calibrated_predictor() -> None:
    assert stats.ece_null(RNG(0).random(200)) == pytest.approx(0.101, abs=0.006)  # simulated apart from this code
    above = 0
    for seed in range(200):
        rng = RNG(seed)
        p = rng.random(150)
        above += stats.ece(p, rng.random(150) < p) > stats.ece_null(p, n_draws=200, seed=seed)
    assert 2 <= above <= 20
    assert stats.ece_null([]) is None


def test_mean_ece_of_a_calibrated_predictor_matches_known_values() -> None:
    for n, expected in ((200, 0.074), (1000, 0.032), (5000, 0.015)):
        draws = [stats.ece(p := RNG(s).random(n), RNG(s + 999).random(n) < p) for s in range(100)]
        assert np.mean(draws) == pytest.approx(expected, abs=0.004)


def test_ece_interval_holds_its_value_and_the_truth() -> None:
    held = 0
    for seed in range(15):
        rng = RNG(seed)
        p = rng.uniform(0.6, 1, 250)
        i = stats.calibration(p, rng.random(250) < p - 0.1, seed=seed)["ece"]
        assert i.low <= i.value <= i.high
        held += i.low <= 0.1 <= i.high
    assert held >= 13


def test_fast_intervals_of_scores_equal_the_generic_bootstrap() -> None:
    rng = RNG(3)
    p = rng.random(300).round(1)  # many ties
    c = (rng.random(300) < p**2).astype(float)
    labels = np.arange(300) // 3
    fast = stats.probability_scores(p, c, labels)
    slow = {
        "ece": stats.bootstrap(stats.ece, [p, c], labels, 1000, 7, kind="basic"),
        "rms_calibration_error": stats.bootstrap(stats.rms_calibration_error, [p, c], labels, 1000, 7, kind="basic"),
        "skill": stats.bootstrap(stats.skill, [p, c], labels, 1000, 7),
        "auroc": stats.bootstrap(stats.auroc, [p, c], labels, 1000, 7),
        "brier": stats.mean_interval((p - c) ** 2, labels),
        "brier_constant": stats.bootstrap(stats.brier_constant, [c], labels, 1000, 7),
    }
    assert fast.keys() == {*slow, "ece_null_95"}
    for name, one in slow.items():
        got = fast[name]
        tolerance = 0.12 * (one.high - one.low)
        assert (got.value, got.low, got.high) == pytest.approx((one.value, one.low, one.high), abs=tolerance), name


def test_scores_without_both_classes() -> None:
    alike = stats.probability_scores([0.2, 0.4, 0.9], [0, 0, 0])
    assert alike["skill"].value is None and alike["auroc"].value is None and "0 of 3" in alike["auroc"].note
    rare = stats.probability_scores(np.arange(9) / 10, np.arange(9) == 8)
    assert rare["auroc"].value == 1 and "of 1000 resamples" in rare["auroc"].note
    soft = stats.probability_scores([0.2, 0.4, 0.9], [0.1, 0.5, 1.0])
    assert soft["auroc"].value is None and soft["brier"].value == pytest.approx(0.03 / 3)


def test_scores_equal_scikit_learn() -> None:
    rng = RNG(2)
    p = rng.random(300).round(2)
    c = (rng.random(300) < p).astype(int)
    assert stats.brier(p, c) == pytest.approx(metrics.brier_score_loss(c, p))
    assert stats.auroc(p, c) == pytest.approx(metrics.roc_auc_score(c, p))
    base = c.mean()
    assert stats.brier_constant(c) == pytest.approx(base * (1 - base))
    assert stats.skill(p, c) == pytest.approx(1 - stats.brier(p, c) / (base * (1 - base)))
    assert stats.pearson(p, c) == pytest.approx(sp.pearsonr(p, c)[0])
    assert stats.brier([0.5, 0.5], [0, 1]) == 0.25


def test_undefined_scores_are_none() -> None:
    assert stats.auroc([0.1, 0.2], [1, 1]) is None
    assert stats.skill([0.0, 0.0], [0, 0]) is None  # all wrong: not 1
    assert stats.pearson([1, 1, 1], [1, 2, 3]) is None
    assert all(f([], []) is None for f in (stats.ece, stats.brier, stats.auroc, stats.pearson, stats.skill))
    assert stats.calibration([], [])["ece"].value is None
    with pytest.raises(ValueError, match="labels of 0 and 1"):
        stats.auroc([0.1, 0.2], [0.5, 1])


# --- Elo


def play(elos: dict[str, float], n: int, seed: int) -> list[tuple[str, str, str]]:
    rng = RNG(seed)
    names = list(elos)
    out = []
    for _ in range(n):
        a, b = (names[i] for i in rng.choice(len(names), 2, replace=False))
        out.append((a, b, "a" if rng.random() < stats.elo_to_win_rate(elos[a] - elos[b]) else "b"))
    return out


PLANTED = {"base": 0.0, "A": 120.0, "B": -60.0, "C": 250.0, "D": 40.0, "E": -150.0}


def test_elo_recovers_planted_ratings_within_two_standard_errors() -> None:
    inside = total = 0
    for seed in range(8):
        got = stats.elo(play(PLANTED, 2000, seed), anchor="base", n_boot=200)
        for arm in list(PLANTED)[1:]:
            error = abs(got.ratings[arm].value - PLANTED[arm])
            assert error < 4 * got.se[arm]
            assert got.ratings[arm].high - got.ratings[arm].low == pytest.approx(3.92 * got.se[arm], rel=0.35)
            inside, total = inside + (error < 2 * got.se[arm]), total + 1
    assert inside / total > 0.85


def test_elo_is_the_maximum_a_general_optimiser_finds() -> None:
    games = play(PLANTED, 300, 3)
    got = stats.elo(games, anchor="base", n_boot=50)
    names = list(got.ratings)

    def loss(r: np.ndarray) -> float:
        full = dict(zip(names, r, strict=True)) | {"base": 0.0}
        return sum(np.logaddexp(0, (full[b] - full[a]) * (1 if w == "a" else -1)) for a, b, w in games)

    ref = minimize(loss, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-8})
    for name, nats in zip(names, ref.x, strict=True):
        if name != "base":
            assert got.ratings[name].value == pytest.approx(nats * 400 / math.log(10), abs=0.05)


@pytest.mark.parametrize(("rate", "points"), [(0.51, 7), (0.56, 42), (0.57, 49), (0.63, 92)])
def test_win_rates_in_elo(rate: float, points: int) -> None:
    assert round(stats.win_rate_to_elo(rate)) == points
    assert stats.elo_to_win_rate(stats.win_rate_to_elo(rate)) == pytest.approx(rate)
    assert stats.win_rate_to_elo(1.0) is None and stats.win_rate_to_elo(0.0) is None


def test_ninety_percent_wins_stand_higher() -> None:
    got = stats.elo([("x", "y", "a" if i % 10 else "b") for i in range(1000)], anchor="y")
    assert got.ratings["x"].value == pytest.approx(stats.win_rate_to_elo(0.9), abs=1e-6)
    assert got.ratings["x"].low > 300
    assert got.se["x"] == pytest.approx(stats.ELO_PER_NAT / math.sqrt(1000 * 0.9 * 0.1))


def test_only_differences_are_identified() -> None:
    games = play(PLANTED, 400, 5)
    one, other = stats.elo(games, anchor="base", n_boot=20), stats.elo(games, anchor="C", n_boot=20)
    gaps = [one.ratings[a].value - other.ratings[a].value for a in PLANTED]
    assert gaps == pytest.approx([gaps[0]] * 6)
    shifted = stats.elo(play({k: v + 1000 for k, v in PLANTED.items()}, 400, 5), anchor="base", n_boot=20)
    assert [r.value for r in shifted.ratings.values()] == [r.value for r in one.ratings.values()]
    swapped = stats.elo([(b, a, "b" if w == "a" else "a") for a, b, w in games], anchor="base", n_boot=20)
    assert all(swapped.ratings[a].value == pytest.approx(one.ratings[a].value) for a in PLANTED)


def test_intervals_by_conversation_are_wider_than_by_turn() -> None:
    rng = RNG(7)
    games, conversations = [], []
    for conversation in range(100):  # one taste per conversation decides its six turns
        winner = "a" if rng.random() < 0.6 else "b"
        games += [("x", "y", winner)] * 6
        conversations += [conversation] * 6
    by_turn = stats.elo(games, anchor="y").ratings["x"]
    by_conversation = stats.elo(games, conversations, anchor="y").ratings["x"]
    assert by_turn.value == by_conversation.value
    ratio = (by_conversation.high - by_conversation.low) / (by_turn.high - by_turn.low)
    assert ratio == pytest.approx(math.sqrt(6), rel=0.2)


def test_arms_without_a_finite_rating_are_undefined_and_do_not_disturb_the_others() -> None:
    core = [("x", "y", "a" if i % 4 else "b") for i in range(400)]
    got = stats.elo(
        [*core, ("win", "x", "a"), ("win", "y", "a"), ("lose", "x", "b"), ("p", "q", "a"), ("p", "q", "b")], anchor="y"
    )
    assert got.ratings["x"].value == pytest.approx(stats.win_rate_to_elo(0.75), abs=1e-6)
    for arm, words in (("win", "won all"), ("lose", "lost all"), ("p", "no chain"), ("q", "no chain")):
        assert got.ratings[arm].value is None and words in got.ratings[arm].note and got.se[arm] is None
    assert len(got.notes) == 4 and got.ratings["y"].value == 0


def test_a_group_that_never_loses_to_the_anchors_group_is_unbounded() -> None:
    games = [("x", "y", "a"), ("x", "y", "b"), ("u", "v", "a"), ("u", "v", "b"), ("u", "x", "a")]
    got = stats.elo(games, anchor="y", n_boot=100).ratings
    assert got["u"].value is None and "never lost to the arms around y" in got["u"].note
    assert got["x"].value == pytest.approx(0)


def test_a_nearly_perfect_arm_has_an_interval_without_upper_end() -> None:
    got = stats.elo([("x", "y", "a")] * 60 + [("x", "y", "b")], anchor="y").ratings["x"]
    assert got.value is not None and got.low is not None and got.high is None and "no finite high" in got.note


def test_elo_refuses_games_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="winner 'tie'"):
        stats.elo([("x", "y", "tie")])
    with pytest.raises(ValueError, match="with itself"):
        stats.elo([("x", "x", "a")])
    with pytest.raises(ValueError, match="anchor 'z' is in no game; the arms are x, y"):
        stats.elo([("x", "y", "a")], anchor="z")
    with pytest.raises(ValueError, match="no games"):
        stats.elo([])
