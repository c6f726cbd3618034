"""PPO's arithmetic against numbers worked out by hand. Each test names the mistake it was seen to catch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ppo_toys import entropy, exact_kl

from truing.train.ppo_math import (
    distinct_bigrams,
    explained_variance,
    gae,
    kl_estimates,
    net_of_length,
    place_rewards,
    policy_gradient,
    policy_loss,
    token_facts,
    value_loss,
    whiten,
)


def mask_of(*lengths: int, width: int | None = None) -> torch.Tensor:
    width = width or max(lengths)
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def test_three_token_reward_by_hand() -> None:
    """Planted: the score on the first token; λ with the wrong sign; KL charged once more at the end."""
    lp_old = torch.tensor([[-1.0, -2.0, -0.5]])
    lp_ref = torch.tensor([[-1.5, -1.0, -0.5]])
    rewards = place_rewards(torch.tensor([2.0]), lp_old, lp_ref, mask_of(3), 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.0]]), atol=1e-6, rtol=0)
    k1 = kl_estimates(lp_old, lp_ref, mask_of(3)).k1
    torch.testing.assert_close(rewards.sum(1), 2.0 - 0.1 * k1)
    advantages, returns = gae(rewards, torch.tensor([[0.5, 1.0, 1.5]]), mask_of(3), 1.0, 0.5)
    # δ = (−.05 + 1 − .5, .1 + 1.5 − 1, 2 − 1.5) = (.45, .6, .5); A₃ = .5, A₂ = .6 + .25, A₁ = .45 + .425
    torch.testing.assert_close(advantages, torch.tensor([[0.875, 0.85, 0.5]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(returns, torch.tensor([[1.375, 1.85, 2.0]]), atol=1e-6, rtol=0)


def test_reward_stands_on_the_last_real_token() -> None:
    """Row 14. Planted: ``rewards[:, -1] += scores``."""
    junk = torch.randn(3, 4) * 100
    mask = mask_of(1, 3, 4)
    rewards = place_rewards(torch.tensor([1.0, 2.0, 3.0]), junk, junk, mask, 0.7)
    assert [r.nonzero().flatten().tolist() for r in rewards] == [[0], [2], [3]]
    with pytest.raises(ValueError, match="reply 1 has no token"):
        place_rewards(torch.zeros(2), junk[:2], junk[:2], mask_of(2, 0, width=4), 0.1)


def test_scores_net_of_length_are_residuals_of_a_fit_within_prompts() -> None:
    """Against least squares with one intercept a prompt. Planted: one intercept for all; the mean taken out too."""
    rng = np.random.default_rng(5)
    prompts = np.repeat([7, 3, 9, 4], 5)
    lengths = rng.integers(1, 30, 20) + 20 * (prompts == 9)
    scores = 0.3 * lengths - 5.0 * (prompts == 9) + rng.normal(size=20)
    design = np.column_stack([lengths, *(prompts == p for p in (7, 3, 9, 4))]).astype(float)
    slope = np.linalg.lstsq(design, scores, rcond=None)[0][0]
    given = (torch.from_numpy(x) for x in (scores, lengths, prompts))
    net, found = net_of_length(*given)
    assert found == pytest.approx(slope)
    mean_length, mean_score, mean_net = (
        np.array([v[prompts == p].mean() for p in prompts]) for v in (lengths, scores, net.numpy())
    )
    np.testing.assert_allclose(net, scores - slope * (lengths - mean_length), atol=1e-12)
    np.testing.assert_allclose(mean_net, mean_score, atol=1e-12)
    same, none = net_of_length(torch.tensor([1.0, 2.0]), torch.tensor([3, 3]), torch.tensor([0, 0]))
    assert none == 0.0 and same.tolist() == [1.0, 2.0]


def test_two_step_mdp_by_hand() -> None:
    """Row 19. Planted: γ forgotten in δ, λ forgotten, bootstrapping from a value beyond the end."""
    rewards, values = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])
    mask = mask_of(2)
    for gamma, lam in [(1.0, 1.0), (1.0, 0.0), (0.5, 0.8)]:
        d1, d2 = 1 + gamma * 1 - 2, 3 - 1
        a, r = gae(rewards, values, mask, gamma, lam)
        torch.testing.assert_close(a, torch.tensor([[d1 + gamma * lam * d2, d2]]))
        torch.testing.assert_close(r, a + values)
    a, r = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(r, torch.tensor([[4.0, 3.0]]))  # at γ = λ = 1 targets are the sums of rewards to come


def test_gae_of_a_long_row_equals_the_double_sum() -> None:
    torch.manual_seed(0)
    r, v, gamma, lam = torch.randn(1, 9).double(), torch.randn(1, 9).double(), 0.9, 0.7
    a, _ = gae(r, v, mask_of(9), gamma, lam)
    delta = r[0] + gamma * torch.cat([v[0, 1:], torch.zeros(1).double()]) - v[0]
    want = [sum((gamma * lam) ** k * delta[t + k] for k in range(9 - t)) for t in range(9)]
    torch.testing.assert_close(a[0], torch.stack(want))  # type: ignore[arg-type]


def test_padding_changes_nothing() -> None:
    """Row 21. Planted: whitening over the whole rectangle; GAE that bootstraps from padded values."""
    torch.manual_seed(0)
    r, v, mask = torch.randn(3, 5), torch.randn(3, 5), mask_of(5, 2, 3)
    r, v = torch.where(mask, r, 0), torch.where(mask, v, 0)
    a, ret = gae(r, v, mask)
    w = whiten(a, mask)
    wide = mask_of(5, 2, 3, 0, width=8)
    big_r, big_v = torch.full((4, 8), 1e4), torch.full((4, 8), -1e4)
    big_r[:3, :5], big_v[:3, :5] = torch.where(mask, r, 99.0), torch.where(mask, v, -99.0)
    big_a, big_ret = gae(big_r, big_v, wide)
    torch.testing.assert_close(big_a[:3, :5], a)
    torch.testing.assert_close(big_ret[:3, :5], ret)
    torch.testing.assert_close(whiten(big_a, wide)[:3, :5], w)
    assert not big_a[~wide].any() and not whiten(big_a, wide)[~wide].any()
    assert abs(float(w[mask].mean())) < 1e-6 and abs(float(w[mask].std(unbiased=False)) - 1) < 1e-6
    assert not whiten(torch.full((2, 2), 3.0), mask_of(2, 2)).any()  # no spread: zeros, not NaN


def test_ppo_losses_by_hand() -> None:
    """Planted: max for min; clip on the wrong side."""
    lp_new = torch.tensor([1.5, 0.5, 1.1]).log().requires_grad_()
    losses = policy_loss(lp_new, torch.zeros(3), torch.tensor([1.0, -2.0, 3.0]), 0.2)
    # objectives: min(1.5, 1.2)·1; min(−1, −1.6); 3.3
    torch.testing.assert_close(losses.detach(), torch.tensor([-1.2, 1.6, -3.3]))
    losses.sum().backward()
    torch.testing.assert_close(lp_new.grad, torch.tensor([0.0, 0.0, -3.3]))  # clipped tokens get no gradient
    v, v_old, ret = (torch.tensor(x) for x in (1.0, 0.0, 3.0))
    assert float(value_loss(v, v_old, ret)) == 2.0
    assert float(value_loss(v, v_old, ret, 0.5)) == pytest.approx(0.5 * max(4, 2.5**2))


def test_unclipped_gradient_is_the_policy_gradient() -> None:
    lp = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss(lp, lp.detach(), torch.tensor([2.0, -3.0]), 0.2).sum().backward()
    torch.testing.assert_close(lp.grad, torch.tensor([-2.0, 3.0]))


def test_k1_and_k3_meet_the_analytic_kl() -> None:
    """Row 15. Planted: k3 with x = log π − log π0 (biased to 0.68 for 0.49 in the paper notes' toy)."""
    torch.manual_seed(0)
    logp, logq = (torch.randn(50).double() * 0.8).log_softmax(0), (torch.randn(50).double() * 0.8).log_softmax(0)
    truth = float(exact_kl(logp, logq))
    assert truth == pytest.approx(float(torch.nn.functional.kl_div(logq, logp, log_target=True, reduction="sum")))
    n = 100_000
    draws = torch.multinomial(logp.exp(), n, replacement=True)[:, None]
    estimates = kl_estimates(logp[draws], logq[draws], torch.ones(n, 1, dtype=torch.bool))
    for k in (estimates.k1, estimates.k3):
        assert abs(float(k.mean()) - truth) < 3 * float(k.std()) / math.sqrt(n)
    assert float(estimates.k3.min()) >= 0
    assert abs(float(estimates.k2.mean()) - truth) > 3 * float(estimates.k2.std()) / math.sqrt(n)  # k2 is biased: shown


def test_kl_of_concatenated_parts_adds() -> None:
    """Row 16. Planted: a mean over tokens in place of the sum."""
    torch.manual_seed(0)
    lp, ref = torch.randn(2, 7), torch.randn(2, 7)
    whole = kl_estimates(lp, ref, mask_of(7, 7))
    left, right = kl_estimates(lp[:, :3], ref[:, :3], mask_of(3, 3)), kl_estimates(lp[:, 3:], ref[:, 3:], mask_of(4, 4))
    for w, x, y in zip(whole, left, right, strict=True):
        torch.testing.assert_close(w, x + y)


def test_exact_kl_and_entropy() -> None:
    """Planted: KL the wrong way round; entropy without its sign."""
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    assert float(exact_kl(p, q)) == pytest.approx(0.5 * math.log(2))
    assert float(exact_kl(p, p)) == 0.0
    assert float(entropy(p)) == pytest.approx(math.log(2))


def test_explained_variance_and_bigrams() -> None:
    """Planted: Var(R − V)/Var(R) without the 1 −."""
    r, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), mask_of(3, width=4)
    assert explained_variance(r, r, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(r), r, mask) == pytest.approx(0.0)
    assert explained_variance(r, torch.ones_like(r), mask) is None
    assert distinct_bigrams([5]) is None and distinct_bigrams([1, 2, 1, 2, 1]) == 0.5


