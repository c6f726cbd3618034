"""How the processes of a PPO run share a step: prompts to answer, packs to read, dialogues to judge.

Each does a part and gets the whole, so that what follows from a step is the same in all of them and in one alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from truing.configs import PPOTrain
from truing.models.draw import Trace
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.train.parallel import Group
from truing.train.ppo_batch import Batch, Part, Reply, draw
from truing.train.ppo_models import Models
from truing.train.ppo_reward import RewardFn, ask
from truing.types import Dialogue


def sample(
    group: Group,
    lm: LM,
    prompts: Sequence[Dialogue],
    config: PPOTrain,
    *,
    seed: int,
    trace: Trace | None = None,
) -> list[Reply]:
    """`draw`, each process the replies to some prompts; a reply's seed is the same wherever it is drawn.

    A ``trace`` is kept by one process alone: packs are dealt to any of them, and states are too many to send round.
    """
    n, max_tokens, stop_after = config.samples_per_prompt, config.max_new_tokens, config.stop_after
    if group.size == 1:
        return draw(lm, prompts, n=n, max_tokens=max_tokens, stop_after=stop_after, seed=seed, trace=trace)
    seeds = lm.seeds(prompts, n, seed)
    places = np.array_split(np.arange(len(prompts)), group.size)[group.rank].tolist()
    mine = [prompts[i] for i in places]
    own = [seeds[i] for i in places]
    drawn: list[Reply] = []
    if mine:
        drawn = draw(lm, mine, n=n, max_tokens=max_tokens, stop_after=stop_after, seed=own)
    drawn = [dataclasses.replace(reply, prompt=places[reply.prompt]) for reply in drawn]
    return [reply for part in group.gather(drawn) for reply in part]


def measure(group: Group, models: Models, parts: Sequence[Part], mask: Tensor, *, with_values: bool) -> Batch:
    """`Models.measure` of all processes' parts; ``parts`` are this one's."""
    batch = models.measure(parts, mask, with_values=with_values)
    for facts in (batch.lp_old, batch.lp_ref, batch.kl, batch.entropy, batch.values):
        group.sum(facts)  # each cell stands in one part; elsewhere it is 0
    return batch


def pm_scores(group: Group, models: Models, parts: Sequence[Part], n: int) -> np.ndarray:
    """Raw scores [n] of a preference model that reads the shared trees; ``parts`` are this process's."""
    scores = models.pm_scores(parts, n).double()
    if group.size > 1:
        mine = torch.zeros(n, dtype=torch.bool)
        for part in parts:
            mine[part.rows.cpu()] = True
        scores = group.sum(torch.where(mine, scores, 0.0))
    return scores.numpy()


def judge(
    group: Group, dialogues: list[Dialogue], pm: PreferenceModel | None, reward_fn: RewardFn | None = None
) -> np.ndarray:
    """Scores [N] of a judge that reads by itself: centred PM scores, or what the reward function says to the leader.

    Raises ValueError in every process if the reward function does not give one finite number per dialogue.
    """
    if pm is not None:
        places = np.array_split(np.arange(len(dialogues)), group.size)[group.rank]
        mine = [dialogues[i] for i in places]
        scores = np.asarray(pm.score(mine), dtype=float) if mine else np.empty(0)
        return np.concatenate(group.gather(scores))
    assert reward_fn is not None
    given: np.ndarray | None = None
    failed: ValueError | OSError | None = None
    if group.leads:
        try:
            given = ask(reward_fn, dialogues)
        except (ValueError, OSError) as problem:
            failed = problem
    given, said = group.same((given, str(failed)))
    if failed is not None:
        raise failed
    if given is None:
        raise ValueError(said)
    return given
