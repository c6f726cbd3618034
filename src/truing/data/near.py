"""Which texts are (nearly) the same: word n-grams in common, found through an index."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

WORDS = re.compile(r"\w+")
SHINGLE = 3
"""Words in a row that are compared; a shorter text counts as one shingle."""


def key_of(text: str) -> str:
    """The words of a text without case, punctuation and spacing: equal keys are exact duplicates.

    >>> key_of("What's  the TIME?") == key_of("what s the time")
    True
    """
    return " ".join(WORDS.findall(text.casefold()))


def shingles(text: str) -> frozenset[str]:
    """The runs of three words of a text.

    >>> sorted(shingles("One two three, four!"))
    ['one two three', 'two three four']
    """
    words = key_of(text).split()
    runs = (" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))
    return frozenset(run for run in runs if run)


class Near:
    """Texts that were seen, and how like them a new one is."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.sets: list[frozenset[str]] = []
        self.holders: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """See a text."""
        found = shingles(text)
        for run in found:
            self.holders[run].append(len(self.sets))
        self.sets.append(found)

    def likeness(self, text: str) -> float:
        """The largest Jaccard index |A ∩ B| / |A ∪ B| of the text's shingles with those of any text seen, 0–1."""
        mine = shingles(text)
        common = Counter(i for run in mine for i in self.holders.get(run, ()))
        return max((n / (len(mine) + len(self.sets[i]) - n) for i, n in common.items()), default=0.0)
