"""Revisions of the feedback store, by Alembic: every one goes up and down with data (migrations/versions).

A store at each of them is kept in tests/collect/fixtures; tests/collect/revisions.py makes that of a new one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from truing.collect.store import Store

FOLDER = Path(__file__).parent / "migrations"


def newest() -> str:
    """The revision that this code works with."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None
    return found


def revision(store: Store) -> str | None:
    """The revision that a database is at; None if it is empty."""
    with store.read() as db:
        return MigrationContext.configure(db).get_current_revision()


def upgrade(store: Store, to: str = "head") -> None:
    """Bring a database to a revision. One process at a time; a failure leaves it as it was.

    Raises ValueError if it was made by a newer truing.
    """
    _run(store, lambda config: command.upgrade(config, to))


def downgrade(store: Store, to: str) -> None:
    """Take a database back to an earlier revision ('base': none)."""
    _run(store, lambda config: command.downgrade(config, to))


def check(store: Store) -> None:
    """Raise ValueError with what to do unless the database is at this code's revision."""
    at = revision(store)
    if at != newest():
        raise ValueError(f"The store {store.shown} is at revision {at}; this truing works with {newest()}.")


def _run(store: Store, act: object) -> None:
    if store.file is not None and not store.file.exists():
        with contextlib.suppress(OSError):  # SQLite says it better
            store.file.touch(mode=0o600)  # its owner's alone; what SQLite puts beside it follows it
    with store.write() as db:
        if not store.sqlite:
            db.execute(sa.text("SELECT pg_advisory_xact_lock(7284511)"))
        at = MigrationContext.configure(db).get_current_revision()
        known = {s.revision for s in ScriptDirectory.from_config(_config()).walk_revisions()}
        if at is not None and at not in known:
            raise ValueError(
                f"The store {store.shown} is at revision {at}, which this truing does not know: it was made by a "
                "newer one. Install that, or restore a backup of before."
            )
        act(_config(db))  # type: ignore[operator]


def _config(db: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = db
    return config
