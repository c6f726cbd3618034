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
    """Token ids of a dialogue; of a prompt, ready for a reply. In HH text a BOS comes first if the tokenizer adds one.

    ``encode(d.prompt) == encode(d)[:len(encode(d.prompt))]`` always holds. What people and models wrote is never read
    as a special token: a turn that contains ``<|im_end|>`` cannot end itself.
    """
    ids = _bos(tokenizer) if format == "hh" else []
    dialogue, quoted = _quote_special(dialogue, tokenizer)
    for piece in pieces(dialogue, tokenizer, format):
        ids += _piece_ids(piece, quoted, tokenizer) if quoted else _plain(piece, tokenizer)
    return ids


_QUOTED = re.compile("\ue000(\\d+)\ue001")


def _quote_special(dialogue: Dialogue, tokenizer: Any) -> tuple[Dialogue, list[str]]:
    """The dialogue with every special token that stands in a turn's words replaced by a numbered mark."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    quoted = [s for s in special if any(s in turn.text for turn in dialogue.turns)]
    if not quoted:
        return dialogue, []
    quoted.sort(key=len, reverse=True)
    anywhere = re.compile("|".join(map(re.escape, quoted)))

    def mark(text: str) -> str:
        return anywhere.sub(lambda found: f"\ue000{quoted.index(found[0])}\ue001", text)

    return Dialogue(tuple(Turn(t.role, mark(t.text)) for t in dialogue.turns)), quoted


def _piece_ids(piece: str, quoted: Sequence[str], tokenizer: Any) -> list[int]:
    """Ids of a piece in which marks stand for quoted special tokens, which are spelt out."""
    ids: list[int] = []
    for i, part in enumerate(_QUOTED.split(piece)):
        if i % 2 == 0:
            ids += _plain(part, tokenizer) if part else []
        else:
            words = quoted[int(part)] if int(part) < len(quoted) else f"\ue000{part}\ue001"
            ids += tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def split_context(context: str, continuation: str, tokenizer: Any) -> tuple[list[int], list[int], bool]:
    """Token ids of context and continuation, tokenized jointly and split where the prefix ids agree.

    The context begins with a BOS if the tokenizer adds one. The third value is True if a token spans the join; then
    both parts are tokenized separately.
    """
    bos = _bos(tokenizer)
    head = bos + (_plain(context, tokenizer) if context else [])
    whole = bos + _plain(context + continuation, tokenizer)
    if whole[: len(head)] == head and (len(whole) > len(head) or not continuation):
        return head, whole[len(head) :], False
    return head, _plain(continuation, tokenizer), True


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _bos(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text (usually a BOS or nothing); what it puts after is not wanted here."""
    plain, whole = _plain("a", tokenizer), list(tokenizer("a")["input_ids"])
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])


def cut_at_stop(text: str, stops: Sequence[str], stops_after: Sequence[str] = ()) -> tuple[str, bool]:
    """Text before the first of ``stops`` or through the first of ``stops_after``; whether one was found.

    >>> cut_at_stop("Yes. It is.", ["\\n"], [".", "!"])
    ('Yes.', True)
    """
    found = [(i, i) for i in (text.find(s) for s in stops) if i >= 0]
    found += [(i, i + len(s)) for s in stops_after if (i := text.find(s)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


def whole_sentences(text: str) -> str:
    """Text cut after its last sentence end (``. ! ?`` and closing quotes, not the ``1.`` of a list); else empty.

    >>> whole_sentences("Take these:\\n1. Eggs. They are\\n2.")
    'Take these:\\n1. Eggs.'
    """
    found = re.finditer(r"(?P<item>(?:^|\n)\W*\d+\.)|[.!?…]+[\"'”’)\]]*(?=\s|$)", text)
    ends = [m.end() for m in found if not m["item"]]
    return text[: ends[-1]].strip() if ends else ""


_HELPS = r"(?:help|assist|do|provide|support|tell|give|write|encourage|recommend|advise|share|offer|explain|answer|say)"
_REFUSES = re.compile(
    rf"\bi (?:can't|cannot|cant|can not|won't|will not|am not able to|am unable to|refuse to) {_HELPS}\b"
    r"|\bi(?:'m| am) (?:not able|unable) to\b|\b(?:i|we) (?:must|have to|should) (?:decline|refuse)\b"
    r"|\bi(?:'d| would) rather not\b"
)


def refuses(text: str) -> bool:
    """Whether a reply says that it will not, or cannot, do what was asked: by English phrases, in the first person.

    >>> refuses("I'm sorry, but I can’t help with that."), refuses("You cannot boil it for long.")
    (True, False)
    """
    return bool(_REFUSES.search(text.lower().replace("’", "'")))
