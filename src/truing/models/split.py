"""A Hugging Face model seen as a frozen trunk (embeddings and the lower k layers) and a trainable top. No copies.

Training runs the trunk once per text, keeps its states, and repeats only the top; policy, reference and preference
model that share a trunk share its states too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truing.models import tree
from truing.models.tree import Pack, body, evaluating, logits, unwrap

__all__ = [
    "fold_temperature",
    "layers",
    "logits",
    "num_layers",
    "recompute_layers",
    "same_trunk",
    "share_trunk",
    "top_hidden",
    "top_parameters",
    "trunk_states",
    "Watch",
]

_NORM = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}  # "norm" elsewhere
_LAYERS = {"gpt2": "h"}  # "layers" elsewhere
_SPLITS = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")
_SHAPE = (  # what changes a trunk's states without changing its parameters
    "model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
    "layer_norm_eps", "rope_parameters", "use_parallel_residual", "sliding_window",
)  # fmt: skip


def num_layers(model: Any) -> int:
    """How many layers the model has; k runs from 0 to this number."""
    return unwrap(model).config.num_hidden_layers


def layers(model: Any) -> nn.ModuleList:
    """The model's layers, lowest first."""
    return getattr(body(model), _names(model)[0])


def recompute_layers(model: Any, first: int = 0) -> None:
    """From now on layers ``first..`` keep only their input for the backward pass and compute the rest again there.

    The gradients are the same. transformers' own switch works in train mode alone; models here stay in eval mode.
    """
    for layer in layers(model)[first:]:
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)


def trunk_states(model: Any, pack: Pack, k: int) -> Tensor | None:
    """States [T, H] after the lower ``k`` layers, without gradient and without dropout; None for k = 0."""
    if k == 0:
        return None
    with torch.no_grad(), evaluating(body(model)):
        return _run(model, _part(model, 0, k), pack, None)


def top_hidden(model: Any, pack: Pack, states: Tensor | None, k: int) -> Tensor:
    """Last hidden states [T, H] after the final norm, with gradient to the layers from ``k`` on.

    ``states`` come from ``trunk_states`` of any model with the same trunk, in any dtype. None: from the ids, with
    gradient through the whole model for k = 0 and through the top alone otherwise.
    """
    if k == 0:
        return tree.hidden(model, pack)
    states = trunk_states(model, pack, k) if states is None else states
    top = _part(model, k, None)
    return _run(model, top, pack, states.to(next(top.parameters()).dtype))  # type: ignore[union-attr]


def share_trunk(model: Any, k: int, *, copies: bool = True) -> Any:
    """A model of the same class whose embeddings, lower ``k`` layers and head ARE ``model``'s own modules.

    Layers ``k..`` and the final norm are deep copies and trainable; the shared parameters stop requiring gradients,
    in both models. k = 0 copies everything. Without ``copies`` the layers above are modules of their own, too, but
    their weights are ``model``'s, and nothing requires gradients: for adapters. Raises ValueError where the model
    cannot be split.
    """
    memo: dict[int, Any] = {} if copies else {id(p): p for p in model.parameters()}
    if k == 0:
        return copy.deepcopy(model, memo).requires_grad_(copies)
    _check(model, k)
    new, inner = _shallow(model), _shallow(body(model))
    if body(model) is model:
        new = inner
    else:
        setattr(new, model.base_model_prefix, inner)
    new.config = inner.config = copy.deepcopy(model.config)
    name_layers, name_norm = _names(model)
    memo[id(model.config)] = new.config
    layers = [copy.deepcopy(layer, memo) if i >= k else layer for i, layer in enumerate(getattr(inner, name_layers))]
    setattr(inner, name_layers, nn.ModuleList(layers))
    setattr(inner, name_norm, copy.deepcopy(getattr(inner, name_norm), memo))
    new.requires_grad_(False)
    for _, parameter in top_parameters(new, k) if copies else ():
        parameter.requires_grad_(True)
    return new


