"""A grid of 2 × 2 tiny preference models: its cells, its numbers, and what a kill leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from test_contract import check_run
from truing.configs import PMScaling, PMTrain
from truing.data.comparisons import conversation_key, load_comparisons
from truing.data.toy_hh import toy_comparisons
from truing.recipes import pm_scaling as recipe
from truing.recipes.pm_scaling import pm_scaling
from truing.report.page import build
from truing.runs import Run


def config(out: Path, **more: Any) -> PMScaling:
    options: dict[str, Any] = {"sizes": ["5K", "20K"], "pairs": [16, 48], "batch_size": 8, "max_length": 128}
    return PMScaling(**{"device": "cpu", "dtype": "float32", "threads": 1, "out": out} | options | more)


def test_a_killed_grid_goes_on_and_gives_what_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TOY_PAIRS", 30)
    trained, plain = [], recipe._train

    def dying(cell: PMTrain) -> Run:
        trained.append(cell.out.name)  # type: ignore[union-attr]
        if len(trained) == 3:
            raise KeyboardInterrupt
        return plain(cell)

    with monkeypatch.context() as once:
        once.setattr(recipe, "_train", dying)
        with pytest.raises(KeyboardInterrupt):
            pm_scaling(config(tmp_path / "out"))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cells").glob("*/summary.json")}
    run = pm_scaling(config(tmp_path / "out"))
    assert not isinstance(run, dict) and run.done and trained == ["5K-16", "5K-48", "20K-16"]
    assert len(stamps) == 2 and all(p.stat().st_mtime_ns == t for p, t in stamps.items()), "finished cells stay"
    build(run.path)
    numbers = check_run(run.path, "pm scaling")
    assert {k for k in numbers if k.startswith("accuracy/")} == {
        f"accuracy/{s}-{n}" for s in ("5K", "20K") for n in (16, 48)
    }
    assert numbers["params/5K"]["value"] < numbers["params/20K"]["value"]
    for name in ("5K-16", "20K-48"):  # the cells' own numbers
        cell = Run.load(run.path / "cells" / name).summary()["numbers"]["accuracy"]
        assert numbers[f"accuracy/{name}"]["value"] == pytest.approx(cell["value"])
    few, many = (load_comparisons(run.path / "data" / f"{n}.jsonl") for n in (16, 48))
    assert many[:16] == few, "smaller amounts are parts of larger ones"
    held_out = load_comparisons(run.path / "data" / "held_out.jsonl")
    assert {conversation_key(c) for c in many}.isdisjoint(conversation_key(c) for c in held_out)
    assert {p.stem for p in run.figures.glob("*.svg")} == {"by_data", "by_params"}


def test_time_that_is_up_leaves_a_grid_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TOY_PAIRS", 20)
    run = pm_scaling(config(tmp_path / "out", max_time=0.0))
    assert not isinstance(run, dict) and not run.done and "0 of 4 cells" in run.summary()["notes"][0]


def test_comparisons_in_memory_and_what_cannot_be_done(tmp_path: Path) -> None:
    rows = toy_comparisons(30, 0)
    train, held_out = recipe._data(config(tmp_path, pairs=[20]), rows, None, [])
    assert len(train) + len(held_out) == 30 and {c.id for c in train}.isdisjoint(c.id for c in held_out)
    with pytest.raises(ValueError, match="asks for 48 comparisons; there are 24"):
        pm_scaling(config(tmp_path / "out"), comparisons=rows)
    for bad in ({"pairs": []}, {"sizes": []}, {"pairs": [8, 8]}, {"sizes": ["5K", "5K"]}, {"pairs": [0]}):
        with pytest.raises(ValueError, match="at least one of each"):
            pm_scaling(config(tmp_path / "out", **bad))
    with pytest.raises(ValueError, match="epochs is 0"):
        pm_scaling(config(tmp_path / "out", epochs=0))
    with pytest.raises(ValueError, match="no model named 'nosuch'"):
        pm_scaling(config(tmp_path / "out", sizes=["5K", "nosuch"], pairs=[8]), comparisons=rows)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="5K and 6K make the same model"):
        pm_scaling(config(tmp_path / "same", sizes=["5K", "6K"], pairs=[8]), comparisons=rows)
    lines = pm_scaling(config(tmp_path / "out", dry_run=True, pairs=[8, 24]), comparisons=rows)["lines"]  # type: ignore[index]
    assert lines[0].startswith("4 cells; 1.33 times") and any("20K, 24 comparisons" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_unsure_comparisons_are_no_pairs_and_all_cells_judge_the_same(tmp_path: Path) -> None:
    rows = [replace(c, strength=1 + i % 4) for i, c in enumerate(toy_comparisons(60, 0))]
    options: dict[str, Any] = {"sizes": ["5K"], "pairs": [4, 8]}
    run = pm_scaling(config(tmp_path / "out", **options), comparisons=rows[:40], eval_comparisons=rows[40:])
    assert not isinstance(run, dict) and run.done
    numbers = run.summary()["numbers"]
    assert numbers["accuracy/5K-8"]["n"] == sum(c.strength != 1 for c in rows[40:]) == 15
    assert all(c.strength != 1 for c in load_comparisons(run.path / "data" / "8.jsonl"))
    assert any("10 unsure" in note for note in run.summary()["notes"])
    with pytest.raises(ValueError, match="asks for 31 comparisons; there are 30"):
        pm_scaling(config(tmp_path / "more", sizes=["5K"], pairs=[31]), comparisons=rows[:40], eval_comparisons=rows)
    with pytest.raises(ValueError, match="another"):  # other held-out comparisons make another study
        pm_scaling(config(tmp_path / "out", **options), comparisons=rows[:40], eval_comparisons=rows[30:])
