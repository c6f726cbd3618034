from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import EloConfig
from truing.data.files import DataError
from truing.measure.elo import elo, read_games
from truing.runs import Run


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def turns(conversations: int, *, p: float = 0.6, workers: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Four turns per conversation that go the same way; with workers, all of a worker's conversations do."""
    rng = np.random.default_rng(seed)
    tastes = rng.random(max(1, workers)) < p
    rows = []
    for c in range(conversations):
        winner = tastes[c % workers] if workers else rng.random() < p
        row = {"a": "new", "b": "base", "winner": "a" if winner else "b", "conversation": f"c{c}"}
        rows += [row | ({"worker": f"w{c % workers}"} if workers else {})] * 4
    return rows


def run_elo(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Run:
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    run = elo(EloConfig(file=write(tmp_path / "games.jsonl", rows), out=out, **options))
    assert isinstance(run, Run)
    return run


def width(number: dict[str, Any]) -> float:
    return number["high"] - number["low"]


def test_the_first_arm_is_zero_unless_another_is_the_anchor(tmp_path: Path) -> None:
    first = run_elo(tmp_path, turns(50)).summary()
    assert set(first) == {"verb", "run", "numbers", "notes"} and first["verb"] == "elo"
    assert list(first["numbers"]) == ["elo/new", "elo/base"]
    assert first["numbers"]["elo/new"]["value"] == 0 and first["numbers"]["elo/base"]["value"] < 0
    other = run_elo(tmp_path, turns(50), anchor="base").summary()["numbers"]
    assert other["elo/base"] == {"value": 0.0, "low": None, "high": None, "n": 200, "unit": "Elo"}
    assert other["elo/new"]["value"] == pytest.approx(-first["numbers"]["elo/base"]["value"])
    assert other["elo/new"]["low"] == pytest.approx(-first["numbers"]["elo/base"]["high"])


def test_turns_of_one_conversation_and_choices_of_one_worker_are_not_independent(tmp_path: Path) -> None:
    rows = turns(120)
    by_turn = run_elo(tmp_path, [r | {"conversation": i} for i, r in enumerate(rows)]).summary()["numbers"]
    by_conversation = run_elo(tmp_path, rows).summary()["numbers"]
    assert by_turn["elo/base"]["value"] == by_conversation["elo/base"]["value"]
    assert width(by_conversation["elo/base"]) > 1.6 * width(by_turn["elo/base"])
    people = turns(120, workers=30)
    by_worker = run_elo(tmp_path, people).summary()
    ignored = run_elo(tmp_path, [{k: v for k, v in r.items() if k != "worker"} for r in people]).summary()["numbers"]
    assert width(by_worker["numbers"]["elo/base"]) > 1.6 * width(ignored["elo/base"])
    assert any("30 workers" in note for note in by_worker["notes"])


def test_workers_that_cannot_carry_an_interval_are_said(tmp_path: Path) -> None:
    some = turns(6, workers=3)
    del some[0]["worker"]
    got = read_games(list(enumerate([some[0].copy(), *some[4:]], 1)))
    assert got.by == "conversation" and "20 rows name no worker" not in got.notes[0] and "rows name no" in got.notes[0]
    alone = read_games(enumerate([r | {"worker": "w"} for r in turns(5)], 1))
    assert alone.by == "conversation" and "one worker" in alone.notes[0]


def test_an_arm_that_never_lost_is_null_with_a_note(tmp_path: Path) -> None:
    rows = [*turns(30), {"a": "top", "b": "base", "winner": "a", "conversation": "x"}]
    summary = run_elo(tmp_path, rows, anchor="base").summary()
    assert summary["numbers"]["elo/top"]["value"] is None
    assert any(n.startswith("elo/top: won all its games") for n in summary["notes"])
    assert "NaN" not in (Path(summary["run"]) / "summary.json").read_text()


def test_tables_hold_ratings_and_wins(tmp_path: Path) -> None:
    run = run_elo(tmp_path, turns(40), anchor="base")
    with open(run.path / "elo.csv", newline="") as file:
        rows = {r["arm"]: r for r in csv.DictReader(file)}
    assert float(rows["new"]["elo"]) == pytest.approx(run.summary()["numbers"]["elo/new"]["value"])
    assert float(rows["new"]["se"]) > 0 and rows["base"]["se"] == "" and rows["new"]["games"] == "160"
    with open(run.path / "wins.csv", newline="") as file:
        wins = {r["winner"]: r for r in csv.DictReader(file)}
    assert int(wins["new"]["over base"]) + int(wins["base"]["over new"]) == 160


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": "x", "b": "y", "winner": "x", "conversation": 1}, "'winner': is 'x'; expected 'a' or 'b'"),
        ({"a": "x", "b": "x", "winner": "a", "conversation": 1}, "the same arm"),
        ({"a": "x", "b": "y", "winner": "a"}, "'conversation': is missing"),
        ({"a": "", "b": "y", "winner": "a", "conversation": 1}, "'a': is ''"),
        ({"b": "y", "winner": "a", "conversation": 1}, "'a': is None"),
    ],
)
def test_a_malformed_row_is_named_and_leaves_no_run(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "games.jsonl", [*turns(1), row])
    with pytest.raises(DataError, match="games.jsonl, line 5") as bad:
        elo(EloConfig(file=path, out=tmp_path / "out"))
    assert said in str(bad.value) and not (tmp_path / "out").exists()


def test_an_unknown_anchor_names_the_arms(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'old' is in no game; the arms are new, base"):
        run_elo(tmp_path, turns(3), anchor="old")
    assert [p.name for p in tmp_path.iterdir()] == ["games.jsonl"]


def test_the_same_command_returns_the_finished_run_and_a_dry_one_writes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "games.jsonl", turns(10))
    config = EloConfig(file=path, out=tmp_path / "out")
    assert isinstance(elo(EloConfig(file=path, out=tmp_path / "out", dry_run=True)), dict)
    assert not (tmp_path / "out").exists()
    first = elo(config)
    when = (tmp_path / "out" / "summary.json").stat().st_mtime_ns
    assert elo(config).summary() == first.summary()
    assert (tmp_path / "out" / "summary.json").stat().st_mtime_ns == when
