"""What training will take, for ``--dry-run``: a few real steps of each trainer on part of its data, in memory only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from truing.configs import PIKTrain, PMTrain, PPOTrain
from truing.models.compute import choose
from truing.models.heads import PIK
from truing.models.lm import LM
from truing.models.tree import pack_budget
from truing.train.cost import SECONDS, Cost, spread, timed
from truing.train.p_ik import START_ROWS, PIKTrainer
from truing.train.pm_loss import times_seen
from truing.train.pm_pairs import Pairs, batches, pack_sequences, tokenize
from truing.train.pm_setup import check_lengths, start
from truing.train.ppo_batch import Part
from truing.types import Comparison


def steps_of(step: Callable[[int], dict[str, float]], reader: Any = None) -> tuple[dict[str, float], Cost]:
    """Metrics and cost of a step: the second one, because the first makes what later ones find; unless it is long."""
    metrics, cost = timed(lambda: step(0), reader)
    return timed(lambda: step(1), reader) if cost.seconds < 4 * SECONDS else (metrics, cost)


def pm_cost(
    trainer_of: Callable[..., Any],
    config: PMTrain,
    data: tuple[list[Comparison], list[Comparison], np.ndarray],
    lm: LM | None,
    reference: int,
) -> list[str]:
    """Lines for ``pm train --dry-run``, of what `pm_setup.data_of` gives; ``reference`` replies at most are scored for
    the mean.
    """
    train_set, held_out, parts = data
    compute = choose(config.device, config.dtype, config.threads)
    pm, loading = timed(lambda: start(config, compute.device, lm))
    whole = tokenize([*train_set, *held_out], lambda d: pm.pm_ids(d, config.max_length))
    check_lengths(config, pm, whole)
    times = times_seen(parts, config.weights, config.seed, 0)
    n, budget = len(train_set), pack_budget(compute.device, config.tokens_per_pack)
    middle = max(0, (n - 2 * config.batch_size) // 2)  # a block, so that pairs of one prompt stand together
    few = train_set[middle : middle + 2 * config.batch_size]
    trainer, freezing = timed(lambda: trainer_of(config, pm, few, few[:1], autocast=compute.dtype))
    metrics, stepping = steps_of(lambda i: trainer.step(i % trainer.steps_per_epoch))
    rows = range(len(trainer.pairs.sequences))
    _, scoring = timed(lambda: trainer.score_all(rows))
    part = _tokens(trainer.pairs, rows, budget)
    forward, backward = scoring.seconds / part, stepping.seconds / metrics["tokens"]
    trained_on = config.epochs * _trained_on(whole, times, config, budget)
    first = n if held_out else 0
    replies = np.unique([whole.chosen[first:], whole.rejected[first:]])
    reads = min(1.0, reference / len(replies)) + (1 + config.epochs if held_out else 0)  # for the mean; evaluations
    looks = reads * _tokens(whole, replies, budget)
    cost = loading + Cost(trained_on, backward * trained_on) + Cost(looks, forward * looks)
    every = sum(p.numel() for p in pm.parameters())
    trained = sum(p.numel() for _, p in pm.trainable_parameters())
    weights = f"{every:,} weights, {trained:,} of them trained"
    if config.frozen_layers:
        frozen = _tokens(whole, range(len(whole.sequences)), budget)
        states = frozen * pm.backbone.config.hidden_size * 4
        cost += Cost(frozen, freezing.seconds / part * frozen, states * max(0.0, 1 - part / frozen))
        weights += f", {states / 2**20:,.0f} MiB of frozen states"
    return [
        f"{n:,} comparisons to train on, {len(held_out):,} held out; longest dialogue "
        f"{max(map(len, whole.sequences)):,} tokens.",
        f"{math.ceil(times.sum() / config.batch_size) * config.epochs:,} steps over {trained_on:,} tokens; {weights}.",
        *cost.lines(compute),
    ]


def _trained_on(pairs: Pairs, times: np.ndarray, config: PMTrain, budget: int) -> int:
    """Tokens of the first pass over the first pairs, each seen so many times, batch by batch."""
    n = len(times)
    groups = [kept for group in pairs.groups if len(kept := group[group < n])]
    trained = Pairs(pairs.sequences, pairs.chosen[:n], pairs.rejected[:n], groups)
    return sum(
        _tokens(pairs, np.unique([pairs.chosen[batch], pairs.rejected[batch]]), budget)
        for batch in batches(trained, config.batch_size, config.seed, 0, times)
    )


def _tokens(pairs: Pairs, members: Sequence[int] | np.ndarray, budget: int) -> int:
    """Tokens of some sequences, common beginnings within a pack once."""
    return sum(map(len, pack_sequences(pairs.sequences, [int(m) for m in members], budget))) if len(members) else 0


def p_ik_cost(config: PIKTrain, lm: LM, prompts: Sequence[Sequence[int]]) -> Cost:
    """Cost of the training of ``honesty pik``, from prompts as token ids."""
    compute = choose(config.device, config.dtype, config.threads)
    few = [prompts[i] for i in spread(len(prompts), 2 * config.batch_size)]
    rates = np.linspace(0, 1, len(few))
    model = PIK.new(lm, seed=config.seed, frozen_layers=config.frozen_layers)
    trainer, freezing = timed(lambda: PIKTrainer(config, model, few, rates, len(few), autocast=compute.dtype))
    metrics, stepping = steps_of(lambda i: trainer.step(i % trainer.steps_per_epoch))
    trainer.num_train = 0  # now all of them are held out
    _, scoring = timed(trainer.held_out_logits)
    read = sum(map(len, few))
    per_prompt = sum(map(len, prompts)) / len(prompts)
    train_tokens = len(prompts) * (1 - config.eval_share) * per_prompt * config.epochs
    looks = len(prompts) * config.eval_share * per_prompt * (config.epochs + 2)
    looks += min(START_ROWS, len(prompts) * (1 - config.eval_share)) * per_prompt
    cost = Cost(train_tokens, stepping.seconds / metrics["tokens"] * train_tokens)
    cost += Cost(looks, scoring.seconds / read * looks)
    if not config.frozen_layers:
        return cost
    tokens = len(prompts) * per_prompt
    return cost + Cost(tokens, freezing.seconds / read * tokens, tokens * model.backbone.config.hidden_size * 4)


def ppo_cost(config: PPOTrain, ppo: Any, compute: Any, loading: Cost) -> list[str]:
    """Lines for ``rlhf train --dry-run``: a step or two and part of an evaluation of a trainer that is thrown away."""
    replies = config.steps * config.prompts_per_step * config.samples_per_prompt
    held_out, reader, read = ppo.eval_prompts, ppo.policy.engine, ppo.models.run_trunk

    def counted(parts: Sequence[Part]) -> None:
        reader.tokens_run += sum(len(part.pack) for part in parts)
        read(parts)

    ppo.models.run_trunk = counted  # sampled tokens and packed ones in one count
    _, step = steps_of(ppo.step, reader)
    ppo.eval_prompts = held_out[: max(1, 2 * config.prompts_per_step)]
    _, look = timed(lambda: ppo.evaluate(0), reader)
    looks = 1 + math.ceil(config.steps / config.eval_every) if config.eval_every else 2
    cost = loading + step * config.steps + look * (looks * len(held_out) / len(ppo.eval_prompts))
    return [
        f"{len(ppo.prompts):,} prompts, {len(held_out):,} held out.",
        f"{config.steps:,} steps: {replies:,} replies of at most {config.max_new_tokens} tokens "
        f"({replies * config.max_new_tokens:,} in all), "
        f"{config.steps * config.ppo_epochs * config.minibatches:,} optimiser steps.",
        *cost.lines(compute),
    ]
