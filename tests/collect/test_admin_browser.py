"""The administration in a real browser: nothing complains, nothing is wider than a phone, files arrive."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from filled import Talk, add_worker

from truing.collect import auth
from truing.collect.app import create_app
from truing.collect.store import Store
from truing.collect.web import SESSION_COOKIE, House
from truing.data.check import check_file

HOSTILE = "<img src=x onerror=alert(1)> \u202egnp.exe"
PATHS = (
    "",
    "/checks",
    "/reviews",
    "/exports",
    "/arms",
    "/people",
    "/pay",
    "/settings",
    "/settings?room=talk",
    "/audit",
)
SHOTS = os.environ.get("TRUING_SHOTS")
pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser: apt-get install chromium")


@pytest.fixture
def place(sqlite_store: Store) -> Iterator[tuple[str, str, str]]:
    """(url, session cookie of an administrator, a red-team conversation) of a served app with some work in it."""
    with sqlite_store.write() as db:
        boss = auth.add_person(db, "Boss", "admin", modes=auth.MODES)
        token, _ = auth.start_session(db, boss)
        for i in range(8):
            person = add_worker(db, f"Worker {i} {'with a long name ' * (i == 3)}".strip(), source="upwork")
            for mode in ("helpful", "redteam"):
                talk = Talk(db, mode, person, arms=["rlhf-snapshot-3"])
                for turn in range(3 + i):
                    arms = [("rlhf-snapshot-3", f"{HOSTILE} {turn}"), ("plain-lm", "fine")]
                    talk.turn(HOSTILE, arms, (i + turn) % 2, latency_ms=900 * (turn + 1))
                talk.end(rating=2, success=2)
    app = create_app(House(sqlite_store))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", token, talk.id
    server.should_exit = True
    thread.join()


def test_the_administration_in_a_browser(place: tuple[str, str, str], tmp_path: Path):
    sync = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    url, token, talk = place
    complaints: list[str] = []
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def open_page(width: int, scheme: str) -> Any:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            context.set_default_timeout(60_000)
            context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": url}])
            page = context.new_page()
            page.on("console", lambda said: complaints.append(said.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            return page

        for width, scheme in ((390, "dark"), (1200, "light")):
            page = open_page(width, scheme)
            for path in (*PATHS, f"/checks/{talk}?read=true"):
                page.goto(f"{url}/admin{path}")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, wide)
                if SHOTS:
                    name = path.strip("/").replace("/", "-").replace("?", "-")[:20] or "overview"
                    page.screenshot(path=f"{SHOTS}/admin-{name}-{width}.png", full_page=True)
        bar = page.goto(f"{url}/admin") and page.locator(".fill").last.bounding_box()
        assert bar and bar["width"] > 10  # the bars' classes work without inline styles
        page.goto(f"{url}/admin/people")
        page.locator("details summary", has_text="Invite").press("Enter")
        page.locator("input[name=source]").first.fill("mturk")
        page.keyboard.press("Enter")
        assert "/invite/" in page.locator("input.link").input_value()
        page.goto(f"{url}/admin/exports")
        page.locator("select[name=kind]").select_option("harmless")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export", exact=True).press("Enter")
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        page.goto(f"{url}/admin/exports")
        assert hashlib.sha256(file.read_bytes()).hexdigest() in page.content()
        browser.close()
    report = check_file(file, strict=True)
    assert report.numbers["usable"] == report.numbers["rows"] > 20 and not report.numbers["bad_turns"]
    assert complaints == []
