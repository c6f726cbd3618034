"""Questions with checkable answers from files: ours, and the public sets' own columns.

Read as they are: rows of TriviaQA (``answer`` with ``aliases``), GSM8k (``answer`` ending in ``#### 42``), ARC
(``choices`` with ``text`` and ``label``, ``answerKey``) and MMLU (``choices`` and an index).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from truing.data.comparisons import Paths
from truing.data.files import DataError, read_rows
from truing.types import Question

_KINDS = ("exact", "number", "choice", "code")
_NUMERIC = re.compile(r"[-+]?[\d,]*\.?\d+")


def load_questions(paths: Paths) -> list[Question]:
    """Questions of files or hub data sets in order; an id is the row's, or ``file:line``.

    Raises DataError naming file, line and field on a row without a question or without a usable answer.
    """
    out = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        stem = Path(path).name.split(".")[0]
        for line, row in read_rows(path):
            out.append(row_to_question(row, path, line, f"{stem}:{line}"))
    return out


def row_to_question(row: Mapping[str, Any], file: object = "row", line: int | None = None, id: str = "") -> Question:
    """One question from a row; ``kind`` is the row's, else choice, number (all answers are numbers) or exact."""
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        problem = "missing" if "question" not in row else f"expected text, found {text!r}"
        raise DataError(file, f"{problem}; the row has the fields {', '.join(row)}", line=line, field="question")
    facts: dict[str, Any] = {"task": str(row.get("task") or row.get("subject") or ""), "id": str(row.get("id") or id)}
    if row.get("choices") not in (None, ""):
        choices = _choices(row, file, line)
        index = _index(row, choices, file, line)
        return Question(text, choices=choices, answer=index, kind="choice", **facts)
    answers = _answers(row, file, line)
    kind = _kind(row, answers, file, line)
    return Question(text, answers=answers, kind=kind, **facts)


def question_to_row(question: Question) -> dict[str, Any]:
    """Our row of a question: choices and an index, or answers; kind, task, id."""
    body: dict[str, Any] = {"answers": list(question.answers)}
    if question.choices:
        body = {"choices": list(question.choices), "answer": question.answer}
    return {"id": question.id, "question": question.question, **body, "kind": question.kind, "task": question.task}


def _choices(row: Mapping[str, Any], file: object, line: int | None) -> tuple[str, ...]:
    value = row["choices"]
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, list) or not all(isinstance(v, (str, int, float)) for v in value):
        raise DataError(file, f"expected a list of texts, found {value!r}", line=line, field="choices")
    choices = tuple(str(v) for v in value)
    if len(choices) < 2:
        raise DataError(file, f"needs two options or more, has {len(choices)}", line=line, field="choices")
    return choices


def _index(row: Mapping[str, Any], choices: tuple[str, ...], file: object, line: int | None) -> int:
    """The right option's index: given as an index, a label, a letter, or the option's text."""
    name = next((n for n in ("answer", "answerKey", "label") if row.get(n) not in (None, "")), "answer")
    value = row.get(name)
    if isinstance(value, str):
        labels = row["choices"].get("label") if isinstance(row["choices"], Mapping) else None
        if labels and value in labels:
            value = labels.index(value)
        elif value in choices:
            value = choices.index(value)
        elif value.strip().isdigit():
            value = int(value)
        elif len(value) == 1 and value.isalpha():
            value = ord(value.upper()) - ord("A")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
        problem = f"expected the index of the right option (0 to {len(choices) - 1}), found {row.get(name)!r}"
        raise DataError(file, problem, line=line, field=name)
    return value


def _answers(row: Mapping[str, Any], file: object, line: int | None) -> tuple[str, ...]:
    name = next((n for n in ("answers", "answer") if row.get(n) not in (None, "")), "answers")
    value = row.get(name)
    if isinstance(value, Mapping):  # TriviaQA
        value = [value.get("value"), *(value.get("aliases") or [])]
    if isinstance(value, str) and "####" in value:  # GSM8k
        value = value.rpartition("####")[2].strip()
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or any(isinstance(v, (list, dict)) for v in value):
        raise DataError(file, f"expected a list of accepted answers, found {value!r}", line=line, field=name)
    answers = tuple(dict.fromkeys(str(v).strip() for v in value if v is not None and str(v).strip()))
    if not answers:
        raise DataError(file, "no answer is given, so nothing can be graded", line=line, field=name)
    return answers


def _kind(
    row: Mapping[str, Any], answers: tuple[str, ...], file: object, line: int | None
) -> Literal["exact", "number", "choice", "code"]:
    value = row.get("kind") or ("number" if all(_NUMERIC.fullmatch(a) for a in answers) else "exact")
    if value not in _KINDS:
        raise DataError(file, f"expected one of {', '.join(_KINDS)}, found {value!r}", line=line, field="kind")
    return value  # type: ignore[return-value]
