"""Mixes, accuracies on both sides, and where a policy's scores stand in the data."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.stats as sp

from truing.measure.tension import best, flatness, mix, normalised, place_in, sides
from truing.stats import Interval
from truing.types import Comparison, Dialogue


def rows(helpful: int = 30, harmless: int = 20) -> list[Comparison]:
    kinds = ["helpful"] * helpful + ["harmless"] * harmless
    return [Comparison(Dialogue().ask(f"q{i}"), "a", "b", kind=kind, id=str(i)) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]


def test_mixes_have_one_size_and_grow_into_one_another() -> None:
    """A mix of another size at each share would confound what is mixed with how much there is."""
    found = {share: mix(rows(), share, 20, seed=3) for share in (0, 0.25, 0.5, 1)}
    for share, chosen in found.items():
        harmless = round(20 * share)
        assert Counter(c.kind for c in chosen) == Counter({"harmless": harmless, "helpful": 20 - harmless})
        assert len({c.id for c in chosen}) == 20
    ids = {share: {c.id for c in chosen if c.kind == "harmless"} for share, chosen in found.items()}
    assert ids[0.25] < ids[0.5] < ids[1]
    with pytest.raises(ValueError, match="needs 25 harmless comparisons, and there are 20"):
        mix(rows(), 1.0, 25)


def test_both_sides_weigh_alike() -> None:
    """A mean over rows would be that of the kind with more rows: 0.9 here."""
    given = rows(90, 10)
    gaps = np.where([c.kind == "helpful" for c in given], 1.0, -1.0)
    found = sides(gaps, given)
    assert (found["helpful"].value, found["harmless"].value, found["mean"].value) == (1, 0, 0.5)
    noisy = sides(np.random.default_rng(0).normal(0.5, 1, 100), given)
    assert noisy["mean"].low < noisy["mean"].value < noisy["mean"].high
    assert noisy["harmless"].high - noisy["harmless"].low > noisy["helpful"].high - noisy["helpful"].low
    assert sides([1.0], rows(1, 0))["mean"].value is None


def test_the_best_point_and_how_flat_the_top_is() -> None:
    def scan(*values: float | None) -> dict[float, Interval]:
        return {i / 10: Interval(v, None, None, 9, "share") for i, v in enumerate(values)}

    peaked, flat = scan(0.5, 0.6, 0.7, 0.6), scan(0.695, 0.7, 0.692, 0.68)
    assert best(peaked) == 0.2 and flatness(peaked) == 0.25
    assert best(flat) == 0.1 and flatness(flat) == 0.75
    assert best(scan(None)) is None and flatness({}) is None
    assert [i.value for _, i in normalised(peaked)] == pytest.approx([5 / 7, 6 / 7, 1, 6 / 7])


def test_where_scores_stand_in_the_data() -> None:
    rng = np.random.default_rng(0)
    data, scores = rng.normal(size=200).round(1), rng.normal(1, 1, 50).round(1)
    found = place_in(data, scores)
    assert found == pytest.approx([sp.percentileofscore(data, s, "mean") / 100 for s in scores])
    assert place_in(data, [-9, 9]).tolist() == [0, 1]
