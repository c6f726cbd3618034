"""Low-rank adapters (LoRA, 2106.09685) through peft: a body that trains few weights and saves as a plain one."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from truing.models import split, tree


def adapt(model: Any, rank: int, alpha: int | None = None, first: int = 0, seed: int = 0) -> Any:
    """The model (a body too) with adapters beside every matrix of layers ``first..``; nothing else requires gradients.

    They begin at zero: the model computes what it did before. The same seed, the same adapters. The wrapper is peft's,
    and `truing.models.tree` and `split` look through it. ``alpha`` over ``rank`` scales them; None: twice the rank.
    Raises ValueError where no layer is left to adapt.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    inside = {id(m) for layer in split.layers(model)[first:] for m in layer.modules()}
    kinds = (nn.Linear, Conv1D)
    names = [name for name, m in model.named_modules() if id(m) in inside and isinstance(m, kinds)]
    if not names:
        raise ValueError(f"There is nothing to adapt above {first} frozen layers: this model has no more.")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=names,
        fan_in_fan_out=tree.unwrap(model).config.model_type == "gpt2",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what that calls otherwise now
        torch.manual_seed(seed)
        return get_peft_model(model, config).eval()


def adapted(model: Any) -> bool:
    """Whether the model carries adapters."""
    return hasattr(model, "peft_config")


def merged(model: Any) -> Any:
    """A plain copy, in main memory, with the adapters added to the weights; a model without adapters as it is."""
    if not adapted(model):
        return model
    memo: dict[int, Any] = {id(b): b.detach().to("cpu", copy=True) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("cpu", copy=True), False) for p in model.parameters()}
    return copy.deepcopy(model, memo).merge_and_unload()
