"""The figures of ``rlhf prompts``: what became of the calls, and how near what was kept is to what people wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures
from truing.runs.atomic import read_rows


def prompt_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Shares of calls that were kept or left out, by reason; likeness to the nearest example and lengths."""
    numbers = summary.get("numbers", {})
    if summary.get("verb") != "rlhf prompts" or not numbers:
        return []
    bars = {k.partition("/")[2] or k: v for k, v in numbers.items() if k == "kept" or k.startswith("left_out/")}
    drawn = figures.bars_with_intervals(bars, ylabel="share of calls (95% interval)", percent=True)
    figures.save(drawn, folder / "figures", "calls")
    caption = "What became of the calls: kept, or left out for one reason each."
    found = [{"file": "calls.svg", "caption": caption, "alt": "Bars of calls by what became of them"}]
    rows = read_rows(folder / "prompts.jsonl")
    if len(rows) > 1:
        lengths = {
            kind: [len(r["prompt"].split()) for r in rows if r["kind"] == kind] for kind in ("helpful", "harmless")
        }
        a, b = lengths["helpful"], lengths["harmless"]
        figures.save(
            figures.histogram_pair(a, b, ("helpful", "harmless"), xlabel="words"), folder / "figures", "lengths"
        )
        caption = "Words of the prompts that were kept, by kind of the examples they were written after."
        found.append({"file": "lengths.svg", "caption": caption, "alt": "Histograms of lengths by kind"})
    return found
