"""The trainer: self-checks, counting, the optimum of a bandit, runs that resume. Each test names its mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_toys import PROMPTS, config, toy, toy_lm, toy_pm
from safetensors.torch import load_file

from truing.data.prompts import PromptRow
from truing.models.lm import LM
from truing.runs import Run
from truing.train.loop import lr_factor, rng
from truing.train.ppo import PPO, train_ppo
from truing.train.ppo_batch import Part
from truing.train.ppo_models import Models, weights_hash
from truing.train.ppo_setup import check
from truing.types import Dialogue


def test_rollouts_other_than_plain_sampling_are_refused() -> None:
    """Row 17. Planted: no check."""
    for options in ({"temperature": 0.7}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="another policy than the one sampled"):
            check(config(**options))
    with pytest.raises(ValueError, match="ppo_epochs is 0"):
        check(config(ppo_epochs=0))
    with pytest.raises(ValueError, match="minibatches"):
        check(config(minibatches=9))


def test_sampler_and_trainer_agree_and_nothing_moves_before_the_first_update() -> None:
    """Rows 9, 10, 17, 20. Planted: sampling at T = 0.7; dropout on; a random value head."""
    for frozen in (0, 1):
        lm = toy_lm()
        metrics = toy(toy_pm(lm, frozen=frozen), lm, frozen_layers=frozen).step(0)
        assert metrics["sampler_gap_max"] < 1e-4
        assert metrics["ratio_deviation_first"] == 0.0 and metrics["kl"] == 0.0 and metrics["kl_k1"] == 0.0
        assert metrics["value"] == 0.0
        assert metrics["ratio_deviation"] > 0  # later passes do move


def test_self_checks_stop_a_wrong_start() -> None:
    """Row 10. Planted: tolerance of 1; KL check left out; NaN taken for a small deviation."""
    for wrong in (1e-3, float("nan")):
        ppo = toy()
        replies = ppo._sample(ppo.policy, ppo.prompts_of(0), 5)
        groups, batch = ppo.look(replies)
        ppo.advantages(batch, batch.scores)
        batch.lp_old += wrong  # as if they came from elsewhere
        with pytest.raises(ValueError, match="probability ratio is off 1"):
            ppo.update(groups, batch, 0)
    ppo = toy()
    with torch.no_grad():
        next(ppo.models.policy.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="KL to the reference is"):
        ppo.step(0)


def test_the_reference_never_moves() -> None:
    """Row 18. Planted: reference = policy; reference = the previous policy."""
    for frozen in (0, 1):
        lm = toy_lm()
        before = weights_hash(lm.model)
        ppo = toy(toy_pm(lm, frozen=frozen), lm, frozen_layers=frozen, learning_rate=1e-2)
        policy = weights_hash(ppo.models.policy)
        hashes = [ppo.step(i)["reference_hash"] for i in range(2)]
        assert hashes == [before, before] and weights_hash(ppo.models.policy) != policy
        assert ppo.step(2)["kl"] > 0.01  # against the start, not the policy of the step before
        with torch.no_grad():
            next(lm.model.parameters())[3, 5] += 1e-4
        with pytest.raises(ValueError, match="reference policy's weights changed"):
            ppo.step(3)


def test_optimiser_steps_and_visits_are_counted() -> None:
    """Row 22. Planted: one pass whatever K; every minibatch holding all replies."""
    ppo = toy(ppo_epochs=3, minibatches=2)
    calls = []
    plain = ppo.optimizer.step
    ppo.optimizer.step = lambda *a, **k: calls.append(1) or plain(*a, **k)  # type: ignore[method-assign]
    metrics = ppo.step(0)
    assert len(calls) == metrics["optimizer_steps"] == 6
    assert metrics["token_visits"] == 3 * metrics["reply_tokens"] * 8
    assert metrics["samples"] == 8
    state = ppo.optimizer.state_dict()["state"]
    assert {int(s["step"]) for s in state.values()} == {6}


def test_the_rate_follows_samples_not_steps() -> None:
    """Row 23. Planted: ``set_lr`` given the step."""
    rates = {}
    for prompts in (2, 4):
        ppo = toy(prompts_per_step=prompts, schedule="halve", halve_every=16, ppo_epochs=1)
        for step in range(16 // prompts):
            rates[prompts, step * prompts * 2] = ppo.step(step)["lr"]
    assert [rates[2, n] for n in (0, 8, 16, 24)] == [1e-3, 1e-3, 5e-4, 5e-4]
    assert all(rates[2, n] == rates[4, n] for n in (0, 8, 16, 24))


def test_the_default_schedule_halves_at_100_000_replies() -> None:
    """Row 23. Planted: halved by steps; after other numbers of replies for other batches."""
    for prompts in (2, 8, 64):
        c = config(prompts_per_step=prompts, schedule="halve")
        step = -(-100_000 // (2 * prompts))  # two replies each
        rates = [lr_factor(n * 2 * prompts, c, 10**9) for n in (0, step - 1, step, 2 * step)]
        assert rates == [1.0, 1.0, 0.5, 0.25]
    warm = config(warmup_samples=25_000)
    assert [lr_factor(n, warm, 10**9) for n in (0, 12_500, 25_000, 200_000)] == [0.0, 0.5, 1.0, 1.0]


def test_new_values_can_be_kept_near_the_old_ones() -> None:
    """Planted: the option ignored; 0 taken for a limit of 0."""
    losses = []
    for value_clip in (0.0, 1e-9, 100.0):
        ppo = toy(value_clip=value_clip, ppo_epochs=3, value_learning_rate=1e-2)
        losses.append(ppo.step(0)["value_loss"])
    assert losses[0] == losses[2] < losses[1], "V held at 0 cannot come nearer to the returns"
    with pytest.raises(ValueError, match="value_clip is -1"):
        check(config(value_clip=-1))


def test_prompts_come_round_and_follow_from_seed_and_step() -> None:
    """Planted: a fresh draw with replacement at each step."""
    ppo, twin = toy(prompts_per_step=2), toy(prompts_per_step=2)
    for epoch in range(3):
        seen = [row.id for step in (2 * epoch, 2 * epoch + 1) for row in ppo.prompts_of(step)]
        assert sorted(seen) == ["0", "1", "2", "3"]
    assert ppo.prompts_of(5) == twin.prompts_of(5)
    assert [r.ids for r in ppo._sample(ppo.policy, ppo.prompts_of(0), 1)] == [
        r.ids for r in twin._sample(twin.policy, twin.prompts_of(0), 1)
    ]


def test_random_reward_shuffles_within_the_batch() -> None:
    """Planted: the flag ignored."""
    rewards = {}
    for flag in (False, True):
        ppo = toy(random_reward=flag)
        taken = []
        plain = ppo.advantages
        ppo.advantages = lambda b, paid, plain=plain, taken=taken: (taken.append(paid), plain(b, paid))[1]  # type: ignore[method-assign]
        ppo.step(0)
        rewards[flag] = taken[0]
    assert not torch.equal(rewards[True], rewards[False])
    torch.testing.assert_close(rewards[True].sort().values, rewards[False].sort().values)


def test_a_length_neutral_policy_earns_nothing_by_length() -> None:
    """Planted: the flag ignored; the slope applied between prompts; what is logged as score made net too."""
    with pytest.raises(ValueError, match="too few for it"):
        check(config(length_neutral=True, samples_per_prompt=1))

    def tokens(dialogues: list[Dialogue]) -> np.ndarray:
        return 2.0 * lengths + 1.0

    ppo = toy(reward_fn=tokens, length_neutral=True, stop_after=[chr(c) for c in range(32, 96)])
    replies = ppo._sample(ppo.policy, ppo.prompts_of(0), int(rng(ppo.config.seed, 0, 1).integers(2**62)))
    lengths = np.array([len(r.ids) for r in replies], dtype=float)
    taken: list[torch.Tensor] = []
    plain = ppo.advantages
    ppo.advantages = lambda batch, paid: (taken.append(paid), plain(batch, paid))[1]  # type: ignore[method-assign]
    metrics = ppo.step(0)
    assert len(set(lengths)) > 1 and metrics["length_slope"] == pytest.approx(2.0)
    means = lengths.reshape(4, 2).mean(1).repeat(2)
    torch.testing.assert_close(taken[0], torch.from_numpy(2.0 * means + 1.0).float())
    assert metrics["score_sd"] == pytest.approx(2.0 * lengths.std(), rel=1e-5)
    assert "length_slope" not in toy().step(0)


def test_a_reward_function_must_give_one_finite_number_each() -> None:
    """Planted: sizes compared in place of shapes, so that a column passes; inf taken for a number."""

    def last(wrong: float) -> Any:
        return lambda d: np.array([0.0] * (len(d) - 1) + [wrong])

    several = (lambda d: np.zeros(3), lambda d: np.zeros((len(d), 1)), lambda d: np.float64(1.0), lambda d: [])
    for wrong in (*several, last(np.nan), last(np.inf), last(-np.inf)):
        with pytest.raises(ValueError, match="expected one finite number per dialogue"):
            toy(reward_fn=wrong).step(0)
    with pytest.raises(ValueError, match="either a preference model or a reward function"):
        PPO(config(), toy_lm(), [PromptRow(PROMPTS[0], "1", 1, "toy")])


@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_whitened_over_reply_tokens_and_value_targets_are_not(seed: int) -> None:
    """Row 21, in the trainer. Planted: advantages as GAE gives them; value targets made of the whitened ones."""
    random = np.random.default_rng(seed)
    ppo = toy(gae_lambda=0.7, gamma=0.9, kl_coef=0.3, stop_after=[chr(c) for c in range(32, 96)])
    replies = ppo._sample(ppo.policy, ppo.prompts_of(seed), seed)
    _, batch = ppo.look(replies)
    assert len({len(r.ids) for r in replies}) > 1
    value, gap = (random.normal(0, s, batch.mask.shape) for s in (2.0, 0.5))
    batch.values, batch.lp_ref = torch.from_numpy(value).float(), batch.lp_old - torch.from_numpy(gap).float()
    scores = random.normal(3, 5, len(replies))
    ppo.advantages(batch, torch.from_numpy(scores).float())
    plain, targets = [], []
    for i, r in enumerate(replies):
        n, v = len(r.ids), [*value[i, : len(r.ids)], 0.0]
        reward = [-0.3 * gap[i, t] + (scores[i] if t == n - 1 else 0.0) for t in range(n)]
        delta = [reward[t] + 0.9 * v[t + 1] - v[t] for t in range(n)]
        mine = [sum(0.63 ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]
        plain += mine
        targets += [a + b for a, b in zip(mine, v, strict=False)]
    wanted = (np.array(plain) - np.mean(plain)) / np.std(plain)
    np.testing.assert_allclose(batch.advantages[batch.mask], wanted, atol=1e-4)
    np.testing.assert_allclose(batch.returns[batch.mask], targets, atol=1e-4)
    assert not batch.advantages[~batch.mask].any()


def letters(dialogues: list[Dialogue]) -> np.ndarray:
    """1 for a lower-case letter."""
    return np.array([float(d.last.text[:1] in set("abcdefghijklmnopqrstuvwxyz")) for d in dialogues])


def test_the_value_function_learns_what_prompts_are_worth() -> None:
    """Row 20. Planted: value read at the reply token; advantages in place of returns as its targets."""

    def worth(dialogues: list[Dialogue]) -> np.ndarray:
        return np.array([float(len(d.turns[0].text) > 5) * 2 - 1 for d in dialogues])

    ppo = toy(reward_fn=worth, learning_rate=0.0, value_learning_rate=3e-3, ppo_epochs=4, kl_coef=0.0, gae_lambda=1.0)
    log = [ppo.step(i) for i in range(12)]
    assert log[0]["value_explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert log[-1]["value_explained_variance"] > 0.5
    replies = ppo._sample(ppo.policy, ppo.prompts_of(12), 0)
    values = ppo.look(replies)[1].values[:, 0]
    wanted = torch.tensor(worth([r.dialogue for r in replies]), dtype=torch.float32)
    assert (values * wanted).mean() > 0.75 and (values - wanted).abs().mean() < 0.4


# Runs


def run_toy(out: Path, *, reward_fn: Any = None, **options: Any) -> Run:
    lm = toy_lm()
    pm = None if reward_fn else toy_pm(lm, frozen=1)
    tests = {"other": toy_pm(lm, seed=7)}
    c = config(out, frozen_layers=1, **options)
    found = train_ppo(c, prompts=PROMPTS, eval_prompts=PROMPTS[:3], lm=lm, pm=pm, reward_fn=reward_fn, test_pms=tests)
    assert isinstance(found, Run)
    return found


def test_a_run_holds_the_policy_its_numbers_and_both_replies(tmp_path: Path) -> None:
    """Planted: the base saved in place of the policy; before and after swapped."""
    run = run_toy(tmp_path / "run", learning_rate=1e-2)
    numbers = run.summary()["numbers"]
    assert {"pm_score_gain", "kl", "entropy", "reply_tokens", "eos_rate", "pm_score_gain/other"} <= numbers.keys()
    assert numbers["kl"]["value"] > 0.01 and numbers["kl"]["low"] < numbers["kl"]["value"] < numbers["kl"]["high"]
    rows = run.metrics()
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 3]
    assert rows[0]["eval_kl"] == 0 and rows[-1]["eval_kl"] == pytest.approx(numbers["kl"]["value"], rel=1e-5)
    gain = rows[-1]["eval_score"] - rows[0]["eval_score"]
    assert numbers["pm_score_gain"]["value"] == pytest.approx(gain, abs=1e-5)
    samples = [line for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6 and '"before"' in samples[0] and '"after"' in samples[0]
    saved = LM.load(run.path)
    base = toy_lm()
    ids = [base.encode_prompt(PROMPTS[0])]
    logp, logq = (torch.tensor(m.engine.next_logprobs(ids)[0]) for m in (saved, base))
    assert float((logp.exp() * (logp - logq)).sum()) > 1e-4
    assert run_toy(tmp_path / "run", learning_rate=1e-2).path == run.path  # finished: returned, not trained again


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """Promise 3. Planted: the optimiser, or the value function, left out of the checkpoint; a global random stream."""

    class Killed(BaseException):
        pass

    left = [99]  # calls before it dies; no part of the function, which is part of the run's identity

    def score(dialogues: list[Dialogue]) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return np.array([sum(map(ord, d.last.text)) % 7 for d in dialogues]) / 7.0

    options: dict[str, Any] = {"steps": 4, "save_every": 1, "minibatches": 2, "learning_rate": 3e-3}
    whole = run_toy(tmp_path / "whole", reward_fn=score, **options)
    left[0] = 3
    with pytest.raises(Killed):
        run_toy(tmp_path / "cut", reward_fn=score, **options)  # the start is evaluated, two steps are done
    assert (tmp_path / "cut" / "checkpoint-2").exists() and not (tmp_path / "cut" / "summary.json").exists()
    left[0] = 99
    cut = run_toy(tmp_path / "cut", reward_fn=score, **options)
    one, two = (load_file(run.path / "model" / "model.safetensors") for run in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert whole.summary()["numbers"] == cut.summary()["numbers"]
    logs = [[{k: v for k, v in row.items() if "seconds" not in k} for row in run.metrics()] for run in (whole, cut)]
    assert logs[0] == logs[1]


def test_dry_run_only_tells(tmp_path: Path) -> None:
    found = train_ppo(config(tmp_path / "run", dry_run=True), prompts=PROMPTS, reward_fn=letters, lm=toy_lm())
    assert isinstance(found, dict)
    said = " ".join(found["lines"])
    assert all(words in said for words in ("24 replies", "tokens through the model", "seconds on cpu", "GiB of memory"))
    assert not (tmp_path / "run").exists()


def test_prompts_that_leave_no_room_are_left_out_and_told() -> None:
    """Planted: the limit without the reply's tokens."""
    lm = toy_lm()
    overhead = len(lm.encode_prompt(Dialogue().ask("")))
    texts = ["x" * n for n in (2, 128 - 6 - overhead, 128 - 6 - overhead + 1, 500)]
    rows = [PromptRow(Dialogue().ask(text), str(i), i, "toy") for i, text in enumerate(texts)]
    ppo = PPO(config(), lm, rows, rows[:1], reward_fn=letters)
    assert [row.id for row in ppo.prompts] == ["0", "1"] and "2 of 4 prompts were left out" in ppo.notes[0]
    with pytest.raises(ValueError, match="None of 1 prompts leaves room"):
        PPO(config(), lm, rows[3:], reward_fn=letters)


