"""The arithmetic of PPO, pure: rewards, advantages, losses and KL estimates (2204.05862 §4.1).

Knows nothing about models or text. A batch of N replies is a rectangle [N, L] beside a bool ``mask`` that is True on
kept reply tokens (always the first ones of a row); whatever stands elsewhere is ignored and comes out as 0.
Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def place_rewards(scores: Tensor, lp_old: Tensor, lp_ref: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards: −λ(log π − log π0) on every reply token, and the score on the last one.

    ``scores`` [N], the others [N, L]. Summed over a row: score − λ·k1. Raises ValueError on a reply without tokens,
    which would have no place for its score.

    >>> place_rewards(torch.tensor([1.0]), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2).bool(), 0.5)
    tensor([[0.5000, 1.5000]])
    """
    lengths = mask.sum(1)
    if bool((lengths == 0).any()):
        raise ValueError(f"reply {int((lengths == 0).nonzero()[0])} has no token; expected at least one (the stop)")
    rewards = torch.where(mask, -kl_coef * (lp_old - lp_ref), 0.0)
    rewards[torch.arange(len(scores), device=scores.device), lengths - 1] += scores.to(rewards)
    return rewards


def net_of_length(scores: Tensor, lengths: Tensor, prompts: Tensor) -> tuple[Tensor, float]:
    """Scores [N] less the line in length [N] that fits them within prompts, and its slope (score per token).

    Least squares on deviations from each prompt's mean (``prompts`` [N]: any labels), which is all that is changed:
    a prompt's mean score stays. Prompts with one reply add nothing. Computed on the CPU in float64.
    """
    x, y = lengths.cpu().double(), scores.cpu().double()
    _, group, counts = prompts.cpu().unique(return_inverse=True, return_counts=True)
    dx, dy = (v - (torch.zeros(len(counts), dtype=v.dtype).index_add_(0, group, v) / counts)[group] for v in (x, y))
    spread = float(dx @ dx)
    slope = float(dx @ dy) / spread if spread > 0 else 0.0
    return (y - slope * dx).to(scores), slope


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and value targets, [N, L] each; the value after the last reply token is 0.

    δ_t = r_t + γV_{t+1} − V_t;  A_t = δ_t + γλA_{t+1};  R_t = A_t + V_t (Schulman et al., 1506.02438, eq. 16).
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def rloo(rewards: Tensor, mask: Tensor, n: int) -> Tensor:
    """REINFORCE leave-one-out advantages [N, L]: a reply's summed reward less the mean of its prompt's other replies.

    Rows stand prompt by prompt, ``n`` ≥ 2 replies each. The same on every token of a reply: Σ_t A ∇log π(y_t) is then
    A ∇log π(y), without a value function and without bias (Ahmadian et al., 2402.14740, eq. 7).

    >>> rloo(torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 1.0]]), torch.ones(3, 2).bool(), 3)[:, 0]
    tensor([ 0.0000,  1.5000, -1.5000])
    """
    totals = torch.where(mask, rewards, 0.0).sum(1).view(-1, n)
    others = (totals.sum(1, keepdim=True) - totals) / (n - 1)
    return torch.where(mask, (totals - others).view(-1, 1), 0.0)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x with mean 0 and (population) standard deviation 1 over the masked cells, 0 elsewhere."""
    cells = x[mask].double()
    if cells.numel() == 0:
        return torch.zeros_like(x)
    mean, sd = cells.mean(), cells.std(unbiased=False)
    return torch.where(mask, ((x - mean) / (sd + 1e-8)).to(x.dtype), 0.0)


def policy_loss(lp_new: Tensor, lp_old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−min(ratio·A, clip(ratio, 1 ± ε)·A) of each token (Schulman et al., 1707.06347, eq. 7), any shape."""
    ratio = torch.exp(lp_new - lp_old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, values_old: Tensor, returns: Tensor, clip: float | None = None) -> Tensor:
    """½(V − R)² of each token; with ``clip``, the larger of it and that of V kept within ±clip of the old V."""
    loss = (values - returns) ** 2
    if clip is not None:
        loss = torch.maximum(loss, (values_old + (values - values_old).clamp(-clip, clip) - returns) ** 2)
    return 0.5 * loss


