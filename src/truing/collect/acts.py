"""What a person does in a conversation: begin, say, choose, ask again, finish. Every mode is made of these.

Each runs inside ``store.once``, locks the conversation first, and raises Conflict for a stale screen, Refused for what
the rules forbid, Gone for a conversation that is not the person's. Afterwards: ``bell.ring(id)``, ``desk.wake()``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import pay, turns
from truing.collect import tables as t
from truing.collect.arms import draw_arms, reply_seed, weights
from truing.collect.consents import has_consented
from truing.collect.rules import Rules
from truing.collect.store import Conflict, Refused, new_id, now
from truing.collect.talk import REPLIES, Talk, held
from truing.collect.web import Forbidden, Person

MOST_LETTERS = 8000
_MESSAGE, _JOB, _CHOICE = t.message.insert(), t.job.insert(), t.choice.insert()
STALE = "This page is out of date: the conversation went on in another window. Reload the page to go on."


def start(db: Connection, person: Person, mode: str, seed: int | None = None) -> str:
    """The person's open conversation of a mode, or a new one in their task; its id.

    ``seed`` is the app's, if its draws are to be replayed; otherwise every conversation's is drawn by chance.
    """
    if not person.may(mode):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    if not has_consented(db, person, mode):
        raise Refused("Please read and accept the instructions first.")
    db.execute(sa.select(t.person.c.id).where(t.person.c.id == person.id).with_for_update())
    c = t.conversation.c
    over = sa.or_(
        sa.exists().where(t.ending.c.conversation_id == c.id),
        sa.exists().where(t.withdrawal.c.conversation_id == c.id),
        sa.exists().where(t.erasure.c.conversation_id == c.id),
    )
    begun = sa.select(c.id).where(c.person_id == person.id, c.mode == mode, ~over).order_by(c.created_at.desc())
    if (found := db.execute(begun.limit(1)).first()) is not None:
        return str(found.id)
    mine = sa.select(sa.func.count()).select_from(t.conversation).where(c.person_id == person.id)
    number = int(db.execute(mine).scalar_one())
    if person.quota is not None and number >= person.quota:
        raise Refused("You have had all the conversations that were planned for you. Thank you!")
    own_seed = secrets.randbits(48) if seed is None else reply_seed(seed, person.name, number)
    shares = weights(db, mode)
    drawn = draw_arms(shares, 1, own_seed, 0)
    row = {
        "id": new_id(),
        "person_id": person.id,
        "task_id": _open_task(db, person, mode),
        "mode": mode,
        "seed": own_seed,
        "arms": drawn if mode == "redteam" else [],
        "weights": shares,
        "created_at": now(),
    }
    db.execute(t.conversation.insert(), row)
    return str(row["id"])


def _open_task(db: Connection, person: Person, mode: str) -> str:
    """The person's task of a mode that has room for one more conversation, or a new one."""
    c = t.conversation.c
    count = sa.select(sa.func.count()).select_from(t.conversation).where(c.task_id == t.task.c.id).scalar_subquery()
    last = db.execute(
        sa.select(t.task.c.id, t.task.c.size, count.label("count"))
        .where(t.task.c.person_id == person.id, t.task.c.mode == mode)
        .order_by(t.task.c.created_at.desc())
        .limit(1)
    ).first()
    if last is not None and last.count < last.size:
        return str(last.id)
    row = {"id": new_id(), "person_id": person.id, "mode": mode, "size": Rules.of(db).task_size, "created_at": now()}
    db.execute(t.task.insert(), row)
    return str(row["id"])


def say(db: Connection, person: Person, conversation: str, turn: int, text: str, own_reply: str | None = None) -> None:
    """A human message; replies to it become a job. ``own_reply`` (ranking) takes the place of one of the replies."""
    talk = held(db, person, conversation)
    if talk.phase() != "write" or turn != talk.turn:
        raise Conflict(STALE)
    if own_reply is not None and talk.row.mode != "rank":
        raise Refused("A reply of your own can only be written in ranking.")
    said = _insert(db, conversation, _last(talk), turn, "human", "human", _words(text, "your message"))
    if own_reply is not None:
        _insert(db, conversation, said, turn, "assistant", "written", _words(own_reply, "your reply"))
    mode = talk.row.mode
    count = REPLIES[mode] - (own_reply is not None)
    shares = dict(talk.row.weights)
    arms = talk.row.arms * count if mode == "redteam" else draw_arms(shares, count, talk.row.seed, turn, 0)
    job = {"id": new_id(), "conversation_id": conversation, "turn": turn, "round": 0, "arms": arms, "weights": shares}
    db.execute(_JOB, job | {"state": "waiting", "tries": 0, "created_at": now()})


