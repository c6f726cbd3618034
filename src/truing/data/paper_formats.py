"""Public question sets in the prompts of 2204.05862 (App E, Fig 29): what a model reads, byte for byte.

Rows are those of the public data sets (or ours), read from files. Few-shot prompts show the *previous* items of the
same file, solved: never the question itself, nor one that reads alike or has its id. The first items go on from the
end of the file. The paper shows its formats in a figure; what that leaves open (the blank line between examples,
the letter as part of an answer) is our choice.

ARC, MMLU, OpenBookQA: lettered choices, then each full answer after ``Answer:``. HellaSwag: bare continuations.
Lambada: the bare passage; with examples a blank and an arrow. TriviaQA, TruthfulQA: ``Q:`` and ``A:``. Pairs (App
B.7): a good and a bad answer to one question, as replies in a dialogue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truing.data.asking import LETTERS, SEPARATOR, lettered
from truing.data.comparisons import prompt_of
from truing.data.files import DataError, read_rows
from truing.data.grade import normalise
from truing.data.pairs import is_comparison, read_pair
from truing.data.questions import row_to_question
from truing.text import to_hh
from truing.types import Dialogue

Kind = Literal["choice", "word", "reply", "pair"]
"""What is asked of a model: the likeliest choice, the very next word, a reply, or log-probabilities of two answers."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question: ``asked`` is what the model reads, ``choices`` what may follow, leading space included.

    ``solved`` is the item as an example; ``cued`` is ``asked`` where examples stand before it. ``bare`` is a pair's
    question without marks of a dialogue, for models with a chat template. ``accepted`` are answers of a reply.
    """

    id: str
    key: str
    asked: str
    choices: tuple[str, ...]
    answer: int
    solved: str
    cued: str
    accepted: tuple[str, ...] = ()
    bare: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows become items, what is asked of the model, and what stands between examples."""

    read: Callable[[Mapping[str, Any], object, int], Item]
    kind: Kind
    between: str = SEPARATOR


def load_items(format: str, path: str | Path) -> list[Item]:
    """Items of a file in one of ``FORMATS``. Raises DataError naming file, line and field."""
    return [FORMATS[format].read(row, path, line) for line, row in read_rows(path)]


def prompt(format: str, items: Sequence[Item], place: int, shots: int) -> str:
    """What the model reads before the answer to the item at ``place``, after ``shots`` solved previous ones."""
    examples = [items[i].solved for i in previous(items, place, shots)]
    if not examples:
        return items[place].asked
    between = FORMATS[format].between
    return "".join(example + between for example in examples) + items[place].cued


def previous(items: Sequence[Item], place: int, shots: int) -> list[int]:
    """Places of the ``shots`` items before ``place``, in order, none of them the item itself or one like it.

    Raises ValueError where there are too few.
    """
    asked, found = items[place], list[int]()
    for back in range(1, len(items)):
        if len(found) == shots:
            break
        other = items[place - back]  # below 0: from the end of the file
        if other.id != asked.id and other.key != asked.key:
            found.append((place - back) % len(items))
    if len(found) < shots:
        raise ValueError(f"--num-fewshot {shots} needs {shots} other questions; item {asked.id} has {len(found)}.")
    return found[::-1]


# ---------------------------------------------------------------- rows


def _item(
    row: Mapping[str, Any],
    line: int,
    text: str,
    asked: str,
    choices: Sequence[str],
    answer: int,
    cued: str = "",
    accepted: Sequence[str] = (),
    bare: str = "",
) -> Item:
    name = next((str(row[k]) for k in ("id", "question_id", "ind") if row.get(k) not in (None, "")), f"line {line}")
    cued = cued or asked
    return Item(
        name,
        normalise(text) or text,
        asked,
        tuple(choices),
        answer,
        cued + choices[answer],
        cued,
        tuple(accepted),
        bare,
    )


