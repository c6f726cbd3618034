"""Dialogue ⇄ transcript ⇄ token ids. Knows tokenizers by their methods only; imports none.

The rendering belongs to the model: a tokenizer with a chat template renders chat, any other renders HH text
(2204.05862 §2). Dialogues are tokenized piece by piece, so that equal dialogue prefixes are equal token prefixes
whatever a tokenizer would merge across the join; preference models, samplers and trainers all call ``encode``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from truing.types import Dialogue, Turn

Format = Literal["hh", "chat"]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_MARK = re.compile(r"\n\n(Human|Assistant):")


def to_hh(dialogue: Dialogue) -> str:
    """HH text; a prompt (human spoke last) ends in ``\\n\\nAssistant:``."""
    parts = []
    for i, turn in enumerate(dialogue.turns):
        if turn.role == "system":
            if i:
                raise ValueError(f"turn {i + 1} is a system turn; only the first may be")
            parts.append(turn.text)
        else:
            parts.append(f"{HUMAN if turn.role == 'human' else ASSISTANT} {turn.text}")
    if dialogue.is_prompt:
        parts.append(ASSISTANT)
    return "".join(parts)


def from_hh(text: str) -> Dialogue:
    """Parse HH text; words before the first marker become a system turn, an open ``Assistant:`` is a prompt.

    Exactly one space after a marker belongs to the marker. Raises ValueError if there is no marker at all.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        raise ValueError(r"no '\n\nHuman:' turn in the text")
    turns: list[Turn] = []
    if text[: marks[0].start()]:
        turns.append(Turn("system", text[: marks[0].start()]))
    for i, mark in enumerate(marks):
        end = marks[i + 1].start() if i + 1 < len(marks) else len(text)
        body = text[mark.end() : end]
        last = i + 1 == len(marks)
        if last and mark[1] == "Assistant" and body == "" and turns and turns[-1].role == "human":
            break
        turns.append(Turn("human" if mark[1] == "Human" else "assistant", body.removeprefix(" ")))
    return Dialogue(tuple(turns))


def format_of(tokenizer: Any) -> Format:
    """``chat`` if the tokenizer carries a chat template, else ``hh``."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "hh"


def pieces(dialogue: Dialogue, tokenizer: Any = None, format: Format = "hh") -> list[str]:
    """The rendered dialogue cut at turn boundaries: joined, it is what the model reads.

    For a prompt the last piece opens the reply. An assistant turn that stands last is left open (no end-of-turn
    marker), because the sampler or the end-of-context token closes it.
    Raises ValueError if a chat template is not append-only (a longer dialogue must begin with the shorter one).
    """
    if format == "hh":
        return _hh_pieces(dialogue)
    return _chat_pieces(dialogue, tokenizer)


def _hh_pieces(dialogue: Dialogue) -> list[str]:
    out: list[str] = []
    for i, turn in enumerate(dialogue.turns):
        if turn.role == "system":
            if i:
                raise ValueError(f"turn {i + 1} is a system turn; only the first may be")
            out.append(turn.text)
        elif turn.role == "human":
            out.append(f"{HUMAN} {turn.text}")
        else:
            out += [ASSISTANT, f" {turn.text}"]
    if dialogue.is_prompt:
        out.append(ASSISTANT)
    return [p for p in out if p]


def _chat_pieces(dialogue: Dialogue, tokenizer: Any) -> list[str]:
    def render(turns: Sequence[Turn], open_reply: bool = False) -> str:
        return tokenizer.apply_chat_template(
            Dialogue(tuple(turns)).to_messages(), tokenize=False, add_generation_prompt=open_reply
        )

    def after(whole: str, start: str) -> str:
        if not whole.startswith(start):
            raise ValueError(
                "This chat template rewrites earlier turns when a turn is added, so prompts and replies cannot "
                "share a beginning. Load the model with format='hh'."
            )
        return whole[len(start) :]

    out: list[str] = []
    done = ""
    turns = dialogue.turns
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            opened = render(turns[:i], open_reply=True) if i else ""
            whole = render(turns[: i + 1])
            tail = after(whole, opened)
            close = tail[len(turn.text) :] if tail.startswith(turn.text) else None
            if close is None:  # the template trimmed the text
                text = turn.text.strip()
                close = after(tail, text)
            out += [after(opened, done), turn.text]
            if i + 1 < len(turns):
                out.append(close)
            done = whole
        elif i + 1 < len(turns) and turn.role == "system":
            continue  # rendered with the human turn that follows: templates differ in where they put it
        else:
            whole = render(turns[: i + 1])
            out.append(after(whole, done))
            done = whole
    if dialogue.is_prompt:
        out.append(after(render(turns, open_reply=True), done))
    return [p for p in out if p]


def encode(dialogue: Dialogue, tokenizer: Any, format: Format = "hh") -> list[int]:
    """Token ids of a dialogue; of a prompt, ready for a reply. A BOS token comes first if the tokenizer adds one.

    ``encode(d.prompt) == encode(d)[:len(encode(d.prompt))]`` always holds.
    """
    ids: list[int] = []
    for i, piece in enumerate(pieces(dialogue, tokenizer, format)):
        ids += tokenizer(piece, add_special_tokens=format == "hh" and i == 0)["input_ids"]
    return _without_final_eos(ids, tokenizer)


def _without_final_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """Some tokenizers append EOS to every text; inside a dialogue that would end it."""
    eos = tokenizer.eos_token_id
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos and tokenizer("a")["input_ids"][-1] == eos else ids


def split_context(context: str, continuation: str, tokenizer: Any) -> tuple[list[int], list[int], bool]:
    """Token ids of context and continuation, tokenized jointly and split where the prefix ids agree.

    The third value is True if a token spans the join; then both parts are tokenized separately.
    """
    head = tokenizer(context)["input_ids"] if context else _bos(tokenizer)
    whole = tokenizer(context + continuation)["input_ids"] if context else head + _plain(continuation, tokenizer)
    if whole[: len(head)] == head and len(whole) > len(head):
        return head, whole[len(head) :], False
    return head, _plain(continuation, tokenizer), True


def _plain(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _bos(tokenizer: Any) -> list[int]:
    ids = tokenizer("")["input_ids"]
    return list(ids)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Text before the earliest stop string, and whether one was found."""
    found = [i for i in (text.find(s) for s in stops) if i >= 0]
    return (text[: min(found)], True) if found else (text, False)


def whole_sentences(text: str) -> str:
    """Text cut after its last sentence end (``. ! ?`` and closing quotes); empty if it has none."""
    ends = [m.end() for m in re.finditer(r"[.!?…]+[\"'”’)\]]*(?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else ""
