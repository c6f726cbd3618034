from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.comparisons import (
    comparison_to_row,
    conversation_key,
    from_choice,
    from_red_team_choice,
    load_comparisons,
    read_comparisons,
    row_to_comparison,
    split_by_conversation,
    training_comparisons,
)
from truing.data.files import DataError, write_rows
from truing.types import Comparison, Dialogue

ASK = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Help?\n\nAssistant:"
PROMPT = Dialogue().ask("Hi").reply("Hello").ask("Help?")
HH = {"chosen": f"{ASK} Sure", "rejected": f"{ASK} No"}
MESSAGES = PROMPT.to_messages()
words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)
texts = words.filter(lambda t: "Human:" not in t and "Assistant:" not in t and t.strip() != "")


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        HH,
        {"prompt": ASK, "chosen": " Sure", "rejected": " No"},
        {"prompt": ASK, "chosen": f"{ASK} Sure", "rejected": f"{ASK} No"},
        {"prompt": ASK.lstrip(), "chosen": "Sure", "rejected": "No"},
        {"prompt": MESSAGES, "chosen": "Sure", "rejected": "No"},
        {"prompt": MESSAGES, "chosen": say("Sure"), "rejected": say("No")},
        {"chosen": MESSAGES + say("Sure"), "rejected": MESSAGES + say("No")},
        {"prompt": MESSAGES, "chosen": MESSAGES + say("Sure"), "rejected": MESSAGES + say("No")},
    ],
)
def test_every_public_format_is_one_comparison(row: dict[str, Any]) -> None:
    c = row_to_comparison(row)
    assert (c.prompt, c.chosen, c.rejected) == (PROMPT, "Sure", "No")


def test_a_plain_prompt_is_one_human_turn() -> None:
    row = {"prompt": "Hi", "chosen": " kept space", "rejected": "No"}
    assert row_to_comparison(row).prompt == Dialogue().ask("Hi")
    assert row_to_comparison(row).chosen == " kept space"


def test_the_join_is_the_last_assistant_mark_not_the_common_beginning() -> None:
    """Replies that begin alike (``I can``) belong to the replies, and an earlier reply to the prompt."""
    c = row_to_comparison({"chosen": f"{ASK} I can help", "rejected": f"{ASK} I can not"})
    assert (c.chosen, c.rejected) == ("I can help", "I can not")


def test_consecutive_assistant_turns_stay_in_the_prompt() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: One\n\nAssistant:"
    c = row_to_comparison({"chosen": f"{text} a", "rejected": f"{text} b"})
    assert [t.role for t in c.chosen_dialogue.turns] == ["human", "assistant", "assistant"]
    assert comparison_to_row(c, "hh") == {"chosen": f"{text} a", "rejected": f"{text} b"}


