"""The alignment tax over all tasks: means, the table before and after, and how much of a gap was closed.

(2204.05862 §4.6.1, Fig 28; §7.1.) Numbers of one model come as {number of examples: {``METRIC/TASK``: Metric}}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truing import stats
from truing.measure.harness_numbers import Metric
from truing.stats import Interval
from truing.stats.intervals import resampled_sums

ByShots = Mapping[int | None, Mapping[str, Metric]]
SHARES = ("acc", "exact_match")
"""What counts as a task's score, the first that it has; else its first metric that is right or wrong per question."""
N_BOOT = 2000


def named(found: ByShots) -> dict[str, Metric]:
    """All metrics of a model by name; with several numbers of examples names end in ``/K-shot``."""
    return {_name(name, shots, found): m for shots, metrics in found.items() for name, m in metrics.items()}


def _name(name: str, shots: int | None, found: ByShots) -> str:
    return name if len(found) == 1 else f"{name}/{shots}-shot"


def score_of(metrics: Mapping[str, Metric], task: str) -> Metric | None:
    """The metric that stands for a task in means: whether each question is answered right."""
    mine = {n.partition("/")[0]: m for n, m in metrics.items() if n.partition("/")[2] == task and m.unit == "share"}
    return next((mine[name] for name in (*SHARES, *mine) if name in mine), None)


def task_means(models: Sequence[ByShots], tasks: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """``accuracy/mean``: the mean of the tasks' scores, each task weighing the same; of two models also the change.

    Intervals resample questions within each task. Nothing where fewer than two tasks have a score, nor where one
    model was asked once: a table of one column needs no mean.
    """
    out: dict[str, Interval] = {}
    if len(models) == len(models[-1]) == 1:
        return out
    for shots in models[-1]:
        scores = [[score_of(by[shots], task) for task in tasks] for by in models]
        columns = [[np.array(m.rows) for m in some if m is not None] for some in scores]
        if len(columns[0]) < 2:
            continue
        name = _name("accuracy/mean", shots, models[-1])
        out[name] = _mean_of(columns[-1], seed)
        if len(models) == 2:
            out[f"{name}/before"] = _mean_of(columns[0], seed)
            gaps = [b - a for a, b in zip(*columns, strict=True)]
            out[f"{name}/difference"] = _mean_of(gaps, seed)
    return out


def _mean_of(columns: Sequence[np.ndarray], seed: int) -> Interval:
    """Mean of the columns' means; a bootstrap that draws from each column anew."""
    draws = np.mean(
        [resampled_sums(c[:, None].astype(float), N_BOOT, seed + i)[:, 0] / len(c) for i, c in enumerate(columns)], 0
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(np.mean([c.mean() for c in columns]))
    return Interval(value, min(low, value), max(high, value), sum(map(len, columns)), "share")


def gaps_closed(models: Sequence[ByShots], tasks: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """``gap_closed/TASK/K-shot`` of TruthfulQA: the part of the first model's gain from K examples that the second
    model has without any (§7.1: a bit under half). Undefined where examples do not help the first model.
    """
    if len(models) < 2 or 0 not in models[0]:
        return {}
    before, after = models
    out = {}
    for task in (t for t in tasks if "truthfulqa" in t):
        for shots in (k for k in before if k):
            with_examples, without, now = (
                score_of(before[shots], task),
                score_of(before[0], task),
                score_of(after[0], task),
            )
            if with_examples is None or without is None or now is None:
                continue
            out[f"gap_closed/{task}/{shots}-shot"] = gap_closed(without.rows, now.rows, with_examples.rows, seed)
    return out


def gap_closed(without: Sequence[float], now: Sequence[float], with_examples: Sequence[float], seed: int) -> Interval:
    """(now − without) / (with_examples − without), means over the same questions, resampled together."""

    def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float | None:
        gap = c.mean() - a.mean()
        return float((b.mean() - a.mean()) / gap) if gap > 0 else None

    found = stats.bootstrap(ratio, [without, now, with_examples], seed=seed, unit="share of the gap")
    if found.value is not None:
        return found
    return Interval(None, None, None, found.n, found.unit, "examples do not help the first model: no gap to close")


def tax_table(numbers: Mapping[str, Interval], several: bool) -> list[dict[str, Any]]:
    """The table of the alignment tax: each number of both models, and the paired difference with its interval."""
    table = []
    for name in (n.removesuffix("/difference") for n in numbers if n.endswith("/difference")):
        metric, _, task = name.partition("/")
        shots = {}
        if several:
            task, _, k = task.rpartition("/")
            shots = {"shots": int(k.removesuffix("-shot"))}
        values = {"before": numbers[f"{name}/before"].value, "after": numbers[name].value}
        gap = numbers[f"{name}/difference"].as_dict()
        ends = {k: gap[k] for k in ("low", "high", "n")}
        table.append({"task": task, "metric": metric, **shots, **values, "difference": gap["value"], **ends})
    return table
