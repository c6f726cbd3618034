"""A conversation: where it stands, and what its person sees of it.

This is the state machine under every mode, as far as it is read; `truing.collect.acts` moves it, and
`truing.collect.chat` puts helpful and ranking mode on the web.

`document` is the whole screen, and all that a browser gets to know:
``{"id", "version": int, "mode", "phase": "consent|plan|write|wait|choose|rank|end|done|failed|withdrawn",
"turn": int, "turns": [{"human", "reply": text|null}], "candidates": [{"key": "a", "text", "partial", "own"}] (in the
order of sides, only when they may be seen; ``own``: the person wrote it), "queue": int|null, "message": text|null,
"task": {"done", "of", "size"}, "suggested_turns": int, "can": {"finish", "retry", "edit", "own_reply": bool}}``.
``version`` grows with every fact of the conversation (and within a turn with every piece of streamed text).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from truing.collect import tables as t
from truing.collect import turns
from truing.collect.care import beside
from truing.collect.consents import has_consented
from truing.collect.rules import Rules
from truing.collect.store import Refused, now
from truing.collect.web import Forbidden, Gone, Person
from truing.collect.words import words

if TYPE_CHECKING:
    from truing.collect.desk import Desk

KEYS = "abcd"
REPLIES = {"helpful": 2, "redteam": 2, "rank": 3}
MOST_TURNS = 40
NOT_THERE = "There is no such conversation."
LOOK = 1.5
"""Seconds between looks for replies that another process may have drawn."""
PIECES = 1 << 20
"""Pieces of streamed text that may come between two versions of facts."""


@dataclass(frozen=True)
class Talk:
    """A conversation as the database has it."""

    row: Row[Any]
    messages: Sequence[Row[Any]]
    choices: Mapping[int, Row[Any]]
    jobs: Mapping[int, Row[Any]]
    at: int

    @property
    def turn(self) -> int:
        """The turn that is going on, from 1."""
        return len(self.choices) + 1

    @property
    def job(self) -> Row[Any] | None:
        """The job of the turn that is going on."""
        return self.jobs.get(self.turn)

    def is_seen(self, job: Row[Any]) -> bool:
        """Whether a job's replies, or that there are none, may be seen: not before their delay is over."""
        return job.state == "failed" or (job.state == "done" and self.at >= (job.show_at or 0))

    @property
    def version(self) -> int:
        """Grows with every fact that may be seen. Nothing in it tells when a delayed reply was done."""
        jobs = sum(2 * job.round + self.is_seen(job) for job in self.jobs.values())
        said = sum(m.kind != "reply" for m in self.messages)
        r = self.row
        facts = r.planned + r.ended + r.flags + 2 * r.withdrawn + 2 * r.erased
        return (said + len(self.choices) + jobs + facts) * PIECES

    def phase(self) -> str:
        """Where the conversation stands, consent aside."""
        if self.row.withdrawn or self.row.erased:
            return "withdrawn"
        if self.row.ended:
            return "done"
        if self.row.mode == "redteam" and not self.row.planned:
            return "plan"
        if self.job is None:
            return "write" if self.turn <= MOST_TURNS else "end"
        if not self.is_seen(self.job):
            return "wait"
        if self.job.state == "failed":
            return "failed"
        return "rank" if self.row.mode == "rank" else "choose"

    def candidates(self) -> dict[str, Row[Any]]:
        """The replies to this turn by key, in the order of sides; a person's own has the side that is left."""
        found = {m.side: m for m in self.messages if m.turn == self.turn and m.kind == "reply"}
        own = [m for m in self.messages if m.turn == self.turn and m.kind == "written"]
        if own:
            found[next(side for side in range(len(found) + 1) if side not in found)] = own[0]
        return {KEYS[place]: found[side] for place, side in enumerate(sorted(found))}


def _count(table: sa.Table) -> sa.ScalarSelect[int]:
    mine = table.c.conversation_id == t.conversation.c.id
    return sa.select(sa.func.count()).select_from(table).where(mine).scalar_subquery()


