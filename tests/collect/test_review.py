"""Review mode: nobody reads what they did not ask for, nobody their own, and three read each."""

from __future__ import annotations

import contextlib
import html
import json
import threading

import pytest
import sqlalchemy as sa
from attacks import attack
from talking import Site, script

from truing.collect import readers
from truing.collect import tables as t
from truing.collect.kappas import agreement
from truing.collect.store import new_id, now, set_setting
from truing.collect.tags import TAGS

ANSWERS = {"rating": 4, "intent": 0, "tags": [TAGS[0]], "comment": ""}


@pytest.fixture
def site(db, tmp_path):
    made = Site(db, [f"one={script(tmp_path / 'one.jsonl')}"], work=False)
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path, empty_file):
    """On SQLite, for what does not depend on the database."""
    (tmp_path / "truing.db").write_bytes(empty_file.read_bytes())
    made = Site(str(tmp_path / "truing.db"), [f"one={script(tmp_path / 'one.jsonl')}"], work=False)
    yield made
    made.close()


def reviewer(site, name="Rev", **more):
    return site.visitor(name, role="reviewer", consents=("review",), **more)


def following(who, **more):
    return who.post("/api/reviews/next", {}, **more)


def on(who, found, what, body=None, **more):
    return who.post(f"/api/reviews/{found['id']}/{what}", body or {}, **more)


def reads(who, **answers):
    """Take the next one to its end; the preview."""
    found = following(who)
    on(who, found, "proceed")
    on(who, found, "submit", ANSWERS | answers)
    return found


def watched(who):
    """Everything that a browser gets from now on."""
    seen, keep = [], who.client.request

    def watch(*args, **options):
        answer = keep(*args, **options)
        seen.append(answer.text + json.dumps(dict(answer.headers)))
        return answer

    who.client.request = watch
    return seen


# ---------------------------------------------------------------- consent before harm


def test_nothing_of_a_transcript_is_sent_before_proceed(site):
    """redteam.md §13 row 17, §14 row 15: all that the browser got until then holds the description and no more."""
    ada, rev = site.visitor(), reviewer(site)
    attack(
        site, ada.person, [("CANARYhuman", "CANARYreply"), ("CANARYmore", "CANARYend")], description="the description"
    )
    seen = watched(rev)
    rev.client.get("/")
    rev.client.get("/consent/review")
    page = rev.client.get("/review").text
    assert "the description" not in page
    found = following(rev)
    assert (found["phase"], found["description"]) == ("preview", "the description") and "turns" not in found
    rev.client.get("/review")
    following(rev)
    on(rev, found, "submit", ANSWERS, expect=409)
    assert not [text for text in seen if "CANARY" in text]
    opened = on(rev, found, "proceed")
    assert [(x["human"], x["reply"]) for x in opened["turns"]] == [
        ("CANARYhuman", "CANARYreply"),
        ("CANARYmore", "CANARYend"),
    ]
    assert "CANARY" not in str(site.rows(sa.select(t.once)))


def test_the_instructions_come_first_and_each_version_is_asked_again(quick):
    ada, rev = quick.visitor(), quick.visitor("Rev", role="reviewer", consents=())
    attack(quick, ada.person)
    assert rev.client.get("/review", follow_redirects=False).headers["location"] == "/consent/review"
    following(rev, expect=422)
    page = rev.client.get("/consent/review").text
    assert "WARNING" in page and "skip" in page
    version = page.split('name="version" value="')[1].split('"')[0]
    rev.client.post("/consent/review", data={"csrf": rev.csrf, "version": version})
    assert quick.rows(sa.select(t.consent.c.version).where(t.consent.c.person_id == rev.person)) == [(version,)]
    found = following(rev)
    with quick.store.write() as db:
        set_setting(db, "words", {"consent.review": "Other instructions"}, None)
    for what, body in (("proceed", {}), ("submit", ANSWERS)):
        on(rev, found, what, body, expect=422)
    on(rev, found, "skip")  # leaving needs nobody's consent


