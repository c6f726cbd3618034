"""The figures a policy's run calls for: how its training judge scored the replies before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures
from truing.runs.atomic import read_rows


def score_histograms(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Scores of a policy's evaluation replies before and after training, by kind of prompt (2204.05862 Fig 14)."""
    rows = read_rows(folder / "samples.jsonl") if summary.get("verb") == "rlhf train" else []
    rows = [row for row in rows if {"score_before", "score_after"} <= row.keys()]
    kinds = sorted({str(row.get("kind", "")) for row in rows})
    found = []
    for kind in kinds:
        mine = [row for row in rows if str(row.get("kind", "")) == kind]
        before, after = ([row[f"score_{when}"] for row in mine] for when in ("before", "after"))
        name = f"scores-{kind}" if len(kinds) > 1 else "scores"
        figure = figures.histogram_pair(before, after, xlabel="score by the training judge")
        figures.save(figure, folder / "figures", name)
        asked = f" to {kind} prompts" if len(kinds) > 1 else ""
        caption = f"Scores of evaluation replies{asked} at the start and at the end, as shares of replies."
        found.append({"file": f"{name}.svg", "caption": caption, "alt": f"Histograms of scores{asked}"})
    return found
