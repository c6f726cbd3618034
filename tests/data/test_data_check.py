from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from truing.configs import DataCheck, DataConvert
from truing.data.attempts import read_attempts
from truing.data.check import check_file
from truing.data.comparisons import load_comparisons
from truing.data.files import DataError, read_rows, write_rows
from truing.data.verbs import check, convert

H, A = "\n\nHuman:", "\n\nAssistant:"
GOOD = {"chosen": f"{H} Hi{A} Hello there", "rejected": f"{H} Hi{A} Go"}
PLANTED = [
    GOOD,
    {"chosen": f"{H} Hi{A} a", "rejected": f"{H} Ho{A} b"},  # unequal
    {"chosen": f"{H} Hi{A} same", "rejected": f"{H} Hi{A} same"},  # identical
    {"chosen": f"{H} Hi{A}", "rejected": f"{H} Hi{A} b"},  # blank
    {"chosen": f"{H} Hi{A} x{A} a", "rejected": f"{H} Hi{A} x{A} b"},  # two assistant turns
    {"chosen": f"{A} a", "rejected": f"{A} b"},  # no human turn
    GOOD,  # duplicate
    {"chosen": f"{H} Hi{A} x{A} a", "rejected": f"{H} Hi{A} b"},  # unequal, and bad turns in one column only
    {"chosen": f"{H} Hi{A}  ", "rejected": f"{H} Hi{A} "},  # both blank, not identical
]