def test_a_reload_shows_the_same_preview_and_never_the_transcript_by_itself(quick):
    ada, rev = quick.visitor(), reviewer(quick)
    for _ in range(5):
        attack(quick, ada.person, [("CANARY", "CANARY")])
    first = following(rev)
    assert {following(rev)["id"] for _ in range(5)} == {first["id"]} and quick.count(t.assignment) == 1
    on(rev, first, "proceed")
    again = following(rev)
    assert (again["id"], again["phase"]) == (first["id"], "read") and "CANARY" not in json.dumps(again)
    assert on(rev, first, "proceed")["turns"]


def test_what_a_reviewer_gets_has_no_rating_score_model_or_other_answer(quick):
    """redteam.md §14 row 17: by the API's schema, and by all that is sent."""
    schema = quick.app.openapi()
    parts = schema["components"]["schemas"]
    allowed = {"id", "phase", "description", "progress", "care", "turns", "human", "reply", "tags"}
    allowed |= {"done", "size", "exposure", "break_every", "pad"}

    def names(node):
        if isinstance(node, dict):
            yield from node.get("properties", {})
            for value in node.values():
                yield from names(value)
            if "$ref" in node:
                yield from names(parts[node["$ref"].split("/")[-1]])
        elif isinstance(node, list):
            for value in node:
                yield from names(value)

    paths = [p for p in schema["paths"] if p.startswith(("/api/reviews", "/api/exclusions"))]
    assert len(paths) == 6
    for path in paths:
        found = set(names(schema["paths"][path]["post"]["responses"]["200"]))
        assert found and found <= allowed, (path, found - allowed)
        assert ("turns" in found) == path.endswith("/proceed")
    ada, one, two = quick.visitor(), reviewer(quick, "One"), reviewer(quick, "Two")
    (arm,) = quick.rows(sa.select(t.arm))
    attack(quick, ada.person, success=3, arm=arm.id)
    reads(one, rating=1, tags=[TAGS[7]], comment="one's comment")
    page = html.unescape(two.client.get("/review").text)
    assert 'id="review"' in page
    for word in ("one's comment", "the author's comment", arm.id, ada.person):
        assert word not in page
    seen = watched(two)
    found = following(two)
    for answer in (found, on(two, found, "proceed"), on(two, found, "submit", ANSWERS)):
        assert set(answer) <= allowed
    for word in ("one's comment", "the author's comment", TAGS[7], arm.id, '"success"', '"rating"', ada.person):
        assert not [text for text in seen if word in text], word


# ---------------------------------------------------------------- who reads what


def test_three_read_each_and_never_its_author(site):
    """redteam.md §14 row 18."""
    ada = site.visitor("Ada", role="admin", consents=("review", "redteam"))
    one = attack(site, ada.person)
    assert following(ada)["phase"] == "none"
    revs = [reviewer(site, f"Rev {i}") for i in range(4)]
    offers = [following(rev) for rev in revs]
    assert [x["phase"] for x in offers] == ["preview"] * 3 + ["none"]
    for rev, found in zip(revs[:3], offers, strict=False):
        on(rev, found, "proceed")
        on(rev, found, "submit", ANSWERS)
        assert following(rev)["phase"] == "none"  # nobody reads one twice
    assert following(revs[3])["phase"] == "none" and site.count(t.review) == 3
    row = {"id": new_id(), "conversation_id": one, "person_id": ada.person, "at": now()}
    for author in (ada.person, revs[3].person):  # the database refuses it, whoever is said to be the author
        with pytest.raises(sa.exc.IntegrityError), site.store.write() as db:
            db.execute(t.assignment.insert(), row | {"author_id": author})


def test_an_author_who_became_a_reviewer_does_not_get_their_own(quick):
    ada = quick.visitor()
    attack(quick, ada.person)
    with quick.store.write() as db:
        db.execute(t.person.update().values(role="reviewer"))
    bob = quick.visitor("Bob")
    other = attack(quick, bob.person)
    page = ada.client.get("/consent/review").text
    ada.client.post(
        "/consent/review", data={"csrf": ada.csrf, "version": page.split('name="version" value="')[1].split('"')[0]}
    )
    assert following(ada)["phase"] == "preview"
    assert quick.rows(sa.select(t.assignment.c.conversation_id)) == [(other,)]


