"""Red-team mode: a plan, the more harmful reply, three answers, and a way out on every screen."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import sqlalchemy as sa

from truing.collect import pay
from truing.collect import tables as t
from truing.collect.care import exposure
from truing.collect.erasing import erase
from truing.collect.exports import Wanted, make_export
from truing.collect.rules import Rules
from truing.collect.store import digest, new_id, now, readable, set_setting
from truing.collect.tags import TAGS
from truing.collect.web import STATIC
from truing.collect.words import SHIPPED
from truing.data.comparisons import load_comparisons

ANSWERS = {"success": 4, "harmfulness": 0, "actionability": 2}


def begin(ada, plan="I'm trying to get a recipe"):
    ada.begin("redteam")
    return ada.act("plan", {"text": plan, "tags": []})


def whole(ada, turns=1, **answers):
    """A whole conversation."""
    begin(ada)
    ada.talk(["Hello"] * turns)
    return ada.act("finish", ANSWERS | answers)


def paid(site):
    return [(row.cents, row.why) for row in site.rows(sa.select(t.pay).order_by(t.pay.c.at))]


def set_words(site, key, value):
    with site.store.write() as db:
        set_setting(db, key, value, None)


# ---------------------------------------------------------------- consent


def test_the_instructions_come_first_and_each_version_is_asked_again(quick):
    """redteam.md §13 row 1: the chat leads to the instructions; what is stored is the hash of the page's text."""
    ada = quick.visitor(consents=())
    assert ada.client.get("/redteam", follow_redirects=False).headers["location"] == "/consent/redteam"
    ada.post("/api/tasks", {"mode": "redteam"}, expect=422)
    page = ada.client.get("/consent/redteam").text
    for told in ("WARNING", "MORE HARMFUL", "Stop now", "published without your name", "voluntary"):
        assert told in page
    version = re.search(r'name="version" value="(\w+)"', page)[1]
    assert version == digest(SHIPPED["consent.redteam"])
    ada.client.post("/consent/redteam", data={"csrf": ada.csrf, "version": version})
    assert quick.rows(sa.select(t.consent.c.page, t.consent.c.version)) == [("redteam", version)]
    assert ada.client.get("/redteam").status_code == 200
    begin(ada)
    set_words(quick, "words", {"consent.redteam": "# Other instructions"})
    assert ada.client.get("/redteam", follow_redirects=False).headers["location"] == "/consent/redteam"
    assert ada.look()["phase"] == "consent"
    ada.act("turns", {"turn": 1, "text": "x"}, expect=422)
    assert ada.act("stop", {})["phase"] == "done"  # leaving needs nobody's consent


# ---------------------------------------------------------------- plan and description


def test_the_plan_comes_first_is_locked_and_stays_beside_the_final_description(site):
    """redteam.md §13 row 3."""
    ada = site.visitor()
    assert ada.begin("redteam")["phase"] == "plan"
    ada.act("turns", {"turn": 1, "text": "x"}, expect=409)
    ada.act("finish", ANSWERS, expect=409)
    ada.act("plan", {"text": " \n", "tags": []}, expect=422)
    ada.act("plan", {"text": "x" * 2001, "tags": []}, expect=422)
    ada.act("plan", {"text": "p", "tags": list(TAGS[:3])}, expect=422)
    ada.act("plan", {"text": "p", "tags": ["no such tag"]}, expect=422)
    screen = ada.act("plan", {"text": " the plan ", "tags": [TAGS[5]]})
    assert (screen["phase"], screen["plan"]) == ("write", "the plan")
    ada.act("plan", {"text": "another", "tags": []}, expect=409)
    ada.talk(["Hello"])
    assert ada.look()["plan"] == "the plan"
    ada.act("finish", ANSWERS | {"description": "what came of it"})
    assert site.rows(sa.select(t.plan.c.text, t.plan.c.tags)) == [("the plan", [TAGS[5]])]
    assert site.rows(sa.select(t.ending.c.description)) == [("what came of it",)]


def test_without_a_final_description_the_plan_is_it(quick):
    ada = quick.visitor()
    whole(ada, description="  ")
    whole(ada)
    assert quick.rows(sa.select(t.ending.c.description)) == [("I'm trying to get a recipe",)] * 2


# ---------------------------------------------------------------- turns and answers


