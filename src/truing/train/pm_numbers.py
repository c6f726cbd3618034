"""What score gaps on comparisons say: accuracy, calibration and the baselines any preference model must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from truing.data.comparisons import conversation_key
from truing.stats import Interval, Reliability, calibration, mean_interval, reliability
from truing.types import Comparison

KINDS = ("helpful", "harmless")


def correctness(gaps: np.ndarray) -> np.ndarray:
    """1 where chosen scores above rejected, 0 where below, one half at a zero gap; [P]."""
    return np.where(gaps > 0, 1.0, np.where(gaps < 0, 0.0, 0.5))


def confidence(gaps: np.ndarray) -> np.ndarray:
    """σ(|Δ|): how sure the model is of the reply it prefers (2204.05862 §3.3, Eq 4.2); [P]."""
    return 1.0 / (1.0 + np.exp(-np.abs(gaps)))


def losses(gaps: np.ndarray) -> np.ndarray:
    """log(1 + exp(rejected − chosen)) of each pair, nats; [P]."""
    return np.logaddexp(0.0, -gaps)


def preference_numbers(gaps: np.ndarray, comparisons: Sequence[Comparison], *, seed: int = 0) -> dict[str, Interval]:
    """Numbers of score gaps (chosen − rejected, float [P]); intervals resample whole conversations.

    accuracy (a zero gap counts half), accuracy/KIND, loss, brier = mean (1 − σ(Δ))², ece and ece_null_95 of
    confidence σ(|Δ|), longer_wins and shorter_wins: the shares of pairs whose chosen reply is strictly longer or
    shorter in characters.
    """
    gaps = np.asarray(gaps, dtype=np.float64)
    clusters = np.array([conversation_key(c) for c in comparisons])
    right = correctness(gaps)

    def mean(values: np.ndarray, unit: str, where: np.ndarray | None = None) -> Interval:
        rows = np.ones(len(values), dtype=bool) if where is None else where
        return mean_interval(values[rows], clusters[rows], unit=unit, seed=seed)

    numbers = {"accuracy": mean(right, "share")}
    kinds = np.array([c.kind for c in comparisons])
    numbers |= {f"accuracy/{kind}": mean(right, "share", kinds == kind) for kind in KINDS if (kinds == kind).any()}
    numbers["loss"] = mean(losses(gaps), "nats")
    numbers |= calibration(confidence(gaps), right, clusters, seed=seed)
    numbers["brier"] = mean((1.0 - 1.0 / (1.0 + np.exp(-np.clip(gaps, -500, 500)))) ** 2, "probability²")
    longer = np.array([len(c.chosen) - len(c.rejected) for c in comparisons])
    numbers["longer_wins"] = mean((longer > 0).astype(float), "share")
    numbers["shorter_wins"] = mean((longer < 0).astype(float), "share")
    return numbers


def reliability_of(gaps: np.ndarray, comparisons: Sequence[Comparison]) -> Reliability:
    """Calibration chart of σ(|Δ|) against accuracy."""
    return reliability(confidence(gaps), correctness(gaps), clusters=[conversation_key(c) for c in comparisons])


def kinds_line(numbers: dict[str, Interval]) -> str:
    """Accuracy by kind with counts: a mixture hides the kind that was learned badly."""
    kinds = {kind: numbers[f"accuracy/{kind}"] for kind in KINDS if f"accuracy/{kind}" in numbers}
    parts = [f"{kind} {x} (n = {x.n})" for kind, x in kinds.items()]
    return f"Held-out accuracy {numbers['accuracy']} (n = {numbers['accuracy'].n}): {', '.join(parts)}."
