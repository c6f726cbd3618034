"""What helpfulness and harmlessness take from one another: mixes, and what accuracies on both sides say of them
(2204.05862 §5.1, §4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from truing import stats
from truing.data.comparisons import conversation_key
from truing.stats import Interval
from truing.train.pm_numbers import KINDS, correctness
from truing.types import Comparison

FLAT = 0.01
"""A point is as good as the best if its mean accuracy is at most this much lower."""


def mix(rows: Sequence[Comparison], share: float, total: int, seed: int = 0) -> list[Comparison]:
    """``total`` comparisons of which ``share`` are harmless; a larger share of a kind holds all of a smaller one.

    Raises ValueError if there are too few of a kind.
    """
    harmless = round(share * total)
    out = []
    for kind, count in zip(KINDS, (total - harmless, harmless), strict=True):
        mine = [c for c in rows if c.kind == kind]
        if count > len(mine):
            raise ValueError(
                f"A mix of {total} with {100 * share:g}% harmless needs {count} {kind} comparisons, and there are "
                f"{len(mine)}. Give a smaller --total, or more data."
            )
        order = np.random.default_rng([seed, KINDS.index(kind)]).permutation(len(mine))
        out += [mine[i] for i in order[:count]]
    return out


def sides(gaps: ArrayLike, rows: Sequence[Comparison], seed: int = 0) -> dict[str, Interval]:
    """Accuracy on each kind, and their mean, from score gaps [P] of comparisons; intervals by conversation.

    The mean weighs both kinds alike, however many rows each has.
    """
    right, kinds = correctness(np.asarray(gaps, dtype=np.float64)), np.array([c.kind for c in rows])
    clusters = np.array([conversation_key(c) for c in rows])
    out = {}
    for kind in KINDS:
        keep = kinds == kind
        out[kind] = stats.mean_interval(right[keep], clusters[keep].tolist(), unit="share", seed=seed)
    both = [right, kinds == KINDS[1]]
    out["mean"] = stats.bootstrap(_mean_of_sides, both, clusters.tolist(), seed=seed, unit="share")
    return out


def _mean_of_sides(right: np.ndarray, harmless: np.ndarray) -> float | None:
    if harmless.all() or not harmless.any():
        return None
    return float((right[harmless].mean() + right[~harmless].mean()) / 2)


def best(means: Mapping[float, Interval]) -> float | None:
    """Where a scan's mean accuracy is highest; None if it is nowhere known."""
    known = {x: i.value for x, i in means.items() if i.value is not None}
    return max(known, key=lambda x: known[x]) if known else None


def flatness(means: Mapping[float, Interval]) -> float | None:
    """Share of a scan's points whose mean accuracy is within a point of the best: 1 for a flat top."""
    known = [i.value for i in means.values() if i.value is not None]
    return float(np.mean([x >= max(known) - FLAT for x in known])) if known else None


def normalised(points: Mapping[float, Interval]) -> list[tuple[float, Interval]]:
    """A scan's accuracies over the best of them, for curves of different heights."""
    known = [i.value for i in points.values() if i.value is not None]
    top = max(known, default=0.0) or 1.0

    def scaled(i: Interval) -> Interval:
        value, low, high = (None if x is None else x / top for x in (i.value, i.low, i.high))
        return Interval(value, low, high, i.n, "share of the best")

    return [(x, scaled(i)) for x, i in points.items()]


def helpful_loss(small: ArrayLike, large: ArrayLike, rows: Sequence[Comparison], seed: int = 0) -> Interval:
    """Accuracy on helpful comparisons lost from the smallest weight to the largest, the same pairs under both."""
    keep = np.array([c.kind == KINDS[0] for c in rows])
    clusters = [conversation_key(c) for c, kept in zip(rows, keep, strict=True) if kept]
    before, after = (correctness(np.asarray(x, dtype=np.float64))[keep] for x in (small, large))
    return stats.difference_interval(before, after, clusters, unit="share", seed=seed)


def place_in(data: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """For each score the share of the data's scores below it (ties half): 0.5 is the middle, 1 beyond all data."""
    sorted_, x = np.sort(np.asarray(data, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    return (np.searchsorted(sorted_, x, "left") + np.searchsorted(sorted_, x, "right")) / (2 * len(sorted_))


def places_over(
    rows: Sequence[Mapping[str, Any]], kind: str, data: Sequence[float], seed: int = 0
) -> list[tuple[int, Interval]]:
    """(samples, mean place in the data's scores) of every evaluation's replies to one kind of prompt."""
    out = []
    for samples in sorted({row["samples"] for row in rows}):
        mine = [row for row in rows if row["samples"] == samples and row["kind"] == kind]
        places = place_in(data, np.array([row["score"] for row in mine]))
        ids = [row["id"] for row in mine]
        out.append((int(samples), stats.mean_interval(places, ids, unit="share", seed=seed)))
    return out


def policy_numbers(
    rows: Sequence[Mapping[str, Any]],
    data: Mapping[str, Sequence[float]],
    refused: Callable[[str], bool],
    seed: int = 0,
) -> dict[str, Interval]:
    """Of one policy's evaluations: gain and place in the data by kind, and refusals of helpful prompts, at the end.

    Intervals resample prompts.
    """
    first, last = (
        [r for r in rows if r["step"] == step] for step in (min(r["step"] for r in rows), max(r["step"] for r in rows))
    )
    out = {}
    for kind in KINDS:
        before, after = ([r for r in some if r["kind"] == kind] for some in (first, last))
        ids, scores = [r["id"] for r in after], np.array([r["score"] for r in after])
        start = np.array([r["score"] for r in before])
        out[f"gain/{kind}"] = stats.difference_interval(scores, start, ids, unit="PM units", seed=seed)
        for name, x in ((f"place/{kind}", scores), (f"place/{kind}/before", start)):
            out[name] = stats.mean_interval(place_in(data[kind], x), ids, unit="share", seed=seed)
        if kind == KINDS[0]:
            for name, some in (("refusals", after), ("refusals/before", before)):
                said = [float(refused(r["dialogue"][-1]["content"])) for r in some]
                out[name] = stats.mean_interval(said, ids, unit="share", seed=seed)
    return out
