"""Who is who: the first administrator, invitations, signing in and out, new passwords (house rules: design §9)."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.store import new_id, now
from truing.collect.web import SESSION_SECONDS, hashed

router = APIRouter()


def add_person(
    db: Connection,
    name: str,
    role: str,
    *,
    password_hash: str | None = None,
    modes: tuple[str, ...] = ("helpful",),
    source: str = "",
    quota: int | None = None,
    simulated: bool = False,
) -> str:
    """Add a person and return their id."""
    row: dict[str, Any] = {
        "id": new_id(),
        "name": name,
        "role": role,
        "password_hash": password_hash,
        "source": source,
        "simulated": simulated,
        "modes": list(modes),
        "quota": quota,
        "created_at": now(),
    }
    db.execute(t.person.insert(), row)
    return str(row["id"])


def start_session(db: Connection, person: str) -> tuple[str, str]:
    """A new session of a person: (token for the cookie, CSRF token)."""
    token, csrf, at = secrets.token_urlsafe(32), secrets.token_urlsafe(32), now()
    row = {"token_hash": hashed(token), "person_id": person, "csrf": csrf, "created_at": at, "seen_at": at}
    db.execute(t.login.insert(), row | {"expires_at": at + SESSION_SECONDS * 1_000_000})
    return token, csrf
