"""Toy models of PPO's tests: random byte models of 2 layers × 32, wide enough awake that replies differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from truing.configs import PPOTrain
from truing.data.prompts import PromptRow
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.split import top_parameters
from truing.train.ppo import PPO
from truing.types import Dialogue

PROMPTS = [Dialogue().ask(text) for text in ("Hi", "Hi there", "A colour?", "Bye")]


def toy_lm(seed: int = 0, scale: float = 8.0, vocab: int = 264, shape: Any = "llama") -> LM:
    """A random policy, far from flat; 264 tokens leave room for a preference model's own, 259 do not."""
    model = new_model(shape, layers=2, width=32, heads=2, vocab_size=vocab, max_positions=128, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return LM(model, byte_tokenizer())


def toy_pm(lm: LM, seed: int = 1, frozen: int = 0) -> PreferenceModel:
    """A random preference model; its lower ``frozen`` layers are the policy's."""
    pm = PreferenceModel.new(lm, seed=seed, frozen_layers=frozen)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in top_parameters(pm.backbone, frozen) if frozen else []:
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        pm.head.weight.copy_(torch.randn(pm.head.weight.shape, generator=generator))
    pm.reference_mean = 0.7
    return pm


def config(out: Path | None = None, **options: Any) -> PPOTrain:
    """A small run: 4 prompts × 2 replies of at most 6 tokens."""
    small: dict[str, Any] = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 6}
    small |= {"learning_rate": 1e-3, "kl_coef": 0.1, "device": "cpu", "dtype": "float32", "threads": 1}
    return PPOTrain(**{"policy": "toy", "pm": "toy", "prompts": [], "out": out} | small | options)


def toy(pm: PreferenceModel | None = None, lm: LM | None = None, reward_fn: Any = None, **options: Any) -> PPO:
    """A trainer outside any run."""
    torch.manual_seed(0)
    lm = lm or toy_lm()
    rows = [PromptRow(dialogue, str(i), i, "toy") for i, dialogue in enumerate(PROMPTS)]
    if pm is None and reward_fn is None:
        pm = toy_pm(lm)
    return PPO(config(**options), lm, rows, rows[:2], pm=pm, reward_fn=reward_fn)


def exact_kl(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    """Σ_v p(log p − log q) over the last dimension, in nats. Symbols that p excludes (−inf) count 0."""
    p = logp.exp()
    return torch.where(p > 0, p * (logp - logq), 0.0).sum(-1)


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """−Σ_v p log p over the last dimension, in nats."""
    p = logp.exp()
    return -torch.where(p > 0, p * logp, 0.0).sum(-1)
