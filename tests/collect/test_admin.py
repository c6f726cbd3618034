"""The administration: who may do what, every write once, numbers that are right, files that arrive whole."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from browser import Browser, People
from fastapi import FastAPI
from filled import Talk, add_arm, add_worker

from truing.collect import admin, admin_care, admin_pages, admin_work, numbers
from truing.collect import tables as t
from truing.collect.app import routes
from truing.collect.desk import Desk
from truing.collect.exports import Wanted, make_export
from truing.collect.imports import import_file
from truing.collect.store import Store, new_id, now, setting
from truing.collect.web import House
from truing.data.comparisons import load_comparisons
from truing.data.files import DataError

OURS = [found for room in (admin_pages, admin_work, admin_care) for found in routes(room.router.routes)]
ONLY_ADMIN = ("people", "invitations", "pay", "pay.csv", "settings", "audit")
HOSTILE = "<script>alert(1)</script>'\"&lt; \u202e =1+1"


def path_of(route: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "0" * 32, route)


def rows(store: Store, query: Any) -> list[Any]:
    with store.read() as db:
        return list(db.execute(query).all())


def count(store: Store, table: sa.Table) -> int:
    return int(rows(store, sa.select(sa.func.count()).select_from(table))[0][0])


@pytest.fixture
def boss(people: People) -> Browser:
    return people.new("admin", "Boss")


def form(browser: Browser, path: str, **fields: Any) -> Any:
    """A form of a page with its token and a fresh key."""
    return browser.client.post(path, data={"csrf": browser.csrf, "key": new_id()} | fields)


def ok(answer: Any) -> Any:
    assert answer.status_code in (200, 303), (answer.status_code, answer.text[-600:])
    return answer


# ---------------------------------------------------------------- who may


def test_roles_of_every_route(app: FastAPI, people: People):
    found = OURS
    assert len(found) > 20 and {path for _, path in found} <= app.state.paths
    visitors = {role: people.new(role) for role in ("worker", "reviewer", "researcher", "admin")}
    visitors["nobody"] = people.stranger()
    for method, route in found:
        admins = (*route.split("/"), "")[2] in ONLY_ADMIN or (route.startswith("/admin/arms") and method == "POST")
        admins = admins or route.endswith("/withdraw")
        for role, browser in visitors.items():
            answer = browser.get(path_of(route)) if method == "GET" else form(browser, path_of(route))
            may = role == "admin" or (role == "researcher" and not admins)
            if role == "nobody":
                assert (answer.status_code, answer.headers.get("location")) in ((303, "/login"), (401, None)), route
            else:
                assert (answer.status_code == 403) != may, (method, route, role, answer.status_code)
                assert answer.status_code < 500


def test_no_write_without_the_token(app: FastAPI, boss: Browser, store: Store):
    for method, route in OURS:
        if method == "POST":
            assert boss.client.post(path_of(route), data={"key": new_id()}).status_code == 403, route
    assert count(store, t.audit) == 0


# ---------------------------------------------------------------- people


def test_an_invitation_is_shown_once_and_made_once(boss: Browser, store: Store, people: People):
    fields = {
        "role": "worker",
        "modes": ["redteam", "rank"],
        "source": "upwork",
        "quota": "5",
        "uses": "2",
        "days": "3",
    }
    key = new_id()
    answer = ok(form(boss, "/admin/invitations", key=key, **fields))
    token = re.search(r"/invite/([\w-]{43})", answer.text)[1]  # type: ignore[index]
    again = form(boss, "/admin/invitations", key=key, **fields)
    assert again.status_code == 422 and "shown only once" in again.text and count(store, t.invitation) == 1
    assert token not in boss.get("/admin/people").text
    with store.read() as db:
        assert all(
            token not in str(row) for table in (t.invitation, t.once, t.audit) for row in db.execute(sa.select(table))
        )
        row = db.execute(sa.select(t.invitation)).one()
    assert (row.modes, row.source, row.quota, row.uses) == (["redteam", "rank"], "upwork", 5, 2)
    assert people.stranger().get(f"/invite/{token}").status_code == 200
    ok(form(boss, f"/admin/invitations/{row.id}/revoke"))
    assert people.stranger().get(f"/invite/{token}").status_code == 404


def test_changing_a_person(boss: Browser, store: Store, people: People):
    ann = people.new("worker", "Ann", modes=("helpful",))
    change = f"/admin/people/{ann.person}"
    ok(form(boss, change, role="worker", modes=["redteam", "review"], quota="3"))
    row = rows(store, sa.select(t.person).where(t.person.c.id == ann.person))[0]
    assert (row.modes, row.quota, row.disabled) == (["redteam", "review"], 3, False)
    assert ann.get("/").status_code == 200  # still signed in
    ok(form(boss, change, role="reviewer", modes=["review"], quota=""))
    assert ann.get("/").status_code == 303  # another role: signed out
    ok(form(boss, change, role="reviewer", modes=["review"], disabled="yes"))
    for bad in ({"role": "king"}, {"role": "worker", "modes": ["x"]}, {"role": "worker", "quota": "-1"}):
        assert form(boss, change, **bad).status_code == 422
    logged = rows(store, sa.select(t.audit.c.details).where(t.audit.c.action == "person").order_by(t.audit.c.serial))
    assert [sorted(r.details) for r in logged] == [["modes", "quota"], ["modes", "quota", "role"], ["disabled"]]
    answer = form(boss, f"/admin/people/{boss.person}", role="worker")
    assert answer.status_code == 422 and "last administrator" in answer.text


def test_a_link_for_a_new_password(boss: Browser, people: People):
    ann = people.new("worker", "Ann")
    token = re.search(r"/reset/([\w-]{43})", ok(form(boss, f"/admin/people/{ann.person}/reset")).text)[1]  # type: ignore[index]
    assert "Ann" in people.stranger().get(f"/reset/{token}").text


def test_the_ledger_only_grows(boss: Browser, store: Store, people: People):
    ann = people.new("worker", "=Ann+")
    key = new_id()
    for _ in range(2):  # a double click
        ok(form(boss, "/admin/pay", key=key, who=ann.person, cents="750", why="=bonus", currency="usd"))
    ok(form(boss, "/admin/pay", who=ann.person, cents="-250", why="paid out", currency="USD"))
    assert sorted(r.cents for r in rows(store, sa.select(t.pay.c.cents))) == [-250, 750]
    text = boss.get("/admin/pay.csv").text
    assert "'=bonus" in text and "'=Ann+" in text and ",-250,USD" in text
    assert "5.00 USD" in boss.get("/admin/people").text and "−2.50 USD" in boss.get("/admin/pay").text
    for bad in ({"cents": "x"}, {"cents": "0"}, {"currency": "DOLLAR"}, {"why": " "}, {"who": "nobody"}):
        fields = {"who": ann.person, "cents": "5", "why": "w", "currency": "USD"} | bad
        assert form(boss, "/admin/pay", **fields).status_code == 422
    ok(form(boss, "/admin/pay/rates", mode="redteam", by="task", cents="900", currency="usd"))
    with store.read() as db:
        assert setting(db, "pay") == {"redteam": {"by": "task", "cents": 900, "currency": "USD"}}
    ok(form(boss, "/admin/pay/rates", mode="redteam", by="none"))
    with store.read() as db:
        assert setting(db, "pay") == {}


# ---------------------------------------------------------------- arms


def test_arms_come_change_weight_and_go(boss: Browser, store: Store, people: People):
    fields = {
        "name": "rlhf-2",
        "model": "smollm2",
        "more": "temperature=0.7\nmodel_type = rlhf",
        "weight": "2",
        "modes": ["helpful"],
    }
    ok(form(boss, "/admin/arms", **fields))
    arm = rows(store, sa.select(t.arm))[0]
    assert (arm.spec["temperature"], arm.spec["model_type"], arm.created_by) == (0.7, "rlhf", boss.person)
    ok(form(boss, f"/admin/arms/{arm.id}", mode="helpful", weight="0"))
    assert [r.weight for r in rows(store, sa.select(t.arm_weight).order_by(t.arm_weight.c.serial))] == [2.0, 0.0]
    assert "temperature=0.7" in people.new("researcher").get("/admin/arms").text
    for bad in (
        {"more": "temprature=1"},
        {"more": "hello"},
        {"more": "name=x"},
        {"weight": "x"},
        {"model": " "},
        {"modes": ["x"]},
    ):
        assert form(boss, "/admin/arms", **(fields | {"name": "other"} | bad)).status_code == 422
    answer = form(boss, "/admin/arms", **(fields | {"more": "temperature=0.8"}))
    assert answer.status_code == 422 and "Choose a new name" in answer.text
    assert form(boss, f"/admin/arms/{arm.id}", mode="helpful", weight="-1").status_code == 422


# ---------------------------------------------------------------- spot checks


def test_a_spot_check_is_blind_until_one_has_chosen(boss: Browser, store: Store, people: People):
    researcher = people.new("researcher", "Rita")
    with store.write() as db:
        talk = Talk(db, person=add_worker(db, "Ann"), arms=["secret-arm"])
        ids = talk.turn("a question", [("secret-arm", "reply one"), ("secret-arm", "reply two")], 1, strength=4)
        talk.turn("another", [("secret-arm", "three"), ("secret-arm", "four")], 0, edit="my own words")
    page = f"/admin/checks/{talk.id}"
    assert "Ann" in researcher.get("/admin/checks").text
    text = ok(researcher.get(page)).text
    assert "reply one" in text and "reply two" in text and "clicked: " not in text and "my own words" not in text
    assert "secret-arm" not in text and "checked" in text  # "no opinion" is the default
    ok(form(researcher, page, verdict="good", comment=HOSTILE, **{"pick-1": ids[1]}))
    text = researcher.get(page).text
    assert "clicked: B" in text and "strength 4 of 4" in text and "my own words" in text
    assert talk.id not in researcher.get("/admin/checks").text
    ok(form(researcher, page, verdict="bad", **{"pick-1": ids[0]}))  # seen by now: the blind one holds
    assert [r.chosen_id for r in rows(store, sa.select(t.opinion))] == [ids[1]]
    with store.read() as db:
        found = numbers.researcher_agreement(db)
    assert (found["helpful"].value, found["helpful"].n) == (1.0, 1)
    assert form(researcher, page, verdict="great").status_code == 422
    assert form(researcher, page, verdict="good", **{"pick-1": "f" * 32}).status_code == 422
    assert HOSTILE not in str(rows(store, sa.select(t.audit)))


def test_harm_is_shown_only_after_a_warning_and_hostile_text_as_text(boss: Browser, store: Store):
    with store.write() as db:
        person = add_worker(db, "Ann")
        talk = Talk(db, "redteam", person, arms=["one"])
        talk.turn(f"harm {HOSTILE}", [("one", f"vile {HOSTILE}"), ("one", "no")])
        flag = {"id": new_id(), "conversation_id": talk.id, "person_id": person, "why": HOSTILE, "at": now()}
        db.execute(t.flag.insert(), flag)
        other = Talk(db, person=add_worker(db, "Bob"))
        other.turn("fine", [("one", "a"), ("one", "b")])
    for path in ("/admin/checks", f"/admin/checks/{talk.id}", "/admin", "/admin/audit", "/admin/people"):
        text = ok(boss.get(path)).text
        assert "vile" not in text and "harm <" not in text and "alert(1)" not in text, path
    assert boss.get("/admin/checks").text.index(talk.id) < boss.get("/admin/checks").text.index(
        other.id
    )  # flagged first
    text = boss.get(f"/admin/checks/{talk.id}?read=true").text
    assert "vile" in text and "<script>alert" not in text and "&lt;script&gt;alert" in text
    ok(form(boss, f"/admin/checks/{talk.id}/withdraw"))
    assert boss.get(f"/admin/checks/{talk.id}?read=true").status_code == 404
    assert talk.id not in boss.get("/admin/checks").text


# ---------------------------------------------------------------- exports


def test_an_export_arrives_whole_and_is_noted(boss: Browser, store: Store, tmp_path: Path):
    with store.write() as db:
        for mode in ("helpful", "redteam"):
            talk = Talk(db, mode, arms=["one"])
            talk.turn("q", [("one", "a"), ("two", "b")])
            talk.end(rating=1, success=1)
    assert form(boss, "/admin/exports", kind="rankings").status_code == 422  # nothing there
    for kind, to in (("helpful", "truing"), ("harmless", "hh"), ("attempts", "truing")):
        key = new_id()
        answer = ok(form(boss, "/admin/exports", key=key, kind=kind, to=to))
        digest = hashlib.sha256(answer.content).hexdigest()
        assert digest == answer.headers["x-truing-sha256"] and digest in boss.get("/admin/exports").text
        assert ("internal" in answer.headers.get("x-truing-notice", "").lower()) == (kind == "attempts")
        assert ("preference models only" in answer.headers.get("x-truing-notice", "")) == (kind == "harmless")
        name = re.search(r'filename="(.*)"', answer.headers["content-disposition"])[1]  # type: ignore[index]
        (tmp_path / name).write_bytes(answer.content)
        if kind != "attempts":
            assert load_comparisons(tmp_path / name)[0].kind == kind
        assert form(boss, "/admin/exports", key=key, kind=kind, to=to).status_code == 422  # a file leaves once
    assert count(store, t.export) == 3 == count(store, t.exported)
    for bad in (
        {"kind": "sft"},
        {"to": "x"},
        {"part": "x"},
        {"people": "x"},
        {"test_share": "2"},
        {"kind": "attempts", "to": "hh"},
    ):
        assert form(boss, "/admin/exports", **({"kind": "helpful"} | bad)).status_code == 422


# ---------------------------------------------------------------- texts and rules


def test_texts_are_edited_versioned_and_shown_as_text(boss: Browser, store: Store, people: People):
    change = "/admin/settings/words"
    ok(form(boss, change, name="home.about", value=HOSTILE))
    worker = people.new("worker")
    text = worker.get("/").text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    ok(form(boss, change, name="home.about", value="Second"))
    assert "Second" in worker.get("/").text
    versions = rows(store, sa.select(t.setting.c.version).where(t.setting.c.key == "words"))
    assert len(versions) == 2 == len(set(versions))
    ok(form(boss, change, name="home.about", value="", reset="yes"))
    assert "Second" not in worker.get("/").text
    for bad in (
        {"name": "nope", "value": "x"},
        {"name": "home.about", "value": " "},
        {"name": "language", "value": "xx"},
    ):
        assert form(boss, change, **bad).status_code == 422
    answer = form(boss, change, name="talk.strengths", value="a|b|c")  # of the eight buttons
    assert answer.status_code == 422 and "4 parts" in answer.text
    answer = form(boss, change, name="home.title", value="Welcome!")
    assert answer.status_code == 422 and "{name}" in answer.text
    ok(form(boss, change, name="language", value="de"))
    assert "Abmelden" in worker.get("/").text and "Stichproben" in boss.get("/admin").text
    ok(form(boss, "/admin/settings/tags", tags="Theft\r\n\r\nOther"))
    ok(form(boss, "/admin/settings/rules", name="task_size", value="3"))
    with store.read() as db:
        assert setting(db, "tags") == ["Theft", "Other"] and setting(db, "rules") == {"task_size": 3}
    assert form(boss, "/admin/settings/tags", tags="Theft\nTheft").status_code == 422
    assert form(boss, "/admin/settings/rules", name="task_size", value="0").status_code == 422
    assert form(boss, "/admin/settings/rules", name="x", value="1").status_code == 422


def test_an_arm_that_cannot_answer_is_told(boss: Browser, store: Store, house: House):
    with store.write() as db:
        arm = add_arm(db, "cold")
    house.desk = Desk(store)
    house.desk.problems[arm] = "No server answers at <b>."
    assert "No server answers at &lt;b&gt;." in ok(boss.get("/admin/arms")).text
    house.desk = None


def test_what_was_imported_is_nobodys_work_here(boss: Browser, store: Store, tmp_path: Path):
    """It is no progress, no busy person and nothing to look at; and no attack that somebody rated."""
    rows_ = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "kind": "harmless"} for i in range(3)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    import_file(store, tmp_path / "x.jsonl")
    with store.read() as db:
        assert {row["begun"] + row["choices"] for row in numbers.progress(db)} == {0}
        assert numbers.shares(db) == (0, 0, []) and not any(n for _, n in numbers.choices_by_day(db))
        assert admin.queue(db) == []
    with pytest.raises(DataError):
        make_export(store, Wanted("attempts"), tmp_path)
    assert make_export(store, Wanted("harmless"), tmp_path).counts["rows"] == 3


def test_every_page_of_settings_opens(boss: Browser):
    text = ok(boss.get("/admin/settings")).text
    for room in set(re.findall(r'href="\?room=(\w+)"', text)):
        assert ok(boss.get(f"/admin/settings?room={room}")).text.count("<details>") > 0


# ---------------------------------------------------------------- numbers


def test_the_overview_counts_what_there_is(boss: Browser, store: Store):
    assert ok(boss.get("/admin")).text.count("Nothing yet") >= 2
    with store.write() as db:
        for i in range(6):
            person = add_worker(db, f"Ann {i}", simulated=i == 5)
            talk = Talk(db, person=person)
            for turn in range(10):
                talk.turn("q", [("one", "a"), ("two", "b")], int(turn >= 7 + (i % 2)), latency_ms=1000 * (turn + 1))
            talk.end(rating=1, stopped=i == 4)
        left = Talk(db, "redteam", arms=["one"])
        left.turn("q", [("one", "a"), ("one", "b")], None)
        job = {"id": new_id(), "conversation_id": left.id, "turn": 2, "arms": [], "weights": {}, "state": "waiting"}
        db.execute(t.job.insert(), job | {"created_at": now() - 5_000_000})
    with store.read() as db:
        moment, done = numbers.live(db), {row["mode"]: row for row in numbers.progress(db)}
        sides, times = numbers.side_balance(db, "helpful"), numbers.choice_times(db)
        days, most = numbers.choices_by_day(db), numbers.shares(db)
        arms = numbers.arm_counts(db)
        names = {row.id: row.name for row in db.execute(sa.select(t.arm))}
    assert moment["choices"] == 60 and moment["waiting"] == 1 and 5 <= moment["oldest"] < 100
    assert done["helpful"] == {
        "mode": "helpful",
        "begun": 5,
        "choices": 50,
        "done": 4,
        "stopped": 1,
        "withdrawn": 0,
        "erased": 0,
    }
    assert done["redteam"]["begun"] == 1 and done["redteam"]["done"] == 0
    assert sides.value == pytest.approx(0.74) and sides.n == 50 and numbers.is_balanced(sides) is False
    assert times[0]["median"] == 5.5 and times[0]["n"] == 60 and times[0]["fast"] == pytest.approx(0.1)
    assert days[-1] == ("today", 60) and sum(n for _, n in days) == 60
    assert most[:2] == (5, 6) and len(most[2]) == 6
    assert {names[id]: (c["shown"], c["clicked"]) for id, c in arms.items()} == {"one": (62, 45), "two": (60, 15)}
    text = ok(boss.get("/admin")).text
    assert "74.0% [7" in text and "something tells the sides apart" in text and "style=" not in text
    answer = boss.get("/api/admin/live")
    assert answer.json()["choices"] == 60


def test_twenty_of_thirty_people_and_agreement_on_planted_noise(sqlite_store: Store):
    """hh.md §19, row 5: 20 workers make 80% of the rows; researchers agree in 63 ± 3%, and nobody is filtered."""
    import random

    rng = random.Random(1)
    with sqlite_store.write() as db:
        add_arm(db, "one"), add_arm(db, "two")
        looker = add_worker(db, "Rita")
        for i in range(30):
            talk = Talk(db, person=add_worker(db, f"w{i}"))
            for _ in range(40 if i < 20 else 20):
                pick = rng.randrange(2)
                ids = talk.turn("q", [("one", "a"), ("two", "b")], pick)
                same = rng.random() < 0.63
                row = {"id": new_id(), "conversation_id": talk.id, "turn": talk.number, "person_id": looker}
                db.execute(t.opinion.insert(), row | {"chosen_id": ids[pick if same else 1 - pick], "at": now()})
    with sqlite_store.read() as db:
        assert numbers.shares(db)[:2] == (20, 30)
        found = numbers.researcher_agreement(db)["helpful"]
        balance = numbers.side_balance(db, "helpful")
    assert found.value == pytest.approx(0.63, abs=0.03) and found.low < 0.63 < found.high
    assert balance.n == 1000 and numbers.is_balanced(balance) is True


def test_the_log_is_paged_and_filtered(boss: Browser, store: Store):
    with store.write() as db:
        for i in range(130):
            db.execute(t.audit.insert(), {"action": "x" if i % 2 else "y", "target": f"t{i}", "details": {}, "at": i})
    first = boss.get("/admin/audit").text
    older = re.search(r'href="(\?before=\d+&amp;action=)"', first)[1]  # type: ignore[index]
    assert (
        "t129" in first
        and "t10<" not in first
        and "t10<" in boss.get(f"/admin/audit{older.replace('&amp;', '&')}").text
    )
    only = boss.get("/admin/audit?action=x").text
    assert "t129" in only and "t128" not in only


def test_a_sample_is_drawn_and_surveys_are_counted(boss: Browser, store: Store):
    with store.write() as db:
        for _ in range(4):
            talk = Talk(db, "redteam", arms=["one"])
            talk.plan("a plan")
            talk.turn("q", [("one", "a"), ("one", "b")])
            talk.end(success=2)
        for month in ("2026-01", "2026-01", "2026-01"):
            answers = {"alert": 2, "upset": 3}
            db.execute(t.wellbeing.insert(), {"id": new_id(), "answers": answers, "comment": HOSTILE, "month": month})
        arm = add_arm(db, "one")
    text = ok(boss.get("/admin/reviews")).text
    assert "2026-01" in text and "3.00" in text and "alert(1)" not in text and "Negative feelings have risen" in text
    ok(form(boss, "/admin/reviews", seed="5", **{f"count-{arm}": "3"}))
    with store.read() as db:
        drawn = setting(db, "review_sample")
    assert len(drawn["conversations"]) == 3 and drawn["seed"] == 5
    assert "3 conversations are drawn, with seed 5" in boss.get("/admin/reviews").text
    for bad in ({}, {f"count-{arm}": "-1"}, {f"count-{arm}": "x"}, {f"count-{arm}": "1", "seed": "-1"}):
        assert form(boss, "/admin/reviews", **bad).status_code == 422
    assert (
        boss.client.post("/admin/reviews", data={"csrf": boss.csrf, f"count-{arm}": "1"}).status_code == 422
    )  # no key
