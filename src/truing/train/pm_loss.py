"""Losses of preference models, and how much each comparison counts: kinds, strengths, margins, mixtures of files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from truing.configs import PMTrain
from truing.train.loop import rng
from truing.types import Comparison

STRENGTHS = (2, 3, 4)
"""Strengths that are trained on; 1 is unsure."""


def pm_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean over pairs of log(1 + exp(rejected − chosen)), nats; scores [B] each (Askell et al. 2021, Eq 3.1).

    >>> round(pm_loss(torch.zeros(3), torch.zeros(3)).item(), 4)
    0.6931
    """
    return pair_losses(chosen, rejected).mean()


def pair_losses(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, binarised: bool = False) -> Tensor:
    """Loss of each pair, nats [B]: log(1 + exp(margin − (chosen − rejected))).

    ``binarised`` judges each reply by itself: −log σ(chosen) − log σ(−rejected) (Askell et al. 2021 §4.3).
    """
    if binarised:
        return F.softplus(-chosen) + F.softplus(rejected)
    return F.softplus(margin - (chosen - rejected))


def loss_weights(comparisons: Sequence[Comparison], config: PMTrain) -> np.ndarray:
    """Weight of each comparison's loss [P]: λ for harmless ones, times that of its strength."""
    of_strength = dict(zip(STRENGTHS, config.strength_weights, strict=False))
    of_kind = {"harmless": config.harmless_weight}
    return np.array([of_kind.get(c.kind, 1.0) * of_strength.get(c.strength or 0, 1.0) for c in comparisons])


def margins(comparisons: Sequence[Comparison], config: PMTrain) -> np.ndarray:
    """Margin of each comparison in PM units [P]; of three given, none for those without a strength."""
    if len(config.margin) == 1:
        return np.full(len(comparisons), config.margin[0])
    of_strength = dict(zip(STRENGTHS, config.margin, strict=False))
    return np.array([of_strength.get(c.strength or 0, 0.0) for c in comparisons])


def times_seen(parts: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """How often each comparison is seen in a pass, int [P], where ``parts[p]`` is the place of its file.

    A file of n rows and weight w is seen round(w·n) times in all: every row ⌊w⌋ times, and rows that follow from
    (seed, epoch) once more. Without weights every row is seen once.
    """
    times = np.ones(len(parts), dtype=np.int64)
    for part, weight in enumerate(weights):
        rows = np.flatnonzero(parts == part)
        times[rows] = math.floor(weight)
        more = int(seen_in_all(len(rows), weight)) - math.floor(weight) * len(rows)
        times[rng(seed, epoch, part).permutation(rows)[:more]] += 1
    return times


def seen_in_all(rows: int, weight: float) -> int:
    """Comparisons that a file of so many rows gives to a pass: round(weight · rows), halves up."""
    return math.floor(weight * rows + 0.5)


def check_losses(config: PMTrain) -> None:
    """Refuse weights and margins that mean nothing."""
    for name, counts in (("weights", ()), ("strength_weights", (0, 3)), ("margin", (0, 1, 3))):
        given: list[float] = getattr(config, name)
        if any(not math.isfinite(x) or x < 0 for x in given):
            raise ValueError(f"{name} are {given}; expected numbers of 0 or more.")
        if counts and len(given) not in counts:
            expected = "one number, or three for" if name == "margin" else "three numbers, for"
            raise ValueError(f"{name} has {len(given)} numbers; expected {expected} strengths 2, 3 and 4.")
    if not math.isfinite(config.harmless_weight) or config.harmless_weight < 0:
        raise ValueError(f"harmless_weight is {config.harmless_weight}; expected 0 or more, 1 for an equal weight.")
    if config.binarised and config.margin:
        raise ValueError("--binarised judges each reply by itself, so it has no --margin between two. Leave one out.")


def tensor_of(values: np.ndarray, like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and on the device of another."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
