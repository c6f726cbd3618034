"""The PPO trainer: one step, one evaluation, and the end of a run. What a step is stands in `truing.train.ppo`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.configs import PPOTrain
from truing.data.prompts import PromptRow
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.memory import fitting
from truing.models.tree import pack_budget
from truing.runs import Run
from truing.train import ppo_share
from truing.train.loop import Stateful, Trainable, clip, rng, set_lr
from truing.train.parallel import ALONE, Group
from truing.train.ppo_batch import Batch, Part, Reply, mask_of, pack_replies
from truing.train.ppo_eval import (
    Evaluation,
    alarm_text,
    alarms,
    describe,
    gaps,
    keep,
    numbers,
    sample_rows,
    warnings,
)
from truing.train.ppo_math import gae, net_of_length, place_rewards, rloo, whiten
from truing.train.ppo_models import build_models, optimizer_of, weights_hash
from truing.train.ppo_reward import RewardFn
from truing.train.ppo_setup import option_notes, prompts_at, usable
from truing.train.ppo_watch import Watch

RATIO_TOLERANCE = 1e-5


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
        watch: Watch | None = None,
        group: Group = ALONE,
    ) -> None:
        if (pm is None) == (reward_fn is None):
            raise ValueError("Give either a preference model or a reward function, not both and not neither.")
        self.config, self.base, self.pm, self.reward_fn = config, lm, pm, reward_fn
        self.test_pms, self.watch, self.group = test_pms or {}, watch or Watch(), group
        self.notes: list[str] = []
        self.prompts, self.eval_prompts = usable(prompts, eval_prompts, lm, config, self.notes)
        c, with_value = config, config.advantage == "gae"
        self.models = build_models(lm, pm, c.frozen_layers, c.lora_rank, c.lora_alpha, c.seed, with_value=with_value)
        self.policy = lm.with_model(self.models.policy)
        self.reference_hash = weights_hash(self.models.reference)
        self.optimizer = optimizer_of(self.models, config)
        group.align(self._trained())
        self.state: dict[str, Stateful] = {"policy": Trainable(self.models.policy), "optimizer": self.optimizer}
        if self.models.value is not None:
            self.state["value"] = Trainable(self.models.value)
        self.budget = pack_budget(self._device(), config.tokens_per_pack)
        self.seconds: dict[str, float] = {}
        self.checked, self.rung = False, set[str]()
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
        asked = [row for row in chosen for _ in range(self.config.samples_per_prompt)]
        return {
            **learned,
            **describe(replies, batch, rewards, asked),
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
        """Fill in advantages (and value targets) from what replies earn [N]; returns the rewards [N, L].

        Those of gae are whitened; those of rloo stay as they are, so that the gradient has no bias.
        """
        c = self.config
        rewards = place_rewards(paid, batch.lp_old, batch.lp_ref, batch.mask, c.kl_coef)
        if c.advantage == "rloo":
            batch.advantages = rloo(rewards, batch.mask, c.samples_per_prompt)
            return rewards
        advantages, batch.returns = gae(rewards, batch.values, batch.mask, c.gamma, c.gae_lambda)
        batch.advantages = whiten(advantages, batch.mask)
        return rewards

    def update(self, groups: list[list[Part]], batch: Batch, step: int) -> dict[str, float]:
        """K passes over the minibatches, one optimiser step each; means over all of them."""
        c, visited = self.config, 0
        lr = set_lr(self.optimizer, self.samples_seen(step), c, self.samples_seen(c.steps))
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
        norms: list[list[float]] = []
        first_deviation = widest = 0.0
        with self._timed("update"):
            for epoch in range(c.ppo_epochs):
                for m in rng(c.seed, step, 5, epoch).permutation(len(groups)):
                    tokens = sum(self.group.gather(sum(len(part.cells) for part in groups[m])))
                    found, as_measured = self._backward(groups, m, batch, tokens)
                    every = [f for theirs in self.group.gather(found) for f in theirs]
                    self.group.sum_gradients(self._trained())
                    deviation = max(f["max_ratio_deviation"] for f in every)
                    if not norms:
                        first_deviation = self._check_ratio(deviation) if as_measured else deviation
                    widest = max(widest, deviation)
                    trained = (self.models.policy, self.models.value)
                    norms.append([clip(x.parameters(), c.max_grad_norm) for x in trained if x is not None])
                    self.optimizer.step()
                    visited += tokens
                    for name in sums:
                        sums[name] += sum(f[name] for f in every)
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / visited for name, value in sums.items()}
        out = {
            "loss": means["policy_loss"] + c.vf_coef * means["value_loss"],
            **means,
            "lr": lr,
            **dict(zip(("grad_norm", "value_grad_norm"), map(max, zip(*norms, strict=True)), strict=False)),
            "ratio_deviation_first": first_deviation,
            "ratio_deviation": widest,
            "optimizer_steps": len(norms),
            "token_visits": visited,
        }
        if self.models.value is None:
            del out["value_loss"]
        return out

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
            how: dict[str, Any] = {"clip": c.clip, "value_coef": c.vf_coef, "value_clip": c.value_clip or None}
            return [self.models.backward(part, batch, tokens, **how) for part in parts]

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
            return self._logged(found)
        before = self.start()
        out = self._logged(found) | {"eval_score_gain": float((found.scores - before.scores).mean())}
        for gap in gaps(before, found):
            out |= {f"eval_gap/{gap.name}": gap.value, f"eval_alarm/{gap.name}": float(gap.alarm)}
            if gap.alarm and gap.name not in self.rung:
                self.rung.add(gap.name)
                print(f"After step {steps_done}: {alarm_text(gap)}", file=sys.stderr)
        return out

    def _logged(self, found: Evaluation) -> dict[str, float]:
        return found.metrics() | self.watch.metrics(found.watched)

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
        notes = [*self.notes, *warnings(before, after), *alarms(run.metrics()), *option_notes(self.config)]
        if not self.test_pms:
            notes.append("No judge that never trains was given (--test-pm): over-optimisation of this one is not seen.")
        watched = self.watch.numbers(before.watched, after.watched, self.config.seed)
        run.finish(numbers(before, after, self.config.seed) | watched, notes)

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
            [self.eval_prompts[r.prompt].kind for r in replies],
            self.watch.look(policy, self._one_each),
        )

    def _one_each(self, policy: LM, rows: Sequence[PromptRow]) -> list[Reply]:
        config = replace(self.config, samples_per_prompt=1)
        seed = int(rng(self.config.seed, 7).integers(2**62))
        with self.models.precision():
            return ppo_share.sample(self.group, policy, [row.dialogue for row in rows], config, seed=seed)

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
