"""A job in hand at the desk: what is asked of models for it, and how their replies are written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect import turns
from truing.collect.arms import ArmSpec, weights
from truing.collect.replies import Ask, CannotLoad
from truing.collect.store import is_withdrawn, new_id, now

HOLD_MOST, HOLD_LEAST, HOLD_WINDOW = 200, 20, 30 * 60.0
"""An arm's running 95th percentile is that of its jobs of this many last seconds, at most and at least so many jobs.

Without the window a rush, when many people began at once, would slow down all the quiet days after it; without the
least number it would be known from too few jobs."""
LONGEST_HOLD = 120.0
NO_USE = ("withdrawn", "ended")
"""Errors of jobs that did not fail: their person took the conversation back, or ended it."""


@dataclass(eq=False)
class Work:
    """A job in hand: an ask for each of its arms, and again one where two replies were equal."""

    id: str
    conversation: str
    turn: int
    round: int
    tries: int
    mode: str
    seed: int
    arms: list[str]
    weights: dict[str, float]
    created_at: int
    sides: list[int]
    streams: bool
    specs: dict[str, ArmSpec]
    exchanges: list[turns.Exchange]
    asks: dict[Ask, list[int]] = field(default_factory=dict)
    """Ask → the slots (places in ``arms``) that its kept replies fill."""
    again: dict[Ask, int] = field(default_factory=dict)
    """The slot that is drawn a second time, because its reply equals another one."""
    waiting: set[Ask] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)
    failed: str = ""

    def slots(self, ask: Ask) -> list[int]:
        """Which slots an ask fills."""
        return self.asks.get(ask) or [self.again[ask]]

    def words(self) -> tuple[int | str, ...]:
        """What draws of this job begin with, beside the conversation's seed."""
        return self.turn, self.round


def kept(work: Work) -> dict[int, tuple[Ask, int, int]]:
    """Slot → its ask, the place of the kept sample, its rank; a second draw stands in for the first one."""
    out = {slot: (ask, *ask.shown[k]) for ask, slots in work.asks.items() for k, slot in enumerate(slots) if ask.shown}
    return out | {slot: (ask, *ask.shown[0]) for ask, slot in work.again.items() if ask.shown}


_IN = sa.select(t.message.c.id).where(
    t.message.c.conversation_id == sa.bindparam("conversation"), t.message.c.turn == sa.bindparam("in")
)
_HUMAN = _IN.where(t.message.c.role == "human")
_WRITTEN = _IN.where(t.message.c.kind == "written")
_MESSAGE = t.message.insert()
_CANDIDATE = t.candidate.insert()


def write_replies(db: Connection, work: Work) -> None:
    """The replies of a job as messages and candidates."""
    human = db.execute(_HUMAN, {"conversation": work.conversation, "in": work.turn}).scalar_one()
    found = kept(work)
    texts = [ask.samples[place].text.strip() for ask, place, _ in found.values()]
    messages: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for slot, (ask, place, rank) in found.items():
        sample = ask.samples[place]
        text = turns.clean(sample.text)
        message = {"id": new_id(), "conversation_id": work.conversation, "parent_id": human, "turn": work.turn}
        messages.append(message | {"role": "assistant", "kind": "reply", "text": text, "at": now()})
        row = {
            "message_id": message["id"],
            "arm_id": work.arms[slot],
            "side": work.sides[slot],
            "seed": sample.seed,
            "settings": ask.spec.settings,
            "logprob": sample.logprob,
            "num_tokens": sample.num_tokens,
            "finish": sample.finish,
            "pm_score": ask.scores[place] if ask.scores else None,
            "rank": rank,
            "drawn": ask.scores,
            "seconds": ask.seconds,
            "same": texts.count(sample.text.strip()) > 1,
            "truncated": ask.truncated,
        }
        candidates.append(row)
    db.execute(_MESSAGE, messages)
    db.execute(_CANDIDATE, candidates)


def own_replies(db: Connection, conversation: str, turn: int) -> int:
    """1 if the person wrote a reply to this turn too, which takes a side of its own."""
    return int(db.execute(_WRITTEN, {"conversation": conversation, "in": turn}).first() is not None)


def reason(error: Exception) -> str:
    """Why a job failed, for the administrator: never what a model or a person said, which some errors quote."""
    return str(error) if isinstance(error, CannotLoad) else type(error).__name__


_ENDED = sa.select(t.ending.c.conversation_id).where(t.ending.c.conversation_id == sa.bindparam("conversation"))


def of_no_use(db: Connection, conversation: str) -> str:
    """Why nobody waits for replies to a conversation any more: one of `NO_USE`, "" if somebody does."""
    if is_withdrawn(db, conversation):
        return "withdrawn"
    return "ended" if db.execute(_ENDED, {"conversation": conversation}).first() is not None else ""


def slowest(db: Connection, first: float) -> float:
    """The largest 95th percentile, over offered arms, of seconds from asking to done; ``first`` where few are known.

    It is one number for all arms, whichever of them answers.
    """
    j, arms = t.job.c, weights(db, "redteam")
    rows = db.execute(
        sa.select(j.arms, j.created_at, j.done_at)
        .join(t.conversation, t.conversation.c.id == j.conversation_id)
        .where(j.state == "done", t.conversation.c.mode == "redteam")
        .order_by(j.created_at.desc())
        .limit(HOLD_MOST * max(1, len(arms)))
    ).all()
    recent = now() - int(HOLD_WINDOW * 1e6)
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for row in rows:
        seconds = found.get(row.arms[0]) if row.arms else None
        if seconds is not None and len(seconds) < (HOLD_MOST if row.created_at > recent else HOLD_LEAST):
            seconds.append((row.done_at - row.created_at) / 1e6)
    p95 = [percentile95(s) if len(s) >= HOLD_LEAST else max([first, *s]) for s in found.values()]
    return min(max(p95, default=first), LONGEST_HOLD)


def percentile95(seconds: Sequence[float]) -> float:
    """What 5% of further jobs are expected to exceed, also where few are known.

    The place is 0.95 (n + 1); with numpy's usual one, 0.95 (n - 1) + 1, 9% would come later than that of 20 jobs.
    """
    return float(np.quantile(seconds, 0.95, method="weibull"))
