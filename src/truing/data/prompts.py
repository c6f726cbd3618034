"""Prompts: our hand-written sets, the HHH prompt, and prompts read from files with a check of where they come from.

The sets lie beside this file in ``prompts/`` and are our own words. Red-team prompts are mild requests that an
assistant should decline with an explanation; benign-but-sensitive ones only look dangerous and should be answered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from truing.data.comparisons import Paths, conversation_key, kind_of
from truing.data.files import DataError, Row, read_rows
from truing.data.pairs import is_comparison, prompt_of, read_pair
from truing.text import from_hh, to_hh
from truing.types import Comparison, Dialogue, Kind

log = logging.getLogger("truing")
RULE = "\n\n-----"
"""Stands between conversations; a model that goes on with it has ended its own."""


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
    """49 harmless requests that look dangerous, for over-refusal."""
    return _packaged("benign_sensitive.jsonl")


def related_work_prompts() -> list[Prompt]:
    """30 prompts of three kinds that related papers show replies to, in our own words.

    ``values`` are open questions of value (as in PALMS), ``instruction`` odd or exact requests (as in InstructGPT),
    ``curiosity`` talks about facts and with things (as in LaMDA).
    """
    return _packaged("related_work.jsonl")


def _packaged(name: str) -> list[Prompt]:
    lines = (files("truing.data") / "prompts" / name).read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    lists = ("keywords", "answers")
    return [Prompt(**row | {k: tuple(row.get(k, ())) for k in lists}) for row in rows]


def occupations() -> tuple[list[str], list[tuple[str, str]]]:
    """76 occupations and 12 pairs (female term, male term), our own lists, for 2204.05862 §3.4.2 and App B.10.

    All begin with a consonant, so that "is a …" is right; no occupation begins with another, so that probabilities of
    all of them add up.
    """
    lists = json.loads((files("truing.data") / "prompts" / "occupations.json").read_text("utf-8"))
    return lists["occupations"], [(female, male) for female, male in lists["pairs"]]


def hhh_dialogues(short: bool = False) -> list[Dialogue]:
    """The 14 conversations of the HHH prompt; ``short`` keeps the first exchange of each."""
    parts = _hhh_text().split(RULE)[1:]
    dialogues = [from_hh(part) for part in parts]
    return [Dialogue(d.turns[:2]) for d in dialogues] if short else dialogues


def hhh_prompt(short: bool = False) -> str:
    """HHH text to put before a dialogue in HH format: an introduction and 14 conversations, each after a rule.

    Our own words; the idea of 14 conversations is 2204.05862 App A.1's. It ends in a rule, so that
    ``hhh_prompt() + to_hh(dialogue)`` opens one more conversation. ``short`` has at most 2,000 SmolLM2 tokens.
    """
    intro = _hhh_text().split(RULE)[0]
    return intro + "".join(RULE + to_hh(d) for d in hhh_dialogues(short)) + RULE


def one_shot_prompt() -> str:
    """One conversation of three turns in HH format, and a rule: what a plain model is shown (2209.07858 §3.2)."""
    return to_hh(hhh_dialogues()[0]).lstrip("\n") + RULE


def _hhh_text() -> str:
    return (files("truing.data") / "prompts" / "hhh.txt").read_text("utf-8").rstrip("\n")


# ---------------------------------------------------------------- prompts from files


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt from a file: ``id`` is the row's, or ``file:line``; ``line`` counts from 1.

    ``examples`` are ids of the prompts after which a model wrote it (`truing rlhf prompts`). ``kind`` is the row's,
    else harmless for packaged red-team prompts and files that say so in their name.
    """

    dialogue: Dialogue
    id: str
    line: int
    source: str
    kind: Kind = "helpful"
    examples: tuple[str, ...] = ()


PACKAGED = {
    "helpful": helpful_prompts,
    "red-team": red_team_prompts,
    "benign-sensitive": benign_sensitive_prompts,
    "related-work": related_work_prompts,
}
"""Names under which our own sets can be given in place of a file."""


def load_prompt_rows(
    paths: Paths,
    *,
    not_in: Iterable[Comparison | Dialogue] = (),
    on_overlap: Literal["drop", "error"] = "drop",
) -> list[PromptRow]:
    """Prompts of files, hub data sets or packaged sets (``helpful``, ``red-team``, ``benign-sensitive``), with ids.

    Rows hold ``prompt`` (HH text, messages or plain), ``dialogue`` or ``messages`` (a last reply is taken off), or
    are comparisons, whose replies are taken off (2204.05862 §4.1). Prompts whose conversation (first human turn)
    stands in ``not_in``, say the held-out comparisons of the preference model, are dropped with a warning, or are an
    error. Raises DataError naming file, line and field.
    """
    held_out = {conversation_key(item) for item in not_in}
    out: list[PromptRow] = []
    dropped: list[str] = []
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path in names:
        for row in _prompt_rows(path):
            if conversation_key(row.dialogue) not in held_out:
                out.append(row)
                continue
            dropped.append(row.id)
            if on_overlap == "error":
                problem = "this prompt's conversation stands in the held-out data; training on it would leak"
                raise DataError(path, problem, line=row.line, field="prompt")
    if dropped:
        log.warning("%d prompts dropped: their conversations stand in the held-out data", len(dropped))
    if not out:
        raise DataError(", ".join(map(str, names)), f"no prompts are left ({len(dropped)} stand in the held-out data)")
    return out


def packaged_rows(name: str) -> list[Row]:
    """A packaged set as rows of a file: line, and ``id`` and ``prompt``."""
    return [(line, {"id": p.id, "prompt": p.text}) for line, p in enumerate(PACKAGED[name](), 1)]


def _prompt_rows(path: str | Path) -> Iterable[PromptRow]:
    if str(path) in PACKAGED and not Path(path).exists():
        for i, prompt in enumerate(PACKAGED[str(path)](), 1):
            yield PromptRow(prompt.dialogue, prompt.id, i, str(path), "harmless" if path == "red-team" else "helpful")
        return
    stem = Path(path).name.split(".")[0]
    for line, row in read_rows(path):
        dialogue = row_to_prompt(row, path, line)
        name = str(row.get("id") or f"{stem}:{line}")
        yield PromptRow(dialogue, name, line, str(path), kind_of(row, path, line), examples_of(row))


def examples_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the prompts after which a model wrote this one; none for what people wrote."""
    given = row.get("examples")
    return tuple(map(str, given)) if isinstance(given, list) else ()


def row_to_prompt(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> Dialogue:
    """The prompt of one row; raises DataError naming the field if there is none, or if nobody waits for a reply."""
    if is_comparison(row):
        dialogue, name = read_pair(row, file, line).chosen.prompt, "chosen"
    else:
        name = next((n for n in ("prompt", "dialogue", "messages", "text") if row.get(n) is not None), "prompt")
        if name not in row:
            have = ", ".join(row) or "none"
            raise DataError(file, f"missing; the row has the fields {have}", line=line, field=name)
        try:
            dialogue = prompt_of(row[name])
        except ValueError as bad:
            raise DataError(file, str(bad), line=line, field=name) from None
        dialogue = dialogue if name == "prompt" else dialogue.prompt
    if not dialogue.turns or not any(t.text.strip() for t in dialogue.turns):
        raise DataError(file, "the prompt is empty", line=line, field=name)
    if not dialogue.is_prompt:
        raise DataError(file, "the prompt does not end with a human turn", line=line, field=name)
    return dialogue
