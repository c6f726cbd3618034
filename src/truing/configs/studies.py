"""Options of the studies of RLHF: frontier, robustness, tension."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from truing.configs.common import Common, alias, shown


@dataclass(kw_only=True)
class Frontier(Common):
    """Reward against √KL, its bound, and best of n at its exact KL (2204.05862 §4.3)."""

    runs: Annotated[tyro.conf.Positional[list[str]], shown("RUN…")]
    """Runs of rlhf train."""
    best_of: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    """Numbers of replies to choose the best of."""
    samples: int = 0
    """Replies of the start to each evaluation prompt; 0: as many as the largest --best-of."""


@dataclass(kw_only=True)
class StudyPM:
    """How a study trains its preference models; as in pm train."""

    pm_learning_rate: float = 1e-5
    """Learning rate of preference models."""
    pm_head_learning_rate: float | None = None
    """Learning rate of their heads; default: the same."""
    pm_batch_size: int = 32
    """Pairs per optimiser step."""
    pm_epochs: int = 1
    """Passes over the comparisons."""
    max_length: int = 1024
    """Tokens a dialogue may have."""
    frozen_layers: int = 0
    """Lower layers that stay frozen, in preference models and policies."""
    eval_share: float = 0.1
    """Share of conversations held out: preference models are measured on them, policies answer their prompts."""


@dataclass(kw_only=True)
class StudyPPO:
    """How a study trains its policies; as in rlhf train, defaults of the paper's robustness study (App B.1)."""

    prompts: list[str] = field(default_factory=list)
    """Files of prompts for RL; default: the prompts of the comparisons that the preference model was trained on."""
    samples: int = 200_000
    """Replies that each policy is trained on."""
    evaluations: int = 20
    """Evaluations on the way, evenly spread."""
    eval_prompts: int = 64
    """Held-out prompts answered at each of them, at most; each --samples-per-prompt times."""
    prompts_per_step: int = 8
    """Prompts drawn per step."""
    samples_per_prompt: int = 4
    """Replies sampled for each."""
    ppo_epochs: Annotated[int, alias("num-ppo-epochs")] = 2
    """K: passes over each batch of samples."""
    minibatches: Annotated[int, alias("num-mini-batches")] = 1
    """Optimiser steps per pass."""
    max_new_tokens: Annotated[int, alias("response-length")] = 32
    """Tokens a reply may have."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""
    kl_coef: float = 0.001
    """λ of r = PM − λ·KL(π‖π0)."""
    learning_rate: Annotated[float, alias("lr")] = 1e-6
    """Peak learning rate of policies."""
    value_learning_rate: float | None = None
    """Learning rate of value models; default: the policy's."""
    warmup_samples: int = 25_000
    """Linear warm-up over this many samples."""


@dataclass(kw_only=True)
class Robustness(Common, StudyPM, StudyPPO):
    """Does a policy learn what people like, or what its preference model likes? (2204.05862 §4.2)."""

    models: Annotated[list[str], alias("init", "policy")]
    """Language models, smallest first: each becomes a train-PM, a test-PM and a policy."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files of comparisons, split in two halves by conversation."""
    scan: Literal["both", "largest", "own"] = "both"
    """largest: every policy against the largest train-PM; own: against the one of its own size."""
    gold: str = ""
    """What is really wanted, where that is known: MODULE:FUNCTION (dialogues → one number each); trains nothing."""


@dataclass(kw_only=True)
class Tension(Common, StudyPM, StudyPPO):
    """What helpfulness and harmlessness take from one another (2204.05862 §5.1)."""

    models: Annotated[list[str], alias("init", "policy")]
    """Language models; each becomes a preference model at every point of the scans."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files of comparisons of both kinds."""
    total: int = 0
    """Comparisons at every point of the mix scan; 0: as many as the rarer kind has."""
    step: float = 0.1
    """Share of harmless comparisons between two points of the mix scan, 0 to 1."""
    weights: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0, 4.0, 10.0])
    """Values of λ in L = L_helpful + λ·L_harmless, trained on all comparisons; none: no such scan."""
    rl_shares: list[float] = field(default_factory=list)
    """Shares of harmless prompts in RL, of the last model, against its preference model trained on all; none: no RL."""
