"""summarize-from-feedback's comparisons, in the form in which they were released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.configs import DataConvert
from truing.data.check import check_file
from truing.data.comparisons import load_comparisons, read_comparisons
from truing.data.files import DataError
from truing.data.tldr import from_tldr, is_tldr
from truing.data.verbs import convert
from truing.types import Dialogue

POST: dict[str, Any] = {
    "info": {"id": "t3_34xale", "post": "My boss wants me in on Sunday.\n", "title": "Help", "subreddit": "AskReddit"},
    "split": "train",
    "summaries": [
        {"text": " Boss wants Sunday.", "policy": "sup2", "note": ""},
        {"text": " I have a boss.", "policy": "ref", "note": "vague"},
    ],
    "choice": 0,
    "worker": "HNzkrs9geGu1YMMfZ5Qvdt0ZaCthfB",
    "batch": "batch3",
    "extra": {"confidence": 8},
}
NEWS = {
    **POST,
    "info": {"id": "c0", "post": None, "article": "It rained.", "site": "cnn", "title": None, "subreddit": None},
    "choice": 1,
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_post_is_asked_about_and_the_chosen_summary_is_the_reply(tmp_path: Path):
    post, news = load_comparisons(write(tmp_path / "batch3.json", POST, NEWS))
    assert post.prompt == Dialogue().ask(
        "Please summarise this post of r/AskReddit in a few sentences.\n\nHelp\n\nMy boss wants me in on Sunday."
    )
    assert (post.chosen, post.rejected, post.arms) == ("Boss wants Sunday.", "I have a boss.", ("sup2", "ref"))
    assert (post.source, post.worker, post.kind, post.id) == ("tldr", POST["worker"], "helpful", "t3_34xale:1")
    assert (news.chosen, news.rejected, news.arms) == ("I have a boss.", "Boss wants Sunday.", ("ref", "sup2"))
    assert news.prompt.last.text.endswith("It rained.") and news.source == "news"


def test_other_rows_are_left_alone():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert not is_tldr(row) and from_tldr(row) == row


def test_data_check_and_convert_know_them(tmp_path: Path):
    same = {**POST, "summaries": [POST["summaries"][0]] * 2}
    file = write(tmp_path / "c.json", POST, {**NEWS, "choice": 1.0}, same)  # tables may have no whole numbers
    report = check_file(file)
    assert report.format == "comparisons (two summaries and a choice)"
    assert report.numbers["rows"] == 3 and report.numbers["usable"] == 2 and report.numbers["identical_pairs"] == 1
    result = convert(DataConvert(file=str(file), target=str(tmp_path / "out.jsonl")))
    assert result["numbers"]["rows_written"]["value"] == 3
    assert result["notes"] == ["Fields that the new rows do not have: split, batch, extra."]
    assert load_comparisons(tmp_path / "out.jsonl") == load_comparisons(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choice": 2}, ["choice", "0 or 1", "2"]),
        ({"choice": None}, ["choice", "None"]),
        ({"summaries": POST["summaries"][:1]}, ["summaries", "two objects"]),
        ({"summaries": "x"}, ["summaries", "'x'"]),
        ({"info": {"id": "1", "post": " "}}, ["info", "'post' or 'article'"]),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, change: dict[str, Any], words: list[str]):
    file = write(tmp_path / "c.jsonl", POST, {**POST, **change})
    with pytest.raises(DataError) as problem:
        load_comparisons(file)
    assert "line 2" in str(problem.value) and all(word in str(problem.value) for word in words)
    assert read_comparisons(file, on_problem="drop").counts["malformed"] == 1
    assert check_file(file).numbers["malformed"] == 1
