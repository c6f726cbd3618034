"""One self-contained page per run: ``report.html``, pulled from what lies in the run folder.

Read from the folder, each part only if it is there: ``summary.json`` (headline numbers), ``sections.json`` (the
story a recipe tells), ``figures/*.svg``, ``metrics.jsonl`` (curves), ``*.csv`` (tables), ``samples.jsonl``,
``config.yaml`` and ``environment.json``. Nothing is fetched: styles and figures stand inside the file, and all words
of people and models are shown as text, never as markup.

``sections.json`` (written by ``write_story``) is one JSON object::

    {
      "title": "truing demo",                       # headline of the page; default: the run's verb and name
      "subtitle": "One sentence under the title.",  # optional
      "badges": ["simulated people", "fast"],       # optional: short labels that stand beside the title
      "sections": [
        {
          "title": "1. A preference model",         # required, everything else optional
          "text": "First paragraph.\\n\\nSecond.",   # plain text; a blank line starts a paragraph; or a list of them
          "badges": ["simulated people"],
          "numbers": {"accuracy": {"value": 0.71, "low": 0.66, "high": 0.75, "n": 400, "unit": ""}},  # tiles
          "tables": [{"caption": "…", "columns": ["arm", "Elo"], "rows": [["base", 0], ["rlhf", {"value": …}]]}],
          "figures": [{"file": "elo.svg", "caption": "…", "alt": "…"}],      # files of the run's figures/ folder
          "samples": [{"prompt": "…", "before": "…", "after": "…", "score_before": 0.1}],
          "notes": ["What this number does not say."],
          "commands": ["truing elo games.jsonl"]    # shown in a fixed-width font
        }
      ]
    }

A table cell is text, a number, null (shown as –) or an interval as ``stats.Interval.as_dict`` gives it. The fields of
a sample are shown under their names: text as text, numbers as small labels. An unknown key raises ValueError that
names the known ones, so that nothing is dropped silently.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from truing.report import figures
from truing.report.drawing import draw
from truing.report.numbers import digits, interval_text
from truing.runs.atomic import as_json, atomic_write, read_rows

STORY_KEYS = ("title", "subtitle", "badges", "sections")
SECTION_KEYS = ("title", "text", "badges", "numbers", "tables", "figures", "samples", "notes", "commands")
TABLE_KEYS = ("caption", "columns", "rows")
FIGURE_KEYS = ("file", "caption", "alt")
PAGE_COLOURS = {figures.INK: "currentColor", figures.GRID: "var(--line)", figures.PAPER: "var(--card)"}
PAGE_COLOURS |= {figures.COLOURS[0]: "var(--blue)", figures.COLOURS[6]: "var(--plum)"}
CSV_ROWS = 31
WIDE_POINTS = 500
WIDE = ("prompt", "question", "dialogue", "text", "first_prompt")
WORDS = (*WIDE, "before", "after", "chosen", "rejected", "reply", "answer", "answers", "a", "b")
DRAWING = (
    "svg",
    "g",
    "defs",
    "path",
    "use",
    "clipPath",
    "rect",
    "line",
    "circle",
    "polygon",
    "polyline",
    "text",
    "tspan",
    "image",
    "linearGradient",
    "stop",
    "title",
)
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def write_story(folder: Path, story: Mapping[str, Any]) -> Path:
    """Check ``story`` against the schema above and write it as ``sections.json`` into a run folder.

    Raises ValueError naming the section and the key for anything outside the schema.
    """
    check_story(story)
    path = Path(folder) / "sections.json"
    atomic_write(path, as_json(story))
    return path


def check_story(story: Mapping[str, Any]) -> None:
    """Raise ValueError for what is outside the schema."""
    _known(story, STORY_KEYS, "sections.json")
    for i, section in enumerate(story.get("sections", ())):
        where = f"section {i + 1} ({section.get('title', 'without title')!r}) of sections.json"
        _known(section, SECTION_KEYS, where)
        if not section.get("title"):
            raise ValueError(f"{where}: 'title' is missing.")
        for table in section.get("tables", ()):
            _known(table, TABLE_KEYS, f"a table in {where}")
            width = len(table.get("columns", ()))
            for row in table.get("rows", ()):
                if len(row) != width:
                    raise ValueError(f"A table in {where} has {width} columns and a row of {len(row)} cells: {row}.")
        for figure in section.get("figures", ()):
            _known(figure, FIGURE_KEYS, f"a figure in {where}")


def _known(given: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown key {key!r} in {where}; known: {', '.join(keys)}.{hint}")


# ---------------------------------------------------------------- the page


def build(folder: Path | str) -> Path:
    """Write ``report.html`` of a run folder from what lies there, and return its path.

    Raises ValueError if ``sections.json`` is outside the schema or names a figure that is not there.
    """
    folder = Path(folder)
    story = _json(folder / "sections.json") or {}
    check_story(story)
    summary = _json(folder / "summary.json") or _json(folder / "partial.json") or {}
    environment = _json(folder / "environment.json") or {}
    verb = summary.get("verb") or environment.get("verb") or "run"
    drawn = draw(folder, summary)
    told = [f["file"] for s in story.get("sections", ()) for f in s.get("figures", ())]
    samples = [] if story else read_rows(folder / "samples.jsonl")
    page = {
        "title": story.get("title") or f"truing {verb}",
        "subtitle": story.get("subtitle", ""),
        "badges": [*story.get("badges", ()), *([] if (folder / "summary.json").exists() else ["unfinished"])],
        "run": folder.resolve().name,
        "numbers": summary.get("numbers", {}),
        "notes": summary.get("notes", ()),
        "sections": [_section(folder, s, i) for i, s in enumerate(story.get("sections", ()))],
        "figures": [_figure(folder, f, f"o{i}") for i, f in enumerate(_own_figures(folder, told, drawn))],
        "tables": [] if story else [_csv_table(p) for p in sorted(folder.glob("*.csv"))],
        "samples": _spread(samples, 24),
        "num_samples": len(samples),
        "config": _text(folder / "config.yaml"),
        "environment": _text(folder / "environment.json"),
        "files": sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith(".")),
    }
    return write_page(folder / "report.html", page)


def write_page(path: Path, page: Mapping[str, Any]) -> Path:
    """Fill ``page.html`` and write it whole or not at all."""
    import jinja2

    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    shell = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shell.filters |= {"digits": digits, "interval": interval_text, "label": figures.words, "paragraphs": _paragraphs}
    shell.filters["short"] = _short
    shell.globals |= {"is_number": lambda v: isinstance(v, Mapping) and "value" in v, "WIDE": WIDE}
    html = shell.from_string(source).render(page=page)
    atomic_write(path, html)
    return path


def _short(value: Any, name: str) -> bool:
    """Whether a field of a sample is a label (numbers, kinds, ids) rather than words that somebody wrote."""
    if value is None or isinstance(value, int | float):
        return True
    return isinstance(value, str) and name not in WORDS and 0 < len(value) <= 24 and "\n" not in value


def _paragraphs(text: str | list[str]) -> list[str]:
    parts = text.split("\n\n") if isinstance(text, str) else text
    return [p.strip() for p in parts if p.strip()]


def _section(folder: Path, section: Mapping[str, Any], index: int) -> dict[str, Any]:
    empty: dict[str, Any] = {"text": "", **{k: () for k in SECTION_KEYS if k not in ("title", "text")}, "numbers": {}}
    drawn = [_figure(folder, f, f"s{index}f{i}") for i, f in enumerate(section.get("figures", ()))]
    tables = [{"caption": "", "columns": (), "rows": (), **table} for table in section.get("tables", ())]
    return {**empty, **section, "id": f"s{index + 1}", "figures": drawn, "tables": tables}


def _figure(folder: Path, figure: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    path = folder / "figures" / figure["file"]
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in (folder / "figures").glob("*.svg"))) or "none"
        raise ValueError(f"sections.json names the figure {figure['file']!r}; figures/ holds: {there}.")
    name = figures.words(path.stem.replace("-", " "))
    alt = figure.get("alt") or figure.get("caption") or name
    caption = figure.get("caption", name)
    svg = inline_svg(path.read_text(encoding="utf-8"), prefix, alt)
    return {"svg": svg, "caption": caption, "alt": alt, "wide": width_of(svg) > WIDE_POINTS}


def _own_figures(folder: Path, told: list[str], drawn: list[dict[str, str]]) -> list[dict[str, str]]:
    """Figures the story does not show: those somebody saved, then those drawn here."""
    known = {*told, *(f["file"] for f in drawn)}
    saved = [{"file": p.name} for p in sorted((folder / "figures").glob("*.svg")) if p.name not in known]
    return saved + [f for f in drawn if f["file"] not in told]


def inline_svg(svg: str, prefix: str, alt: str) -> Markup:
    """An SVG file as an element of the page: ids made unique, colours the page's, nothing that runs or fetches.

    Raises ValueError if the file is not well-formed.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as problem:
        raise ValueError(f"A figure is not well-formed SVG: {problem}.") from None
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rsplit("}", 1)[-1] not in DRAWING:
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            name = key.rsplit("}", 1)[-1]
            if name == "id":
                parent.set(key, f"{prefix}-{value}")
            elif name == "href" and value.startswith("#"):
                parent.set(key, f"#{prefix}-{value[1:]}")
            elif name.startswith("on") or "://" in value or (name == "href" and not value.startswith("data:image/")):
                del parent.attrib[key]
            else:
                parent.set(key, _page_colours(value.replace("url(#", f"url(#{prefix}-")))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("stroke-linejoin", "round")
    root.set("style", f"max-width:{width_of(svg) * 4 / 3:.0f}px")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def width_of(svg: str) -> float:
    """Width of an SVG in points, by its viewBox."""
    box = re.search(r'viewBox="\s*[\d.-]+[ ,]+[\d.-]+[ ,]+([\d.]+)', svg)
    return float(box[1]) if box else 460.0


def _page_colours(style: str) -> str:
    for ours, pages in PAGE_COLOURS.items():
        style = style.replace(ours, pages)
    return style


def _csv_table(path: Path) -> dict[str, Any]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    cells: list[list[Any]] = [[_maybe_number(c) for c in row] for row in rows[1:CSV_ROWS]]
    more = f" (the first {CSV_ROWS - 1} of {len(rows) - 1} rows)" if len(rows) > CSV_ROWS else ""
    return {"caption": f"{path.name}{more}", "columns": rows[0] if rows else [], "rows": cells}


def _maybe_number(cell: str) -> Any:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` rows, evenly spread."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is not JSON: {problem}. Give the run's command again, or remove the file.") from None