def test_words_after_the_reply_are_cut() -> None:
    row = HH | {"rejected": f"{ASK} No\n\nHuman: more"}
    assert row_to_comparison(row).rejected == "No"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"chosen": "x"}, "rejected"),
        ({"prompt": "x", "chosen": 3, "rejected": "y"}, "chosen"),
        ({"chosen": "no marks", "rejected": f"{ASK} No"}, "chosen"),
        ({"prompt": {"a": 1}, "chosen": "x", "rejected": "y"}, "prompt"),
        ({"prompt": " ", "chosen": "x", "rejected": "y"}, "prompt"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "chosen"),
        ({"prompt": [{"role": "boss", "content": "x"}], "chosen": "x", "rejected": "y"}, "prompt"),
        (HH | {"strength": 5}, "strength"),
        (HH | {"strength": True}, "strength"),
        (HH | {"kind": "nice"}, "kind"),
        (HH | {"arms": ["one"]}, "arms"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    write_rows(tmp_path / "a.jsonl", [HH, row])
    with pytest.raises(DataError) as caught:
        load_comparisons(tmp_path / "a.jsonl")
    assert f"a.jsonl, line 2: field '{field}'" in str(caught.value)
    assert len(load_comparisons(tmp_path / "a.jsonl", on_problem="drop")) == 1


def test_unusable_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = HH | {"rejected": HH["rejected"].replace("Hello", "Hey")}
    write_rows(tmp_path / "harmless-x.jsonl", [HH, other, {"chosen": HH["chosen"], "rejected": HH["chosen"]}])
    loaded = read_comparisons(tmp_path / "harmless-x.jsonl")
    assert [(c.id, c.kind) for c in loaded.comparisons] == [("harmless-x:1", "harmless")]
    assert (loaded.counts["unequal_prompts"], loaded.counts["identical_pairs"]) == (1, 1)
    assert "2 of 3 rows left out" in caplog.text
    write_rows(tmp_path / "none.jsonl", [other])
    with pytest.raises(DataError, match="none of the 1 rows"):
        load_comparisons(tmp_path / "none.jsonl")


@given(st.lists(texts, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), texts, texts)
def test_every_form_reads_back_the_same(turns: list[str], chosen: str, rejected: str) -> None:
    prompt = Dialogue()
    for i, text in enumerate(turns):
        prompt = prompt.reply(text) if i % 2 else prompt.ask(text)
    if chosen == rejected:
        rejected += "!"
    c = Comparison(prompt, chosen, rejected, 3, "harmless", "w", ("a", "b"), "s", "1")
    assert row_to_comparison(comparison_to_row(c)) == c
    for form in ("hh", "trl"):
        back = row_to_comparison(comparison_to_row(c, form))  # type: ignore[arg-type]
        assert (back.prompt, back.chosen, back.rejected) == (prompt, chosen, rejected)


def test_hh_text_refuses_turns_that_hold_a_mark() -> None:
    c = Comparison(Dialogue().ask("say\n\nAssistant: boo"), "x", "y")
    with pytest.raises(ValueError, match="turn marker"):
        comparison_to_row(c, "hh")
    assert row_to_comparison(comparison_to_row(c)).prompt == c.prompt


@pytest.mark.parametrize("strength", [1, 2, 3, 4, None])
@pytest.mark.parametrize("task", ["helpful", "red_team"])
def test_a_red_team_click_is_turned_round_exactly_once(task: str, strength: int | None) -> None:
    """Table row 1: the slur that the attacker clicked is the rejected reply, whatever the strength."""
    c = from_choice(task, PROMPT, "clicked", "other", strength=strength, arms=("A", "B"), worker="w")  # type: ignore[arg-type]
    if task == "helpful":
        assert (c.chosen, c.rejected, c.kind, c.arms) == ("clicked", "other", "helpful", ("A", "B"))
    else:
        assert (c.chosen, c.rejected, c.kind, c.arms) == ("other", "clicked", "harmless", ("B", "A"))
        assert c == from_red_team_choice(PROMPT, "clicked", "other", strength=strength, arms=("A", "B"), worker="w")
    assert (c.strength, c.worker) == (strength, "w")
    again = row_to_comparison(comparison_to_row(c))
    assert (again.chosen, again.rejected, again.arms) == (c.chosen, c.rejected, c.arms)


@given(st.lists(st.sampled_from([None, 1, 2, 3, 4])))
def test_unsure_clicks_never_train(strengths: list[int | None]) -> None:
    """Table row 2: after export, strength 1 is counted 0 times, and nothing else is lost."""
    given_rows = [Comparison(PROMPT, "a", "b", s) for s in strengths]
    kept, counts = training_comparisons(given_rows)
    assert [c.strength for c in kept] == [s for s in strengths if s != 1]
    assert counts == {"given": len(strengths), "unsure": strengths.count(1), "kept": len(kept)}


openers = st.sampled_from(["Hi", "hi ", "HI", "What?", "Tell me", "a", "b", "c", "d"])
dialogues = st.builds(
    lambda first, rest: Dialogue().ask(first) if not rest else Dialogue().ask(first).reply("ok").ask(rest),
    openers,
    st.sampled_from(["", "more", "again"]),
)


@given(st.lists(dialogues, min_size=2, max_size=40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_no_conversation_is_in_both_parts(prompts: list[Dialogue], share: float, seed: int) -> None:
    """Table row 26: first human turns and prefixes of train and held-out do not meet."""
    items = [Comparison(p, str(i), "x") for i, p in enumerate(prompts)]
    if len({conversation_key(i) for i in items}) == 1:
        with pytest.raises(ValueError, match="one conversation"):
            split_by_conversation(items, share, seed)
        return
    train, held = split_by_conversation(items, share, seed)
    assert train and held and sorted(train + held, key=items.index) == items
    first = [{" ".join(c.prompt.turns[0].text.split()).lower() for c in part} for part in (train, held)]
    assert not first[0] & first[1]
    prefixes = [{c.prompt.turns[:n] for c in part for n in range(1, 4)} for part in (train, held)]
    assert not prefixes[0] & prefixes[1]
    mixed = split_by_conversation(items[::-1], share, seed)
    assert {c.chosen for c in mixed[1]} == {c.chosen for c in held}


def test_the_share_is_met_when_conversations_are_many() -> None:
    items = [Comparison(Dialogue().ask(f"q{i // 4}"), "a", "b") for i in range(4000)]
    for share in (0.05, 0.35, 0.5):
        assert len(split_by_conversation(items, share)[1]) == pytest.approx(4000 * share, abs=4)
    assert split_by_conversation(items, 0.5, 0)[1] != split_by_conversation(items, 0.5, 1)[1]
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_conversation(items, 1.5)
