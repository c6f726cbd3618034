"""What a model is asked, byte for byte (2207.05221 §2, §4, App A.5, A.7); no model is known here.

``raw`` prompts are plain text, as the paper's. ``chat`` prompts put the same text into a human turn, the answers of
solved examples into assistant turns, and leave the rendering to the model. Solved examples are separated by a blank
line, which the paper does not show.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

import numpy as np

from truing.data.grade import normalise
from truing.types import Dialogue, Question

PromptFormat = Literal["raw", "chat"]
Solved = tuple[str, str]
"""A prompt and its answer as it follows in raw text, leading space included: ``("Question: …", " Paris")``."""
LETTERS = string.ascii_uppercase
SEPARATOR = "\n\n"
TRUE_FALSE = (" (A)", " (B)")
"""What is scored after a question whether an answer is true: A is True, B is False."""

WORKED: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    (
        "Who was the third president of the United States?",
        ("James Monroe", "Thomas Jefferson", "Jefferson", "Thomas Jefferson", "George Washington"),
        "James Monroe",
        False,
    ),
    ("Calculate 33 + 4", ("37", "37", "40", "36", "37"), "37", True),
    (
        'Fill in the blank in the sentence "I went to the grocery and then to the pharmacy. I was disappointed that '
        "they didn't have any vegetarian sausage at the _____.\"",
        ("grocery", "store", "grocery", "refrigerator", "grocery"),
        "grocery",
        True,
    ),
    (
        "Name a celebrated civil rights leader.",
        ("Martin Luther King", "Ghandhi", "Martin Luther King", "Barack Obama", "Martin Luther King"),
        "Martin Luther King",
        True,
    ),
    ("Calculate 33 * 849", ("28,347", "1,490", "27,488", "3,409", "34,561"), "28347", False),
    (
        'Fill in the blank in the sentence "I shot the _____ and it went swish. We walked away the winners of that '
        'battle!"',
        ("gun", "bullet", "arrow", "basketball", "rifle"),
        "gun",
        False,
    ),
)
"""The paper's six worked examples (App A.5): question, ideas shown, the one judged, whether it is true."""


def ask(question: str) -> str:
    """The question alone (App A.7).

    >>> ask("Capital of France?")
    'Question: Capital of France?\\nAnswer:'
    """
    return f"Question: {question}\nAnswer:"


def lettered(question: str, choices: Sequence[str]) -> str:
    """Multiple choice with letters (§2); what is scored after it are ``letters(len(choices))``.

    >>> lettered("1 + 1?", ["2", "3"])
    'Question: 1 + 1?\\nChoices:\\n (A) 2\\n (B) 3\\nAnswer:'
    """
    options = "".join(f" ({letter}) {text}\n" for letter, text in zip(LETTERS, choices, strict=False))
    return f"Question: {question}\nChoices:\n{options}Answer:"


def letters(count: int) -> tuple[str, ...]:
    """The answers scored: ``" (A)"``, ``" (B)"``, … Raises ValueError outside 2–26."""
    if not 2 <= count <= len(LETTERS):
        raise ValueError(f"a question has {count} choices; letters allow 2 to {len(LETTERS)}.")
    return tuple(f" ({letter})" for letter in LETTERS[:count])


def is_true(question: str, ideas: Sequence[str], answer: str) -> str:
    """Whether ``answer`` is true, after ``ideas`` (the model's own samples, repetitions kept; §4.2), or none (§3.2).

    >>> is_true("1 + 1?", [], "2")
    'Question: 1 + 1?\\nProposed Answer: 2\\nIs the proposed answer:\\n (A) True\\n (B) False\\nThe proposed answer is:'
    """
    word = "possible" if ideas else "proposed"
    brainstorm = "Here are some brainstormed ideas: " + "\n".join(ideas) + "\n" if ideas else ""
    return (
        f"Question: {question}\n{brainstorm}{word.title()} Answer: {answer}\n"
        f"Is the {word} answer:\n (A) True\n (B) False\nThe {word} answer is:"
    )


def worked_examples(ideas: bool = True) -> list[Solved]:
    """The paper's six, with their ideas or without."""
    return [(is_true(q, shown if ideas else (), a), TRUE_FALSE[not true]) for q, shown, a, true in WORKED]


def few_shot(solved: Sequence[Solved], prompt: str, format: PromptFormat = "raw") -> str | Dialogue:
    """The prompt after its solved examples, as raw text or as a dialogue that waits for the answer."""
    if format == "raw":
        return "".join(f"{asked}{answer}{SEPARATOR}" for asked, answer in solved) + prompt
    dialogue = Dialogue()
    for asked, answer in solved:
        dialogue = dialogue.ask(asked).reply(answer.strip())
    return dialogue.ask(prompt)


def question_key(question: Question) -> str:
    """Names a question whatever its case, punctuation and order of words (``4 plus 9`` and ``9 plus 4`` are one)."""
    words = " ".join(sorted(normalise(question.question).split())) or question.question
    return " | ".join([words, *sorted(normalise(c) or c for c in question.choices)])


def pick_shots(questions: Sequence[Question], count: int, seed: int) -> list[list[int]]:
    """For every question the ``count`` others that are shown solved before it.

    They come from the questions themselves, as in the paper (§2), never the question itself nor one that reads
    alike. One random order serves all, so that prompts begin alike and are read once.
    Raises ValueError if there are too few different questions.
    """
    if count < 0:
        raise ValueError(f"--shots is {count}; expected 0 or more.")
    keys = [question_key(q) for q in questions]
    order = np.random.default_rng([seed, 1]).permutation(len(questions)).tolist()
    distinct = {keys[i]: i for i in reversed(order)}
    pool = [i for i in order if distinct[keys[i]] == i][: count + 1]
    if count and len(pool) <= count:
        raise ValueError(
            f"--shots {count} needs {count + 1} different questions or more; the file has {len(pool)}. Use fewer shots."
        )
    return [[i for i in pool if keys[i] != key][:count] for key in keys]
