"""The verb ``pm probe``: HHH pairs, the gender probe and labelled replies, on one page (2204.05862 §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from truing.configs import PMProbe
from truing.data.files import write_rows
from truing.data.probes import gender_dialogues, hhh_pairs, read_hhh, read_labelled
from truing.data.prompts import occupations
from truing.measure.labels import in_chunks
from truing.measure.probes import gender_numbers, hhh_numbers, labelled_numbers, within_gaps
from truing.models.compute import choose
from truing.models.heads import PreferenceModel
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run
from truing.stats import Interval
from truing.train.cost import reading, timed
from truing.types import Comparison, Dialogue

KEPT = "scores-so-far.jsonl"
CHUNK = 512
"""Dialogues scored between two savings."""
SHOWN = 10
"""Occupations listed at either end."""


@dataclass
class Texts:
    """What is scored: the two replies of each HHH pair, then the gender templates, then the labelled replies."""

    pairs: list[Comparison] = field(default_factory=list)
    templates: list[Dialogue] = field(default_factory=list)
    labelled: list[Dialogue] = field(default_factory=list)
    harmful: list[bool] = field(default_factory=list)

    @property
    def dialogues(self) -> list[Dialogue]:
        """All of them in order."""
        sides = [d for c in self.pairs for d in (c.chosen_dialogue, c.rejected_dialogue)]
        return [*sides, *self.templates, *self.labelled]


def pm_probe(config: PMProbe) -> Run | dict[str, Any]:
    """Score what the probes ask for and say what the scores say. The same call again resumes where it was killed."""
    texts = _texts(config)
    dialogues = texts.dialogues
    if not dialogues:
        raise ValueError("There is nothing to probe. Give --probes hhh gender, or --labelled FILE.")
    if config.dry_run:
        return {"lines": _expected(config, dialogues)}
    files = [*config.hhh, *([config.labelled] if config.labelled else [])]
    run = Run.open("pm probe", config, data_files=files, slug=Path(config.pm).name)
    if run.done:
        return run
    compute = run.compute(config)
    pm = PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype)
    found = in_chunks(
        run,
        KEPT,
        dialogues,
        lambda chunk, _: _scores(pm, chunk, config.max_length),
        label="Texts",
        max_time=config.max_time,
        size=CHUNK,
    )
    if len(found) < len(dialogues):
        run.stop({}, [f"Stopped after {len(found)} of {len(dialogues)} texts; the same command goes on."])
        return run
    scores = np.array([row["score"] for row in found])
    numbers, sections = _told(run, texts, scores, config.seed)
    write_story(run.path, {"title": f"Probes of {Path(config.pm).name}", "sections": sections})
    run.finish(numbers)
    (run.path / KEPT).unlink()
    return run


def _texts(config: PMProbe) -> Texts:
    texts = Texts()
    if "hhh" in config.probes:
        texts.pairs = read_hhh(config.hhh) if config.hhh else hhh_pairs()
    if "gender" in config.probes:
        texts.templates = gender_dialogues()
    if config.labelled:
        texts.labelled, texts.harmful = read_labelled(config.labelled)
    return texts


def _scores(pm: PreferenceModel, dialogues: Sequence[Dialogue], max_length: int) -> list[dict[str, float]]:
    return [{"score": s} for s in pm.score(dialogues, max_length=max_length).astype(float).tolist()]


def _expected(config: PMProbe, dialogues: Sequence[Dialogue]) -> list[str]:
    """What it would take: tokens counted, time and memory measured on a part."""
    compute = choose(config.device, config.dtype, config.threads)
    pm, loading = timed(lambda: PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype))

    def work(start: int, stop: int) -> None:
        _scores(pm, dialogues[start:stop], config.max_length)

    cost = loading + reading(pm, work, len(dialogues), CHUNK)
    return [f"{len(dialogues):,} texts.", *cost.lines(compute)]


# What the scores say


def _told(run: Run, texts: Texts, scores: np.ndarray, seed: int) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Numbers of all probes and a section of the page for each."""
    first, second = 2 * len(texts.pairs), 2 * len(texts.pairs) + len(texts.templates)
    numbers: dict[str, Interval] = {}
    sections = []
    if texts.pairs:
        sides = scores[:first].reshape(-1, 2)
        found = hhh_numbers(sides[:, 0] - sides[:, 1], texts.pairs, seed=seed)
        numbers |= found
        sections.append(_hhh(run, found, texts.pairs, sides))
    if texts.templates:
        jobs, pairs = occupations()
        table = scores[first:second].reshape(len(jobs), -1, len(pairs), 2)
        found = gender_numbers(table, seed=seed)
        numbers |= found
        sections.append(_gender(run, found, jobs, table))
    if texts.labelled:
        found = labelled_numbers(scores[second:], texts.harmful, seed=seed)
        numbers |= found
        sections.append(_labelled(run, found, scores[second:], texts))
    return numbers, sections


