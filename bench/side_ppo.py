"""Both sides of `ppo_iteration`: one iteration of truing's PPO or of TRL's PPOTrainer; and their checks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from clock import Clock, Job, run

Rows = Sequence[Sequence[int]]


def work(job: Job, clock: Clock) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    side = {"truing": by_truing, "truing-check": check_truing, "peer": by_trl, "peer-check": check_trl}
    with tempfile.TemporaryDirectory() as scratch:
        return side[job["side"]]({**job, "scratch": scratch}, clock)


# truing


def by_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """One step of the trainer: it samples, scores and updates."""
    ppo = truing_ppo(job, getattr(torch, job["dtype"]))
    ppo.policy.sample([row.dialogue for row in ppo.prompts[:2]], n=2, max_tokens=4, seed=1)
    sample, drawn = ppo._sample, []
    ppo._sample = lambda *given: drawn.extend(sample(*given)) or drawn
    with clock.time("all"):
        found = ppo.step(0)
    parts = {name.removeprefix("seconds_"): s for name, s in found.items() if name.startswith("seconds_")}
    return {"lengths": [len(r.ids) for r in drawn], "steps": found["optimizer_steps"], "parts": parts}


def check_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """Short replies, and in float32 their log-probabilities and raw scores as the trainer measures them."""
    ppo = truing_ppo(job, torch.float32)
    replies = ppo._sample(ppo.policy, ppo.prompts, seed=2)
    _, batch = ppo.look(replies)
    return {
        "queries": [r.prompt_ids for r in replies],
        "replies": [r.ids for r in replies],
        "pm_ids": [ppo.pm.pm_ids(r.dialogue) for r in replies],
        "logprobs": batch.lp_old.sum(1).tolist(),
        "ref_logprobs": batch.lp_ref.sum(1).tolist(),
        "scores": (batch.scores.double() + ppo.pm.reference_mean).tolist(),
    }


def truing_ppo(job: Job, dtype: torch.dtype) -> Any:
    """The trainer of ``rlhf train`` in memory, with the job's settings."""
    from truing.configs import PPOTrain
    from truing.data.prompts import PromptRow
    from truing.models.heads import PreferenceModel
    from truing.models.lm import LM
    from truing.train.ppo import PPO
    from truing.types import Dialogue

    config = PPOTrain(
        policy=job["model"],
        pm=job["pm"],
        prompts=[],
        steps=1,
        prompts_per_step=len(job["prompts"]),
        samples_per_prompt=job["n"],
        ppo_epochs=job["epochs"],
        minibatches=1,
        max_new_tokens=job["max_tokens"],
        kl_coef=job["kl_coef"],
        vf_coef=job["vf_coef"],
        learning_rate=job["learning_rate"],
        frozen_layers=job["frozen_layers"],
        seed=job["seed"],
    )
    rows = [PromptRow(Dialogue.from_messages(m), str(i), i, "bench") for i, m in enumerate(job["prompts"], 1)]
    lm = LM.load(job["model"], device="cpu", dtype=torch.float32)
    ppo = PPO(config, lm, rows, rows, pm=PreferenceModel.load(job["pm"]))
    ppo.models.autocast = dtype
    return ppo


# TRL


def by_trl(job: Job, clock: Clock) -> dict[str, Any]:
    """``PPOTrainer.train`` for one batch; or, to choose settings, the update of some rows with each of some."""
    for size, dtype in job.get("try", ()):
        trainer = trl_ppo({**job, "peer_batch": size, "dtype": dtype})
        some = [(query, (query * job["max_tokens"])[: job["max_tokens"]]) for query in job["queries"][: job["trial"]]]
        rows = torch.tensor(padded([query + reply for query, reply in some], trainer))
        for name in ("warm-up", f"{size} {dtype}"):
            with clock.time(name):
                update(trainer, rows if name != "warm-up" else rows[:1], size)
    if "try" in job:
        return {}
    trainer = trl_ppo(job)
    counts: dict[str, Any] = {"steps": 0, "lengths": [], "parts": {}}
    watch(trainer, counts)
    trainer.policy_model.generate(torch.tensor([job["queries"][0]]), max_new_tokens=4, do_sample=False)
    with clock.time("all"):
        trainer.train()
    return counts


