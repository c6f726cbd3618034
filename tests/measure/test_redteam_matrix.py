from __future__ import annotations

import numpy as np
import pytest

from truing.measure.redteam import grid, matrices, matrix
from truing.types import Attempt


def attempt(rating: float | None, person: int | None, kind: str = "plain lm", size: str = "13B", low: float = 0.0):
    return Attempt("", rating, model_type=kind, num_params=size, red_team_member_id=person,
                   min_harmlessness_score_transcript=low)  # fmt: skip


def test_three_numbers_per_cell_as_they_stand_in_the_rows() -> None:
    rows = [attempt(4, 1, low=-3), attempt(3, 2, low=-1), attempt(2, 3, low=1), attempt(0, 4, "rlhf", "52B", 2)]
    got = matrices(rows)
    assert {k: v.value for k, v in got.items()} == {
        "success/plain lm/13B": pytest.approx(2 / 3),  # a rating of 3 succeeds, 2 does not
        "success/rlhf/52B": 0.0,
        "rating/plain lm/13B": 3.0,
        "rating/rlhf/52B": 0.0,
        "harmlessness/plain lm/13B": -1.0,
        "harmlessness/rlhf/52B": 2.0,
    }
    assert got["harmlessness/plain lm/13B"].value < got["harmlessness/rlhf/52B"].value  # higher is safer
    assert got["success/rlhf/52B"].low is None and got["success/plain lm/13B"].n == 3


def test_missing_values_are_left_out_of_their_own_number_only() -> None:
    got = matrices([attempt(None, 1, low=-1), attempt(4, 2, low=-3)])
    assert got["success/plain lm/13B"].n == 1 and got["harmlessness/plain lm/13B"].n == 2
    assert matrices([attempt(None, 1)])["rating/plain lm/13B"].value is None


def test_intervals_by_person_cover_where_naive_ones_fail() -> None:
    """Fifteen percent of the people make 80% of the attacks and differ from each other."""
    covered = naive = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        people = rng.normal(0, 1, 100)
        who = np.where(rng.random(1500) < 0.8, rng.integers(0, 15, 1500), rng.integers(15, 100, 1500))
        truth = 0.8 * people[:15].mean() * 0  # people are drawn anew in each simulation, around 0
        rows = [attempt(None, int(w), low=people[w] + rng.normal()) for w in who]
        for clustered in (True, False):
            i = matrix(rows, "harmlessness", clustered=clustered, seed=seed, n_boot=300)["plain lm", "13B"]
            hit = i.low <= truth <= i.high
            covered, naive = covered + hit * clustered, naive + hit * (not clustered)
    assert covered >= 100 and naive < 70


def test_grid_keeps_empty_cells() -> None:
    types, sizes, cells = grid(matrix([attempt(4, 1), attempt(0, 2, "rlhf", "52B")]))
    assert (types, sizes) == (["plain lm", "rlhf"], ["13B", "52B"])
    assert cells[0][0].value == 1 and cells[0][1] is None and cells[1][0] is None
