"""``truing bias``: gendered occupations, sentiment by group, ambiguous questions (2204.05862 §4.6.2, App B.10).

Three probes of one model, or of a model and the one it was before. Each knows little: a template, a scorer, a set of
questions. They show what changed, not whether a model is fair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truing.configs import Bias
from truing.data.bias_sets import ambiguous_questions, load_ambiguous, sentences
from truing.data.files import write_rows
from truing.measure.bias_gender import (
    TEMPERATURES,
    TEMPLATE,
    gender_numbers,
    occupation_table,
    temperature_table,
    term_rows,
    terms,
)
from truing.measure.bias_questions import answer_rows, named_groups, question_numbers
from truing.measure.bias_sentiment import VADER, completions, open_scorer, opened, sentiment_numbers
from truing.measure.labels import in_chunks
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.models.load import find_model
from truing.runs import Run, atomic_write
from truing.runs.atomic import as_json
from truing.stats import Interval
from truing.train.cost import Cost, reading, replying, timed

PARTS = ("gender", "sentiment", "questions")
CHUNKS = {"gender": 4, "sentiment": 60, "questions": 240}
"""Items between two savings."""
SHOWN = 24
SIGN = "Above 0 an occupation is likelier after the female term, below 0 after the male one."


class Part(NamedTuple):
    """What a probe asks: its items, and the work on some of them by a model (and the place of the first)."""

    items: Sequence[Any]
    work: Callable[[LM, Sequence[Any], int], list[dict[str, Any]]]


def bias(config: Bias) -> Run | dict[str, Any]:
    """The verb ``bias``: numbers of each part, with ``--before`` also ``/before`` and ``/difference``; tables; rows.

    The same call again resumes it. With ``dry_run`` returns what it would cost. Raises ValueError for options that
    mean nothing and for a scorer that is none, DataError for a file of questions that is none.
    """
    names = [n for n in (config.before, config.model) if n is not None]
    notes = _checked(config)
    parts = _parts(config, notes)
    if config.dry_run:
        return {"lines": _expected(config, names, parts)}
    for name in names:
        find_model(name)  # a mistyped second name must not be found out after the first model's work
    files = [f for f in [config.questions] if f is not None and "questions" in parts]
    run = Run.open("bias", config, data_files=files, slug=Path(config.model).name)
    if run.done:
        return run
    compute = run.compute(config)
    score = open_scorer(config.sentiment, compute.device) if "sentiment" in parts else None
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in parts}
    for place, name in enumerate(names):
        lm = LM.load(name, device=compute.device, dtype=compute.dtype)
        for part in parts:
            rows = _kept(run, config, part, parts[part], lm, place)
            if len(rows) < len(parts[part].items):
                run.stop({}, [f"Stopped in the part {part} of {name}; the same command goes on."])
                return run
            found[part].append(rows)
    _finish(run, config, names, found, parts, score, notes)
    return run


def _checked(config: Bias) -> list[str]:
    if not config.parts:
        raise ValueError(f"--parts names no part; known are {', '.join(PARTS)}.")
    for name, value in (("samples", config.samples), ("max_new_tokens", config.max_new_tokens)):
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected 1 or more.")
    return [f"before is {config.before}, the others are {config.model}."] if config.before else []


def _parts(config: Bias, notes: list[str]) -> dict[str, Part]:
    """The probes asked for, in their order."""
    parts: dict[str, Part] = {}
    if "gender" in config.parts:
        parts["gender"] = Part(terms(), lambda lm, some, _: term_rows(lm, some))
        notes.append(f"{SIGN} The template is {TEMPLATE!r} and an occupation.")
    if "sentiment" in config.parts:
        begun = sentences()

        def complete(lm: LM, some: Sequence[Any], place: int) -> list[dict[str, Any]]:
            seeds = lm.seeds([opened(lm, s) for s in begun], config.samples, config.seed)[place : place + len(some)]
            return completions(lm, some, config.samples, config.max_new_tokens, seeds)

        parts["sentiment"] = Part(begun, complete)
        scorer = "VADER" if config.sentiment == VADER else config.sentiment
        notes.append(f"Sentiment by {scorer}, of what the model adds to the sentence; a scorer has views of its own.")
    if "questions" in config.parts:
        asked, others = (ambiguous_questions(), 0) if config.questions is None else load_ambiguous(config.questions)
        parts["questions"] = Part(asked, lambda lm, some, _: answer_rows(lm, some))
        if others:
            notes.append(f"{others} questions that their text answers were left out.")
    return parts


def _kept(run: Run, config: Bias, name: str, part: Part, lm: LM, place: int) -> list[dict[str, Any]]:
    if name == "sentiment" and place == 0:
        show_prompt(lm, opened(lm, part.items[0]))
    return in_chunks(
        run,
        f"{name}-{place + 1}.jsonl",
        part.items,
        lambda some, first: part.work(lm, some, first),
        label=f"{name.capitalize()}, {lm.name}",
        max_time=config.max_time,
        size=CHUNKS[name],
    )


# ---------------------------------------------------------------- what is made of it


def _finish(
    run: Run,
    config: Bias,
    names: Sequence[str],
    found: dict[str, list[list[dict[str, Any]]]],
    parts: dict[str, Part],
    score: Any,
    notes: list[str],
) -> None:
    numbers: dict[str, Interval] = {}
    marks = ["before", "after"] if len(names) == 2 else ["model"]
    samples: list[dict[str, Any]] = []
    if by_model := found.get("gender"):
        logprobs = [_by_pair(rows) for rows in by_model]
        numbers |= gender_numbers(logprobs, config.seed)
        write_rows(run.path / "occupations.csv", occupation_table(logprobs))
        write_rows(run.path / "temperatures.csv", temperature_table(logprobs, marks, config.seed))
    if by_model := found.get("sentiment"):
        begun = parts["sentiment"].items
        texts = [[text for row in rows for text in row["texts"]] for rows in by_model]
        scores = [np.asarray(score(some)).reshape(len(begun), -1) for some in texts]
        numbers |= sentiment_numbers(begun, scores, config.seed)
        rows = [
            {"kind": s.kind, "group": s.group, "text": s.start}
            | {k: v for mark, t, x in zip(marks, by_model, scores, strict=True)
               for k, v in ((mark, t[i]["texts"][0]), (f"score_{mark}", round(float(x[i, 0]), 3)))}
            for i, s in enumerate(begun)
        ]  # fmt: skip
        samples = [rows[i] for i in np.linspace(0, len(rows) - 1, SHOWN).astype(int)]
        run.write_samples(samples)
    if by_model := found.get("questions"):
        asked = parts["questions"].items
        named = [named_groups(asked, rows, config.seed) for rows in by_model]
        numbers |= question_numbers(asked, named, config.seed)
        write_rows(
            run.path / "rows.jsonl",
            [{"id": q.id, "category": q.category, "negative": q.negative, "context": q.context, "question": q.question}
             | dict(zip(marks, groups, strict=True)) for q, *groups in zip(asked, *named, strict=True)],
        )  # fmt: skip
    atomic_write(run.path / "sections.json", as_json(story(config, numbers, samples)))
    run.finish(numbers, notes)


def _by_pair(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Log-probabilities [T, pairs, 2, O] of the rows of all terms."""
    found = np.array([row["logprobs"] for row in rows])  # [terms, T, O]
    return found.reshape(len(rows) // 2, 2, *found.shape[1:]).transpose(2, 0, 1, 3)


def story(config: Bias, numbers: dict[str, Interval], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page says (``report.page`` has its schema); figures are drawn from the run's tables and numbers."""
    shown: Callable[..., dict[str, Any]] = lambda *names: {n: numbers[n].as_dict() for n in names if n in numbers}  # noqa: E731
    made = []
    if "gender_bias" in numbers:
        made.append({
            "title": "Occupations of women and men",
            "text": f"After “{TEMPLATE.format(term='…')}” the model reads 24 terms, in 12 pairs of a female and a male "
            "one, and 76 occupations follow. The lean of an occupation is the mean over the pairs of the logarithm of "
            f"its two probabilities' ratio. {SIGN} The bias is the mean size of the leans; below its null it cannot be "
            "told from what the choice of terms does by chance.\n\nBias depends on the temperature at which a model is "
            "read: dividing logits by T makes it larger roughly as 1/T. A model that RLHF has sharpened may so seem "
            "more biased than its start; the matching temperature is where the start has the same bias (the paper: "
            "about 0.6).",
            "numbers": shown("gender_bias", "gender_bias_null_95", "gender_bias/before", "gender_bias/difference",
                             "gender_lean", "gender_correlation", "matching_temperature", "gender_bias_power",
                             "occupation_mass"),
            "figures": [{"file": f"{n}.svg", "caption": c} for n, c in GENDER_FIGURES.items()],
        })  # fmt: skip
    if "sentiment" in numbers:
        made.append({
            "title": "Sentences about people",
            "text": "Someone asks to finish a sentence about a person of a race or religion, and the reply begins with "
            "it. The score is that of what the model adds, from −1 to 1. Groups whose intervals lie apart are written "
            "about differently; the paper finds that RLHF makes a model write more warmly of all of them.",
            "numbers": shown("sentiment", "sentiment/before", "sentiment/difference"),
            "figures": [{"file": "sentiment.svg", "caption": "Mean sentiment by group, with 95% intervals."}],
            "samples": samples,
        })  # fmt: skip
    any_use = any(v.value is not None for n, v in numbers.items() if n.startswith("negative_use/"))
    if "group_named" in numbers:
        made.append({
            "title": "Questions that cannot be answered",
            "text": "A text names two people and does not say who did what; the right answer is that nobody can know. "
            "Asked for who did something bad and for who did not, a model without bias names a group equally often: "
            "half of its uses are negative. A group that is never named has no value.",
            "numbers": shown("group_named", "group_named/before"),
            "figures": [{"file": "negative_use.svg", "caption": "Negative uses among all uses of a group; 50% is "
                         "without bias."}] if any_use else [],
        })  # fmt: skip
    subtitle = f"{config.model} beside {config.before}" if config.before else str(config.model)
    return {"title": "truing bias", "subtitle": subtitle, "sections": made}


GENDER_FIGURES = {
    "occupations": "The occupations that lean most to either side, mean of 12 pairs ± 1.96 standard errors.",
    "temperatures": "Bias when the logits are divided by a temperature; the dashed line is the model itself.",
}


def _expected(config: Bias, names: Sequence[str], parts: dict[str, Part]) -> list[str]:
    """What it would take: items counted, time and memory measured on a part of each."""
    lines = [f"{name.capitalize()}: {len(part.items):,} items." for name, part in parts.items()]
    if "sentiment" in parts:
        most = len(parts["sentiment"].items) * config.samples * config.max_new_tokens
        lines.append(f"Sentences: {config.samples} ways to go on with each, at most {most:,} tokens.")
    compute, total = choose(config.device, config.dtype, config.threads), Cost()
    for name in names:
        lm, cost = timed(lambda name=name: LM.load(name, device=compute.device, dtype=compute.dtype))  # type: ignore[misc]
        total += cost
        for kind, part in parts.items():
            guess = replying if kind == "sentiment" else reading

            def work(start: int, stop: int, lm: LM = lm, part: Part = part) -> None:
                part.work(lm, part.items[start:stop], start)

            total += guess(lm.engine, work, len(part.items), CHUNKS[kind])
    return [*lines, f"Temperatures: {', '.join(map(str, TEMPERATURES))}.", *total.lines(compute)]
