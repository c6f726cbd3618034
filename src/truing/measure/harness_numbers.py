"""Numbers of lm-eval's results: each with an interval over questions, and two models compared question by question.

Knows the form of lm-eval's results; imports nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from truing import stats
from truing.stats import Interval

N_BOOT = 200
"""Resamples of a metric that is no mean: lm-eval's own functions may take seconds."""
SAMPLES = 50


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one task: lm-eval's value, and what each question contributes to it.

    ``rows``: by question, in order. ``combine`` makes the value of rows; None is the mean.
    """

    value: float | None
    rows: list[Any]
    combine: Callable[[list[Any]], float] | None
    unit: str

    def interval(self, seed: int = 0) -> Interval:
        """The value with the interval of a bootstrap over questions."""
        if self.value is None:
            return Interval(None, None, None, len(self.rows), self.unit, "lm-eval's value is not a finite number")
        if not self.rows:
            return Interval(self.value, None, None, 0, self.unit, "aggregated by lm-eval, so no interval")
        if self.combine is None:
            return stats.mean_interval(self.rows, unit=self.unit, seed=seed)
        return self._bootstrap(self._at, seed)

    def minus(self, other: Metric, seed: int = 0) -> Interval:
        """This value − that of another model on the same questions, resampled together."""
        if self.value is None or other.value is None or not 0 < len(self.rows) == len(other.rows):
            return Interval(None, None, None, len(self.rows), self.unit, "no rows of the same questions in both")
        if self.combine is None:
            return stats.difference_interval(self.rows, other.rows, unit=self.unit, seed=seed)

        def difference(places: np.ndarray) -> float | None:
            a, b = self._at(places), other._at(places)
            return None if a is None or b is None else a - b

        return self._bootstrap(difference, seed)

    def _at(self, places: np.ndarray) -> float | None:
        assert self.combine is not None
        return _finite(self.combine([self.rows[i] for i in places]))

    def _bootstrap(self, statistic: Callable[[np.ndarray], float | None], seed: int) -> Interval:
        return stats.bootstrap(statistic, [np.arange(len(self.rows))], n_boot=N_BOOT, seed=seed, unit=self.unit)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def measured(result: Mapping[str, Any], tasks: Mapping[str, Any], built: Sequence[Any]) -> dict[str, Metric]:
    """Every number of lm-eval's results as ``METRIC/TASK``, groups after their tasks.

    METRIC is lm-eval's name; a filter stands behind a comma (``exact_match,strict-match``) unless it is ``none``.
    """
    found: dict[str, Metric] = {}
    for name, task in tasks.items():
        for metric, filtered, value in _values(result["results"][name]):
            rows = [s[metric] for s in result["samples"][name] if s["filter"] == filtered and metric in s]
            found[f"{_metric(metric, filtered)}/{name}"] = _as_metric(value, rows, task.aggregation().get(metric))
    for group in (g for top in built if hasattr(top, "get_all_tasks") for g in [top, *top.get_all_groups()]):
        inside = [task.task_name for task in group.get_all_tasks()]
        for metric, filtered, value in _values(result.get("groups", {}).get(group.name, {})):
            key = _metric(metric, filtered)
            parts = [found[f"{key}/{name}"] for name in inside if f"{key}/{name}" in found]
            found[f"{key}/{group.name}"] = _of_group(value, parts)
    return found


def _values(entry: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """(metric, filter, value) of each entry such as ``"acc,none": 0.5``."""
    pairs = [(key.rpartition(",")[0], key.rpartition(",")[2], value) for key, value in entry.items() if "," in key]
    return [(metric, filtered, _finite(value)) for metric, filtered, value in pairs if not metric.endswith("_stderr")]


def _metric(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric},{filtered}"


def _as_metric(value: float | None, rows: list[Any], combine: Callable[[list[Any]], float] | None) -> Metric:
    plain = [_finite(row) for row in rows]
    numbers = [x for x in plain if x is not None]
    if value is not None and numbers and len(numbers) == len(rows) and math.isclose(np.mean(numbers), value):
        return Metric(value, numbers, None, "share" if set(numbers) <= {0.0, 1.0} else "")
    return Metric(value, rows, combine, "")


def _of_group(value: float | None, parts: Sequence[Metric]) -> Metric:
    """A group's number over the questions of all its tasks, each weighing as much as lm-eval lets it."""
    sizes = [len(part.rows) for part in parts]
    for weights in ([1.0] * len(parts), [sum(sizes) / (len(parts) * n) for n in sizes if n]):
        if value is None or len(weights) != len(parts) or any(part.combine for part in parts):
            continue
        rows = [w * row for w, part in zip(weights, parts, strict=True) for row in part.rows]
        if rows and math.isclose(np.mean(rows), value):
            return Metric(value, rows, None, parts[0].unit)
    return Metric(value, [], None, "")


def numbers_of(found: Sequence[Mapping[str, Metric]], seed: int = 0) -> dict[str, Interval]:
    """Every number of the last model; of two also the first model's and the difference last − first."""
    numbers: dict[str, Interval] = {}
    for name, metric in found[-1].items():
        numbers[name] = metric.interval(seed)
        if len(found) == 2 and name in found[0]:
            numbers[f"{name}/before"] = found[0][name].interval(seed)
            numbers[f"{name}/difference"] = metric.minus(found[0][name], seed)
    return numbers


# ---------------------------------------------------------------- what else the run keeps


def task_table(result: Mapping[str, Any], tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which tasks these were: version, examples shown, questions."""
    return [
        {
            "task": name,
            "version": str(result["versions"].get(name, "")),
            "num_fewshot": result["n-shot"].get(name),
            "questions": result["n-samples"][name]["effective"],
        }
        for name in tasks
    ]


def question_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per question: id, task, and every metric that is a number for a single question."""
    rows: dict[str, dict[str, Any]] = {}
    for task, samples in result["samples"].items():
        for s in samples:
            row = rows.setdefault(f"{task}/{s['doc_id']}", {"id": f"{task}/{s['doc_id']}", "task": task})
            values = {_metric(m, s["filter"]): _finite(s.get(m)) for m in s["metrics"]}
            row |= {name: value for name, value in values.items() if value is not None}
    return list(rows.values())


def shown_samples(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Questions spread over all tasks, with what the model said, or both models."""
    flat = [
        [s | {"task": task} for task, some in r["samples"].items() for s in some if s["filter"] == some[0]["filter"]]
        for r in results
    ]
    shown = np.linspace(0, len(flat[0]) - 1, min(len(flat[0]), SAMPLES)).astype(int).tolist()
    words = ("reply",) if len(results) == 1 else ("before", "after")
    return [
        {
            "task": flat[0][i]["task"],
            "prompt": str(flat[0][i]["arguments"][0][0]),
            "answer": str(flat[0][i]["target"]),
            **{word: _said(samples[i]) for word, samples in zip(words, flat, strict=True)},
        }
        for i in shown
    ]


def _said(sample: Mapping[str, Any]) -> str:
    """A reply, the likeliest of several options, or a log-probability."""
    first = [replies[0] for replies in sample["resps"]]
    if isinstance(first[0], str):
        return first[0]
    logprobs = [r[0] if isinstance(r, tuple | list) else r for r in first]
    best = int(np.argmax(logprobs))
    if len(first) == 1:
        return f"{logprobs[0]:.2f} nats"
    texts = [a[1] for a in sample["arguments"]]
    if len(set(texts)) == 1:  # options that stand in the context, such as winogrande's
        texts = [a[0] for a in sample["arguments"]]
    return f"{texts[best].strip()} ({logprobs[best]:.2f} nats)"
