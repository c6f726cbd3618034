"""The figures a run's own files call for: training curves, reliability diagrams, an Elo ladder.

Knows file formats and column names, no run and no page; recipes draw their own figures beside these.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.report import figures
from truing.report.drawing_code import code_figures
from truing.report.drawing_eval import bias_figures, eval_figures
from truing.report.drawing_pm import preference_figures
from truing.report.drawing_prompts import prompt_figures
from truing.report.drawing_rlhf import score_histograms
from truing.report.drawing_writers import writer_figures
from truing.runs.atomic import read_rows

MOST_CURVES = 12
NOT_DRAWN = ("step", "samples", "seconds", "epoch", "reference_hash", "optimizer_steps", "token_visits")
FIRST = ("loss", "accuracy", "eval_loss", "eval_accuracy", "score", "eval_score", "eval_score_gain", "reward", "kl",
         "eval_kl", "entropy", "reply_tokens", "eos_rate", "value_explained_variance", "grad_norm", "lr")  # fmt: skip

DRAWERS = (
    code_figures,
    eval_figures,
    bias_figures,
    preference_figures,
    prompt_figures,
    writer_figures,
    score_histograms,
)
"""Each draws for some verbs and gives [] for others."""


def draw(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Draw what the files in a run folder call for into ``figures/``: dicts of file, caption and alt text."""
    found = [_reliability(folder, path) for path in sorted(folder.glob("*reliability*.csv"))]
    more = [f for each in DRAWERS for f in each(folder, summary)]
    return [f for f in [_ladder(folder, summary), *found, *more, _layers(folder), _curves(folder)] if f]


def _ladder(folder: Path, summary: Mapping[str, Any]) -> dict[str, str] | None:
    ratings = {k.removeprefix("elo/"): v for k, v in summary.get("numbers", {}).items() if k.startswith("elo/")}
    if summary.get("verb") != "elo" or not ratings:
        return None
    figures.save(figures.elo_ladder(ratings), folder / "figures", "elo")
    best = max((k for k in ratings if ratings[k]["value"] is not None), key=lambda k: ratings[k]["value"], default="–")
    return {"file": "elo.svg", "caption": "Elo of each arm with its 95% interval.", "alt": f"Elo ladder; {best} on top"}


def _reliability(folder: Path, path: Path) -> dict[str, str] | None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"mean_confidence", "accuracy", "n"} <= rows[0].keys():
        return None
    bins: list[dict[str, Any]] = [{k: float(v) for k, v in row.items() if v} for row in rows]
    figures.save(figures.reliability_diagram([b for b in bins if b["n"]]), folder / "figures", path.stem)
    n = int(sum(b["n"] for b in bins))
    caption = f"Share right against confidence in bins of equal size, n = {n:,} ({path.name}). Bars: 95% intervals."
    return {"file": f"{path.stem}.svg", "caption": caption, "alt": "Reliability diagram"}


def _layers(folder: Path) -> dict[str, str] | None:
    """AUROC by layer of every series in ``layers.csv``."""
    path = folder / "layers.csv"
    if not path.exists():
        return None
    series: dict[str, list[tuple[float, Any]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = {"value": "auroc", "low": "low", "high": "high"}
            number = {k: float(row[v]) if row[v] else None for k, v in names.items()}
            series.setdefault(row["series"], []).append((float(row["layer"]), number))
    drawn = figures.lines(series, xlabel="layer", ylabel="AUROC of outside prompts", reference=0.5)
    figures.save(drawn, folder / "figures", "layers")
    caption = "How well outside prompts are told from inside ones, by layer. Bands: 95% intervals; dashed: chance."
    return {"file": "layers.svg", "caption": caption, "alt": f"AUROC by layer of {', '.join(series)}"}


def _curves(folder: Path) -> dict[str, str] | None:
    """Curves of everything logged at three or more steps."""
    rows = read_rows(folder / "metrics.jsonl")
    logged = dict.fromkeys(k for row in rows for k in row if k not in NOT_DRAWN and not k.startswith("seconds"))
    names = [*(k for k in FIRST if k in logged), *(k for k in logged if k not in FIRST)]
    keys = [k for k in names if len({r.get("step") for r in rows if isinstance(r.get(k), int | float)}) > 2]
    if not keys:
        return None
    figures.save(figures.learning_curve(rows, keys[:MOST_CURVES]), folder / "figures", "curves")
    left = f" Not drawn: {', '.join(keys[MOST_CURVES:])}." if keys[MOST_CURVES:] else ""
    alt = f"Curves of {', '.join(keys[:MOST_CURVES])}"
    return {"file": "curves.svg", "caption": f"What was logged at each step (metrics.jsonl).{left}", "alt": alt}