def test_four_turns_are_suggested_and_neither_fewer_nor_more_are_refused(quick):
    ada = quick.visitor()
    assert whole(ada, turns=1)["phase"] == "done"
    begin(ada)
    ada.talk(["Hello"] * 6)
    screen = ada.look()
    assert (screen["suggested_turns"], screen["turn"], screen["phase"]) == (4, 7, "write")
    ada.act("finish", ANSWERS)
    assert ada.look()["task"] == {"done": 2, "of": 2, "size": 5}


@pytest.mark.parametrize("missing", ["success", "harmfulness", "actionability"])
def test_a_missing_answer_is_refused(quick, missing):
    ada = quick.visitor()
    begin(ada)
    ada.talk(["Hello"])
    ada.act("finish", {k: v for k, v in ANSWERS.items() if k != missing}, expect=422)
    ada.act("finish", ANSWERS | {missing: 5}, expect=422)
    ada.act("finish", ANSWERS | {missing: -1}, expect=422)
    assert ada.look()["phase"] == "write" and quick.count(t.ending) == 0


def test_ratings_are_stored_from_0_to_4_and_the_database_refuses_others(site):
    """redteam.md §14 row 2; that the screen shows 1 to 5 is the browser's test."""
    ada = site.visitor()
    whole(ada)
    assert site.rows(sa.select(t.ending.c.success, t.ending.c.harmfulness, t.ending.c.actionability)) == [(4, 0, 2)]
    for name in ANSWERS:
        with pytest.raises(sa.exc.IntegrityError), site.store.write() as db:
            db.execute(t.ending.update().values(**{name: 5}))


def test_the_screen_shows_a_rating_one_higher_than_it_sends():
    """The one function that draws ratings, in every room (redteam.md §14 row 2)."""
    code = (STATIC / "talk.js").read_text()
    drawn = code[code.index("export function rating(") :].split("\nexport ")[0]
    assert "[0, 1, 2, 3, 4]" in drawn and "value: String(value)" in drawn and "String(value + 1)" in drawn
    for file in ("redteam.js", "review.js"):
        assert "rating(" in (STATIC / file).read_text()


def test_the_more_harmful_reply_is_asked_for_goes_on_into_the_context_and_is_exported_as_rejected(quick, tmp_path):
    """redteam.md §14 row 4, from the click to the file."""
    ada = quick.visitor()
    begin(ada)
    screen = ada.say("Hello", 1)
    ada.choose(1, "b", 4)
    assert ada.look()["turns"][0]["reply"] == screen["candidates"][1]["text"]
    ada.act("finish", ANSWERS)
    (pair,) = load_comparisons(make_export(quick.store, Wanted("harmless"), tmp_path).path)
    assert [pair.chosen, pair.rejected] == [c["text"] for c in screen["candidates"]]
    page = ada.client.get("/redteam").text
    assert "Which reply is MORE HARMFUL?" in page and "is more harmful: {how}" in page


def test_replies_never_stream(quick):
    ada = quick.visitor()
    begin(ada)
    ada.act("turns", {"turn": 1, "text": "Hello"})
    while (screen := ada.look())["phase"] == "wait":
        assert screen["candidates"] == []
    assert [c["partial"] for c in screen["candidates"]] == [False, False]
    work = quick.desk.partials(ada.id, 1)
    assert work is None or not any(work.texts)


# ---------------------------------------------------------------- tasks and pay


@pytest.mark.parametrize(("by", "cents"), [("task", 900), ("time", 1000)])
def test_five_conversations_are_one_task_and_one_row_of_pay(site, by, cents):
    """redteam.md §13 row 6."""
    set_words(site, "pay", {"redteam": {"by": by, "cents": cents}})
    ada = site.visitor()
    for number in range(1, 6):
        begin(ada)
        ada.talk(["Hello"])
        if by == "time":  # two minutes of work, and a lunch of which five minutes count
            with site.store.write() as db:
                one = t.conversation.c.id == ada.id
                lunch, start = now() - 3600 * 10**6, now() - 3720 * 10**6
                db.execute(t.conversation.update().where(one).values(created_at=start))
                db.execute(t.plan.update().where(t.plan.c.conversation_id == ada.id).values(at=lunch))
        assert paid(site) == []
        assert ada.act("finish", ANSWERS)["task"] == {"done": number, "of": number, "size": 5}
    (row,) = site.rows(sa.select(t.pay))
    assert site.count(t.task) == 1 and row.person_id == ada.person and row.currency == "USD" and row.by is None
    expected = 900 if by == "task" else 5 * 1000 * (120 + 300) // 3600
    assert abs(row.cents - expected) <= (0 if by == "task" else 30) and row.cents >= expected
    assert row.task_id == site.rows(sa.select(t.task.c.id))[0].id
    begin(ada)
    assert ada.look()["task"] == {"done": 0, "of": 1, "size": 5} and site.count(t.task) == 2


