"""Simulated people: they read two replies, feel the gold score of each, and choose with noise.

A choice is Bradley-Terry on the gold score (2204.05862 §19 notes): P(first) = σ((g₁ − g₂) / τ), with one temperature
τ set so that people agree with gold at a chosen rate. The button pressed follows the felt margin. Everything they
say carries a worker id and a source that begin with "simulated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from truing.collect.gold import gold
from truing.data.comparisons import from_red_team_choice
from truing.data.prompts import Prompt
from truing.types import Comparison, Kind

SOURCE = "simulated people"
STRENGTHS = (0.5, 1.2, 2.2)
"""Felt margins (in units of τ) at which the button grows from 1 (unsure) to 2, 3 and 4."""


@dataclass(frozen=True)
class Reply:
    """A reply on offer: the arm that wrote it and its text."""

    arm: str
    text: str


@dataclass(frozen=True)
class Crowd:
    """A pool of simulated workers with one temperature τ; ``seed`` fixes who judges what and all their noise."""

    temperature: float
    workers: int = 20
    seed: int = 0

    def choose(self, prompt: Prompt, a: Reply, b: Reply, kind: Kind, conversation: str, turn: int = 0) -> Comparison:
        """One comparison of two replies. In red-team mode the person clicks the MORE HARMFUL reply, as on the screen,
        and the export turns the click round once.

        The outcome depends on (seed, conversation, turn) and the two texts only, not on the order of calls.
        """
        rng = np.random.default_rng([self.seed, *_words(conversation), turn])
        worker = f"simulated-{rng.integers(self.workers):02d}"
        margin = (gold(prompt, a.text, kind).score - gold(prompt, b.text, kind).score) / self.temperature
        felt = margin + rng.logistic()
        strength = 1 + int(np.searchsorted(STRENGTHS, abs(felt)))
        better, worse = (a, b) if felt > 0 else (b, a)
        source = f"{SOURCE}: {conversation}"
        if kind == "harmless":
            made = from_red_team_choice(prompt.dialogue, more_harmful=worse.text, other=better.text)
        else:
            made = Comparison(prompt.dialogue, chosen=better.text, rejected=worse.text)
        return replace(
            made,
            strength=strength,
            kind=kind,
            worker=worker,
            arms=(better.arm, worse.arm),
            source=source,
            id=f"{conversation}/{turn}",
        )

    def all_pairs(self, prompt: Prompt, replies: Sequence[Reply], kind: Kind, conversation: str) -> list[Comparison]:
        """Every pair of the replies judged once; pairs of equal texts are left out."""
        pairs = [(a, b) for i, a in enumerate(replies) for b in replies[i + 1 :] if a.text.strip() != b.text.strip()]
        return [self.choose(prompt, a, b, kind, conversation, turn) for turn, (a, b) in enumerate(pairs)]


def crowd_with_agreement(gaps: Sequence[float], agreement: float, *, workers: int = 20, seed: int = 0) -> Crowd:
    """A crowd whose clicks agree with gold at the rate ``agreement`` on pairs with these gold ``gaps``.

    The rate is over all clicks on pairs that differ in gold; the paper saw about 63% between researchers and
    workers (2204.05862 §2.1). Raises ValueError outside 0.5-1 (both excluded) or without a gap.
    """
    sizes = np.abs(np.asarray(gaps, dtype=float))
    sizes = sizes[sizes > 0]
    if not 0.5 < agreement < 1:
        raise ValueError(f"Agreement {agreement} is out of reach: give a rate above 0.5 and below 1, such as 0.7.")
    if not len(sizes):
        raise ValueError("No pair differs in gold, so people cannot agree with it at any rate; sample more replies.")

    def excess(log_t: float) -> float:
        return float(np.mean(1 / (1 + np.exp(-np.minimum(sizes / np.exp(log_t), 700.0))))) - agreement

    return Crowd(float(np.exp(brentq(excess, -12.0, 12.0))), workers=workers, seed=seed)


def _words(text: str) -> list[int]:
    """A text as integers for a seed sequence."""
    data = text.encode()
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
