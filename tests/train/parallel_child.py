"""What two processes do for test_parallel.py: started by torchrun or by hand, never imported by pytest.

``python -m torch.distributed.run --nproc-per-node 2 parallel_child.py FOLDER JOB…``; JOB:kill ends the second process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ppo_toys import PROMPTS, config, toy_lm, toy_pm

from truing.configs import PMTrain
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.train.loop import rng
from truing.train.pm import PMTrainer, train_pm
from truing.train.ppo import train_ppo
from truing.types import Comparison, Dialogue

SHARED: dict[str, Any] = {
    "init": "toy", "data": [], "device": "cpu", "dtype": "float32", "threads": 1, "learning_rate": 3e-3,
    "batch_size": 8, "epochs": 2, "tokens_per_pack": 64, "save_every": 3, "weight_decay": 0.1,
}  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {
    "whole": {},
    "fsdp": {"parallel": "fsdp", "gradient_checkpointing": True},
    "frozen": {"frozen_layers": 1, "learning_rate": 1e-3},
    "lora": {"lora_rank": 4, "learning_rate": 3e-3, "harmless_weight": 2.0, "weights": [1.4]},
    "killed": {},
    "killed-fsdp": {"parallel": "fsdp"},
}
POLICIES: dict[str, dict[str, Any]] = {"ppo": {}, "ppo-lora": {"lora_rank": 4, "learning_rate": 0.02}}


def comparisons(n: int = 27, seed: int = 0) -> list[Comparison]:
    """Pairs of which some share a prompt; the last batch of an epoch has three, one of them long."""
    random = rng(seed, 3)
    rows = [
        Comparison(
            Dialogue().ask(f"q{i // 2} " + "why " * int(random.integers(1, 6 + 20 * (i == n - 1)))),
            f"good {random.integers(99)}",
            f"bad {random.integers(99)} " * int(random.integers(1, 4)),
            kind="helpful" if i % 3 else "harmless",
        )
        for i in range(n)
    ]
    return rows


def train(out: Path, **options: Any) -> Any:
    """One training of the toy model; the same in one process and in two."""
    lm = LM(new_model("llama", layers=2, width=32, heads=2, seed=3), byte_tokenizer(), name="toy")
    return train_pm(
        PMTrain(out=out, **(SHARED | options)),
        comparisons=comparisons(),
        eval_comparisons=comparisons(12, seed=1),
        lm=lm,
    )


def train_policy(out: Path, **more: Any) -> Any:
    """Three steps of PPO; packs so small that a step has several."""
    lm = toy_lm()
    options: dict[str, Any] = {"frozen_layers": 1, "minibatches": 2, "tokens_per_pack": 30, "max_grad_norm": 0.5}
    return train_ppo(
        config(out, **options | more), prompts=PROMPTS, eval_prompts=PROMPTS[:3], lm=lm, pm=toy_pm(lm, frozen=1)
    )


def killed_at(step: int, rank: int) -> None:
    """Process ``rank`` kills itself inside that step."""
    real = PMTrainer.step

    def stepping(self: PMTrainer, number: int) -> dict[str, float]:
        found = real(self, number)
        if number + 1 == step and self.group.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    PMTrainer.step = stepping  # type: ignore[method-assign]


def main(folder: Path, jobs: Sequence[str]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    said: dict[str, Any] = {}
    for job in jobs:
        name, _, how = job.partition(":")
        if how == "kill":
            killed_at(5, rank=1)
        if name == "different":
            try:
                train(folder / name, learning_rate=1e-3 * (rank + 1))
            except ValueError as problem:
                said[name] = str(problem)
            continue
        policy = name in POLICIES
        run = train_policy(folder / name, **POLICIES[name]) if policy else train(folder / name, **JOBS[name])
        said[name] = {"kind": type(run).__name__, "done": run.done, "run": str(run.path)}
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
