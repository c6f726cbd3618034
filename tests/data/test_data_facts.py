from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from truing.data.facts import arithmetic, choice_questions, trivia
from truing.data.grade import grade, normalise
from truing.types import Question

OPS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}


def find(question: str) -> Question:
    return next(q for q in trivia() if q.question == question)


def test_trivia_is_large_unambiguous_and_repeatable() -> None:
    questions = trivia()
    assert len(questions) > 1000 and len({q.task for q in questions}) >= 10
    assert len({q.question for q in questions}) == len({q.id for q in questions}) == len(questions)
    assert all(q.answers and all(a.strip() for a in q.answers) for q in questions)
    assert trivia(0) == questions and trivia(1) != questions and set(trivia(1)) == set(questions)


def test_every_accepted_answer_is_graded_right() -> None:
    assert [(q.question, a) for q in trivia() for a in q.answers if not grade(q, a)] == []
    assert [q.question for q in trivia() if not grade(q, f" {q.answers[0]}.\nQuestion: next?")] == []


def test_answers_of_others_are_graded_wrong() -> None:
    """Within a task, an answer to one question is right for another only if they share an alias."""
    by_task: dict[str, list[Question]] = {}
    for q in trivia(3):
        by_task.setdefault(q.task, []).append(q)
    for questions in by_task.values():
        for q, other in zip(questions, questions[1:], strict=False):
            shared = {normalise(a) for a in q.answers} & {normalise(a) for a in other.answers}
            assert shared or not grade(q, other.answers[0]), (q, other.answers[0])


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("What is the capital of South Africa?", ["Cape Town", "Pretoria", "Bloemfontein"], ["Johannesburg"]),
        ("What is the capital of Kazakhstan?", ["Astana", "Nur-Sultan"], ["Almaty"]),
        ("What is the capital of Brazil?", ["Brasília", "brasilia"], ["Rio de Janeiro", "Brazil"]),
        ("What is the capital of the United States?", ["Washington, D.C.", "Washington"], ["New York"]),
        ("What is the capital of Albania?", ["Tirana", "Tiranë"], ["Trnava"]),
        ("Of which country or territory is Prague the capital?", ["Czechia", "the Czech Republic"], ["Slovakia"]),
        ("In which country is the city of Istanbul?", ["Turkey", "Türkiye"], ["Greece"]),
        ("What is the official currency of Japan?", ["Yen", "JPY", "the yen"], ["Yuan"]),
        ("What is the chemical symbol of gold?", ["Au", "The symbol is Au."], ["Ag", "Australia"]),
        ("Which chemical element has the symbol Al?", ["aluminium", "Aluminum"], ["Gallium"]),
        ("What is the atomic number of oxygen?", ["8", "eight", "It is 8."], ["16"]),
        ("What is the international calling code of France?", ["+33", "33"], ["3", "+34"]),
        ("Which US state has the postal code TX?", ["Texas"], ["Tennessee"]),
        ("What is the main language of Japan?", ["Japanese"], ["Chinese"]),
    ],
)
def test_known_facts(question: str, right: list[str], wrong: list[str]) -> None:
    q = find(question)
    assert [a for a in right if not grade(q, a)] == [] and [a for a in wrong if grade(q, a)] == []


def test_disputed_and_double_answers_are_not_asked() -> None:
    texts = {q.question for q in trivia()}
    for gone in ("Israel", "the Palestinian Territory", "Western Sahara", "Nauru"):
        assert f"What is the capital of {gone}?" not in texts
    assert not any("chemical symbol of nobelium" in t for t in texts)  # No
    assert "On which continent is Turkey?" not in texts
    assert "In which country is the city of Suzhou?" not in texts  # two cities bear the name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 99))
def test_arithmetic_is_right_and_distinct(n: int, seed: int) -> None:
    questions = arithmetic(n, seed)
    assert len(questions) == n and arithmetic(n, seed) == questions
    keys = set()
    for q in questions:
        a, op, b = re.fullmatch(r"What is (\S+) (plus|minus|times) (\S+)\?", q.question).groups()  # type: ignore[union-attr]
        x, y = int(a.replace(",", "")), int(b.replace(",", ""))
        assert int(q.answers[0]) == OPS[op](x, y) and len(str(x)) == len(str(y)) == int(q.task[-1])
        keys.add((op, x, y) if op == "minus" else (op, min(x, y), max(x, y)))
        assert grade(q, q.answers[-1]) and not grade(q, str(OPS[op](x, y) + 1))
    assert len(keys) == n


def test_arithmetic_shares_and_its_end() -> None:
    assert max(Counter(q.task for q in arithmetic(90)).values()) == 10
    assert len(arithmetic(45, ops=("plus",), digits=(1,))) == 45
    with pytest.raises(ValueError, match="only 45 distinct"):
        arithmetic(46, ops=("plus",), digits=(1,))
    with pytest.raises(ValueError, match="unknown operations"):
        arithmetic(1, ops=("over",))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 120), st.integers(0, 99))
@example(103, 19)  # U.S. Virgin Islands beside United States
def test_choices_are_four_different_options_one_right(n: int, seed: int) -> None:
    questions = choice_questions(n, seed)
    assert len(questions) == n and len({q.id for q in questions}) == n
    facts = {f"choice-{q.id}": q for q in trivia()}
    for q in questions:
        assert len({normalise(c) if c[0] != "-" else c for c in q.choices}) == 4 and q.answer is not None
        source = facts.get(q.id)
        if source:
            assert [i for i, c in enumerate(q.choices) if c in source.answers] == [q.answer]
            assert [i for i, c in enumerate(q.choices) if grade(source, c)] == [q.answer]
        else:
            a, op, b = q.question.replace("?", "").replace(",", "").split()[2:]
            assert q.choices[q.answer] == str(OPS[op](int(a), int(b)))
    places = Counter(q.answer for q in questions)
    assert all(math.floor(n / 4) <= places[i] <= math.ceil(n / 4) for i in range(4))
