"""A language model's own taste: the mean log-probability per token of replies (2204.05862 App B.3).

A policy that gives the better reply of a comparison the higher mean is a preference model of sorts; it stays below
one that was trained to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from truing import stats
from truing.measure.picking import count
from truing.models.heads import FACTS
from truing.models.lm import LM
from truing.models.load import find_model, is_remote, model_file
from truing.models.reply_means import preferred, reply_ids, reply_means
from truing.text import to_hh
from truing.types import Dialogue

UNIT = "nats per token"


def is_language_model(name: str) -> bool:
    """Whether a model has no scalar head of ours, and its weights are here. Raises UnknownModel."""
    return not is_remote(name) and model_file(find_model(name), FACTS, name) is None


def too_long(lm: LM, pairs: Sequence[Sequence[Dialogue]]) -> tuple[int, str] | None:
    """The place of the first pair that the model's window has no room for, and its size in words; None if all fit."""
    window = getattr(lm.engine.config, "max_position_embeddings", None)
    if window is None:
        return None
    for i, pair in enumerate(pairs):
        size = max(len(reply_ids(lm, dialogue)[0]) for dialogue in pair)
        if size > window:
            return i, f"{size} tokens; the model reads at most {window}"
    return None


def pair_rows(lm: LM, pairs: Sequence[Sequence[Dialogue]]) -> list[dict[str, Any]]:
    """Rows ``{"chosen", "rejected"}``, means in nats per token."""
    means = reply_means(lm, [dialogue for pair in pairs for dialogue in pair]).reshape(-1, 2).tolist()
    return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in means]


def pair_numbers(
    pairs: Sequence[Sequence[Dialogue]], seed: int
) -> Callable[[Sequence[Mapping[str, Any]]], tuple[dict[str, Any], list[str]]]:
    """A function from rows to numbers: ``accuracy`` (a tie counts half) and means; intervals by prompt."""

    def numbers_of(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        prompts = [to_hh(pair[0].prompt) for pair in pairs[: len(rows)]]
        chosen, rejected = (np.array([row[name] for row in rows]) for name in ("chosen", "rejected"))
        right = preferred(chosen, rejected)
        columns = {"chosen": chosen, "rejected": rejected, "gap": chosen - rejected}
        numbers: dict[str, Any] = {
            "rows": count(len(rows)),
            "accuracy": stats.mean_interval(right, prompts, unit="share", seed=seed),
        }
        numbers |= {name: stats.mean_interval(x, prompts, unit=UNIT, seed=seed) for name, x in columns.items()}
        note = (
            "A language model has no score: rows hold the mean log-probability per token of each reply, and accuracy "
            "is the share of comparisons whose chosen reply has the higher one."
        )
        return numbers, [note]

    return numbers_of
