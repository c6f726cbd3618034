"""The nouns: order of turns, messages there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.types import Comparison, Dialogue, Question, Sample, Turn

texts = st.text(max_size=12)


@st.composite
def dialogues(draw, words=texts, system=True) -> Dialogue:
    """Well-formed dialogues: perhaps a system turn, then human and assistant in turn."""
    turns = [Turn("system", draw(words))] if system and draw(st.booleans()) else []
    for i in range(draw(st.integers(1, 5))):
        turns.append(Turn("assistant" if i % 2 else "human", draw(words)))
    return Dialogue(tuple(turns))


@given(dialogues())
def test_messages_round_trip(dialogue):
    """Catches a role lost or renamed on the way to chat messages and back."""
    messages = dialogue.to_messages()
    assert Dialogue.from_messages(messages) == dialogue
    assert {m["role"] for m in messages} <= {"system", "user", "assistant"}
    assert dialogue.problems() == []


@given(dialogues())
def test_prompt_is_what_stands_before_the_last_reply(dialogue):
    """Catches a prompt that loses a human turn, or keeps the reply."""
    prompt = dialogue.prompt
    assert prompt.turns == dialogue.turns[: len(prompt)]
    assert prompt.is_prompt == (prompt.last.role == "human")
    if dialogue.last.role == "assistant":
        assert prompt.reply(dialogue.last.text) == dialogue
    else:
        assert prompt is dialogue
    assert prompt + Dialogue(dialogue.turns[len(prompt) :]) == dialogue


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("", "no human turn"),
        ("s", "no human turn"),
        ("a", "no human turn"),
        ("ah", "turn 1 is assistant"),
        ("hh", "turn 2 is human"),
        ("haa", "turn 3 is assistant"),
        ("hs", "turn 2 is system"),
        ("shah", None),
    ],
)
def test_problems_are_named(roles, said):
    """Catches two humans in a row, or a system turn in the middle, passed as well-formed."""
    names = {"s": "system", "h": "human", "a": "assistant"}
    found = Dialogue(tuple(Turn(names[r], "x") for r in roles)).problems()
    assert found == [] if said is None else any(said in problem for problem in found)


def test_what_is_no_message_says_where():
    """Catches a KeyError in place of the message's number."""
    good = {"role": "user", "content": "Hi"}
    for bad, said in (
        ({"role": "tool", "content": "x"}, "message 2 has role 'tool'"),
        ({"content": "x"}, "message 2 has role None"),
        ({"role": "user", "content": ["x"]}, "content of type list"),
        ({"role": "user"}, "content of type NoneType"),
    ):
        with pytest.raises(ValueError, match=said):
            Dialogue.from_messages([good, bad])
    with pytest.raises(ValueError, match="no last turn"):
        Dialogue().last  # noqa: B018
    assert Dialogue().prompt == Dialogue() and not Dialogue().is_prompt


def test_a_dialogue_is_frozen_and_can_be_a_key():
    """Catches turns kept in a list: equal dialogues would not be one key."""
    one, two = Dialogue().ask("Hi").reply("Yo"), Dialogue().ask("Hi").reply("Yo")
    assert len({one, two}) == 1
    with pytest.raises(AttributeError):
        one.turns = ()
    before = one.prompt
    before.ask("more")
    assert len(before) == 1


def test_small_nouns():
    """Catches sides exchanged in a comparison."""
    comparison = Comparison(Dialogue().ask("Hi"), chosen="good", rejected="bad")
    assert comparison.chosen_dialogue.last.text == "good" and comparison.rejected_dialogue.last.text == "bad"
    assert comparison.chosen_dialogue.prompt == comparison.rejected_dialogue.prompt == comparison.prompt
    assert Sample("", (), (), "length", 0).logprob == 0
    assert Question("?", choices=("a", "b"), answer=1, kind="choice").choices[1] == "b"
