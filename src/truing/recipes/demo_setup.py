"""What the demo works with: its sizes, its prompts, its simulated people, and rows of replies."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing.collect.crowd import Crowd, Reply
from truing.collect.gold import gold
from truing.data.comparisons import comparison_to_row
from truing.data.files import read_rows, write_rows
from truing.data.prompts import Prompt, helpful_prompts, red_team_prompts
from truing.models.draw import Trace
from truing.models.lm import LM
from truing.models.split import fold_temperature
from truing.train.progress import counting
from truing.types import Comparison, Dialogue, Kind, Turn

SYSTEM = "You are a friendly assistant. Answer in one short sentence."
"""The system turn of every helpful prompt: replies stay short enough for a laptop."""
SENTENCE_ENDS = [*(f"{before}." for before in string.ascii_lowercase + ")\"'"), "!", "?"]
"""Every reply of the demo ends after the first of these, mostly with its first sentence; a full stop counts after a
letter, so that the "1." of a list or "0.5" ends none. A small model seldom ends a reply in time by itself: then coming
to an end would be all that people choose by, and all that training improves."""
CAREFUL = "You are a polite, honest assistant. If a request could hurt somebody, refuse kindly and say why."
"""The system turn of the prompted model in the red-team matrix."""


@dataclass(frozen=True)
class Size:
    """How much of everything the demo does."""

    train_prompts: int
    eval_prompts: int
    attacks: int
    replies: int
    """Replies per training prompt."""
    eval_replies: int
    """Replies per held-out prompt and arm, five of them at least: best-of-4 is the best of the first four."""
    reply_tokens: int
    ppo_steps: int
    ppo_prompts: int
    ppo_samples: int
    ppo_eval_prompts: int
    """Held-out prompts on which PPO measures KL and score."""
    round_prompts: int
    choices: int
    judged: int
    """Questions of the P(True) study; the P(IK) study takes four times as many."""
    agreement: float = 0.75
    """How often simulated people agree with gold."""
    frozen_share: float = 0.87
    """Share of layers in the frozen trunk that policy, reference, value function and PM share."""
    temperature: float = 0.7
    """Built into the base model's weights: at 1 a model this small writes word salad."""

    @property
    def held_out_replies(self) -> int:
        """Replies of one arm to the held-out prompts."""
        return self.eval_prompts * self.eval_replies


PACK = 512
"""Tokens that a preference model reads together."""
READERS = 3
"""Simulated workers who judge each pair."""
FULL = Size(
    train_prompts=120,
    eval_prompts=80,
    attacks=24,
    replies=6,
    eval_replies=8,
    reply_tokens=40,
    ppo_steps=10,
    ppo_prompts=12,
    ppo_samples=8,
    ppo_eval_prompts=8,
    round_prompts=32,
    choices=120,
    judged=32,
)
FAST = Size(
    train_prompts=12,
    eval_prompts=8,
    attacks=6,
    replies=4,
    eval_replies=5,
    reply_tokens=24,
    ppo_steps=3,
    ppo_prompts=4,
    ppo_samples=2,
    ppo_eval_prompts=4,
    round_prompts=6,
    choices=24,
    judged=6,
)


@dataclass(frozen=True)
class Parts:
    """The prompts of a demo run, split once by seed: no prompt is in two parts."""

    train: list[Prompt]
    held_out: list[Prompt]
    red_train: list[Prompt]
    attacks: list[Prompt]

    def prompt(self, id: str) -> Prompt:
        """The prompt of that id."""
        return next(p for part in (self.train, self.held_out, self.red_train, self.attacks) for p in part if p.id == id)


def split_prompts(size: Size, seed: int) -> Parts:
    """Draw the parts from the packaged sets. Held-out prompts train nothing: not the PM, not the policy."""
    helpful, red = helpful_prompts(), red_team_prompts()
    random.Random(seed).shuffle(helpful)
    random.Random(seed + 1).shuffle(red)
    n = size.train_prompts
    return Parts(
        helpful[:n], helpful[n : n + size.eval_prompts], red[size.attacks : 2 * size.attacks], red[: size.attacks]
    )


def base_model(name: str, temperature: float, folder: Path, device: Any) -> LM:
    """The model that the demo starts from: ``name`` with a temperature built in, as a folder of its own."""
    if not folder.exists():
        lm = LM.load(name)
        fold_temperature(lm.model, temperature)
        lm.save(folder)
    return LM.load(folder, device=device)


def asked(prompt: Prompt, system: str = SYSTEM) -> Dialogue:
    """The prompt as a dialogue with a system turn (none if empty)."""
    turns = (Turn("system", system),) if system else ()
    return Dialogue((*turns, *prompt.dialogue.turns))


def draw_replies(
    lm: LM,
    prompts: Sequence[Prompt],
    arm: str,
    *,
    n: int,
    tokens: int,
    seed: int,
    kind: Kind = "helpful",
    system: str = SYSTEM,
    trace: Trace | None = None,
) -> list[dict[str, Any]]:
    """Rows of replies with the gold score that only the page and the simulated people see.

    ``trace`` as in `LM.sample`.
    """
    rows = []
    asks, tell = [asked(p, system) for p in prompts], counting(f"Replies ({arm})")
    drawn = lm.sample(asks, n, max_tokens=tokens, stop_after=SENTENCE_ENDS, seed=seed, progress=tell, trace=trace)
    for prompt, samples in zip(prompts, drawn, strict=True):
        for sample in samples:
            found = gold(prompt, sample.text, kind)
            rows.append(
                {"prompt": prompt.id, "arm": arm, "text": sample.text, "finished": sample.finish == "stop"}
                | {"tokens": len(sample.token_ids), "gold": found.score, "system": system, "seed": sample.seed}
            )
    return rows


def judged(crowd: Crowd, parts: Parts, rows: Sequence[Mapping[str, Any]], kind: Kind, tag: str) -> list[Comparison]:
    """Every pair of replies to a prompt, judged by ``READERS`` workers; the prompt carries its system turn."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    made = []
    for key, offered in by_prompt.items():
        prompt = parts.prompt(key)
        replies = [Reply(r["arm"], r["text"]) for r in offered]
        for reader in range(READERS):
            for c in crowd.all_pairs(prompt, replies, kind, f"{tag}-{reader}/{key}"):
                made.append(replace(c, prompt=asked(prompt, offered[0]["system"])))
    return made


def gaps_of(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Gold differences of all pairs of replies to one prompt."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row["gold"])
    return [a - b for scores in by_prompt.values() for i, a in enumerate(scores) for b in scores[i + 1 :]]


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> str:
    """Write comparisons as JSONL; returns the file's name for a config."""
    write_rows(path, [comparison_to_row(c) for c in comparisons])
    return str(path)


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> str:
    """Write prompts with their system turn as chat messages."""
    write_rows(path, [{"id": p.id, "prompt": asked(p).to_messages()} for p in prompts])
    return str(path)


def load_json(path: Path) -> Any:
    """What a finished stage left."""
    return json.loads(path.read_text())


def load_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a finished stage's file."""
    return [row for _, row in read_rows(path)]
