"""Questions that a model answers in its own words: how they are put, and how they are split for P(IK)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from truing.data.asking import PromptFormat, ask, few_shot, lettered, question_key
from truing.types import Dialogue, Question


def question_prompt(question: Question, format: PromptFormat = "raw") -> str | Dialogue:
    """What a model reads before its answer (2207.05221 App A.7): raw text, or a dialogue for the model's own format.

    Options, if there are any, stand below the question with a letter each. Raises ValueError for another format.

    >>> question_prompt(Question("What is 1 plus 1?", ("2",)))
    'Question: What is 1 plus 1?\\nAnswer:'
    """
    if format not in ("raw", "chat"):
        raise ValueError(f"format is {format!r}; expected raw or chat.")
    asked = lettered(question.question, question.choices) if question.choices else ask(question.question)
    return few_shot([], asked, format)


def split_questions(questions: Sequence[Question], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Places of the questions to train on and of those held out, both in order.

    Questions with one ``question_key`` stay together, or held-out labels would be known. ``share`` of each task's
    keys is held out, at least one where the task has two; a share of 0 holds out nothing.
    Raises ValueError for a share outside 0 ≤ share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"The share held out is {share}; expected 0 or more and less than 1.")
    task_of: dict[str, str] = {}
    for question in questions:
        task_of.setdefault(question_key(question), question.task)
    tasks: dict[str, list[str]] = {}
    for key, task in task_of.items():
        tasks.setdefault(task, []).append(key)
    out: set[str] = set()
    for task, keys in tasks.items():
        order = sorted(keys)
        random.Random(f"{seed} {task}").shuffle(order)
        wanted = min(len(order) - 1, max(1, round(share * len(order)))) if share > 0 else 0
        out |= set(order[:wanted])
    held = [question_key(q) in out for q in questions]
    return [i for i, away in enumerate(held) if not away], [i for i, away in enumerate(held) if away]
