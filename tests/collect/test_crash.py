"""Killed at any moment, the app loses nothing that it acknowledged, and does nothing twice."""

from __future__ import annotations

import asyncio
import collections
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from serving import Served, administrator, free_port, script, truing_serve, wait_for

from truing.collect import tables as t
from truing.collect.people import Book, Chance, Manner, attend, invite_simulated, simulate
from truing.collect.store import Store

REPLIES = [f"Reply number {i}, in a sentence." for i in range(500)]
PATIENT = (0.1,) * 2000


def killed(db: str, folder: Path, kills: int, *, people: int = 4, seed: int = 0, longest: float = 0.5) -> Book:
    """What people saw acknowledged while the server was killed so often, ``longest`` seconds apart at most."""
    arms = [f"quick={script(folder / 'quick.jsonl', REPLIES)}", f"late={script(folder / 'late.jsonl', REPLIES, 0.05)}"]
    store, rng, book, over = Store(db), random.Random(seed), Book(), threading.Event()
    administrator(store)
    joined, failed = threading.Event(), []
    manner = Manner(conversations=None, turns=3, think=0.01)

    def crowd() -> None:
        async def all_of_them() -> None:
            link = invite_simulated(store, people)
            more = {"stop": over.is_set, "joined": joined.set, "pauses": PATIENT}
            await attend(server.url, link, people, manner, Chance(seed), book=book, seed=seed, **more)  # type: ignore[arg-type]

        try:
            asyncio.run(all_of_them())
        except BaseException as problem:
            failed.append(problem)

    with Served(truing_serve, db, arms) as server:
        thread = threading.Thread(target=crowd, daemon=True)
        thread.start()
        assert joined.wait(120), failed
        for _ in range(kills):
            before = len(book.clicks)
            while len(book.clicks) == before and not failed:  # under load: people have begun to choose again
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, longest))
            server.kill()
            let_leases_end(store)
            server.start()
        over.set()
        thread.join(300)
        assert not failed, failed
        assert not thread.is_alive(), "somebody could not go on"
    check(store, book)
    store.close()
    return book


def let_leases_end(store: Store) -> None:
    """As if the half minute had gone by after which other processes take over what a dead one had in hand."""
    with store.write() as db:
        db.execute(t.job.update().where(t.job.c.state == "running").values(lease_until=0))


def check(store: Store, book: Book) -> None:
    """Every acknowledged choice is there exactly once, and every conversation could be gone on with to its end."""
    c, m = t.choice.c, t.message.c
    with store.read() as db:
        rows = db.execute(sa.select(c.conversation_id, c.turn, c.strength, m.text).join(t.message, m.id == c.chosen_id))
        found = collections.defaultdict(list)
        for row in rows:
            found[row.conversation_id, row.turn].append((row.text, row.strength))
        talks = set(db.execute(sa.select(t.conversation.c.id)).scalars())
        ended = set(db.execute(sa.select(t.ending.c.conversation_id)).scalars())
        said = collections.Counter(
            db.execute(sa.select(m.conversation_id, m.turn).where(m.kind == "human")).tuples().all()
        )
        shown = collections.Counter(
            db.execute(sa.select(m.conversation_id, m.turn).where(m.kind == "reply")).tuples().all()
        )
    acknowledged = {(click.conversation, click.turn): (click.texts[0], click.strength) for click in book.clicks}
    assert len(acknowledged) == len(book.clicks), "a person's choice was acknowledged twice"
    assert all(found[place] == [value] for place, value in acknowledged.items()), "an acknowledged choice is lost"
    assert all(len(values) == 1 for values in found.values()), "a choice is there twice"
    assert talks == ended == {conversation for conversation, _ in said}, "a conversation could not be gone on with"
    assert set(said.values()) == {1} and set(shown.values()) == {2}


def test_killed_under_load_nothing_acknowledged_is_lost_and_everybody_goes_on(db: str, tmp_path: Path):
    book = killed(db, tmp_path, kills=3)
    assert len(book.clicks) >= 10 and any(asked.status == 0 for asked in book.asked)


@pytest.mark.slow
def test_killed_two_hundred_times(db: str, tmp_path: Path):
    book = killed(db, tmp_path, kills=200, people=8, seed=1)
    assert len(book.clicks) >= 400


# ---------------------------------------------------------------- on disk before it is acknowledged


