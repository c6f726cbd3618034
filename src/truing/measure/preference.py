"""``truing pm eval``: is a preference model right, does it know how sure to be, and does it only count characters?

Everything is computed from score gaps within pairs, so a constant added to all scores changes no number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from truing.configs import PMEval
from truing.data.comparisons import Loaded, conversation_key, read_comparisons
from truing.data.files import write_rows
from truing.measure.baselines import baseline_numbers
from truing.measure.labels import in_chunks
from truing.measure.preference_groups import above_thresholds, group_numbers
from truing.models.compute import choose
from truing.models.heads import PreferenceModel
from truing.runs import Run
from truing.stats import Interval, Reliability, bootstrap, mean_interval
from truing.text import to_hh
from truing.train.cost import reading, timed
from truing.train.pm_numbers import confidence, correctness, kinds_line, preference_numbers, reliability_of
from truing.types import Comparison, Dialogue

Scorer = Callable[[Sequence[Dialogue]], np.ndarray]
LENGTH_MATCH = 0.1
"""Two replies are of matched length if the shorter lacks at most this share of the longer one's characters."""
SAMPLES = 50
"""Pairs shown in samples.jsonl."""
KEPT = "scores-so-far.jsonl"
"""Scores of the chunks that are done, so that a killed run computes only the rest."""
CHUNK = 512
"""Pairs scored between two savings."""


@dataclass(frozen=True, slots=True)
class PMResult:
    """Numbers, one row per comparison in order, and the calibration chart."""

    numbers: dict[str, Interval]
    rows: list[dict[str, Any]]
    reliability: Reliability


def evaluate_pm(score: Scorer, comparisons: Sequence[Comparison], *, seed: int = 0) -> PMResult:
    """Accuracy and calibration of a scoring function on comparisons; intervals resample whole conversations.

    ``score`` takes dialogues that end in a reply and returns one number each, float [N]; it is called once, with
    both dialogues of each pair side by side. Numbers: those of ``train.pm_numbers.preference_numbers``, and
    accuracy_length_matched (pairs whose lengths differ by at most 10%) and length_correlation (within pairs).
    Raises ValueError without comparisons or for scores of the wrong number or not finite.
    """
    if not comparisons:
        raise ValueError("There are no comparisons to evaluate on.")
    dialogues = [d for c in comparisons for d in (c.chosen_dialogue, c.rejected_dialogue)]
    scores = np.asarray(score(dialogues), dtype=np.float64)
    if scores.shape != (len(dialogues),) or not np.isfinite(scores).all():
        raise ValueError(
            f"Scoring {len(dialogues)} dialogues gave {scores.shape} numbers; expected as many, all finite."
        )
    chosen, rejected = scores[0::2], scores[1::2]
    gaps = chosen - rejected
    numbers = preference_numbers(gaps, comparisons, seed=seed) | _length_numbers(gaps, comparisons, seed)
    right = correctness(gaps)
    conversations: dict[str, int] = {}
    rows = [
        {
            "id": c.id or i + 1,
            "cluster": f"conversation {conversations.setdefault(conversation_key(c), len(conversations) + 1)}",
            "kind": c.kind,
            **({"source": c.source} if c.source else {}),
            "chosen": float(chosen[i]),
            "rejected": float(rejected[i]),
            "accuracy": float(right[i]),
            "chosen_characters": len(c.chosen),
            "rejected_characters": len(c.rejected),
        }
        for i, c in enumerate(comparisons)
    ]
    return PMResult(numbers, rows, reliability_of(gaps, comparisons))


def _length_numbers(gaps: np.ndarray, comparisons: Sequence[Comparison], seed: int) -> dict[str, Interval]:
    """Does the score follow length? (2204.05862; a model that only counts characters is caught here.)"""
    keys = np.array([conversation_key(c) for c in comparisons])
    longer = np.array([len(c.chosen) - len(c.rejected) for c in comparisons], dtype=np.float64)
    most = np.array([max(len(c.chosen), len(c.rejected)) for c in comparisons])
    matched = np.abs(longer) <= LENGTH_MATCH * most
    accuracy = mean_interval(correctness(gaps)[matched], keys[matched], unit="share", seed=seed)
    if accuracy.value is None:
        accuracy = Interval(None, None, None, 0, "share", "no pair has replies of nearly equal length")
    correlation = bootstrap(within_pairs, [gaps, longer], keys, seed=seed, unit="correlation")
    if correlation.value is None:
        note = "all scores or all lengths are equal within pairs"
        correlation = Interval(None, None, None, correlation.n, "correlation", note)
    return {"accuracy_length_matched": accuracy, "length_correlation": correlation}