class Watch:
    """Collects, while it is open, what enters layer ``k`` of a model: the states after its lower k layers."""

    def __init__(self, model: Any, k: int) -> None:
        _check(model, k)
        self.layer = layers(model)[k]
        self.seen: list[Tensor] = []

    def __enter__(self) -> Watch:
        self.hook = self.layer.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *problem: object) -> None:
        self.hook.remove()

    def _see(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append(args[0] if args else kwargs["hidden_states"])

    def take(self) -> Tensor:
        """States [rows, tokens, H] since the last call."""
        seen, self.seen = self.seen, []
        return torch.cat(seen, 1)


def top_parameters(model: Any, k: int) -> list[tuple[str, nn.Parameter]]:
    """Names (as in ``model.named_parameters``) and parameters of layers ``k..`` and the final norm; k = 0: all."""
    if k == 0:
        return list(model.named_parameters())
    _check(model, k)
    top = {id(p) for p in _part(model, k, None).parameters()}
    return [(name, p) for name, p in model.named_parameters() if id(p) in top]


def same_trunk(a: Any, b: Any, k: int) -> bool:
    """Whether the trunks of two models give the same states for the same ids.

    Compares shape-giving config entries, the lower ``k`` layers, and the embedding rows of the common vocabulary.
    """
    one, two = unwrap(a), unwrap(b)
    if any(getattr(one.config, name, None) != getattr(two.config, name, None) for name in _SHAPE):
        return False
    if k > min(num_layers(a), num_layers(b)):
        return False
    rows = min(one.config.vocab_size, two.config.vocab_size)
    pairs = [(one.get_input_embeddings().weight[:rows], two.get_input_embeddings().weight[:rows])]
    for i in range(k):
        first, second = (dict(getattr(body(m), _names(m)[0])[i].named_parameters()) for m in (a, b))
        if first.keys() != second.keys():
            return False
        pairs += [(first[name], second[name]) for name in first]
    return all(x.shape == y.shape and (x is y or torch.equal(x, y.to(x))) for x, y in pairs)


def _run(model: Any, part: nn.Module, pack: Pack, states: Tensor | None) -> Tensor:
    trees = tree.supports_trees(model)
    if not trees:
        tree.explain_fallback(unwrap(model).config.model_type)
    return tree.run_body(part, pack, states, trees)


@torch.no_grad()
def fold_temperature(model: Any, temperature: float) -> None:
    """Build a sampling temperature into the weights: from now on the logits are what they were over ``temperature``.

    The final norm's weight (and bias) take the factor, so that the model is a plain one that is sampled at 1.
    Raises ValueError for a temperature that is not above 0, or where the final norm does not scale the logits; the
    model is then as before.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0.")
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    before = model(input_ids=ids, use_cache=False).logits.float()
    weights = list(getattr(body(model), _names(model)[1]).parameters())
    given = [weight.clone() for weight in weights]
    for weight in weights:
        weight.div_(temperature)
    after = model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(after * temperature, before, rtol=1e-3, atol=1e-3):
        for weight, old in zip(weights, given, strict=True):
            weight.copy_(old)
        raise ValueError(f"A temperature cannot be built into a {unwrap(model).config.model_type} model's final norm.")


def _names(model: Any) -> tuple[str, str]:
    kind = unwrap(model).config.model_type
    return _LAYERS.get(kind, "layers"), _NORM.get(kind, "norm")


def _check(model: Any, k: int) -> None:
    config = unwrap(model).config
    if not 0 <= k <= config.num_hidden_layers:
        raise ValueError(f"Cannot freeze {k} layers: this model has {config.num_hidden_layers}.")
    if k and config.model_type not in _SPLITS:
        why = "adds its positions to the embeddings" if config.model_type == "gpt2" else "is not known to split exactly"
        raise ValueError(
            f"Cannot freeze {k} layers of a {config.model_type} model: it {why}. Use frozen layers 0 "
            f"(train everything), or a model of type {', '.join(_SPLITS)}."
        )


def _shallow(module: Any) -> Any:
    """The same module object twice: attributes can be replaced on the copy, children and parameters are shared."""
    twin = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin


def _part(model: Any, first: int, last: int | None) -> Any:
    """The body with layers ``first:last`` only: a trunk ends without the norm, a top begins without embeddings."""
    _check(model, first if last is None else last)
    part = _shallow(body(model))
    name, norm = _names(model)
    setattr(part, name, nn.ModuleList(getattr(part, name)[first:last]))
    if last is not None:
        setattr(part, norm, nn.Identity())
    if first:
        part.set_input_embeddings(nn.Identity())
        if "emb_dropout" in part._modules:
            part.emb_dropout = nn.Identity()
    return part
