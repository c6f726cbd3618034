"""Helpful against harmless (2204.05862 §5.1, §4.4): the verb ``rlhf tension``.

Preference models on mixes from 0 to 100% harmless at one total size, and on everything with harmless losses weighted
by λ, are measured on both sides. If asked, policies are trained with several shares of harmless prompts, and their
scores placed among those of the data: beyond its upper tail a kind is over-optimised, in its middle hardly at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from truing.configs import Tension
from truing.data.comparisons import load_comparisons, split_by_conversation
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.data.provenance import HELD_OUT
from truing.measure.tension import helpful_loss, mix, sides
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.recipes.study_parts import (
    Stopped,
    check_models,
    check_parts,
    finished,
    folders,
    model_hashes,
    names_of,
    pm_config,
    ppo_config,
    prompts_of,
)
from truing.recipes.tension_story import tell
from truing.runs import Run, atomic_write
from truing.runs.atomic import read_rows
from truing.stats import Interval
from truing.text import refuses
from truing.train.pm import train_pm
from truing.train.pm_numbers import KINDS
from truing.train.pm_setup import data_hash as pairs_hash
from truing.train.pm_setup import usable
from truing.train.ppo import train_ppo
from truing.train.ppo_eval import EVALUATIONS
from truing.train.ppo_setup import check_kinds
from truing.train.ppo_setup import data_hash as prompts_hash
from truing.types import Comparison

Scan = dict[float, dict[str, Interval]]
"""Point → accuracy on helpful, on harmless, and their mean."""


@dataclass
class Found:
    """What a study found: scans by model, what the largest weight costs in helpful accuracy, and policies by share."""

    mixes: dict[str, Scan] = field(default_factory=dict)
    weights: dict[str, Scan] = field(default_factory=dict)
    losses: dict[str, Interval] = field(default_factory=dict)
    policies: dict[float, list[dict[str, Any]]] = field(default_factory=dict)
    data: dict[str, list[float]] = field(default_factory=dict)
    """Scores of held-out replies by kind, by the preference model that policies are trained against."""


def tension(
    config: Tension,
    *,
    comparisons: Sequence[Comparison] | None = None,
    prompts: Sequence[PromptRow] | None = None,
    lms: Mapping[str, LM] | None = None,
    refused: Callable[[str], bool] = refuses,
) -> Run | dict[str, Any]:
    """The verb: child runs ``mix-MODEL-PERCENT``, ``weight-MODEL-LAMBDA``, ``rl-PERCENT``; numbers, figures, a page.

    ``comparisons`` of both kinds, ``prompts`` for RL and ``lms`` (by name) stand in for what the config names;
    ``refused`` says whether a reply refuses. The same call again resumes. Raises ValueError for a step or weights
    that mean nothing, or too few comparisons of a kind.
    """
    check(config)
    check_parts(config)
    names = names_of(config.models, lms)
    notes: list[str] = []
    rows = usable(comparisons if comparisons is not None else load_comparisons(config.data), "", notes)
    train, held_out = split_by_conversation(rows, config.eval_share, config.seed)
    counts = {kind: (sum(c.kind == kind for c in train), sum(c.kind == kind for c in held_out)) for kind in KINDS}
    if min(min(pair) for pair in counts.values()) < 1:
        raise ValueError(
            f"Comparisons of both kinds are needed, to train and held out; there are {counts}. A row's kind is its "
            'field "kind" ("helpful" or "harmless"); without it, harmless if the file\'s name has that word.'
        )
    total = config.total or min(pair[0] for pair in counts.values())
    for share in (0.0, 1.0):
        mix(train, share, total, config.seed)  # refuse what cannot be mixed before anything is trained
    asked = list(prompts) if prompts is not None else rl_prompts(config, train, held_out)
    for share in config.rl_shares:
        check_kinds(asked, share)
    if config.dry_run:
        return {"lines": _expected(config, names, train, total)}
    if not lms:
        check_models(config.models)
    known = model_hashes(lms)
    known |= {} if comparisons is None else {"comparisons": pairs_hash(comparisons)}
    known |= {} if prompts is None else {"prompts": prompts_hash(prompts)}
    files = [*([] if comparisons is not None else config.data), *([] if prompts is not None else config.prompts)]
    run = Run.open("rlhf tension", config, data_files=files, data_hashes=known, slug=names[-1])
    if run.done:
        return run
    try:
        found = study(run, config, folders(run, config.models, lms), train, held_out, total, asked)
    except Stopped as stop:
        run.stop({}, [str(stop)])
        return run
    numbers, told = tell(run, found, total, refused, config.seed)
    run.finish(numbers, [*notes, *told])
    return run


def check(config: Tension) -> None:
    """Refuse steps, weights and shares that mean nothing."""
    if not 0 < config.step <= 1 or abs(1 / config.step - round(1 / config.step)) > 1e-6:
        raise ValueError(f"step is {config.step}; expected a part of 1 such as 0.1, 0.25 or 0.5.")
    if any(not w > 0 for w in config.weights) or any(not 0 <= s <= 1 for s in config.rl_shares):
        raise ValueError(
            f"weights are {config.weights} and rl_shares {config.rl_shares}; expected numbers above 0, and shares from "
            "0 to 1."
        )
    if config.total < 0:
        raise ValueError(f"total is {config.total}; expected a number of comparisons, or 0.")


def rl_prompts(config: Tension, train: Sequence[Comparison], held_out: Sequence[Comparison]) -> list[PromptRow]:
    """Prompts that policies are trained on: never those of held-out conversations."""
    return load_prompt_rows(config.prompts, not_in=held_out) if config.prompts else prompts_of(train)


def study(
    run: Run,
    config: Tension,
    models: Mapping[str, str],
    train: Sequence[Comparison],
    held_out: Sequence[Comparison],
    total: int,
    asked: Sequence[PromptRow],
) -> Found:
    """Train everything that is asked for."""
    found = Found()

    def pm(name: str, model: str, rows: Sequence[Comparison], weight: float = 1.0) -> np.ndarray:
        def learn(machine: dict[str, Any]) -> Any:
            given = pm_config(config, models[model], harmless_weight=weight, **machine)
            return train_pm(given, comparisons=rows, eval_comparisons=held_out)

        child = finished(run, config, name, learn)
        return np.array([row["gap"] for row in read_rows(child.path / HELD_OUT)])

    points = round(1 / config.step)
    shares = [i / points for i in range(points + 1)]
    weights = list(config.weights) or ([1.0] if config.rl_shares else [])
    for model in models:
        gaps = {s: pm(f"mix-{model}-{100 * s:g}", model, mix(train, s, total, config.seed)) for s in shares}
        found.mixes[model] = {s: sides(g, held_out, config.seed) for s, g in gaps.items()}
        gaps = {w: pm(f"weight-{model}-{w:g}", model, train, w) for w in weights}
        found.weights[model] = {w: sides(g, held_out, config.seed) for w, g in gaps.items()}
        if len(gaps) > 1:
            found.losses[model] = helpful_loss(gaps[min(gaps)], gaps[max(gaps)], held_out, config.seed)
    if config.rl_shares:
        judge = run.path / f"weight-{model}-{min(weights, key=lambda w: abs(w - 1)):g}"
        policies(run, config, models[model], judge, held_out, asked, found)
    return found


def policies(
    run: Run,
    config: Tension,
    model: str,
    judge: Any,
    held_out: Sequence[Comparison],
    asked: Sequence[PromptRow],
    found: Found,
) -> None:
    """Train a policy at every share of harmless prompts; keep its evaluations and the data's scores by kind."""
    most = max(1, config.eval_prompts // len(KINDS))
    each = [prompts_of([c for c in held_out if c.kind == kind], most) for kind in KINDS]
    for share in config.rl_shares:

        def learn(machine: dict[str, Any], share: float = share) -> Any:
            given = ppo_config(config, model, str(judge), harmless_share=share, **machine)
            return train_ppo(given, prompts=asked, eval_prompts=[row for rows in each for row in rows])

        child = finished(run, config, f"rl-{100 * share:g}", learn)
        found.policies[share] = read_rows(child.path / EVALUATIONS)
    kept = run.path / "data-scores.json"
    if not kept.exists():
        compute = run.compute(config)
        pm = PreferenceModel.load(judge, device=compute.device, dtype=compute.dtype)
        scores = {}
        for kind in KINDS:
            replies = [d for c in held_out if c.kind == kind for d in (c.chosen_dialogue, c.rejected_dialogue)]
            scores[kind] = pm.score(replies, max_length=config.max_length).astype(float).tolist()
        atomic_write(kept, json.dumps(scores))
    found.data = json.loads(kept.read_text())


def _expected(config: Tension, names: Sequence[str], train: Sequence[Comparison], total: int) -> list[str]:
    """What would be trained; each part's own command measures what it takes."""
    points = round(1 / config.step) + 1
    lines = [
        f"For each of {len(names)} models ({', '.join(names)}): {points} preference models on {total:,} comparisons, "
        f"{len(config.weights)} on {len(train):,}."
    ]
    if config.rl_shares:
        steps = ppo_config(config, "", "").steps
        lines.append(f"{len(config.rl_shares)} policies of {steps:,} steps each.")
    return [*lines, "`truing pm train` and `truing rlhf train` with --dry-run measure what one of each takes."]
