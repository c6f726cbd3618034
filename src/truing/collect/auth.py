"""Who is who: people, passwords, sessions, and the links by which people come in (house rules: design §9).

Tokens are 256 random bits and stored as their SHA-256; passwords are stored by Argon2id. Everything here works on a
connection: the caller decides what is one transaction. Hashing takes tens of milliseconds and stays outside of it.
"""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata
from typing import Any

import argon2
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from truing.collect import tables as t
from truing.collect.store import Refused, new_id, note, now
from truing.collect.web import ROLES, SESSION_SECONDS, hashed

MODES = ("helpful", "redteam", "rank", "review")
SHORTEST_PASSWORD = 10
SIMULATED = "simulated"
"""With this an invitation's source begins if nobody who comes by it is a person: they are marked for good."""
DAY = 24 * 3600 * 1_000_000
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # OWASP's setting for Argon2id
_HASHING = threading.Semaphore(4)  # 19 MiB each


# ---------------------------------------------------------------- names and passwords


def good_name(name: str) -> str:
    """A name as it is kept. Raises Refused for one that could not be read or typed again."""
    name = " ".join(unicodedata.normalize("NFKC", name).split())
    if not 1 <= len(name) <= 80:
        raise Refused("A name has 1 to 80 characters.")
    if not all(c.isalnum() or unicodedata.category(c).startswith("M") or c in " ._@+'-" for c in name):
        raise Refused("A name may hold letters, digits, spaces and . _ @ + ' -")
    return name


def good_password(password: str, name: str) -> str:
    """The password. Raises Refused if it is short, or the name."""
    if len(password) < SHORTEST_PASSWORD:
        raise Refused(f"The password has {len(password)} characters; it needs at least {SHORTEST_PASSWORD}.")
    if len(password) > 200:
        raise Refused("The password is longer than 200 characters.")
    if password.casefold() == name.casefold() or len(set(password)) < 4:
        raise Refused("That password is too easy to guess.")
    return password


def hash_password(password: str) -> str:
    """How a password is stored."""
    with _HASHING:
        return _HASHER.hash(password)


def is_password(stored: str | None, password: str) -> bool:
    """Whether a password is the stored one. Takes as long where there is none, so that names cannot be found out."""
    with _HASHING:
        try:
            return _HASHER.verify(stored or _nobody(), password) and stored is not None
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


@functools.cache
def _nobody() -> str:
    return _HASHER.hash(secrets.token_urlsafe())


# ---------------------------------------------------------------- people and sessions


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
    """Add a person and return their id. Raises Refused if the name is taken, whatever the case of its letters."""
    for (taken,) in db.execute(sa.select(t.person.c.name)):
        if taken.casefold() == name.casefold():
            raise Refused("That name is taken. Choose another one.")
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


def person_named(db: Connection, name: str) -> Row[Any] | None:
    """The person of a name, typed in any case; nobody who is disabled."""
    wanted = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
    for row in db.execute(sa.select(t.person).where(~t.person.c.disabled)):
        if row.name.casefold() == wanted:
            return row
    return None


def start_session(db: Connection, person: str) -> tuple[str, str]:
    """A new session of a person: (token for the cookie, CSRF token). Sessions that have expired are cleared away."""
    token, csrf, at = secrets.token_urlsafe(32), secrets.token_urlsafe(32), now()
    db.execute(t.login.delete().where(t.login.c.expires_at < at))
    row = {"token_hash": hashed(token), "person_id": person, "csrf": csrf, "created_at": at, "seen_at": at}
    db.execute(t.login.insert(), row | {"expires_at": at + SESSION_SECONDS * 1_000_000})
    return token, csrf


def end_session(db: Connection, token: str) -> None:
    """End the session of a cookie, if it is one."""
    db.execute(t.login.delete().where(t.login.c.token_hash == hashed(token)))


def end_sessions(db: Connection, person: str) -> None:
    """Sign a person out everywhere."""
    db.execute(t.login.delete().where(t.login.c.person_id == person))


def set_password(db: Connection, person: str, password_hash: str, by: str) -> None:
    """Give a person a new password and sign them out everywhere."""
    db.execute(t.person.update().where(t.person.c.id == person).values(password_hash=password_hash))
    end_sessions(db, person)
    note(db, by, "password", person)


