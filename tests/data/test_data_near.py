"""Exact and near duplicates, against brute force over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from truing.data.near import Near, key_of, shingles


def test_exact_duplicates_have_one_key():
    assert key_of("How do I  boil eggs?") == key_of("how do I boil EGGS") != key_of("How do I boil an egg?")


def test_likeness_is_the_largest_jaccard_index():
    random = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d"])
    texts = [" ".join(words[random.integers(0, 4, random.integers(1, 9))]) for _ in range(60)]
    near = Near(texts[:40])
    for text in texts[40:]:
        mine = shingles(text)
        wanted = max(len(mine & shingles(t)) / len(mine | shingles(t)) for t in texts[:40])
        assert near.likeness(text) == pytest.approx(wanted)


def test_what_was_not_seen_is_like_nothing():
    assert Near().likeness("How are you?") == 0
    assert Near(["How are you today?"]).likeness("Completely other words here") == 0
    assert Near(["Hi"]).likeness("hi!") == 1, "a text shorter than a run of three words is one run"
