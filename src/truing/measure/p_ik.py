"""``truing honesty pik``: does a model know what it knows, before it answers? (2207.05221 §5)

The model answers every question some times, its answers are graded, a head learns the share that is right from the
question alone, and questions that were held out tell how much it learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truing.configs import PIKTrain
from truing.data.questions import load_questions
from truing.data.quiz import question_prompt
from truing.measure.answers import CHUNK, STOP, answers_in_run, expected_tokens
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.runs import Run
from truing.train.cost import sampling, timed
from truing.train.cost_of import p_ik_cost
from truing.train.p_ik import VERB, check, train_p_ik
from truing.train.p_ik_numbers import NAMES, measure_p_ik
from truing.types import Question, Sample

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
    """What it would take: prompts counted, time, memory and the length of answers measured on a part."""
    compute = choose(config.device, config.dtype, config.threads)
    lm, loading = timed(lambda: LM.load(config.init, device=compute.device))
    texts = [question_prompt(q, config.format) for q in questions]
    prompts = [lm.encode_prompt(text) for text in texts]

    def draw(places: Sequence[int], n: int, most: int) -> list[list[Sample]]:
        return lm.sample([texts[i] for i in places], n, max_tokens=most, stop=[STOP], seed=config.seed)

    sizes = [len(prompt) for prompt in prompts]
    cost = loading + sampling(lm.engine, draw, sizes, config.samples, config.max_new_tokens, CHUNK)
    cost += p_ik_cost(config, lm, prompts)
    tokens = expected_tokens(lm, questions, config.samples, config.max_new_tokens, config.format)
    trained = round(len(questions) * (1 - config.eval_share))
    return [
        f"{len(questions):,} questions, {tokens['prompts']:,} tokens in their prompts; at most {tokens['answers']:,} "
        "tokens of answers.",
        f"{math.ceil(trained / config.batch_size) * config.epochs:,} steps on about {trained:,} questions.",
        *cost.lines(compute),
    ]