def _lettered(row: Mapping[str, Any], file: object, line: int) -> Item:
    """ARC, MMLU, OpenBookQA: the answer is the choice as it is listed, letter and text."""
    if "question_stem" in row:
        row = {**row, "question": row["question_stem"]}
    question = row_to_question(row, file, line)
    if question.answer is None or len(question.choices) > len(LETTERS):
        raise DataError(file, "needs 2 to 26 choices and the right one's index", line=line, field="choices")
    answers = [f" ({letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
    text = " | ".join([question.question, *question.choices])
    return _item(row, line, text, lettered(question.question, question.choices), answers, question.answer)


def _hellaswag(row: Mapping[str, Any], file: object, line: int) -> Item:
    text, endings = _text(row, "ctx", file, line), row.get("endings")
    if not isinstance(endings, list) or len(endings) < 2:
        raise DataError(file, f"expected a list of endings, found {endings!r}", line=line, field="endings")
    label = str(row.get("label", ""))
    if not label.isdigit() or int(label) >= len(endings):
        raise DataError(file, f"expected the right ending's index, found {label!r}", line=line, field="label")
    context = _cleaned(text)
    return _item(row, line, text, context, [f" {_cleaned(str(e))}" for e in endings], int(label))


def _cleaned(text: str) -> str:
    """Without the marks that WikiHow left in HellaSwag's rows."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r" {2,}", " ", text).strip()


def _lambada(row: Mapping[str, Any], file: object, line: int) -> Item:
    text = _text(row, "text", file, line).strip()
    passage, _, word = text.rpartition(" ")
    if not passage:
        raise DataError(file, "needs two words or more: the last is asked for", line=line, field="text")
    return _item(row, line, text, passage, [f" {word}"], 0, cued=f"{passage} ____. ->")


def _trivia(row: Mapping[str, Any], file: object, line: int) -> Item:
    question = row_to_question(row, file, line)
    if not question.answers:
        raise DataError(file, "needs accepted answers, not choices", line=line, field="answers")
    asked = f"Q: {question.question}\nA:"
    return _item(row, line, question.question, asked, [f" {question.answers[0]}"], 0, accepted=question.answers)


def _truthful(row: Mapping[str, Any], file: object, line: int) -> Item:
    if isinstance(row.get("mc1_targets"), Mapping):
        targets = row["mc1_targets"]
        labels = list(targets.get("labels") or [])
        if labels.count(1) != 1:
            raise DataError(file, f"expected labels with one 1, found {labels}", line=line, field="mc1_targets")
        row = {**row, "choices": targets.get("choices"), "answer": labels.index(1)}
    question = row_to_question(row, file, line)
    if question.answer is None:
        raise DataError(file, "needs mc1_targets, or choices and an answer", line=line, field="mc1_targets")
    asked = f"Q: {question.question}\nA:"
    return _item(row, line, question.question, asked, [f" {c}" for c in question.choices], question.answer)


def _pair(row: Mapping[str, Any], file: object, line: int) -> Item:
    """A comparison, or ``question``, ``good``, ``bad``; the good answer is the first choice."""
    if is_comparison(row):
        pair = read_pair(row, file, line)
        if pair.unequal:
            raise DataError(file, "the two columns differ before the last reply", line=line, field="rejected")
        dialogue, good, bad = pair.chosen.prompt, pair.chosen.reply, pair.rejected.reply
    else:
        dialogue = prompt_of(_text(row, "question", file, line))
        good, bad = _text(row, "good", file, line), _text(row, "bad", file, line)
    if not good.strip() or not bad.strip():
        raise DataError(file, "an answer is empty", line=line, field="chosen" if is_comparison(row) else "good")
    text = to_hh(dialogue)
    bare = dialogue.last.text if len(dialogue.turns) == 1 else _transcript(dialogue)
    return _item(row, line, text, text, [f" {good}", f" {bad}"], 0, bare=bare)


def _transcript(dialogue: Dialogue) -> str:
    return to_hh(dialogue).strip().removesuffix("Assistant:").rstrip()


def _text(row: Mapping[str, Any], name: str, file: object, line: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        have = ", ".join(row) or "none"
        raise DataError(file, f"expected text, found {value!r}; the row has {have}", line=line, field=name)
    return value


FORMATS: dict[str, Format] = {
    "arc": Format(_lettered, "choice"),
    "mmlu": Format(_lettered, "choice"),
    "openbookqa": Format(_lettered, "choice"),
    "hellaswag": Format(_hellaswag, "choice"),
    "lambada": Format(_lambada, "word", "\n"),
    "triviaqa": Format(_trivia, "reply"),
    "truthfulqa": Format(_truthful, "choice"),
    "pairs": Format(_pair, "pair"),
}
"""By the name that stands in ``--tasks paper_NAME:FILE``."""
