"""One row of comparisons as it stands: both columns read, nothing judged yet.

In the HH release the two columns repeat the whole conversation. The prompt is everything up to and including the
last ``\\n\\nAssistant:`` (2204.05862; the released files), the reply what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truing.data.files import DataError
from truing.text import ASSISTANT, HUMAN, cut_at_stop, from_hh
from truing.types import Dialogue, Turn


@dataclass(frozen=True, slots=True)
class Side:
    """One column of a row: the dialogue before the last reply, that reply, and what was cut after it."""

    prompt: Dialogue
    reply: str
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both columns of a row, before anything is judged."""

    chosen: Side
    rejected: Side

    @property
    def unequal(self) -> bool:
        """The columns differ before the last reply."""
        return self.chosen.prompt != self.rejected.prompt

    @property
    def identical(self) -> bool:
        """The same dialogue stands in both columns."""
        return not self.unequal and self.chosen.reply == self.rejected.reply

    @property
    def empty(self) -> bool:
        """Either reply is blank."""
        return not self.chosen.reply.strip() or not self.rejected.reply.strip()

    @property
    def bad_turns(self) -> list[str]:
        """What is wrong with the order of turns in either column; empty if they alternate from the human on."""
        return list(dict.fromkeys(p for s in (self.chosen, self.rejected) for p in s.prompt.reply(s.reply).problems()))


def is_comparison(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a comparison."""
    return "chosen" in row and "rejected" in row


def format_of_row(row: Mapping[str, Any]) -> str:
    """``hh`` (two columns of text), ``trl`` (messages) or ``truing`` (a prompt and two replies)."""
    if isinstance(row.get("chosen"), list):
        return "trl"
    return "truing" if row.get("prompt") is not None else "hh"


def read_pair(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> Pair:
    """Both sides of a row of any known format. Raises DataError naming the field that cannot be understood."""
    for name in ("chosen", "rejected"):
        if name not in row:
            have = ", ".join(row) or "none"
            raise DataError(file, f"missing; the row has the fields {have}", line=line, field=name)
    base = None
    if row.get("prompt") is not None:
        base = _read(row, "prompt", file, line, prompt_of)
        if not len(base):
            raise DataError(file, "is empty; a prompt needs a human turn", line=line, field="prompt")
    sides = []
    for name in ("chosen", "rejected"):
        sides.append(_read(row, name, file, line, lambda value: _side(value, base, row.get("prompt"))))
    return Pair(*sides)


def _read(row: Mapping[str, Any], name: str, file: object, line: int | None, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(row[name])
    except DataError:
        raise
    except ValueError as bad:
        raise DataError(file, str(bad), line=line, field=name) from None


def prompt_of(value: Any) -> Dialogue:
    """A prompt given as HH text, as chat messages or as one plain human turn. Raises ValueError."""
    if isinstance(value, list):
        return Dialogue.from_messages(_messages(value))
    if not isinstance(value, str):
        raise ValueError(f"expected text or a list of messages, found {type(value).__name__}")
    text = f"\n\n{value}" if value.startswith("Human:") else value
    if HUMAN in text:
        return from_hh(text.rstrip() if text.rstrip().endswith(ASSISTANT) else text)
    return Dialogue().ask(value) if value.strip() else Dialogue()


def _messages(value: list[Any]) -> list[Mapping[str, Any]]:
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise ValueError(f'message {i + 1} should be {{"role": …, "content": …}}, it is {type(message).__name__}')
    return value


def _side(value: Any, base: Dialogue | None, prompt: Any) -> Side:
    if isinstance(value, list):
        return _from_messages(Dialogue.from_messages(_messages(value)), base)
    if not isinstance(value, str):
        raise ValueError(
            f"expected text or a list of messages, found {'null' if value is None else type(value).__name__}"
        )
    if base is None:
        return _from_text(value)
    if isinstance(prompt, str) and prompt.rstrip().endswith("Assistant:"):  # HH text: the columns may repeat it
        value = value.removeprefix(prompt)
        value = value.removeprefix(" ")
    return Side(base, value)


def _from_text(text: str) -> Side:
    """HH text, cut at its last ``\\n\\nAssistant:``; a human turn after the reply is cut off, as in sampling."""
    if text.startswith("Human:"):
        text = f"\n\n{text}"
    join = text.rfind(ASSISTANT)
    if join < 0:
        raise ValueError(r"no '\n\nAssistant:' in the text; without a 'prompt' column both columns are HH dialogues")
    reply, cut = cut_at_stop(text[join + len(ASSISTANT) :], [HUMAN])
    rest = text[join + len(ASSISTANT) + len(reply) :] if cut else ""
    return Side(_turns(text[:join]), reply.removeprefix(" "), rest)


def _turns(text: str) -> Dialogue:
    """Turns before the join. Nothing, or words without a marker, count as a system turn."""
    if HUMAN not in text and ASSISTANT not in text:
        return Dialogue((Turn("system", text),) if text else ())
    dialogue = from_hh(text)
    if text.endswith(ASSISTANT) and dialogue.is_prompt:  # an empty reply before the last one is a turn, too
        dialogue = dialogue.reply("")
    return dialogue


def _from_messages(whole: Dialogue, base: Dialogue | None) -> Side:
    if base is not None and whole.turns[: len(base)] != base.turns:
        whole = base + whole
    if not len(whole) or whole.last.role != "assistant":
        raise ValueError("the messages do not end with an assistant's reply")
    return Side(whole.prompt, whole.last.text)