def test_who_is_not_paid_through_the_app_has_no_rows(quick):
    ada = quick.visitor()
    for _ in range(5):
        whole(ada)
    assert paid(quick) == []


def test_work_is_counted_without_long_pauses():
    assert pay.worked([0, 60_000_000, 3600_000_000]) == 60 + 300
    assert pay.worked([]) == pay.worked([5]) == 0


# ---------------------------------------------------------------- stop, flag, withdraw


@pytest.mark.parametrize("phase", ["plan", "write", "wait", "choose", "later", "end"])
def test_stopping_works_on_every_screen_and_loses_nothing(site, phase):
    """redteam.md §13 row 8, hh.md §19 row 28: one click at any turn; all that was said is kept, and paid."""
    set_words(site, "pay", {"redteam": {"by": "task", "cents": 1000}})
    ada = site.visitor()
    ada.begin("redteam")
    if phase != "plan":
        ada.act("plan", {"text": "p", "tags": []})
    if phase == "wait":
        site.desk.stop()
    if phase in ("wait", "choose", "later", "end"):
        ada.act("turns", {"turn": 1, "text": "Hello"})
    if phase in ("choose", "later", "end"):
        ada.until("choose")
    if phase in ("later", "end"):
        ada.choose(1)
    if phase == "later":
        ada.say("More", 2)
    before = {table.name: site.count(table) for table in (t.plan, t.message, t.choice)}
    key = new_id()
    screens = [ada.act("stop", {}, key), ada.act("stop", {}, key), ada.act("stop", {})]  # again, and from another tab
    assert {s["phase"] for s in screens} == {"done"} and screens[0]["stopped"]
    assert screens[0]["task"] == {"done": 1, "of": 1, "size": 5}
    (ending,) = site.rows(sa.select(t.ending))
    assert ending.stopped and ending.success is None and ending.comment == ""
    after = {table.name: site.count(table) for table in (t.plan, t.message, t.choice)}
    assert all(after[name] >= before[name] for name in before)
    assert paid(site) == [(200, "redteam: 1 of 5 conversations, by task")]
    ada.act("turns", {"turn": 1, "text": "x"}, expect=409)
    ada.act("finish", ANSWERS, expect=409)


def test_a_stop_in_the_middle_of_a_task_changes_nothing_of_its_pay(quick):
    set_words(quick, "pay", {"redteam": {"by": "task", "cents": 1001, "currency": "EUR"}})
    ada = quick.visitor()
    whole(ada)
    begin(ada)
    ada.act("stop", {})
    assert sum(cents for cents, _ in paid(quick)) == 400
    for _ in range(3):
        whole(ada)
    assert sum(cents for cents, _ in paid(quick)) == 1001 and quick.count(t.task) == 1


def test_finishing_before_any_choice_is_stopping_and_is_paid_like_it(quick):
    set_words(quick, "pay", {"redteam": {"by": "task", "cents": 1000}})
    ada = quick.visitor()
    begin(ada)
    assert ada.act("finish", {})["stopped"] and paid(quick) == [(200, "redteam: 1 of 5 conversations, by task")]


def test_every_screen_has_stop_now_and_help_that_the_administrator_can_edit(quick):
    ada, rev = quick.visitor(), quick.visitor("Rev", role="reviewer", consents=("review",))
    for who, path in ((ada, "/redteam"), (rev, "/review")):
        page = who.client.get(path).text
        assert 'id="stop"' in page and "Stop now" in page and "findahelpline.com" in page
    set_words(quick, "words", {"care.help": "Call <b>Grace</b>: 555"})
    for who, path in ((ada, "/redteam"), (rev, "/review")):
        page = who.client.get(path).text
        assert "Call &lt;b&gt;Grace&lt;/b&gt;: 555" in page and "findahelpline" not in page


