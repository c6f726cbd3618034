"""Log-probabilities that a model would give at other temperatures, from one reading of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from truing.models.lm import LM
from truing.text import split_context


def tempered_logprobs(lm: LM, context: str, continuations: Sequence[str], temperatures: Sequence[float]) -> np.ndarray:
    """Log-probabilities in nats, float64 [T, N], of continuations of a text at each temperature.

    At temperature T every token's logits are divided by T before the softmax, so a continuation of several tokens is
    the sum over its tokens, each with its own normaliser: that is not the same as its log-probability divided by T.
    Raises ValueError for a temperature that is not above 0.
    """
    if min(temperatures) <= 0:
        raise ValueError(f"A temperature is {min(temperatures)}; expected more than 0.")
    places: dict[tuple[int, ...], int] = {}
    at, tokens, owners = list[int](), list[int](), list[int]()  # of every token to be scored: what was read before it
    for i, text in enumerate(continuations):
        head, tail, _ = split_context(context, text, lm.tokenizer)
        at += [places.setdefault(tuple(head + tail[:k]), len(places)) for k in range(len(tail))]
        tokens += tail
        owners += [i] * len(tail)
    rows = np.stack(lm.engine.next_logprobs([list(read) for read in places]))
    rows -= rows.max(1, keepdims=True)
    out = np.zeros((len(temperatures), len(continuations)))
    for i, temperature in enumerate(temperatures):
        scaled = rows / np.float32(temperature)
        norms = np.log(np.exp(scaled).sum(1, dtype=np.float64))
        out[i] = np.bincount(owners, scaled[at, tokens] - norms[at], len(continuations))
    return out
