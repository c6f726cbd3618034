"""Taking back: what was said in a conversation is replaced by a tombstone, and where it went is told.

An erasure is the one thing that overwrites. It is logged, keeps who chose what (without the words), and names the
files that held the conversation and the runs that were trained on them. The database is packed afterwards, so that
the words are not left in its free pages; backups made before still hold them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import acts
from truing.collect import tables as t
from truing.collect.store import Refused, Store, new_id, note, now

TOMBSTONE = "[erased]"


@dataclass
class Erased:
    """What an erasure did. ``files``: (kind, SHA-256) of exports that hold the conversations; ``runs`` were trained
    on those, ``after`` on what those runs made. ``packed``: nothing of the words is left in the database's files."""

    conversations: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    after: list[Path] = field(default_factory=list)
    packed: bool = True


def erase(store: Store, conversations: Sequence[str], *, by: str, why: str, runs: Path | None = None) -> Erased:
    """Erase conversations, pack the database, and find what was made of them. Raises Refused for unknown ids."""
    with store.write() as db:
        erase_conversations(db, conversations, by=by, why=why)
        hashes = _exports(db, conversations)
    packed = pack(store)
    found = Erased(len(set(conversations)), [(kind, sha) for kind, sha, _ in hashes], packed=packed)
    if runs is not None:
        found.runs, found.after = trained_on({h for _, *both in hashes for h in both}, runs)
    return found


def erase_conversations(db: Connection, conversations: Sequence[str], *, by: str, why: str) -> None:
    """Replace every text of these conversations; what is erased already stays so."""
    ids = list(dict.fromkeys(conversations))
    held = sa.select(t.conversation.c.id).where(t.conversation.c.id.in_(ids)).order_by(t.conversation.c.id)
    there = set(db.execute(held.with_for_update()).scalars())  # what is being written to them is waited for
    if missing := [id for id in ids if id not in there]:
        raise Refused(f"There is no conversation {missing[0]!r}.")
    for id in ids:
        if acts.is_open(db, id):
            acts.stop(db, id)  # it stays paid
        _forget_answers(db, id)
        _replace(db, id)
        row = {"id": new_id(), "conversation_id": id, "by": by, "why": why, "at": now()}
        db.execute(t.erasure.insert(), row)
        note(db, None, "erase", id, by=by)


