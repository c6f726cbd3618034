"""Reading a model's probabilities off labels such as `` (A)``, and long jobs of it that can be interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from truing.data.asking import PromptFormat
from truing.models.client import OutOfTime
from truing.models.kept import ANSWERS
from truing.models.reading import check_joins
from truing.models.remote import AnyLM, RemoteLM
from truing.runs import Run, atomic_write
from truing.runs.atomic import append, as_lines, read_rows
from truing.stats import Interval
from truing.train.progress import counting
from truing.types import Dialogue

Item = TypeVar("Item")
Prompts = TypeVar("Prompts", bound=Sequence[Any])
LEAST_MASS = 0.1
"""Below this probability of answering with a label at all, what the labels say is hardly the model's answer."""
ROOM = 8
"""Tokens kept free for a label."""
CHUNK = 128
"""Questions between two savings."""


def label_logprobs(
    lm: AnyLM, prompts: Sequence[str | Dialogue], labels: Sequence[Sequence[str]]
) -> tuple[list[np.ndarray], list[bool]]:
    """Log-probabilities in nats of each prompt's labels, and whether a token spanned the join with any of them.

    A label of several tokens (`` (A)`` is three for many tokenizers) counts with their sum. Equal prompts are read
    once. After a dialogue labels stand as a reply begins: without a leading space, in HH text with one.
    """
    whole: dict[tuple[str | Dialogue, tuple[str, ...]], tuple[np.ndarray, bool]] = {}
    wanted = [(prompt, tuple(some)) for prompt, some in zip(prompts, labels, strict=True)]
    texts = list(dict.fromkeys(w for w in wanted if isinstance(w[0], str)))
    pairs = [(str(prompt), label) for prompt, some in texts for label in some]
    scores = lm.score(pairs)
    if isinstance(lm, RemoteLM):
        check_joins(lm.name, lm.client, pairs, scores)
    scored = iter(scores)
    for prompt, some in texts:
        found = [next(scored) for _ in some]
        whole[prompt, some] = np.array([s.logprob for s in found]), any(s.boundary for s in found)
    talks: dict[tuple[str, ...], dict[Dialogue, None]] = {}
    for asked, some in wanted:
        if isinstance(asked, Dialogue):
            talks.setdefault(some, {})[asked] = None
    for some, dialogues in talks.items():
        space = " " if lm.format == "hh" else ""  # HH text has a space before every reply
        rows = lm.label_logprobs(list(dialogues), [space + label.strip() for label in some])
        whole |= {(dialogue, some): (row, False) for dialogue, row in zip(dialogues, rows, strict=True)}
    return [whole[w][0] for w in wanted], [whole[w][1] for w in wanted]


def renormalised(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities [K] among the labels alone, from log-probabilities [K] in nats."""
    shifted = np.exp(logprobs - logprobs.max())
    return shifted / shifted.sum()


def mass_of(logprobs: np.ndarray) -> float:
    """Probability that the model answers with any of the labels."""
    return float(np.exp(logprobs).sum())


def warn_of_mass(numbers: Mapping[str, Interval]) -> tuple[dict[str, Interval], list[str]]:
    """The numbers and notes; where ``label_mass`` is below 0.1, a warning beside every number (in its unit) and a note.

    The numbers stand: renormalised label probabilities are defined, but a model that answers otherwise does not mean
    them.
    """
    mass = numbers["label_mass"].value
    if mass is None or mass >= LEAST_MASS:
        return dict(numbers), []
    note = (
        f"Label mass is {mass:.2g}, below {LEAST_MASS}: the model hardly ever answers with these labels, so the "
        "numbers say little about it. Solved examples (--shots) or its own format (--format chat) may help."
    )
    print(note, file=sys.stderr)
    beside = f"label mass below {LEAST_MASS}"
    return {k: replace(v, unit=f"{v.unit}, {beside}" if v.unit else beside) for k, v in numbers.items()}, [note]


def in_chunks(
    run: Run,
    file: str,
    items: Sequence[Item],
    work: Callable[[Sequence[Item], int], Iterable[Mapping[str, Any]]],
    *,
    label: str | None,
    max_time: float | None = None,
    size: int = CHUNK,
    aligned: bool = True,
) -> list[dict[str, Any]]:
    """One row per item, kept in the run's ``file`` chunk by chunk, so that a killed run does only the rest.

    ``work(chunk, place of its first item)`` gives a chunk's rows, which must not depend on other chunks. A chunk that
    is not kept whole is done again, so that the last digits are those of an unbroken job; not so if the rows are not
    ``aligned``, a server's, where only what is missing is asked whatever ``size`` was before. After
    ``max_time`` minutes since the run was opened what there is comes back, fewer rows than items. Without a ``label``
    ``work`` says itself how far it is. A server's answers go once their rows are kept.
    """
    rows = read_rows(run.path / file)[: len(items)]
    if len(rows) < len(items) and (run.path / file).exists():
        rows = rows[: len(rows) // size * size] if aligned else rows
        atomic_write(run.path / file, as_lines(rows))  # without what a kill cut short: lines are added at the end
    tell = counting(label, start=len(rows)) if label else None
    for start in range(len(rows), len(items), size):
        if max_time is not None and time.monotonic() - run.opened > 60 * max_time:
            break
        try:
            new = list(map(dict, work(items[start : start + size], start)))
        except OutOfTime:
            break
        append(run.path / file, as_lines(new))
        (run.path / ANSWERS).unlink(missing_ok=True)
        rows += new
        if tell:
            tell(len(rows), len(items))
    return rows


def format_notes(lm: AnyLM, format: PromptFormat) -> list[str]:
    """Which bytes the model was asked in; refuses other formats with a ValueError."""
    if format == "raw":
        return []
    if format != "chat":
        raise ValueError(f"format is {format!r}; expected raw or chat.")
    how = "its chat template" if lm.format == "chat" else "HH text, because it has no chat template"
    return [f"The model was asked in {how}, not in the paper's raw text."]


def fit_shots(lm: AnyLM, shots: int, build: Callable[[int], Prompts], notes: list[str]) -> tuple[int, Prompts]:
    """As many solved examples, up to ``shots``, as fit into the model's window, and the prompts; ``notes`` hears of it.

    A server's window is not known here: it gets all examples and refuses what is too long. Raises ValueError if a
    prompt does not fit without any.
    """
    if isinstance(lm, RemoteLM):
        return shots, build(shots)
    window = getattr(lm.engine.config, "max_position_embeddings", None)
    for k in range(shots, -1, -1):
        prompts = build(k)
        flat = [p for some in prompts for p in (some if isinstance(some, list) else [some])]
        longest = sorted(flat, key=lambda p: len(as_text(p)), reverse=True)[:8]
        tokens = max(len(lm.encode_prompt(p)) for p in longest) + ROOM
        if window is None or tokens <= window:
            if k < shots:
                notes.append(f"{k} solved examples instead of {shots}: more do not fit into {window} tokens.")
            return k, prompts
    raise ValueError(f"The longest prompt has {tokens - ROOM} tokens and the model reads {window}, label included.")


def expected_tokens(prompts: Sequence[str | Dialogue]) -> int:
    """About how many tokens are read: four characters each; a beginning that all share is read once."""
    texts = [as_text(p) for p in prompts]
    same = 0
    for column in zip(*(t[:20_000] for t in texts), strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return (sum(map(len, texts)) - same * (len(texts) - 1)) // 4


def as_text(prompt: str | Dialogue) -> str:
    """A prompt to read: raw text as it is, a dialogue turn by turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.role.title()}: {turn.text}" for turn in prompt.turns)