def choose(
    db: Connection,
    person: Person,
    conversation: str,
    turn: int,
    *,
    pick: str | None = None,
    strength: int | None = None,
    order: Sequence[str] | None = None,
    edit: str | None = None,
    latency_ms: int | None = None,
) -> None:
    """The person's judgement of a turn's replies: a pick with its strength, or (ranking) all keys, the best first.

    ``edit`` is the person's better version of the picked reply, with which the conversation goes on.
    """
    talk = held(db, person, conversation)
    phase = talk.phase()
    if phase not in ("choose", "rank") or turn != talk.turn:
        raise Conflict(STALE)
    found = talk.candidates()
    if phase == "rank":
        if order is None or sorted(order) != sorted(found):
            raise Refused("Put all replies in order, each once.")
        pick, strength = order[0], None
    elif order is not None or pick not in found or strength is None or not 1 <= strength <= 4:
        raise Refused("Choose one of the eight buttons.")
    chosen = found[str(pick)]
    better = _words(edit, "your version") if edit is not None and phase == "choose" else None
    if better is not None and talk.row.mode != "helpful":
        raise Refused("Replies can only be edited in helpful mode.")
    edited = None
    if better is not None and better != chosen.text.strip():
        edited = _insert(db, conversation, chosen.parent_id, turn, "assistant", "edit", better)
    row = {"id": new_id(), "conversation_id": conversation, "turn": turn, "chosen_id": chosen.id, "edit_id": edited}
    row |= {"strength": strength, "order": [found[key].id for key in order] if order else None}
    db.execute(_CHOICE, row | {"latency_ms": latency_ms, "at": now()})


def retry(db: Connection, person: Person, conversation: str, turn: int) -> None:
    """Ask again for replies that could not be drawn, where every turn draws its arms from others if there are any."""
    talk = held(db, person, conversation)
    if talk.phase() != "failed" or turn != talk.turn or talk.job is None:
        raise Conflict(STALE)
    job = db.execute(sa.select(t.job).where(t.job.c.id == talk.job.id)).one()
    shares, arms = dict(job.weights), list(job.arms)
    if talk.row.mode != "redteam":
        offered = weights(db, talk.row.mode) or shares
        shares = {arm: w for arm, w in offered.items() if arm not in job.arms} or offered
        arms = draw_arms(shares, len(arms), talk.row.seed, turn, job.round + 1)
    again: dict[str, Any] = {
        "state": "waiting",
        "owner": None,
        "lease_until": None,
        "error": None,
        "done_at": None,
        "show_at": None,
    }
    again |= {"round": job.round + 1, "tries": job.tries + 1, "arms": arms, "weights": shares, "created_at": now()}
    db.execute(t.job.update().where(t.job.c.id == job.id).values(**again))


def finish(db: Connection, person: Person, conversation: str, **answers: Any) -> None:
    """End a conversation with answers (columns of ``ending``). A conversation without a choice owes none."""
    talk = held(db, person, conversation)
    if talk.phase() in ("done", "withdrawn", "plan"):
        raise Conflict(STALE)
    needed = ("success", "harmfulness", "actionability") if talk.row.mode == "redteam" else ("rating",)
    given = {k: v for k, v in answers.items() if v is not None}
    if talk.row.mode == "redteam" and not turns.clean(given.get("description", "")).strip():
        given["description"] = db.execute(
            sa.select(t.plan.c.text).where(t.plan.c.conversation_id == conversation)
        ).scalar_one()
    if talk.choices and (missing := [name for name in needed if name not in given]):
        raise Refused(f"Please answer every question ({len(missing)} left).")
    texts = {k: turns.clean(given[k]).strip() for k in ("comment", "description") if k in given}
    row = {"conversation_id": conversation, "comment": "", "stopped": not talk.choices, "at": now()} | given | texts
    db.execute(t.ending.insert(), row)
    pay.settle_task(db, talk.row.task_id, stopping=not talk.choices)


def stop(db: Connection, conversation: str) -> None:
    """End an open conversation without any answers, and pay what its task has earned. The caller holds its lock."""
    db.execute(t.ending.insert(), {"conversation_id": conversation, "comment": "", "stopped": True, "at": now()})
    task = db.execute(sa.select(t.conversation.c.task_id).where(t.conversation.c.id == conversation)).scalar_one()
    pay.settle_task(db, task, stopping=True)


def is_open(db: Connection, conversation: str) -> bool:
    """Whether a conversation has not ended."""
    ended = sa.select(t.ending.c.conversation_id).where(t.ending.c.conversation_id == conversation)
    return db.execute(ended).first() is None


def _last(talk: Talk) -> str | None:
    """The message with which the conversation went on."""
    before = talk.choices.get(talk.turn - 1)
    return None if before is None else str(before.edit_id or before.chosen_id)


def _insert(db: Connection, conversation: str, parent: str | None, turn: int, role: str, kind: str, text: str) -> str:
    row = {"id": new_id(), "conversation_id": conversation, "parent_id": parent, "turn": turn}
    db.execute(_MESSAGE, row | {"role": role, "kind": kind, "text": text, "at": now()})
    return str(row["id"])


def _words(text: str, what: str) -> str:
    said = turns.clean(text).strip()
    if not said:
        raise Refused(f"There is nothing in {what} yet.")
    if len(said) > MOST_LETTERS:
        raise Refused(f"Too long: {what} has {len(said)} characters, and at most {MOST_LETTERS} can be read.")
    return said