# ---------------------------------------------------------------- links: first run, invitations, new passwords


def has_admin(db: Connection) -> bool:
    """Whether somebody runs this place."""
    return db.execute(sa.select(t.person.c.id).where(t.person.c.role == "admin").limit(1)).first() is not None


def invite(
    db: Connection,
    by: str,
    role: str = "worker",
    *,
    modes: tuple[str, ...] = ("helpful",),
    source: str = "",
    quota: int | None = None,
    uses: int = 1,
    days: float = 14,
    person: str | None = None,
) -> tuple[str, str]:
    """An invitation for ``uses`` people, or, with ``person``, a link by which that one sets a new password.

    Returns (id, token); the token is in no table, so show it now. ``by``: who made it ("setup": the first run).
    Raises Refused for a role, mode or number that cannot be.
    """
    if role not in ROLES:
        raise Refused(f"There is no role {role!r}: {', '.join(ROLES)}.")
    if unknown := [m for m in modes if m not in MODES]:
        raise Refused(f"There is no mode {unknown[0]!r}: {', '.join(MODES)}.")
    if not (1 <= uses <= 10_000 and 0 < days <= 366 and (quota is None or 0 <= quota <= 1_000_000)):
        raise Refused("An invitation is for 1 to 10000 people and 1 to 366 days; a quota is 0 or more conversations.")
    token, at = secrets.token_urlsafe(32), now()
    row = {
        "id": new_id(),
        "token_hash": hashed(token),
        "role": role,
        "source": source,
        "modes": list(modes),
        "quota": quota,
        "uses": uses,
        "person_id": person,
        "created_by": by,
        "created_at": at,
        "expires_at": at + round(days * DAY),
        "revoked_at": None,
    }
    db.execute(t.invitation.insert(), row)
    note(db, None if by == "setup" else by, "invitation", str(row["id"]), role=role, uses=uses, reset=person)
    return str(row["id"]), token


def reset_link(db: Connection, by: str, person: str) -> str:
    """The token of a link by which a person sets a new password within two days; earlier ones stop working."""
    row = db.execute(sa.select(t.person).where(t.person.c.id == person)).first()
    if row is None:
        raise Refused("There is no such person.")
    old = sa.and_(t.invitation.c.person_id == person, t.invitation.c.revoked_at.is_(None))
    db.execute(t.invitation.update().where(old).values(revoked_at=now()))
    return invite(db, by, row.role, modes=tuple(row.modes), days=2, person=person)[1]


def revoke(db: Connection, by: str, invitation: str) -> None:
    """Take an invitation back; who has used it stays."""
    db.execute(t.invitation.update().where(t.invitation.c.id == invitation).values(revoked_at=now()))
    note(db, by, "invitation revoked", invitation)


def link(db: Connection, kind: str, token: str, *, lock: bool = False) -> Row[Any] | None:
    """The invitation of a token if it still works as a link of this kind (setup, invite, reset), else None."""
    query = sa.select(t.invitation).where(t.invitation.c.token_hash == hashed(token))
    row = db.execute(query.with_for_update() if lock else query).first()
    if row is None or row.uses < 1 or row.revoked_at is not None or row.expires_at < now():
        return None
    is_kind = "reset" if row.person_id else "setup" if row.created_by == "setup" else "invite"
    return row if is_kind == kind and not (kind == "setup" and has_admin(db)) else None


def use_link(db: Connection, kind: str, token: str, name: str, password_hash: str) -> str | None:
    """Come in by a link: make the person, or give them their new password. Returns their id; None if it is dead."""
    if kind == "setup" and db.dialect.name == "postgresql":
        db.execute(sa.text("SELECT pg_advisory_xact_lock(7284512)"))  # two links, one administrator
    row = link(db, kind, token, lock=True)
    if row is None:
        return None
    db.execute(t.invitation.update().where(t.invitation.c.id == row.id).values(uses=row.uses - 1))
    if kind == "reset":
        set_password(db, row.person_id, password_hash, by=row.person_id)
        return str(row.person_id)
    person = add_person(
        db,
        name,
        row.role,
        password_hash=password_hash,
        modes=tuple(row.modes),
        source=row.source,
        quota=row.quota,
        simulated=row.source.startswith(SIMULATED),
    )
    note(db, person, "joined", row.id, role=row.role)
    return person
