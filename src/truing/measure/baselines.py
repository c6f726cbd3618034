"""What needs no preference model: the longer reply, the shorter one, chance, word counts; and what a model adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from truing.data.comparisons import conversation_key, split_by_conversation
from truing.stats import Interval, difference_interval, mean_interval
from truing.stats.words import bag_of_words
from truing.train.pm_numbers import correctness
from truing.types import Comparison

SPLITS, SHARE = 5, 0.2
"""Word counts are fitted on whole conversations and judged on the fifth that is left out, so many times."""
FEWEST = 20
"""Conversations below which word counts are not fitted."""


def bag_of_words_gaps(
    comparisons: Sequence[Comparison], *, splits: int = SPLITS, share: float = SHARE, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each split: indices of the comparisons left out, and score gaps of word counts fitted on the others.

    Reads final replies only. Splits keep conversations whole and follow from ``seed``. Raises ValueError for fewer
    than `FEWEST` conversations.
    """
    count = len({conversation_key(c) for c in comparisons})
    if count < FEWEST:
        raise ValueError(f"Word counts need {FEWEST} conversations to be fitted and judged; there are {count}.")
    places, out = list(range(len(comparisons))), []
    for split in range(splits):
        fitted, left = split_by_conversation(
            places, share, seed + split, key=lambda i: conversation_key(comparisons[i])
        )
        sides = [([comparisons[i].chosen for i in p], [comparisons[i].rejected for i in p]) for p in (fitted, left)]
        out.append((np.array(left), bag_of_words(sides[0], sides[1])))
    return out


def length_gaps(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Score gaps of a judge who counts characters, float [P]."""
    return np.array([len(c.chosen) - len(c.rejected) for c in comparisons], dtype=np.float64)


def baseline_numbers(gaps: np.ndarray, comparisons: Sequence[Comparison], *, seed: int = 0) -> dict[str, Interval]:
    """``baseline/NAME`` accuracies and ``above/NAME``, the model's accuracy minus it on the same rows.

    longer, shorter (equal lengths count half), chance, and bag_of_words on the rows that its splits leave out. All
    intervals resample whole conversations, of differences both together.
    """
    keys, right = np.array([conversation_key(c) for c in comparisons]), correctness(gaps)
    longer = length_gaps(comparisons)
    every = np.arange(len(comparisons))
    judged = {name: (every, correctness(g)) for name, g in (("longer", longer), ("shorter", -longer))}
    judged["chance"] = (every, np.full(len(every), 0.5))
    none = Interval(None, None, None, 0, "share")
    try:
        found = bag_of_words_gaps(comparisons, seed=seed)
        rows, words = (np.concatenate(parts) for parts in zip(*found, strict=True))
        judged["bag_of_words"] = (rows, correctness(words))
    except ValueError as few:
        judged["bag_of_words"] = (np.empty(0, dtype=int), np.empty(0))
        none = Interval(None, None, None, 0, "share", str(few))
    numbers: dict[str, Interval] = {}
    for name, (rows, theirs) in judged.items():
        if not len(rows):
            numbers |= {f"baseline/{name}": none, f"above/{name}": none}
            continue
        numbers[f"baseline/{name}"] = mean_interval(theirs, keys[rows], unit="share", seed=seed)
        numbers[f"above/{name}"] = difference_interval(right[rows], theirs, keys[rows], unit="share", seed=seed)
    return numbers
