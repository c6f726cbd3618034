"""A real browser before the app, and what is wrong with a page as it stands on the screen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOW_TO = "needs a browser: apt-get install chromium"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
DESK = {"viewport": {"width": 1200, "height": 850}}

FAULTS = Path(__file__).with_name("faults.js").read_text()


class Looker:
    """One person's browser. ``see`` checks the page and keeps a picture of it."""

    def __init__(self, page: Any, url: str, folder: Path, name: str) -> None:
        self.page, self.url, self.folder, self.name = page, url, folder, name
        self.problems: list[str] = []
        self.pictures = 0
        page.on("console", lambda m: m.type in ("error", "warning") and self.problems.append(m.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def see(self, what: str) -> None:
        """Nothing on the page is wrong."""
        self.pictures += 1
        path = self.folder / f"{self.name}-{self.pictures:02d}-{re.sub('[^a-z]+', '-', what)}.png"
        self.page.screenshot(path=str(path), full_page=True)
        faults = self.page.evaluate(FAULTS)
        assert faults == [], f"{what}: {faults}"
        assert self.problems == [], f"{what}: {self.problems}"

    # ------------------------------------------------------------ hands on the keyboard

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        self.page.keyboard.insert_text(text)

    def tab_to(self, text: str, most: int = 60) -> None:
        """Go on with the tab key until what has the focus is called so; the focus can be seen."""
        for _ in range(most):
            self.press("Tab")
            name = self.page.evaluate(
                "(e => (e.innerText || e.getAttribute('aria-label') || e.closest('label')?.innerText || '').trim())"
                "(document.activeElement)"
            )
            if name.startswith(text):
                style = self.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none", f"one cannot see that {text!r} has the focus"
                return
        raise AssertionError(f"the tab key never came to {text!r}")

    def wait(self, selector: str, seconds: float = 60.0) -> Any:
        self.page.wait_for_selector(selector, timeout=1000 * seconds)
        return self.page.locator(selector)


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        browser.close()


def pictures(folder: Path) -> Path:
    """Where pictures of pages are kept: ``$TRUING_PICTURES``, to be looked at, or the test's own folder."""
    path = Path(os.environ.get("TRUING_PICTURES") or folder / "pictures")
    path.mkdir(parents=True, exist_ok=True)
    return path
