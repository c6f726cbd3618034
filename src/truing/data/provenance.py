"""Where prompts come from: none that a policy is trained on may stem from what it is judged by (2204.05862 §4.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from truing.data.comparisons import conversation_key
from truing.data.files import read_rows
from truing.data.prompts import PromptRow

HELD_OUT = "held_out.jsonl"
"""In the run of a preference model: the ids of the comparisons that it was not trained on."""


def held_out_ids(folder: str | Path) -> set[str]:
    """Ids of the comparisons that the preference model of a run held out; none if the folder does not say."""
    path = Path(folder) / HELD_OUT
    return {str(row["id"]) for _, row in read_rows(path) if row.get("id")} if path.is_file() else set()


def held_out_conversations(folder: str | Path) -> set[str]:
    """First human turns (`conversation_key`) of those comparisons; none if the folder does not say."""
    path = Path(folder) / HELD_OUT
    rows = [row for _, row in read_rows(path)] if path.is_file() else []
    return {str(row["conversation"]) for row in rows if "conversation" in row}


def leaks(
    prompts: Sequence[PromptRow], ids: Collection[str] = (), held_out: Iterable[Any] = ()
) -> list[tuple[PromptRow, str]]:
    """Prompts that stem from held-out data, each with what they have in common with it.

    Looked at are its conversation (first human turn), the ids of the examples after which a model wrote it, and, where
    no conversation is known, its own id: files of one name number their rows alike. ``ids`` name held-out rows,
    ``held_out`` are comparisons, dialogues or their `conversation_key`.
    """
    known = {x if isinstance(x, str) else conversation_key(x): str(getattr(x, "id", "")) for x in held_out}
    found = []
    for row in prompts:
        written_from = [name for name in row.examples if name in ids]
        key = conversation_key(row.dialogue)
        if not known and row.id in ids:
            found.append((row, f"is {row.id!r} of the held-out data"))
        elif written_from:
            found.append((row, f"was written after the held-out {written_from[0]!r}"))
        elif key in known:
            found.append((row, f"begins like {known[key] or 'a row'!r} of the held-out data"))
    return found
