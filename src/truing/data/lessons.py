"""What context distillation reads: plain text and dialogues, half of each (2204.05862 App A.1)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truing.data.comparisons import Paths, conversation_key, split_by_conversation
from truing.data.files import DataError, read_rows
from truing.data.pairs import is_comparison, prompt_of, read_pair
from truing.types import Dialogue

Material = Literal["text", "dialogue"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One text for teacher and student. Plain text is a dialogue of one human turn that nobody answers.

    >>> Lesson(Dialogue().ask("Once upon a time"), "text").dialogue.is_prompt
    True
    """

    dialogue: Dialogue
    material: Material
    id: str = ""


def load_lessons(paths: Paths) -> list[Lesson]:
    """Lessons of files or hub data sets, in order. Raises DataError naming file, line and field.

    A row holds ``text`` (plain), ``question`` with ``answer`` or with scored ``answers`` (the best one is taken:
    ``[{"text", "score"}]``), ``dialogue`` or ``messages`` (of any number of turns), or is a comparison, whose chosen
    reply is taken.
    """
    out = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        stem = Path(path).name.split(".")[0]
        for line, row in read_rows(path):
            dialogue, material = _lesson(row, path, line)
            if not any(turn.role == "human" for turn in dialogue.turns):
                raise DataError(path, "has no human turn, and no text", line=line, field=material)
            out.append(Lesson(dialogue, material, str(row.get("id") or f"{stem}:{line}")))
    return out


def _lesson(row: Mapping[str, Any], path: object, line: int) -> tuple[Dialogue, Material]:
    if is_comparison(row):
        side = read_pair(row, path, line).chosen
        return side.prompt.reply(side.reply), "dialogue"
    name = next((n for n in ("dialogue", "messages", "question", "text") if row.get(n) not in (None, "")), "text")
    if name not in row:
        have = ", ".join(row) or "none"
        problem = f"has the fields {have}; expected text, question and answer, dialogue, messages or a comparison"
        raise DataError(path, problem, line=line)
    if name in ("text", "question") and not isinstance(row[name], str):
        raise DataError(path, f"expected text, found {row[name]!r}", line=line, field=name)
    if name == "question":
        return Dialogue().ask(row["question"]).reply(_best_answer(row, path, line)), "dialogue"
    if name == "text":
        return (Dialogue().ask(row["text"]) if row["text"].strip() else Dialogue()), "text"
    try:
        return prompt_of(row[name]), "dialogue"
    except ValueError as bad:
        raise DataError(path, str(bad), line=line, field=name) from None


def _best_answer(row: Mapping[str, Any], path: object, line: int) -> str:
    """The answer, or of several the one with the highest score; the first of equals."""
    if isinstance(row.get("answer"), str) and row["answer"].strip():
        return row["answer"]
    answers = row.get("answers")
    try:
        best = max(answers, key=lambda a: float(a["score"]))["text"]  # type: ignore[type-var, arg-type]
        if isinstance(best, str) and best.strip():
            return best
    except (TypeError, KeyError, ValueError):
        pass
    problem = 'a question needs "answer": text, or "answers": [{"text": …, "score": number}, …]'
    raise DataError(path, problem, line=line, field="answers" if answers is not None else "answer")


def mixed(lessons: Sequence[Lesson], text_share: float, seed: int = 0) -> list[Lesson]:
    """As many lessons as possible of which ``text_share`` are plain text, in a random order that follows from the seed.

    Where only one material is there, or a share of 0 or 1 asks for one, all of it. Raises ValueError for a share
    outside 0–1, or if nothing is left.
    """
    if not 0 <= text_share <= 1:
        raise ValueError(f"text_share is {text_share}; expected 0 to 1.")
    order = random.Random(f"lessons-{seed}")
    parts = {m: [x for x in lessons if x.material == m] for m in ("text", "dialogue")}
    for part in parts.values():
        order.shuffle(part)
    texts, talks = parts["text"], parts["dialogue"]
    if texts and talks:
        total = min(
            len(texts) / text_share if text_share else float("inf"),
            len(talks) / (1 - text_share) if text_share < 1 else float("inf"),
        )
        texts, talks = texts[: round(total * text_share)], talks[: round(total * (1 - text_share))]
    out = [*texts, *talks]
    if not out:
        raise ValueError("There is nothing to distil on: give --data with rows of text, questions or dialogues.")
    order.shuffle(out)
    return out


def held_last(lessons: Sequence[Lesson], share: float, seed: int = 0) -> tuple[list[Lesson], int]:
    """The lessons with about ``share`` of them, which are held out, at the end; and how many those are.

    Whole conversations are held out (a plain text is one by itself), so that no beginning is in both parts. Of a
    single conversation, or with a share of 0, none is.
    """
    if share == 0 or len({conversation_key(x) for x in lessons}) < 2:
        return list(lessons), 0
    learned, held = split_by_conversation(lessons, share, seed)
    return [*learned, *held], len(held)
