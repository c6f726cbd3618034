from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from truing.data.facts import arithmetic, choice_questions, trivia
from truing.data.files import DataError, write_rows
from truing.data.questions import load_questions, question_to_row, row_to_question

OPTIONS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("row", "answers", "kind"),
    [
        ({"answers": ["Paris", "Paris", " "]}, ("Paris",), "exact"),
        ({"answer": "Paris"}, ("Paris",), "exact"),
        ({"answers": ["1,024", "1024"]}, ("1,024", "1024"), "number"),
        ({"answers": ["1"], "kind": "exact"}, ("1",), "exact"),
        ({"answer": {"value": "Oslo", "aliases": ["Oslo", "Kristiania"]}}, ("Oslo", "Kristiania"), "exact"),
        ({"answer": "It is 6 * 7 = 42\n#### 42"}, ("42",), "number"),
        ({"answer": 7}, ("7",), "number"),
    ],
)
def test_answers_of_public_sets(row: dict[str, Any], answers: tuple[str, ...], kind: str) -> None:
    question = row_to_question({"question": "?", **row})
    assert (question.answers, question.kind) == (answers, kind)


@pytest.mark.parametrize(
    "row",
    [
        {"choices": OPTIONS, "answer": 2},
        {"choices": OPTIONS, "answer": "2"},
        {"choices": OPTIONS, "answer": 2.0},
        {"choices": OPTIONS, "answer": "C"},
        {"choices": OPTIONS, "answer": "c"},
        {"choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
    ],
)
def test_choices_of_public_sets(row: dict[str, Any]) -> None:
    question = row_to_question({"question": "?", "subject": "s", **row})
    assert (question.choices, question.answer, question.kind, question.task) == (tuple(OPTIONS), 2, "choice", "s")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"answers": ["x"]}, "question"),
        ({"question": " ", "answers": ["x"]}, "question"),
        ({"question": "?"}, "answers"),
        ({"question": "?", "answers": []}, "answers"),
        ({"question": "?", "answers": [None, " "]}, "answers"),
        ({"question": "?", "choices": OPTIONS}, "answer"),
        ({"question": "?", "choices": OPTIONS, "answer": 4}, "answer"),
        ({"question": "?", "choices": OPTIONS, "answer": -1}, "answer"),
        ({"question": "?", "choices": OPTIONS, "answer": True}, "answer"),
        ({"question": "?", "choices": ["a"], "answer": 0}, "choices"),
        ({"question": "?", "choices": "a,b", "answer": 0}, "choices"),
        ({"question": "?", "answers": ["x"], "kind": "essay"}, "kind"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    write_rows(tmp_path / "q.jsonl", [{"question": "?", "answers": ["x"]}, row])
    with pytest.raises(DataError, match=f"q.jsonl, line 2: field '{field}'"):
        load_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_generated_questions_read_back_the_same(tmp_path: Path, name: str) -> None:
    for questions in (trivia()[:200] + arithmetic(50), choice_questions(100)):
        write_rows(tmp_path / name, [question_to_row(q) for q in questions])
        assert load_questions(tmp_path / name) == questions
