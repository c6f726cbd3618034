"""``truing honesty choices``: is a model that chooses among lettered options as sure as it is right? (2207.05221 §2)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Choices
from truing.data.asking import PromptFormat, Solved, few_shot, lettered, letters, pick_shots, question_key
from truing.data.files import DataError, write_rows
from truing.data.questions import load_questions
from truing.measure.labels import (
    CHUNK,
    as_text,
    expected_tokens,
    fit_shots,
    format_notes,
    in_chunks,
    label_logprobs,
    mass_of,
    renormalised,
    warn_of_mass,
)
from truing.measure.serving import open_in_run, server_notes
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.models.load import is_remote
from truing.models.remote import AnyLM, savings
from truing.runs import Run
from truing.stats import Interval, Reliability
from truing.train.cost import reading, timed
from truing.types import Dialogue, Question

KEPT = "logprobs.jsonl"
SAMPLES = 50


@dataclass(frozen=True, slots=True)
class ChoicesResult:
    """Numbers, one row per question in order, charts of the top option and of all options, and notes."""

    numbers: dict[str, Interval]
    rows: list[dict[str, Any]]
    reliability: Reliability
    reliability_all: Reliability
    notes: list[str]


def choice_prompts(
    questions: Sequence[Question], shots: int = 0, format: PromptFormat = "raw", seed: int = 0
) -> list[str | Dialogue]:
    """What the model reads for each question: ``shots`` solved others, then the question with lettered options.

    Raises ValueError for questions without options or without the index of the right one.
    """
    for i, q in enumerate(questions):
        if q.answer is None or not 0 <= q.answer < len(q.choices):
            raise ValueError(f"Question {q.id or i + 1} has no choices with the index of the right one.")
        if not 2 <= len(q.choices) <= 26:
            raise ValueError(f"Question {q.id or i + 1} has {len(q.choices)} choices; letters allow 2 to 26.")
    solved: list[Solved] = [
        (lettered(q.question, q.choices), letters(len(q.choices))[q.answer or 0]) for q in questions
    ]
    picked = pick_shots(questions, shots, seed)
    return [few_shot([solved[j] for j in p], asked, format) for p, (asked, _) in zip(picked, solved, strict=True)]


def option_logprobs(
    lm: AnyLM, questions: Sequence[Question], prompts: Sequence[str | Dialogue]
) -> list[dict[str, Any]]:
    """For each question the log-probabilities (nats) of its letters after its prompt, not renormalised."""
    found, flags = label_logprobs(lm, prompts, [letters(len(q.choices)) for q in questions])
    return [
        {"logprobs": [float(x) for x in row]} | ({"boundary": True} if flag else {})
        for row, flag in zip(found, flags, strict=True)
    ]


def measure_choices(
    lm: AnyLM, questions: Sequence[Question], shots: int = 0, format: PromptFormat = "raw", seed: int = 0
) -> ChoicesResult:
    """Calibration of a language model on multiple choice, without a run."""
    format_notes(lm, format)
    prompts = choice_prompts(questions, shots, format, seed)
    return judge_choices(questions, option_logprobs(lm, questions, prompts), seed=seed)


def judge_choices(questions: Sequence[Question], logprobs: Sequence[dict[str, Any]], *, seed: int = 0) -> ChoicesResult:
    """Numbers from log-probabilities of options; intervals resample questions.

    The top option's renormalised probability is the confidence in accuracy, ece_top, ece_null_95,
    rms_calibration_error, brier (0-1) and skill; ece_all and auroc pool all options; label_mass is the probability of
    answering with a letter at all. Options of exactly equal probability are drawn by ``seed``, so that a model which
    knows nothing is right as often as chance. Raises ValueError without questions.
    """
    if not questions:
        raise ValueError("There are no questions to measure on.")
    rng = np.random.default_rng([seed, 2])
    rows, p_all, c_all, of = [], [], [], []
    for i, (question, found) in enumerate(zip(questions, logprobs, strict=True)):
        lp = np.asarray(found["logprobs"], dtype=np.float64)
        p = renormalised(lp)
        top = int(rng.choice(np.flatnonzero(p == p.max())))
        p_all += p.tolist()
        c_all += [float(k == question.answer) for k in range(len(p))]
        of += [question_key(question)] * len(p)
        rows.append(
            {
                "id": question.id or i + 1,
                "question": question.question,
                "task": question.task,
                "answer": question.answer,
                "chosen": letters(len(p))[top].strip(),
                "correct": float(top == question.answer),
                "confidence": float(p[top]),
                "label_mass": mass_of(lp),
                "probabilities": [round(x, 6) for x in p.tolist()],
                **found,
            }
        )
    keys = [question_key(q) for q in questions]
    numbers = _numbers(rows, keys, np.array(p_all), np.array(c_all), of, seed)
    numbers, notes = warn_of_mass(numbers)
    notes.append(f"Guessing would be right on {np.mean([1 / len(q.choices) for q in questions]):.1%} of the questions.")
    joined = sum("boundary" in row for row in rows)
    if joined:
        notes.append(f"{joined} prompts were tokenised apart from their letters, because a token spans the join.")
    sure, right = [row["confidence"] for row in rows], [row["correct"] for row in rows]
    return ChoicesResult(
        numbers, rows, stats.reliability(sure, right), stats.reliability(p_all, c_all, clusters=of), notes
    )


def _numbers(
    rows: Sequence[dict[str, Any]], keys: list[str], p_all: np.ndarray, c_all: np.ndarray, of: list[str], seed: int
) -> dict[str, Interval]:
    sure, right, mass = (np.array([row[k] for row in rows]) for k in ("confidence", "correct", "label_mass"))
    top = stats.probability_scores(sure, right, keys, seed=seed)
    every = stats.probability_scores(p_all, c_all, of, seed=seed)
    return {
        "accuracy": stats.mean_interval(right, keys, unit="share", seed=seed),
        "ece_top": top["ece"],
        "ece_null_95": top["ece_null_95"],
        "rms_calibration_error": top["rms_calibration_error"],
        "brier": top["brier"],
        "skill": top["skill"],
        "ece_all": every["ece"],
        "auroc": every["auroc"],
        "label_mass": stats.mean_interval(mass, keys, unit="probability", seed=seed),
    }


def choices(config: Choices) -> Run | dict[str, Any]:
    """The verb ``honesty choices``: numbers, reliability.csv (top option), reliability_all.csv, rows and samples.

    The same call again resumes where it was killed. With ``dry_run`` returns what it would cost. Raises DataError for
    rows without choices, ValueError for options that mean nothing.
    """
    questions = load_questions(config.file)
    without = next((q for q in questions if not q.choices), None)
    if without is not None:
        raise DataError(
            config.file, f"question {without.id} has no choices; every row here needs them", field="choices"
        )
    prompts = choice_prompts(questions, config.shots, config.format, config.seed)
    if config.dry_run:
        return {"lines": _expected(config, questions, prompts)}
    run = Run.open(
        "honesty choices",
        config,
        data_files=[config.file],
        slug=f"{Path(config.model).name}-{Path(config.file).stem}",
    )
    if run.done:
        return run
    compute = run.compute(config)
    lm = open_in_run(run, config, compute)
    notes = format_notes(lm, config.format)
    _, prompts = fit_shots(lm, config.shots, lambda k: choice_prompts(questions, k, config.format, config.seed), notes)
    digest = show_prompt(lm, prompts[0])
    found = in_chunks(
        run,
        KEPT,
        list(zip(questions, prompts, strict=True)),
        lambda chunk, _: option_logprobs(lm, [q for q, _ in chunk], [p for _, p in chunk]),
        label="Questions",
        max_time=config.max_time,
        **savings(config.model, CHUNK),
    )
    if not found:
        run.stop({}, ["Stopped before the first questions were read; the same command goes on."])
        return run
    result = judge_choices(questions[: len(found)], found, seed=config.seed)
    write_rows(run.path / "rows.jsonl", result.rows)
    write_rows(run.path / "reliability.csv", [b.as_dict() for b in result.reliability.bins])
    write_rows(run.path / "reliability_all.csv", [b.as_dict() for b in result.reliability_all.bins])
    run.write_samples([{"first_prompt": as_text(prompts[0]), "sha256": digest}, *_samples(questions, result.rows)])
    notes += [*result.notes, *server_notes(run)]
    if len(found) < len(questions):
        left = f"Stopped after {len(found)} of {len(questions)} questions; the same command goes on."
        run.stop(result.numbers, [*notes, left])
    else:
        run.finish(result.numbers, notes)
    return run


def _expected(config: Choices, questions: Sequence[Question], prompts: Sequence[str | Dialogue]) -> list[str]:
    """What it would take: tokens counted, time and memory measured on a part."""
    if is_remote(config.model):
        return [f"{len(questions):,} questions, about {expected_tokens(prompts):,} tokens; the time is the server's."]
    compute, notes = choose(config.device, config.dtype, config.threads), list[str]()
    lm, loading = timed(lambda: LM.load(config.model, device=compute.device, dtype=compute.dtype))
    _, prompts = fit_shots(lm, config.shots, lambda k: choice_prompts(questions, k, config.format, config.seed), notes)

    def work(start: int, stop: int) -> None:
        option_logprobs(lm, questions[start:stop], prompts[start:stop])

    cost = reading(lm.engine, work, len(questions), CHUNK)
    fake = [{"logprobs": [-1.0 - (i + k) % 7 for k in range(len(q.choices))]} for i, q in enumerate(questions)]
    _, numbers = timed(lambda: judge_choices(questions, fake, seed=config.seed))
    return [f"{len(questions):,} questions.", *notes, *(loading + cost + numbers).lines(compute)]


def _samples(questions: Sequence[Question], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions spread over the range of confidence."""
    order = np.argsort([row["confidence"] for row in rows])
    shown = sorted(order[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).astype(int)].tolist())
    return [
        {
            "id": rows[i]["id"],
            "question": questions[i].question,
            "options": " · ".join(
                f"{letter.strip()} {text}{' ✓' if k == questions[i].answer else ''} {p:.2f}"
                for k, (letter, text, p) in enumerate(
                    zip(letters(len(questions[i].choices)), questions[i].choices, rows[i]["probabilities"], strict=True)
                )
            ),
            "chosen": rows[i]["chosen"],
            "confidence": round(rows[i]["confidence"], 4),
        }
        for i in shown
    ]
