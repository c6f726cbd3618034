"""Instructions that a person accepts before a room opens, each version by itself (redteam.md §2.1).

The text of a room is the word ``consent.ROOM`` (a room is a mode, or ``review``), which the administrator edits. Its
version is the hash of what stands there, in the language that was shown; another text asks again.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.store import Conflict, Refused, digest, new_id, now
from truing.collect.web import Person
from truing.collect.words import words

_GIVEN = sa.select(t.consent.c.id).where(
    t.consent.c.person_id == sa.bindparam("person"),
    t.consent.c.page == sa.bindparam("room"),
    t.consent.c.version == sa.bindparam("text"),
)


def consent_text(db: Connection, room: str) -> str | None:
    """The instructions of a room; None if it has none."""
    found = words(db).get(f"consent.{room}")
    return None if found is None else str(found)


def has_consented(db: Connection, person: Person, room: str) -> bool:
    """Whether the person accepted a room's instructions as they stand now (a room without any needs no consent)."""
    text = consent_text(db, room)
    if text is None:
        return True
    return db.execute(_GIVEN, {"person": person.id, "room": room, "text": digest(text)}).first() is not None


def give_consent(db: Connection, person: Person, room: str, version: str) -> None:
    """Note that the person accepted this version. Raises Conflict if the text is another one by now."""
    text = consent_text(db, room)
    if text is None:
        raise Refused("There is nothing to accept here.")
    if version != digest(text):
        raise Conflict("The instructions have just been changed. Please read them again.")
    if not has_consented(db, person, room):
        db.execute(
            t.consent.insert(),
            {"id": new_id(), "person_id": person.id, "page": room, "version": version, "at": now()},
        )
