"""PPO against a preference model (2204.05862 §4.1, App B.1): the verb ``rlhf train``.

A step: the prompts that follow from (seed, step) are answered by the policy, plain sampling at temperature 1; policy,
reference, value function and preference model read the replies in shared prefix trees over one frozen trunk; reward
is the PM score (or the user's own number) on the last token minus λ·(log π − log π0) on every token; advantages by
GAE, whitened over reply tokens, or leave-one-out; then K passes of minibatches of whole replies. KL is always the sum
over the tokens of a reply, in nats.

Logged under other names elsewhere: score (objective/scores), reward (objective/rlhf_reward), kl (objective/kl, exact
here), clip_fraction (policy/clipfrac_avg), approx_kl (policy/approxkl_avg), ratio_deviation (|val/ratio − 1|).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from truing.configs import PPOTrain
from truing.data.comparisons import load_comparisons
from truing.data.prompts import PromptRow
from truing.models.compute import Compute, choose
from truing.models.heads import PreferenceModel
from truing.models.lm import LM, show_prompt
from truing.runs import Run
from truing.train.cost import timed
from truing.train.cost_of import ppo_cost
from truing.train.loop import train
from truing.train.parallel import ALONE, Group, compute_of, group_for, open_run, processes
from truing.train.pm_setup import data_hash as hash_of
from truing.train.ppo_eval import stopped_numbers
from truing.train.ppo_math import explained_variance, gae, kl_estimates, net_of_length, place_rewards, rloo, whiten
from truing.train.ppo_models import weights_hash
from truing.train.ppo_reward import RewardFn, load_reward, reward_identity
from truing.train.ppo_setup import batch_line, check, data_hash, not_held_out, prompt_rows, tell_leaks
from truing.train.ppo_trainer import PPO
from truing.train.ppo_watch import Watch, policy_accuracy
from truing.types import Comparison, Dialogue

__all__ = [
    "PPO", "explained_variance", "gae", "kl_estimates", "net_of_length", "place_rewards", "policy_accuracy", "rloo",
    "train_ppo", "whiten",
]  # fmt: skip


def train_ppo(
    config: PPOTrain,
    *,
    prompts: Sequence[Dialogue | PromptRow] | None = None,
    eval_prompts: Sequence[Dialogue | PromptRow] | None = None,
    reward_fn: RewardFn | None = None,
    lm: LM | None = None,
    pm: PreferenceModel | None = None,
    test_pms: dict[str, PreferenceModel] | None = None,
    eval_comparisons: Sequence[Comparison] | None = None,
    refusal_prompts: Sequence[Dialogue | PromptRow] | None = None,
) -> Run | dict[str, Any]:
    """Train a policy by PPO; the verb ``rlhf train``. The same call again resumes the run or returns it.

    ``prompts``, ``eval_prompts`` (rows carry ids, kinds and sources, by which scores are split), ``lm``, ``pm``,
    ``test_pms`` (by name), ``eval_comparisons`` and ``refusal_prompts`` stand in for what the config names;
    ``reward_fn`` (dialogues → one score each) for the preference model. The run holds the policy as a Hugging Face
    folder ``model/`` and the numbers pm_score_gain, kl, entropy, reply_tokens, eos_rate and their kin. The processes
    that torchrun started share the work: the first one writes the run, all return it.
    Raises ValueError for options, prompts or rewards that cannot be used, and where the self-check of the first step
    fails.
    """
    check(config)
    reward_fn, hashes = _reward(config, pm, reward_fn)
    given: dict[str, Any] = {"prompts": prompts, "eval_prompts": eval_prompts, "refusal_prompts": refusal_prompts}
    hashes |= {name: data_hash(items) for name, items in given.items() if items is not None}
    hashes |= {} if lm is None else {"policy": str(weights_hash(lm.model))}
    for name, judge in (test_pms or {}).items():
        hashes |= reward_identity(judge, None, f"test_pm {name}")
    hashes |= {} if eval_comparisons is None else {"eval_comparisons": hash_of(eval_comparisons)}
    given["eval_comparisons"] = eval_comparisons
    files = [file for name, items in given.items() if items is None for file in getattr(config, name)]
    if eval_comparisons is None:
        eval_comparisons = load_comparisons(config.eval_comparisons) if config.eval_comparisons else []
    rows = prompt_rows(prompts, config.prompts, held_out := prompt_rows(eval_prompts, config.eval_prompts))
    rows, left_out = not_held_out(rows, config.pm) if pm is None and config.pm else (rows, [])
    watch = Watch(eval_comparisons, prompt_rows(refusal_prompts, config.refusal_prompts))

    def load(compute: Compute, group: Group = ALONE) -> PPO:
        ppo = _load(config, compute, rows, held_out, lm, pm, reward_fn, test_pms, watch, group)
        ppo.notes += left_out
        tell_leaks(ppo.prompts, eval_comparisons, ppo.notes)
        return ppo

    if config.dry_run:
        group_for(ALONE)  # several would measure one another
        compute = choose(config.device, config.dtype, config.threads)
        ppo, loading = timed(lambda: load(compute))
        return {"lines": [*ppo_cost(config, ppo, compute, loading), batch_line(config, compute)]}
    with processes() as group:
        run = open_run(group, "rlhf train", config, data_files=files, data_hashes=hashes, slug=Path(config.policy).name)
        if group.same(run.done):
            return run
        compute = compute_of(group, run, config)
        ppo = load(compute, group)
        show_prompt(ppo.base, ppo.prompts[0].dialogue)
        print(batch_line(config, compute), file=sys.stderr)
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


def _reward(
    config: PPOTrain, pm: PreferenceModel | None, reward_fn: RewardFn | None
) -> tuple[RewardFn | None, dict[str, str]]:
    """The reward function, if that is the reward, and its name → what stands for it in the run's identity."""
    if pm is not None or reward_fn is not None:
        return reward_fn, reward_identity(pm, reward_fn)
    if bool(config.pm) == bool(config.reward):
        raise ValueError(
            f"The reward is {'both --pm and --reward' if config.pm else 'missing'}. Give --pm, a preference model, or "
            "--reward, your function as MODULE:FUNCTION or a server's address."
        )
    if not config.reward:
        return None, {}
    reward_fn, identity = load_reward(config.reward)
    return reward_fn, {config.reward: identity}


def _load(
    config: PPOTrain,
    compute: Compute,
    rows: Sequence[PromptRow],
    held_out: Sequence[PromptRow],
    lm: LM | None,
    pm: PreferenceModel | None,
    reward_fn: RewardFn | None,
    test_pms: dict[str, PreferenceModel] | None,
    watch: Watch,
    group: Group,
) -> PPO:
    where: dict[str, Any] = {"device": compute.device, "dtype": torch.float32}  # bf16, if chosen, by autocast
    lm = lm or LM.load(config.policy, **where)
    if pm is None and reward_fn is None:
        pm = PreferenceModel.load(config.pm, **where)
    tests = {Path(name).name: PreferenceModel.load(name, **where) for name in config.test_pm} | (test_pms or {})
    ppo = PPO(config, lm, rows, held_out, pm=pm, reward_fn=reward_fn, test_pms=tests, watch=watch, group=group)
    ppo.models.autocast = compute.dtype
    return ppo
