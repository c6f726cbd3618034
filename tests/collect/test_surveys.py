"""The surveys: nobody has to answer, and no answer can be traced."""

from __future__ import annotations

import re
import time

import pytest
import sqlalchemy as sa
from attacks import attack
from talking import Site, script

from truing.collect import surveys
from truing.collect import tables as t
from truing.collect.store import Refused, new_id, now, set_setting

ITEMS = surveys.POSITIVE + surveys.NEGATIVE
TABLE_2 = {
    "upset": 0.31, "hostile": 0.16, "ashamed": 0.24, "nervous": 0.24, "afraid": 0.24,
    "alert": 1.02, "inspired": 0.92, "determined": 0.98, "attentive": 1.73, "active": 1.33,
}  # fmt: skip


@pytest.fixture
def site(db, tmp_path):
    made = Site(db, [f"one={script(tmp_path / 'one.jsonl')}"], work=False)
    with made.store.write() as into:
        set_setting(into, "rules", {"wellbeing_every": 2, "demographics_after": 1}, None)
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path, empty_file):
    """On SQLite, for what does not depend on the database."""
    (tmp_path / "truing.db").write_bytes(empty_file.read_bytes())
    made = Site(str(tmp_path / "truing.db"), [f"one={script(tmp_path / 'one.jsonl')}"], work=False)
    with made.store.write() as into:
        set_setting(into, "rules", {"wellbeing_every": 2, "demographics_after": 1}, None)
    yield made
    made.close()


def task(site, who, conversations=5):
    """A task of red teaming with so many finished conversations."""
    with site.store.write() as db:
        row = {"id": new_id(), "person_id": who.person, "mode": "redteam", "size": 5, "created_at": now()}
        db.execute(t.task.insert(), row)
    for _ in range(conversations):
        one = attack(site, who.person)
        with site.store.write() as db:
            db.execute(t.conversation.update().where(t.conversation.c.id == one).values(task_id=row["id"]))


def leads_to(who, path="/redteam"):
    answer = who.client.get(path, follow_redirects=False)
    return answer.headers.get("location") if answer.status_code == 303 else None


