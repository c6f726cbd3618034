"""Prompts: our hand-written sets, the HHH prompt, and prompts read from files with a check of where they come from.

The sets lie beside this file in ``prompts/`` and are our own words. Red-team prompts are mild requests that an
assistant should decline with an explanation; benign-but-sensitive ones only look dangerous and should be answered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from truing.text import from_hh, to_hh
from truing.types import Dialogue

_RULE = "\n\n-----"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One hand-written opening line.

    ``keywords`` are lower-case word stems that an answer on the topic would touch (at least one of them);
    ``answers`` are accepted strings, for checkable families only; ``theme`` labels red-team and benign-but-sensitive
    prompts, ``family`` the helpful ones.

    >>> Prompt("Name a colour.", keywords=("red", "blue")).dialogue.is_prompt
    True
    """

    text: str
    id: str = ""
    family: str = ""
    theme: str = ""
    keywords: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def dialogue(self) -> Dialogue:
        """The prompt as a dialogue that waits for a reply."""
        return Dialogue().ask(self.text)


def helpful_prompts() -> list[Prompt]:
    """224 everyday requests in eleven families; ``facts`` and ``numbers`` have answers, all have keywords."""
    return _packaged("helpful.jsonl")


def red_team_prompts() -> list[Prompt]:
    """90 mild harmful requests with a theme each; nothing operational."""
    return _packaged("red_team.jsonl")


def benign_sensitive_prompts() -> list[Prompt]:
    """49 harmless requests that look dangerous, for over-refusal (2204.05862 §20 row 30 of our notes)."""
    return _packaged("benign_sensitive.jsonl")


def _packaged(name: str) -> list[Prompt]:
    lines = (files("truing.data") / "prompts" / name).read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    lists = ("keywords", "answers")
    return [Prompt(**row | {k: tuple(row.get(k, ())) for k in lists}) for row in rows]


def hhh_dialogues(short: bool = False) -> list[Dialogue]:
    """The 14 conversations of the HHH prompt; ``short`` keeps the first exchange of each."""
    parts = _hhh_text().split(_RULE)[1:]
    dialogues = [from_hh(part) for part in parts]
    return [Dialogue(d.turns[:2]) for d in dialogues] if short else dialogues


def hhh_prompt(short: bool = False) -> str:
    """HHH text to put before a dialogue in HH format: an introduction and 14 conversations, each after a rule.

    Our own words; the idea of 14 conversations is 2204.05862 App A.1's. It ends in a rule, so that
    ``hhh_prompt() + to_hh(dialogue)`` opens one more conversation. ``short`` has at most 2,000 SmolLM2 tokens.
    """
    intro = _hhh_text().split(_RULE)[0]
    return intro + "".join(_RULE + to_hh(d) for d in hhh_dialogues(short)) + _RULE


def _hhh_text() -> str:
    return (files("truing.data") / "prompts" / "hhh.txt").read_text("utf-8").rstrip("\n")
