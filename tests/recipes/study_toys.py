"""What the tests of the studies share: byte models of two layers, a short PPO run, comparisons of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from truing.configs import PPOTrain
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.runs import Run
from truing.train.ppo import train_ppo
from truing.types import Comparison, Dialogue

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
PROMPTS = [Dialogue().ask(f"Is {i} even?") for i in range(12)]


def toy_lm(seed: int = 0, width: int = 32) -> LM:
    """A random byte model, wide enough awake that its replies differ."""
    model = new_model("llama", layers=2, width=width, heads=2, vocab_size=264, max_positions=128, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return LM(model, byte_tokenizer(), name=f"toy-{width}")


def save_models(folder: Path, seed: int = 0) -> dict[str, Any]:
    """``policy`` and ``pm`` as folders, for a config."""
    lm = toy_lm(seed)
    lm.save(folder / "lm")
    pm = PreferenceModel.new(lm, seed=seed + 1)
    with torch.no_grad():
        pm.head.weight.copy_(torch.randn(pm.head.weight.shape, generator=torch.Generator().manual_seed(seed)))
    pm.save(folder / "pm")
    return {"policy": str(folder / "lm"), "pm": str(folder / "pm")}


def toy_policy(folder: Path, name: str = "rlhf", **options: Any) -> Run:
    """A run of PPO on the saved models, evaluated after every step."""
    small: dict[str, Any] = {"steps": 5, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 5}
    small |= {"learning_rate": 2e-3, "kl_coef": 0.0, "eval_every": 1, "out": folder / name, **QUICK}
    models = save_models(folder) if not (folder / "lm").exists() else {}
    models = models or {"policy": str(folder / "lm"), "pm": str(folder / "pm")}
    run = train_ppo(PPOTrain(prompts=[], **models | small | options), prompts=PROMPTS[:8], eval_prompts=PROMPTS[8:])
    assert isinstance(run, Run)
    return run


def comparisons(n: int = 40, kind: Any = "helpful", start: int = 0) -> list[Comparison]:
    """Helpful ones prefer yes, harmless ones no: whoever learns one kind alone is wrong about the other."""
    yes, no = ("yes", "no") if kind == "helpful" else ("no", "yes")
    out = []
    for i in range(start, start + n):
        first = Dialogue().ask(f"Is {i} even?")
        out.append(Comparison(first, f"{yes} {i % 7}", f"{no} {i % 5}", kind=kind, id=f"{kind}-{i}"))
        if i % 3 == 0:  # a second turn of the same conversation
            later = first.reply(f"{yes} {i % 7}").ask("And now?")
            out.append(Comparison(later, f"{yes} {i % 3}", f"{no} {i % 4}", kind=kind, id=f"{kind}-{i}b"))
    return out