def test_prompts_both_trained_on_and_held_out_are_told() -> None:
    """Rows 26, 27. Planted: whole dialogues compared, so that a second turn hides the overlap."""
    rows = [PromptRow(d, str(i), i, "toy") for i, d in enumerate(PROMPTS)]
    later = PromptRow(PROMPTS[0].reply("Hello").ask("And?"), "9", 9, "toy")
    ppo = PPO(config(), toy_lm(), rows, [later, PromptRow(Dialogue().ask("New"), "10", 10, "toy")], reward_fn=letters)
    assert any("1 conversations" in note for note in ppo.notes)
    assert not any("conversations" in note for note in PPO(config(), toy_lm(), rows, reward_fn=letters).notes)


def test_by_names_alone(tmp_path: Path) -> None:
    """Folders and files as the command line gives them; the PM still shares the policy's trunk after saving both."""
    lm = toy_lm()
    lm.save(tmp_path / "policy")
    toy_pm(lm, frozen=1).save(tmp_path / "pm")
    toy_pm(lm, seed=7).save(tmp_path / "judge")
    (tmp_path / "helpful.jsonl").write_text("".join(json.dumps({"prompt": d.turns[0].text}) + "\n" for d in PROMPTS))
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "Something new"}) + "\n")
    names = {"policy": str(tmp_path / "policy"), "pm": str(tmp_path / "pm"), "test_pm": [str(tmp_path / "judge")]}
    names |= {"prompts": [str(tmp_path / "helpful.jsonl")], "eval_prompts": [str(tmp_path / "held.jsonl")]}
    c = dataclasses.replace(config(tmp_path / "run", frozen_layers=1, steps=1), **names)
    run = train_ppo(c)
    assert isinstance(run, Run) and run.summary()["numbers"]["pm_score_gain/judge"]["n"] == 2
    row = run.metrics()[1]
    assert row["ratio_deviation_first"] == 0 and row["kl"] == 0 and row["sampler_gap_max"] < 1e-4
    assert not any("training prompts" in note for note in run.summary()["notes"])
    assert LM.load(run.path).encode_prompt(PROMPTS[0]) == lm.encode_prompt(PROMPTS[0])


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("where", ["hidden", "backward"])
def test_running_out_of_memory_changes_no_step(
    where: str, frozen: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: the gradients of the packs that fitted are kept and added again; replies keep their old places."""
    options: dict[str, Any] = {"frozen_layers": frozen, "minibatches": 2, "samples_per_prompt": 8}
    options |= {"max_new_tokens": 12, "prompts_per_step": 3}
    plain = getattr(Models, where)

    def two_steps() -> list[dict[str, float]]:
        lm = toy_lm()
        ppo = toy(toy_pm(lm, frozen=frozen), lm, **options)
        return [ppo.step(i) for i in range(2)]

    wanted = two_steps()
    sizes: list[int] = []

    def tight(self: Models, *given: Any, **named: Any) -> Any:
        part = next(thing for thing in given if isinstance(thing, Part))
        sizes.append(len(part.pack))
        if len(part.pack) > 128 and len(sizes) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(self, *given, **named)

    monkeypatch.setattr(Models, where, tight)
    found = two_steps()
    assert "going on with" in capsys.readouterr().err and max(sizes) > 128 >= max(sizes[-4:])
    for one, two in zip(wanted, found, strict=True):
        for name in one.keys() - {"reference_hash"}:
            if not name.startswith("seconds"):
                assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name
