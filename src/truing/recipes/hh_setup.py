"""What the recipe of 2204.05862 works with: its scales, the toy world's data, and its runs below the recipe's own."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.configs import Recipe
from truing.data.comparisons import comparison_to_row, conversation_key, load_comparisons
from truing.data.files import write_rows
from truing.data.prompts import PromptRow
from truing.data.toy_hh import WORDS, toy_comparison, toy_comparisons, toy_prompts
from truing.models.family import by_size, new_model, word_tokenizer
from truing.models.lm import LM
from truing.runs import Run
from truing.types import Comparison, Dialogue, Kind

KINDS: tuple[Kind, ...] = ("helpful", "harmless")
REPLY_TOKENS = 48
"""The longest replies of the world have about 45."""
POSITIONS = 128


@dataclass(frozen=True)
class Scale:
    """How much of everything a scale does."""

    sizes: tuple[str, ...]
    """Language models, smallest first; each is made, distilled, and becomes preference models and a policy."""
    corpus: int
    """Dialogues that the base models learn, one pass."""
    lessons: int
    """Dialogues of context distillation."""
    world_pairs: int
    """Comparisons of each kind between the world's own replies."""
    drawn_pairs: int
    """Prompts of each kind to which the largest model's replies are compared."""
    total: int
    """Comparisons at every point of the mix scan."""
    mix_step: float
    weights: tuple[float, ...]
    rl_shares: tuple[float, ...]
    samples: int
    """Replies that each policy is trained on."""
    evaluations: int
    eval_prompts: int
    best_of: tuple[int, ...]
    planted: int
    """Fresh comparisons of each kind on which calibration is measured."""
    ood_prompts: int
    prompts_per_step: int = 16
    told: float = 0.2
    """Share of the corpus that begins with the careful system turn."""
    batch_tokens: int = 512
    pm_learning_rate: float = 7e-4
    pm_batch_size: int = 32
    learning_rate: float = 3e-4
    kl_coef: float = 0.1
    rl_prompts: int = 1000
    """Prompts of each kind that policies are trained on."""


SCALES: dict[str, Scale] = {
    "ci": Scale(("20k",), 120, 40, 60, 20, 40, 0.5, (), (), 32, 2, 6, (1, 4), 40, 60,
                prompts_per_step=4, rl_prompts=40),
    "toy": Scale(("1M",), 12_000, 1_500, 5_000, 900, 4_000, 0.5, (), (), 4_608, 9, 64, (1, 4, 16, 64), 500, 1_000),
    "small": Scale(("300k", "1M", "5M"), 24_000, 3_000, 10_000, 4_000, 10_000, 0.1, (1.0, 2.0, 3.0, 4.0, 10.0),
                   (0.0, 0.25, 0.5, 0.75, 1.0), 20_480, 16, 128, (1, 4, 16, 64), 2_000, 600, batch_tokens=2_048),
}  # fmt: skip


@dataclass
class Lab:
    """A recipe in progress: its run, options and scale."""

    run: Run
    config: Recipe
    scale: Scale
    pairs: list[Comparison] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.run.path

    @property
    def largest(self) -> str:
        """Name of the largest model: the one that the page tells of."""
        return self.scale.sizes[-1]

    @property
    def models(self) -> list[str]:
        """The distilled models, as folders."""
        return [str(self.path / size) for size in self.scale.sizes]

    def load(self, name: str) -> LM:
        """A language model trained in this run."""
        return LM.load(self.path / name, device=self.run.compute(self.config).device)

    def numbers(self, *parts: str) -> dict[str, Any]:
        """Numbers of a run below this one."""
        return json.loads(self.path.joinpath(*parts, "summary.json").read_text())["numbers"]


def new_lm(size: str, seed: int) -> LM:
    """An untrained model of the toy world's words."""
    shape, tokenizer = by_size(size), word_tokenizer(WORDS)
    model = new_model(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        max_positions=POSITIONS,
        seed=seed,
        tokenizer=tokenizer,
    )
    return LM(model, tokenizer, name=size)


def ask_people(lab: Lab) -> list[Comparison]:
    """Comparisons of both kinds: between the world's own replies, and between two replies of the largest model.

    Kept in ``comparisons.jsonl``. Simulated annotators choose; their prompts are of the train split.
    """
    path = lab.path / "comparisons.jsonl"
    if not path.exists():
        lm, seed, out = lab.load(lab.largest), lab.config.seed, list[Comparison]()
        for i, kind in enumerate(KINDS):
            out += toy_comparisons(lab.scale.world_pairs, seed, kind)
            out += drawn_pairs(lm, lab.scale.drawn_pairs, 2 * seed + i + 1000, kind)
        random.Random(seed).shuffle(out)
        write_rows(path, [comparison_to_row(c) for c in out])
    return load_comparisons(path)


def drawn_pairs(lm: LM, n: int, seed: int, kind: Kind) -> list[Comparison]:
    """Choices between two replies of a model to each of ``n`` prompts; equal replies are left out."""
    prompts, rng = toy_prompts(n, seed, kind), random.Random(seed)
    drawn = lm.sample(prompts, 2, max_tokens=REPLY_TOKENS, seed=seed)
    found = []
    for i, (prompt, (a, b)) in enumerate(zip(prompts, drawn, strict=True)):
        if a.text != b.text:
            c = toy_comparison(prompt, a.text, b.text, kind, rng, id=f"drawn-{kind}-{seed}-{i}")
            found.append(Comparison(c.prompt, c.chosen, c.rejected, kind=kind, source="model", id=c.id))
    return found


def rl_prompts(lab: Lab) -> list[PromptRow]:
    """Prompts of both kinds that policies are trained on, of no conversation that has been compared."""
    taken = {conversation_key(c) for c in lab.pairs}
    rows = []
    for i, kind in enumerate(KINDS):
        fresh = toy_prompts(lab.scale.rl_prompts + len(lab.pairs) // 10, 2 * lab.config.seed + i + 2000, kind)
        kept = [d for d in fresh if conversation_key(d) not in taken][: lab.scale.rl_prompts]
        rows += [PromptRow(d, f"{kind}-{j}", j, "toy", kind=kind) for j, d in enumerate(kept)]
    return rows


def prompt_file(lab: Lab, kind: Kind) -> str:
    """Test prompts of a kind as a file, for studies that read files."""
    path = lab.path / f"prompts-{kind}.jsonl"
    prompts = toy_prompts(lab.scale.ood_prompts, lab.config.seed + 3000, kind, "test")
    write_rows(path, [{"prompt": d.to_messages(), "kind": kind} for d in prompts])
    return str(path)


def held_out_prompts(lab: Lab) -> list[Dialogue]:
    """Test prompts of both kinds, as many of each, on which starts are compared."""
    n = max(2, lab.scale.eval_prompts)
    return [d for kind in KINDS for d in toy_prompts(n, lab.config.seed + 4000, kind, "test")]
