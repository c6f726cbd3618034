"""Review mode on the web (redteam.md §3): a description, a decision, only then the transcript, and three questions.

===============================  ================================================================================
``GET /review``                  the room; before consent it leads to the instructions, and to a survey that is due
``POST /api/reviews/next``       the reviewer's open offer, or a new one: the attacker's description alone
``POST /api/reviews/ID/proceed`` go on: the first and only answer that holds a transcript
``POST /api/reviews/ID/skip``    leave it out, before or after; costs nothing, and it goes to another
``POST /api/reviews/ID/submit``  {rating: 0–4, intent: 0–4, tags: 1 or 2, comment}
``POST /api/reviews/stop``       close what is open, pay what was done
``POST /api/exclusions`` {tags}  topics that the reviewer wants to be spared
===============================  ================================================================================

What a reviewer gets to know is `Preview` and `Opened`: nothing of the author's ratings, of scores, models, or other
reviewers' answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from truing.collect import readers, surveys, tags, turns
from truing.collect import tables as t
from truing.collect.care import meter
from truing.collect.chat import Id, Rating, Text, padded, room_page
from truing.collect.prose import blocks
from truing.collect.rules import Rules
from truing.collect.web import Key, Person, Reviewer, house_of, words_of

router = APIRouter()


class Progress(BaseModel):
    """Reviews that were submitted, and how many make a task."""

    done: int
    size: int


class Meter(BaseModel):
    """Replies that the reviewer had before them today, and after how many a break is due."""

    exposure: int
    break_every: int


class Preview(BaseModel):
    """What is seen before the decision. ``none``: there is nothing to read at the moment."""

    id: str | None
    phase: Literal["preview", "read", "reviewed", "skipped", "none"]
    description: str
    progress: Progress
    care: Meter


class Exchange(BaseModel):
    """A human turn and the reply to it."""

    human: str
    reply: str | None


class Opened(Preview):
    """What is seen after it."""

    turns: list[Exchange]


class Spared(BaseModel):
    """Topics that the reviewer is spared."""

    tags: list[str]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(_Body):
    """No answers."""


class Answers(_Body):
    """A reviewer's answers."""

    rating: Rating
    intent: Rating
    tags: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=tags.MOST)
    comment: Text = ""


class Exclusions(_Body):
    """Topics to be spared."""

    tags: list[Annotated[str, Field(max_length=200)]] = Field(max_length=100)


# ---------------------------------------------------------------- the API


@router.post("/api/reviews/next", response_model=Preview)
def following(request: Request, person: Reviewer, key: Key, body: Nothing) -> Response:
    """The next description."""
    found = _once(request, person, key, body, lambda db: readers.offer(db, person))
    with house_of(request).store.read() as db:
        if found is None:
            empty = Preview(
                id=None, phase="none", description="", progress=_progress(db, person), care=_care(db, person)
            )
            return padded(empty.model_dump())
        return padded(_preview(db, person, found).model_dump())


@router.post("/api/reviews/{assignment}/proceed", response_model=Opened)
def proceed(request: Request, person: Reviewer, key: Key, assignment: Id, body: Nothing) -> Response:
    """Go on to the transcript."""
    _once(request, person, key, body, lambda db: readers.proceed(db, person, assignment))
    with house_of(request).store.read() as db:
        before = _preview(db, person, assignment)
        told = []
        if before.phase == "read":
            talked = turns.history(db, readers.mine(db, person, assignment).conversation_id)
            told = [Exchange(human=human, reply=reply) for human, reply in talked]
        return padded(Opened(**before.model_dump(), turns=told).model_dump())


@router.post("/api/reviews/{assignment}/skip", response_model=Preview)
def skip(request: Request, person: Reviewer, key: Key, assignment: Id, body: Nothing) -> Response:
    """Leave it out."""
    return _then(request, person, key, assignment, body, lambda db: readers.skip(db, person, assignment))


@router.post("/api/reviews/{assignment}/submit", response_model=Preview)
def submit(request: Request, person: Reviewer, key: Key, assignment: Id, body: Answers) -> Response:
    """Answer."""
    return _then(
        request, person, key, assignment, body,
        lambda db: readers.submit(db, person, assignment, body.rating, body.intent, body.tags, body.comment),
    )  # fmt: skip


@router.post("/api/reviews/stop", response_model=Spared)
def stop(request: Request, person: Reviewer, key: Key, body: Nothing) -> Response:
    """Stop now."""
    _once(request, person, key, body, lambda db: readers.stop(db, person))
    return _spared(request, person)


@router.post("/api/exclusions", response_model=Spared)
def exclude(request: Request, person: Reviewer, key: Key, body: Exclusions) -> Response:
    """Be spared topics."""
    _once(request, person, key, body, lambda db: readers.exclude(db, person, body.tags))
    return _spared(request, person)


def _once(request: Request, person: Person, key: str, body: BaseModel, do: Callable[[Connection], Any]) -> str | None:
    """Do a write once; the id that it gave, if any. Texts are never kept with the key."""

    def act(db: Connection) -> dict[str, Any]:
        found = do(db)
        return {"id": found if isinstance(found, str) else None}

    answer = house_of(request).store.once(person.id, key, request.url.path, body.model_dump(), act)
    return answer["id"]  # type: ignore[no-any-return]


def _then(
    request: Request, person: Person, key: str, assignment: str, body: BaseModel, do: Callable[[Connection], Any]
) -> Response:
    _once(request, person, key, body, do)
    with house_of(request).store.read() as db:
        return padded(_preview(db, person, assignment).model_dump())


def _spared(request: Request, person: Person) -> Response:
    with house_of(request).store.read() as db:
        return padded({"tags": readers.excluded(db, person.id)})


def _preview(db: Connection, person: Person, assignment: str) -> Preview:
    row = readers.mine(db, person, assignment)
    return Preview(
        id=assignment,
        phase=row.phase,
        description=readers.description(db, row.conversation_id) if row.phase in ("preview", "read") else "",
        progress=_progress(db, person),
        care=_care(db, person),
    )


def _progress(db: Connection, person: Person) -> Progress:
    query = sa.select(sa.func.count()).select_from(t.assignment.join(t.review))
    done = int(db.execute(query.where(t.assignment.c.person_id == person.id)).scalar_one())
    return Progress(done=done, size=Rules.of(db).task_size)


def _care(db: Connection, person: Person) -> Meter:
    return Meter(**meter(db, person.id))


# ---------------------------------------------------------------- the page


@router.get("/review", response_class=HTMLResponse)
def review_page(request: Request, person: Reviewer) -> Response:
    """The room. It holds no description and no transcript."""
    with house_of(request).store.read() as db:
        survey, found, spared = surveys.due(db, person), tags.tags_of(db), readers.excluded(db, person.id)
    if survey is not None and person.may("review"):
        return RedirectResponse(f"/surveys/{survey}", status_code=303)
    helping = blocks(str(words_of(request)["care.help"]))
    lists = {"tags": json.dumps(found), "spared": json.dumps(spared)}
    return room_page(request, person, "review", "review.html", ("care.",), helping=helping, **lists)
