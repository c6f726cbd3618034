"""Red-team mode on the web (redteam.md §2): what it has beyond conversations as `truing.collect.chat` serves them.

=============================  ==================================================================================
``GET /redteam``               the room; before consent it leads to the instructions, and to a survey that is due
``POST …/ID/plan`` {text,      how the person means to attack, before the chat; locked from then on. ``tags`` spare
tags}                          reviewers who do not want to read about it
``POST …/ID/stop``             "stop now": ends the conversation wherever it stands. It owes no answers, keeps all
                               that was said, and is paid
``POST …/ID/flag`` {why, key?} reports a problem with the conversation, or with one of the replies on offer
``POST …/ID/withdraw``         hides a conversation of one's own from every reader and export, for good
``GET /mine``                  one's own conversations, each with a button to withdraw it
=============================  ==================================================================================

(``…`` is ``/api/conversations``.) Stopping and withdrawing ask for no consent: they work when it has lapsed, too.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from truing.collect import acts, surveys, tags, turns
from truing.collect import tables as t
from truing.collect.acts import STALE
from truing.collect.chat import Id, Text, act, room_page
from truing.collect.prose import blocks
from truing.collect.store import Conflict, Refused, is_withdrawn, lock_conversation, new_id, note, now, readable
from truing.collect.talk import Talk, held, mine
from truing.collect.web import Key, Person, Worker, house_of, page, words_of

router = APIRouter()
LONGEST_PLAN = 2000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Plan(_Body):
    """What the person means to do, and what it is about."""

    text: Text
    tags: list[Annotated[str, Field(max_length=200)]] = Field([], max_length=20)


class Flag(_Body):
    """What is wrong; ``key`` is the reply on offer that it is about."""

    why: Annotated[str, Field(max_length=2000)] = ""
    key: Literal["a", "b"] | None = None


class Nothing(_Body):
    """No answers."""


# ---------------------------------------------------------------- acts


def plan(db: Connection, person: Person, conversation: str, text: str, about: list[str]) -> None:
    """Lock what the person means to do. Raises Conflict if there is a plan, Refused if this is none."""
    if held(db, person, conversation).phase() != "plan":
        raise Conflict(STALE)
    said = turns.clean(text).strip()
    if not said:
        raise Refused("Please say in a sentence what you mean to try.")
    if len(said) > LONGEST_PLAN:
        raise Refused(f"The description has {len(said)} characters; at most {LONGEST_PLAN} can be kept.")
    row = {"conversation_id": conversation, "text": said, "tags": tags.checked(db, about), "at": now()}
    db.execute(t.plan.insert(), row)


def stop(db: Connection, person: Person, conversation: str) -> None:
    """End a conversation wherever it stands; nothing if it has ended."""
    talk = _locked(db, person, conversation)
    if talk.row.withdrawn or talk.row.ended:
        return
    acts.stop(db, conversation)


def flag(db: Connection, person: Person, conversation: str, why: str, key: str | None) -> None:
    """Report a problem. Raises Refused if the reply it is about is not on offer."""
    talk = _locked(db, person, conversation)
    if talk.phase() == "withdrawn":  # or erased: nothing more is said in it
        raise Refused("There is no such conversation.")
    about = talk.candidates().get(key) if key and talk.phase() in ("choose", "rank") else None
    if key and about is None:
        raise Refused("That reply is not on the screen any more.")
    row = {"id": new_id(), "conversation_id": conversation, "person_id": person.id, "why": turns.clean(why).strip()}
    db.execute(t.flag.insert(), row | {"message_id": about.id if about is not None else None, "at": now()})


def withdraw(db: Connection, person: Person, conversation: str) -> None:
    """Hide a conversation from every reader and export. It stays paid; nothing if it is withdrawn already."""
    talk = _locked(db, person, conversation)
    if talk.row.withdrawn:
        return
    if not talk.row.ended:
        acts.stop(db, conversation)
    db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": conversation, "by": person.id, "at": now()})
    note(db, person.id, "withdrawn", conversation)


def _locked(db: Connection, person: Person, conversation: str) -> Talk:
    """A conversation of the person's own, held until the transaction ends, whatever they have consented to."""
    mine(db, person, conversation)
    if not is_withdrawn(db, conversation):
        lock_conversation(db, conversation)
    return mine(db, person, conversation)


# ---------------------------------------------------------------- the API


@router.post("/api/conversations/{conversation}/plan")
def post_plan(request: Request, person: Worker, key: Key, conversation: Id, body: Plan) -> Response:
    """Lock the plan."""
    return act(
        request, person, key, conversation, body, lambda db: plan(db, person, conversation, body.text, body.tags)
    )


@router.post("/api/conversations/{conversation}/stop")
def post_stop(request: Request, person: Worker, key: Key, conversation: Id, body: Nothing) -> Response:
    """Stop now."""
    return act(request, person, key, conversation, body, lambda db: stop(db, person, conversation))


@router.post("/api/conversations/{conversation}/flag")
def post_flag(request: Request, person: Worker, key: Key, conversation: Id, body: Flag) -> Response:
    """Report a problem."""
    return act(request, person, key, conversation, body, lambda db: flag(db, person, conversation, body.why, body.key))


@router.post("/api/conversations/{conversation}/withdraw")
def post_withdraw(request: Request, person: Worker, key: Key, conversation: Id, body: Nothing) -> Response:
    """Withdraw a conversation."""
    return act(request, person, key, conversation, body, lambda db: withdraw(db, person, conversation))


# ---------------------------------------------------------------- pages


@router.get("/redteam", response_class=HTMLResponse)
def redteam_page(request: Request, person: Worker) -> Response:
    """The room."""
    with house_of(request).store.read() as db:
        survey, found = surveys.due(db, person), tags.tags_of(db)
    if survey is not None and person.may("redteam"):
        return RedirectResponse(f"/surveys/{survey}", status_code=303)
    helping = blocks(str(words_of(request)["care.help"]))
    return room_page(request, person, "redteam", "redteam.html", ("care.",), helping=helping, tags=json.dumps(found))


@router.get("/mine", response_class=HTMLResponse)
def mine_page(request: Request, person: Worker) -> Response:
    """The person's own conversations."""
    with house_of(request).store.read() as db:
        found = own(db, person.id)
    return page(request, "mine.html", person, found=found, said=json.dumps(_said(words_of(request))))


def own(db: Connection, person: str, most: int = 200) -> list[dict[str, Any]]:
    """The latest conversations of a person that were not withdrawn: id, mode, day, how they began, whether over."""
    c, m = t.conversation.c, t.message.c
    first = (
        sa.select(m.text).where(m.conversation_id == c.id, m.turn == 1, m.role == "human").limit(1).scalar_subquery()
    )
    planned = sa.select(t.plan.c.text).where(t.plan.c.conversation_id == c.id).scalar_subquery()
    over = sa.exists().where(t.ending.c.conversation_id == c.id)
    rows = db.execute(
        sa.select(c.id, c.mode, c.created_at, sa.func.coalesce(planned, first, "").label("about"), over.label("over"))
        .where(c.person_id == person, readable())
        .order_by(c.created_at.desc())
        .limit(most)
    )
    return [dict(row._mapping) | {"day": time.strftime("%Y-%m-%d", time.gmtime(row.created_at / 1e6))} for row in rows]


def _said(words: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in words.items() if k.startswith(("mine.", "care."))}
