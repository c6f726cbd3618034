"""The feedback store: one database, SQLite in a file or PostgreSQL, written in whole transactions.

A write that a browser asks for goes through `Store.once`: it is done exactly once however often it is sent, and it is
on disk before the browser hears of it (SQLite: WAL with synchronous=FULL, asserted on every connection).

What every request asks is a statement made once (``_NAME``, with `sa.bindparam`): SQLAlchemy takes several times
longer to build a statement and its cache key than to run it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row, make_url

from truing.collect import tables as t

BUSY_SECONDS = 15.0
"""How long a write waits for another one before it gives up."""


class Conflict(Exception):
    """The screen that a write was made from is out of date: nothing was written. Shown with status 409."""


class Refused(Exception):
    """A write that the rules do not allow, with a sentence for the person. Shown with status 422."""


def new_id() -> str:
    """128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def now() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in one spelling."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def database_url(db: str) -> str:
    """A URL of SQLAlchemy from what people write: a file, ``sqlite:///FILE`` or ``postgresql://…``.

    Raises ValueError for another kind of database.
    """
    if "://" not in db:
        return f"sqlite:///{Path(db).absolute()}"
    if db.startswith(("postgres://", "postgresql://")):
        return "postgresql+psycopg://" + db.split("://", 1)[1]
    if db.startswith(("sqlite:///", "postgresql+psycopg://")):
        return db
    raise ValueError(f"--db {shown_url(db)}: expected a file, sqlite:///FILE or postgresql://USER@HOST/NAME.")


