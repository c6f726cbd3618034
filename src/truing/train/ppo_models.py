"""The models of a PPO run over one shared frozen trunk: what they say of a batch, and the gradients of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truing.configs import PPOTrain
from truing.models import tree
from truing.models.compute import autocast
from truing.models.draw import Trace, trace_of
from truing.models.heads import PreferenceModel, ValueModel
from truing.models.lm import LM
from truing.models.lora import adapt
from truing.models.split import num_layers, same_trunk, share_trunk, top_hidden, trunk_states
from truing.train.loop import make_optimizer, param_groups
from truing.train.ppo_batch import Batch, Part
from truing.train.ppo_math import TokenFacts, policy_gradient, token_facts, value_loss

HEAD_CELLS = 1 << 22
"""Logits held at once by the vocabulary head, rows × vocabulary: 16 MiB, which allocators keep for reuse."""


@dataclass
class Models:
    """Policy, frozen reference and value function over one (possibly empty) frozen trunk of ``k`` layers.

    ``value`` is None where advantages need none (rloo); ``pm`` is the preference model where it shares the trunk, else
    None. ``trunk`` computes the shared states. All are in eval mode: dropout would make the ratio noisy.
    """

    policy: Any
    reference: Any
    trunk: Any
    value: ValueModel | None
    pm: PreferenceModel | None = None
    k: int = 0
    autocast: torch.dtype | None = None

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the run chose it; heads and log-softmax stay float32 all the same."""
        return autocast(next(self.policy.parameters()).device, self.autocast)

    def trace(self) -> Trace | None:
        """What sampling is to keep, so that the trunk reads no reply again; None where that is of no use."""
        then = () if self.pm is None or self.pm.eoc_id is None else (self.pm.eoc_id,)
        return trace_of(self.policy, self.k, then)

    def run_trunk(self, parts: Sequence[Part]) -> None:
        """Compute the frozen trunk's states once per pack; a no-op without one."""
        for part in parts:
            if part.states is not None:
                continue  # sampling has computed them
            with self.precision():
                part.states = trunk_states(self.trunk, part.pack, self.k)

    def hidden(self, model: Any, part: Part) -> Tensor:
        """Last hidden states [T, H] of one of the models over a part, float32."""
        with self.precision():
            return top_hidden(model, part.pack, part.states, self.k).float()

    def values(self, part: Part) -> Tensor:
        """The value function before each reply token of a part, [n], with gradient."""
        assert self.value is not None
        return self.value.project(self.hidden(self.value.backbone, part)[part.places])

    @torch.no_grad()
    def pm_scores(self, parts: Sequence[Part], n: int) -> Tensor:
        """Raw preference-model scores [n], read at the end-of-context tokens of the shared trees."""
        out = torch.full((n,), torch.nan)
        for part in parts:
            if len(part.ends) and self.pm is not None:
                out[part.rows.cpu()] = self.pm.project(self.hidden(self.pm.backbone, part)[part.ends]).cpu()
        return out

    @torch.no_grad()
    def measure(self, parts: Sequence[Part], mask: Tensor, *, with_values: bool = True) -> Batch:
        """Log-probs under policy and reference, exact KL, entropy and values, before any update.

        The vocabulary head runs on reply positions only, in chunks, once for each of the two models.
        """
        zeros = [torch.zeros(mask.numel(), device=mask.device) for _ in range(5)]
        for part in parts:
            mine, theirs = (self.hidden(m, part)[part.places] for m in (self.policy, self.reference))
            for rows in chunks(len(part.places), self.policy):
                logits, reference = tree.logits(self.policy, mine[rows]), tree.logits(self.reference, theirs[rows])
                for out, fact in zip(zeros, token_facts(logits, reference, part.targets[rows]), strict=False):
                    out[part.cells[rows]] = fact
            if with_values and self.value is not None:
                zeros[4][part.cells] = self.values(part)
        facts, values = TokenFacts(*(z.view(mask.shape) for z in zeros[:4])), zeros[4].view(mask.shape)
        return Batch(torch.zeros(len(mask)), mask, facts.lp, facts.lp_ref, facts.kl, facts.entropy, values)

    def backward(
        self, part: Part, batch: Batch, tokens: int, *, clip: float, value_coef: float, value_clip: float | None = None
    ) -> dict[str, float]:
        """Add one part's share of the PPO gradients of a minibatch of ``tokens`` reply tokens; returns its sums.

        The head's gradient is taken chunk by chunk (its logits are never held at once), then sent through the top.
        """
        old, adv = batch.lp_old.view(-1)[part.cells], batch.advantages.view(-1)[part.cells]
        rows_hidden = self.hidden(self.policy, part)[part.places]
        gradient = torch.empty_like(rows_hidden)
        log_ratio = torch.empty_like(old)
        policy_sum = 0.0
        for rows in chunks(len(part.places), self.policy):
            piece = rows_hidden[rows].detach().requires_grad_()
            logits = tree.logits(self.policy, piece)
            lp, losses, slopes = policy_gradient(
                logits.detach(), part.targets[rows], old[rows], adv[rows], clip, 1 / tokens
            )
            logits.backward(slopes)
            assert piece.grad is not None
            gradient[rows], log_ratio[rows] = piece.grad, lp - old[rows]
            policy_sum += losses.sum().item()
        rows_hidden.backward(gradient)
        value_sum = 0.0
        if self.value is not None:
            values = self.values(part)
            targets, before = batch.returns.view(-1)[part.cells], batch.values.view(-1)[part.cells]
            loss = value_loss(values, before, targets, value_clip).sum()
            (value_coef * loss / tokens).backward()
            value_sum = loss.item()
        ratio = log_ratio.exp()
        return {
            "policy_loss": policy_sum,
            "value_loss": value_sum,
            "clip_fraction": ((ratio - 1).abs() > clip).sum().item(),
            "approx_kl": (ratio - 1 - log_ratio).sum().item(),
            "max_ratio_deviation": (ratio - 1).abs().max().item() if len(ratio) else 0.0,
        }


