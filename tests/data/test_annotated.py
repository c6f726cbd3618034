"""Exports of other tools, in the shapes that their documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.data.annotated import Annotated, read_annotated, tool_of
from truing.data.files import DataError

TEXTS = {"prompt": "Why is the sky blue?", "answer1": "Because of scattering.", "answer2": "Because."}


def read(path: Path, rows: Any, **options: Any) -> Annotated:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows))
    return read_annotated(path, **options)


def told(found: Annotated) -> list[tuple[str, str, str | None]]:
    return [(c.chosen, c.rejected, c.worker) for c in found.comparisons]


def annotation(selected: str, who: Any = 1, **more: Any) -> dict[str, Any]:
    result = {"id": "x", "from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise"}
    return {
        "id": 7,
        "completed_by": who,
        "was_cancelled": False,
        "result": [result | {"value": {"selected": selected}}],
    } | more


def test_label_studio_json(tmp_path: Path):
    votes = [
        annotation("left"),
        annotation("right", {"email": "b@example.org"}),
        annotation("left", was_cancelled=True),
    ]
    comment = {"type": "textarea", "value": {"text": ["hm"]}}
    votes[0]["result"].insert(0, comment)
    rows = [{"id": 1, "data": TEXTS, "annotations": votes}, {"id": 2, "data": TEXTS, "annotations": []}]
    found = read(tmp_path / "project-1.json", rows)
    good, bad = TEXTS["answer1"], TEXTS["answer2"]
    assert told(found) == [(good, bad, "1"), (bad, good, "b@example.org")]
    assert found.counts == {"cancelled": 1, "unanswered": 1} and found.tool == "label-studio"
    assert found.comparisons[0].prompt.last.text == TEXTS["prompt"] and found.comparisons[0].kind == "helpful"


@pytest.mark.parametrize("selected", ["right", {"selected": "right"}, [{"selected": "right"}]])
def test_label_studio_min(tmp_path: Path, selected: Any):
    own = {"id": 1, "annotator": 3, "annotation_id": 5, "created_at": "2024", "lead_time": 1.5}
    found = read(tmp_path / "min.json", [TEXTS | own | {"pw": selected}])
    assert told(found) == [(TEXTS["answer2"], TEXTS["answer1"], "3")]


FIELDS = {"instruction": "Say hi", "response-1": "Hi!", "response-2": "Go away.", "response-3": "Hello."}


@pytest.mark.parametrize(
    "row",
    [
        {"id": "r", "fields": FIELDS, "responses": {"note": [{"value": 3, "user_id": "u"}], "preference": "ANSWERS"}},
        {"fields": FIELDS, "responses": [{"user_id": "u", "status": "submitted", "values": {"preference": "ANSWER"}}]},
        FIELDS | {"preference": "ANSWERS", "preference-suggestion": None, "metadata": "{}"},
        FIELDS | {"preference.responses": "VALUES", "preference.responses.users": ["u"], "preference.suggestion": None},
    ],
    ids=["to_json", "version 1 records", "version 1 dataset", "to_datasets"],
)
def test_argilla_rankings(tmp_path: Path, row: dict[str, Any]):
    ranking = [
        {"value": "response-2", "rank": 3},
        {"value": "response-3", "rank": 1},
        {"value": "response-1", "rank": 1},
    ]
    answer = {"value": ranking, "user_id": "u", "status": "submitted"}
    text = json.dumps(row).replace('"ANSWERS"', json.dumps([answer]))
    text = text.replace('"ANSWER"', json.dumps({"value": ranking})).replace('"VALUES"', json.dumps([ranking]))
    found = read(tmp_path / "a.jsonl", [json.loads(text)])
    assert sorted(told(found)) == [("Hello.", "Go away.", "u"), ("Hi!", "Go away.", "u")]
    assert found.counts == {"ties": 1}  # two share the first place


def test_argilla_labels_ties_and_discarded(tmp_path: Path):
    fields = {k: FIELDS[k] for k in ("instruction", "response-1", "response-2")}
    answers = [
        ("response-2", "submitted"),
        ("Response 1", "submitted"),
        ("tie", "submitted"),
        ("response-1", "discarded"),
    ]
    votes = [{"value": v, "user_id": f"u{i}", "status": s} for i, (v, s) in enumerate(answers)]
    found = read(tmp_path / "a.jsonl", [{"id": "1", "fields": fields, "responses": {"better": votes}}])
    assert told(found) == [("Go away.", "Hi!", "u0"), ("Hi!", "Go away.", "u1")]
    assert found.counts == {"ties": 1, "discarded": 1}


ITEM = {"id": "i1", "prompt": "Say hi", "responses": ["Hi!", "Go away."]}


@pytest.mark.parametrize(
    ("answers", "picked"),
    [
        ({"annotations": {"preference": {"selection": "B"}}}, 1),
        ({"label_annotations": {"preference": {"labels": {"A": True}}}}, 0),
        ({"annotations": {"scale": {"scale_value": "-2"}}}, 0),
        ({"annotations": {"scale": {"scale_value": "1"}}}, 1),
        ({"annotations": {"scale": {"scale_value": "0"}}}, None),
        ({"annotations": {"preference": {"selection": "tie"}}}, None),
        ({"preference:::selection": "A", "displayed_text": "…"}, 0),
        ({"preference:::scale_value": "2"}, 1),
        ({"preference:::A": "", "preference:::B": "true"}, 1),
        ({"preference.selection": "B"}, 1),
    ],
)
def test_potato(tmp_path: Path, answers: dict[str, Any], picked: int | None):
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n")
    row = {"instance_id": "i1", "user_id": "ann"} | answers
    found = read(tmp_path / "out.jsonl", [row], items=tmp_path / "items.jsonl")
    texts = ITEM["responses"]
    assert told(found) == ([] if picked is None else [(texts[picked], texts[1 - picked], "ann")])
    assert found.counts == ({"ties": 1} if picked is None else {})


def test_potatos_own_state_and_items_by_side(tmp_path: Path):
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "i1", "prompt": "q", "left": "L", "right": "R"}) + "\n")
    state = {"user_id": "ann", "instance_id_to_label_to_value": {"i1": {"preference": {"selection": "A"}}}}
    assert told(read(tmp_path / "user_state.json", [state], items=tmp_path / "items.jsonl")) == [("L", "R", "ann")]


def test_the_more_harmful_pick_is_rejected(tmp_path: Path):
    rows = [{"id": 1, "data": TEXTS, "annotations": [annotation("left")]}]
    c = read(tmp_path / "x.json", rows, task="red_team").comparisons[0]
    assert (c.rejected, c.kind) == (TEXTS["answer1"], "harmless")


def test_a_dialogue_as_prompt_and_a_field_of_another_name(tmp_path: Path):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    data = {"talk": chat, "a": "Because.", "b": "No."}
    rows = [{"id": 1, "data": data, "annotations": [annotation("right")]}]
    found = read(tmp_path / "x.json", rows, prompt="talk")
    assert len(found.comparisons[0].prompt) == 3 and told(found) == [("No.", "Because.", "1")]
    with pytest.raises(DataError, match="there is no prompt: the texts are called talk, a, b. Name the field"):
        read(tmp_path / "x.json", rows)


@pytest.mark.parametrize(
    ("data", "selected", "said"),
    [
        (TEXTS, "middle", "'middle' is none of the texts"),
        (TEXTS | {"note1": "x", "note2": "y"}, "answer1", "not clear which two"),
        ({"prompt": "q", "metadata": "x", "one": "y"}, "left", "'left' is none of the texts"),
    ],
)
def test_what_cannot_be_understood_is_said(tmp_path: Path, data: dict[str, str], selected: str, said: str):
    with pytest.raises(DataError, match=said):
        read(tmp_path / "x.json", [{"id": 1, "data": data, "annotations": [annotation(selected)]}])


def test_our_own_rows_are_of_no_tool():
    for row in ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"transcript": "x"}, {"question": "q", "answers": []}):
        assert tool_of(row) is None
