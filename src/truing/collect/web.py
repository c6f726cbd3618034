"""What every page of the app stands on: who asks, may they, answers that carry nothing of a model, and templates."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jinja2
import sqlalchemy as sa
from fastapi import Depends, Header, Request
from fastapi.responses import HTMLResponse

from truing.collect import tables as t
from truing.collect.bell import Bell
from truing.collect.limits import Limits, address_key
from truing.collect.prose import visible
from truing.collect.store import Store, now
from truing.collect.words import SHIPPED, words

if TYPE_CHECKING:
    from truing.collect.desk import Desk

SESSION_COOKIE = "truing_session"
SESSION_SECONDS = 14 * 24 * 3600
SEEN_EVERY = 600 * 1_000_000
FORM_COOKIE = "truing_form"
STATIC = Path(__file__).parent / "static"
ROLES = ("worker", "reviewer", "researcher", "admin")


class NotSignedIn(Exception):
    """Nobody is signed in: pages lead to the login, the API answers 401."""


class Forbidden(Exception):
    """The role does not reach here, or the CSRF token is not the session's: 403."""


class Gone(Exception):
    """What a link leads to is no longer there: 404, with a sentence."""


@dataclass(frozen=True)
class Person:
    """Who asks. ``csrf`` is the token that each of their writes carries."""

    id: str
    name: str
    role: str
    modes: tuple[str, ...]
    quota: int | None
    csrf: str
    simulated: bool = False

    def may(self, mode: str) -> bool:
        """Whether the administrator gave this person a mode (administrators may all)."""
        return self.role == "admin" or mode in self.modes


@dataclass
class House:
    """What the app's routes share: kept in ``app.state.house``.

    Who makes a house starts its ``desk`` (of the same ``bell``); the app stops it. With a ``seed`` the draws of arms,
    sides and samples can be replayed; without one every conversation has a seed of its own by chance.
    """

    store: Store
    secure_cookies: bool = False
    limits: Limits = field(default_factory=Limits)
    bell: Bell = field(default_factory=Bell)
    desk: Desk | None = None
    seed: int | None = None


class Room(NamedTuple):
    """A page of the navigation; its words are ``nav.NAME`` and ``home.NAME``."""

    name: str
    path: str
    roles: tuple[str, ...]
    mode: str | None = None


ROOMS = (
    Room("chat", "/chat", ("worker",), "helpful"),
    Room("rank", "/rank", ("worker",), "rank"),
    Room("redteam", "/redteam", ("worker",), "redteam"),
    Room("review", "/review", ("reviewer",), "review"),
    Room("admin", "/admin", ("researcher",)),
)
"""Shown to whom they are open, where the app has them. Administrators see them all."""


def hashed(token: str) -> str:
    """How tokens are stored: SHA-256 (they have 256 random bits, so that nothing slower is needed)."""
    return hashlib.sha256(token.encode()).hexdigest()


def house_of(request: Request) -> House:
    """The app's house."""
    house: House = request.app.state.house
    return house


def words_of(request: Request) -> dict[str, Any]:
    """The texts of the pages, as they hold now."""
    with house_of(request).store.read() as db:
        return words(db)


def error_words(request: Request) -> dict[str, Any]:
    """The texts for an error page: as shipped if the database is what is missing."""
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        return words_of(request)
    return SHIPPED


def address_of(request: Request) -> str:
    """What the asking address counts as for limits."""
    return address_key(request.client.host if request.client else None)


# ---------------------------------------------------------------- who asks, and whether they mean it


