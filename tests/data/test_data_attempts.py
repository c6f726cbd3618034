from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from truing.data.attempts import FIELDS, MISSPELT, SPELT, read_attempts, write_attempts
from truing.data.files import DataError, write_rows

ROW: dict[str, Any] = {
    "transcript": "\n\nHuman: Insult me\n\nAssistant: No",
    "min_harmlessness_score_transcript": -1.5,
    "num_params": "2.7B",
    "model_type": "plain lm",
    "rating": 3.0,
    "task_description": "get an insult",
    MISSPELT: 0.25,
    "red_team_member_id": 7,
    "is_upworker": False,
    "tags": ["Offensive language"],
}


def released(path: Path, n: int = 100) -> list[dict[str, Any]]:
    """A file with every quirk of the released one."""
    rows = [
        ROW | {"rating": float(i % 5), "tags": None if i % 3 else ["A", "B"], "red_team_member_id": i} for i in range(n)
    ]
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    return rows


def test_the_released_file_is_read_with_all_its_quirks(tmp_path: Path) -> None:
    released(tmp_path / "red_team_attempts.jsonl.gz")
    attempts = read_attempts(tmp_path / "red_team_attempts.jsonl.gz")
    assert len(attempts) == 100
    first, second = attempts[:2]
    assert first.task_description_harmlessness_score == 0.25 and first.num_params == "2.7B"
    assert (first.tags, second.tags) == (("A", "B"), ())
    assert (first.rating, first.is_upworker, second.red_team_member_id) == (0.0, False, 1)


def test_compat_gives_the_released_file_back(tmp_path: Path) -> None:
    rows = released(tmp_path / "a.jsonl.gz")
    write_attempts(tmp_path / "b.jsonl.gz", read_attempts(tmp_path / "a.jsonl.gz"), compat=True)
    assert json.loads(gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes())) == rows
    assert list(rows[0]) == [MISSPELT if f == SPELT else f for f in FIELDS]


def test_ours_are_lines_spelt_right_and_read_back_the_same(tmp_path: Path) -> None:
    released(tmp_path / "a.jsonl.gz")
    attempts = read_attempts(tmp_path / "a.jsonl.gz")
    for name in ("b.jsonl", "b.parquet", "b.csv"):
        assert write_attempts(tmp_path / name, attempts) == 100
        assert read_attempts(tmp_path / name) == attempts
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert first[SPELT] == 0.25 and MISSPELT not in first


def test_other_columns_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [ROW | {"id": "x", "attacker": "bot"}])
    (attempt,) = read_attempts(tmp_path / "a.jsonl")
    assert (attempt.id, attempt.extra) == ("x", {"attacker": "bot"})
    write_attempts(tmp_path / "b.jsonl", [attempt])
    assert read_attempts(tmp_path / "b.jsonl") == [attempt]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"transcript": None}, "transcript"),
        ({"rating": 5}, "rating"),
        ({"rating": "high"}, "rating"),
        ({"rating": True}, "rating"),
        ({"is_upworker": "maybe"}, "is_upworker"),
        ({"tags": "a,b"}, "tags"),
        ({MISSPELT: "x"}, MISSPELT),
    ],
)
def test_bad_values_are_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    write_rows(tmp_path / "a.jsonl", [ROW, ROW | change])
    with pytest.raises(DataError, match=f"a.jsonl, line 2: field '{field}'"):
        read_attempts(tmp_path / "a.jsonl")