def watch(trainer: Any, counts: dict[str, Any]) -> None:
    """Count optimiser steps and the tokens of replies, each up to and with its stop, and time the sampling."""
    from trl.experimental.ppo import ppo_trainer

    plain, stop = ppo_trainer.batch_generation, trainer.stop_token_id

    def generation(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        began = time.perf_counter()
        out = plain(model, queries, *rest)
        counts["parts"]["sample"] = round(time.perf_counter() - began, 3)
        for row in out[0][:, queries.shape[1] :].tolist():
            counts["lengths"].append(row.index(stop) + 1 if stop in row else len(row))
        return out

    def count(*_: Any) -> None:
        counts["steps"] += 1

    ppo_trainer.batch_generation = generation
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    inner.register_step_post_hook(count)


def update(trainer: Any, rows: torch.Tensor, size: int) -> None:
    """Forward and backward passes of policy and value model over rows, ``size`` at a time, as in TRL's update."""
    from trl.experimental.ppo.ppo_trainer import forward

    for part in rows.split(size):
        output, values = forward(trainer.model, part, trainer.processing_class.pad_token_id)
        logits = output.logits[:, rows.shape[1] // 2 :]
        (logits.log_softmax(-1)[..., 0].mean() + values.mean()).backward()
    trainer.model.zero_grad()


def padded(rows: Rows, trainer: Any) -> list[list[int]]:
    pad, longest = trainer.processing_class.pad_token_id, max(map(len, rows))
    return [[pad] * (longest - len(row)) + list(row) for row in rows]


@torch.no_grad()
def check_trl(job: Job, clock: Clock) -> dict[str, Any]:
    """Log-probabilities under policy and reference of truing's replies, and their raw scores, by TRL's functions."""
    from trl.experimental.ppo.ppo_trainer import forward
    from trl.experimental.utils import get_reward
    from trl.trainer.utils import selective_log_softmax

    trainer = trl_ppo({**job, "dtype": "float32"})
    pad = trainer.processing_class.pad_token_id

    def logprobs(model: Any) -> list[float]:
        out = []
        for query, reply in zip(job["replied_queries"], job["replies"], strict=True):
            rows = torch.tensor([[pad, pad, *query, *reply]])  # padded, as TRL's rows are
            logits = forward(model, rows, pad).logits[:, len(query) + 1 : -1] / (trainer.args.temperature + 1e-7)
            out.append(selective_log_softmax(logits, torch.tensor([reply])).sum().item())
        return out

    scores = [get_reward(trainer.reward_model, torch.tensor([[pad, *ids]]), pad, 1)[1].item() for ids in job["pm_ids"]]
    return {"logprobs": logprobs(trainer.policy_model), "ref_logprobs": logprobs(trainer.ref_model), "scores": scores}


def trl_ppo(job: Job) -> Any:
    """A PPOTrainer whose only batch holds every prompt ``n`` times."""
    from accelerate.state import AcceleratorState
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    # PPOTrainer makes its Accelerator without regard to bf16=True; this is how its users get mixed precision
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if job["dtype"] == "bfloat16" else "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = [list(query) for query in job["queries"] for _ in range(job["n"])]
    config = PPOConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["peer_batch"],
        gradient_accumulation_steps=len(rows) // job["peer_batch"],
        num_mini_batches=1,
        num_ppo_epochs=job["epochs"],
        total_episodes=len(rows),
        response_length=job["max_tokens"],
        local_rollout_forward_batch_size=job["rollout_batch"],
        temperature=1.0,
        stop_token="eos",
        kl_coef=job["kl_coef"],
        vf_coef=job["vf_coef"],
        learning_rate=job["learning_rate"],
        seed=job["seed"],
        bf16=job["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        num_sample_generations=0,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["pm"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["pm"], dtype=torch.float32) for _ in range(2)
    )
    torch.nn.init.zeros_(value.score.weight)
    data = Dataset.from_dict({"input_ids": rows})
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
    )
    # the only batch is also the last of its pass over the data, where accelerate would step after every micro-batch
    trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    return trainer


if __name__ == "__main__":
    run(work)
