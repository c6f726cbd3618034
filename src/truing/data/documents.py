"""What a language model is trained on: rows of plain text and of whole dialogues, as they stand in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.data.comparisons import conversation_key
from truing.data.files import DataError, read_rows
from truing.data.pairs import is_comparison, prompt_of, read_pair
from truing.text import HUMAN
from truing.types import Dialogue

Document = str | Dialogue
REPLIES = ("reply", "completion", "response")


def load_documents(paths: str | Path | Sequence[str | Path]) -> list[Document]:
    """Texts and dialogues of files or hub data sets, in order.

    Rows hold ``text`` (HH text is read as a dialogue), ``dialogue`` or ``messages``, a ``prompt`` with a ``reply``
    (``completion``, ``response``), or are comparisons, of which the chosen reply is taken. Raises DataError naming
    file, line and field.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found = [row_to_document(row, path, line) for path in names for line, row in read_rows(path)]
    if not found:
        raise DataError(", ".join(map(str, names)), "there are no rows; at least one text or dialogue is needed")
    return found


def row_to_document(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> Document:
    """The text or the dialogue of one row. Raises DataError naming the field that cannot be used."""
    if is_comparison(row):
        side = read_pair(row, file, line).chosen
        return side.prompt.reply(side.reply)
    name = next((n for n in ("dialogue", "messages", "prompt", "text") if row.get(n) is not None), None)
    if name is None:
        have = ", ".join(row) or "none"
        raise DataError(file, f"missing; the row has the fields {have}", line=line, field="text")
    if name == "text" and isinstance(row[name], str) and not row[name].startswith(HUMAN):
        if not row[name].strip():
            raise DataError(file, "is empty", line=line, field=name)
        return row[name]
    try:
        dialogue = prompt_of(row[name])
    except ValueError as bad:
        raise DataError(file, str(bad), line=line, field=name) from None
    if name == "prompt":
        reply = next((row[n] for n in REPLIES if isinstance(row.get(n), str)), None)
        if reply is None:
            raise DataError(file, f"a prompt needs one of {', '.join(REPLIES)} beside it", line=line, field=name)
        dialogue = dialogue.reply(reply)
    if not any(turn.role == "assistant" for turn in dialogue.turns):
        raise DataError(file, "the dialogue has no assistant turn to learn from", line=line, field=name)
    return dialogue


def document_key(document: Document) -> str:
    """Names the conversation of a dialogue (its first human turn); a text is its own."""
    return document if isinstance(document, str) else conversation_key(document)