def test_three_at_the_same_moment_are_no_four(site, monkeypatch):
    ada = site.visitor()
    attack(site, ada.person)
    revs = [reviewer(site, f"Rev {i}") for i in range(6)]
    found, all_have_looked, waiting = [], threading.Barrier(6), readers._waiting

    def together(*args):
        offers = waiting(*args)
        with contextlib.suppress(threading.BrokenBarrierError):  # SQLite has one writer at a time
            all_have_looked.wait(2.0 if site.store.sqlite else 30.0)
        return offers

    monkeypatch.setattr(readers, "_waiting", together)
    threads = [threading.Thread(target=lambda rev=rev: found.append(following(rev)["phase"])) for rev in revs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["none"] * 3 + ["preview"] * 3


def test_skipping_costs_nothing_and_the_item_goes_to_another(site):
    """redteam.md §14 row 16: pay and the order of the queue are as before."""
    with site.store.write() as db:
        set_setting(db, "pay", {"review": {"by": "time", "cents": 3600}}, None)
    ada = site.visitor()
    items = [attack(site, ada.person, description=f"item {i}") for i in range(4)]
    skipping, steady = reviewer(site, "Skipping"), reviewer(site, "Steady")
    order = [f"item {items.index(i)}" for i in sorted(items)]
    pays = sa.select(t.pay.c.cents).where(t.pay.c.person_id == skipping.person)
    first = following(skipping)
    assert first["description"] == order[0] and first["progress"] == {"done": 0, "size": 5}
    answer = on(skipping, first, "skip")
    assert answer["progress"] == {"done": 0, "size": 5} and answer["phase"] == "skipped" and not answer["description"]
    assert site.rows(pays) == []
    assert following(skipping)["description"] == order[1]  # the next in line, not the end of it
    assert following(steady)["description"] in (order[0], order[1])
    others = [reviewer(site, f"Rev {i}") for i in range(3)]
    got = []
    for rev in (steady, *others):
        while (found := following(rev))["phase"] != "none":
            got.append((rev.person, found["description"]))
            on(rev, found, "proceed")
            on(rev, found, "submit", ANSWERS)
    assert sum(what == order[0] for _, what in got) == 3
    second = following(skipping)
    on(skipping, second, "proceed")
    with site.store.write() as db:  # time with what was skipped is paid as any other
        db.execute(
            t.assignment.update().where(t.assignment.c.person_id == skipping.person).values(at=now() - 100 * 10**6)
        )
    on(skipping, second, "submit", ANSWERS)
    ((cents,),) = site.rows(pays)
    assert 150 <= cents <= 250  # one of the two alone is 100


def test_leaving_in_the_middle_and_stopping_free_the_item_and_pay_the_time(site):
    with site.store.write() as db:
        set_setting(db, "pay", {"review": {"by": "time", "cents": 3600}}, None)
    ada, rev = site.visitor(), reviewer(site)
    for _ in range(3):
        attack(site, ada.person)
    first = following(rev)
    on(rev, first, "proceed")
    assert on(rev, first, "skip")["phase"] == "skipped" == on(rev, first, "skip")["phase"]
    on(rev, first, "proceed", expect=409)
    on(rev, first, "submit", ANSWERS, expect=409)
    second = following(rev)
    with site.store.write() as db:
        db.execute(t.assignment.update().where(t.assignment.c.id == second["id"]).values(at=now() - 60 * 10**6))
    assert rev.post("/api/reviews/stop", {}) == {"tags": [], "pad": rev.post("/api/reviews/stop", {})["pad"]}
    assert site.count(t.leaving) == 1 and site.count(t.decision) == 2
    (row,) = site.rows(sa.select(t.pay))
    assert 60 <= row.cents <= 75
    for i in range(3):
        other = reviewer(site, f"Other {i}")
        assert {reads(other)["phase"] for _ in range(3)} == {"preview"}


def test_an_offer_that_nobody_answers_goes_to_another_after_a_day(quick):
    ada, slow = quick.visitor(), reviewer(quick, "Slow")
    attack(quick, ada.person)
    for i in range(2):
        reads(reviewer(quick, f"Rev {i}"))
    found = following(slow)
    other = reviewer(quick, "Other")
    assert following(other)["phase"] == "none"
    with quick.store.write() as db:
        db.execute(t.assignment.update().values(at=now() - 25 * 3600 * 10**6))
    assert following(other)["phase"] == "preview"
    assert following(slow)["phase"] == "none"
    on(slow, found, "proceed", expect=409)


@pytest.mark.parametrize("what", ["proceed", "submit"])
def test_who_takes_more_than_a_day_is_no_fourth_reader(site, what):
    """Others were asked meanwhile; while their place is free, even a late answer counts."""
    ada, slow, late = site.visitor(), reviewer(site, "Slow"), reviewer(site, "Late")
    one = attack(site, ada.person)
    attack(site, ada.person)
    with site.store.write() as db:
        set_setting(db, readers.SAMPLE, {"conversations": [one]}, None)
    found, other = following(slow), following(late)
    if what == "submit":
        on(slow, found, "proceed")
    on(late, other, "proceed")
    ago = now() - 25 * 3600 * 10**6
    with site.store.write() as db:
        db.execute(t.assignment.update().values(at=ago))
        db.execute(t.decision.update().values(at=ago))
    reads(reviewer(site, "One"))
    reads(reviewer(site, "Two"))
    on(late, other, "submit", ANSWERS)  # the third
    on(slow, found, what, ANSWERS if what == "submit" else {}, expect=409)
    assert site.count(t.review) == 3
    with site.store.write() as db:
        set_setting(db, readers.SAMPLE, None, None)
    assert following(slow)["id"] not in (None, found["id"])


def test_what_was_imported_is_not_offered_to_reviewers(quick):
    """Nobody described it, so that nobody could decide whether to read it."""
    ada, rev = quick.visitor(), reviewer(quick)
    attack(quick, ada.person, seed=t.IMPORTED)
    assert following(rev)["phase"] == "none"


def test_only_finished_conversations_that_may_be_read_are_offered(site):
    ada, rev = site.visitor(), reviewer(site)
    attack(site, ada.person, stopped=True, success=None)
    attack(site, ada.person, texts=())
    attack(site, ada.person, mode="helpful")
    gone = attack(site, ada.person)
    with site.store.write() as db:
        db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": gone, "by": ada.person, "at": now()})
    assert following(rev)["phase"] == "none"


def test_a_conversation_withdrawn_in_the_middle_of_a_review_is_gone(site):
    """redteam.md §14 row 28."""
    ada, rev = site.visitor(), reviewer(site)
    one = attack(site, ada.person, [("CANARY", "CANARY")], description="CANARY")
    attack(site, ada.person, description="another")
    with site.store.write() as db:
        set_setting(db, readers.SAMPLE, {"conversations": [one]}, None)
    found = following(rev)
    on(rev, found, "proceed")
    ada.id = one
    ada.act("withdraw", {})
    with site.store.write() as db:
        set_setting(db, readers.SAMPLE, None, None)
    for what, body in (("proceed", {}), ("submit", ANSWERS), ("skip", {})):
        assert "CANARY" not in json.dumps(on(rev, found, what, body, expect=404))
    assert following(rev)["description"] == "another"
    key = new_id()
    again = rev.post(f"/api/reviews/{found['id']}/proceed", {}, key, 404)
    assert "CANARY" not in json.dumps(again)


def test_offers_are_of_the_person_alone(quick):
    ada, rev, other = quick.visitor(), reviewer(quick), reviewer(quick, "Other")
    attack(quick, ada.person)
    found = following(rev)
    for what, body in (("proceed", {}), ("submit", ANSWERS), ("skip", {})):
        on(other, found, what, body, expect=404)
    worker = quick.visitor("Worker")
    worker.post("/api/reviews/next", {}, expect=403)
    assert worker.client.get("/review").status_code == 403
    closed = quick.visitor("Closed", role="reviewer", consents=("review",), modes=())
    closed.post("/api/reviews/next", {}, expect=403)
    assert closed.client.get("/review").status_code == 403


# ---------------------------------------------------------------- topics to be spared


def test_a_transcript_of_a_topic_to_be_spared_is_not_offered(site):
    """By the tags of its plan, and of earlier reviews."""
    ada, rev, other = site.visitor(), reviewer(site), reviewer(site, "Other")
    attack(site, ada.person, description="planned", tags=[TAGS[17]])
    assert rev.post("/api/exclusions", {"tags": [TAGS[17], TAGS[3]]})["tags"] == [TAGS[17], TAGS[3]]
    assert following(rev)["phase"] == "none"
    assert following(other)["description"] == "planned"
    attack(site, ada.person, description="told")
    on(other, following(other), "skip")
    reads(other, tags=[TAGS[8], TAGS[3]])
    assert following(rev)["phase"] == "none"
    rev.post("/api/exclusions", {"tags": [TAGS[17]]})
    assert following(rev)["description"] == "told"
    assert rev.post("/api/exclusions", {"tags": [TAGS[8]]})["tags"] == [TAGS[8]]  # and while it is on the screen
    assert following(rev)["description"] == "planned"
    rev.post("/api/exclusions", {"tags": ["no such tag"]}, expect=422)
    assert site.count(t.exclusion) == 3
    page = rev.client.get("/review").text
    assert "Weapons" in page and "Substance abuse &amp; banned substances" in page


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": list(TAGS[:3])},
        {"tags": []},
        {"tags": [TAGS[0], TAGS[0]]},
        {"tags": ["none of these"]},
        {"rating": 5},
        {"rating": -1},
        {"intent": 5},
        {"rating": None},
        {"rating": "3"},
    ],
)
def test_answers_that_cannot_be_are_refused(quick, wrong):
    """redteam.md §13 row 17: a third tag is refused."""
    ada, rev = quick.visitor(), reviewer(quick)
    attack(quick, ada.person)
    found = following(rev)
    on(rev, found, "proceed")
    on(rev, found, "submit", ANSWERS | wrong, expect=422)
    assert quick.count(t.review) == 0
    for missing in ("rating", "intent", "tags"):
        on(rev, found, "submit", {k: v for k, v in ANSWERS.items() if k != missing}, expect=422)
    assert on(rev, found, "submit", ANSWERS | {"tags": list(TAGS[:2])})["phase"] == "reviewed"


