"""Questions to a model and its graded answers (2207.05221 §4.1, §5): what P(True) judges and P(IK) predicts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from truing.data.asking import PromptFormat
from truing.data.grade import grade
from truing.data.quiz import question_prompt
from truing.models.lm import LM
from truing.runs import Run, atomic_write
from truing.runs.atomic import as_lines, read_rows
from truing.train.progress import counting
from truing.types import Answers, Question

FILE = "answers.jsonl"
CHUNK = 64
"""Questions sampled between two savings."""
STOP = "\n"
"""An answer is one line."""


def answer_questions(
    lm: LM,
    questions: Sequence[Question],
    n: int = 8,
    max_tokens: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    format: PromptFormat = "raw",
    *,
    stop: Sequence[str] = (STOP,),
    progress: Callable[[int, int], None] | None = None,
) -> list[Answers]:
    """``n`` answers to each question, sampled and graded; a question that stands twice is asked once.

    Answers are stripped of blanks around them. What a question is answered follows from its prompt and ``seed``, not
    from the others. Raises ValueError for questions that cannot be graded by comparing text.
    """
    for question in questions:
        grade(question, "")  # before hours of sampling
    prompts = [question_prompt(q, format) for q in questions]
    distinct = list(dict.fromkeys(prompts))
    drawn = lm.sample(
        distinct, n, max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed, progress=progress
    )
    texts = {p: tuple(s.text.strip() for s in samples) for p, samples in zip(distinct, drawn, strict=True)}
    return [graded(q, texts[p]) for q, p in zip(questions, prompts, strict=True)]


def graded(question: Question, samples: Iterable[str]) -> Answers:
    """Samples of one question with their grades."""
    kept = tuple(samples)
    return Answers(question, kept, tuple(grade(question, text) for text in kept))


def answers_in_run(
    run: Run,
    lm: LM,
    questions: Sequence[Question],
    n: int,
    max_tokens: int,
    seed: int,
    format: PromptFormat = "raw",
    max_time: float | None = None,
) -> list[Answers]:
    """``answer_questions`` at temperature 1, kept in the run's ``answers.jsonl``: a killed run asks only the rest.

    After ``max_time`` minutes since the run was opened what there is comes back, fewer than ``questions``.
    """
    pairs = zip(read_rows(run.path / FILE), questions, strict=False)
    rows = [row for row, _ in itertools.takewhile(lambda pair: pair[0]["question"] == pair[1].question, pairs)]
    done = [graded(q, row["samples"]) for q, row in zip(questions, rows, strict=False)]
    tell = counting("Answers", start=n * len(done))
    for start in range(len(done), len(questions), CHUNK):
        if max_time is not None and time.monotonic() - run.opened > 60 * max_time:
            break

        def progress(finished: int, _: int, before: int = n * start) -> None:
            tell(before + finished, n * len(questions))

        new = answer_questions(
            lm, questions[start : start + CHUNK], n, max_tokens, seed=seed, format=format, progress=progress
        )
        done += new
        rows += [answers_row(a) for a in new]
        atomic_write(run.path / FILE, as_lines(rows))
    return done


def answers_row(answers: Answers) -> dict[str, Any]:
    """The row of ``answers.jsonl``."""
    q = answers.question
    return {"id": q.id, "task": q.task, "question": q.question, "samples": answers.samples, "rate": answers.rate}


def expected_tokens(
    lm: LM, questions: Sequence[Question], n: int, max_tokens: int, format: PromptFormat = "raw"
) -> dict[str, int]:
    """Tokens of the distinct prompts, and at most of all answers."""
    prompts = dict.fromkeys(question_prompt(q, format) for q in questions)
    return {"prompts": sum(len(lm.encode_prompt(p)) for p in prompts), "answers": len(prompts) * n * max_tokens}
