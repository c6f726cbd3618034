"""People in a real browser: an invitation, dialogues by keyboard alone, a phone in the dark, and what comes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from looking import DESK, HOW_TO, PHONE, Looker, chromium, pictures
from serving import Served, administrator, script, with_short_hold

from truing.collect import auth
from truing.collect import tables as t
from truing.collect.store import Store
from truing.collect.web import SESSION_COOKIE
from truing.data.comparisons import load_comparisons

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason=HOW_TO)
pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")

LONG = "A word that is too long for any line: " + "Donaudampfschifffahrtsgesellschaftskapitän" * 3
REPLIES = [
    *(f"Pinch off the tips, and water when the top of the soil is dry. That is answer {i}." for i in range(60)),
    f"First line.\n\nSecond line, with <b>marks</b> & signs.\n\n{LONG}",
]
SAID = [
    "How do I keep basil alive indoors?",
    "How much light does it need?",
    "My window faces north. What then?",
    "Thank you. And in winter?",
]


@dataclass
class Place:
    """An app in a process of its own, a browser before it, and its store."""

    server: Served
    store: Store
    browser: Any
    folder: Path

    def invite(self, role: str = "worker", *modes: str) -> str:
        admin = administrator(self.store)
        with self.store.write() as db:
            return f"/invite/{auth.invite(db, admin, role, modes=modes)[1]}"

    def looker(self, name: str, **context: Any) -> Looker:
        return Looker(self.browser.new_context(**context).new_page(), self.server.url, self.folder, name)

    def rows(self, query: Any) -> list[Any]:
        with self.store.read() as db:
            return list(db.execute(query).all())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_file: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("browser")
    db = str(shutil.copy(empty_file, folder / "truing.db"))
    arms = [f"{name}={script(folder / f'{name}.jsonl', REPLIES)}" for name in ("oak", "birch")]
    with Served(with_short_hold, db, arms, 1.0) as server, chromium() as browser:
        store = Store(db)
        yield Place(server, store, browser, pictures(folder))
        store.close()


def sign_up(one: Looker, link: str, name: str) -> None:
    """By an invitation, with the keyboard: the first field has the focus."""
    one.go(link)
    one.see("invitation")
    one.type(name)
    one.press("Tab")
    one.type("correct horse battery")
    one.press("Tab")
    one.type("correct horse battery")
    one.press("Enter")
    one.wait("a.card.link")


def test_a_dialogue_of_four_turns_by_keyboard_alone(place: Place):
    one = place.looker("keyboard", **DESK)
    sign_up(one, place.invite("worker", "helpful"), "Ada")
    one.see("home")
    one.tab_to("Helpful chat")
    one.press("Enter")
    one.wait("form[action='/consent/helpful']")
    one.see("consent")
    one.tab_to("I have read this and agree")
    one.press("Enter")
    for turn, (text, keys) in enumerate(
        zip(SAID, ["1", "6", "ArrowRight Enter", "ArrowLeft ArrowRight Enter"], strict=True)
    ):
        one.wait("#panel textarea")
        if turn == 0:
            one.see("writing")
        one.type(text)
        one.press("Control+Enter")
        one.wait(".grade")
        assert one.page.locator(".candidate").count() == 2
        if turn in (0, 3):
            one.see("choosing")
        one.press(*keys.split())
        one.page.locator(".turn.reply").nth(turn).wait_for()
    one.wait("#panel textarea")
    one.tab_to("Finish this conversation")
    one.press("Enter")
    one.wait("input[name=rating]")
    one.see("ending")
    one.tab_to("1")  # the first of the five; arrows go on from there
    one.press("ArrowRight", "ArrowRight", "ArrowRight")
    one.press("Tab")
    one.type("It knew its herbs.")
    one.press("Control+Enter")
    one.wait(".notice.good")
    one.see("done")

    person = place.rows(sa.select(t.person.c.id).where(t.person.c.name == "Ada"))[0].id
    talk = place.rows(sa.select(t.conversation.c.id).where(t.conversation.c.person_id == person))[0].id
    chosen = place.rows(sa.select(t.choice).where(t.choice.c.conversation_id == talk).order_by(t.choice.c.turn))
    sides = {c.message_id: c.side for c in place.rows(sa.select(t.candidate))}
    # Keys 1 to 8 go from A, much better, to B, much better. The first arrow to the right is B, unsure; to the left 1.
    assert [(sides[c.chosen_id], c.strength) for c in chosen] == [(0, 4), (1, 2), (1, 1), (0, 3)]
    assert all(0 < c.latency_ms < 120_000 for c in chosen)
    said = place.rows(
        sa.select(t.message.c.text)
        .where(t.message.c.conversation_id == talk, t.message.c.kind == "human")
        .order_by(t.message.c.turn)
    )
    assert [row.text for row in said] == SAID
    ending = place.rows(sa.select(t.ending).where(t.ending.c.conversation_id == talk))[0]
    assert (ending.rating, ending.comment) == (3, "It knew its herbs.")


def test_the_next_conversation_is_not_put_aside_by_a_look_at_the_last_one(place: Place):
    """A long poll of the finished conversation that answers late, or still waits, is of no account for the next."""
    one = place.looker("next", **DESK)
    sign_up(one, place.invite("worker", "helpful"), "Iris")
    one.go("/consent/helpful")
    one.page.locator("form[action='/consent/helpful'] button").click()
    one.wait("#panel textarea")
    one.type("Hello")
    one.press("Control+Enter")
    one.wait(".grade")
    one.press("1")
    one.page.locator(".turn.reply").first.wait_for()
    one.tab_to("Finish this conversation")
    one.press("Enter")
    one.wait("input[name=rating]").first.check()
    one.page.locator("#panel form button.primary").click()
    with one.page.expect_request(lambda r: "?after=" in r.url, timeout=20_000):  # the look that will wait 25 seconds
        one.wait(".notice.good")
    one.page.get_by_role("button", name="Next conversation").click()
    one.wait("#panel textarea")
    one.type("Another")
    one.press("Control+Enter")
    one.wait(".grade", seconds=20)  # and not only when the look at the last one is over
    assert one.page.locator(".turn.human .said").all_inner_texts() == ["Another"]
    assert one.problems == []


def test_a_phone_in_the_dark_drafts_and_an_edit(place: Place):
    one = place.looker("phone", **PHONE, color_scheme="dark", reduced_motion="reduce")
    sign_up(one, place.invite("worker", "helpful", "rank"), "Edgar")
    one.see("home")
    one.go("/chat")
    one.see("consent")
    one.page.get_by_role("button", name="I have read this and agree").tap()
    area = one.wait("#panel textarea")
    area.fill("A draft that is not sent yet")
    one.page.reload()
    assert one.wait("#panel textarea").input_value() == "A draft that is not sent yet"
    one.see("draft")
    area.fill(SAID[0])
    one.page.get_by_role("button", name="Send").tap()
    one.wait(".grade")
    one.see("choosing")
    one.page.get_by_role("button", name="Improve A").tap()
    one.wait(".candidate textarea").fill("Pinch off the tips. That is all.")
    one.see("editing")
    one.page.locator(".grade[data-key=a]").nth(1).tap()
    one.wait(".turn.reply")
    assert "That is all." in one.page.locator(".turn.reply").inner_text()
    one.see("edited")
    one.page.get_by_role("button", name="Instructions").tap()
    one.see("instructions")
    assert one.page.evaluate("document.getElementById('instructions').scrollTop") == 0
    one.page.get_by_role("button", name="Close").tap()

    one.go("/rank")
    one.page.get_by_role("button", name="I have read this and agree").tap()
    one.wait("#panel textarea").fill(SAID[1])
    one.page.get_by_role("button", name="Send").tap()
    one.wait("button.place")
    one.see("ranking")
    for number in (1, 0, 2):
        one.page.locator("button.place").nth(number).tap()
    one.see("ranked")
    one.page.get_by_role("button", name="Confirm this order").tap()
    one.wait(".turn.reply")
    stored = [choice for choice in place.rows(sa.select(t.choice)) if choice.order]
    assert len(stored) == 1 and len(stored[0].order) == 3 and stored[0].chosen_id == stored[0].order[0]

    one.page.get_by_role("button", name="Sign out").tap()
    one.wait("input[name=password]")
    one.see("login")
    assert one.page.evaluate("localStorage.length") == 0, "drafts stay behind on the phone"


def test_an_attack_with_stop_now_and_its_review(place: Place):
    one = place.looker("attack", **PHONE)
    sign_up(one, place.invite("worker", "redteam"), "Mallory")
    one.go("/redteam")
    one.see("warning")
    one.page.get_by_role("button", name="I have read this and agree").tap()
    one.wait("#panel textarea").fill("I'm trying to learn how to enter a house without its owner.")
    one.see("plan")
    one.page.get_by_role("button", name="Begin the conversation").tap()
    for turn, text in enumerate(SAID):
        one.page.get_by_label("Your message").fill(text)
        one.page.get_by_role("button", name="Send").tap()
        if turn == 0:
            one.wait(".waiting")
            one.see("waiting")
        one.wait(".grade")
        assert one.page.locator(".candidate .veil.open").count() == 0, "a reply is seen before it was asked for"
        assert one.page.locator(".grade:enabled").count() == 0, "one can choose what one has not read"
        if turn == 0:
            one.see("veiled")
        one.page.get_by_role("button", name="Uncover both").tap()
        if turn == 0:
            one.see("uncovered")
        one.page.locator(".grade[data-key=b]").nth(3 - turn).tap()
        one.page.locator(".turn.reply").nth(turn).wait_for()
    one.page.get_by_role("button", name="Finish this conversation").tap()
    one.wait("input[name=success]")
    one.see("ending")
    submit = one.page.get_by_role("button", name="Next")
    assert submit.is_disabled()
    for name, value in (("success", 3), ("harmfulness", 0), ("actionability", 1)):
        one.page.locator(f"input[name={name}]").nth(value).tap()
    submit.tap()
    one.wait(".notice.good")
    one.see("done")

    one.page.get_by_role("link", name="Next conversation").tap()
    one.page.get_by_label("In a sentence or two").fill("I'm trying something else.")
    one.page.get_by_role("button", name="Begin the conversation").tap()
    one.page.get_by_label("Your message").wait_for()
    one.page.locator("#stop").tap()  # at any time, with nothing lost
    one.wait(".notice.good")
    one.see("stopped")

    person = place.rows(sa.select(t.person.c.id).where(t.person.c.name == "Mallory"))[0].id
    talks = place.rows(
        sa.select(t.conversation.c.id, t.ending)
        .join(t.ending)
        .where(t.conversation.c.person_id == person)
        .order_by(t.conversation.c.created_at)
    )
    assert [(x.success, x.harmfulness, x.actionability, x.stopped) for x in talks] == [
        (3, 0, 1, False),
        (None, None, None, True),
    ]
    chosen = place.rows(sa.select(t.choice).where(t.choice.c.conversation_id == talks[0].id).order_by(t.choice.c.turn))
    sides = {c.message_id: c.side for c in place.rows(sa.select(t.candidate))}
    assert [(sides[c.chosen_id], c.strength) for c in chosen] == [(1, 4), (1, 3), (1, 2), (1, 1)]

    read_it(place)


def read_it(place: Place) -> None:
    """A reviewer reads the attack: nothing of it reaches the browser before *go on*."""
    one, bodies = place.looker("review", **DESK, color_scheme="dark"), []
    one.page.on("response", lambda r: "/static/" not in r.url and r.status < 300 and bodies.append(r.body()))
    sign_up(one, place.invite("reviewer", "review"), "Rosalind")
    one.go("/review")
    one.see("warning")
    one.tab_to("I have read this and agree")
    one.press("Enter")
    one.wait("#proceed")
    one.see("preview")
    assert "enter a house" in one.page.locator("blockquote").inner_text()
    assert not [body for body in bodies if SAID[0].encode() in body or b"Pinch off" in body]
    one.tab_to("Go on to the conversation")
    one.press("Enter")
    one.wait(".turn.reply")
    assert one.page.locator(".veil.open").count() == 0
    one.see("covered")
    one.press("u")
    assert one.page.locator(".veil.open").count() == 8
    one.see("reading")
    tags = one.page.locator("input[name=tag]")
    for place_of_tag in (5, 12):
        tags.nth(place_of_tag).check()
    assert tags.nth(0).is_disabled(), "a third tag can be chosen"
    one.page.locator("input[name=rating]").nth(2).check()
    one.page.locator("input[name=intent]").nth(4).check()
    one.see("answered")
    one.page.locator("#panel form button.primary").click()
    one.page.locator("#panel form").wait_for(state="detached")
    stored = place.rows(sa.select(t.review))
    assert [(r.rating, r.intent, len(r.tags)) for r in stored] == [(2, 4, 2)]


def test_what_chromium_downloads_trains_a_preference_model_unchanged(place: Place, tmp_path: Path):
    """From clicks to a trained model: nothing touches the file between the administrator's browser and the trainer."""
    from truing.models import family

    one = place.looker("rater", **DESK)
    sign_up(one, place.invite("worker", "helpful"), "Marie")
    one.go("/chat")
    one.page.get_by_role("button", name="I have read this and agree").click()
    for turn, key in enumerate("1872"):
        one.wait("#panel textarea").fill(SAID[turn])
        one.press("Control+Enter")
        one.wait(".grade")
        one.press(key)
        one.page.locator(".turn.reply").nth(turn).wait_for()
    one.wait("#panel textarea")
    one.page.get_by_role("button", name="Finish this conversation").click()
    one.wait("input[name=rating]").nth(3).check()
    one.page.locator("#panel form button.primary").click()
    one.wait(".notice.good")

    admin = administrator(place.store)
    with place.store.write() as db:
        token, _ = auth.start_session(db, admin)
    boss = place.looker("export", **DESK)
    boss.page.context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": boss.url}])
    boss.go("/admin/exports")
    with boss.page.expect_download() as download:
        boss.page.get_by_role("button", name="Export", exact=True).click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    boss.go("/admin/exports")
    boss.see("exported")
    judged = load_comparisons(file)
    assert len(judged) >= 4

    tokenizer = family.byte_tokenizer()
    size = {"layers": 2, "width": 32, "heads": 2, "max_positions": 2048, "seed": 0}
    family.new_model("llama", vocab_size=len(tokenizer), **size).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    quick = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--batch-size", "2"]
    argv = ["pm", "train", "--init", "lm", "--data", file.name, "--out", "pm", *quick]
    done = subprocess.run(
        [sys.executable, "-m", "truing", *argv], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "pm/summary.json").read_text())["numbers"]
    assert numbers["train_pairs"]["value"] + (numbers["accuracy"]["n"] or 0) == len(judged), numbers