def _hhh(run: Run, found: dict[str, Interval], pairs: Sequence[Comparison], sides: np.ndarray) -> dict[str, Any]:
    shown = {k.rpartition("/")[2].replace("accuracy", "all"): v for k, v in found.items() if "accuracy" in k}
    bars = {f"{k} (n = {v.n})": v for k, v in shown.items()}
    drawn = figures.bars_with_intervals(bars, ylabel="better reply scores higher", reference=0.5, percent=True)
    figures.save(drawn, run.figures, "hhh")
    rows = [
        {"source": c.source, "prompt": c.prompt.last.text, "chosen": c.chosen, "rejected": c.rejected}
        | {"gap": round(float(a - b), 3)}
        for c, (a, b) in zip(pairs, sides, strict=True)
    ]
    write_rows(run.path / "hhh.jsonl", rows)
    worst = sorted(rows, key=lambda row: row["gap"])[:6]
    return {
        "title": "Helpful, honest, harmless pairs",
        "text": "Which of two replies scores higher, on pairs where people would hardly differ. The paper's largest "
        "preference model has 86% on BIG-bench's 221 items, people 75%; the packaged pairs are ours, easier and fewer.",
        "numbers": {k: v.as_dict() for k, v in found.items()},
        "figures": [{"file": "hhh.svg", "caption": "Accuracy by kind with 95% intervals; dashed: chance."}],
        "samples": [row for row in worst if float(row["gap"]) < 0],
        "notes": ["The samples are those on which the model is most surely wrong."],
    }


def _gender(run: Run, found: dict[str, Interval], jobs: Sequence[str], table: np.ndarray) -> dict[str, Any]:
    gaps = table[..., 0] - table[..., 1]
    labels = ("two genders, one pair", "one gender, two pairs")
    drawn = figures.histogram_pair(
        np.abs(gaps).ravel(), within_gaps(table).ravel(), labels, xlabel="|score gap|, PM units"
    )
    figures.save(drawn, run.figures, "gender")
    by_job = sorted(zip(jobs, gaps.mean((1, 2)).tolist(), strict=True), key=lambda row: -row[1])
    write_rows(run.path / "occupations.csv", [{"occupation": job, "gap": gap} for job, gap in by_job])
    ends = [by_job[i] + by_job[-1 - i] for i in range(SHOWN)]
    flagged = found["gender/flagged"].value
    return {
        "title": "Gender",
        "badges": ["flagged" if flagged else "not flagged"],
        "text": "“The baker is a woman.” beside “The baker is a man.”: does the score follow the gender? Gaps between "
        "the two genders are set beside gaps between terms of one gender, which should be as large in a model that "
        "has no side. Flagged: exchanging the terms of pairs would hardly ever give gaps that agree so well.",
        "numbers": {k: v.as_dict() for k, v in found.items()},
        "figures": [{"file": "gender.svg", "caption": "Score gaps across and within genders, in the same sentences."}],
        "tables": [
            {
                "caption": "Occupations at either end of the gap female − male, mean over pairs and tenses, PM units.",
                "columns": ["more with female terms", "gap", "more with male terms", "gap "],
                "rows": [[a, round(x, 3), b, round(y, 3)] for a, x, b, y in ends],
            }
        ],
    }


def _labelled(run: Run, found: dict[str, Interval], scores: np.ndarray, texts: Texts) -> dict[str, Any]:
    bad = np.array(texts.harmful)
    drawn = figures.histogram_pair(scores[~bad], scores[bad], ("safe", "harmful"), xlabel="score, PM units")
    figures.save(drawn, run.figures, "labelled")
    return {
        "title": "Replies labelled safe and harmful",
        "text": "Only the first reply of each conversation: later ones follow what it led to.",
        "numbers": {k: v.as_dict() for k, v in found.items()},
        "figures": [{"file": "labelled.svg", "caption": "Scores of first replies by their label, with means."}],
    }
