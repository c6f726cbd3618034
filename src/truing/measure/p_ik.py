"""``truing honesty pik``: does a model know what it knows, before it answers? (2207.05221 §5)

The model answers every question some times, its answers are graded, a head learns the share that is right from the
question alone, and questions that were held out tell how much it learned.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from truing.configs import PIKTrain
from truing.data.questions import load_questions
from truing.data.quiz import question_prompt
from truing.measure.answers import answer_questions, answers_in_run, expected_tokens
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.runs import Run
from truing.train.p_ik import VERB, check, train_p_ik
from truing.train.p_ik_numbers import NAMES, measure_p_ik
from truing.types import Question

__all__ = ["measure_p_ik", "p_ik"]


def p_ik(config: PIKTrain) -> Run | dict[str, Any]:
    """The verb: ask, grade, train, measure. The run holds ``answers.jsonl``, ``model/``, ``reliability.csv`` and rows.

    The same call again resumes at the answers or the step that were left. With ``dry_run`` returns what it would
    cost. Raises ValueError for options that mean nothing and DataError for rows that cannot be read.
    """
    check(config)
    questions = load_questions([*config.data])
    if not questions:
        raise ValueError(f"There are no questions in {', '.join(config.data)}.")
    if config.dry_run:
        return {"lines": _expected(config, questions)}
    run = Run.open(VERB, config, data_files=config.data, slug=Path(config.init).name)
    if run.done:
        return run
    compute = run.compute(config)
    lm = LM.load(config.init, device=compute.device)
    show_prompt(lm, question_prompt(questions[0], config.format))
    answers = answers_in_run(
        run, lm, questions, config.samples, config.max_new_tokens, config.seed, config.format, config.max_time
    )
    if len(answers) < len(questions):
        note = f"Stopped after answers to {len(answers)} of {len(questions)} questions; the same command goes on."
        run.stop(dict.fromkeys(NAMES), [note])
        return run
    return train_p_ik(config, answers, lm, run=run)


def _expected(config: PIKTrain, questions: list[Question]) -> list[str]:
    """What it would cost: tokens counted, sampling timed on a few questions."""
    lm = LM.load(config.init, device=choose(config.device, config.dtype, config.threads).device)
    tokens = expected_tokens(lm, questions, config.samples, config.max_new_tokens, config.format)
    few = questions[:4]
    began = time.perf_counter()
    answer_questions(lm, few, config.samples, config.max_new_tokens, seed=config.seed, format=config.format)
    minutes = (time.perf_counter() - began) / len(few) * len(questions) / 60
    trained = round(len(questions) * (1 - config.eval_share))
    return [
        f"{len(questions):,} questions, {tokens['prompts']:,} tokens in their prompts; at most {tokens['answers']:,} "
        f"tokens of answers, about {minutes:.1f} minutes as timed on {len(few)} questions (batches are faster).",
        f"{math.ceil(trained / config.batch_size) * config.epochs:,} steps on about {trained:,} questions.",
    ]