def test_every_connection_of_sqlite_is_durable(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch):
    held = [sqlite_store.engine.connect() for _ in range(12)]
    for db in held:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        db.close()

    import sqlite3

    class Deaf(sqlite3.Connection):
        """A connection on which pragmas change nothing, as on some network drives."""

        def cursor(self, factory: type[sqlite3.Cursor] = sqlite3.Cursor) -> sqlite3.Cursor:
            class Cursor(factory):  # type: ignore[valid-type,misc]
                def execute(self, line: str, *values: object) -> sqlite3.Cursor:
                    done: sqlite3.Cursor = super().execute(line.split("=")[0] if "=FULL" in line else line, *values)
                    return done

            return super().cursor(Cursor)

    connect = sqlite3.dbapi2.connect
    monkeypatch.setattr(sqlite3.dbapi2, "connect", lambda *a, **k: _normal(connect(*a, **k | {"factory": Deaf})))
    deaf = Store(str(sqlite_store.file))
    with pytest.raises(RuntimeError, match="synchronous"), deaf.read():
        pass


def _normal(connection: object) -> object:
    connection.execute("PRAGMA synchronous=NORMAL")  # type: ignore[attr-defined]
    return connection


def test_every_connection_of_postgresql_is_durable(postgres: Any, empty_database: str):
    postgres.do(f"CREATE DATABASE careless TEMPLATE {empty_database}")
    postgres.do("ALTER DATABASE careless SET synchronous_commit = off")
    store = Store(postgres.url("careless"))
    held = [store.engine.connect() for _ in range(5)]
    assert {db.exec_driver_sql("SHOW synchronous_commit").scalar() for db in held} == {"on"}
    for db in held:
        db.close()
    store.close()


RECEIVED, SENT = ("recvfrom", "recvmsg", "read"), ("sendto", "sendmsg", "write", "writev")
"""System calls with which servers (asyncio's, uvloop's) take a request and give an answer."""


def acknowledgements(trace: Iterable[str]) -> list[tuple[str, bool]]:
    """Of a trace of one client's requests: the path of each acknowledged write, and whether a sync came before it."""
    out, path, synced = [], "", False
    for line in trace:
        if found := re.search(r'"POST (/api/[^ "]+)', line):
            path, synced = found[1], False
        elif re.search(r"(fsync|fdatasync)(\([^)]*\)| resumed>\)) += 0", line):
            synced = True
        elif path and re.search(rf'({"|".join(SENT)})\(.*"HTTP/1\.1 200', line):
            out.append((path, synced))
            path = ""
    return out


def test_a_trace_is_read_right():
    post, sync, sent = (
        '7 recvfrom(9, "POST /api/tasks HTTP/1.1"...) = 9',
        "8 fdatasync(5) = 0",
        '7 sendto(9, "HTTP/1.1 200 OK',
    )
    again = ["8 fsync(5 <unfinished ...>", "7 recvfrom(9) = -1", "8 <... fsync resumed>) = 0"]
    assert acknowledgements([post, sync, sent]) == acknowledgements([post, *again, sent]) == [("/api/tasks", True)]
    assert acknowledgements([sync, post, sent]) == acknowledgements([post, again[0], sent]) == [("/api/tasks", False)]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs system-call traces: apt-get install strace")
def test_every_write_is_synced_to_disk_before_it_is_acknowledged(tmp_path: Path, empty_file: Path):
    db, trace, port = str(shutil.copy(empty_file, tmp_path / "truing.db")), tmp_path / "trace", free_port()
    store = Store(db)
    administrator(store)
    link = invite_simulated(store, 1)
    store.close()
    arm = f"quick={script(tmp_path / 'quick.jsonl', REPLIES)}"
    calls = ",".join(("fsync", "fdatasync", *RECEIVED, *SENT))
    watch = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-s", "90", "-e", f"trace={calls}"]
    command = [sys.executable, "-m", "truing", "serve", "--db", db, "--port", str(port), "--arm", arm]
    with subprocess.Popen([*watch, "-o", str(trace), *command], stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}", 120, lambda: server.poll() is None)
            book = simulate(f"http://127.0.0.1:{port}", link, 1, Manner(turns=4), Chance())
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    found = acknowledgements(trace.read_text(errors="replace").splitlines())
    choices = [synced for path, synced in found if path.endswith("/choices")]
    assert len(choices) == len(book.clicks) == 4 and len(found) >= 10
    assert all(synced for _, synced in found), found