class KLEstimates(NamedTuple):
    """KL(π‖π0) per sequence in nats, [N] each, from samples of π (Schulman, joschu.net/blog/kl-approx.html)."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


def kl_estimates(lp: Tensor, lp_ref: Tensor, mask: Tensor) -> KLEstimates:
    """Sums over reply tokens of k1 = x, k2 = ½x², k3 = e^(−x) − 1 + x with x = log π − log π0; [N, L] → [N].

    k1 and k3 are unbiased (token by token, given the sampled prefix); k3 is never negative; k2 is biased.
    """
    x = torch.where(mask, lp - lp_ref, 0.0)
    return KLEstimates(x.sum(1), (0.5 * x * x).sum(1), (torch.exp(-x) - 1 + x).sum(1))


class TokenFacts(NamedTuple):
    """What two next-token distributions say about one token each: log-probs of it, KL(π‖π0) and entropy of π, [n]."""

    lp: Tensor
    lp_ref: Tensor
    kl: Tensor
    entropy: Tensor


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(z − max z) and its row sums; ``logits`` [n, V] become z − max z. In place: fresh large tensors are slow."""
    exps = logits.sub_(logits.amax(-1, keepdim=True)).exp()
    return exps, exps.sum(-1)


def token_facts(logits: Tensor, reference: Tensor, targets: Tensor) -> TokenFacts:
    """From finite float32 logits [n, V] of policy and reference, BOTH OVERWRITTEN; exactly 0 KL for equal logits.

    With z, z0 the logits and Z, Z0 their log-sum-exps: KL = Σ p(z − z0) − (Z − Z0), entropy = Z − Σ p z.
    """
    p, total = _exponentials(logits)
    norm, norm_ref = total.log(), _exponentials(reference)[1].log()
    p.div_(total[:, None])
    at = targets[:, None]
    lp, lp_ref = logits.gather(1, at).squeeze(1) - norm, reference.gather(1, at).squeeze(1) - norm_ref
    spread = norm - torch.linalg.vecdot(p, logits)
    kl = torch.linalg.vecdot(p, logits.sub_(reference)) - (norm - norm_ref)
    return TokenFacts(lp, lp_ref, kl.clamp_min_(0), spread)  # rounding may leave -1e-8


def policy_gradient(
    logits: Tensor, targets: Tensor, lp_old: Tensor, advantages: Tensor, clip: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [n] of ``targets``, policy losses [n], and scale·∂(Σ losses)/∂logits [n, V].

    ``logits`` (finite, float32) are OVERWRITTEN. The same log-probs as ``token_facts``, to the bit.
    """
    exps, total = _exponentials(logits)
    at = targets[:, None]
    lp = (logits.gather(1, at).squeeze(1) - total.log()).requires_grad_()
    losses = policy_loss(lp, lp_old, advantages, clip)
    (slope,) = torch.autograd.grad(losses.sum() * scale, lp)
    exps.mul_((-slope / total)[:, None])
    exps.scatter_add_(1, at, slope[:, None])
    return lp.detach(), losses.detach(), exps


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 − Var(R − V)/Var(R) over masked cells; None where the returns do not vary."""
    v, r = values[mask].double(), returns[mask].double()
    spread = r.var(unbiased=False) if r.numel() else torch.tensor(0.0)
    if float(spread) < 1e-12:
        return None
    return float(1 - (r - v).var(unbiased=False) / spread)


def distinct_bigrams(ids: Sequence[int]) -> float | None:
    """Share of a reply's bigrams that are distinct (1: nothing repeats); None below two tokens.

    >>> distinct_bigrams([1, 2, 1, 2, 1])
    0.5
    """
    pairs = list(zip(ids, ids[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else None
