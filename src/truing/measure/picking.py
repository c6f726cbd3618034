"""Which of a prompt's replies are shown: all, the one a preference model likes best, or the median one; their numbers.

The median of what is left after the empty replies is what 2204.05862 §6 shows of its models: best of n would flatter
them, and one draw may be empty or unlucky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Sampling
from truing.types import Dialogue

Drawn = Mapping[str, Any]


def median_reply(samples: Sequence[Drawn]) -> Drawn | None:
    """The reply of median ``score`` among those that are not blank; of an even number the lower of the middle two.

    None if all are blank. Replies of one score keep their order.

    >>> some = [{"text": t, "score": s} for t, s in (("a", 3.0), (" ", -9.0), ("b", 1.0), ("c", 2.0))]
    >>> median_reply(some)["text"]
    'c'
    """
    ranked = sorted((s for s in samples if s["text"].strip()), key=lambda s: s["score"])
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def answer(samples: Sequence[Drawn], config: Sampling) -> list[dict[str, Any]]:
    """What a row of the answer holds: all samples, or the best one, or the median one (none if all are blank)."""
    kept = samples
    if config.best:
        kept = [max(samples, key=lambda s: s["score"])]
    elif config.median:
        kept = [reply for reply in [median_reply(samples)] if reply]
    return [{k: v for k, v in s.items() if k != "tokens"} for s in kept]


def shown(prompt: Dialogue, kept: Sequence[Drawn]) -> dict[str, Any]:
    """A row of samples.jsonl."""
    first = kept[0] if kept else {"text": "", "logprob": None, "finish": "stop"}
    row = {"prompt": prompt.last.text, "reply": first["text"], "logprob": first["logprob"], "finish": first["finish"]}
    return row | ({"score": first["score"]} if "score" in first else {})


def sample_numbers(
    drawn: Sequence[Mapping[str, Any]], out: Sequence[Mapping[str, Any]], config: Sampling
) -> tuple[dict[str, Any], list[str]]:
    """Numbers of a sampling job and what to note; intervals by prompt."""
    every = [(i, s) for i, row in enumerate(drawn) for s in row["samples"]]
    rows = [i for i, _ in every]
    numbers: dict[str, Any] = {"rows": count(len(drawn)), "samples": count(len(every))}
    silent = sum(s["tokens"] is None for _, s in every)
    notes = []
    if silent:
        notes.append(f"{silent} replies came without log-probabilities: theirs are null, and tokens are not counted.")
    if cut := sum(s["finish"] == "filtered" for _, s in every):
        notes.append(f"{cut} replies were cut or withheld by the server's content filter (finish: filtered).")
    tokens = [(i, s["tokens"]) for i, s in every if not silent]
    numbers["reply_tokens"] = stats.mean_interval(
        [t for _, t in tokens], [i for i, _ in tokens], unit="tokens", seed=config.seed
    )
    finished = np.array([s["finish"] == "stop" for _, s in every])
    numbers["eos_rate"] = stats.mean_interval(finished, rows, unit="share", seed=config.seed)
    if config.pm:
        kept = [(i, c["score"]) for i, row in enumerate(out) for c in row["samples"]]
        numbers["pm_score"] = stats.mean_interval([k[1] for k in kept], [k[0] for k in kept], seed=config.seed)
    if config.median:
        blank = np.array([not s["text"].strip() for _, s in every])
        numbers["empty_rate"] = stats.mean_interval(blank, rows, unit="share", seed=config.seed)
        if none := sum(not row["samples"] for row in out):
            notes.append(f"To {none} prompts every reply is empty: their rows show none.")
    return numbers, notes


def count(n: int) -> dict[str, Any]:
    """A count as a number of a summary: no interval is meant."""
    return {"value": n, "low": None, "high": None, "n": n, "unit": ""}