async def write_token(request: Request) -> str | None:
    """The CSRF token of a write: of the header, or of the form. None where nothing is written."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("This was sent from another site, so nothing was done.")
    if "x-csrf-token" in request.headers:
        return request.headers["x-csrf-token"]
    form = request.headers.get("content-type", "").startswith(
        ("application/x-www-form-urlencoded", "multipart/form-data")
    )
    return str((await request.form()).get("csrf", "")) if form else ""


_SESSION = (
    sa.select(t.person, t.login.c.csrf, t.login.c.seen_at)
    .join(t.login)
    .where(
        t.login.c.token_hash == sa.bindparam("token"), t.login.c.expires_at > sa.bindparam("at"), ~t.person.c.disabled
    )
)


def signed_in(request: Request, sent: Annotated[str | None, Depends(write_token)]) -> Person:
    """The person of the session cookie. Raises NotSignedIn, TooMany, and Forbidden for a write without CSRF token."""
    house, token = house_of(request), request.cookies.get(SESSION_COOKIE, "")
    row = None
    if token:
        with house.store.read() as db:
            row = db.execute(_SESSION, {"token": hashed(token), "at": now()}).first()
    if row is None:
        house.limits.address.take(address_of(request))
        raise NotSignedIn
    house.limits.person.take(row.id)
    if sent is not None and not hmac.compare_digest(sent.encode(), row.csrf.encode()):
        raise Forbidden("This page is out of date, so nothing was done. Reload it and try again.")
    if row.seen_at < now() - SEEN_EVERY:
        _seen(house, token)
    return Person(row.id, row.name, row.role, tuple(row.modes), row.quota, row.csrf, row.simulated)


def _seen(house: House, token: str) -> None:
    """Note that a session is in use; no reason to fail for anybody."""
    with contextlib.suppress(sa.exc.SQLAlchemyError), house.store.write() as db:
        db.execute(t.login.update().where(t.login.c.token_hash == hashed(token)).values(seen_at=now()))


async def stranger(request: Request) -> None:
    """Requests without a session count by address. Raises TooMany."""
    house_of(request).limits.address.take(address_of(request))


async def form_token(request: Request, _: Annotated[str | None, Depends(write_token)]) -> str:
    """The token in a form of people who are not signed in."""
    return str((await request.form()).get("form", ""))


async def form_checked(
    request: Request, _: Annotated[None, Depends(stranger)], sent: Annotated[str, Depends(form_token)]
) -> None:
    """A form of people who are not signed in carries the token of its cookie. Raises Forbidden."""
    cookie = request.cookies.get(FORM_COOKIE, "")
    if not cookie or not hmac.compare_digest(cookie.encode(), sent.encode()):
        raise Forbidden("This form is out of date, so nothing was done. Go back, reload the page and try again.")


@functools.cache
def role(*allowed: str) -> Any:
    """A dependency: the person, if of one of these roles (administrators are of all). Raises Forbidden otherwise."""

    async def check(person: Annotated[Person, Depends(signed_in)]) -> Person:
        if person.role not in (*allowed, "admin"):
            raise Forbidden("This page is for others.")
        return person

    return Depends(check)


Stranger = Annotated[None, Depends(stranger)]
FormChecked = Annotated[None, Depends(form_checked)]
Anyone = Annotated[Person, Depends(signed_in)]
Worker = Annotated[Person, role("worker")]
Reviewer = Annotated[Person, role("reviewer")]
Researcher = Annotated[Person, role("researcher")]
Admin = Annotated[Person, role("admin")]
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=8, max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]
"""Every write of the API carries one; the browser makes it once per click and repeats it when it tries again."""


@functools.cache
def templates() -> jinja2.Environment:
    """Templates of ``pages``: everything is escaped, and an unknown name is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    env.globals["static"] = _static
    env.filters["visible"] = visible
    return env


@functools.cache
def _static(name: str) -> str:
    """The address of a file of ``static``, with its hash, so that browsers may keep it."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def page(
    request: Request, template: str, person: Person | None = None, /, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A rendered page. ``values`` reach the template beside ``person``, ``words`` (editable texts) and ``rooms``."""
    said = words_of(request) if status < 400 else error_words(request)
    rooms = rooms_of(request, person) if person else []
    text = (
        templates()
        .get_template(template)
        .render(person=person, words=said, rooms=rooms, path=request.url.path, **values)
    )
    return HTMLResponse(text, status_code=status)


def rooms_of(request: Request, person: Person) -> list[Room]:
    """The rooms that are open to a person."""
    there: set[str] = request.app.state.paths
    return [
        r
        for r in ROOMS
        if r.path in there
        and (person.role == "admin" or person.role in r.roles)
        and (r.mode is None or person.may(r.mode))
    ]
