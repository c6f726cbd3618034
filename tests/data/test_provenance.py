"""§20 row 27: no prompt that a policy is trained on stems from what it is judged by."""

from __future__ import annotations

import json
from pathlib import Path

from truing.data.comparisons import load_comparisons
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.data.provenance import HELD_OUT, held_out_conversations, held_out_ids, leaks
from truing.types import Dialogue


def rows(tmp_path: Path) -> Path:
    path = tmp_path / "hh.jsonl"
    text = "\n\nHuman: question {}\n\nAssistant:"
    pairs = [{"prompt": text.format(i), "chosen": " good", "rejected": " bad"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return path


def test_every_prompt_id_is_checked_against_what_the_preference_model_held_out(tmp_path: Path):
    prompts = load_prompt_rows(rows(tmp_path))
    (tmp_path / HELD_OUT).write_text('{"id": "hh:3", "gap": 0.5}\n{"id": "hh:5", "gap": -1}\n')
    ids = held_out_ids(tmp_path)
    assert ids == {"hh:3", "hh:5"}
    assert [row.id for row, _ in leaks(prompts, ids)] == ["hh:3", "hh:5"]
    assert not leaks([row for row in prompts if row.id not in ids], ids)


def test_a_prompt_written_after_a_held_out_one_is_held_out_too(tmp_path: Path):
    path = tmp_path / "written.jsonl"
    path.write_text('{"id": "w1", "prompt": "New?", "examples": ["hh:1", "hh:3"]}\n{"id": "w2", "prompt": "Newer?"}\n')
    found = leaks(load_prompt_rows(path), {"hh:3"})
    assert [(row.id, why) for row, why in found] == [("w1", "was written after the held-out 'hh:3'")]


def test_the_same_conversation_under_another_id_is_found(tmp_path: Path):
    held_out = load_comparisons(rows(tmp_path))[:1]
    longer = Dialogue().ask("Question  0").reply("good").ask("And then?")
    prompts = [PromptRow(longer, "x", 1, "f"), PromptRow(Dialogue().ask("Other"), "y", 2, "f")]
    found = leaks(prompts, held_out=held_out)
    assert [(row.id, why) for row, why in found] == [("x", "begins like 'hh:1' of the held-out data")]


def test_a_folder_that_says_nothing_holds_nothing_out(tmp_path: Path):
    assert held_out_ids(tmp_path) == set()


def test_a_conversation_decides_where_it_is_known_and_an_id_where_it_is_not(tmp_path: Path):
    """Rows of two files of one name have the same ids; a folder written by an older run knows ids alone."""
    prompts = load_prompt_rows(rows(tmp_path))
    assert leaks(prompts, {"hh:3"}, ["question 4"])[0][0].id == "hh:5"
    (tmp_path / HELD_OUT).write_text('{"id": "hh:3", "gap": 0.5, "conversation": "question 4"}\n{"id": "hh:5"}\n')
    assert held_out_conversations(tmp_path) == {"question 4"} and held_out_conversations(tmp_path / "no") == set()
