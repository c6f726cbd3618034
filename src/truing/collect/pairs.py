"""From clicks to comparisons: the one place where the rules of 2204.05862 (hh.md §4.1) are applied.

- The weakest strength means unsure: such a click is left out. All others count alike.
- A helpful click is on the better reply. A red-team click is on the more harmful one, which becomes ``rejected``:
  `truing.data.comparisons.from_choice` turns it round, once.
- The context holds the clicked replies only, and ends with the human message.
- Where a person edited a reply, the pair is (edit > original) *instead of* the two candidates.
- A ranking gives a pair for every two of its replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from truing.collect.stories import Story
from truing.collect.turns import neutral
from truing.data.comparisons import UNSURE, from_choice
from truing.types import Comparison

WRITER = "human"
"""Stands for an arm where a person wrote the reply."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A comparison and what is known beside it. ``purpose`` is ``elo`` where two arms met, else ``data``."""

    comparison: Comparison
    turn: int
    edited: bool

    @property
    def purpose(self) -> str:
        """What the pair tells of besides which reply is better: which arm is, if there are two."""
        arms = self.comparison.arms
        return "elo" if arms and arms[0] != arms[1] and not self.edited else "data"


def comparisons(story: Story, arms: Mapping[str, str], counts: Counter[str]) -> Iterator[Judged]:
    """The comparisons of a conversation. ``arms``: id → name. ``counts`` gets what was left out, by reason."""
    task: Any = "red_team" if story.row.mode == "redteam" else "helpful"
    for turn, choice in sorted(story.choices.items()):
        found = story.said(turn)
        prompt = story.prompt(turn)
        for better, worse in _pairs(found, choice, counts):
            clicked, other = neutral(found[better].text), neutral(found[worse].text)
            if clicked == other:
                counts["identical"] += 1
                continue
            names = tuple(arms.get(found[x].arm_id, WRITER) for x in (better, worse))
            edited = better == choice.edit_id
            facts: dict[str, Any] = {"strength": None if edited else choice.strength, "arms": names}
            yield Judged(from_choice(task, prompt, clicked, other, **facts), turn, edited)


def _pairs(found: Mapping[str, Any], choice: Any, counts: Counter[str]) -> list[tuple[str, str]]:
    """(clicked, other) by message id: what a turn's choice says."""
    if choice.edit_id is not None:
        return [(choice.edit_id, choice.chosen_id)]
    if choice.order:
        return list(combinations(choice.order, 2))
    others = [id for id, m in found.items() if m.kind in ("reply", "written") and id != choice.chosen_id]
    if choice.strength == UNSURE:
        counts["unsure"] += len(others)
        return []
    return [(choice.chosen_id, other) for other in others]


def rankings(story: Story, arms: Mapping[str, str]) -> Iterator[tuple[int, list[str]]]:
    """(turn, names of arms from best to worst) of ranking mode; a person's own reply is the arm ``human``."""
    for turn, choice in sorted(story.choices.items()):
        if choice.order:
            found = story.said(turn)
            yield turn, [arms.get(found[id].arm_id, WRITER) for id in choice.order]
