"""Bai et al. 2022 (arXiv 2204.05862) from top to bottom, in the toy world: the verb ``recipe hh``.

Base models → context distillation → simulated people → preference models (mix scan, calibration) → PPO with judges
that never train → reward against √KL and best of n → prompts of another kind from activations → one page, with the
paper's values beside ours. Each stage is a run of its own below the recipe's, so that the same command goes on.
Everything is said of ToyHH (``data/toy_hh.py``): how real people would judge is not.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from truing.configs import PMOOD, Distill, Finetune, Frontier, Recipe, Robustness, Tension
from truing.data.lessons import Lesson
from truing.data.toy_hh import CAREFUL, bayes_rate, gold, toy_comparisons, toy_corpus
from truing.measure.ood import ood
from truing.measure.preference import evaluate_pm
from truing.models.family import by_size
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.recipes.frontier import frontier
from truing.recipes.hh_setup import (
    KINDS,
    POSITIONS,
    REPLY_TOKENS,
    SCALES,
    Lab,
    ask_people,
    held_out_prompts,
    new_lm,
    prompt_file,
    rl_prompts,
)
from truing.recipes.hh_story import tell
from truing.recipes.robustness import robustness
from truing.recipes.study_parts import Stopped, finished
from truing.recipes.tension import tension
from truing.runs import Run, atomic_write
from truing.train.distill import distill
from truing.train.sft import train_lm
from truing.types import Dialogue, Turn

PAPER = [
    "The paper's own scale is not run by one command. Its steps, with its settings (2204.05862 App A, B), are:",
    "  truing rlhf distill --init BASE --data TEXTS --batch-size 32 --top-k 50 --prompt hhh",
    "  truing pm pretrain --init BASE --data PAIRS --max-length 1024, then truing pm train --init THAT (one pass)",
    "  truing rlhf train --policy DISTILLED --pm PM --prompts PROMPTS --kl-coef 0.001 --max-new-tokens 128",
    "  truing rlhf robustness --models 13M … 52B --samples 200000 --ppo-epochs 2 --max-new-tokens 32",
    "with learning rates of 0.05, 0.1, 0.01 and 0.01 times that of pretraining, which the paper does not state.",
]
"""What ``--scale paper`` says."""


def recipe(config: Recipe) -> Run | dict[str, Any]:
    """Run the paper at a scale, or go on with it. Raises ValueError for ``paper`` without ``--dry-run``."""
    if config.scale == "paper":
        if config.dry_run:
            return {"lines": PAPER}
        raise ValueError("--scale paper is written down, not run: give it with --dry-run to read its commands.")
    scale = SCALES[config.scale]
    if config.dry_run:
        return {"lines": _expected(config)}
    run = Run.open("recipe", config, slug=f"{config.paper}-{config.scale}")
    if run.done:
        return run
    if config.dtype == "auto":  # small models in bf16 are neither faster nor as exact
        config = dataclasses.replace(config, dtype="float32")
    lab = Lab(run, config, scale)
    try:
        for i, (title, stage) in enumerate(STAGES.items(), 1):
            minutes = (time.monotonic() - run.opened) / 60
            print(f"[{i}/{len(STAGES)}] {title} ({minutes:.1f} min so far)", file=sys.stderr, flush=True)
            stage(lab)
    except Stopped as stop:
        run.stop({}, [str(stop)])
        return run
    run.finish(*tell(lab))
    return run


# (a) models to start from


def base_models(lab: Lab) -> None:
    """Language models from scratch on the world's dialogues, of mixed quality: the assistant's turns are learned."""
    s, corpus = lab.scale, toy_corpus(lab.scale.corpus, lab.config.seed, lab.scale.told)
    for size in s.sizes:

        def learn(machine: dict[str, Any], size: str = size) -> Any:
            options = Finetune(
                init=f"new {size}",
                data=[],
                replies_only=True,
                batch_tokens=s.batch_tokens,
                learning_rate=by_size(size).learning_rate,
                schedule="cosine",
                warmup_samples=s.corpus // 20,
                max_length=POSITIONS,
                **machine,
            )
            return train_lm(options, dialogues=corpus, lm=new_lm(size, lab.config.seed))

        finished(lab.run, lab.config, f"base-{size}", learn)


def distilled(lab: Lab) -> None:
    """The same models made to speak as after the careful system turn, without it: the start of all that follows."""
    atomic_write(lab.path / "careful.txt", CAREFUL)
    lessons = [Lesson(d, "dialogue") for d in toy_corpus(lab.scale.lessons, lab.config.seed + 5000)]
    for size in lab.scale.sizes:

        def learn(machine: dict[str, Any], size: str = size) -> Any:
            options = Distill(
                init=str(lab.path / f"base-{size}"),
                data=[],
                prompt=str(lab.path / "careful.txt"),
                text_share=0.0,
                max_length=POSITIONS,
                learning_rate=by_size(size).learning_rate / 4,
                **machine,
            )
            return distill(options, lessons=lessons)

        finished(lab.run, lab.config, size, learn)
    kept = lab.path / "starts.json"
    if not kept.exists():
        base, after = lab.load(f"base-{lab.largest}"), lab.load(lab.largest)
        worth = {"base": _gold(lab, base), "base, told to be careful": _gold(lab, base, CAREFUL)}
        atomic_write(kept, json.dumps(worth | {"distilled": _gold(lab, after)}))


def _gold(lab: Lab, lm: LM, system: str = "") -> list[list[float]]:
    """Gold of four replies to each held-out prompt of both kinds."""
    asked = held_out_prompts(lab)
    told = [Dialogue((*([Turn("system", system)] if system else []), *d.turns)) for d in asked]
    drawn = lm.sample(told, 4, max_tokens=REPLY_TOKENS, seed=lab.config.seed)
    return [[gold(d.reply(s.text)) for s in samples] for d, samples in zip(asked, drawn, strict=True)]


# (b) people and preference models


def people(lab: Lab) -> None:
    """Simulated people compare replies of the world and of the model."""
    lab.pairs = ask_people(lab)


def mixes(lab: Lab) -> None:
    """Preference models on one kind alone and on mixes (§5.1)."""
    s = lab.scale

    def study(machine: dict[str, Any]) -> Any:
        given: dict[str, Any] = {
            "total": s.total,
            "step": s.mix_step,
            "weights": list(s.weights),
            "rl_shares": list(s.rl_shares),
        }
        options = Tension(models=lab.models, data=[], **given, **_training(lab), **machine)
        return tension(options, comparisons=lab.pairs, prompts=rl_prompts(lab))

    finished(lab.run, lab.config, "tension", study)


# (c) RLHF


def policies(lab: Lab) -> None:
    """Preference models on two halves, PPO against one of them, the other and gold as judges on the way (§4.2)."""

    def study(machine: dict[str, Any]) -> Any:
        options = Robustness(models=lab.models, data=[], **_training(lab), **machine)
        return robustness(
            options, comparisons=lab.pairs, prompts=rl_prompts(lab), gold=lambda rows: [gold(d) for d in rows]
        )

    finished(lab.run, lab.config, "robustness", study)


def _training(lab: Lab) -> dict[str, Any]:
    """How every study trains preference models and policies."""
    s = lab.scale
    return {
        "pm_learning_rate": s.pm_learning_rate,
        "pm_batch_size": s.pm_batch_size,
        "max_length": POSITIONS,
        "eval_share": 0.12,
        "samples": s.samples,
        "evaluations": s.evaluations,
        "eval_prompts": s.eval_prompts,
        "prompts_per_step": s.prompts_per_step,
        "samples_per_prompt": 4,
        "max_new_tokens": REPLY_TOKENS,
        "kl_coef": s.kl_coef,
        "learning_rate": s.learning_rate,
        "value_learning_rate": 1e-3,
        "warmup_samples": s.samples // 10,
    }


def calibration(lab: Lab) -> None:
    """The train-PM on fresh planted comparisons of the test split: accuracy beside the best possible, and ECE."""
    kept = lab.path / "calibration.json"
    if kept.exists():
        return
    pairs = [c for kind in KINDS for c in toy_comparisons(lab.scale.planted, lab.config.seed + 6000, kind, "test")]
    pm = PreferenceModel.load(
        lab.path / "robustness" / f"train-{lab.largest}", device=lab.run.compute(lab.config).device
    )
    found = evaluate_pm(pm.score, pairs, seed=lab.config.seed)
    names = ("accuracy", "accuracy/helpful", "accuracy/harmless", "ece", "ece_null_95", "longer_wins", "shorter_wins")
    numbers = {name: found.numbers[name].as_dict() for name in names}
    right = [row["accuracy"] for row in found.rows]
    bins = [b.as_dict() for b in found.reliability.bins]
    best = bayes_rate(pairs)
    rows = {"numbers": numbers, "bayes": best, "share_of_bayes": float(np.mean(right)) / best, "bins": bins}
    atomic_write(kept, json.dumps(rows))


def reward_and_kl(lab: Lab) -> None:
    """Reward against √KL, its bound, and best of n (§4.3)."""
    runs = [str(lab.path / "robustness" / f"{size}@{size}") for size in lab.scale.sizes]

    def study(machine: dict[str, Any]) -> Any:
        return frontier(Frontier(runs=runs, best_of=list(lab.scale.best_of), **machine))

    finished(lab.run, lab.config, "frontier", study)


# (d) prompts of another kind


def other_prompts(lab: Lab) -> None:
    """Are harmful prompts seen from the activations of a model, layer by layer (§5.4)?"""
    inside, outside = (prompt_file(lab, kind) for kind in KINDS)

    def study(machine: dict[str, Any]) -> Any:
        return ood(PMOOD(model=str(lab.path / f"base-{lab.largest}"), inside=inside, outside=outside, **machine))

    finished(lab.run, lab.config, "ood", study)


STAGES: dict[str, Callable[[Lab], None]] = {
    "Base models": base_models,
    "Context distillation": distilled,
    "Simulated people compare replies": people,
    "Preference models on one kind and on mixes": mixes,
    "PPO against one half's preference model, judged by the other's": policies,
    "Calibration on fresh choices": calibration,
    "Reward against √KL, and best of n": reward_and_kl,
    "Prompts of another kind, from activations": other_prompts,
}
"""What is done in which order; ``people`` also runs on every start, for what later stages read."""


def _expected(config: Recipe) -> list[str]:
    s = SCALES[config.scale]
    pms = len(s.sizes) * (round(1 / s.mix_step) + 1 + len(s.weights) + 2)
    policies = len(s.sizes) + len(s.rl_shares) + (len(s.sizes) - 1)
    took = {"ci": "under a minute", "toy": "8 to 15 minutes on two cores", "small": "not measured; one GPU is meant"}
    return [
        f"{len(s.sizes)} language models ({', '.join(s.sizes)} parameters) on {s.corpus:,} dialogues, distilled on "
        f"{s.lessons:,}.",
        f"{pms} preference models on {s.total:,} comparisons each or more; {policies} policies on {s.samples:,} "
        "replies each.",
        f"Time: {took[config.scale]}.",
    ]
