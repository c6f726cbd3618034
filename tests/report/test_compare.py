"""Comparing runs, listing them, and pages of several runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from truing.configs import Compare, ReportConfig, Runs
from truing.report import compare, machine
from truing.runs import Run


@dataclass(kw_only=True)
class Tiny:
    out: Path | None = None
    seed: int = 0
    name: str = ""


def make(name: str, numbers: dict[str, Any], rows: list[dict[str, Any]] | None = None, done: bool = True) -> Run:
    run = Run.open("pm eval", Tiny(name=name), slug=name)
    if rows is not None:
        (run.path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if done:
        run.finish(numbers, [])
    return run


def number(value: float | None, half: float = 0.1, n: int = 50) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "n": n, "unit": "share"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_independent_numbers_get_an_interval_from_both():
    a = make("a", {"accuracy": {**number(0.5), "low": 0.4, "high": 0.8}, "x": 1})
    b = make("b", {"accuracy": {**number(0.9), "low": 0.5, "high": 1.0}, "y": 1})
    found = compare.compare(Compare(a=str(a.path), b=b.name))
    accuracy = found["numbers"]["accuracy"]
    assert accuracy["value"] == pytest.approx(0.4)
    assert (accuracy["low"], accuracy["high"]) == (pytest.approx(0.4 - 0.5), pytest.approx(0.4 + math.hypot(0.1, 0.1)))
    assert any("independent" in n for n in found["notes"]) and any(
        "Only in one of the two: x, y" in n for n in found["notes"]
    )


def test_rows_of_the_same_items_give_paired_differences():
    right = [i % 3 != 0 for i in range(60)]
    a = make("a", {"accuracy": number(0.6)}, [{"id": i, "correct": r, "text": "t"} for i, r in enumerate(right)])
    rows = [{"id": i, "correct": r or i == 0, "text": "t"} for i, r in enumerate(right)][::-1]
    b = make("b", {"accuracy": number(0.62)}, rows)
    found = compare.compare(Compare(a=a.name, b=b.name))
    paired = found["numbers"]["paired/correct"]
    assert paired["value"] == pytest.approx(1 / 60) and paired["n"] == 60
    assert (
        paired["high"] - paired["low"]
        < 0.1
        < found["numbers"]["accuracy"]["high"] - found["numbers"]["accuracy"]["low"]
    )
    assert set(found["numbers"]) == {"accuracy", "paired/correct"}


def test_an_undefined_number_has_no_difference():
    a, b = make("a", {"auroc": number(None)}), make("b", {"auroc": number(0.7)})
    assert compare.compare(Compare(a=a.name, b=b.name))["numbers"]["auroc"]["value"] is None


def test_runs_without_a_common_number_are_refused():
    a, b = make("a", {"x": 1}), make("b", {"y": 1})
    with pytest.raises(ValueError, match="share no number: the first has x; the second y"):
        compare.compare(Compare(a=a.name, b=b.name))


def test_one_report_of_several_runs():
    a, b = make("a", {"accuracy": number(0.5)}), make("b", {"accuracy": number(0.7)})
    left = make("c", {}, done=False)
    together = compare.report(ReportConfig(runs=[a.name, b.name, left.name]))
    assert isinstance(together, Run) and together.done
    assert (a.path / "report.html").exists() and (left.path / "report.html").exists()
    story = json.loads((together.path / "sections.json").read_text())
    assert story["sections"][0]["tables"][0]["rows"][0][:1] == ["accuracy"]
    assert together.summary()["numbers"][f"{b.name}/accuracy"]["value"] == 0.7
    assert "unfinished" in together.summary()["notes"][0]
    alone = compare.report(ReportConfig(runs=[a.name]))
    assert isinstance(alone, dict) and "report.html" in alone["lines"][0]


def test_runs_are_listed_with_their_state(here: Path):
    assert machine.runs(Runs())["more"] == {"runs": []}
    make("a", {"accuracy": number(0.5)})
    make("b", {}, done=False)
    found = machine.runs(Runs())["more"]["runs"]
    assert {(r["verb"], r["state"], r["first"]) for r in found} == {
        ("pm eval", "done", "accuracy 0.5"),
        ("pm eval", "unfinished", ""),
    }
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        machine.runs(Runs(folder="elsewhere"))
