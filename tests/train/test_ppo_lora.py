"""PPO with adapters: their gradients, one copy of the weights, a plain folder at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ppo_toys import PROMPTS, config, toy, toy_lm, toy_pm
from safetensors.torch import load_file

from truing.models import lora, tree
from truing.models.lm import LM
from truing.models.split import share_trunk
from truing.train.ppo import PPO, train_ppo
from truing.train.ppo_setup import check


def plain(name: str) -> str:
    return name.replace("base_model.model.", "").replace("base_layer.", "")


@pytest.mark.parametrize("frozen", [0, 1])
def test_adapters_get_the_gradient_that_full_training_gives_their_weights(frozen: int) -> None:
    """For W + s·B·A and the gradient G of W: ∂B = s·G·Aᵀ, and ∂A = s·Bᵀ·G is 0 while B is. Planted: another scale."""

    def gradients(rank: int) -> PPO:
        lm = toy_lm()
        alpha = 6 if rank else None
        ppo = toy(toy_pm(lm, frozen=frozen), lm, frozen_layers=frozen, lora_rank=rank, lora_alpha=alpha)
        with torch.no_grad():
            ppo.models.value.head.weight.copy_(torch.linspace(-1, 1, 32))  # zeros at first, which give no gradient
        replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
        groups, batch = ppo.look(replies)
        assert not batch.kl.any(), "adapters begin at zero"
        ppo.advantages(batch, batch.scores)
        for part in groups[0]:
            ppo.models.backward(part, batch, 20, clip=0.2, value_coef=0.5)
        return ppo

    whole, low = gradients(0), gradients(4)
    for full, model in ((whole.models.policy, low.models.policy), (whole.models.value, low.models.value)):
        wanted = {name: p.grad for name, p in full.named_parameters() if p.grad is not None}
        found = {plain(name): p for name, p in model.named_parameters()}
        down = {name: p for name, p in found.items() if "lora_A" in name}
        assert len(down) == 7 * (2 - frozen), "four matrices of attention and three of the MLP in every trained layer"
        for name, a in down.items():
            b, weight = found[name.replace("lora_A", "lora_B")], name.replace("lora_A.default.", "")
            assert a.grad is not None and not a.grad.any() and b.grad is not None
            expected = 6 / 4 * wanted[weight] @ a.detach().T
            torch.testing.assert_close(b.grad, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        assert any(p.grad.any() for name, p in found.items() if "lora_B" in name and p.grad is not None)


@pytest.mark.parametrize("frozen", [0, 1])
def test_policy_and_reference_share_their_weights_and_so_do_value_function_and_judge(frozen: int) -> None:
    """Planted: weights copied; the reference adapted too; the reference moved."""
    lm = toy_lm()
    pm = toy_pm(lm, frozen=frozen)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    ppo = toy(pm, lm, frozen_layers=frozen, lora_rank=2, learning_rate=0.05)
    for one, adapted in ((lm.model, ppo.models.policy), (pm.backbone, ppo.models.value.backbone)):
        assert not lora.adapted(one) and lora.adapted(adapted)
        theirs = {plain(name): p for name, p in adapted.named_parameters() if "lora_" not in name}
        assert all(theirs[name] is p for name, p in one.named_parameters())
    metrics = [ppo.step(i) for i in range(2)]
    assert metrics[0]["kl"] == 0 and metrics[1]["kl"] > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    trained = [p for group in ppo.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in lm.model.parameters()) / 4


def test_a_killed_run_goes_on_and_ends_in_a_plain_folder(tmp_path: Path) -> None:
    """Planted: adapters left out of checkpoints, or out of the folder."""

    def run(out: Path, **options: int) -> None:
        lm = toy_lm()
        settings = config(out, lora_rank=2, frozen_layers=1, save_every=1, learning_rate=0.02, **options)
        train_ppo(settings, prompts=PROMPTS, eval_prompts=PROMPTS[:2], lm=lm, pm=toy_pm(lm, frozen=1))

    run(tmp_path / "whole")
    whole = load_file(tmp_path / "whole/model/model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in whole)
    assert whole.keys() == dict(toy_lm().model.named_parameters()).keys()
    with pytest.MonkeyPatch.context() as patch:
        steps, real = [], PPO.step

        def stop_at_two(self: PPO, step: int) -> dict[str, float]:
            if step == 2:
                raise KeyboardInterrupt
            steps.append(step)
            return real(self, step)

        patch.setattr(PPO, "step", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert steps == [0, 1]
    run(tmp_path / "cut")
    cut = load_file(tmp_path / "cut/model/model.safetensors")
    assert all(torch.equal(p, cut[name]) for name, p in whole.items())
    moved = {name for name, p in toy_lm().model.named_parameters() if not torch.equal(p, whole[name])}
    assert moved and all("layers.1." in name and "proj" in name for name in moved)


@pytest.mark.parametrize("shape", ["llama", "neox", "gpt2"])
def test_a_merged_policy_says_what_the_adapted_one_says(shape: str, tmp_path: Path) -> None:
    lm = toy_lm(shape=shape)
    ppo = toy(toy_pm(lm), lm, lora_rank=4, learning_rate=0.05)
    ppo.step(0)
    texts = ["Hello you", "Who is there?"]
    there = [s.logprob for s in ppo.policy.score(texts)]
    ppo.policy.save(tmp_path / "model")
    assert lora.adapted(ppo.policy.model), "saving changes nothing"
    again = LM.load(tmp_path / "model", format="hh")
    assert [s.logprob for s in again.score(texts)] == pytest.approx(there, abs=1e-3)
    assert [s.logprob for s in lm.score(texts)] != pytest.approx(there, abs=1e-1)


@pytest.mark.parametrize("k", [0, 1])
def test_a_twin_without_copies_has_modules_of_its_own(k: int) -> None:
    """Planted: modules shared too, so that adapters in one would be in the other."""
    model = toy_lm().model
    twin = share_trunk(model, k, copies=False)
    mine, theirs = (list(tree.body(m).layers) for m in (model, twin))
    assert [a is b for a, b in zip(mine, theirs, strict=True)] == [i < k for i in range(2)]
    assert all(p is q for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_ranks_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="lora_rank is -1"):
        check(config(lora_rank=-1))
    with pytest.raises(ValueError, match="there are none"):
        check(config(lora_alpha=8))
