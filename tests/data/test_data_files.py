from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.data.files import DataError, is_hub_name, read_rows, write_rows

ROWS = [
    {"id": "1", "prompt": 'Hi, "you"\nthere', "answers": ["a", "b"]},
    {"id": "2", "prompt": "Grüße 你好", "answers": ["c"]},
]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def message(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_rows_come_back_from_every_format(tmp_path: Path, name: str) -> None:
    assert write_rows(tmp_path / name, ROWS) == 2
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_bom_windows_lines_and_blank_lines_keep_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\r\n')
    assert list(read_rows(path)) == [(1, {"text": "a"}), (4, {"text": "b"})]


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", gzip.compress(b'{"text": "a"}\n'))
    assert list(read_rows(path)) == [(1, {"text": "a"})]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'{"a": 1}\n{"a": \n', 2, "not valid JSON (Expecting value at column 6)"),
        (b'{"a": 1}\n\n[1]\n', 3, "expected an object"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', 2, "not UTF-8"),
        (b"plain words\n", 1, ".parquet"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", 1, "JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, line: int, words: str) -> None:
    text = message(write(tmp_path / "bad.jsonl", content))
    assert f"bad.jsonl, line {line}:" in text and words in text


def test_truncated_gzip_names_the_last_line(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"n": {i}}}\n' for i in range(20_000)).encode())
    text = message(write(tmp_path / "cut.jsonl.gz", whole[: len(whole) // 2]))
    assert "cut.jsonl.gz, line " in text and "break off" in text
    assert "not a gzip file" in message(write(tmp_path / "no.jsonl.gz", b'{"n": 1}\n'))


def test_empty_files_say_so(tmp_path: Path) -> None:
    assert "empty" in message(write(tmp_path / "a.jsonl", b""))
    assert "no rows" in message(write(tmp_path / "b.jsonl", b"\n\n"))
    assert "no rows" in message(write(tmp_path / "c.jsonl.gz", gzip.compress(b"")))
    assert "no rows" in message(write(tmp_path / "d.csv", b"prompt,chosen\n"))


def test_folder_and_missing_file_name_what_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    assert "train.jsonl" in message(tmp_path)
    with pytest.raises(FileNotFoundError, match="Near it: train.jsonl"):
        list(read_rows(tmp_path / "trian.jsonl"))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list(read_rows(tmp_path / "nowhere" / "a.jsonl"))


def test_other_archives_are_named(tmp_path: Path) -> None:
    for content, name in ((b"PK\x03\x04rest", "zip"), (lzma.compress(b"x"), "xz"), (bz2.compress(b"x"), "bzip2")):
        assert f"this is a {name} archive" in message(write(tmp_path / "a.jsonl", content))


def test_utf16_is_named(tmp_path: Path) -> None:
    assert "UTF-16" in message(write(tmp_path / "a.jsonl", '{"a": 1}\n'.encode("utf-16")))


def test_json_lists_also_under_a_jsonl_name(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ROWS), ("b.json", ROWS), ("c.json", {"data": ROWS, "version": 1})):
        write(tmp_path / name, json.dumps(content, indent=2).encode())
        assert [row for _, row in read_rows(tmp_path / name)] == ROWS
    assert "line 2" in message(write(tmp_path / "d.json", b'[{"a": 1}, 3]'))
    assert "line 3" in message(write(tmp_path / "e.json", b'[{"a": 1},\n{"a": 2},\n{"a" 3}]'))


def test_csv_counts_lines_through_quoted_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'prompt,answer\n"two\nlines",x\nlast,y\n')
    assert list(read_rows(path)) == [
        (2, {"prompt": "two\nlines", "answer": "x"}),
        (4, {"prompt": "last", "answer": "y"}),
    ]
    assert "line 3" in message(write(tmp_path / "b.csv", b"a,b\n1,2\n1,2,3\n"))
    assert "same name" in message(write(tmp_path / "c.csv", b"a,a\n1,2\n"))


def test_broken_parquet(tmp_path: Path) -> None:
    assert "Parquet" in message(write(tmp_path / "a.parquet", b"PAR1 and nothing else"))


def test_hub_names_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("Anthropic/hh-rlhf") and is_hub_name("Anthropic/hh-rlhf/harmless-base:test")
    assert not is_hub_name("data/train.jsonl") and not is_hub_name("./a/b") and not is_hub_name(Path("a/b"))
    (tmp_path / "data").mkdir()
    assert not is_hub_name("data/train")


def test_hub_rows_and_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str, **options: str) -> list[dict[str, str]]:
        asked.append((name, split, options))
        if name == "no/thing":
            raise RuntimeError("Dataset 'no/thing' doesn't exist\nlong trace")
        return [{"text": "a"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows("me/mine/part:test[:5]")) == [(1, {"text": "a"})]
    assert asked == [("me/mine", "test[:5]", {"data_dir": "part"})]
    assert "doesn't exist" in message("no/thing")


def test_a_failed_write_leaves_the_old_file_and_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, ROWS)
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_rows(path, ROWS * 5)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.jsonl"]
    for bad in (tmp_path / "a.txt", tmp_path / "a.parquet.gz"):
        with pytest.raises(DataError, match="unknown kind"):
            write_rows(bad, ROWS)
    with pytest.raises(DataError, match="no rows"):
        write_rows(path, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["text", "x"]), st.text(), min_size=1), min_size=1, max_size=5))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    write_rows(path, rows)
    assert [row for _, row in read_rows(path)] == rows


def test_half_a_surrogate_pair_survives_jsonl(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "\ud83d"}])
    assert list(read_rows(tmp_path / "a.jsonl")) == [(1, {"text": "\ud83d"})]
