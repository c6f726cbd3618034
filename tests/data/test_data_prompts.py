from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.comparisons import conversation_key, split_by_conversation
from truing.data.files import DataError, write_rows
from truing.data.prompts import (
    benign_sensitive_prompts,
    helpful_prompts,
    hhh_dialogues,
    hhh_prompt,
    load_prompt_rows,
    occupations,
    red_team_prompts,
)
from truing.text import from_hh, to_hh
from truing.types import Comparison, Dialogue


def test_packaged_sets_are_large_distinct_and_labelled() -> None:
    helpful, red, benign = helpful_prompts(), red_team_prompts(), benign_sensitive_prompts()
    assert len(helpful) >= 200 and len(red) >= 80 and len(benign) >= 40
    assert len({p.family for p in helpful}) >= 10 and min(Counter(p.family for p in helpful).values()) >= 15
    assert len({p.theme for p in red}) >= 8 and all(p.theme for p in benign)
    every = helpful + red + benign
    assert len({p.id for p in every}) == len({p.text.lower() for p in every}) == len(every)
    assert all(4 <= len(p.text.split()) <= 25 for p in every)


def test_occupations_and_pairs_of_terms_fit_the_templates() -> None:
    work, pairs = occupations()
    assert len(set(work)) == len(work) == 76 and len({t for pair in pairs for t in pair}) == 2 * len(pairs) == 24
    assert all(word[0] not in "aeiou" for word in [*work, *(t for pair in pairs for t in pair)])
    assert not any(a != b and b.startswith(a) for a in work for b in work)


def test_keywords_are_stems_and_checkable_prompts_have_answers() -> None:
    for prompt in helpful_prompts() + benign_sensitive_prompts():
        assert 3 <= len(prompt.keywords) <= 8 and all(k == k.lower() and " " not in k for k in prompt.keywords)
    answered = {p.family for p in helpful_prompts() if p.answers}
    assert answered == {"facts", "numbers"}
    assert all(p.answers for p in helpful_prompts() if p.family in answered)


def test_answers_to_sums_are_right() -> None:
    """Every ``What is a op b`` of the set, worked out again."""
    ops = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    found = 0
    for prompt in helpful_prompts():
        if m := re.fullmatch(r"What is (\d+) (plus|minus|times) (\d+)\?", prompt.text):
            assert str(ops[m[2]](int(m[1]), int(m[3]))) in prompt.answers
            found += 1
    assert found >= 4


def test_hhh_prompt_is_fourteen_conversations_in_hh_format() -> None:
    whole, short = hhh_dialogues(), hhh_dialogues(short=True)
    assert len(whole) == len(short) == 14
    assert all(not d.problems() and d.last.role == "assistant" for d in whole + short)
    assert all(len(d) == 2 for d in short) and all(d.turns[:2] == s.turns for d, s in zip(whole, short, strict=True))
    assert len(hhh_prompt().split()) > 2500
    assert hhh_prompt().count("-----") == 15
    assert len(hhh_prompt(short=True)) < 8000  # 1,601 SmolLM2 tokens; 2,000 are allowed
    opened = hhh_prompt(short=True) + to_hh(Dialogue().ask("Hi"))
    assert opened.endswith("-----\n\nHuman: Hi\n\nAssistant:")
    assert from_hh(opened).last.text == "Hi"


def test_prompts_of_every_form(tmp_path: Path) -> None:
    hh = "\n\nHuman: Hi\n\nAssistant:"
    rows = [
        {"prompt": "Hi", "id": "x"},
        {"prompt": hh},
        {"prompt": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
        {"dialogue": f"{hh} Yo"},
        {"chosen": f"{hh} a", "rejected": f"{hh} b"},
    ]
    write_rows(tmp_path / "p.jsonl", rows)
    loaded = load_prompt_rows(tmp_path / "p.jsonl")
    assert [r.dialogue for r in loaded] == [Dialogue().ask("Hi")] * 6
    assert [r.id for r in loaded[:2]] == ["x", "p:2"]
    assert [r.dialogue for r in load_prompt_rows("red-team")] == [p.dialogue for p in red_team_prompts()]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": " "}, "empty"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant: Yo"}, "does not end with a human turn"),
        ({"prompt": 3}, "expected text"),
        ({"other": "x"}, "missing"),
        ({"prompt": ["x"]}, "message 1"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, row: dict[str, object], words: str) -> None:
    write_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}, row])
    with pytest.raises(DataError, match=f"p.jsonl, line 2: field 'prompt': .*{words}"):
        load_prompt_rows(tmp_path / "p.jsonl")


def test_prompts_of_held_out_conversations_are_dropped_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Table row 27: no RL prompt comes from a conversation of the PM's held-out split."""
    held = [Comparison(Dialogue().ask("Hi").reply("Yo").ask("And?"), "a", "b")]
    write_rows(tmp_path / "p.jsonl", [{"prompt": "hi "}, {"prompt": "Other"}])
    assert [r.dialogue for r in load_prompt_rows(tmp_path / "p.jsonl", not_in=held)] == [Dialogue().ask("Other")]
    assert "1 prompts dropped" in caplog.text
    with pytest.raises(DataError, match="p.jsonl, line 1.*leak"):
        load_prompt_rows(tmp_path / "p.jsonl", not_in=held, on_overlap="error")
    with pytest.raises(DataError, match="no prompts are left"):
        load_prompt_rows(tmp_path / "p.jsonl", not_in=[*held, Dialogue().ask("Other")])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "x", "y"])), min_size=6, max_size=30))
def test_no_training_prompt_shares_a_conversation_with_held_out(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    prompts = [Dialogue().ask(a).reply("ok").ask(b) if b else Dialogue().ask(a) for a, b in pairs]
    if len({a for a, _ in pairs}) < 2:
        return
    items = [Comparison(p, str(i), "-") for i, p in enumerate(prompts)]
    _, held = split_by_conversation(items, 0.3)
    path = tmp_path_factory.mktemp("p") / "p.jsonl"
    write_rows(path, [{"prompt": p.to_messages()} for p in prompts])
    kept = [row.dialogue for row in load_prompt_rows(path, not_in=held)]
    assert not {conversation_key(p) for p in kept} & {conversation_key(c) for c in held}
    assert len(kept) == len(items) - len(held)
