"""The ledger: what was promised when work began is paid, whoever ends it, and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from attacks import attack
from filled import Talk
from talking import Site, Visitor, script

from truing.collect import acts, admin
from truing.collect import tables as t
from truing.collect.erasing import erase
from truing.collect.pay import settle_reviews, settle_task
from truing.collect.store import Store, new_id, now, set_setting
from truing.collect.tags import TAGS
from truing.collect.web import Person

ANSWERS = {"rating": 4, "intent": 0, "tags": [TAGS[0]], "comment": ""}
MINUTE = 60 * 10**6


@pytest.fixture
def quick(tmp_path, empty_file):
    (tmp_path / "truing.db").write_bytes(empty_file.read_bytes())
    made = Site(str(tmp_path / "truing.db"), [f"one={script(tmp_path / 'one.jsonl')}"], work=False)
    yield made
    made.close()


def set_rate(store: Store, mode: str, by: str, cents: int, currency: str = "USD") -> None:
    with store.write() as db:
        set_setting(db, "pay", {mode: {"by": by, "cents": cents, "currency": currency}}, None)


def paid(store: Store) -> dict[str, int]:
    """Cents by currency."""
    query = sa.select(t.pay.c.currency, sa.func.sum(t.pay.c.cents)).group_by(t.pay.c.currency)
    with store.read() as db:
        return {currency: int(cents) for currency, cents in db.execute(query)}


def an_hour_of_reviews(site: Site, rev: Visitor, author: str) -> None:
    """Twelve reviews of five minutes each."""
    with site.store.write() as db:
        for _ in range(12):
            one, at = new_id(), now()
            row = {"id": one, "conversation_id": attack_in(db, author), "author_id": author, "person_id": rev.person}
            db.execute(t.assignment.insert(), row | {"at": at})
            said = {"assignment_id": one, "rating": 1, "intent": 1, "tags": [], "comment": "", "at": at + 5 * MINUTE}
            db.execute(t.review.insert(), said)
        settle_reviews(db, rev.person)


def attack_in(db: Any, author: str) -> str:
    talk = Talk(db, "redteam", author, ("one",))
    talk.turn("Hello", [("one", "x"), ("one", "y")])
    talk.end(success=1)
    return talk.id


def test_another_rate_is_for_work_that_comes_after(quick):
    """A raise pays nothing for hours that were paid, and a cut is no debt of the reviewer's."""
    ada, rev = quick.visitor(), quick.visitor("Rev", role="reviewer", consents=("review",))
    set_rate(quick.store, "review", "time", 3000)
    an_hour_of_reviews(quick, rev, ada.person)
    assert paid(quick.store) == {"USD": 3000}
    set_rate(quick.store, "review", "time", 4000)
    an_hour_of_reviews(quick, rev, ada.person)
    assert paid(quick.store) == {"USD": 7000}
    set_rate(quick.store, "review", "time", 1000)
    an_hour_of_reviews(quick, rev, ada.person)
    assert paid(quick.store) == {"USD": 8000}
    set_rate(quick.store, "review", "time", 2000, "EUR")
    an_hour_of_reviews(quick, rev, ada.person)
    set_rate(quick.store, "review", "task", 500)
    an_hour_of_reviews(quick, rev, ada.person)
    assert paid(quick.store) == {"USD": 9200, "EUR": 2000}  # twelve fifths of a task


def test_a_task_is_paid_by_the_rate_under_which_it_was_begun(quick):
    set_rate(quick.store, "redteam", "task", 900)
    with quick.store.write() as db:
        talk = Talk(db, "redteam", arms=("one",))
        talk.end()
        settle_task(db, talk.task, stopping=True)
    assert paid(quick.store) == {"USD": 180}
    set_rate(quick.store, "redteam", "task", 100, "EUR")
    with quick.store.write() as db:
        settle_task(db, talk.task, stopping=True)
        later = Talk(db, "redteam", talk.person, ("one",))
        later.end()
        settle_task(db, later.task, stopping=True)
    assert paid(quick.store) == {"USD": 180, "EUR": 20}


def test_work_before_the_first_rate_is_paid_by_it(quick):
    with quick.store.write() as db:
        talk = Talk(db, "redteam", arms=("one",))
        talk.end()
    set_rate(quick.store, "redteam", "task", 500)
    with quick.store.write() as db:
        settle_task(db, talk.task, stopping=True)
    assert paid(quick.store) == {"USD": 100}


def test_a_reviewer_who_stops_in_the_middle_of_a_task_is_paid_for_what_was_read(quick):
    set_rate(quick.store, "review", "task", 1000)
    ada, rev = quick.visitor(), quick.visitor("Rev", role="reviewer", consents=("review",))
    for _ in range(3):
        attack(quick, ada.person)
        found = rev.post("/api/reviews/next", {})
        rev.post(f"/api/reviews/{found['id']}/proceed", {})
        rev.post(f"/api/reviews/{found['id']}/submit", ANSWERS)
    rev.post("/api/reviews/stop", {})
    assert paid(quick.store) == {"USD": 600}


@pytest.mark.parametrize("how", ["withdraw", "erase"])
def test_what_an_administrator_takes_away_stays_paid_and_the_task_goes_on(site, how):
    """An open conversation that is withdrawn or erased is one of the task, which could not be complete otherwise."""
    set_rate(site.store, "helpful", "task", 1000)
    ada, boss = site.visitor(), site.visitor("Boss", role="admin")
    ada.begin()
    ada.talk(["Hello"])
    if how == "withdraw":
        with site.store.write() as db:
            admin.withdraw(db, Person(boss.person, "Boss", "admin", (), None, ""), ada.id)
    else:
        erase(site.store, [ada.id], by="test", why="test")
    assert paid(site.store) == {"USD": 200}
    for _ in range(4):
        ada.begin()
        ada.talk(["Hello"])
        ada.act("finish", {"rating": 1})
    assert paid(site.store) == {"USD": 1000} and site.count(t.task) == 1
    with site.store.read() as db:
        assert not acts.is_open(db, ada.id)
