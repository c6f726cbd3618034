"""The reply that is shown of many: the median among those that are not empty (2204.05862 §6; hh.md §14)."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from truing.configs import Sampling
from truing.measure.picking import answer, median_reply, sample_numbers


def replies(scores: list[float], blank: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"text": "  \n" if i in blank else f"reply {i}", "score": s, "finish": "stop", "tokens": 3, "logprob": -1.0}
        for i, s in enumerate(scores)
    ]


def test_the_median_of_17():
    """§19 row 27."""
    scores = np.random.default_rng(0).normal(size=17).tolist()
    picked = median_reply(replies(scores))
    assert picked and picked["score"] == statistics.median(scores)


@pytest.mark.parametrize("n", range(1, 20))
def test_of_any_number_it_is_the_low_median_of_those_that_are_not_empty(n: int):
    random = np.random.default_rng(n)
    scores = random.normal(size=n).tolist()
    blank = tuple(random.permutation(n)[: n // 3].tolist())
    picked = median_reply(replies(scores, blank))
    assert picked and picked["text"].strip()
    assert picked["score"] == statistics.median_low([s for i, s in enumerate(scores) if i not in blank])


def test_empty_replies_never_count_however_they_score():
    """Catches a picker that ranks empties too: with high scores they would shift the median, or be it."""
    some = replies([9.0, 9.0, 9.0, 1.0, 2.0, 3.0], blank=(0, 1, 2))
    assert median_reply(some) == some[4]
    assert median_reply(replies([1.0, 2.0], blank=(0, 1))) is None


def test_equal_scores_keep_their_order():
    some = replies([1.0, 1.0, 1.0])
    assert median_reply(some) == some[1]


def config(**options: Any) -> Sampling:
    return Sampling(model="m", file="f", pm="pm", **options)


def test_a_row_holds_the_one_that_was_picked():
    some = replies([3.0, 1.0, 2.0, 0.0], blank=(3,))
    assert [s["score"] for s in answer(some, config())] == [3.0, 1.0, 2.0, 0.0]
    assert [s["score"] for s in answer(some, config(best=True))] == [3.0]
    assert [s["score"] for s in answer(some, config(median=True))] == [2.0]
    assert answer(replies([1.0], blank=(0,)), config(median=True)) == []
    assert all("tokens" not in s for s in answer(some, config()))


def test_prompts_to_which_every_reply_is_empty_are_told():
    drawn = [{"samples": replies([1.0, 2.0], blank=(0, 1))}, {"samples": replies([3.0, 5.0])}]
    out = [{"samples": answer(row["samples"], config(median=True))} for row in drawn]
    numbers, notes = sample_numbers(drawn, out, config(median=True, n=2))
    assert numbers["empty_rate"].value == 0.5 and numbers["pm_score"].value == 3.0 and numbers["pm_score"].n == 1
    assert any("1 prompts every reply is empty" in note for note in notes)