_ID: sa.BindParameter[str] = sa.bindparam("conversation")
_TALK = sa.select(
    t.conversation,
    _count(t.plan).label("planned"),
    _count(t.ending).label("ended"),
    _count(t.flag).label("flags"),
    _count(t.withdrawal).label("withdrawn"),
    _count(t.erasure).label("erased"),
).where(t.conversation.c.id == _ID)
_M, _C, _J = t.message.c, t.choice.c, t.job.c
_MESSAGES = (  # what a screen needs and no more: every request of every person waits for these rows
    sa.select(_M.id, _M.parent_id, _M.turn, _M.role, _M.kind, _M.text, t.candidate.c.side, t.candidate.c.same)
    .select_from(t.message.outerjoin(t.candidate))
    .where(_M.conversation_id == _ID)
    .order_by(_M.turn)
)
_CHOICES = sa.select(_C.turn, _C.chosen_id, _C.edit_id).where(_C.conversation_id == _ID)
_JOBS = sa.select(_J.id, _J.turn, _J.round, _J.state, _J.show_at, _J.created_at).where(_J.conversation_id == _ID)
_HOLD = sa.select(t.conversation.c.person_id).where(t.conversation.c.id == _ID).with_for_update()
_BEFORE = (
    sa.select(sa.func.count())
    .select_from(t.job)
    .where(t.job.c.state.in_(("waiting", "running")), t.job.c.created_at < sa.bindparam("at"))
)
_TASK = (
    sa.select(
        t.conversation.c.id,
        sa.exists().where(t.ending.c.conversation_id == t.conversation.c.id).label("done"),
        t.task.c.size,
    )
    .join(t.task)
    .where(t.task.c.id == sa.bindparam("task"))
    .order_by(t.conversation.c.created_at, t.conversation.c.id)
)


def read_talk(db: Connection, conversation: str) -> Talk | None:
    """A conversation and all its facts, or None if there is none of that id."""
    which = {"conversation": conversation}
    row = db.execute(_TALK, which).first()
    if row is None:
        return None
    messages, choices, jobs = (db.execute(query, which).all() for query in (_MESSAGES, _CHOICES, _JOBS))
    return Talk(row, messages, {r.turn: r for r in choices}, {r.turn: r for r in jobs}, now())


def mine(db: Connection, person: Person, conversation: str) -> Talk:
    """A conversation to read. Raises Gone if it is not the person's."""
    talk = read_talk(db, conversation)
    if talk is None or talk.row.person_id != person.id:
        raise Gone(NOT_THERE)
    return talk


def held(db: Connection, person: Person, conversation: str) -> Talk:
    """A conversation to write to: locked until the transaction ends.

    Raises Gone, Forbidden if its mode was taken from the person meanwhile, Refused (withdrawn, no consent).
    """
    if db.execute(_HOLD, {"conversation": conversation}).scalar() != person.id:
        raise Gone(NOT_THERE)
    talk = mine(db, person, conversation)
    if talk.phase() == "withdrawn":
        raise Refused(NOT_THERE)
    if not person.may(talk.row.mode):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    if not has_consented(db, person, talk.row.mode):
        raise Refused("The instructions have changed. Please read and accept them first.")
    return talk


# ---------------------------------------------------------------- what is seen


def document(db: Connection, desk: Desk | None, person: Person, conversation: str) -> dict[str, Any]:
    """The screen of a conversation (see the module). Raises Gone if it is not the person's."""
    return _screen(db, desk, person, mine(db, person, conversation))


def news(
    db: Connection, desk: Desk | None, person: Person, conversation: str, after: int
) -> tuple[dict[str, Any] | None, float]:
    """The screen if its version is above ``after``, and else in how many seconds to look again, unless it rings before.

    Raises Gone if it is not the person's.
    """
    talk = mine(db, person, conversation)
    phase = talk.phase()
    if _candidates(talk, desk, phase)[1] > after and (found := _screen(db, desk, person, talk))["version"] > after:
        return found, 0.0
    if phase != "wait" or talk.job is None:
        return None, math.inf
    if talk.job.state == "done" and talk.job.show_at is not None:
        return None, (talk.job.show_at - now()) / 1e6 + 0.005
    return None, LOOK


