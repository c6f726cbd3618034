"""Both sides of `pm_training`: one pass over pairs by truing's trainer or by TRL's RewardTrainer; and their checks."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from clock import Clock, Job, run


def work(job: Job, clock: Clock) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    side = {"truing": by_truing, "truing-check": check_truing, "peer": by_trl, "peer-check": check_trl}
    with tempfile.TemporaryDirectory() as scratch:
        return side[job["side"]]({**job, "scratch": scratch}, clock)


# truing


def by_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """All pairs once; the loss of every step, and how many tokens were read."""
    import numpy as np

    trainer = truing_trainer(job, job["rows"], job["batch"], getattr(torch, job["dtype"]))
    trainer.backward(np.arange(1))
    with clock.time("all"):
        steps = [trainer.step(step) for step in range(trainer.num_steps)]
    return {"losses": [s["loss"] for s in steps], "steps": len(steps), "tokens": sum(s["tokens"] for s in steps)}


def check_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """Score gaps of the checked pairs before and after a few float32 steps over them in their order."""
    import numpy as np

    trainer = truing_trainer(job, job["rows"], job["batch"], torch.float32, adam_beta2=0.999)
    cuts = range(0, len(job["rows"]), job["batch"])
    trainer.epoch_batches = lambda epoch: [np.arange(at, at + job["batch"]) for at in cuts]
    pairs = trainer.pairs
    ids = [[pairs.sequences[i].tolist() for i in those] for those in (pairs.chosen, pairs.rejected)]

    def gaps() -> list[float]:
        scores = trainer.score_all(range(len(pairs.sequences)))
        return [scores[a] - scores[b] for a, b in zip(pairs.chosen, pairs.rejected, strict=True)]

    before = gaps()
    for step in range(trainer.num_steps):
        trainer.step(step)
    same = ids == [job["chosen"], job["rejected"]]
    return {"before": before, "after": gaps(), "steps": trainer.num_steps, "same_ids": same}


def truing_trainer(job: Job, rows: Any, batch: int, dtype: torch.dtype, **options: Any) -> Any:
    """``pm train`` with its defaults, in memory; the model is the job's initial folder."""
    from truing.configs import PMTrain
    from truing.train.pm import PMTrainer
    from truing.train.pm_setup import start
    from truing.types import Comparison, Dialogue

    given = {"batch_size": batch, "learning_rate": job["learning_rate"], "seed": job["seed"], **options}
    config = PMTrain(init=job["model"], data=[], frozen_layers=0, **given)
    pairs = [Comparison(Dialogue.from_messages(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
    return PMTrainer(config, start(config, torch.device("cpu")), pairs, autocast=dtype)


# TRL


def by_trl(job: Job, clock: Clock) -> dict[str, Any]:
    """All pairs once by ``RewardTrainer.train``; or, to choose settings, one optimiser step with each of some."""
    for size, dtype in job.get("try", ()):
        some = every(job, job["trial"])
        trainer = trl_trainer({**some, "peer_batch": size, "dtype": dtype})
        warm_up(trainer)
        with clock.time(f"{size} {dtype}"):
            trainer.train()
    if "try" in job:
        return {}
    trainer = trl_trainer(job)
    warm_up(trainer)
    with clock.time("all"):
        out = trainer.train()
    return {"losses": [out.training_loss], "steps": out.global_step, "tokens": int(trainer._total_train_tokens)}


def check_trl(job: Job, clock: Clock) -> dict[str, Any]:
    """As ``check_truing``: the same pairs in the same batches, in float32, with the same AdamW."""
    trainer = trl_trainer(job, train_sampling_strategy="sequential", lr_scheduler_type="constant")

    @torch.no_grad()
    def gaps() -> list[float]:
        trainer.model.eval()
        out = []
        for row in trainer.train_dataset:
            inputs = trainer.data_collator([row])
            chosen, rejected = trainer.model(**inputs, use_cache=False).logits.squeeze(-1).tolist()
            out.append(chosen - rejected)
        return out

    before = gaps()
    steps = trainer.train().global_step
    return {"before": before, "after": gaps(), "steps": steps}


def warm_up(trainer: Any) -> None:
    """One forward and backward pass over one pair, whose gradient is thrown away."""
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
        loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    trainer.model.zero_grad()
    trainer._total_train_tokens = 0


def every(job: Job, count: int) -> Job:
    """The job with ``count`` of its pairs, evenly spread over the lengths."""
    order = sorted(range(len(job["chosen"])), key=lambda i: len(job["chosen"][i]) + len(job["rejected"][i]))
    some = [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]
    return {**job, "chosen": [job["chosen"][i] for i in some], "rejected": [job["rejected"][i] for i in some]}


def trl_trainer(job: Job, **options: Any) -> Any:
    """A RewardTrainer: with its own defaults if the job's ``peer_batch`` is 0, else as tuned there."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32)
    columns = {"chosen_ids": job["chosen"], "rejected_ids": job["rejected"]}
    if job["peer_batch"]:
        columns["length"] = [max(len(a), len(b)) for a, b in zip(job["chosen"], job["rejected"], strict=True)]
        options = {
            "per_device_train_batch_size": job["peer_batch"],
            "gradient_accumulation_steps": job["batch"] // job["peer_batch"],
            "bf16": job["dtype"] == "bfloat16",
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,  # or the lengths would be removed before they are read
            **options,
        }
    config = RewardConfig(
        output_dir=job["scratch"],
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        seed=job["seed"],
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return RewardTrainer(model=model, args=config, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)


if __name__ == "__main__":
    run(work)
