"""Agreement of raters against a hand-worked table and statsmodels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from truing.stats.agreement import fleiss_kappa, kappa_interval

# Fleiss 1971's table in its widespread form: 10 items, 14 raters, 5 categories.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_kappa_of_the_known_table_and_of_a_table_worked_by_hand():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.20993, abs=1e-5)
    # Three raters, two categories: P = (1 + 1/3 + 1)/3 = 7/9; shares 5/9 and 4/9, so P_e = 41/81; kappa = 22/40.
    assert fleiss_kappa([[3, 0], [2, 1], [0, 3]]) == pytest.approx(22 / 40)


@pytest.mark.parametrize("raters", [2, 3, 4])
def test_kappa_equals_statsmodels(raters: int):
    from statsmodels.stats.inter_rater import aggregate_raters
    from statsmodels.stats.inter_rater import fleiss_kappa as reference

    ratings = np.random.default_rng(raters).integers(0, 5, (50, raters))
    found = kappa_interval(ratings.tolist(), 5, n_boot=50)
    assert found.value == pytest.approx(reference(aggregate_raters(ratings)[0]))
    assert found.low <= found.value <= found.high and found.n == 50


def test_the_floor_is_minus_one_over_raters_less_one():
    assert fleiss_kappa([[1, 1, 1, 1]] * 6) == pytest.approx(-1 / 3)  # four raters, all different
    assert fleiss_kappa([[2, 2]] * 6) == pytest.approx(-1 / 3)


def test_what_is_undefined_is_none_with_a_note_and_never_nan():
    for ratings in ([], [[2, 2, 2], [2, 2, 2]]):
        found = kappa_interval(ratings, 5)
        assert found.value is None and found.low is None and found.note
        json.dumps(found.as_dict(), allow_nan=False)
    assert fleiss_kappa(np.zeros((0, 5))) is None


def test_missing_raters_are_refused():
    with pytest.raises(ValueError, match="missing raters"):
        kappa_interval([[1, 2, 3], [1, 2]], 5)
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([[3, 0], [1, 1]])
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([[1, 0]])
    with pytest.raises(ValueError, match="0 to 4"):
        kappa_interval([[1, 5]], 5)
