"""Gaps between judges: halves that share nothing, shifts that change nothing, onsets that are no chance."""

from __future__ import annotations

import numpy as np
import pytest

from truing.measure.robustness import check_apart, curve, gains, halves, onset, peak
from truing.types import Comparison, Dialogue

RNG = np.random.default_rng


def rows(conversations: int = 60) -> list[Comparison]:
    """One to four comparisons of a conversation, each with all that was said before."""
    out = []
    for i in range(conversations):
        prompt = Dialogue().ask(f"Question {i}" + " again" * (i % 2))
        for turn in range(1 + i % 4):
            out.append(Comparison(prompt, f"good {i} {turn}", "bad", id=f"{i}.{turn}"))
            prompt = prompt.reply(f"good {i} {turn}").ask(f"more {turn}?")
    return out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halves_share_no_first_turn_and_no_prefix(seed: int) -> None:
    """hh.md §20 row 26: split by row, dialogues of one conversation would stand in both halves and hide the gap."""
    train, test = halves(rows(), seed)
    assert abs(len(train) - len(test)) <= 4 and len(train) + len(test) == len(rows())
    first = [{c.prompt.turns[0].text for c in part} for part in (train, test)]
    assert first[0] & first[1] == set()
    prefixes = [{c.prompt.turns[:k] for c in part for k in range(1, len(c.prompt) + 1)} for part in (train, test)]
    assert prefixes[0] & prefixes[1] == set()


def test_a_conversation_in_two_parts_is_refused() -> None:
    train, test = halves(rows())
    long = max(train, key=lambda c: len(c.prompt))
    with pytest.raises(ValueError, match="beginnings of dialogues stand in two parts"):
        check_apart(train, [*test, long])
    shouted = Comparison(Dialogue().ask(long.prompt.turns[0].text.upper()), "a", "b")
    with pytest.raises(ValueError, match="Split by conversation"):
        check_apart(train, [*test, shouted])


def scores(evaluations: int = 10, prompts: int = 30, seed: int = 0) -> np.ndarray:
    rng = RNG(seed)
    return (
        rng.normal(0, 3, prompts) + np.linspace(0, 2, evaluations)[:, None] + rng.normal(0, 0.3, (evaluations, prompts))
    )


def test_shifting_a_judge_changes_nothing() -> None:
    """hh.md §20 row 25: raw scores of two judges 5 apart would be a gap of 5 from the first sample on."""
    train, test = scores(seed=0), scores(seed=1)
    samples = range(0, 100, 10)
    plain, shifted = gains(train) - gains(test), gains(train + 5) - gains(test)
    assert np.allclose(plain, shifted) and (gains(train + 5)[0] == 0).all()
    assert onset(samples, plain) == onset(samples, shifted)
    for (_, a), (_, b) in zip(curve(samples, plain), curve(samples, shifted), strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_onset_is_where_the_gap_begins_to_last() -> None:
    """The first sample above two errors alone would call chance an onset: at 30 here."""
    samples = range(0, 100, 10)
    gap = RNG(0).normal(0, 1, (10, 50))
    gap -= gap.mean(1, keepdims=True)
    gap += np.array([0, 0, 0, 0.5, 0, 0.1, 0.5, 0.6, 0.7, 0.8])[:, None]
    assert onset(samples, gap) == 60
    assert onset(samples, -gap) is None and onset(samples, np.zeros((10, 50))) is None
    assert onset(samples[:6], gap[:6]) is None, "0.1 is within two errors"


def test_judges_that_agree_seldom_have_an_onset() -> None:
    found = [onset(range(20), gains(scores(20, 64, s)) - gains(scores(20, 64, s + 100))) for s in range(40)]
    assert sum(x is not None for x in found) <= 5


def test_peak_and_fall() -> None:
    gain = np.array([0.0, 1, 3, 2, 1])[:, None] + RNG(1).normal(0, 0.1, 20)
    when, fall = peak([0, 8, 16, 24, 32], gain)
    assert when == 16 and fall.value == pytest.approx(2) and fall.low == pytest.approx(2)
    rising = peak([0, 8], gain[:2])
    assert rising[0] == 8 and rising[1].value == 0


def test_curves_are_means_over_prompts() -> None:
    table = scores(3, 40)
    points = curve([0, 5, 10], table)
    assert [x for x, _ in points] == [0, 5, 10]
    assert [i.value for _, i in points] == pytest.approx(table.mean(1).tolist())
    width = points[0][1].high - points[0][1].low
    assert width == pytest.approx(3.92 * table[0].std() / np.sqrt(40), rel=0.15)
