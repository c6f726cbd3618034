"""Prompts are compared byte for byte with the paper's, written out here by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from truing.data.asking import (
    WORKED,
    ask,
    few_shot,
    is_true,
    lettered,
    letters,
    pick_shots,
    question_key,
    worked_examples,
)  # fmt: skip
from truing.types import Question


def test_lettered_bytes() -> None:
    assert lettered("Who?", ["Ann", "Bob", "Cy"]) == ("Question: Who?\nChoices:\n (A) Ann\n (B) Bob\n (C) Cy\nAnswer:")
    assert letters(3) == (" (A)", " (B)", " (C)") and letters(26)[-1] == " (Z)"
    for count in (1, 27):
        with pytest.raises(ValueError, match=f"{count} choices"):
            letters(count)


def test_comparison_bytes() -> None:
    assert is_true("Who was third?", ["Ann", "Bob", "Ann", "Cy", "Di"], "Bob") == (
        "Question: Who was third?\nHere are some brainstormed ideas: Ann\nBob\nAnn\nCy\nDi\nPossible Answer: Bob\n"
        "Is the possible answer:\n (A) True\n (B) False\nThe possible answer is:"
    )


def test_basic_bytes() -> None:
    assert is_true("Who?", (), "Bob") == (
        "Question: Who?\nProposed Answer: Bob\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is:"
    )


def test_the_six_examples_are_balanced_and_judge_an_idea_that_was_shown() -> None:
    assert sum(true for *_, true in WORKED) == 3 and len(WORKED) == 6
    for _, ideas, judged, _ in WORKED:
        assert len(ideas) == 5 and judged in [i.replace(",", "") for i in ideas]
    first, label = worked_examples()[0]
    assert label == " (B)" and first.startswith(
        "Question: Who was the third president of the United States?\nHere are some brainstormed ideas: James Monroe\n"
        "Thomas Jefferson\nJefferson\nThomas Jefferson\nGeorge Washington\nPossible Answer: James Monroe\n"
    )
    assert "brainstormed" not in worked_examples(ideas=False)[0][0]


def test_few_shot_raw_and_chat() -> None:
    solved = [(ask("1?"), " one"), (ask("2?"), " two")]
    assert few_shot(solved, ask("3?")) == (
        "Question: 1?\nAnswer: one\n\nQuestion: 2?\nAnswer: two\n\nQuestion: 3?\nAnswer:"
    )
    chat = few_shot(solved, ask("3?"), "chat")
    assert [t.text for t in chat.turns] == [ask("1?"), "one", ask("2?"), "two", ask("3?")] and chat.is_prompt


def questions(n: int) -> list[Question]:
    return [Question(f"What is {i} plus {i + 5}?", (str(2 * i + 5),)) for i in range(n)]


def test_shots_never_hold_the_question_or_one_that_reads_alike() -> None:
    rows = [*questions(12), Question("what is 8 PLUS 3", ("11",)), Question("What is 3 plus 8?", ("11",))]
    assert question_key(rows[-1]) == question_key(rows[-2]) == question_key(rows[3])
    for shots in (1, 3, 11):
        for i, picked in enumerate(pick_shots(rows, shots, seed=shots)):
            keys = [question_key(rows[j]) for j in picked]
            assert len(picked) == shots == len(set(keys)) and question_key(rows[i]) not in keys
    with pytest.raises(ValueError, match="needs 13 different questions or more; the file has 12"):
        pick_shots(rows, 12, 0)
    assert pick_shots(rows[:1], 0, 0) == [[]]


def test_shots_follow_from_the_seed_and_are_mostly_shared() -> None:
    rows = questions(40)
    assert pick_shots(rows, 5, 1) == pick_shots(rows, 5, 1) != pick_shots(rows, 5, 2)
    assert Counter(map(tuple, pick_shots(rows, 5, 1))).most_common(1)[0][1] == 35  # all but the five shown


def test_options_are_part_of_a_lettered_question() -> None:
    one = Question("Which is right?", choices=("a", "b"), answer=0)
    other = Question("Which is right?", choices=("c", "d"), answer=0)
    turned = Question("Which is right?", choices=("b", "a"), answer=1)
    assert question_key(one) != question_key(other) and question_key(one) == question_key(turned)
