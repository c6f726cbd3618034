"""What P(IK) is worth on held-out questions: discrimination, Brier score beside the best constant, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from truing import stats
from truing.data.asking import question_key
from truing.stats import Interval, Reliability
from truing.types import Answers

THRESHOLDS = (0.5, 0.25, 0.0)
"""A question is known if more than this share of its answers is right: the paper's, its own for GSM8k, any."""
FEWEST = 0.05
"""A threshold is used if at least this share of the training questions lies on each side of it."""
NAMES = ("auroc", "brier", "brier_constant", "skill", "ece", "ece_null_95", "threshold")


def rates_of(answers: Sequence[Answers]) -> np.ndarray:
    """Share of right answers per question, float64 [N]. Raises ValueError for a question without answers."""
    for a in answers:
        if a.rate is None:
            raise ValueError(f"Question {a.question.id or a.question.question!r} has no answers, so it has no label.")
    return np.array([a.rate for a in answers], dtype=np.float64)


def choose_threshold(rates: ArrayLike) -> float:
    """The paper's 0.5 if some questions lie on either side, else 0.25 (Fig 17), else 0; from training rates [N]."""
    x = np.asarray(rates, dtype=np.float64)
    for threshold in THRESHOLDS:
        known = int((x > threshold).sum())
        if min(known, len(x) - known) >= max(1, FEWEST * len(x)):
            return threshold
    return THRESHOLDS[0]


def measure_p_ik(
    p: ArrayLike, answers: Sequence[Answers], *, threshold: float = 0.5, seed: int = 0
) -> dict[str, Interval]:
    """Numbers of P(IK) ``p`` [N] on graded answers to N questions; intervals resample questions.

    ``auroc``, ``brier``, ``brier_constant`` and ``skill`` are of "more than ``threshold`` of the answers is right"
    (strictly; 2207.05221 §5, Table 1). ``ece`` is of the share of right answers itself, as in the paper's charts;
    ``ece_null_95`` draws one answer per question. Each also as ``NAME/TASK``. Undefined numbers are None with a note.
    Raises ValueError for probabilities outside 0–1, another number of them, or questions without answers.
    """
    x, rates = np.asarray(p, dtype=np.float64), rates_of(answers)
    if x.shape != rates.shape or ((x < 0) | (x > 1)).any():
        raise ValueError(f"Expected {len(rates)} probabilities from 0 to 1, one per question; got {x.shape}.")
    keys = np.array([question_key(a.question) for a in answers], dtype=object)
    tasks = np.array([a.question.task for a in answers], dtype=object)
    numbers = _numbers(x, rates, keys, threshold, seed)
    for task in sorted({t for t in tasks if t}):
        where = tasks == task
        found = _numbers(x[where], rates[where], keys[where], threshold, seed)
        numbers |= {f"{name}/{task}": found[name] for name in NAMES}
    return numbers


def _numbers(p: np.ndarray, rates: np.ndarray, keys: np.ndarray, threshold: float, seed: int) -> dict[str, Interval]:
    known = (rates > threshold).astype(np.float64)
    numbers = known_numbers(p, known, keys.tolist(), f"more than {threshold:g} of its answers right", seed)
    numbers |= stats.calibration(p, rates, keys.tolist(), seed=seed)
    numbers["threshold"] = Interval(threshold, None, None, len(p), "share of answers")
    return numbers


def known_numbers(p: np.ndarray, known: np.ndarray, clusters: list[str], what: str, seed: int) -> dict[str, Interval]:
    """auroc, brier, brier_constant, skill of probabilities [N] of outcomes 0 or 1 [N]."""
    count = int(known.sum())
    one_class = f"{count} of {len(known)} rows have {what}: with one class only this is undefined"

    def number(statistic: object, arrays: list[np.ndarray], unit: str) -> Interval:
        found = stats.bootstrap(statistic, arrays, clusters, seed=seed, unit=unit)  # type: ignore[arg-type]
        if found.value is None and len(known):
            found = Interval(None, None, None, len(known), unit, one_class)
        return found

    return {
        "auroc": number(stats.auroc, [p, known], "probability"),
        "brier": stats.mean_interval((p - known) ** 2, clusters, unit="probability²", seed=seed),
        "brier_constant": number(stats.brier_constant, [known], "probability²"),
        "skill": number(stats.skill, [p, known], "share"),
    }


def reliability_of(p: ArrayLike, answers: Sequence[Answers]) -> Reliability:
    """Calibration chart of P(IK) against the share of right answers (2207.05221 Fig 12)."""
    return stats.reliability(p, rates_of(answers), clusters=[question_key(a.question) for a in answers])