def test_token_facts_equal_the_plain_formulas() -> None:
    """Planted: the row maximum of one model taken off the other; p not divided by its sum."""
    torch.manual_seed(0)
    z, z0, targets = torch.randn(6, 40) * 5 + 30, torch.randn(6, 40) * 5 - 10, torch.arange(6)
    logp, logq = z.double().log_softmax(-1), z0.double().log_softmax(-1)
    found = token_facts(z.clone(), z0.clone(), targets)
    at = torch.arange(6), targets
    for ours, plain in zip(found, (logp[at], logq[at], exact_kl(logp, logq), entropy(logp)), strict=True):
        torch.testing.assert_close(ours.double(), plain, atol=2e-5, rtol=1e-5)
    assert not token_facts(z.clone(), z.clone(), targets).kl.any()
    peaky = torch.tensor([[80.0, -80.0, 0.0]])
    for fact in token_facts(peaky.clone(), -peaky, torch.tensor([1])):
        assert bool(fact.isfinite().all())


def test_policy_gradient_equals_autograd() -> None:
    """Planted: the one-hot part left out; the scale on it alone; log-probs unlike those of ``token_facts``."""
    torch.manual_seed(0)
    z, targets, advantages = torch.randn(6, 40) * 5 + 30, torch.arange(6), torch.randn(6)
    old = z.log_softmax(-1)[torch.arange(6), targets] + 0.3 * torch.randn(6)
    plain = z.clone().requires_grad_()
    losses = policy_loss(plain.log_softmax(-1)[torch.arange(6), targets], old, advantages, 0.2)
    (losses.sum() / 7).backward()
    lp, ours, slopes = policy_gradient(z.clone(), targets, old, advantages, 0.2, 1 / 7)
    torch.testing.assert_close(ours, losses.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slopes, plain.grad, atol=1e-6, rtol=1e-4)
    assert torch.equal(lp, token_facts(z.clone(), z.clone(), targets).lp)
