"""What a red-teamer's browser receives does not tell which model answered: not by its words, sizes or timing."""

from __future__ import annotations

import collections
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from serving import Served, administrator, script, with_short_hold

from truing.collect import tables as t
from truing.collect.people import Chance, Manner, invite_simulated, simulate
from truing.collect.store import Store
from truing.collect.visitor import Asked
from truing.data.prompts import red_team_prompts
from truing.stats.calibration import auroc

REPLIES = [f"I would rather not talk about number {i}." for i in range(40)]
SLOW, FAST = "zebra-slow-52b", "quokka-fast-2b"
SECONDS = {SLOW: 0.25, FAST: 0.0}
TURNS = 4


@dataclass(frozen=True)
class Seen:
    """A turn as the browser has it: everything of its requests that could tell, and who answered."""

    arm: str
    conversation: str
    facts: tuple[float, ...]


def watch(folder: Path, empty: Path, people: int, conversations: int, seed: int) -> tuple[list[Seen], list[Asked]]:
    """Have people attack both arms; every turn, and every request, as their browsers saw them."""
    db = str(shutil.copy(empty, folder / f"{seed}.db"))
    arms = [
        f"{name}={script(folder / f'{name}-{seed}.jsonl', REPLIES, seconds)},modes=redteam"
        for name, seconds in SECONDS.items()
    ]
    store = Store(db)
    administrator(store)
    manner = Manner("redteam", conversations, TURNS, prompts=red_team_prompts()[:5])
    with Served(with_short_hold, db, arms, 0.6) as server:
        link = invite_simulated(store, people)
        book = simulate(server.url, link, people, manner, Chance(seed), seed=seed, keep_answers=True)
    with store.read() as found:
        names = dict(found.execute(sa.select(t.arm.c.id, t.arm.c.name)).tuples().all())
        rows = found.execute(sa.select(t.conversation.c.id, t.conversation.c.arms)).tuples().all()
    store.close()
    leaks(book.asked, [*names, *names.values(), "script:", "quokka", "zebra", "arm_id", "pm_score"])
    return turns(book.asked, {conversation: names[drawn[0]] for conversation, drawn in rows}), book.asked


def leaks(asked: Sequence[Asked], names: Sequence[str]) -> None:
    """No header and no body holds a name."""
    for one in asked:
        if one.answer is not None:
            sent = b"\n".join(x for pair in one.answer.headers.raw for x in pair) + one.answer.content
            assert not [name for name in names if name.encode() in sent], one.path


def turns(asked: Sequence[Asked], arms: dict[str, str]) -> list[Seen]:
    """The turns of all conversations: seconds, bytes and headers of each request, how many polls, when it was seen."""
    by_talk: dict[str, list[Asked]] = collections.defaultdict(list)
    for one in asked:
        found = one.answer and re.search(r"/api/conversations/([0-9a-f]{32})", str(one.answer.request.url))
        if found:
            by_talk[found[1]].append(one)
    out = []
    for talk, requests in by_talk.items():
        begins = [i for i, one in enumerate(requests) if one.path.endswith("/turns")]
        for begin in begins:
            end = next((i for i in range(begin, len(requests)) if requests[i].path.endswith("/choices")), None)
            if end is None:
                continue
            said, polls, chose = requests[begin], requests[begin + 1 : end], requests[end]
            shown = polls[-1] if polls else said
            facts = [*size(said), *size(shown), *size(chose), len(polls), shown.at - said.at, chose.at - said.at]
            out.append(Seen(arms[talk], talk, tuple(facts)))
    return out


def size(one: Asked) -> tuple[float, ...]:
    """What a request took and brought."""
    assert one.answer is not None
    headers = one.answer.headers.raw
    return one.seconds, len(one.answer.content), len(headers), sum(len(x) for pair in headers for x in pair)


def told_apart(seen: Sequence[Seen], seed: int = 0) -> tuple[float, float, float]:
    """AUC of a classifier on turns of conversations that it has not seen, with its 95% interval over conversations."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    x = np.array([one.facts for one in seen])
    y = np.array([one.arm == SLOW for one in seen], dtype=int)
    talks = np.unique([one.conversation for one in seen], return_inverse=True)[1]
    model = GradientBoostingClassifier(n_estimators=60, max_depth=2, subsample=0.7, random_state=seed)
    scores = cross_val_predict(model, x, y, groups=talks, cv=GroupKFold(5), method="predict_proba")[:, 1]
    rows = [np.flatnonzero(talks == talk) for talk in range(talks.max() + 1)]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(500):
        some = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        draws.append(auroc(scores[some], y[some]))
    low, high = np.quantile([d for d in draws if d is not None], [0.025, 0.975])
    return float(auroc(scores, y) or 0.0), float(low), float(high)


@pytest.mark.slow  # minutes, and an interval misses one time in twenty
def test_neither_names_nor_headers_nor_sizes_nor_timings_tell_which_arm_answers(tmp_path: Path, empty_file: Path):
    seen: list[Seen] = []
    asked: list[Asked] = []
    for attempt in range(2):  # chance alone puts one interval in twenty beside 0.5: then there is a second look
        more, requests = watch(tmp_path, empty_file, people=8, conversations=13, seed=attempt)
        seen, asked = seen + more, asked + requests
        auc, low, high = told_apart(seen)
        if low <= 0.5 and high < 0.6:
            break
    counts = collections.Counter(one.arm for one in seen)
    print(f"AUC {auc:.3f} [{low:.3f}, {high:.3f}], turns {dict(counts)}, {len(asked)} requests")
    assert min(counts.values()) * 3 >= 400, "each turn is three requests at least"
    assert low <= 0.5 and high < 0.6, f"AUC {auc:.3f} [{low:.3f}, {high:.3f}]"


@pytest.mark.parametrize("fact", [0, 5, 13])
def test_a_leak_in_any_one_fact_is_found(fact: int):
    rng = np.random.default_rng(fact)
    seen = []
    for talk in range(60):
        arm = SLOW if talk % 2 else FAST
        for _ in range(TURNS):
            facts = rng.normal(size=15)
            facts[fact] += (arm == SLOW) * 1.5
            seen.append(Seen(arm, str(talk), tuple(facts)))
    assert told_apart(seen)[1] > 0.6