def test_answers_are_stored_once(site):
    ada, rev = site.visitor(), reviewer(site)
    attack(site, ada.person)
    found, key = following(rev), new_id()
    on(rev, found, "proceed")
    body = {"rating": 4, "intent": 1, "tags": [TAGS[1], TAGS[19]], "comment": " said\x00 "}
    on(rev, found, "submit", body, key=key)
    on(rev, found, "submit", body, key=key)
    on(rev, found, "submit", body, expect=409)
    (row,) = site.rows(sa.select(t.review))
    assert (row.rating, row.intent, row.tags, row.comment) == (4, 1, [TAGS[1], TAGS[19]], "said\ufffd")
    assert following(rev)["progress"] == {"done": 1, "size": 5}


def test_tags_are_the_paper_s_twenty_until_the_administrator_edits_them(quick):
    assert len(TAGS) == len(set(TAGS)) == 20
    ada, rev = quick.visitor(), reviewer(quick)
    attack(quick, ada.person)
    found = following(rev)
    on(rev, found, "proceed")
    with quick.store.write() as db:
        set_setting(db, "tags", ["<b>mine</b>", "yours"], None)
    assert "&lt;b&gt;mine&lt;/b&gt;" in rev.client.get("/review").text
    on(rev, found, "submit", ANSWERS, expect=422)
    on(rev, found, "submit", ANSWERS | {"tags": ["<b>mine</b>"]})


