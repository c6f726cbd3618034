"""The figures of ``pm eval``: accuracy by group beside the baselines, and above rising thresholds."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures


def preference_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Accuracy of a preference model on each group of pairs beside its baselines, and above rising thresholds."""
    if summary.get("verb") != "pm eval":
        return []
    numbers, found = summary.get("numbers", {}), []
    families: dict[str, dict[str, Any]] = {}
    for name, number in numbers.items():
        first, _, rest = name.partition("/")
        if first in ("accuracy", "baseline") and number["value"] is not None:
            family = "baseline" if first == "baseline" else rest.partition("/")[0] if "/" in rest else "model"
            label = rest.rpartition("/")[2] or "all pairs"
            families.setdefault(family, {})[f"{label} (n = {number['n']:,})"] = number
    said = {
        "model": "The model on all pairs and on each kind.",
        "baseline": "What needs no model: lengths, chance, word counts.",
        "source": "Accuracy by source.",
        "turn": "Accuracy by number of human turns before the replies.",
        "gap": "Accuracy by score gap |Δ| in PM units: a surer model should be right more often.",
        "length": "Accuracy by length of the chosen reply beside the rejected one: equal bars, no bias to length.",
    }
    for family, caption in said.items():
        if bars := families.get(family):
            drawn = figures.bars_with_intervals(bars, ylabel="share right (95% interval)", reference=0.5, percent=True)
            figures.save(drawn, folder / "figures", f"accuracy_{family}")
            found.append({"file": f"accuracy_{family}.svg", "caption": caption, "alt": f"Bars of accuracy, {family}"})
    path = folder / "thresholds.csv"
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: float(v) if v and k != "unit" else None for k, v in r.items()} for r in csv.DictReader(file)]
        points = [(r["threshold"] or 0.0, {**r, "n": int(r["n"] or 0)}) for r in rows]
        drawn = figures.lines(
            {"pairs above": points},
            xlabel="both scores above (PM units, centred)",
            ylabel="share right (95% interval)",
            reference=0.5,
            percent=True,
        )
        figures.save(drawn, folder / "figures", "thresholds")
        caption = "Accuracy among pairs that both score above a rising threshold: pairs of good replies are harder."
        found.append({"file": "thresholds.svg", "caption": caption, "alt": "Accuracy against threshold"})
    return found
