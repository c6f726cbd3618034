"""Tasks whose best policy is known in closed form: π* ∝ π0·exp(r/λ), with E[r] − λ·KL = λ·log Σ π0·exp(r/λ).

A policy over ten tokens (three words, marks of turns, specials) answers one prompt. With one token that is a bandit
with ten arms; with three, a language of 658 replies, all of which are written out here and weighed exactly.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ppo_toys import config

from truing.data.prompts import PromptRow
from truing.models.family import new_model, word_tokenizer
from truing.models.lm import LM
from truing.text import HUMAN
from truing.train.ppo import PPO
from truing.types import Dialogue

PROMPT = Dialogue().ask("a b")


def small_lm(seed: int = 0) -> LM:
    """Ten tokens, two layers of width 32; next-token probabilities far from flat."""
    tokenizer = word_tokenizer(["a", "b", "c"])
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=len(tokenizer), max_positions=32, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return LM(model, tokenizer)


def worth(dialogues: list[Dialogue]) -> np.ndarray:
    """What a reply is worth, by its text alone: order matters, so that no token's worth is its own."""
    texts = [d.last.text for d in dialogues]
    return np.array([0.8 * t.startswith("a") + ("a b" in t) + 0.3 * t.count("b") - 0.5 * ("c" in t) for t in texts])


@dataclass
class Language:
    """All replies of at most ``length`` tokens: their contexts, and for each reply its path through them and worth."""

    lm: LM
    contexts: list[tuple[int, ...]]
    replies: list[tuple[int, ...]]
    reward: torch.Tensor

    def logprobs(self, lm: LM) -> torch.Tensor:
        """log π of every reply, float64; they sum to one."""
        head = lm.encode_prompt(PROMPT)
        rows = lm.engine.next_logprobs([[*head, *context] for context in self.contexts])
        table = dict(zip(self.contexts, np.array(rows, dtype=np.float64), strict=True))
        found = [sum(table[y[:t]][y[t]] for t in range(len(y))) for y in self.replies]
        return torch.tensor(found, dtype=torch.float64)

    def objective(self, logp: torch.Tensor, logp0: torch.Tensor, lam: float) -> float:
        """E[r] − λ·KL(π‖π0), exactly."""
        return float((logp.exp() * (self.reward - lam * (logp - logp0))).sum())

    def best(self, logp0: torch.Tensor, lam: float) -> float:
        """The largest value that any policy reaches."""
        return lam * float((logp0 + self.reward / lam).logsumexp(0))


def language(lm: LM, length: int) -> Language:
    """Every reply a policy over these tokens can give in ``length`` tokens."""
    ends = {*lm.engine.eos_ids, *lm.tokenizer(HUMAN, add_special_tokens=False)["input_ids"]}
    every = range(len(lm.tokenizer))
    going = [i for i in every if i not in ends]
    contexts = [c for n in range(length) for c in itertools.product(going, repeat=n)]
    replies = [(*c, i) for c in contexts for i in every if i in ends or len(c) == length - 1]
    texts = [lm.tokenizer.decode([i for i in y if i not in ends]).removeprefix(" ") for y in replies]
    reward = torch.from_numpy(worth([PROMPT.reply(text) for text in texts]))
    return Language(lm, contexts, replies, reward)


def train(lm: LM, length: int, seed: int, **options: Any) -> PPO:
    """PPO on the one prompt by the trainer of ``rlhf train``."""
    small: dict[str, Any] = {"prompts_per_step": 1, "samples_per_prompt": 128, "max_new_tokens": length, "seed": seed}
    small |= {"ppo_epochs": 4, "schedule": "linear", "learning_rate": 3e-3, "value_learning_rate": 1e-2}
    c = config(**small | options)
    rows = [PromptRow(PROMPT, "1", 1, "toy")]
    ppo = PPO(c, lm, rows, rows, reward_fn=worth)
    for step in range(c.steps):
        ppo.step(step)
    return ppo
