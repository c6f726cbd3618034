"""The page of a run: self-contained, complete, and every word of people and models is text."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from truing.report import figures, page

EVIL = '<script>alert("x")</script><img src="https://example.org/a.png" onerror="alert(1)">'
NUMBER = {"value": 0.71234, "low": 0.66, "high": 0.75, "n": 1400, "unit": "share"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text a person sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as a trainer leaves it."""
    (tmp_path / "figures").mkdir()
    figures.save(figures.elo_ladder({"base": 0, "rlhf": 30}), tmp_path / "figures", "ladder")
    numbers = {"accuracy": NUMBER, "auroc": {"value": None, "low": None, "high": None, "n": 0, "unit": ""}}
    summary = {"verb": "pm train", "run": "r", "numbers": numbers, "notes": ["auroc: one class only"]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "environment.json").write_text('{"verb": "pm train", "versions": {"torch": "9.9"}}')
    (tmp_path / "config.yaml").write_text("init: smollm2\n")
    rows = [{"step": i, "loss": 1 / (i + 1), "once": 1} if i else {"step": 0, "loss": 1.0} for i in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + '\n{"step": 6, "lo')
    (tmp_path / "samples.jsonl").write_text(json.dumps({"prompt": EVIL, "reply": "Hi\nthere", "score": 0.25}))
    table = "low,high,n,mean_confidence,accuracy\n0,0.5,10,0.3,0.2\n0.5,1,10,0.8,\n"
    (tmp_path / "reliability.csv").write_text(table.replace("0.8,\n", "0.8,0.9\n"))
    return tmp_path


def read(path: Path) -> tuple[str, Reader]:
    html = page.build(path).read_text(encoding="utf-8")
    return html, Reader(html)


def test_a_page_shows_what_the_folder_holds(run: Path):
    _, found = read(run)
    for words in ("truing pm train", "0.7123", "0.66 … 0.75", "1,400", "auroc: one class only", "init: smollm2", "9.9"):
        assert words in found.text
    assert "Reliability diagram" in [a.get("aria-label") for t, a in found.tags if t == "svg"]
    assert "Curves of loss, once" in [a.get("aria-label") for t, a in found.tags if t == "svg"]
    assert "ladder" in [a.get("aria-label") for t, a in found.tags if t == "svg"]
    assert (run / "figures" / "curves.png").exists() and "unfinished" not in found.text


def test_nothing_is_fetched_and_nothing_runs(run: Path):
    html, found = read(run)
    assert not [t for t, _ in found.tags if t in ("script", "link", "iframe", "object", "base", "foreignobject")]
    for _, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/")), value
    assert not re.search(r"url\((?!#)", html) and "@import" not in html


def test_words_of_people_and_models_are_text(run: Path):
    html, found = read(run)
    assert EVIL in found.text.replace("\n", "") and EVIL not in html


def test_foreign_svg_is_made_harmless():
    evil = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" '
        'onload="alert(1)"><script>alert(2)</script><foreignObject><p>x</p></foreignObject><style>@import "a"</style>'
        '<g id="a" style="fill: #24292f"><use xlink:href="#a"/><use xlink:href="https://example.org/x.svg#a"/>'
        '<path clip-path="url(#a)" style="fill: url(https://example.org/y)"/></g></svg>'
    )
    clean = str(page.inline_svg(evil, "p", 'a "b"'))
    assert not re.search("script|foreignObject|onload|example.org|import", clean)
    assert 'id="p-a"' in clean and 'href="#p-a"' in clean and "url(#p-a)" in clean and "currentColor" in clean
    with pytest.raises(ValueError, match="not well-formed"):
        page.inline_svg("<svg", "p", "")


def story() -> dict[str, Any]:
    return {
        "title": "The loop",
        "badges": ["simulated people"],
        "sections": [
            {
                "title": "Elo",
                "text": "One & <b>two</b>.\n\nThree.",
                "numbers": {f"gain {i}": {**NUMBER, "low": -0.123456, "unit": "nats per reply"} for i in range(5)},
                "tables": [{"columns": ["arm", "Elo"], "rows": [["base", None], ["rlhf", NUMBER]]}],
                "figures": [{"file": "ladder.svg", "caption": "The ladder", "alt": "rlhf on top"}],
                "samples": [{"prompt": "Q?", "before": "a", "after": EVIL, "score": 2}],
                "notes": ["A note."],
                "commands": ["truing elo games.jsonl"],
            }
        ],
    }


def test_a_story_is_told(run: Path):
    page.write_story(run, story())
    html, found = read(run)
    for words in ("The loop", "simulated people", "One & <b>two</b>.", "Three.", "The ladder", "A note.", "truing elo"):
        assert words in found.text
    assert found.tags.count(("svg", next(a for t, a in found.tags if a.get("aria-label") == "rlhf on top"))) == 1
    assert "Reliability diagram" in html, "figures the story does not name are still shown"


def test_short_words_in_a_table_stay_whole(run: Path):
    told = story()
    told["sections"][0]["tables"] = [{"columns": ["claim", ""], "rows": [["long " * 40, "reported"]]}]
    page.write_story(run, told)
    html, _ = read(run)
    assert '<td class="s">reported' in html and "<td>long" in html and "td.s { overflow-wrap: break-word; }" in html


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"titel": "x"}, "Unknown key 'titel'.*Did you mean 'title'"),
        ({"sections": [{"title": "a", "figure": []}]}, "Unknown key 'figure' in section 1.*Did you mean 'figures'"),
        ({"sections": [{"text": "a"}]}, "'title' is missing"),
        ({"sections": [{"title": "a", "tables": [{"columns": ["x"], "rows": [[1, 2]]}]}]}, "1 columns and a row of 2"),
    ],
)
def test_a_story_outside_the_schema_is_refused(run: Path, change: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        page.write_story(run, {**story(), **change})
    assert not (run / "sections.json").exists()


def test_a_missing_figure_is_named(run: Path):
    page.write_story(run, {"sections": [{"title": "a", "figures": [{"file": "no.svg"}]}]})
    with pytest.raises(ValueError, match=r"'no.svg'; figures/ holds: .*ladder.svg"):
        page.build(run)


def test_an_unfinished_run_says_so(run: Path):
    (run / "summary.json").rename(run / "partial.json")
    assert "unfinished" in read(run)[1].text


def test_an_empty_folder_still_gives_a_page(tmp_path: Path):
    assert "truing run" in read(tmp_path)[1].text


def test_building_twice_gives_the_same_page(run: Path):
    page.build(run)  # the first one adds files that the page lists
    first = page.build(run).read_bytes()
    assert page.build(run).read_bytes() == first


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_requests_or_sideways_scrolling(run: Path, width: int):
    sync = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    page.write_story(run, story())
    path, asked, problems = page.build(run), [], []
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("request", lambda r: asked.append(r.url))
        tab.on("console", lambda m: problems.append(m.text))
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        over = "[...document.querySelectorAll('.tiles > div')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert tab.evaluate(over) == 0, "a number sticks out of its tile"
        assert tab.locator("svg").count() >= 3 and tab.locator("svg").first.bounding_box()["height"] > 50
        browser.close()
    assert asked == [path.as_uri()] and problems == []
