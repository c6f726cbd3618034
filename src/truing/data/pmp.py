"""Comparisons from dumps of the web, for preference model pretraining: ``truing data pairs`` (2204.05862 App A.2).

Votes stand in for judgement: two answers to one question, two replies to one comment, an edit and its revert.
Everything is streamed: threads whose posts lie far apart in a dump are put together on disk, not in memory.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.configs import DataPairs
from truing.data.comparisons import comparison_to_row
from truing.data.dumps import Answer, Posts, is_xml, put_reddit, put_stack_exchange, stack_exchange_rows
from truing.data.files import DataError, stream_rows
from truing.data.wiki_edits import Passage, reverts
from truing.types import Comparison, Dialogue


@dataclass(frozen=True, slots=True)
class Reply:
    """One of several replies to the same text, with the score by which they are ranked."""

    text: str
    score: int
    id: str = ""


def answer_score(votes: int, accepted: bool = False) -> int:
    """A score from votes: round(log2(1 + votes)), one more if accepted, −1 if the votes are negative.

    Whole votes never lie on a half. Negative votes are −1 also for an accepted answer (Askell et al. 2021 App C.1,
    whose words leave that open).

    >>> [answer_score(v) for v in (-3, 0, 1, 2, 4, 5)], answer_score(5, accepted=True)
    ([-1, 0, 1, 2, 2, 3], 4)
    """
    if votes < 0:
        return -1
    return round(math.log2(1 + votes)) + accepted


def ranked_pairs(
    prompt: Dialogue, replies: Sequence[Reply], *, most: int, source: str, seed: int = 0
) -> Iterator[Comparison]:
    """At most ``most`` comparisons of replies whose scores differ; which ones follows from the prompt and the seed."""
    texts = {r.text: r for r in replies if r.text.strip()}
    ranked = sorted(texts.values(), key=lambda r: -r.score)
    found = [(a, b) for a, b in itertools.combinations(ranked, 2) if a.score > b.score]
    if len(found) > most:
        found = random.Random(f"{seed} {prompt.last.text}").sample(found, most)
    for better, worse in found:
        yield Comparison(prompt, better.text, worse.text, source=source, id=f"{better.id}>{worse.id}")


def pairs(config: DataPairs) -> dict[str, Any]:
    """The verb ``data pairs``: write comparisons from dumps, whole or not at all.

    Raises DataError for files that are no dumps of this source, and where no two replies differ in score.
    """
    if config.pairs_per_prompt < 1:
        raise ValueError(f"pairs_per_prompt is {config.pairs_per_prompt}; expected 1 or more.")
    if config.dry_run:
        return {"lines": [f"Would write pairs of {', '.join(config.files)} to {config.target}."]}
    counts: Counter[str] = Counter()
    written = stream_rows(config.target, (comparison_to_row(c) for c in _found(config, counts)))
    row = {"low": None, "high": None, "unit": "rows", "n": counts["threads"]}
    numbers = {"threads": {**row, "value": counts["threads"]}, "pairs": {**row, "value": written}}
    left = [f"{counts[name]:,} {words}" for name, words in _LEFT_OUT.items() if counts[name]]
    notes = [f"Left out: {', '.join(left)}."] if left else []
    return {"numbers": numbers, "notes": notes, "lines": [f"{config.source}: {written:,} pairs → {config.target}"]}


def _found(config: DataPairs, counts: Counter[str]) -> Iterator[Comparison]:
    yield from _SOURCES[config.source](config, counts)
    if not counts["pairs"]:
        seen = ", ".join(f"{n:,} {_LEFT_OUT.get(name, name)}" for name, n in counts.items() if n) or "nothing"
        problem = f"no pair of {config.source} replies with different scores; found {seen}"
        raise DataError(", ".join(config.files), problem)


_LEFT_OUT = {
    "deleted": "deleted posts",
    "orphans": "replies to posts that are not in these files",
    "unranked": "threads without two replies of different score",
    "undone": "reverts that were reverted themselves",
    "unreadable": "reverts of more than one passage can hold",
}


def _stack_exchange(config: DataPairs, counts: Counter[str]) -> Iterator[Comparison]:
    with Posts() as posts:
        for i, file in enumerate(config.files):
            if is_xml(file):
                put_stack_exchange(file, posts, site=f"{i}-{Path(file).resolve().parent.name}")
                continue
            for question, answers in stack_exchange_rows(file):
                yield from _counted(config, counts, Dialogue().ask(question), [_reply(a) for a in answers])
        yield from _threads(config, counts, posts)


def _reply(answer: Answer) -> Reply:
    score = answer_score(answer.votes, answer.accepted) if answer.score is None else answer.score
    return Reply(answer.text, score, answer.id)


def _reddit(config: DataPairs, counts: Counter[str]) -> Iterator[Comparison]:
    with Posts() as posts:
        for file in config.files:
            counts["deleted"] += put_reddit(file, posts)
        yield from _threads(config, counts, posts)


def _threads(config: DataPairs, counts: Counter[str], posts: Posts) -> Iterator[Comparison]:
    for parent, replies in posts.threads():
        chain = posts.chain(parent)
        if not chain:
            counts["orphans"] += len(replies)
            continue
        best = posts.accepted(parent)
        scored = [Reply(text, answer_score(votes, name == best), name) for name, votes, text in replies]
        yield from _counted(config, counts, prompt_of_chain(chain), scored)


def _counted(
    config: DataPairs, counts: Counter[str], prompt: Dialogue, replies: Sequence[Reply]
) -> Iterator[Comparison]:
    counts["threads"] += 1
    before = counts["pairs"]
    for pair in ranked_pairs(prompt, replies, most=config.pairs_per_prompt, source=config.source, seed=config.seed):
        counts["pairs"] += 1
        yield pair
    counts["unranked"] += counts["pairs"] == before


def prompt_of_chain(texts: Sequence[str]) -> Dialogue:
    """A thread, oldest first, as turns that end with a human's: who answers is the assistant, who was answered not.

    Where that would begin with the assistant, the first two texts are one human turn.

    >>> [t.role for t in prompt_of_chain(["a", "b"]).turns], [t.role for t in prompt_of_chain(["a", "b", "c"]).turns]
    (['human'], ['human', 'assistant', 'human'])
    """
    texts = list(texts)
    if len(texts) % 2 == 0:
        texts[:2] = ["\n\n".join(texts[:2])]
    out = Dialogue()
    for i, text in enumerate(texts):
        out = out.reply(text) if i % 2 else out.ask(text)
    return out


def _wikipedia(config: DataPairs, counts: Counter[str]) -> Iterator[Comparison]:
    for file in config.files:
        for found in reverts(file, counts):
            counts["pairs"] += 1
            yield Comparison(passage_prompt(found), found.good, found.bad, source="wikipedia", id=found.id)


def passage_prompt(found: Passage) -> Dialogue:
    """The request that a passage answers: what stands before it in the article is shown."""
    before = f" It begins:\n\n{found.before}" if found.before.strip() else ""
    return Dialogue().ask(f'Write the next passage of the encyclopedia article "{found.title}".{before}')


_SOURCES: dict[str, Callable[[DataPairs, Counter[str]], Iterator[Comparison]]] = {
    "stackexchange": _stack_exchange,
    "reddit": _reddit,
    "wikipedia": _wikipedia,
}
