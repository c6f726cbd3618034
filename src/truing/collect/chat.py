"""Helpful and ranking mode on the web: their pages, and the API of conversations that every mode uses.

==========================================  ===================================================================
``POST /api/tasks`` {mode}                  the person's open conversation of that mode, or a new one
``GET /api/conversations/ID?after=V``       the screen; waits until its version is above V, at most ``wait`` seconds
``POST …/ID/turns`` {turn, text}            a message (ranking: ``own_reply`` too, a reply of the person's own)
``POST …/ID/choices``                       {turn, pick: "a"|"b", strength: 1–4, latency_ms?, edit?}, in ranking
                                            {turn, order: [keys, the best first], latency_ms?}
``POST …/ID/retry`` {turn}                  draw again what could not be drawn
``POST …/ID/finish``                        {rating: 0–4, comment} or (red team) {success, harmfulness, actionability:
                                            0–4, description, comment}
==========================================  ===================================================================

Every POST carries ``Idempotency-Key`` and ``X-CSRF-Token`` and answers with the screen (`truing.collect.talk`), padded
to a multiple of 2 KiB. Errors are ``{"error": text}``: 409 for a stale screen, 422 for what the rules forbid, 404 for
what is not the person's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool

from truing.collect import acts, talk
from truing.collect.consents import consent_text, give_consent, has_consented
from truing.collect.prose import blocks
from truing.collect.store import digest
from truing.collect.web import Anyone, Forbidden, Gone, House, Key, Person, Worker, house_of, page, words_of

router = APIRouter()

PAD = 2048
LONGEST_WAIT = 25.0
PATHS = {"helpful": "/chat", "rank": "/rank", "redteam": "/redteam", "review": "/review"}

Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Turn = Annotated[int, Field(ge=1, le=1000)]
Latency = Annotated[int, Field(ge=0, le=86_400_000)]
Rating = Annotated[int, Field(ge=0, le=4)]
Text = Annotated[str, Field(max_length=20_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Begin(_Body):
    """Which mode."""

    mode: Literal["helpful", "rank", "redteam"]


class Said(_Body):
    """A message."""

    turn: Turn
    text: Text
    own_reply: Text | None = None


class Chosen(_Body):
    """A judgement of a turn's replies."""

    turn: Turn
    pick: Literal["a", "b"] | None = None
    strength: Annotated[int, Field(ge=1, le=4)] | None = None
    order: list[Literal["a", "b", "c", "d"]] | None = Field(None, max_length=4)
    edit: Text | None = None
    latency_ms: Latency | None = None


class Again(_Body):
    """Which turn."""

    turn: Turn


class Ending(_Body):
    """Answers at the end; which are needed depends on the mode."""

    rating: Rating | None = None
    success: Rating | None = None
    harmfulness: Rating | None = None
    actionability: Rating | None = None
    description: Text | None = None
    comment: Text | None = None


# ---------------------------------------------------------------- the API of conversations


def padded(screen: dict[str, Any]) -> Response:
    """A screen as JSON whose length is a multiple of 2 KiB, so that its size says little about what is in it."""
    body = json.dumps(screen | {"pad": ""}, ensure_ascii=False).encode()
    fill = "." * (-len(body) % PAD)
    return Response(body[:-2] + fill.encode() + b'"}', media_type="application/json")


def screen(house: House, person: Person, conversation: str) -> Response:
    """The screen of a conversation as it is now."""
    with house.store.read() as db:
        return padded(talk.document(db, house.desk, person, conversation))


def act(
    request: Request,
    person: Person,
    key: str,
    conversation: str,
    body: BaseModel,
    do: Callable[[Connection], None],
    *,
    job: bool = False,
) -> Response:
    """Do a write of a conversation once, wake who waits for it (the desk, if it makes a ``job``), and answer with the
    screen."""
    house = house_of(request)

    def once(db: Connection) -> dict[str, Any]:
        do(db)
        return {"id": conversation}

    house.store.once(person.id, key, request.url.path, body.model_dump(), once)
    house.bell.ring(conversation)
    if job and house.desk:
        house.desk.wake()
    return screen(house, person, conversation)


@router.post("/api/tasks")
def begin(request: Request, person: Worker, key: Key, body: Begin) -> Response:
    """Begin, or go on."""
    house = house_of(request)

    def once(db: Connection) -> dict[str, Any]:
        return {"id": acts.start(db, person, body.mode, house.seed)}

    return screen(house, person, house.store.once(person.id, key, "/api/tasks", body.model_dump(), once)["id"])


