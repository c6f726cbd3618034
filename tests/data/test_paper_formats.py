"""The paper's prompts, byte for byte, and which examples stand before a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.data.files import DataError
from truing.data.paper_formats import FORMATS, load_items, previous, prompt


def items(format: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    file = folder / f"{format}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_items(format, file)


ARC = [
    {"id": "a", "question": "Which skin makes the most heat?",
     "choices": {"text": ["dry palms", "wet palms"], "label": ["A", "B"]}, "answerKey": "A"},
    {"id": "b", "question": "What falls?",
     "choices": {"text": ["rain", "fire"], "label": ["1", "2"]}, "answerKey": "1"},
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc": ARC,
    "openbookqa": [{**row, "question_stem": row["question"], "question": None} for row in ARC],
    "mmlu": [
        {"question": q["question"], "subject": "physics", "choices": q["choices"]["text"], "answer": 0} for q in ARC
    ],
    "hellaswag": [
        {"ind": 1, "ctx": "A man [laughs] sits down. he", "endings": ["eats  soup.", "flies."], "label": "0"},
        {"ind": 2, "ctx": "How to rest [title] Lie down.", "endings": ["Run.", "Sleep [step] well."], "label": "1"},
    ],
    "lambada": [{"text": "Alice met Bob. She greeted Bob"}, {"text": "The sun rose and the sun set"}],
    "triviaqa": [
        {"question_id": "t1", "question": "Capital of France?",
         "answer": {"value": "Paris", "aliases": ["City of Light"]}},
        {"question": "2 + 2?", "answers": ["4", "four"]},
    ],
    "truthfulqa": [
        {"question": "Do stones eat?", "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]}},
        {"question": "Is the sea dry?", "mc1_targets": {"choices": ["Yes.", "No."], "labels": [0, 1]}},
    ],
    "pairs": [
        {"question": "How do I sort?", "good": "Use sorted.", "bad": "No idea."},
        {"prompt": "\n\nHuman: How do I add?\n\nAssistant:", "chosen": " With +.", "rejected": " Why?"},
    ],
}  # fmt: skip
LETTERED = (
    "Question: Which skin makes the most heat?\nChoices:\n (A) dry palms\n (B) wet palms\nAnswer: (A) dry palms\n\n"
    "Question: What falls?\nChoices:\n (A) rain\n (B) fire\nAnswer:"
)
GOLDEN = {
    "arc": (LETTERED, (" (A) rain", " (B) fire"), 0),
    "openbookqa": (LETTERED, (" (A) rain", " (B) fire"), 0),
    "mmlu": (LETTERED, (" (A) rain", " (B) fire"), 0),
    "hellaswag": (
        "A man sits down. he eats soup.\n\nHow to rest. Lie down.",
        (" Run.", " Sleep well."),
        1,
    ),
    "lambada": (
        "Alice met Bob. She greeted ____. -> Bob\nThe sun rose and the sun ____. ->",
        (" set",),
        0,
    ),
    "triviaqa": ("Q: Capital of France?\nA: Paris\n\nQ: 2 + 2?\nA:", (" 4",), 0),
    "truthfulqa": ("Q: Do stones eat?\nA: No.\n\nQ: Is the sea dry?\nA:", (" Yes.", " No."), 1),
    "pairs": (
        "\n\nHuman: How do I sort?\n\nAssistant: Use sorted.\n\n\n\nHuman: How do I add?\n\nAssistant:",
        (" With +.", " Why?"),
        0,
    ),
}


@pytest.mark.parametrize("format", FORMATS)
def test_one_example_and_the_question_byte_for_byte(format: str, tmp_path: Path) -> None:
    found = items(format, ROWS[format], tmp_path)
    read, choices, answer = GOLDEN[format]
    assert prompt(format, found, 1, 1) == read
    assert (found[1].choices, found[1].answer) == (choices, answer)


def test_without_examples_lambada_is_the_bare_passage_and_the_rest_the_question_alone(tmp_path: Path) -> None:
    passages = items("lambada", ROWS["lambada"], tmp_path)
    assert prompt("lambada", passages, 0, 0) == "Alice met Bob. She greeted"
    for format in FORMATS:
        found = items(format, ROWS[format], tmp_path)
        assert prompt(format, found, 1, 0) == found[1].asked
        assert found[1].choices[found[1].answer] not in prompt(format, found, 1, 0) or FORMATS[format].kind == "choice"
    assert items("triviaqa", ROWS["triviaqa"], tmp_path)[0].accepted == ("Paris", "City of Light")
    assert items("pairs", ROWS["pairs"], tmp_path)[1].bare == "How do I add?"


def test_examples_are_the_previous_items_and_never_the_question_itself(tmp_path: Path) -> None:
    """Row 38 of the mistakes: a question among its own examples gives its answer away."""
    rows = [{"id": f"q{i}", "question": f"What is {i}?", "answers": [f"it is {i}"]} for i in range(8)]
    rows[4] = {**rows[2], "id": "copy"}  # the same words under another id
    rows[6] = {**rows[6], "id": "q7"}  # the same id over other words
    found = items("triviaqa", rows, tmp_path)
    assert previous(found, 3, 2) == [1, 2] and previous(found, 0, 3) == [5, 6, 7]
    assert previous(found, 4, 2) == [1, 3], "a copy of the question is passed over"
    assert previous(found, 7, 2) == [4, 5], "and so is another row of its id"
    for i, item in enumerate(found):
        for shots in range(1, 6):
            shown = previous(found, i, shots)
            assert len(shown) == shots and i not in shown
            assert not {item.id, item.key} & {x for j in shown for x in (found[j].id, found[j].key)}
            assert item.accepted[0] not in prompt("triviaqa", found, i, shots)
    with pytest.raises(ValueError, match="--num-fewshot 8 needs 8 other questions"):
        previous(found, 0, 8)


@pytest.mark.parametrize(
    ("format", "row", "said"),
    [
        ("arc", {"question": "Why?", "answers": ["so"]}, "field 'choices'"),
        ("hellaswag", {"ctx": "A", "endings": ["b", "c"], "label": 2}, "field 'label'"),
        ("hellaswag", {"ctx": "A"}, "field 'endings'"),
        ("lambada", {"text": "word"}, "two words"),
        ("lambada", {"txt": "two words"}, "field 'text'.* has txt"),
        ("triviaqa", {"question": "Why?", "choices": ["a", "b"], "answer": 0}, "accepted answers"),
        ("truthfulqa", {"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "one 1"),
        ("pairs", {"question": "Why?", "good": "so", "bad": " "}, "field 'bad'"),
    ],
)  # fmt: skip
def test_a_row_of_another_shape_is_named(format: str, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        items(format, [ROWS[format][0], row], tmp_path)