def test_hostile_descriptions_and_transcripts_travel_as_data(quick):
    """redteam.md §14 row 14."""
    ada, rev = quick.visitor(), reviewer(quick)
    bad = '<script>alert(1)</script>\u202e"><img src=x onerror=alert(1)>'
    attack(quick, ada.person, [(bad, bad)], description=bad)
    found = following(rev)
    assert found["description"] == bad
    assert on(rev, found, "proceed")["turns"] == [{"human": bad, "reply": bad}]
    answer = rev.client.post(
        f"/api/reviews/{found['id']}/proceed",
        json={},
        headers={"Idempotency-Key": new_id(), "X-CSRF-Token": rev.csrf},
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff" and "script-src 'self'" in str(answer.headers)


# ---------------------------------------------------------------- sample, exposure, agreement


def test_a_sample_is_drawn_of_each_arm_and_only_it_is_offered(site):
    """redteam.md §13 row 17: so many of each of some arms, at random, the same again from the seed."""
    ada, rev = site.visitor(), reviewer(site)
    for arm in ("p" * 32, "q" * 32):
        for _ in range(6):
            attack(site, ada.person, arm=arm)
    attack(site, ada.person, arm="r" * 32)
    counts = {"p" * 32: 3, "q" * 32: 50}
    with site.store.write() as db:
        drawn = readers.sample(db, counts, 1, None)
        assert readers.sample(db, counts, 1, None) == drawn
        arms = {row.id: row.arms[0] for row in db.execute(sa.select(t.conversation.c.id, t.conversation.c.arms))}
    assert sorted(arms[one] for one in drawn) == ["p" * 32] * 3 + ["q" * 32] * 6
    for _ in range(9):
        reads(rev)
    assert following(rev)["phase"] == "none"
    assert set(site.rows(sa.select(t.assignment.c.conversation_id))) == {(one,) for one in drawn}


def test_reading_transcripts_counts_as_exposure(quick):
    ada, rev = quick.visitor(), reviewer(quick)
    attack(quick, ada.person, [("a", "b"), ("c", "d")])
    found = following(rev)
    assert found["care"]["exposure"] == 0
    assert on(rev, found, "proceed")["care"]["exposure"] == 2


def judged(site, table):
    """Conversations with an author's rating (first column) and reviewers' ratings."""
    ada = site.visitor()
    people = [reviewer(site, f"Rev {i}").person for i in range(max(len(row) for row in table) - 1)]
    ids = []
    for own, *ratings in table:
        ids.append(attack(site, ada.person, success=own))
        with site.store.write() as db:
            for person, rating in zip(people, ratings, strict=False):
                row = {"id": new_id(), "conversation_id": ids[-1], "author_id": ada.person, "person_id": person}
                db.execute(t.assignment.insert(), row | {"at": now()})
                db.execute(t.decision.insert(), {"assignment_id": row["id"], "proceed": True, "at": now()})
                answers = {"assignment_id": row["id"], "rating": rating, "intent": 0, "tags": [], "at": now()}
                db.execute(t.review.insert(), answers)
    return ada, ids


def test_agreement_is_over_transcripts_with_all_their_reviews(site):
    """redteam.md §13 row 18: four raters and three, five points and two; missing raters, withdrawn and unrated."""
    table = [[4, 4, 4, 3], [0, 0, 1, 0], [2, 3, 2, 2], [0, 4, 4, 4], [1, 1, 1, 1]]
    more = [[4, 4], [0, 1, 2], [None, 0, 0, 4], [4, 0, 4, 0]]
    ada, ids = judged(site, table + more)
    ada.id = ids[-1]
    ada.act("withdraw", {})
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    with site.store.read() as db:
        found = agreement(db, n_boot=100)
    three = [row[1:] for row in table] + [[0, 0, 4]]
    for name, rows in (("all", table), ("reviewers", three)):
        assert found[f"{name}/likert"].n == len(rows)
        assert found[f"{name}/likert"].value == pytest.approx(fleiss_kappa(aggregate_raters(rows)[0]))
        binary = [[int(x >= 3) for x in row] for row in rows]
        assert found[f"{name}/binary"].value == pytest.approx(fleiss_kappa(aggregate_raters(binary)[0]))


def test_undefined_agreement_is_null(quick):
    with quick.store.read() as db:
        empty = agreement(db)
    assert {x.value for x in empty.values()} == {None} and all(x.note for x in empty.values())
    judged(quick, [[0, 1, 2, 1], [1, 0, 2, 2]])
    with quick.store.read() as db:
        found = agreement(db, n_boot=50)
    assert found["all/binary"].value is None and found["all/likert"].value is not None
    json.dumps({name: x.as_dict() for name, x in found.items()}, allow_nan=False)
