"""The figures of ``writers``: win rates beside a coin's, how sure they became, and Elo."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures


def writer_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Bars of win rates, the band of each over the number of rankings, and the ladder of Elo."""
    numbers = summary.get("numbers", {})
    if summary.get("verb") != "writers" or not numbers:
        return []
    found = []

    def add(name: str, drawn: Any, caption: str) -> None:
        figures.save(drawn, folder / "figures", name)
        found.append({"file": f"{name}.svg", "caption": caption, "alt": caption})

    rates = {k.removeprefix("win_rate/").replace("/", " over "): v for k, v in numbers.items() if "win_rate/" in k}
    drawn = figures.bars_with_intervals(rates, ylabel="share of rankings (95% interval)", reference=0.5, percent=True)
    add("win_rates", drawn, "How often the first arm was ranked before the second. Dashed: a coin.")
    with open(folder / "winrates.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["win_rate"]]
    series: dict[str, list[tuple[float, Any]]] = {}
    for row in rows:
        number = {k: float(row[name]) if row[name] else None for k, name in NAMES.items()}
        series.setdefault(row["arm"], []).append((float(row["rankings"]), number))
    if any(len(points) > 1 for points in series.values()):
        over = "win rate over the reference"
        drawn = figures.lines(series, xlabel="rankings so far", ylabel=over, reference=0.5, percent=True)
        add("band", drawn, "Win rate after the first rankings, with its 95% band: does it still move, is it sure?")
    ratings = {k.removeprefix("elo/"): v for k, v in numbers.items() if k.startswith("elo/")}
    add("elo", figures.elo_ladder(ratings), "Elo of the same rankings, every pair a game; intervals resample prompts.")
    return found


NAMES = {"value": "win_rate", "low": "low", "high": "high"}
