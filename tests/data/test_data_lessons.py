"""What context distillation reads: rows of five kinds, mixed by share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.data.files import DataError
from truing.data.lessons import Lesson, held_last, load_lessons, mixed
from truing.text import to_hh
from truing.types import Dialogue


def load(tmp_path: Path, *rows: dict[str, Any]) -> list[Lesson]:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_lessons(tmp_path / "x.jsonl")


def test_rows_of_all_kinds_are_dialogues(tmp_path: Path):
    answers = [{"text": "worst", "score": -2}, {"text": "best", "score": 7}, {"text": "good", "score": 3}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    found = load(
        tmp_path,
        {"text": "Once upon a time.", "id": "story"},
        {"question": "Why?", "answer": "Because."},
        {"question": "Which?", "answers": answers},
        {"messages": turns},
        {"dialogue": "\n\nHuman: c\n\nAssistant: d"},
        {"chosen": "\n\nHuman: e\n\nAssistant: f", "rejected": "\n\nHuman: e\n\nAssistant: g"},
    )
    assert [x.material for x in found] == ["text", *["dialogue"] * 5]
    assert to_hh(found[0].dialogue).startswith("\n\nHuman: Once upon a time."), "a human turn is opened (App A.1)"
    assert [x.dialogue.last.text for x in found[1:]] == ["Because.", "best", "b", "d", "f"]
    assert len(found[3].dialogue) == 4 and [x.id for x in found[:2]] == ["story", "x:2"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"txt": "a"}, "line 1.*fields txt"),
        ({"text": 3}, "line 1.*'text'.*3"),
        ({"text": "  "}, "line 1.*no human turn"),
        ({"question": "Why?"}, "line 1.*'answer'"),
        ({"question": "Why?", "answers": ["a"]}, "line 1.*'answers'.*score"),
        ({"dialogue": [{"role": "nobody", "content": "a"}]}, "line 1.*'dialogue'.*nobody"),
    ],
)
def test_a_row_that_is_none_of_them_is_named(row: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        load(tmp_path, row)


def some(texts: int, talks: int) -> list[Lesson]:
    plain = [Lesson(Dialogue().ask(f"t{i}"), "text") for i in range(texts)]
    return plain + [Lesson(Dialogue().ask(f"d{i}").reply("x"), "dialogue") for i in range(talks)]


def test_the_larger_part_is_cut_to_the_share_asked_for():
    for share, texts, talks in ((0.5, 10, 10), (0.25, 10, 30), (0.0, 0, 40), (1.0, 10, 0)):
        found = mixed(some(10, 40), share, seed=1)
        kinds = [x.material for x in found]
        assert (kinds.count("text"), kinds.count("dialogue")) == (texts, talks)
        assert found == mixed(some(10, 40), share, seed=1) and len(set(found)) == len(found)
    assert len(mixed(some(0, 7), 0.5)) == 7, "where only one is there, all of it"
    assert mixed(some(20, 20), 0.5, seed=1) != mixed(some(20, 20), 0.5, seed=2)
    with pytest.raises(ValueError, match="nothing to distil"):
        mixed([], 0.5)
    with pytest.raises(ValueError, match="text_share is 2"):
        mixed(some(1, 1), 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_conversation_is_both_learned_and_held_out(seed: int):
    """Table row 27 for distillation. Planted: the last rows held out, whatever conversation they belong to."""
    random = np.random.default_rng(seed)
    firsts = [f"Question {i}?" for i in random.integers(0, 12, 60)]
    rows = [Lesson(Dialogue().ask(q).reply(f"Reply {i}"), "dialogue") for i, q in enumerate(firsts)] + some(15, 0)
    found, held = held_last(mixed(rows, 0.2, seed), 0.25, seed)
    assert sorted(map(repr, found)) == sorted(map(repr, mixed(rows, 0.2, seed))) and 10 <= held <= 28
    learned, kept = ({x.dialogue.turns[0].text for x in part} for part in (found[:-held], found[-held:]))
    assert learned and kept and not learned & kept
    assert held_last(rows, 0.0) == (rows, 0)
    one = [x for x in rows if x.dialogue.turns[0].text == firsts[0]]
    assert held_last(one, 0.5) == (one, 0), "one conversation cannot be split"
