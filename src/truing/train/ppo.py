"""PPO against a preference model (2204.05862 §4.1, App B.1): the verb ``rlhf train``.

A step: the prompts that follow from (seed, step) are answered by the policy, plain sampling at temperature 1; policy,
reference, value function and preference model read the replies in shared prefix trees over one frozen trunk; reward
is the PM score on the last token minus λ·(log π − log π0) on every token; advantages by GAE, whitened over reply
tokens; then K passes of minibatches of whole replies. KL is always the sum over the tokens of a reply, in nats.

Logged under other names elsewhere: score (objective/scores), reward (objective/rlhf_reward), kl (objective/kl, exact
here), clip_fraction (policy/clipfrac_avg), approx_kl (policy/approxkl_avg), ratio_deviation (|val/ratio − 1|).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.configs import PPOTrain
from truing.data.prompts import PromptRow
from truing.models.compute import Compute, choose
from truing.models.heads import PreferenceModel
from truing.models.lm import LM, show_prompt
from truing.models.memory import fitting
from truing.models.tree import pack_budget
from truing.runs import Run
from truing.train import ppo_share
from truing.train.cost import timed
from truing.train.cost_of import ppo_cost
from truing.train.loop import Stateful, Trainable, clip, rng, set_lr, train
from truing.train.parallel import ALONE, Group, compute_of, group_for, open_run, processes
from truing.train.ppo_batch import Batch, Part, Reply, mask_of, pack_replies
from truing.train.ppo_eval import (
    Evaluation,
    describe,
    gaps,
    keep,
    numbers,
    policy_accuracy,
    sample_rows,
    stopped_numbers,
    warnings,
)
from truing.train.ppo_math import explained_variance, gae, kl_estimates, net_of_length, place_rewards, whiten
from truing.train.ppo_models import build_models, optimizer_of, weights_hash
from truing.train.ppo_setup import check, data_hash, option_notes, prompt_rows, prompts_at, usable
from truing.train.ppo_share import RewardFn
from truing.types import Dialogue

__all__ = [
    "PPO", "explained_variance", "gae", "kl_estimates", "net_of_length", "place_rewards", "policy_accuracy",
    "train_ppo", "whiten",
]  # fmt: skip

RATIO_TOLERANCE = 1e-5


def train_ppo(
    config: PPOTrain,
    *,
    prompts: Sequence[Dialogue | PromptRow] | None = None,
    eval_prompts: Sequence[Dialogue | PromptRow] | None = None,
    reward_fn: RewardFn | None = None,
    lm: LM | None = None,
    pm: PreferenceModel | None = None,
    test_pms: dict[str, PreferenceModel] | None = None,
) -> Run | dict[str, Any]:
    """Train a policy by PPO; the verb ``rlhf train``. The same call again resumes the run or returns it.

    ``prompts``, ``eval_prompts`` (rows carry ids, and sources by which scores are split), ``lm``, ``pm`` and
    ``test_pms`` (by name) stand in for what the config names; ``reward_fn`` (dialogues → one score each) for the
    preference model. The run holds the policy as a Hugging Face folder ``model/`` and the numbers pm_score_gain, kl,
    entropy, reply_tokens, eos_rate (and the last three ``/before``). The processes that torchrun started share the
    work: the first one writes the run, all return it.
    Raises ValueError for options or prompts that cannot be used, and where the self-check of the first step fails.
    """
    check(config)
    rows = prompt_rows(prompts, config.prompts, held_out := prompt_rows(eval_prompts, config.eval_prompts))
    if config.dry_run:
        group_for(ALONE)  # several would measure one another
        compute = choose(config.device, config.dtype, config.threads)
        ppo, loading = timed(lambda: _load(config, compute, rows, held_out, lm, pm, reward_fn, test_pms))
        return {"lines": ppo_cost(config, ppo, compute, loading)}
    given = {"prompts": prompts, "eval_prompts": eval_prompts}
    hashes = {name: data_hash(items) for name, items in given.items() if items is not None}
    files = [file for name, items in given.items() if items is None for file in getattr(config, name)]
    with processes() as group:
        run = open_run(group, "rlhf train", config, data_files=files, data_hashes=hashes, slug=Path(config.policy).name)
        if group.same(run.done):
            return run
        ppo = _load(config, compute_of(group, run, config), rows, held_out, lm, pm, reward_fn, test_pms, group)
        show_prompt(ppo.base, ppo.prompts[0].dialogue)
        ending = train(
            run,
            state=ppo.state,
            num_steps=config.steps,
            step_fn=ppo.step,
            eval_fn=lambda steps: ppo.evaluate(steps, run),
            eval_every=config.eval_every,
            config=config,
            group=group,
        )
        if ending == "stopped":
            run.stop(*stopped_numbers(run.metrics(), config))
        else:
            ppo.finish(run)
        group.gather(None)  # the run is whole when any process returns
    return run


def _load(
    config: PPOTrain,
    compute: Compute,
    rows: Sequence[PromptRow],
    held_out: Sequence[PromptRow],
    lm: LM | None,
    pm: PreferenceModel | None,
    reward_fn: RewardFn | None,
    test_pms: dict[str, PreferenceModel] | None,
    group: Group = ALONE,
) -> PPO:
    where: dict[str, Any] = {"device": compute.device, "dtype": torch.float32}  # bf16, if chosen, by autocast
    lm = lm or LM.load(config.policy, **where)
    if pm is None and reward_fn is None:
        pm = PreferenceModel.load(config.pm, **where)
    tests = {Path(name).name: PreferenceModel.load(name, **where) for name in config.test_pm} | (test_pms or {})
    ppo = PPO(config, lm, rows, held_out, pm=pm, reward_fn=reward_fn, test_pms=tests, group=group)
    ppo.models.autocast = compute.dtype
    return ppo


class PPO:
    """The trainer: models, optimiser and prompts; ``step`` does one step and returns its metrics."""

    def __init__(
        self,
        config: PPOTrain,
        lm: LM,
        prompts: Sequence[PromptRow],
        eval_prompts: Sequence[PromptRow] = (),
        *,
        pm: PreferenceModel | None = None,
        reward_fn: RewardFn | None = None,
        test_pms: dict[str, PreferenceModel] | None = None,
        group: Group = ALONE,
    ) -> None:
        if (pm is None) == (reward_fn is None):
            raise ValueError("Give either a preference model or a reward function, not both and not neither.")
        self.config, self.base, self.pm, self.reward_fn = config, lm, pm, reward_fn
        self.test_pms, self.group = test_pms or {}, group
        self.notes: list[str] = []
        self.prompts, self.eval_prompts = usable(prompts, eval_prompts, lm, config, self.notes)
        self.models = build_models(lm, pm, config.frozen_layers, config.lora_rank, config.lora_alpha, config.seed)
        self.policy = lm.with_model(self.models.policy)
        self.reference_hash = weights_hash(self.models.reference)
        self.optimizer = optimizer_of(self.models, config)
        group.align(self._trained())
        self.state: dict[str, Stateful] = {
            "policy": Trainable(self.models.policy),
            "value": Trainable(self.models.value),
            "optimizer": self.optimizer,
        }
        self.budget = pack_budget(self._device(), config.tokens_per_pack)
        self.seconds: dict[str, float] = {}
        self.checked = False
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None

    # One step

    def step(self, step: int) -> dict[str, float]:
        """Sample, measure and update once; everything random follows from (seed, step)."""
        self.seconds = {}
        chosen = self.prompts_of(step)
        replies = self._sample(self.policy, chosen, int(rng(self.config.seed, step, 1).integers(2**62)))
        groups, batch = self.look(replies, self.config.minibatches)
        if step == 0 and bool(batch.kl.any()):
            raise ValueError(
                f"Self-check failed: before any update the policy's KL to the reference is {batch.kl.abs().max():.3g}, "
                "not 0. The policy must start as an exact copy of the reference."
            )
        paid, slope = self.paid(batch, replies, step)
        rewards = self.advantages(batch, paid)
        learned = self.update(groups, batch, step)
        now = weights_hash(self.models.reference)
        if now != self.reference_hash:
            raise ValueError("The reference policy's weights changed: KL has lost its anchor. This is a bug in truing.")
        names = [row.source for row in chosen for _ in range(self.config.samples_per_prompt)]
        return {
            **learned,
            **describe(replies, batch, rewards, names),
            **slope,
            "reference_hash": now,
            "samples": self.samples_seen(step + 1),
            **{f"seconds_{name}": round(value, 3) for name, value in self.seconds.items()},
        }

    def prompts_of(self, step: int) -> list[PromptRow]:
        """The prompts of a step: passes over all of them, each in its own order, as a function of (seed, step)."""
        return prompts_at(step, self.prompts, self.config)

    def samples_seen(self, steps: int) -> int:
        """Replies sampled in that many steps; the schedule counts these."""
        return steps * self.config.prompts_per_step * self.config.samples_per_prompt

    def look(
        self, replies: Sequence[Reply], minibatches: int = 1, *, with_values: bool = True
    ) -> tuple[list[list[Part]], Batch]:
        """Pack replies (one list of parts per minibatch) and let every model read them; scores are centred.

        Every process reads some of the packs, and those are the parts it gets. The replies to one prompt stay in one
        minibatch where the numbers allow it, so that the prompt is read once.
        """
        models, device = self.models, self._device()
        mask = mask_of(replies, device)
        paths = [models.pm.pm_ids(r.dialogue) for r in replies] if models.pm else None
        split = np.array_split(np.arange(len(replies)), minibatches)

        def repack(m: int, budget: int) -> list[Part]:
            rows = split[m].tolist()
            parts = pack_replies(replies, rows, mask.shape[1], pm_paths=paths, budget=budget, device=device)
            parts = parts[self.group.rank :: self.group.size]
            with self._timed("trunk"):
                models.run_trunk(parts)
            return parts

        def read(budget: int) -> tuple[list[list[Part]], Batch]:
            groups = [repack(m, budget) for m in range(minibatches)]
            parts = [part for group in groups for part in group]
            with self._timed("measure"):
                batch = ppo_share.measure(self.group, models, parts, mask, with_values=with_values)
            with self._timed("score"):
                if models.pm:
                    scores = ppo_share.pm_scores(self.group, models, parts, len(replies)) - models.pm.reference_mean
                else:
                    with models.precision() if self.pm else nullcontext():
                        scores = ppo_share.judge(self.group, [r.dialogue for r in replies], self.pm, self.reward_fn)
            batch.scores = torch.as_tensor(np.asarray(scores, dtype=np.float32)).to(device)
            return groups, batch

        self.repack = repack
        what = "reading replies with {} tokens in a pack"
        found, self.budget = fitting(read, self.budget, what, retry=self.group.size == 1)
        return found

    def paid(self, batch: Batch, replies: Sequence[Reply], step: int) -> tuple[Tensor, dict[str, float]]:
        """What replies earn: their scores [N], shuffled for a control, net of their length where that was asked for."""
        scores = batch.scores
        if self.config.random_reward:
            order = rng(self.config.seed, step, 3).permutation(len(replies))
            scores = scores[torch.from_numpy(order).to(scores.device)]
        if not self.config.length_neutral:
            return scores, {}
        net, slope = net_of_length(scores, batch.mask.sum(1), torch.tensor([r.prompt for r in replies]))
        return net, {"length_slope": slope}

    def advantages(self, batch: Batch, paid: Tensor) -> Tensor:
        """Fill in whitened advantages and value targets from what replies earn [N]; returns the rewards [N, L]."""
        c = self.config
        rewards = place_rewards(paid, batch.lp_old, batch.lp_ref, batch.mask, c.kl_coef)
        advantages, batch.returns = gae(rewards, batch.values, batch.mask, c.gamma, c.gae_lambda)
        batch.advantages = whiten(advantages, batch.mask)
        return rewards

    def update(self, groups: list[list[Part]], batch: Batch, step: int) -> dict[str, float]:
        """K passes over the minibatches, one optimiser step each; means over all of them."""
        c, visited = self.config, 0
        lr = set_lr(self.optimizer, self.samples_seen(step), c, self.samples_seen(c.steps))
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
        norms: list[tuple[float, ...]] = []
        first_deviation = widest = 0.0
        with self._timed("update"):
            for epoch in range(c.ppo_epochs):
                for m in rng(c.seed, step, 5, epoch).permutation(len(groups)):
                    tokens = sum(self.group.gather(sum(len(part.cells) for part in groups[m])))
                    found, as_measured = self._backward(groups, m, batch, tokens)
                    found = [f for theirs in self.group.gather(found) for f in theirs]
                    self.group.sum_gradients(self._trained())
                    deviation = max(f["max_ratio_deviation"] for f in found)
                    if not norms:
                        first_deviation = self._check_ratio(deviation) if as_measured else deviation
                    widest = max(widest, deviation)
                    both = (clip(x.parameters(), c.max_grad_norm) for x in (self.models.policy, self.models.value))
                    norms.append(tuple(both))
                    self.optimizer.step()
                    visited += tokens
                    for name in sums:
                        sums[name] += sum(f[name] for f in found)
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / visited for name, value in sums.items()}
        return {
            "loss": means["policy_loss"] + c.vf_coef * means["value_loss"],
            **means,
            "lr": lr,
            "grad_norm": max(n[0] for n in norms),
            "value_grad_norm": max(n[1] for n in norms),
            "ratio_deviation_first": first_deviation,
            "ratio_deviation": widest,
            "optimizer_steps": len(norms),
            "token_visits": visited,
        }

    def _backward(
        self, groups: list[list[Part]], m: int, batch: Batch, tokens: int
    ) -> tuple[list[dict[str, float]], bool]:
        """Gradients of minibatch m, and whether it stands in the packs it was measured in: not once memory ran out."""
        measured = groups[m]

        def backward(budget: int) -> list[dict[str, float]]:
            self.optimizer.zero_grad(set_to_none=True)  # also what was left when memory ran out
            if any(budget < part.budget for part in groups[m]):
                groups[m] = self.repack(m, budget)
            c, parts = self.config, [part for part in groups[m] if len(part.cells)]
            return [self.models.backward(part, batch, tokens, clip=c.clip, value_coef=c.vf_coef) for part in parts]

        alone = self.group.size == 1
        found, self.budget = fitting(backward, self.budget, "updating with {} tokens in a pack", retry=alone)
        return found, groups[m] is measured

    # Evaluation and the end

    def evaluate(self, steps_done: int, run: Run | None = None) -> dict[str, float]:
        """Answer the evaluation prompts with fixed seeds and let every judge score the replies; ``run`` keeps them."""
        self.after = found = self._evaluation(self.policy)
        if run and self.group.leads:
            keep(run, self.samples_seen(steps_done), steps_done, found, [row.id for row in self.eval_prompts])
        if steps_done == 0:
            self.before = found
            return found.metrics()
        before = self.start()
        gained = {"eval_score_gain": float((found.scores - before.scores).mean())}
        return found.metrics() | gained | {f"eval_gap/{gap.name}": gap.value for gap in gaps(before, found)}

    def start(self) -> Evaluation:
        """The evaluation of the untrained policy; a resumed run takes it again from the base model."""
        self.before = self.before or self._evaluation(self.base)
        return self.before

    def finish(self, run: Run) -> None:
        """Save the policy, measure it against its start, and write samples and summary."""
        before = self.start()
        after = self.after or self._evaluation(self.policy)
        if self.group.leads:
            self.policy.save(run.path / "model")
        run.write_samples(sample_rows(before, after, [row.id for row in self.eval_prompts]))
        notes = [*self.notes, *warnings(before, after), *option_notes(self.config)]
        run.finish(numbers(before, after, self.config.seed), notes)

    def _evaluation(self, policy: LM) -> Evaluation:
        """Replies of ``policy`` (ours or the base, whose KL is 0) to the evaluation prompts, at seeds of their own."""
        replies = self._sample(policy, self.eval_prompts, int(rng(self.config.seed, 6).integers(2**62)))
        dialogues = [r.dialogue for r in replies]
        ours, self.models.policy = self.models.policy, policy.model
        try:
            _, batch = self.look(replies, with_values=False)
        finally:
            self.models.policy = ours
        return Evaluation(
            [replace(reply, read=None) for reply in replies],  # what sampling has read is of no more use
            batch.scores.double().cpu().numpy(),
            batch.kl.sum(1).double().cpu().numpy(),
            batch.entropy.sum(1).double().cpu().numpy(),
            {name: ppo_share.judge(self.group, dialogues, pm) for name, pm in self.test_pms.items()},
        )

    # Small parts

    def _sample(self, policy: LM, rows: Sequence[PromptRow], seed: int) -> list[Reply]:
        asked, trace = [row.dialogue for row in rows], self.models.trace()
        with self._timed("sample"), self.models.precision():
            return ppo_share.sample(self.group, policy, asked, self.config, seed=seed, trace=trace)

    def _check_ratio(self, deviation: float) -> float:
        """Before the first update old and new log-probs are of one model; else nothing that follows is right."""
        if not self.checked and not deviation <= RATIO_TOLERANCE:
            raise ValueError(
                f"Self-check failed: before any update the probability ratio is off 1 by {deviation:.2g} (at most "
                f"{RATIO_TOLERANCE}): old and new log-probabilities are not taken alike. Try --dtype float32."
            )
        self.checked = True
        return deviation

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _device(self) -> torch.device:
        return next(self.models.policy.parameters()).device

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