def test_flags_are_kept_with_the_reply_that_they_are_about(quick):
    ada, eve = quick.visitor(), quick.visitor("Eve")
    begin(ada)
    ada.act("flag", {"why": "the plan page is odd"})
    ada.act("flag", {"why": "x", "key": "a"}, expect=422)
    ada.say("Hello", 1)
    screen = ada.act("flag", {"why": "canary", "key": "b"})
    assert screen["flags"] == 2 and "canary" not in json.dumps(screen)
    rows = quick.rows(sa.select(t.flag).order_by(t.flag.c.at))
    assert [(r.why, r.message_id is None, r.person_id) for r in rows] == [
        ("the plan page is odd", True, ada.person),
        ("canary", False, ada.person),
    ]
    ada.act("stop", {})
    ada.act("flag", {"why": "afterwards"})
    eve.id = ada.id
    for what in ("flag", "stop", "withdraw"):
        eve.act(what, {"why": "x"} if what == "flag" else {}, expect=404)


def test_nothing_is_said_in_what_was_erased(quick):
    ada = quick.visitor()
    begin(ada)
    erase(quick.store, [ada.id], by="test", why="test")
    ada.act("flag", {"why": "canary"}, expect=422)
    assert ada.act("stop", {})["phase"] == ada.act("withdraw", {})["phase"] == "withdrawn"
    assert quick.count(t.flag) == 0 and quick.count(t.ending) == 1


def test_who_may_not_do_a_mode_any_more_ends_there_and_may_still_stop(quick):
    ada = quick.visitor()
    begin(ada)
    ada.say("Hello", 1)
    with quick.store.write() as db:
        db.execute(t.person.update().where(t.person.c.id == ada.person).values(modes=["helpful"]))
    ada.act("choices", {"turn": 1, "pick": "a", "strength": 3}, expect=403)
    ada.act("flag", {"why": "x"})
    assert ada.act("stop", {})["phase"] == "done"


@pytest.mark.parametrize("finished", [True, False])
def test_a_withdrawn_conversation_is_hidden_at_once_and_stays_paid(site, finished):
    """redteam.md §13 row 8, §14 row 28."""
    set_words(site, "pay", {"redteam": {"by": "task", "cents": 1000}})
    ada = site.visitor()
    begin(ada, "canary plan")
    ada.talk(["canary text"])
    if finished:
        ada.act("finish", ANSWERS)
    with site.store.read() as db:
        query = sa.select(t.conversation.c.id).where(readable())
        assert db.execute(query).scalars().all() == [ada.id]
    assert "canary plan" in ada.client.get("/mine").text
    screen = ada.act("withdraw", {})
    assert screen["phase"] == "withdrawn" and "canary" not in json.dumps(screen)
    assert "canary" not in json.dumps(ada.act("withdraw", {})) and site.count(t.withdrawal) == 1
    with site.store.read() as db:
        assert db.execute(query).scalars().all() == []
    assert "canary" not in ada.client.get("/mine").text
    assert ada.begin("redteam")["task"] == {"done": 1, "of": 2, "size": 5}  # it still counts
    ada.act("stop", {})
    assert sum(cents for cents, _ in paid(site)) == 400
    audit = site.rows(sa.select(t.audit).where(t.audit.c.action == "withdrawn"))
    assert len(audit) == 1 and "canary" not in str(audit)


def test_other_modes_can_be_withdrawn_too(quick):
    ada = quick.visitor()
    ada.begin("helpful")
    ada.talk(["Hello"])
    assert ada.act("withdraw", {})["phase"] == "withdrawn"
    assert ada.begin("helpful")["phase"] == "write"
    assert all('href="/mine"' in ada.client.get(path).text for path in ("/chat", "/rank", "/redteam"))


# ---------------------------------------------------------------- exposure


def test_exposure_counts_replies_that_were_shown_and_no_others(quick):
    ada = quick.visitor()
    ada.begin("helpful")
    ada.talk(["Hello"])
    begin(ada)
    assert ada.look()["care"] == {"exposure": 0, "break_every": 20}
    assert ada.say("Hello", 1)["care"]["exposure"] == 2
    set_words(quick, "rules", {"break_every": 3})
    ada.choose(1)
    assert ada.say("More", 2)["care"] == {"exposure": 4, "break_every": 3}
    with quick.store.write() as db:  # replies that are held back say nothing of being there
        held = sa.and_(t.job.c.conversation_id == ada.id, t.job.c.turn == 2)
        db.execute(t.job.update().where(held).values(show_at=now() + 10**9))
    assert ada.look()["care"]["exposure"] == 2
    with quick.store.write() as db:
        db.execute(t.message.update().values(at=now() - 25 * 3600 * 10**6))
    assert ada.look()["care"]["exposure"] == 0


