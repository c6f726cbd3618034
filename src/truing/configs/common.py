"""What commands have in common: flags of every command, the optimiser, what of a body is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


def shown(metavar: str) -> object:
    """What the help calls a positional argument."""
    return tyro.conf.arg(metavar=metavar)


def alias(*names: str) -> object:
    """Other names under which a flag is accepted (Hugging Face users' words)."""
    return tyro.conf.arg(aliases=[f"--{n}" for n in names])


@dataclass(kw_only=True)
class Common:
    """Options of every command."""

    out: Annotated[Path | None, alias("output-dir")] = None
    """The run folder itself; without it runs/<name>."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0, mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto measures a matrix product once and takes the faster."""
    threads: int = 0
    """CPU threads; 0 measures and chooses."""
    json: bool = False
    """Print the summary as JSON on stdout, everything else on stderr."""
    dry_run: bool = False
    """Print tokens, time and memory expected, then stop."""
    max_time: float | None = None
    """Stop cleanly after this many minutes with a report of what there is."""
    debug: bool = False
    """Show tracebacks."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also send metrics to a tracker."""


@dataclass(kw_only=True)
class Optim:
    """Shared by everything trained."""

    learning_rate: Annotated[float, alias("lr")] = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "halve"] = "constant"
    """Shape after warm-up; halve: the rate halves every --halve-every samples (2204.05862 App B.1)."""
    warmup_samples: int = 0
    """Linear warm-up over this many samples."""
    halve_every: int = 100_000
    """Samples after which schedule 'halve' halves the rate."""
    weight_decay: float = 0.0
    """AdamW weight decay (none on biases, norms, heads and embeddings)."""
    adam_beta1: float = 0.9
    """AdamW β1."""
    adam_beta2: float = 0.95
    """AdamW β2."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    save_every: Annotated[int, alias("save-steps")] = 0
    """Steps between checkpoints; 0: about one every two minutes."""
    tokens_per_pack: int = 0
    """Token budget of one forward pass; 0: 512 on a CPU, 2048 elsewhere."""
    resume_from_checkpoint: str | None = None
    """Accepted for Hugging Face users; the same command resumes by itself."""


@dataclass(kw_only=True)
class Adapters:
    """Shared by preference models and policies: what of the body is trained."""

    frozen_layers: int = 0
    """Lower layers that stay frozen: computed once per text, and once for all models of a PPO run that share them."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of the weights above the frozen layers (peft); 0: the weights."""
    lora_alpha: int | None = None
    """Adapters are scaled by alpha / rank; default: twice the rank."""
