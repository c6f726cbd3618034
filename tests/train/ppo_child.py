"""A PPO run in a process of its own, for test_ppo_killed.py: ``python ppo_child.py FOLDER gae|rloo``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ppo_toys import PROMPTS, config, toy_lm, toy_pm

from truing.data.prompts import PromptRow
from truing.train.ppo import train_ppo
from truing.types import Comparison, Dialogue

STEPS = 14


def main(out: Path, advantage: str) -> None:
    """Some steps with all that has a state: two kinds of prompts, minibatches, a schedule, evaluations."""
    torch.set_num_threads(1)
    lm = toy_lm()
    rows = [PromptRow(d, str(i), i, "toy", "harmless" if i % 2 else "helpful") for i, d in enumerate(PROMPTS)]
    pairs = [Comparison(d, "yes", "no") for d in PROMPTS]

    def score(dialogues: list[Dialogue]) -> np.ndarray:
        return np.array([sum(map(ord, d.last.text)) % 7 for d in dialogues]) / 7.0

    c = config(
        out, steps=STEPS, advantage=advantage, frozen_layers=1, minibatches=2, eval_every=5, save_every=1,
        learning_rate=3e-3, schedule="linear", warmup_samples=16, harmless_share=0.5, value_clip=0.5,
    )  # fmt: skip
    tests = {"other": toy_pm(lm, seed=7)}
    train_ppo(c, prompts=rows, eval_prompts=rows, lm=lm, reward_fn=score, test_pms=tests, eval_comparisons=pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
