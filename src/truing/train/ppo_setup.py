"""What a PPO run checks and reads before it starts: options, prompts, and what it will cost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from truing.configs import PPOTrain
from truing.data.comparisons import conversation_key
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.data.provenance import held_out_conversations, held_out_ids, leaks
from truing.models.compute import Compute
from truing.models.lm import LM
from truing.models.load import find_model
from truing.text import to_hh
from truing.train.loop import check_adapters, check_optim, rng
from truing.types import Comparison, Dialogue, Kind

KINDS: tuple[Kind, ...] = ("helpful", "harmless")
SLOPE_REPLIES = 4
"""A slope within prompts needs at least this many replies beside the first to each prompt."""
EVAL_REPLIES = 128
"""Replies of one evaluation when no held-out prompts are given and training prompts stand in for them."""


def check(config: PPOTrain) -> None:
    """Refuse options under which ratio and KL would not be those of the sampled policy."""
    if config.temperature != 1 or config.top_p != 1:
        raise ValueError(
            f"Rollouts at temperature {config.temperature} and top_p {config.top_p}: log-probabilities in ratio and KL "
            "would be those of another policy than the one sampled. Use --temperature 1 --top-p 1."
        )
    least = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 1, "ppo_epochs": 1, "minibatches": 1}
    least |= {"max_new_tokens": 1, "kl_coef": 0, "clip": 0, "gamma": 0, "gae_lambda": 0, "vf_coef": 0}
    least["tokens_per_pack"] = 0
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if config.value_clip < 0:
        raise ValueError(f"value_clip is {config.value_clip}; expected a number above 0, or 0 for none.")
    if config.advantage == "rloo" and config.samples_per_prompt < 2:
        raise ValueError(
            f"--advantage rloo compares a reply with the others to its prompt, and there are "
            f"{config.samples_per_prompt - 1} others. Use --samples-per-prompt 2 or more."
        )
    if config.harmless_share is not None and not 0 <= config.harmless_share <= 1:
        raise ValueError(f"harmless_share is {config.harmless_share}; expected a share from 0 to 1.")
    if "" in config.stop_after:
        raise ValueError("stop_after holds an empty string; expected strings such as '.', or none.")
    check_optim(config)
    check_adapters(config)
    spare = config.prompts_per_step * (config.samples_per_prompt - 1)
    if config.length_neutral and spare < SLOPE_REPLIES:
        raise ValueError(
            f"--length-neutral fits a slope within prompts, and {config.prompts_per_step} prompts of "
            f"{config.samples_per_prompt} replies are too few for it. Use --samples-per-prompt 2 or more and at least "
            f"{SLOPE_REPLIES} replies beside the first of each prompt."
        )
    if config.minibatches > config.prompts_per_step * config.samples_per_prompt:
        raise ValueError(
            f"{config.minibatches} minibatches of {config.prompts_per_step * config.samples_per_prompt} replies: some "
            "would be empty. Use fewer --minibatches or more --prompts-per-step."
        )


def prompt_rows(
    given: Sequence[Dialogue | PromptRow] | None, files: Sequence[str], held_out: Sequence[PromptRow] = ()
) -> list[PromptRow]:
    """Prompts handed over, or those of the files less the conversations held out."""
    if given is not None:
        return [p if isinstance(p, PromptRow) else PromptRow(p, str(i), i, "given") for i, p in enumerate(given, 1)]
    return load_prompt_rows(files, not_in=[row.dialogue for row in held_out]) if files else []


def not_held_out(rows: Sequence[PromptRow], pm: str) -> tuple[list[PromptRow], list[str]]:
    """The prompts less those that stem from what the run of a preference model held out, and a note of how many.

    Its accuracy would else be measured on conversations that the policy was trained on. ``pm`` is the name the model
    was given by: a run, its name, or the model in it; other models hold nothing out. Raises ValueError if no prompt is
    left.
    """
    source = find_model(pm)
    folder = source.parent if isinstance(source, Path) and source.name == "model" else source
    ids, known = held_out_ids(folder), held_out_conversations(folder)
    found = leaks(rows, ids, known)
    if not found:
        return list(rows), []
    first, why = found[0]
    out = {id(row) for row, _ in found}
    note = (
        f"{len(found)} of {len(rows)} prompts were left out: they stem from what {pm} held out (the first: "
        f"{first.id!r} of {first.source}, line {first.line}, {why})."
    )
    if len(out) == len(rows):
        raise ValueError(f"{note} None is left: give prompts that it was trained on, or new ones.")
    return [row for row in rows if id(row) not in out], [note]


def usable(
    prompts: Sequence[PromptRow],
    eval_prompts: Sequence[PromptRow],
    lm: LM,
    config: PPOTrain,
    notes: list[str],
) -> tuple[list[PromptRow], list[PromptRow]]:
    """Prompts to train on and to evaluate on; ``notes`` is told what was left out and what they have in common."""
    kept = short_enough(prompts, lm, config.max_new_tokens, notes)
    check_kinds(kept, config.harmless_share)
    tell_overlap(kept, eval_prompts, notes)
    return kept, short_enough(eval_prompts or stand_ins(kept, config, notes), lm, config.max_new_tokens, notes)


def short_enough(rows: Sequence[PromptRow], lm: LM, max_new_tokens: int, notes: list[str]) -> list[PromptRow]:
    """The prompts that leave room for a reply in the model's window; ``notes`` is told of those that do not.

    Raises ValueError if none is left.
    """
    window = getattr(lm.model.config, "max_position_embeddings", None)
    limit = None if window is None else window - max_new_tokens
    kept = [row for row in rows if limit is None or len(lm.encode_prompt(row.dialogue)) <= limit]
    if not kept:
        raise ValueError(
            f"None of {len(rows)} prompts leaves room for a reply of {max_new_tokens} tokens; the model reads {window}."
            " Give prompts (--prompts), shorter ones, or a smaller --max-new-tokens."
        )
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} of {len(rows)} prompts were left out: too long for the model.")
    return kept


def stand_ins(prompts: Sequence[PromptRow], config: PPOTrain, notes: list[str]) -> list[PromptRow]:
    """Training prompts to evaluate on where no held-out ones were given; ``notes`` says so."""
    count = max(1, EVAL_REPLIES // config.samples_per_prompt)
    chosen = [prompts[i] for i in rng(config.seed, 2).permutation(len(prompts))[:count]]
    notes.append(f"No held-out prompts were given: gain and KL are measured on {len(chosen)} training prompts.")
    return chosen


def tell_overlap(prompts: Sequence[PromptRow], held_out: Sequence[PromptRow], notes: list[str]) -> None:
    """Tell ``notes`` of conversations that are both trained on and measured."""
    shared = {conversation_key(p.dialogue) for p in prompts} & {conversation_key(p.dialogue) for p in held_out}
    if shared:
        notes.append(
            f"{len(shared)} conversations (same first human turn) are trained on and also held out: on them the gain "
            "is not a held-out one."
        )


def tell_leaks(prompts: Sequence[PromptRow], comparisons: Sequence[Comparison], notes: list[str]) -> None:
    """Tell ``notes`` of comparisons whose conversation the policy is trained on."""
    keys = {conversation_key(p.dialogue) for p in prompts}
    leaks = sum(conversation_key(c) in keys for c in comparisons)
    if leaks:
        notes.append(
            f"{leaks} of {len(comparisons)} evaluation comparisons belong to conversations that are trained on: "
            "policy_accuracy is not a held-out one."
        )


def prompts_at(step: int, prompts: Sequence[PromptRow], config: PPOTrain) -> list[PromptRow]:
    """The prompts of a step, as a function of (seed, step): passes over all of them, each in its own order.

    With a ``harmless_share`` each kind is passed over by itself, and after k prompts ⌊k · share⌋ were harmless.
    """
    count, seed, share = config.prompts_per_step, config.seed, config.harmless_share
    first, last = step * count, (step + 1) * count
    if share is None:
        return _passes(prompts, range(first, last), seed, 4)
    before, after = (math.floor(n * share + 1e-9) for n in (first, last))
    kinds = {kind: [row for row in prompts if row.kind == kind] for kind in KINDS}
    chosen = _passes(kinds["helpful"], range(first - before, last - after), seed, 4)
    chosen += _passes(kinds["harmless"], range(before, after), seed, 9)
    return [chosen[i] for i in rng(seed, step, 10).permutation(count)]


def _passes(prompts: Sequence[PromptRow], places: range, seed: int, stream: int) -> list[PromptRow]:
    """What stands at some places of endless passes over the prompts, each pass in an order of its own."""
    orders: dict[int, np.ndarray] = {}
    out = []
    for i in places:
        epoch, place = divmod(i, len(prompts))
        if epoch not in orders:
            orders[epoch] = rng(seed, stream, epoch).permutation(len(prompts))
        out.append(prompts[orders[epoch][place]])
    return out


def check_kinds(prompts: Sequence[PromptRow], share: float | None) -> None:
    """Raise ValueError if a step needs a kind of prompt that there is none of."""
    for kind, needed in zip(KINDS, () if share is None else (1 - share, share), strict=False):
        if needed > 0 and not any(row.kind == kind for row in prompts):
            raise ValueError(
                f"--harmless-share {share} needs prompts of kind {kind}, and none of {len(prompts)} is. A row's kind "
                'is its field "kind" ("helpful" or "harmless"); without it, harmless if the file\'s name has that word.'
            )


def option_notes(config: PPOTrain) -> list[str]:
    """What a reader of the results must know of the options."""
    notes = []
    if config.random_reward:
        notes.append("Control run: rewards were shuffled within each batch; what was gained is not due to them.")
    if config.reward:
        notes.append(f"The reward was {config.reward}, as it is: scores are its numbers, not centred.")
    if config.harmless_share is not None:
        notes.append(f"{100 * config.harmless_share:g}% of the prompts trained on were of kind harmless.")
    if config.length_neutral:
        notes.append("The line in reply length was taken out of every batch's scores (length_slope).")
    if config.gamma < 1:
        notes.append(f"gamma is {config.gamma}: with it the objective is not PM − λ·KL of whole replies.")
    return notes


def data_hash(prompts: Sequence[Dialogue | PromptRow]) -> str:
    """sha256 over prompts handed over in memory, so that other prompts make another run."""
    texts = []
    for p in prompts:
        row = p if isinstance(p, PromptRow) else PromptRow(p, "", 0, "")
        texts.append(to_hh(row.dialogue) + ("\x01" if row.kind == "harmless" else ""))
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()


def batch_line(config: PPOTrain, compute: Compute) -> str:
    """What a step is, in one line: replies, optimiser steps, precision."""
    c, replies = config, config.prompts_per_step * config.samples_per_prompt
    lots = f"{c.ppo_epochs} passes × {c.minibatches} minibatches"
    precision = str(compute.dtype).removeprefix("torch.")
    return (
        f"A step: {c.prompts_per_step} prompts × {c.samples_per_prompt} replies = {replies}, of at most "
        f"{c.max_new_tokens} tokens; {lots} = {c.ppo_epochs * c.minibatches} optimiser steps; {precision} on "
        f"{compute.device}. {c.steps} steps are {c.steps * replies:,} replies."
    )
