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

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STORY_KEYS = ("title", "subtitle", "badges", "sections")
SECTION_KEYS = ("title", "text", "badges", "numbers", "tables", "figures", "samples", "notes", "commands")
TABLE_KEYS = ("caption", "columns", "rows")
FIGURE_KEYS = ("file", "caption", "alt")


def write_story(folder: Path, story: Mapping[str, Any]) -> Path:
    """Check ``story`` against the schema above and write it as ``sections.json`` into a run folder.

    Raises ValueError naming the section and the key for anything outside the schema.
    """
    check_story(story)
    path = Path(folder) / "sections.json"
    path.write_text(json.dumps(story, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
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