def send(who, survey, **fields):
    """Fill the form in as it was served."""
    page = who.client.get(f"/surveys/{survey}").text
    found = re.search(r'name="id" value="([0-9a-f]{32})"', page)
    data = {"csrf": who.csrf, "id": found[1]} | fields
    answer = who.client.post(f"/surveys/{survey}", data=data, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return data


def kept(site, survey="wellbeing"):
    return [row.answers for row in site.rows(sa.select(surveys.TABLES[survey]))]


# ---------------------------------------------------------------- when


def test_surveys_come_after_so_many_tasks_and_can_be_skipped(site):
    """redteam.md §13 row 19."""
    ada = site.visitor()
    task(site, ada, 4)
    assert leads_to(ada) is None
    task(site, ada)
    assert leads_to(ada) == "/surveys/demographics"
    send(ada, "demographics", skip="yes", gender="man")
    assert leads_to(ada) is None and kept(site, "demographics") == []
    task(site, ada)
    assert leads_to(ada) == "/surveys/wellbeing"
    send(ada, "wellbeing", skip="yes")
    assert leads_to(ada) is None and kept(site) == []
    task(site, ada)
    assert leads_to(ada) is None
    task(site, ada)
    assert leads_to(ada) == "/surveys/wellbeing"
    send(ada, "wellbeing", upset="1")
    assert leads_to(ada) is None and kept(site) == [{"upset": 1}]
    assert site.rows(sa.select(t.survey_offer.c.survey, t.survey_offer.c.tasks).order_by(t.survey_offer.c.tasks)) == [
        ("demographics", 1),
        ("wellbeing", 2),
        ("wellbeing", 4),
    ]


def test_reviews_count_as_tasks_too(quick):
    ada, rev = quick.visitor(), quick.visitor("Rev", role="reviewer", consents=("review",))
    for _ in range(5):
        one = attack(quick, ada.person)
        with quick.store.write() as db:
            row = {"id": new_id(), "conversation_id": one, "author_id": ada.person, "person_id": rev.person}
            db.execute(t.assignment.insert(), row | {"at": now()})
            answers = {"assignment_id": row["id"], "rating": 0, "intent": 0, "tags": [], "at": now()}
            db.execute(t.review.insert(), answers)
    assert leads_to(rev, "/review") == "/surveys/demographics"
    answer = rev.client.post("/surveys/demographics", data={"csrf": rev.csrf, "skip": "yes"}, follow_redirects=False)
    assert answer.headers["location"] == "/review" and leads_to(rev, "/review") is None


def test_a_survey_that_is_not_due_is_not_asked_and_not_stored(quick):
    ada = quick.visitor()
    for survey in ("demographics", "wellbeing"):
        assert leads_to(ada, f"/surveys/{survey}") == "/redteam"
        data = {"csrf": ada.csrf, "id": new_id(), "upset": "4", "gender": "man"}
        ada.client.post(f"/surveys/{survey}", data=data)
        assert kept(quick, survey) == []
    assert ada.client.get("/surveys/other").status_code == 404
    assert ada.client.post("/surveys/wellbeing", data={"upset": "4"}).status_code == 403  # without a CSRF token


def test_simulated_people_are_not_asked(quick):
    ada = quick.visitor(simulated=True)
    task(quick, ada)
    with quick.store.write() as db:
        db.execute(t.person.update().values(simulated=True))
    assert leads_to(ada) is None


# ---------------------------------------------------------------- answers


def test_every_item_may_be_left_out_or_declined(site):
    ada = site.visitor()
    task(site, ada)
    page = ada.client.get("/surveys/demographics").text
    for item in surveys.DEMOGRAPHICS:
        fieldset = next(x for x in page.split("<fieldset")[1:] if f'name="{item}"' in x)
        assert (
            f'name="{item}" value="declined"' in fieldset and "checked" not in fieldset and "required" not in fieldset
        )
    send(
        ada,
        "demographics",
        age="declined",
        gender="woman",
        ethnicity=["white", "asian"],
        disability=["declined", "none"],
    )
    (answers,) = kept(site, "demographics")
    assert answers == {"age": "declined", "gender": "woman", "ethnicity": ["asian", "white"], "disability": "declined"}
    with site.store.read() as db:
        counts = surveys.demographics_counts(db)
    assert counts["age"]["declined"] == counts["ethnicity"]["asian"] == counts["education"]["left out"] == 1


def test_an_answer_that_is_not_offered_is_refused():
    for survey, item, value in [
        ("wellbeing", "upset", "5"),
        ("wellbeing", "upset", "x"),
        ("demographics", "age", "12"),
    ]:
        with pytest.raises(Refused):
            surveys.read_answers(survey, {item: [value]})
    with pytest.raises(Refused):
        surveys.read_answers("demographics", {"gender": ["man", "woman"]})
    assert surveys.read_answers("demographics", {"name": ["Ada"], "gender": [""]}) == {}


def test_the_order_of_the_items_is_shuffled(quick):
    ada = quick.visitor()
    task(quick, ada)
    send(ada, "demographics", skip="yes")
    task(quick, ada)
    orders = set()
    for _ in range(6):
        page = ada.client.get("/surveys/wellbeing").text
        order = tuple(dict.fromkeys(re.findall(r'type="radio" name="(\w+)"', page)))
        assert sorted(order) == sorted(ITEMS)
        orders.add(order)
    assert len(orders) >= 5  # by chance 1 in 3,628,800 to the fewer


def test_sending_a_form_twice_is_one_answer(site):
    ada = site.visitor()
    task(site, ada)
    data = send(ada, "demographics", gender="woman")
    ada.client.post("/surveys/demographics", data=data)
    surveys.keep(site.store, "demographics", data["id"], {"gender": "woman"})
    assert len(kept(site, "demographics")) == 1
    with pytest.raises(Refused):
        surveys.keep(site.store, "demographics", "x", {"gender": "woman"})


# ---------------------------------------------------------------- no way back


def test_answers_have_no_person_no_time_and_no_way_to_either(site):
    """redteam.md §13 row 19, §14 row 27: by the schema, by what is stored, and by the order of rows."""
    for table in (t.demographics, t.wellbeing):
        assert {c.name for c in table.columns} <= {"id", "answers", "comment", "month"} and not table.foreign_keys
    people = [site.visitor(f"Ada {i}") for i in range(6)]
    sent = []
    for who in people:
        task(site, who)
        sent.append(send(who, "demographics", gender="woman")["id"])
    rows = site.rows(sa.select(t.demographics))
    assert {row.id for row in rows} == set(sent) and {row.month for row in rows} == {
        time.strftime("%Y-%m", time.gmtime())
    }
    with site.store.read() as db:
        if site.store.sqlite:
            stored = [row.id for row in db.execute(sa.text("SELECT id FROM demographics"))]
            for table in ("demographics", "wellbeing"):
                with pytest.raises(sa.exc.OperationalError, match="no such column"):
                    db.execute(sa.text(f"SELECT rowid FROM {table}"))
        else:
            found = db.execute(sa.text("SELECT id, xmin::text AS x FROM demographics ORDER BY ctid")).all()
            stored = [row.id for row in found]
            assert len({row.x for row in found}) == 1
    assert stored == sorted(sent)
    for table in (t.once, t.audit, t.survey_offer):
        told = str(site.rows(sa.select(table)))
        assert not [one for one in sent if one in told] and "woman" not in told
    times = {row.at for row in site.rows(sa.select(t.survey_offer.c.at))}
    start = time.strptime(time.strftime("%Y-%m-01", time.gmtime()), "%Y-%m-%d")
    (at,) = times
    assert time.gmtime(at / 1e6)[:6] == start[:6]


# ---------------------------------------------------------------- what comes of it


def test_the_paper_s_means_give_its_subscales():
    """redteam.md §4.4, Table 2."""
    positive, negative = surveys.affect(TABLE_2)
    assert (round(positive, 3), round(negative, 3)) == (1.196, 0.238)
    assert surveys.affect({}) == (None, None)
    assert surveys.affect({"upset": 4, "afraid": "declined"}) == (None, 4)


def fill(site, month, negative, count):
    with site.store.write() as db:
        for _ in range(count):
            answers = dict.fromkeys(surveys.NEGATIVE, negative)
            db.execute(t.wellbeing.insert(), {"id": new_id(), "answers": answers, "comment": "", "month": month})


@pytest.mark.parametrize(
    ("months", "alarm"),
    [
        ([(0, 5), (0, 5)], False),
        ([(0, 5), (1, 5)], True),
        ([(1, 5), (1, 5)], False),
        ([(2, 5)], True),
        ([(0, 5), (4, 2)], False),  # too few to say, and to stay unknown
        ([(1, 5), (0, 5)], False),
    ],
)
def test_staff_hear_of_it_when_negative_feelings_rise(quick, months, alarm):
    for number, (negative, count) in enumerate(months, 1):
        fill(quick, f"2026-0{number}", negative, count)
    with quick.store.read() as db:
        found = surveys.alert(db)
        rows = surveys.wellbeing_by_month(db)
    assert [(r["month"], r["n"], r["positive"]) for r in rows] == [
        (f"2026-0{i}", count, None) for i, (_, count) in enumerate(months, 1)
    ]
    assert (found is not None) == alarm
    if alarm:
        assert found["month"] == f"2026-0{len(months)}" and found["negative"] == months[-1][0]
