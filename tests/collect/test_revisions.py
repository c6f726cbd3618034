"""Every revision of the store goes up and down with data on both databases, from a store that is kept for each."""

from __future__ import annotations

from typing import Any

import pytest
import revisions
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from browser import ALL_MODES, Browser

from truing.collect import auth, migrate
from truing.collect import tables as t
from truing.collect.admin_pages import PAGES
from truing.collect.app import create_app
from truing.collect.desk import Desk
from truing.collect.exports import MODES, Wanted, make_export
from truing.collect.replies import Models
from truing.collect.store import Store
from truing.collect.web import House

ALL = sorted(s.revision for s in ScriptDirectory(str(migrate.FOLDER)).walk_revisions())


@pytest.fixture
def empty(store: Store) -> Store:
    """A database without tables."""
    migrate.downgrade(store, "base")
    return store


def found_in(store: Store) -> revisions.Rows:
    with store.read() as db:
        return revisions.rows(db)


def lost(before: revisions.Rows, after: revisions.Rows) -> list[Any]:
    """Rows that are not there any more, or not as they were, in the tables and columns that are still there."""

    def keys(row: dict[str, Any], columns: set[str]) -> str:
        return repr(sorted((k, v) for k, v in row.items() if k in columns))

    out: list[Any] = []
    for name in before.keys() & after.keys():
        columns = before[name][0].keys() & after[name][0].keys() if after[name] else before[name][0].keys()
        there = {keys(row, columns) for row in after[name]}
        out += [(name, row) for row in before[name] if keys(row, columns) not in there]
    return out


def test_every_revision_has_its_store():
    missing = [revision for revision in ALL if not revisions.fixture(revision).exists()]
    assert missing == [], (
        "a new revision needs its fixture: run `python tests/collect/revisions.py` and commit the file"
    )
    assert sorted(path.stem for path in revisions.FOLDER.glob("*.jsonl")) == ALL
    filled = revisions.read(migrate.newest())
    assert sorted(filled) == sorted(t.person.metadata.tables), "a table without a row in the newest fixture"


def test_the_newest_revision_is_what_the_code_says(store: Store):
    """A change of the tables without a revision is found here."""
    with store.read() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, t.person.metadata) == []


@pytest.mark.parametrize("revision", ALL)
def test_a_store_of_each_revision_goes_up_and_down_and_is_used(empty: Store, revision: str, tmp_path: Any):
    before = revisions.load(empty, revision)
    assert found_in(empty) == before
    migrate.upgrade(empty)
    migrate.check(empty)
    assert lost(before, found_in(empty)) == []
    migrate.downgrade(empty, revision)
    assert found_in(empty) == before
    migrate.upgrade(empty)
    use(empty, tmp_path)
    after = found_in(empty)
    migrate.downgrade(empty, revision)
    assert lost({name: rows for name, rows in before.items() if name != "login"}, after) == []
    assert lost(after, found_in(empty)) == []
    migrate.downgrade(empty, "base")
    with empty.read() as db:
        assert revisions.tables(db) == []


def use(store: Store, folder: Any) -> None:
    """People come back to it: all pages, a choice in the open conversation, every export, and nothing withdrawn."""
    house = House(store)
    house.desk = Desk(store, house.bell, Models())  # its arms are not needed any more
    app = create_app(house)
    boss, ada = Browser(app), Browser(app)
    token = boss.get("/login").text.split('name="form" value="')[1].split('"')[0]
    answer = boss.client.post("/login", data={"form": token, "name": "Grace", "password": revisions.PASSWORD})
    assert answer.status_code == 303, answer.text[:300]
    talks = found_in(store)["conversation"]
    for path in ("/", "/mine", *(path for _, path, _ in PAGES)):
        assert boss.get(path).status_code == 200, path
    gone = {row["conversation_id"] for name in ("withdrawal", "erasure") for row in found_in(store)[name]}
    for talk in talks:
        expected = 404 if talk["id"] in gone else 200
        assert boss.get(f"/admin/checks/{talk['id']}").status_code == expected, talk

    with store.write() as db:
        person = db.execute(sa.select(t.person).where(t.person.c.name == "Ada")).one()
        assert set(person.modes) == set(ALL_MODES)
        ada.session, ada.csrf = auth.start_session(db, person.id)
    screen = ada.post("/api/tasks", {"mode": "helpful"}).json()
    assert (screen["phase"], screen["turn"], len(screen["candidates"])) == ("choose", 1, 2)
    told = {"turn": 1, "pick": "a", "strength": 4}
    assert ada.post(f"/api/conversations/{screen['id']}/choices", told).json()["phase"] == "write"
    assert ada.post(f"/api/conversations/{screen['id']}/finish", {"rating": 3, "comment": ""}).json()["phase"] == "done"
    for kind in MODES:
        made = make_export(store, Wanted(kind), folder)  # type: ignore[arg-type]
        assert made.counts["rows"] > 0 and not gone & set(made.conversations)
    for browser in (boss, ada):
        browser.client.close()
