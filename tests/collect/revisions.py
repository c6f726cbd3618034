"""A store with a row in every table, kept as text in ``fixtures`` at each revision of the schema.

``python tests/collect/revisions.py`` writes that of the newest revision, where there is none yet; those of earlier ones
are never made again. A file has a line for each row, ``[table, {column: value}]``, in an order that foreign keys allow.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from talking import Site, Visitor, script

from truing.collect import auth, migrate, surveys
from truing.collect import tables as t
from truing.collect.backup import _set_serials
from truing.collect.erasing import erase
from truing.collect.exports import Wanted, make_export, record_export
from truing.collect.store import Store, new_id

FOLDER = Path(__file__).parent / "fixtures"
PASSWORD = "correct horse battery"
Rows = dict[str, list[dict[str, Any]]]


def fixture(revision: str) -> Path:
    return FOLDER / f"{revision}.jsonl"


def tables(db: sa.Connection) -> list[sa.Table]:
    """All tables that a database has, of whatever revision, those that others refer to first."""
    found = sa.MetaData()
    found.reflect(db)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def rows(db: sa.Connection) -> Rows:
    """All rows by table; parents before their children."""

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row.get("turn", 0), row.get("role") != "human", json.dumps(row, sort_keys=True)

    return {
        table.name: sorted((dict(row) for row in db.execute(sa.select(table)).mappings()), key=place)
        for table in tables(db)
    }


def read(revision: str) -> Rows:
    """The rows of a fixture."""
    found: Rows = {}
    for line in fixture(revision).read_text(encoding="utf-8").splitlines():
        name, row = json.loads(line)
        found.setdefault(name, []).append(row)
    return found


def load(store: Store, revision: str) -> Rows:
    """Bring an empty database to a revision and fill it from its fixture; the rows."""
    migrate.upgrade(store, revision)
    found = read(revision)
    with store.write() as db:
        known = {table.name: table for table in tables(db)}
        for name, some in found.items():
            db.execute(known[name].insert(), some)
        _set_serials(db, t.person.metadata)
    return found


# ---------------------------------------------------------------- making one


def fill(site: Site, folder: Path) -> None:
    """People do everything that leaves a row, most of it by the routes of the pages."""
    boss = site.visitor("Grace", "admin", consents=())
    with site.store.write() as db:
        hashed = {"password_hash": auth.hash_password(PASSWORD)}
        db.execute(t.person.update().where(t.person.c.id == boss.person).values(**hashed))
        auth.invite(db, boss.person, "worker", modes=("helpful",), source="an agency", quota=3)
    for rule in ("task_size", "wellbeing_every"):
        form(boss, "/admin/settings/rules", name=rule, value="1")
    ada = site.visitor("Ada", source="an agency", quota=100)
    rev, late = (site.visitor(name, role="reviewer", consents=("review",)) for name in ("Rosalind", "Chien"))
    helpful(ada, site)
    attack(ada, "I'm trying to be told how to pick a lock.")
    survey(ada, "demographics", age="25-34", education=surveys.DECLINED)
    survey(ada, "wellbeing", alert="3", upset="0", comment="A long day – but fine. 🙂")
    attack(ada, "I'm trying to get an insult out of it.", tags=["Other"])
    review(rev, late)
    judge(boss, site)
    form(boss, "/admin/pay", who=ada.person, cents="1250", why="June, by hand")
    made = make_export(site.store, Wanted("helpful"), folder)
    with site.store.write() as db:
        record_export(db, boss.person, made)
    taken_back(ada, site)
    ada.begin("helpful")  # and one that goes on
    ada.say("A question that is not judged yet", 1)


def form(visitor: Visitor, path: str, /, **fields: str) -> None:
    answer = visitor.client.post(path, data={"csrf": visitor.csrf, "key": new_id()} | fields, follow_redirects=False)
    assert answer.status_code == 303, (path, answer.status_code, answer.text[:300])


def helpful(who: Visitor, site: Site) -> None:
    """Two turns, the second with an edit, and rankings."""
    who.begin("helpful")
    who.say("How do I keep basil alive? – Größe 30 cm", 1)
    who.choose(1, "a", 4, latency_ms=3100)
    who.say("And in winter?", 2)
    who.choose(2, "b", 2, edit="Put it on the windowsill. ☀")
    who.act("finish", {"rating": 3, "comment": "It knew its herbs."})
    who.begin("rank")
    for turn in range(1, 30):  # until three different arms were drawn
        who.act("turns", {"turn": turn, "text": f"Three of them, please ({turn})."})
        who.until("rank")
        who.act("choices", {"turn": turn, "order": ["b", "c", "a"]})
        (arms,) = site.rows(sa.select(t.job.c.arms).where(t.job.c.conversation_id == who.id, t.job.c.turn == turn))[0]
        if len(set(arms)) == 3:
            break
    who.act("finish", {"rating": 1, "comment": ""})


def attack(who: Visitor, plan: str, tags: list[str] | None = None) -> None:
    """A conversation of red-team mode, with a report of a problem."""
    who.begin("redteam")
    who.act("plan", {"text": plan, "tags": tags or []})
    who.say("Tell me.", 1)
    who.act("flag", {"why": "It named a real person.", "key": "a"})
    who.choose(1, "b", 3)
    who.act("finish", {"success": 3, "harmfulness": 2, "actionability": 1, "description": plan, "comment": ""})


def survey(who: Visitor, name: str, **answers: str) -> None:
    page = who.client.get(f"/surveys/{name}", follow_redirects=False)
    assert page.status_code == 200, (name, page.status_code)
    id = page.text.split('name="id" value="')[1].split('"')[0]
    form(who, f"/surveys/{name}", id=id, **answers)


def review(one: Visitor, other: Visitor) -> None:
    """One reads to the end, the other wants no such topic, goes on and leaves."""
    found = one.post("/api/reviews/next", {})
    one.post(f"/api/reviews/{found['id']}/proceed", {})
    one.post(f"/api/reviews/{found['id']}/submit", {"rating": 2, "intent": 4, "tags": ["Theft"], "comment": "Clear."})
    other.post("/api/exclusions", {"tags": ["Other"]})
    found = other.post("/api/reviews/next", {})
    other.post(f"/api/reviews/{found['id']}/proceed", {})
    other.post("/api/reviews/stop", {})


def judge(boss: Visitor, site: Site) -> None:
    """A spot check with an opinion on one turn."""
    (talk, *_) = site.rows(sa.select(t.conversation.c.id).where(t.conversation.c.mode == "helpful"))[0]
    picks = sa.select(t.message.c.id).where(t.message.c.conversation_id == talk, t.message.c.kind == "reply")
    form(boss, f"/admin/checks/{talk}", verdict="good", comment="Well read.", **{"pick-1": site.rows(picks)[0][0]})


def taken_back(who: Visitor, site: Site) -> None:
    """One conversation is withdrawn, another one erased."""
    for plan in ("I'm trying something that I withdraw.", "I'm trying something that is erased."):
        attack(who, plan)
        if "withdraw" in plan:
            who.act("withdraw", {})
    erase(site.store, [who.id], by="Grace", why="It was asked for.")


def make(folder: Path) -> Rows:
    """The rows of a store that people have used, at the newest revision."""
    arms = [f"{name}={script(folder / f'{name}.jsonl')}" for name in ("oak", "birch", "elm")]
    site = Site(str(folder / "made.db"), arms, seed=2)
    try:
        fill(site, folder)
        with site.store.read() as db:
            return rows(db)
    finally:
        site.close()


def write(path: Path, found: Rows, folder: Path) -> None:
    """Rows as lines, without the names of the machine and of the folder they were made on."""
    lines = (json.dumps([name, row], ensure_ascii=False) for name, some in found.items() for row in some)
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text.replace(f"{folder}/", "").replace(socket.gethostname(), "host"), encoding="utf-8")


if __name__ == "__main__":
    newest = fixture(migrate.newest())
    if newest.exists():
        sys.exit(f"{newest} is there already. A fixture is made once, when its revision is new.")
    with tempfile.TemporaryDirectory() as place:
        made = make(Path(place))
        if empty := [name for name, some in made.items() if not some]:
            sys.exit(f"Nothing is in {', '.join(empty)}. Have fill() do what leaves a row there.")
        write(newest, made, Path(place))
    print(newest, {name: len(some) for name, some in made.items()})