def saved(folder: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> str:
    write_rows(folder / name, rows)
    return str(folder / name)


def test_planted_problems_are_counted_and_named(tmp_path: Path) -> None:
    report = check_file(saved(tmp_path, PLANTED))
    assert report.numbers == {
        "rows": 9,
        "unequal_prompts": 2,
        "empty_replies": 2,
        "identical_pairs": 1,
        "bad_turns": 3,
        "duplicates": 1,
        "usable": 6,
    }
    lines = [line for line, _ in report.problems]
    assert sorted(set(lines)) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert "line 7: equal to line 1" in report.lines
    assert "HH two-column" in report.format and not report.failed and report.exit_code == 0
    assert len(load_comparisons(tmp_path / "a.jsonl")) == report.numbers["usable"]


def test_shorter_wins_counts_the_last_replies(tmp_path: Path) -> None:
    long_first = {"chosen": f"{H} Hi{A} {'x' * 99}{H} so{A} ab", "rejected": f"{H} Hi{A} {'x' * 99}{H} so{A} abc"}
    notes = check_file(saved(tmp_path, [GOOD, long_first])).notes
    assert "shorter reply is chosen in 50.0%, the longer in 50.0%" in notes[0]


def test_strict_fails_on_any_problem_and_only_then(tmp_path: Path) -> None:
    clean, dirty = saved(tmp_path, [GOOD]), saved(tmp_path, PLANTED, "b.jsonl")
    assert [check(DataCheck(file=f, strict=s))["code"] for f, s in ((clean, True), (dirty, True), (dirty, False))] == [
        0,
        3,
        0,
    ]
    assert check(DataCheck(file=dirty, strict=True))["failed"] is True


def test_rows_that_cannot_be_understood_end_in_1(tmp_path: Path) -> None:
    result = check(DataCheck(file=saved(tmp_path, [GOOD, {"chosen": "x"}])))
    assert result["code"] == 1 and result["numbers"]["malformed"]["value"] == 1
    assert result["numbers"]["usable"]["value"] == 1
    assert any(line.startswith("line 2: field 'rejected': missing") for line in result["lines"])
    assert result["more"]["problems"][0]["line"] == 2


def test_a_line_that_is_no_json_is_one_more_malformed_row(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, [GOOD, GOOD, GOOD]))
    first, _, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{{half a row\n[1]\n{third}\n")
    report = check_file(path)
    assert report.numbers == report.numbers | {"rows": 4, "malformed": 2, "duplicates": 1, "usable": 2}
    assert [line for line, _ in report.problems] == [2, 3, 4] and report.exit_code == 1
    assert len(load_comparisons(path, on_problem="drop")) == 2
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        load_comparisons(path)
    path.write_text("half a row\n" + path.read_text())
    with pytest.raises(DataError, match="line 1: not valid JSON"):  # no JSONL at all
        check_file(path)


@pytest.mark.parametrize(
    ("rows", "kind", "numbers"),
    [
        ([{"prompt": "Hi"}, {"prompt": "Hi"}, {"prompt": [{"role": "user", "content": "x"}]}], "prompts", (3, 1, 3)),
        ([{"question": "1+1?", "answers": ["2"]}], "questions", (1, 0, 1)),
        ([{"question": "?", "choices": ["a", "b"], "answer": 1}], "questions", (1, 0, 1)),
        ([{"a": "x", "b": "y", "winner": "a", "conversation": "1"}] * 2, "games", (2, 1, 2)),
        ([{"transcript": f"{H} Hi", "rating": 3}, {"transcript": " "}], "attempts", (2, 0, 1)),
        ([{"text": "words"}, {"text": ""}], "text", (2, 0, 1)),
        ([{"context": "a", "continuation": "b"}], "context and continuation", (1, 0, 1)),
        ([{"dialogue": f"{H} Hi{A} Hello"}], "dialogues", (1, 0, 1)),
        ([{"messages": [{"role": "user", "content": "x"}]}], "messages", (1, 0, 1)),
    ],
)
def test_every_known_format_is_recognised(
    tmp_path: Path, rows: list[dict[str, Any]], kind: str, numbers: tuple[int, int, int]
) -> None:
    report = check_file(saved(tmp_path, rows))
    assert report.format == kind
    assert tuple(report.numbers[n] for n in ("rows", "duplicates", "usable")) == numbers


@pytest.mark.parametrize(
    "row",
    [
        {"a": "x", "b": "y", "winner": "x"},
        {"question": "?", "choices": ["a", "b"], "answer": 2},
        {"question": "?"},
        {"transcript": "x", "rating": 7},
        {"prompt": f"{H} Hi{A} Hello"},
        {"text": 3},
    ],
)
def test_malformed_rows_of_other_formats_are_named(tmp_path: Path, row: dict[str, Any]) -> None:
    report = check_file(saved(tmp_path, [row]))
    assert report.numbers["malformed"] == 1 and report.numbers["usable"] == 0 and report.problems[0][0] == 1


def test_unknown_rows_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: no known kind of row; it has the fields foo.*chosen and rejected"):
        check_file(saved(tmp_path, [{"foo": 1}]))


# ---------------------------------------------------------------- convert


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
@pytest.mark.parametrize("to", ["truing", "hh", "trl"])
def test_conversions_keep_every_comparison(tmp_path: Path, to: Any, suffix: str) -> None:
    rows = [GOOD, PLANTED[2], PLANTED[4], {"chosen": f"{H} ü\n\nx{A} é", "rejected": f"{H} ü\n\nx{A} [1]"}]
    source, there, back = saved(tmp_path, rows), tmp_path / f"b.{suffix}", tmp_path / "c.jsonl"
    numbers = convert(DataConvert(file=source, target=str(there), to=to))["numbers"]
    assert (numbers["rows_read"]["value"], numbers["rows_written"]["value"]) == (4, 4)
    convert(DataConvert(file=str(there), target=str(back), to="hh"))
    assert [row for _, row in read_rows(back)] == rows


def test_convert_loses_no_row_in_silence(tmp_path: Path) -> None:
    source, target = saved(tmp_path, PLANTED), tmp_path / "b.jsonl"
    with pytest.raises(DataError, match=r"2 of 9 rows cannot be converted(.|\n)*line 2: unequal prompts"):
        convert(DataConvert(file=source, target=str(target)))
    assert not target.exists()
    result = convert(DataConvert(file=source, target=str(target), on_problem="drop"))
    assert result["numbers"]["rows_written"]["value"] == 7 and "2 rows left out: 2 unequal" in result["notes"][0]


def test_convert_names_the_fields_it_cannot_keep(tmp_path: Path) -> None:
    source = saved(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b", "strength": 3, "kind": "harmless"}])
    notes = convert(DataConvert(file=source, target=str(tmp_path / "b.jsonl"), to="trl"))["notes"]
    assert "strength, kind" in notes[0]


def test_convert_never_writes_over_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path, [GOOD])
    before = Path(source).read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for target in (source, "a.jsonl", "link.jsonl"):
        with pytest.raises(DataError, match="file that is read"):
            convert(DataConvert(file=source, target=target))
    assert Path(source).read_bytes() == before


def test_convert_of_attempts_in_the_released_form(tmp_path: Path) -> None:
    source = saved(tmp_path, [{"transcript": f"{H} Hi", "rating": 2, "tags": None, "num_params": "52B"}])
    target = tmp_path / "red_team_attempts.jsonl.gz"
    convert(DataConvert(file=source, target=str(target), compat="2022"))
    (row,) = json.loads(gzip.decompress(target.read_bytes()))
    assert "task_descripton_harmlessness_score" in row and row["tags"] is None
    assert read_attempts(target)[0].rating == 2.0
    with pytest.raises(DataError, match="red-team attempts"):
        convert(DataConvert(file=saved(tmp_path, [GOOD]), target=str(target), compat="2022"))
    with pytest.raises(DataError, match="one form only"):
        convert(DataConvert(file=str(target), target=str(tmp_path / "x.jsonl"), to="trl"))


def test_convert_of_prompts_and_questions(tmp_path: Path) -> None:
    for row in ({"prompt": "Hi"}, {"question": "?", "answers": ["x"], "task": "t"}):
        source = saved(tmp_path, [row])
        convert(DataConvert(file=source, target=str(tmp_path / "b.csv")))
        assert check_file(tmp_path / "b.csv").numbers["usable"] == 1
    with pytest.raises(DataError, match="no comparisons"):
        convert(DataConvert(file=saved(tmp_path, [{"text": "x"}]), target=str(tmp_path / "b.csv")))


def test_convert_names_the_fields_that_it_leaves_behind(tmp_path: Path) -> None:
    source, target = saved(tmp_path, [{**GOOD, "length": 3, "worker": "w"}]), str(tmp_path / "out.jsonl")
    assert "Fields that the new rows do not have: length." in convert(DataConvert(file=source, target=target))["notes"]
    prompts = saved(tmp_path, [{"prompt": "Hi", "task": "greet"}], "p.jsonl")
    result = convert(DataConvert(file=prompts, target=str(tmp_path / "p2.jsonl")))
    assert result["notes"] == ["Fields that the new rows do not have: task."]
    hh = convert(DataConvert(file=saved(tmp_path, [{**GOOD, "id": "7"}]), target=target, to="hh"))
    assert hh["notes"] == ["Fields that the new rows do not have: id."]


def test_convert_does_not_miss_fields_that_it_writes_by_another_name(tmp_path: Path) -> None:
    target = str(tmp_path / "out.jsonl")
    for row in (
        {"question": "Q?", "answer": "Paris"},
        {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"transcript": f"{H} Hi", "rating": 3.0, "task_descripton_harmlessness_score": 1.5},
    ):
        result = convert(DataConvert(file=saved(tmp_path, [row]), target=target))
        assert result["notes"] == [], row