def chunks(rows: int, model: Any) -> Iterator[slice]:
    """Slices of rows for the vocabulary head, so that at most about ``HEAD_CELLS`` logits exist at once."""
    step = max(16, HEAD_CELLS // tree.unwrap(model).config.vocab_size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def build_models(
    lm: LM,
    pm: PreferenceModel | None,
    k: int,
    rank: int = 0,
    alpha: int | None = None,
    seed: int = 0,
    *,
    with_value: bool = True,
) -> Models:
    """Policy and value function as trainable copies above the lower ``k`` layers of ``lm``, which is the reference.

    With a ``rank`` they are adapters beside weights that stay those of reference and preference model (`lora.adapt`).

    The value function starts from the preference model's body if that reads the same ids (and, for k > 0, has the
    same trunk), else from the policy's, with a head of zeros; without ``with_value`` there is none. The preference
    model reads the shared trees only where its trunk is the policy's.
    Raises ValueError if k does not leave a layer to train.
    """
    if not 0 <= k < num_layers(lm.model):
        raise ValueError(f"frozen_layers is {k}; this model has {num_layers(lm.model)} layers: expected 0 to one less.")
    reads_the_same = pm is not None and same_ids(lm, pm)
    shares = reads_the_same and k > 0 and same_trunk(lm.model, pm.backbone, k)  # type: ignore[union-attr]
    source = pm.backbone if pm is not None and (shares or (reads_the_same and k == 0)) else lm.model

    def trained(model: Any) -> Any:
        twin = share_trunk(model, k, copies=not rank)
        return adapt(twin, rank, alpha, k, seed) if rank else twin

    value = None
    if with_value:
        head = nn.Linear(tree.unwrap(source).config.hidden_size, 1, bias=False, device=lm.model.device)
        nn.init.zeros_(head.weight)
        value = ValueModel(trained(tree.body(source)), head, lm.tokenizer, format=lm.format, frozen_layers=k)
    trunk = max([lm.model, *([pm.backbone] if pm and shares else [])], key=lambda m: tree.unwrap(m).config.vocab_size)
    models = Models(trained(lm.model), lm.model, trunk, value, pm if shares else None, k)
    for model in (models.policy, models.reference, value, pm):
        if model is not None:
            model.eval()
    return models


def optimizer_of(models: Models, config: PPOTrain) -> torch.optim.AdamW:
    """AdamW over what policy and value function train, each at its own rate."""
    value_rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
    decay = config.weight_decay
    groups = param_groups(models.policy, learning_rate=config.learning_rate, weight_decay=decay)
    if models.value is not None:
        groups += param_groups(models.value, learning_rate=value_rate, weight_decay=decay)
    return make_optimizer(groups, config)


def same_ids(lm: LM, pm: PreferenceModel) -> bool:
    """Whether both models read a dialogue as the same token ids."""
    ours, theirs = lm.tokenizer.get_vocab(), pm.tokenizer.get_vocab()
    fits = max(ours.values()) < tree.unwrap(pm.backbone).config.vocab_size
    return lm.format == pm.format and fits and all(theirs.get(token) == i for token, i in ours.items())


def weights_hash(model: Any) -> int:
    """A cheap fingerprint of every weight (a sum of their bits), equal as long as none changes; below 2^48."""
    total = 0
    for i, p in enumerate(model.parameters()):
        raw = p.detach().contiguous().view(-1).view(torch.uint8)
        whole = len(raw) // 8 * 8
        bits = int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())
        total += (2 * i + 1) * bits
    return total % 2**48
