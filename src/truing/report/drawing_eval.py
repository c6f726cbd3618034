"""Figures of ``truing eval`` and ``truing bias``: what tasks got right, before and after; who is spoken of how."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures

EXTREMES = 8
"""Occupations shown of either end."""


def eval_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """What share each task got right, of one model or before and after; with two models also the paired change."""
    if summary.get("verb") != "eval":
        return []
    numbers = {k: v for k, v in summary.get("numbers", {}).items() if v["unit"] == "share" and v["value"] is not None}
    plain = {k: v for k, v in numbers.items() if not k.endswith(("/before", "/difference"))}
    tasks = [k.partition("/")[2] for k in plain]
    labels = {k: f"{t} ({k.partition('/')[0]})" if tasks.count(t) > 1 else t for k, t in zip(plain, tasks, strict=True)}
    before = {k: numbers[f"{k}/before"] for k in plain if f"{k}/before" in numbers}
    if not plain:
        return []
    if not before:
        bars: dict[str, Any] = {labels[k]: v for k, v in plain.items()}
    else:
        bars = {labels[k]: {"before": before.get(k), "after": v} for k, v in plain.items()}
    drawn = figures.bars_with_intervals(bars, ylabel="questions right (95% interval)", percent=True)
    figures.save(drawn, folder / "figures", "tax")
    caption = "Share of questions answered right, by task and number of examples."
    found = [{"file": "tax.svg", "caption": caption, "alt": "Bars of accuracy by task"}]
    changes = {labels[k]: numbers[f"{k}/difference"] for k in before if f"{k}/difference" in numbers}
    if changes:
        drawn = figures.bars_with_intervals(changes, ylabel="change, after − before (95% interval)", percent=True)
        figures.save(drawn, folder / "figures", "tax_change")
        caption = "Change on the same questions. Left of 0 is the alignment tax; an interval over 0 is no change."
        found.append({"file": "tax_change.svg", "caption": caption, "alt": "Bars of the change by task"})
    return found


def bias_figures(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Leaning occupations, bias at other temperatures, sentiment and negative uses by group: each where it is there."""
    if summary.get("verb") != "bias":
        return []
    numbers = summary.get("numbers", {})
    found = [*_occupations(folder), *_temperatures(folder)]
    for name, prefix, label, reference in (
        ("sentiment", "sentiment/", "mean sentiment (95% interval)", 0.0),
        ("negative_use", "negative_use/", "negative uses among all uses (95% interval)", 0.5),
    ):
        mine = {k: v for k, v in numbers.items() if k.startswith(prefix) and k.count("/") >= 2}
        bars = _before_after(mine, prefix)
        if bars:
            drawn = figures.bars_with_intervals(bars, ylabel=label, reference=reference, percent=reference > 0)
            figures.save(drawn, folder / "figures", name)
            found.append({"file": f"{name}.svg", "caption": f"By group: {label}.", "alt": f"Bars of {label}"})
    return found


def _before_after(numbers: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Bars by group, of one model, or of both where there is a number before; groups without any value are left out."""
    plain = [k for k in numbers if not k.endswith(("/before", "/difference"))]
    two = any(f"{k}/before" in numbers for k in plain)
    bars = {k: {"before": numbers.get(f"{k}/before"), "after": numbers[k]} for k in plain}
    known = {k: v for k, v in bars.items() if any(number and number["value"] is not None for number in v.values())}
    return {k.removeprefix(prefix): v if two else v["after"] for k, v in known.items()}


def _occupations(folder: Path) -> list[dict[str, str]]:
    rows = _rows(folder / "occupations.csv")
    if not rows:
        return []
    marks = {"before": "_before", "after": ""} if "b_before" in rows[0] else {"": ""}
    bars: dict[str, Any] = {}
    for row in [*rows[:EXTREMES], *rows[-EXTREMES:]]:
        each = {}
        for name, mark in marks.items():
            value, error = float(row[f"b{mark}"]), 1.96 * float(row[f"se{mark}"] or 0)
            each[name] = {"value": value, "low": value - error, "high": value + error}
        bars[row["occupation"]] = each
    label = "ln P(occupation | woman) − ln P(occupation | man), nats"
    figures.save(figures.bars_with_intervals(bars, ylabel=label), folder / "figures", "occupations")
    caption = "The occupations that lean most to either side; mean over pairs of terms, 95% intervals."
    return [{"file": "occupations.svg", "caption": caption, "alt": "Bars of the leaning of occupations"}]


def _temperatures(folder: Path) -> list[dict[str, str]]:
    rows = _rows(folder / "temperatures.csv")
    if not rows:
        return []
    series: dict[str, list[tuple[float, Any]]] = {}
    for row in rows:
        number = {name: float(row[column]) for name, column in (("value", "bias"), ("low", "low"), ("high", "high"))}
        series.setdefault(row["model"], []).append((float(row["temperature"]), number))
    itself = [number["value"] for temperature, number in list(series.values())[-1] if temperature == 1]
    drawn = figures.lines(series, xlabel="temperature", ylabel="bias, nats", reference=itself[0] if itself else None)
    figures.save(drawn, folder / "figures", "temperatures")
    caption = "Bias when logits are divided by a temperature. The dashed line is the model as it is."
    return [{"file": "temperatures.svg", "caption": caption, "alt": "Bias against temperature"}]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
