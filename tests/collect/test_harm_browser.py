"""Red team and review in a real browser, by the keyboard: veils, breaks, what must be answered, what is sent when."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
import sqlalchemy as sa
import uvicorn
from attacks import attack
from talking import Site, script

from truing.collect import tables as t
from truing.collect.store import set_setting
from truing.collect.web import SESSION_COOKIE

BAD = "CANARY <img src=x onerror=alert(1)>\u202egnp.exe"
pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser: apt-get install chromium")


@pytest.fixture
def place(tmp_path, empty_file):
    """(site, url) of a served app whose arm answers with hostile text."""
    (tmp_path / "truing.db").write_bytes(empty_file.read_bytes())
    rows = [{"reply": f"{number} {BAD}"} for number in range(40)]
    site = Site(str(tmp_path / "truing.db"), [f"one={script(tmp_path / 'one.jsonl', rows)}"])
    with site.store.write() as db:
        set_setting(db, "rules", {"break_every": 4}, None)
    server = uvicorn.Server(uvicorn.Config(site.app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield site, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    site.close()


@pytest.fixture
def open_page(place):
    """``open_page(visitor, path)`` is a page; at the end nothing may have complained or asked."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    complaints = []
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def go(who, path, **size):
            context = browser.new_context(**size)
            context.set_default_timeout(60_000)
            context.add_cookies([{"name": SESSION_COOKIE, "value": who.token, "url": place[1]}])
            page = context.new_page()
            page.on("console", lambda said: complaints.append(said.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.goto(place[1] + path)
            return page

        yield go
        browser.close()
    assert complaints == []


def test_an_attack_by_the_keyboard(place, open_page):
    """redteam.md §13 rows 4 and 5, §4.3: plan, two turns under veils, a break, three answers of five steps each."""
    site, _ = place
    page = open_page(site.visitor(), "/redteam")
    page.wait_for_selector("#panel textarea")
    page.keyboard.type("my plan <b>")
    page.keyboard.press("Control+Enter")
    for turn in (1, 2):
        page.wait_for_selector("#panel form:not(:has(.tags)) textarea")
        page.keyboard.type(f"message {turn}")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".strip")
        covered = page.locator(".candidate .veil .said")
        assert page.locator(".candidate .veil.open").count() == 0 and covered.count() == 2
        assert all("blur" in covered.nth(i).evaluate("x => getComputedStyle(x).filter") for i in (0, 1))
        assert all(covered.nth(i).get_attribute("aria-hidden") == "true" for i in (0, 1))
        assert page.locator(".strip button:disabled").count() == 8
        sizes = page.locator(".strip button").evaluate_all("a => a.map(x => parseFloat(getComputedStyle(x).fontSize))")
        assert sizes[0] > sizes[1] > sizes[2] > sizes[3] and sizes == sizes[::-1]  # the smallest means unsure (row 6)
        assert page.locator("#break[open]").count() == (turn == 2)  # four replies by then
        if turn == 2:
            page.keyboard.press("Enter")
            page.reload()
            page.wait_for_selector(".strip")
            assert page.locator("#break[open]").count() == 0
        page.keyboard.press("u")
        assert page.locator(".candidate .veil.open").count() == 2
        shown = covered.nth(0).text_content()
        assert "<img" in shown and "\ufffdgnp.exe" in shown and "\u202e" not in page.locator("main").text_content()
        assert page.locator(".said img").count() == 0
        assert covered.nth(0).evaluate("x => getComputedStyle(x).unicodeBidi") == "isolate"
        page.keyboard.press("7")
    page.wait_for_selector("#panel textarea")
    page.get_by_role("button", name="Finish this conversation").click()
    following = page.get_by_role("button", name="Next")
    for name, place_of in (("success", 4), ("harmfulness", 0), ("actionability", 2)):
        assert following.is_disabled()
        radios = page.locator(f"input[name={name}]")
        labels = [radios.nth(i).locator("xpath=..").text_content().strip() for i in range(5)]
        assert labels == ["1", "2", "3", "4", "5"]
        radios.nth(place_of).check()
    assert following.is_enabled()
    page.locator("#panel textarea").first.fill("")
    assert following.is_disabled()
    page.locator("#panel textarea").first.fill("what came of it")
    following.click()
    page.wait_for_selector("#panel .notice.good")
    e, c = t.ending.c, t.choice.c
    assert site.rows(sa.select(e.success, e.harmfulness, e.actionability, e.description)) == [
        (4, 0, 2, "what came of it")
    ]
    assert site.rows(sa.select(c.strength)) == [(3,), (3,)]
    assert page.locator("#stop").is_hidden() and page.locator("#withdraw").is_visible()


@pytest.mark.parametrize("when", ["plan", "write", "choose"])
def test_stop_now_is_one_click(place, open_page, when):
    site, _ = place
    page = open_page(site.visitor(), "/redteam", viewport={"width": 390, "height": 800})
    page.wait_for_selector("#panel textarea")
    if when != "plan":
        page.keyboard.type("my plan")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#panel form:not(:has(.tags)) textarea")
    if when == "choose":
        page.keyboard.type("message")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".strip")
    page.click("#stop")
    page.wait_for_selector("#panel .notice.good")
    assert "You have stopped" in page.locator("#panel").text_content()
    assert site.rows(sa.select(t.ending.c.stopped)) == [(True,)]


def test_a_review_shows_nothing_before_proceed(place, open_page):
    """redteam.md §13 row 17, §14 row 15: in the network log and in the page; then at most two tags."""
    site, _ = place
    attack(site, site.visitor().person, [(BAD, BAD)], description="\u202ethe description")
    rev = site.visitor("Rev", role="reviewer", consents=("review",))
    page = open_page(rev, "/review")
    sent = []
    page.on("response", lambda answer: sent.append(answer.text() if "/api/" in answer.url else ""))
    page.reload()
    page.wait_for_selector("#proceed")
    page.wait_for_load_state("networkidle")
    assert any("the description" in text for text in sent) and not [text for text in sent if "CANARY" in text]
    assert "CANARY" not in page.content()
    page.click("#proceed")
    page.wait_for_selector(".turn")
    assert page.locator(".turn .veil").count() == 2 and page.locator(".turn .veil.open").count() == 0
    page.keyboard.press("u")
    assert page.locator(".turn .veil.open").count() == 2 and page.locator(".said img").count() == 0
    assert "\u202e" not in page.locator("main").text_content()
    following, tags = page.get_by_role("button", name="Next"), page.locator("#panel .tags input")
    tags.nth(0).check()
    page.locator("#panel input[name=rating]").nth(4).check()
    assert following.is_disabled()
    page.locator("#panel input[name=intent]").nth(0).check()
    assert following.is_enabled()
    tags.nth(3).check()
    assert tags.nth(5).is_disabled()
    following.click()
    page.get_by_text("nothing to review").wait_for()
    assert "CANARY" not in page.content()
    assert site.rows(sa.select(t.review.c.rating, t.review.c.intent)) == [(4, 0)]
