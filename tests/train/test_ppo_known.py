"""PPO on tasks whose best policy is known (hh.md §19 row 14), and advantages without a value function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from known_answers import language, small_lm, train, worth
from ppo_toys import PROMPTS, config, toy, toy_lm, toy_pm

from truing.data.prompts import PromptRow
from truing.train.loop import Trainable
from truing.train.ppo import PPO
from truing.train.ppo_math import place_rewards, rloo
from truing.train.ppo_setup import check

LAM = 0.3
STEPS = {1: 24, 3: 40}


def reached(length: int, seed: int, lam: float = LAM, **options: Any) -> tuple[float, float, float]:
    """E[r] − λ·KL at the start, after training, and at the optimum."""
    lm = small_lm(seed)
    every = language(lm, length)
    start = every.logprobs(lm)
    assert float(start.exp().sum()) == pytest.approx(1.0, abs=1e-5), "all replies are there, each once"
    ppo = train(lm, length, seed, kl_coef=lam, **{"steps": STEPS[length], **options})
    ends = every.objective(start, start, lam), every.objective(every.logprobs(ppo.policy), start, lam)
    return *ends, every.best(start, lam)


@pytest.mark.parametrize(("length", "advantage"), [(1, "gae"), (3, "rloo")])
def test_the_closed_form_optimum_is_reached(length: int, advantage: str) -> None:
    """Within 2%. Planted: the sign of the KL reward; λ charged twice; −A for A; the baseline with the reply itself."""
    start, end, best = reached(length, 0, advantage=advantage)
    assert start < 0.5 * best and 0.98 * best < end <= best + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
@pytest.mark.parametrize("length", [1, 3])
def test_the_closed_form_optimum_is_reached_for_every_seed(length: int, advantage: str, seed: int) -> None:
    start, end, best = reached(length, seed, advantage=advantage, steps={1: 24, 3: 64}[length])
    assert start < 0.5 * best and 0.98 * best < end <= best + 1e-6


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_the_limits_of_lambda(advantage: str) -> None:
    """λ = 0: the reply of largest worth. λ large: the start. Planted: the KL reward dropped; always charged."""
    lm = small_lm()
    every = language(lm, 1)
    start = every.logprobs(lm)
    free = every.logprobs(train(lm, 1, 0, kl_coef=0.0, advantage=advantage, steps=16, learning_rate=1e-2).policy)
    assert float(free.exp() @ every.reward) > 0.98 * float(every.reward.max())
    held = every.logprobs(train(lm, 1, 0, kl_coef=100.0, advantage=advantage, steps=8).policy)
    assert float((held.exp() * (held - start)).sum()) < 0.02
    assert float((free.exp() * (free - start)).sum()) > 0.5


def test_the_logged_kl_is_that_of_whole_replies() -> None:
    """Row 16, against the sum over all 658 replies. Planted: a mean over tokens; KL(start ‖ policy)."""
    lm = small_lm()
    every = language(lm, 3)
    ppo = train(lm, 3, 0, steps=4, kl_coef=0.1, learning_rate=1e-2)
    start, end = every.logprobs(lm), every.logprobs(ppo.policy)
    truth = float((end.exp() * (end - start)).sum())
    _, batch = ppo.look([r for i in range(8) for r in ppo._sample(ppo.policy, ppo.prompts, i)])
    kl = batch.kl.sum(1).double()
    assert truth > 0.2 and abs(float(kl.mean()) - truth) < 4 * float(kl.std()) / len(kl) ** 0.5


# Leave one out


def test_leave_one_out_by_hand() -> None:
    """Planted: the mean of all n replies as baseline; of the whole batch; padded rewards counted."""
    rewards = torch.tensor([[1.0, 2.0, 9.0], [4.0, 0.0, 0.0], [0.5, 0.5, 0.5], [7.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool()
    found = rloo(rewards, mask, 2)  # totals 3, 4; 1.5, 7
    wanted = torch.tensor([[-1.0], [1.0], [-5.5], [5.5]]) * mask
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="compares a reply with the others to its prompt"):
        check(config(advantage="rloo", samples_per_prompt=1))


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_gradient_of_rloo_is_that_of_reinforce(frozen: int) -> None:
    """Against autograd through whole replies, one at a time. Planted: whitened advantages; A ÷ reply length."""
    lm = toy_lm()
    ppo = toy(toy_pm(lm, frozen=frozen), lm, advantage="rloo", frozen_layers=frozen, samples_per_prompt=3)
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
    groups, batch = ppo.look(replies)
    ppo.advantages(batch, batch.scores)
    tokens = int(batch.mask.sum())
    ppo._backward(groups, 0, batch, tokens)
    trained = Trainable(ppo.models.policy).parameters
    ours = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    ppo.models.policy.zero_grad()
    totals = place_rewards(batch.scores, batch.lp_old, batch.lp_ref, batch.mask, ppo.config.kl_coef).sum(1).view(-1, 3)
    for i, reply in enumerate(replies):
        mine = totals[i // 3]
        advantage = mine[i % 3] - (mine.sum() - mine[i % 3]) / 2
        ids = torch.tensor([reply.prompt_ids + reply.ids])
        logits = ppo.models.policy(input_ids=ids).logits[0, len(reply.prompt_ids) - 1 : -1]
        logp = logits.log_softmax(-1)[torch.arange(len(reply.ids)), torch.tensor(reply.ids)].sum()
        (-advantage * logp / tokens).backward()
    largest = max(float(g.abs().max()) for g in ours.values())
    assert largest > 1e-3 and ours.keys() == {name for name, p in trained.items() if p.grad is not None}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, trained[name].grad, atol=1e-4 * largest, rtol=1e-3)


def test_rloo_holds_no_value_function() -> None:
    """Planted: a value function built and left unused; its numbers logged."""
    plain, lean = toy(), toy(advantage="rloo")
    assert lean.models.value is None and "value" not in lean.state and "value" in plain.state
    trained = [sum(p.numel() for p in ppo._trained()) for ppo in (plain, lean)]
    assert trained[1] == sum(p.numel() for p in lean.models.policy.parameters()) and trained[0] > 1.7 * trained[1]
    metrics = lean.step(0)
    assert not [name for name in metrics if "value" in name]
    assert metrics["ratio_deviation_first"] == 0 and metrics["kl"] == 0 and lean.step(1)["kl"] > 0
    rows = [PromptRow(PROMPTS[0], "1", 1, "toy")]
    assert PPO(config(advantage="rloo"), toy_lm(), rows, reward_fn=worth).models.value is None
