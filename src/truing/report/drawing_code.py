"""The figures of a ``truing code`` run, from its numbers and its ``grid.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures

ARMS = {
    "": "best setting",
    "/before": "best setting, before",
    "/fixed": "fixed setting",
    "/fixed/before": "fixed setting, before",
}


def code_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """pass@k at the best settings and at the fixed one, and pass@k of the smallest k at every setting."""
    numbers = {k: v for k, v in summary.get("numbers", {}).items() if k.startswith("pass@")}
    if summary.get("verb") != "code" or not numbers:
        return []
    ks = [int(name[5:]) for name in numbers if "/" not in name]
    arms = {end: label for end, label in ARMS.items() if f"pass@{ks[0]}{end}" in numbers}
    series = {label: [(float(k), numbers[f"pass@{k}{end}"]) for k in ks] for end, label in arms.items()}
    if len(ks) > 2:
        drawn = figures.lines(series, xlabel="k: tries", ylabel="problems solved", log_x=True, percent=True)
    else:
        bars = {f"pass@{k}": {label: numbers[f"pass@{k}{end}"] for end, label in arms.items()} for k in ks}
        drawn = figures.bars_with_intervals(bars, ylabel="problems solved", percent=True)
    figures.save(drawn, folder / "figures", "pass-at-k")
    said = "Share of problems that one of k tries solves, with 95% intervals."
    return [{"file": "pass-at-k.svg", "caption": said, "alt": "pass@k against k"}, *_settings(folder, f"pass@{ks[0]}")]


def _settings(folder: Path, name: str) -> list[dict[str, str]]:
    if not (folder / "grid.csv").exists():
        return []
    with open(folder / "grid.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "after"]
    cells = {(float(row["temperature"]), float(row["top_p"])): float(row[name]) for row in rows}
    ts, ps = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
    if len(cells) < 3:
        return []
    ps = sorted(p for p in ps if any((t, p) in cells for t in ts if t))
    grid = [[cells.get((t, p if t else 1.0)) for p in ps] for t in ts]
    labels = [f"temperature {t:g}" for t in ts], [f"top-p {p:g}" for p in ps]
    low = min(cells.values())
    figures.save(figures.matrix_heatmap(*labels, grid, label=name, low=low), folder / "figures", "settings")
    return [{"file": "settings.svg", "caption": f"{name} at every setting of the grid.", "alt": f"{name} by setting"}]