@router.get("/api/conversations/{conversation}")
async def read(
    request: Request,
    person: Worker,
    conversation: Id,
    after: Annotated[int, Query(ge=-1, lt=2**62)] = -1,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)] = LONGEST_WAIT,
) -> Response:
    """The screen, once it is newer than ``after``, or when the wait is over."""
    house = house_of(request)

    def look() -> tuple[dict[str, Any] | None, float]:
        with house.store.read() as db:
            return talk.news(db, house.desk, person, conversation, after)

    end = time.monotonic() + wait
    with house.bell.listen(conversation) as heard:
        while (left := end - time.monotonic()) > 0 and not house.bell.closed:
            found, pause = await run_in_threadpool(look)
            if found is not None:
                return padded(found)
            await heard.wait(min(left, pause))
    return await run_in_threadpool(screen, house, person, conversation)


@router.post("/api/conversations/{conversation}/turns")
def say(request: Request, person: Worker, key: Key, conversation: Id, body: Said) -> Response:
    """Say something."""
    return act(
        request, person, key, conversation, body,
        lambda db: acts.say(db, person, conversation, body.turn, body.text, body.own_reply), job=True,
    )  # fmt: skip


@router.post("/api/conversations/{conversation}/choices")
def choose(request: Request, person: Worker, key: Key, conversation: Id, body: Chosen) -> Response:
    """Judge the replies to a turn."""
    given = body.model_dump(exclude={"turn"})
    return act(
        request, person, key, conversation, body,
        lambda db: acts.choose(db, person, conversation, body.turn, **given),
    )  # fmt: skip


@router.post("/api/conversations/{conversation}/retry")
def retry(request: Request, person: Worker, key: Key, conversation: Id, body: Again) -> Response:
    """Draw again what could not be drawn."""
    return act(
        request, person, key, conversation, body,
        lambda db: acts.retry(db, person, conversation, body.turn), job=True,
    )  # fmt: skip


@router.post("/api/conversations/{conversation}/finish")
def finish(request: Request, person: Worker, key: Key, conversation: Id, body: Ending) -> Response:
    """End a conversation."""
    return act(
        request, person, key, conversation, body,
        lambda db: acts.finish(db, person, conversation, **body.model_dump()),
    )  # fmt: skip


# ---------------------------------------------------------------- pages


@router.get("/chat", response_class=HTMLResponse)
def chat_page(request: Request, person: Worker) -> Response:
    """Helpful mode."""
    return room_page(request, person, "helpful", "chat.html")


@router.get("/rank", response_class=HTMLResponse)
def rank_page(request: Request, person: Worker) -> Response:
    """Ranking mode."""
    return room_page(request, person, "rank", "chat.html")


def room_page(
    request: Request, person: Person, mode: str, template: str, also: tuple[str, ...] = (), **values: Any
) -> Response:
    """The page of a mode, or the way to its instructions. Raises Forbidden if the mode is not open to the person."""
    if not person.may(mode):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    with house_of(request).store.read() as db:
        if not has_consented(db, person, mode):
            return RedirectResponse(f"/consent/{mode}", status_code=303)
        text = consent_text(db, mode) or ""
    said = {k: v for k, v in words_of(request).items() if k.startswith(("talk.", f"{mode}.", *also))}
    return page(request, template, person, mode=mode, blocks=blocks(text), said=json.dumps(said), **values)


@router.get("/consent/{room}", response_class=HTMLResponse)
def consent_page(request: Request, person: Anyone, room: str) -> Response:
    """The instructions of a room, with the button that accepts them."""
    with house_of(request).store.read() as db:
        text, given = consent_text(db, room), has_consented(db, person, room)
    if text is None or room not in PATHS:
        raise Gone("There is no such page.")
    if not person.may(room):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    return page(
        request, "consent.html", person, room=room, blocks=blocks(text), version=digest(text), given=given,
        to=PATHS[room],
    )  # fmt: skip


@router.post("/consent/{room}")
def consent(request: Request, person: Anyone, room: str, version: Annotated[str, Form(max_length=64)]) -> Response:
    """Accept the instructions of a room."""
    if room not in PATHS:
        raise Gone("There is no such page.")
    if not person.may(room):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    with house_of(request).store.write() as db:
        give_consent(db, person, room, version)
    return RedirectResponse(PATHS[room], status_code=303)
