"""``truing compare`` and ``truing report``: two runs' numbers side by side, pages rebuilt, pages of several runs.

Knows run folders by their files only, not what made them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from truing import stats
from truing.configs import Compare, ReportConfig
from truing.report.numbers import digits, interval_text
from truing.report.page import build, write_story
from truing.runs import Run
from truing.runs.atomic import read_rows


def compare(config: Compare) -> dict[str, Any]:
    """Differences B − A of all numbers that both runs have.

    Rows that both runs kept of the same items (``rows.jsonl``, joined by ``id``) give paired differences of means,
    which are far sharper. Without them the interval takes the two runs as independent.
    Raises ValueError if a run has no summary or the two share no number.
    """
    a, b = Run.load(config.a), Run.load(config.b)
    one, two = a.summary()["numbers"], b.summary()["numbers"]
    shared = [k for k in one if k in two]
    if not shared:
        raise ValueError(
            f"{a.name} and {b.name} share no number: the first has {', '.join(one) or 'none'}; "
            f"the second {', '.join(two) or 'none'}."
        )
    paired = paired_differences(read_rows(a.path / "rows.jsonl"), read_rows(b.path / "rows.jsonl"), config.seed)
    numbers = {k: difference(one[k], two[k]) for k in shared}
    numbers |= {f"paired/{k}": v.as_dict() for k, v in paired.items()}
    rows = [[k, digits(one[k]["value"]), digits(two[k]["value"]), *_cells(numbers[k])] for k in shared]
    rows += [[f"{k} (paired rows)", "", "", *_cells(numbers[f"paired/{k}"])] for k in paired]
    notes = [f"A is {a.name}, B is {b.name}. A number whose interval leaves out 0 differs."]
    if paired:
        notes.append("Paired rows compare the same items: where a number stands twice, the paired one is the sharper.")
    else:
        notes.append("The runs keep no rows of the same items, so the intervals take them as independent.")
    left = sorted(set(one) ^ set(two))
    if left:
        notes.append(f"Only in one of the two: {', '.join(left)}.")
    table = {"columns": ("number", "A", "B", "B − A", "95% interval", "n"), "rows": rows}
    return {"numbers": numbers, "notes": notes, "table": table}


def _cells(number: Mapping[str, Any]) -> list[str]:
    return [digits(number["value"]), interval_text(number), digits(number["n"]) if number["n"] else ""]


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """B − A of two independent numbers, the interval by MOVER (Zou & Donner 2008) from the two intervals."""
    n = min((x["n"] for x in (a, b) if x.get("n") is not None), default=None)
    out = {"value": None, "low": None, "high": None, "n": n, "unit": b.get("unit") or ""}
    if a["value"] is None or b["value"] is None:
        return out
    value = b["value"] - a["value"]
    out["value"] = value
    ends = [x.get(k) for x in (a, b) for k in ("low", "high")]
    if all(e is not None for e in ends):
        out["low"] = value - math.hypot(b["value"] - b["low"], a["high"] - a["value"])
        out["high"] = value + math.hypot(b["high"] - b["value"], a["value"] - a["low"])
    return out


def paired_differences(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], seed: int = 0
) -> dict[str, stats.Interval]:
    """Mean of B − A over rows with the same ``id``, for every numeric column that both have on every shared row."""
    old = {row["id"]: row for row in a if "id" in row}
    pairs = [(old[row["id"]], row) for row in b if row.get("id") in old]
    columns = [
        k for k in (pairs[0][0] if pairs else ()) if k != "id" and all(_number(x.get(k)) for p in pairs for x in p)
    ]
    clusters = [row.get("cluster", row["id"]) for _, row in pairs]
    return {
        k: stats.difference_interval([y[k] for _, y in pairs], [x[k] for x, _ in pairs], clusters, seed=seed)
        for k in columns
    }


def _number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def report(config: ReportConfig) -> Run | dict[str, Any]:
    """Rebuild the pages of runs; several runs also get one page together, in a run of its own."""
    found = [Run.load(name) for name in config.runs]
    if config.dry_run:
        return {"lines": [f"Would rebuild {run.path / 'report.html'}" for run in found]}
    pages = [build(run.path) for run in found]
    lines = [f"Page: {page}" for page in pages]
    if len(found) == 1:
        return {"lines": lines, "more": {"pages": [str(p) for p in pages]}}
    done = [run for run in found if run.done]
    if not done:
        raise ValueError("None of these runs is finished; a common page needs at least one.")
    together = Run.open("report", config, data_files=[run.path / "summary.json" for run in done])
    write_story(together.path, _together(done, together))
    if not together.done:
        numbers = {f"{run.name}/{k}": v for run in done for k, v in run.summary()["numbers"].items()}
        together.finish(numbers, [f"{run.name} is unfinished and left out." for run in found if not run.done])
    return together


def _together(found: Sequence[Run], together: Run) -> dict[str, Any]:
    summaries = {run.name: run.summary()["numbers"] for run in found}
    names = list(dict.fromkeys(k for numbers in summaries.values() for k in numbers))
    rows = [[k, *(numbers.get(k) for numbers in summaries.values())] for k in names]
    table = {"caption": "Every number of every run", "columns": ["number", *summaries], "rows": rows}
    sections: list[dict[str, Any]] = [{"title": "Side by side", "tables": [table]}]
    for i, run in enumerate(found):
        figures = []
        for svg in sorted((run.path / "figures").glob("*.svg")):
            name = f"{i + 1}-{svg.name}"
            shutil.copyfile(svg, together.figures / name)
            figures.append({"file": name, "caption": svg.stem.replace("-", " ")})
        notes = run.summary().get("notes", [])
        sections.append({"title": run.name, "text": f"truing {run.verb}", "figures": figures, "notes": notes})
    return {"title": f"{len(found)} runs", "sections": sections}