def _screen(db: Connection, desk: Desk | None, person: Person, talk: Talk) -> dict[str, Any]:
    conversation = talk.row.id
    said, rules, phase = words(db), Rules.of(db), talk.phase()
    if phase not in ("done", "withdrawn") and not has_consented(db, person, talk.row.mode):
        phase = "consent"
    seen = phase not in ("withdrawn", "consent")
    candidates, version = _candidates(talk, desk, phase)
    history = turns.told(talk.messages, talk.choices.values()) if seen else []
    open_turn = phase in ("write", "choose", "rank", "wait", "failed")
    screen = {
        "id": conversation,
        "version": version,
        "mode": talk.row.mode,
        "phase": phase,
        "turn": talk.turn,
        "turns": [{"human": human, "reply": reply} for human, reply in history],
        "candidates": candidates,
        "queue": _queue(db, talk) if phase == "wait" and not candidates else None,
        "message": _message(talk, phase, said),
        "task": _task(db, talk),
        "suggested_turns": rules.suggested_turns,
        "can": {
            "finish": phase == "end" or (open_turn and bool(talk.choices)) or phase == "failed",
            "retry": phase == "failed",
            "edit": phase == "choose" and talk.row.mode == "helpful",
            "own_reply": phase == "write" and talk.row.mode == "rank",
        },
    }
    return screen | beside(db, person.id, conversation, phase, talk.at) if talk.row.mode == "redteam" else screen


def _candidates(talk: Talk, desk: Desk | None, phase: str) -> tuple[list[dict[str, Any]], int]:
    """What may be seen of the replies to this turn, and the version with it."""
    if phase in ("choose", "rank"):
        found = [
            {"key": key, "text": m.text, "partial": False, "own": m.kind == "written"}
            for key, m in talk.candidates().items()
        ]
        return found, talk.version
    partial = desk.partials(talk.row.id, talk.turn) if desk and phase == "wait" else None
    if partial is None or not any(partial.texts):
        return [], talk.version
    texts = [{"key": k, "text": x, "partial": True, "own": False} for k, x in zip(KEYS, partial.texts, strict=False)]
    return texts, talk.version + min(partial.version, PIECES - 1)


def _message(talk: Talk, phase: str, said: Mapping[str, Any]) -> str | None:
    if phase == "failed":
        return str(said["talk.failed"])
    if phase in ("choose", "rank") and any(m.same for m in talk.messages if m.turn == talk.turn):
        return str(said["talk.same"])
    return None


def _queue(db: Connection, talk: Talk) -> int | None:
    """How many jobs were there before this one and are not done, whether or not this one is."""
    if talk.job is None:
        return None
    return int(db.execute(_BEFORE, {"at": talk.job.created_at}).scalar_one())


def _task(db: Connection, talk: Talk) -> dict[str, int]:
    """Conversations of the task: how many are done, which this one is, how many there will be."""
    rows = db.execute(_TASK, {"task": talk.row.task_id}).all()
    place = next(i for i, row in enumerate(rows, 1) if row.id == talk.row.id)
    return {"done": sum(bool(row.done) for row in rows), "of": place, "size": rows[0].size}


def progress(db: Connection, person: Person) -> dict[str, dict[str, Any]]:
    """How far a person is, by mode: conversations ``done`` of the last task's ``size``, in ``total``, and whether one
    is ``open``. Modes never begun are missing."""
    c = t.conversation.c

    def has(table: sa.Table) -> sa.Exists:
        return sa.exists().where(table.c.conversation_id == c.id)

    gone = sa.or_(has(t.withdrawal), has(t.erasure))
    rows = db.execute(
        sa.select(c.mode, c.task_id, t.task.c.size, has(t.ending).label("done"), gone.label("gone"))
        .join(t.task, t.task.c.id == c.task_id)
        .where(c.person_id == person.id)
        .order_by(t.task.c.created_at, t.task.c.id)
    ).all()
    found: dict[str, dict[str, Any]] = {}
    for mode in dict.fromkeys(row.mode for row in rows):
        own = [row for row in rows if row.mode == mode]
        last = [row for row in own if row.task_id == own[-1].task_id]
        found[mode] = {
            "done": sum(bool(row.done) for row in last),
            "size": last[0].size,
            "total": sum(bool(row.done) for row in own),
            "open": any(not row.done and not row.gone for row in own),
        }
    return found