def shown_url(url: str) -> str:
    """A database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url.split("@")[-1]


class Store:
    """A feedback database. ``read`` and ``write`` give connections; the tables are those of `truing.collect.tables`."""

    def __init__(self, db: str) -> None:
        """Connect; makes nothing (`truing.collect.migrate.upgrade` does). Raises ValueError for an unknown kind."""
        self.url = database_url(db)
        self.sqlite = self.url.startswith("sqlite")
        self.engine = _engine(self.url, self.sqlite)
        reading: dict[str, Any] = {"truing_read": True}
        if not self.sqlite:
            reading |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self.engine.execution_options(**reading)
        self._writer = threading.Lock()

    @property
    def shown(self) -> str:
        """Where the store is, for people: without a password."""
        return shown_url(self.url)

    @property
    def file(self) -> Path | None:
        """The database file of SQLite."""
        return Path(make_url(self.url).database or "") if self.sqlite else None

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout, and writes nothing."""
        with self._reading.connect() as db, db.begin():
            yield db

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of it is on disk when the block ends, or none of it. SQLite: one at a time."""
        with self._turn(), self.engine.connect() as db, db.begin():
            yield db

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Writers of this process wait here for one another, and are woken; waiting inside SQLite means to sleep for
        ever longer and to try again, and who comes late may well be first. Other processes are waited for there.
        """
        mine = self.sqlite and self._writer.acquire(timeout=BUSY_SECONDS)
        try:
            yield
        finally:
            if mine:
                self._writer.release()

    def once(
        self, person: str, key: str, route: str, body: Mapping[str, Any], act: Callable[[Connection], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do ``act`` in a transaction unless the person's ``key`` was used; return its answer, now or as it was.

        Raises Refused if the key was used for another request, and whatever ``act`` raises (nothing is written then,
        and the key stays free).
        """
        request = digest([route, body])
        try:
            with self.write() as db:
                if (known := _known(db, person, key, request)) is not None:
                    return known
                answer = act(db)
                row = {"person_id": person, "key": key, "request": request, "response": answer, "at": now()}
                db.execute(_DONE, row)
                return answer
        except (sa.exc.IntegrityError, Conflict, Refused) as problem:
            with self.read() as db:  # the same click, done at the same moment, which this one waited for
                if (known := _known(db, person, key, request)) is not None:
                    return known
            if isinstance(problem, sa.exc.IntegrityError):  # the same turn with another key
                raise Conflict("This was already answered in another window. Reload the page to go on.") from None
            raise

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


_DONE = t.once.insert()
_ONCE = sa.select(t.once).where(t.once.c.person_id == sa.bindparam("person"), t.once.c.key == sa.bindparam("used"))


def _known(db: Connection, person: str, key: str, request: str) -> dict[str, Any] | None:
    row = db.execute(_ONCE, {"person": person, "used": key}).first()
    if row is None:
        return None
    if row.request != request:
        raise Refused("This idempotency key was already used for another request. Reload the page.")
    return dict(row.response)


_CONVERSATION: sa.BindParameter[str] = sa.bindparam("conversation")
_LOCK = sa.select(t.conversation).where(t.conversation.c.id == _CONVERSATION).with_for_update()
_GONE = sa.union_all(
    *(sa.select(x.c.conversation_id).where(x.c.conversation_id == _CONVERSATION) for x in (t.withdrawal, t.erasure))
)
_SETTING = sa.select(t.setting.c.value).where(t.setting.c.key == sa.bindparam("name"))
_SETTING = _SETTING.order_by(t.setting.c.serial.desc()).limit(1)


def lock_conversation(db: Connection, conversation: str) -> Row[Any]:
    """The conversation's row, held until the transaction ends, so that its turns are written one after another.

    Raises Refused if there is none or it was withdrawn or erased.
    """
    row = db.execute(_LOCK, {"conversation": conversation}).first()
    if row is None or is_withdrawn(db, conversation):
        raise Refused("There is no such conversation.")
    return row


def is_withdrawn(db: Connection, conversation: str) -> bool:
    """Whether the conversation was withdrawn or erased, so that nobody may read it or go on with it."""
    return db.execute(_GONE, {"conversation": conversation}).first() is not None


def readable() -> sa.ColumnElement[bool]:
    """A condition on ``conversation``: neither withdrawn nor erased. Every export and every reader uses it."""
    c = t.conversation.c.id
    return sa.and_(
        ~sa.exists().where(t.withdrawal.c.conversation_id == c), ~sa.exists().where(t.erasure.c.conversation_id == c)
    )


def note(db: Connection, person: str | None, action: str, target: str = "", **details: Any) -> None:
    """Write a line of the audit log. Never put what people or models said into ``details``."""
    row = {"person_id": person, "action": action, "target": target, "details": details, "at": now()}
    db.execute(t.audit.insert(), row)


def setting(db: Connection, key: str, default: Any = None) -> Any:
    """The value of a setting that holds now."""
    row = db.execute(_SETTING, {"name": key}).first()
    return default if row is None else row.value


def set_setting(db: Connection, key: str, value: Any, person: str | None) -> str:
    """Add a new version of a setting, unless it is what holds; return its SHA-256."""
    version = digest(value)
    if setting(db, key) != value:
        db.execute(
            t.setting.insert(), {"key": key, "value": value, "version": version, "person_id": person, "at": now()}
        )
        note(db, person, "setting", key, version=version)
    return version


# ---------------------------------------------------------------- connections


def _engine(url: str, sqlite: bool) -> Engine:
    if not sqlite:
        engine = sa.create_engine(
            url,
            connect_args={"connect_timeout": 5},
            pool_size=8,
            max_overflow=8,
            pool_pre_ping=True,
            pool_timeout=BUSY_SECONDS,
            hide_parameters=True,  # errors quote no row
        )
        sa.event.listen(engine, "connect", _prepare_server)
        return engine
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=8,
        pool_timeout=BUSY_SECONDS,
        hide_parameters=True,
    )
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    """Durable writes, and foreign keys, on every connection; RuntimeError where SQLite does not obey."""
    connection.isolation_level = None  # transactions begin where _begin says
    cursor = connection.cursor()
    for line in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {line}")
    read = [cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]
    cursor.close()
    if read != ["wal", 2, 1]:
        raise RuntimeError(f"SQLite's journal_mode, synchronous, foreign_keys are {read}; expected ['wal', 2, 1].")


def _prepare_server(connection: Any, _: Any) -> None:
    """Durable writes on every connection, also where a server's, database's or role's default gives them up."""
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _begin(db: Connection) -> None:
    """Writers queue at their beginning, so that no write finds its reading out of date."""
    reads = db.get_execution_options().get("truing_read")
    db.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
