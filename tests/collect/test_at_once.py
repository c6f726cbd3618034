"""Two writes at the same moment: on PostgreSQL they run side by side, and neither may lose what the other did."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filled import Talk, add_worker
from sqlalchemy.engine import Connection

from truing.collect import admin
from truing.collect import tables as t
from truing.collect.erasing import erase, erase_conversations
from truing.collect.exports import Made, Wanted, make_export, record_export
from truing.collect.store import Conflict, Store, lock_conversation, new_id, now, setting
from truing.collect.web import Person
from truing.collect.words import words

HELD = 0.6
"""Seconds for which the first transaction stays open, while the second one comes."""


@contextmanager
def meanwhile(store: Store, act: Callable[[Connection], Any]) -> Iterator[None]:
    """``act`` is done in a transaction that is still open when the block begins, and ends soon after."""
    done, problems = threading.Event(), list[BaseException]()

    def first() -> None:
        try:
            with store.write() as db:
                act(db)
                done.set()
                time.sleep(HELD)
        except BaseException as problem:
            problems.append(problem)
            done.set()

    thread = threading.Thread(target=first)
    thread.start()
    done.wait(10)
    try:
        yield
    finally:
        thread.join()
    assert problems == []


def a_talk(store: Store) -> Talk:
    with store.write() as db:
        talk = Talk(db, arms=("one",))
        talk.turn("Hello", [("one", "x"), ("one", "y")])
        talk.end(rating=1)
    return talk


def a_person(store: Store) -> Person:
    with store.write() as db:
        return Person(add_worker(db, "Grace"), "Grace", "admin", (), None, "")


def insert_flag(db: Connection, talk: Talk, why: str) -> None:
    row = {"id": new_id(), "conversation_id": talk.id, "person_id": talk.person, "why": why, "at": now()}
    db.execute(t.flag.insert(), row)


def exported(store: Store, folder: Path) -> Made:
    folder.mkdir(exist_ok=True)
    return make_export(store, Wanted("helpful"), folder)


def test_a_click_that_is_sent_twice_at_the_same_moment_is_answered_twice_alike(store: Store):
    """The second of them waits for the first, and then finds the screen of before out of date: it is the same click."""
    talk, begun, answers = a_talk(store), threading.Event(), list[Any]()

    def act(db: Connection) -> dict[str, Any]:
        lock_conversation(db, talk.id)
        if db.execute(sa.select(t.flag)).first() is not None:
            raise Conflict("another window")
        begun.set()
        time.sleep(HELD)
        insert_flag(db, talk, "x")
        return {"id": "done"}

    def click() -> None:
        answers.append(store.once(talk.person, "the-one-key", "/path", {}, act))

    thread = threading.Thread(target=click)
    thread.start()
    begun.wait(10)
    click()
    thread.join()
    assert answers == [{"id": "done"}, {"id": "done"}]
    with pytest.raises(Conflict, match="another window"):
        store.once(talk.person, "another-key", "/path", {}, act)


def test_what_is_being_written_during_an_erasure_is_erased_too(store: Store):
    talk = a_talk(store)

    def write(db: Connection) -> None:
        lock_conversation(db, talk.id)
        talk.db = db
        talk.say("canary-9")

    with meanwhile(store, write):
        erase(store, [talk.id], by="test", why="test")
    with store.read() as db:
        assert set(db.execute(sa.select(t.message.c.text)).scalars()) == {"[erased]"}


def test_an_erasure_names_the_file_that_is_leaving_at_the_same_moment(store: Store, tmp_path: Path):
    talk = a_talk(store)
    made = exported(store, tmp_path / "a")
    with meanwhile(store, lambda db: record_export(db, None, made)):
        found = erase(store, [talk.id], by="test", why="test")
    assert found.files == [("helpful", made.sha256)]


def test_no_file_leaves_with_what_is_erased_at_the_same_moment(store: Store, tmp_path: Path):
    talk = a_talk(store)
    made = exported(store, tmp_path / "a")
    with (
        meanwhile(store, lambda db: erase_conversations(db, [talk.id], by="test", why="test")),
        pytest.raises(Conflict, match="withdrawn"),
        store.write() as db,
    ):
        record_export(db, None, made)


@pytest.mark.parametrize("what", ["words", "rules", "pay"])
def test_two_administrators_who_edit_at_the_same_moment_lose_nothing(store: Store, what: str):
    by = a_person(store)
    first: Callable[[Connection], Any]
    second: Callable[[Connection], Any]
    if what == "words":
        first = lambda db: admin.set_word(db, by, "title", "Ours")  # noqa: E731
        second = lambda db: admin.set_word(db, by, "skip", "Go on")  # noqa: E731
    elif what == "rules":
        first = lambda db: admin.set_rules(db, by, {"task_size": 3})  # noqa: E731
        second = lambda db: admin.set_rules(db, by, {"reviewers": 2})  # noqa: E731
    else:
        first = lambda db: admin.set_rate(db, by, "helpful", "task", 100, "USD")  # noqa: E731
        second = lambda db: admin.set_rate(db, by, "review", "time", 200, "USD")  # noqa: E731
    with meanwhile(store, first), store.write() as db:
        second(db)
    with store.read() as db:
        if what == "words":
            assert (words(db)["title"], words(db)["skip"]) == ("Ours", "Go on")
        else:
            assert len(setting(db, what)) == 2