def _replace(db: Connection, conversation: str) -> None:
    """Every column that holds words of this conversation."""

    def put(table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
        db.execute(table.update().where(where).values(**values))

    messages = sa.select(t.message.c.id).where(t.message.c.conversation_id == conversation)
    put(t.candidate, t.candidate.c.message_id.in_(messages), drawn=None, settings={})
    put(t.message, t.message.c.conversation_id == conversation, text=TOMBSTONE)
    put(t.plan, t.plan.c.conversation_id == conversation, text=TOMBSTONE)
    e = t.ending.c
    put(t.ending, sa.and_(e.conversation_id == conversation, e.description.is_not(None)), description=TOMBSTONE)
    put(t.ending, sa.and_(e.conversation_id == conversation, e.comment != ""), comment=TOMBSTONE)
    put(t.flag, t.flag.c.conversation_id == conversation, why=TOMBSTONE)
    put(t.spot_check, t.spot_check.c.conversation_id == conversation, comment=TOMBSTONE)
    put(t.job, t.job.c.conversation_id == conversation, error=None)
    judged = sa.select(t.assignment.c.id).where(t.assignment.c.conversation_id == conversation)
    put(t.review, sa.and_(t.review.c.assignment_id.in_(judged), t.review.c.comment != ""), comment=TOMBSTONE)


def _forget_answers(db: Connection, conversation: str) -> None:
    """Answers to writes that are kept for when a browser asks twice: those that show this conversation."""
    row = db.execute(sa.select(t.conversation).where(t.conversation.c.id == conversation)).one()
    texts = db.execute(sa.select(t.message.c.text).where(t.message.c.conversation_id == conversation)).scalars()
    marks = {conversation, *(text for text in texts if text.strip())}
    a, o = t.assignment.c, t.once.c
    people = [row.person_id, *db.execute(sa.select(a.person_id).where(a.conversation_id == conversation)).scalars()]
    kept = sa.select(t.once).where(o.person_id.in_(people), o.at >= row.created_at)
    for answer in db.execute(kept).all():
        if any(mark in text for text in _texts(answer.response) for mark in marks):
            where = sa.and_(o.person_id == answer.person_id, o.key == answer.key)
            db.execute(t.once.update().where(where).values(response={"erased": True}))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def pack(store: Store) -> bool:
    """Leave nothing of replaced rows in the database's files; False if others used it, so that something is left."""
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        if store.sqlite:
            raw = db.connection.driver_connection
            assert raw is not None
            try:
                raw.execute("VACUUM")
            except sqlite3.OperationalError:
                return False
            busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        else:
            for table in (
                t.message,
                t.plan,
                t.ending,
                t.flag,
                t.spot_check,
                t.review,
                t.candidate,
                t.once,
                t.person,
                t.audit,
            ):
                db.exec_driver_sql(f'VACUUM FULL "{table.name}"')
    return True


# ---------------------------------------------------------------- what was made of it


def _exports(db: Connection, conversations: Sequence[str]) -> list[tuple[str, str, str]]:
    """(kind, SHA-256, SHA-256 unpacked) of every export that holds one of these conversations."""
    held = sa.select(t.exported.c.export_id).where(t.exported.c.conversation_id.in_(conversations))
    rows = db.execute(sa.select(t.export).where(t.export.c.id.in_(held)).order_by(t.export.c.at)).all()
    notes = {
        row.target: row.details
        for row in db.execute(
            sa.select(t.audit).where(t.audit.c.action == "export", t.audit.c.target.in_([r.id for r in rows]))
        )
    }
    return [(r.kind, r.sha256, notes.get(r.id, {}).get("plain_sha256", r.sha256)) for r in rows]


def trained_on(hashes: set[str], folder: Path) -> tuple[list[Path], list[Path]]:
    """Runs below ``folder`` that read a file of these hashes, and runs that began with what those made.

    A run's ``environment.json`` has the hash of every file it read, and of every run that it used.
    """
    if not hashes:
        return [], []
    known: dict[Path, tuple[str, str]] = {}
    for file in sorted(folder.rglob("environment.json")):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            facts = json.loads(file.read_text(encoding="utf-8"))
            said = json.dumps([facts.get("data"), facts.get("options")])
            known[file.parent] = (str(facts.get("hash") or ""), said)
    first = [path for path, (_, said) in known.items() if any(h in said for h in hashes)]
    after: list[Path] = []
    newest = first
    while newest:
        used = {f"run:{known[path][0]}" for path in newest if known[path][0]}
        newest = [
            path
            for path, (_, said) in known.items()
            if path not in first and path not in after and any(f'"{h}"' in said for h in used)
        ]
        after += newest
    return first, sorted(after)


# ---------------------------------------------------------------- one person


def find_person(db: Connection, name: str) -> Any:
    """The row of a person, disabled or not. Raises ValueError if there is none of that name."""
    for row in db.execute(sa.select(t.person)):
        if row.name.casefold() == " ".join(name.split()).casefold():
            return row
    raise ValueError(f"There is no person {name!r} in this store.")


def person_data(db: Connection, person: str) -> dict[str, Any]:
    """Everything that is kept about a person, but for hashes of passwords and tokens. Surveys are not linked to them.

    Replies of models stand beside what the person said, without naming the models.
    """

    def rows(table: sa.Table, where: sa.ColumnElement[bool], *leave: str) -> list[dict[str, Any]]:
        found = db.execute(sa.select(table).where(where)).mappings()
        return [{k: v for k, v in row.items() if k not in leave} for row in found]

    mine = sa.select(t.conversation.c.id).where(t.conversation.c.person_id == person)
    data: dict[str, Any] = {"person": rows(t.person, t.person.c.id == person, "password_hash")[0]}
    for table in (t.consent, t.exclusion, t.pay, t.task, t.survey_offer, t.assignment, t.flag, t.spot_check, t.opinion):
        data[table.name] = rows(table, table.c.person_id == person, "author_id")  # of an assignment: somebody else
    data["conversation"] = rows(t.conversation, t.conversation.c.person_id == person, "arms", "weights", "seed")
    for table in (t.message, t.choice, t.plan, t.ending, t.withdrawal):
        data[table.name] = rows(table, table.c.conversation_id.in_(mine))
    assigned = sa.select(t.assignment.c.id).where(t.assignment.c.person_id == person)
    for table in (t.decision, t.leaving, t.review):
        data[table.name] = rows(table, table.c.assignment_id.in_(assigned))
    data["audit"] = rows(t.audit, sa.or_(t.audit.c.person_id == person, t.audit.c.target == person))
    return data


def erase_person(store: Store, person: str, *, by: str, why: str, runs: Path | None = None) -> Erased:
    """Erase all that a person said, their name and their ways in. Raises Refused for the last administrator."""
    with store.write() as db:
        row = db.execute(sa.select(t.person).where(t.person.c.id == person).with_for_update()).one()
        others = sa.select(t.person.c.id).where(t.person.c.role == "admin", ~t.person.c.disabled)
        if row.role == "admin" and not row.disabled and len(db.execute(others).all()) < 2:
            raise Refused("This is the last administrator. Make somebody else one first.")
        c = t.conversation.c
        ids = list(db.execute(sa.select(c.id).where(c.person_id == person)).scalars())
        erase_conversations(db, ids, by=by, why=why)
        hashes = _exports(db, ids)
        assigned = sa.select(t.assignment.c.id).where(t.assignment.c.person_id == person)
        commented = sa.and_(t.review.c.assignment_id.in_(assigned), t.review.c.comment != "")
        db.execute(t.review.update().where(commented).values(comment=TOMBSTONE))
        db.execute(t.flag.update().where(t.flag.c.person_id == person).values(why=TOMBSTONE))
        db.execute(t.spot_check.update().where(t.spot_check.c.person_id == person).values(comment=TOMBSTONE))
        db.execute(t.login.delete().where(t.login.c.person_id == person))
        db.execute(t.once.delete().where(t.once.c.person_id == person))
        db.execute(t.invitation.update().where(t.invitation.c.person_id == person).values(revoked_at=now()))
        gone: dict[str, Any] = {
            "name": f"erased {person[:12]}",
            "password_hash": None,
            "disabled": True,
            "source": "",
            "modes": [],
        }
        db.execute(t.person.update().where(t.person.c.id == person).values(**gone))
        tried = sa.and_(t.audit.c.target == person, t.audit.c.action == "sign-in failed")
        db.execute(t.audit.update().where(tried).values(details={}))  # from where: addresses
        note(db, None, "erase person", person, by=by)
    packed = pack(store)
    found = Erased(len(ids), [(kind, sha) for kind, sha, _ in hashes], packed=packed)
    if runs is not None:
        found.runs, found.after = trained_on({h for _, *both in hashes for h in both}, runs)
    return found