def test_rules_are_the_administrators(quick):
    with quick.store.write() as db:
        assert Rules.of(db) == Rules()
        set_setting(db, "rules", {"reviewers": 5, "break_every": 0, "suggested_turns": 9, "unknown": 9}, None)
        assert Rules.of(db) == Rules(reviewers=5, break_every=1, suggested_turns=9)
        assert exposure(db, "nobody", now()) == 0


# ---------------------------------------------------------------- hostile text

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\u202etxt.exe", "{{7*7}}", "</textarea><b>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(quick, text):
    """redteam.md §14 row 14: pages escape it; screens are JSON that the page sets as text."""
    ada = quick.visitor()
    begin(ada, text)
    page = ada.client.get("/mine").text
    assert "<script>alert" not in page and "<img" not in page and "</textarea><b>" not in page
    if text.startswith("\u202e"):  # made visible; and isolated, so that nothing turns what is around it
        assert "\u202e" not in page and "\ufffdtxt.exe" in page
        assert '<p class="said" dir="auto">' in page and "unicode-bidi: isolate" in (STATIC / "app.css").read_text()
    answer = ada.client.get(f"/api/conversations/{ada.id}", params={"wait": 0})
    assert answer.headers["content-type"] == "application/json" and answer.json()["plan"] == text


def test_no_script_writes_markup():
    for path in STATIC.glob("*.js"):
        code = path.read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in code, f"{path.name} uses {sink}"


def test_every_word_that_scripts_ask_for_is_there():
    for path, modes in (
        (STATIC / "redteam.js", ("redteam",)),
        (STATIC / "care.js", ("",)),
        (STATIC / "review.js", ("review",)),
    ):
        asked = re.findall(r'(?:word\(|words\[|button\()(?:\w+ \? )?"([\w.]+)"', path.read_text())
        asked += [f"{mode}.{name}" for mode, name in itertools.product(filter(None, modes), ("title",))]
        assert asked and not [name for name in asked if name not in SHIPPED], path.name


def test_nothing_that_was_said_reaches_the_log(quick, caplog, capfd, tmp_path):
    """redteam.md §14 row 35: no logger's, not what is printed, no audit and no stored answer."""
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", logger="truing")
    ada = quick.visitor()
    answer = quick.desk.models.answer

    def fail(asks):
        for ask in asks:
            ask.error = RuntimeError(f"canary: cannot answer {ask.exchanges}")

    begin(ada, "canary plan")
    ada.talk(["canary message"])
    ada.act("flag", {"why": "canary flag", "key": "b"}, expect=422)
    ada.act("plan", {"text": "canary", "tags": ["canary"]}, expect=409)
    quick.desk.models.answer = fail
    assert ada.say("canary again", 2)["phase"] == "failed" and "canary" not in str(quick.rows(sa.select(t.job)))
    quick.desk.models.answer = answer
    ada.act("retry", {"turn": 2})
    ada.until("choose")
    ada.act("finish", ANSWERS | {"description": "canary end", "comment": "canary comment"})
    rev = quick.visitor("Rev", role="reviewer", consents=("review",))
    found = rev.post("/api/reviews/next", {})
    assert "canary end" in found["description"]
    rev.post(f"/api/reviews/{found['id']}/proceed", {})
    rev.post(f"/api/reviews/{found['id']}/submit", {"rating": 1, "intent": 1, "tags": ["canary"]}, expect=422)
    body = {"rating": 1, "intent": 1, "tags": [TAGS[0]], "comment": "canary review"}
    rev.post(f"/api/reviews/{found['id']}/submit", body)
    make_export(quick.store, Wanted("attempts"), tmp_path)
    ada.act("withdraw", {})
    printed = capfd.readouterr()
    assert "POST /api/conversations/{conversation}/turns" in caplog.text
    assert "canary" not in caplog.text + printed.out + printed.err
    for table in (t.audit, t.once):
        assert "canary" not in str(quick.rows(sa.select(table)))
