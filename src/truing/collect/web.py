"""What every page of the app stands on: who asks, may they, answers that carry nothing of a model, and templates."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jinja2
import sqlalchemy as sa
from fastapi import Depends, Header, Request
from fastapi.responses import HTMLResponse

from truing.collect import tables as t
from truing.collect.store import Store, now

SESSION_COOKIE = "truing_session"
SESSION_SECONDS = 14 * 24 * 3600
STATIC = Path(__file__).parent / "static"
ROLES = ("worker", "reviewer", "researcher", "admin")


class NotSignedIn(Exception):
    """Nobody is signed in: pages lead to the login, the API answers 401."""


class Forbidden(Exception):
    """The role does not reach here, or the CSRF token is not the session's: 403."""


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
    """What the app's routes share: kept in ``app.state.house``."""

    store: Store
    secure_cookies: bool = False
    rates: dict[str, Any] = field(default_factory=dict)


def hashed(token: str) -> str:
    """How tokens are stored: SHA-256 (they have 256 random bits, so that nothing slower is needed)."""
    return hashlib.sha256(token.encode()).hexdigest()


def house_of(request: Request) -> House:
    """The app's house."""
    house: House = request.app.state.house
    return house


def signed_in(request: Request) -> Person:
    """The person of the session cookie. Raises NotSignedIn."""
    token = request.cookies.get(SESSION_COOKIE, "")
    if token:
        with house_of(request).store.read() as db:
            row = db.execute(
                sa.select(t.person, t.login.c.csrf)
                .join(t.login)
                .where(t.login.c.token_hash == hashed(token), t.login.c.expires_at > now(), ~t.person.c.disabled)
            ).first()
        if row is not None:
            return Person(row.id, row.name, row.role, tuple(row.modes), row.quota, row.csrf, row.simulated)
    raise NotSignedIn


@functools.cache
def role(*allowed: str) -> Any:
    """A dependency: the person, if of one of these roles (administrators are of all). Raises Forbidden otherwise."""

    def check(person: Annotated[Person, Depends(signed_in)]) -> Person:
        if person.role not in (*allowed, "admin"):
            raise Forbidden("This page is for others.")
        return person

    return Depends(check)


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
    return env


@functools.cache
def _static(name: str) -> str:
    """The address of a file of ``static``, with its hash, so that browsers may keep it."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def page(
    request: Request, name: str, person: Person | None = None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A rendered page. ``values`` reach the template beside ``person`` and ``words`` (the editable texts)."""
    from truing.collect.words import words

    with house_of(request).store.read() as db:
        said = words(db)
    text = templates().get_template(name).render(person=person, words=said, path=request.url.path, **values)
    return HTMLResponse(text, status_code=status)
