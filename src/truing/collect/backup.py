"""A store in one file and back: `truing store backup` and `restore`.

The file is gzipped JSON lines: a head (revision, time), a line for every row, and a last line with the SHA-256 of all
lines before it. It is read from one state of the database while others write (SQLite: a snapshot of the WAL;
PostgreSQL: repeatable read), and can be restored into either database: tables are read back as the revision had
them, and brought up to date afterwards. Sessions are left out: people sign in again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import migrate
from truing.collect import tables as t
from truing.collect.store import Store, note, now

FORMAT = "truing store, 1"
LEFT_OUT = ("login", "alembic_version")
_BUNCH = 500


def backup(store: Store, target: Path) -> tuple[Counter[str], str]:
    """Write a store to ``target``, whole or not at all. Rows by table, and the file's SHA-256.

    Raises ValueError unless the store is at this code's revision, OSError on a full disk.
    """
    migrate.check(store)
    part = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    counts: Counter[str] = Counter()
    try:
        with open(part, "wb", opener=_private) as raw:
            with store.read() as db, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                hashed = hashlib.sha256()
                for line in _lines(db, counts):
                    file.write(line)
                    hashed.update(line)
                file.write(_line({"sha256": hashed.hexdigest(), "rows": counts.total()}))
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    with open(target, "rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    with store.write() as db:
        note(db, None, "backup", sha256=digest, rows=counts.total())
    return counts, digest


def _private(path: str, flags: int) -> int:
    """Opens a file that only its owner can read, from its first byte on."""
    return os.open(path, flags, 0o600)


def _lines(db: Connection, counts: Counter[str]) -> Iterator[bytes]:
    tables = [table for table in t.person.metadata.sorted_tables if table.name not in LEFT_OUT]
    columns = {table.name: [c.name for c in table.columns] for table in tables}
    yield _line({"format": FORMAT, "revision": migrate.newest(), "at": now(), "columns": columns})
    for table in tables:
        key = list(table.primary_key.columns)
        if table.name == "message":  # parents before children
            key = [table.c.conversation_id, table.c.turn, table.c.role.desc(), table.c.id]  # type: ignore[list-item]
        for row in db.execute(sa.select(table).order_by(*key).execution_options(yield_per=_BUNCH)):
            counts[table.name] += 1
            yield _line([table.name, *row])


def _line(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def check_backup(file: Path) -> dict[str, Any]:
    """The head of a backup that is whole: its ``revision``, and the ``columns`` of each table.

    Raises ValueError if it is cut short, changed or none.
    """
    hashed, head, last = hashlib.sha256(), None, b""
    try:
        with gzip.open(file, "rb") as lines:
            for line in lines:
                hashed.update(last)
                head, last = head or json.loads(line), line
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError(f"{file} is no backup of a feedback store.")
        end = json.loads(last)
    except (EOFError, gzip.BadGzipFile, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file} is damaged or no backup: it cannot be read to its end. Take another copy.") from None
    if not isinstance(end, dict) or end.get("sha256") != hashed.hexdigest():
        raise ValueError(f"{file} was changed or cut short: its hash is not the one in its last line.")
    return head


def restore(store: Store, file: Path) -> Counter[str]:
    """Fill an empty database from a backup and bring it up to date; rows by table.

    Everything happens in one transaction. Raises ValueError if the backup is damaged, of a newer truing, or the
    database is not empty.
    """
    head = check_backup(file)
    revision, named = str(head["revision"]), head.get("columns", {})
    if migrate.revision(store) is not None:
        with store.read() as db:
            if db.execute(sa.select(t.person.c.id).limit(1)).first() is not None:
                raise ValueError(f"The store {store.shown} is not empty. Restore into a new one, then serve that.")
        migrate.downgrade(store, "base")
    migrate.upgrade(store, revision)
    counts: Counter[str] = Counter()
    try:
        with store.write() as db:
            known = sa.MetaData()
            known.reflect(db)
            for name, rows in _bunches(file):
                table = known.tables[name]
                columns = named.get(name) or [c.name for c in table.columns]
                db.execute(table.insert(), [dict(zip(columns, row, strict=True)) for row in rows])
                counts[name] += len(rows)
            _set_serials(db, known)
    except BaseException:
        migrate.downgrade(store, "base")
        raise
    migrate.upgrade(store)
    with store.write() as db:
        note(db, None, "restore", rows=counts.total(), revision=revision)
    return counts


def _bunches(file: Path) -> Iterator[tuple[str, list[list[Any]]]]:
    """(table, rows) in the file's order."""
    name, rows = "", list[list[Any]]()
    with gzip.open(file, "rb") as lines:
        for line in lines:
            found = json.loads(line)
            if isinstance(found, dict):
                continue
            if rows and (found[0] != name or len(rows) == _BUNCH):
                yield name, rows
                rows = []
            name = found[0]
            rows.append(found[1:])
    if rows:
        yield name, rows


def _set_serials(db: Connection, known: sa.MetaData) -> None:
    """PostgreSQL counts on from the highest number (SQLite does so by itself)."""
    if db.dialect.name != "postgresql":
        return
    for table in known.tables.values():
        if "serial" in table.columns:
            highest = sa.select(sa.func.max(table.c.serial)).scalar_subquery()
            there = sa.func.pg_get_serial_sequence(table.name, "serial")
            db.execute(sa.select(sa.func.setval(there, sa.func.coalesce(highest, 0) + 1, False)))