def within_pairs(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation within pairs of two quantities, from their differences [P]; which side is first does not matter.

    Each pair is centred on its own mean, as in a regression with one intercept per pair: Σ xy / √(Σ x² Σ y²). None
    if either never differs.
    """
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float(np.clip((x * y).sum() / scale, -1, 1)) if scale else None


def more_numbers(
    rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Comparison], *, seed: int = 0
) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Groups, thresholds, mean confidence and baselines of the rows of `evaluate_pm`; and the scan of thresholds."""
    chosen, rejected = (np.array([row[side] for row in rows]) for side in ("chosen", "rejected"))
    gaps, keys = chosen - rejected, [row["cluster"] for row in rows]
    sure = mean_interval(confidence(gaps), keys, unit="probability", seed=seed)
    above, scan = above_thresholds(chosen, rejected, comparisons, seed=seed)
    numbers = {"confidence": sure, **group_numbers(gaps, comparisons, seed=seed), **above}
    return numbers | baseline_numbers(gaps, comparisons, seed=seed), scan


def pm_eval(config: PMEval) -> Run | dict[str, Any]:
    """The verb ``pm eval``: numbers, ``reliability.csv``, ``rows.jsonl`` with centred scores, ``samples.jsonl``.

    Accuracy on pairs above rising thresholds stands in ``thresholds.csv``.

    Rows with unequal prompts or identical replies are left out and counted in the notes, as ``data check`` counts
    them. The same call again resumes where it was killed. Raises DataError for rows that cannot be read.
    """
    loaded = _read(config.files)
    comparisons = loaded.comparisons
    if config.dry_run:
        return {"lines": _expected(config, comparisons)}
    slug = f"{Path(config.pm).name}-{Path(config.files[0]).stem}"
    run = Run.open("pm eval", config, data_files=config.files, slug=slug)
    if run.done:
        return run
    compute = run.compute(config)
    pm = PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype)
    found = in_chunks(
        run,
        KEPT,
        comparisons,
        lambda chunk, _: _scores(pm, chunk, config.max_length),
        label="Pairs",
        max_time=config.max_time,
        size=CHUNK,
    )
    if not found:
        run.stop({}, ["Stopped before the first pairs were scored; the same command goes on."])
        return run
    scores = np.array([row[side] for row in found for side in ("chosen", "rejected")])
    every, comparisons = len(comparisons), comparisons[: len(found)]
    result = evaluate_pm(lambda _: scores, comparisons, seed=config.seed)
    more, scan = more_numbers(result.rows, comparisons, seed=config.seed)
    numbers = result.numbers | more
    print(kinds_line(numbers), file=sys.stderr)
    write_rows(run.path / "thresholds.csv", scan)
    write_rows(run.path / "rows.jsonl", result.rows)
    write_rows(run.path / "reliability.csv", [b.as_dict() for b in result.reliability.bins])
    run.write_samples(_samples(comparisons, result.rows))
    notes = _notes(loaded, numbers)
    if len(found) < every:
        left = f"Stopped after {len(found)} of {every} pairs; the same command goes on."
        run.stop(numbers, [*notes, left])
        return run
    run.finish(numbers, notes)
    (run.path / KEPT).unlink()
    return run


def _read(files: Sequence[str]) -> Loaded:
    """Comparisons of all files, those of several under their file's name where they have no source."""
    parts = [read_comparisons(name) for name in files]
    counts = {name: sum(part.counts[name] for part in parts) for name in parts[0].counts}
    named = [
        replace(c, source=c.source or (Path(name).name.split(".")[0] if len(files) > 1 else ""))
        for name, part in zip(files, parts, strict=True)
        for c in part.comparisons
    ]
    return Loaded(named, counts, [problem for part in parts for problem in part.problems])


def _scores(pm: PreferenceModel, pairs: Sequence[Comparison], max_length: int) -> list[dict[str, float]]:
    """Centred scores of both replies of each pair."""
    dialogues = [d for c in pairs for d in (c.chosen_dialogue, c.rejected_dialogue)]
    scores = pm.score(dialogues, max_length=max_length).astype(float).tolist()
    return [{"chosen": c, "rejected": r} for c, r in zip(scores[0::2], scores[1::2], strict=True)]


def _expected(config: PMEval, comparisons: Sequence[Comparison]) -> list[str]:
    """What it would take: tokens counted, time and memory measured on a part."""
    compute = choose(config.device, config.dtype, config.threads)
    pm, loading = timed(lambda: PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype))

    def work(start: int, stop: int) -> None:
        _scores(pm, comparisons[start:stop], config.max_length)

    cost = reading(pm, work, len(comparisons), CHUNK)
    fake = np.arange(2 * len(comparisons)) % 7

    def number() -> None:
        more_numbers(evaluate_pm(lambda _: fake, comparisons, seed=config.seed).rows, comparisons, seed=config.seed)

    _, numbers = timed(number)
    return [f"{len(comparisons):,} pairs.", *(loading + cost + numbers).lines(compute)]


def _notes(loaded: Loaded, numbers: dict[str, Interval]) -> list[str]:
    notes = []
    counts = {name.replace("_", " "): loaded.counts.get(name, 0) for name in ("unequal_prompts", "identical_pairs")}
    left_out = [f"{n} {name}" for name, n in counts.items() if n]
    if left_out:
        notes.append(f"Left out of {loaded.counts['rows']} rows: {', '.join(left_out)}.")
    unsure = sum(c.strength == 1 for c in loaded.comparisons)
    if unsure:
        notes.append(f"{unsure} pairs carry strength 1 (unsure); they count here like the others.")
    longer, shorter = numbers["longer_wins"].value or 0.0, numbers["shorter_wins"].value or 0.0
    rule = "the longer" if longer >= shorter else "the shorter"
    notes.append(f"Always preferring {rule} reply would be right on {max(longer, shorter):.1%} of the pairs.")
    return notes


def _samples(comparisons: Sequence[Comparison], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs on which the model is most surely wrong, then the first others."""
    gap = [row["chosen"] - row["rejected"] for row in rows]
    worst = [i for i in sorted(range(len(rows)), key=gap.__getitem__)[: SAMPLES // 2] if gap[i] < 0]
    shown = list(dict.fromkeys([*worst, *range(min(SAMPLES, len(rows)))]))[:SAMPLES]
    return [
        {
            "id": rows[i]["id"],
            "kind": rows[i]["kind"],
            "prompt": to_hh(comparisons[i].prompt),
            "chosen": comparisons[i].chosen,
            "rejected": comparisons[i].rejected,
            "score_chosen": round(rows[i]["chosen"], 4),
            "score_rejected": round(rows[i]["rejected"], 4),
        }
        for i in shown
    ]
