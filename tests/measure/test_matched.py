"""A gain that is all length, or all endings, is found out."""

from __future__ import annotations

import numpy as np

from truing.measure.matched import by_length, exceeds, gain, matched_gain
from truing.stats import Interval


def arms(effect: float, longer: float, n: int = 600) -> tuple[np.ndarray, ...]:
    """Replies whose gold grows with length; the second arm is ``longer`` and, beyond that, better by ``effect``."""
    rng = np.random.default_rng(0)
    prompts = np.arange(n) % 60
    before, after = rng.uniform(10, 50, n), rng.uniform(10, 50, n) + longer
    return 0.1 * after + effect + rng.normal(0, 1, n), after, 0.1 * before + rng.normal(0, 1, n), before, prompts


def test_a_gain_that_is_all_length_vanishes_at_matched_length() -> None:
    after, long, before, short, prompts = arms(0.0, 20.0)
    plain = gain(after, prompts, before, prompts)
    matched = matched_gain(after, long, prompts, before, short, prompts, bins=20)
    assert plain.value is not None and plain.low is not None and plain.low > 1.5
    assert matched.value is not None and abs(matched.value) < 0.35
    assert not exceeds(matched)


def test_a_real_gain_survives() -> None:
    after, long, before, short, prompts = arms(1.0, 20.0)
    matched = matched_gain(after, long, prompts, before, short, prompts, bins=20)
    assert matched.value is not None and abs(matched.value - 1) < 0.4
    assert exceeds(matched)


def test_gain_is_the_difference_of_means() -> None:
    found = gain([3.0, 5.0], ["p", "q"], [1.0, 1.0, 1.0], ["p", "q", "q"])
    assert found.value == 3.0 and found.n == 5


def test_no_replies_in_one_arm_is_undefined_not_zero() -> None:
    assert gain([], [], [1.0, 2.0], ["p", "q"]).value is None


def test_exceeds_needs_two_standard_errors() -> None:
    assert exceeds(Interval(1.0, 0.1, 1.9, 10))
    assert not exceeds(Interval(0.8, -0.1, 1.7, 10))
    assert not exceeds(Interval(None, None, None, 0))


def test_bins_of_length_hold_every_reply_once() -> None:
    after, long, before, short, _ = arms(0.0, 5.0)
    rows = by_length(after, long, before, short)
    assert sum(r["n_a"] for r in rows) == len(before) and sum(r["n_b"] for r in rows) == len(after)
