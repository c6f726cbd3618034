"""Comparisons that were made elsewhere, into the store: as conversations of people who cannot sign in.

A comparison becomes a conversation of which only the last turn has two replies; an export gives it back. What
annotators picked is stored as a click of our own pages would be: of a harmless pair the worse reply was clicked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.store import Refused, Store, new_id, note, now
from truing.collect.turns import clean
from truing.data.annotated import Task, read_annotated, tool_of
from truing.data.comparisons import read_comparisons
from truing.data.files import read_rows
from truing.types import Comparison

ARM = "imported"
"""The arm of replies of which no model is named."""


@dataclass
class Imported:
    """What came in. ``counts``: comparisons, people, and what was left out by reason."""

    source: str
    counts: Counter[str]


def read_any(
    path: str | Path, *, items: str | None = None, task: Task = "helpful", prompt: str = ""
) -> tuple[str, list[Comparison], Counter[str]]:
    """(source, comparisons, what was left out) of an export of another tool, or of comparisons that truing reads."""
    _, first = next(iter(read_rows(path)))
    if tool_of(first) is not None:
        found = read_annotated(path, items=items, task=task, prompt=prompt)
        return found.tool, found.comparisons, found.counts
    loaded = read_comparisons(path)
    left = Counter({k: loaded.counts[k] for k in ("unequal_prompts", "identical_pairs") if loaded.counts[k]})
    return "file", loaded.comparisons, left


def import_file(
    store: Store,
    path: str | Path,
    *,
    items: str | None = None,
    task: Task = "helpful",
    prompt: str = "",
    by: str | None = None,
    again: bool = False,
) -> Imported:
    """Import a file, in one transaction. Raises Refused if it was imported before (unless ``again``), DataError."""
    source, comparisons, counts = read_any(path, items=items, task=task, prompt=prompt)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else str(path)
    with store.write() as db:
        before = sa.select(t.audit.c.at).where(t.audit.c.action == "import", t.audit.c.target == digest)
        if db.execute(before).first() is not None and not again:
            raise Refused(f"{path} was imported before, so nothing was done. With --again it comes in once more.")
        put = _Put(db, source)
        for comparison in comparisons:
            if comparison.prompt.problems():
                counts["bad_turns"] += 1
                continue
            put.comparison(comparison)
            counts["comparisons"] += 1
            counts["system_turns"] += comparison.prompt.turns[0].role == "system"
        counts["people"] = len(put.people)
        note(db, by, "import", digest, source=source, counts=dict(counts))
    return Imported(source, +counts)


class _Put:
    """Rows of imported conversations; each person and arm is made once."""

    def __init__(self, db: Connection, source: str) -> None:
        self.db, self.source = db, source
        self.people: dict[str, str] = {}
        self.tasks: dict[tuple[str, str], str] = {}
        self.arms: dict[str, str] = {}

    def comparison(self, c: Comparison) -> None:
        """A conversation with the comparison at its end."""
        mode = "redteam" if c.kind == "harmless" else "helpful"
        names = c.arms or (ARM, ARM)
        replies = [(c.chosen, names[0]), (c.rejected, names[1])]
        if mode == "redteam":
            replies.reverse()  # the worse one was clicked
        person = self._person(c.worker or "")
        arms = [self._arm(name) for _, name in replies]
        conversation: dict[str, Any] = {
            "id": new_id(),
            "person_id": person,
            "task_id": self._task(person, mode),
            "mode": mode,
        }
        drawn = arms[:1] if mode == "redteam" else []
        conversation |= {"seed": t.IMPORTED, "arms": drawn, "weights": {}, "created_at": now()}
        self.db.execute(t.conversation.insert(), conversation)
        self._turns(str(conversation["id"]), c, replies, arms)
        row = {"conversation_id": conversation["id"], "comment": "", "stopped": False, "at": now()}
        self.db.execute(t.ending.insert(), row)

    def _turns(self, id: str, c: Comparison, replies: Sequence[tuple[str, str]], arms: Sequence[str]) -> None:
        said = [turn for turn in c.prompt.turns if turn.role != "system"]
        parent: str | None = None
        for i, turn in enumerate(said):
            number = i // 2 + 1
            if turn.role == "human":
                parent = self._message(id, parent, number, turn.text)
            else:
                parent = self._choose(id, number, [self._reply(id, parent, number, turn.text, self._arm(ARM), 0)], None)
        number = len(said) // 2 + 1
        sides = (0, 1) if int(id[0], 16) % 2 else (1, 0)  # which was shown where is not known
        ids = [
            self._reply(id, parent, number, text, arm, side)
            for (text, _), arm, side in zip(replies, arms, sides, strict=True)
        ]
        self._choose(id, number, ids, c.strength)

    def _message(self, id: str, parent: str | None, turn: int, text: str, role: str = "human") -> str:
        row = {"id": new_id(), "conversation_id": id, "parent_id": parent, "turn": turn, "role": role}
        kind = "human" if role == "human" else "reply"
        self.db.execute(t.message.insert(), row | {"kind": kind, "text": clean(text), "at": now()})
        return str(row["id"])

    def _reply(self, id: str, parent: str | None, turn: int, text: str, arm: str, side: int) -> str:
        message = self._message(id, parent, turn, text, "assistant")
        row = {"message_id": message, "arm_id": arm, "side": side, "seed": 0, "settings": {"imported": self.source}}
        self.db.execute(t.candidate.insert(), row | {"finish": "stop", "seconds": 0.0})
        return message

    def _choose(self, id: str, turn: int, replies: Sequence[str], strength: int | None) -> str:
        row = {"id": new_id(), "conversation_id": id, "turn": turn, "chosen_id": replies[0], "strength": strength}
        self.db.execute(t.choice.insert(), row | {"order": None, "at": now()})
        return replies[0]

    def _person(self, worker: str) -> str:
        if worker not in self.people:
            p, name = t.person.c, f"{self.source} {worker or 'unknown'}"[:80]
            row_of = sa.select(p.id, p.password_hash).where(p.name == name)
            known = self.db.execute(row_of).first()
            if known is not None and known.password_hash is not None:  # somebody of that name is here: not the same
                known, name = None, f"{name[:60]} {new_id()[:12]}"
            self.people[worker] = str(known.id) if known else new_id()
            if not known:
                row: dict[str, Any] = {"id": self.people[worker], "name": name, "role": "worker", "modes": []}
                row |= {"source": self.source, "disabled": True, "simulated": False, "created_at": now()}
                self.db.execute(t.person.insert(), row)
        return self.people[worker]

    def _task(self, person: str, mode: str) -> str:
        """One task for all that a person brings in: its size means nothing."""
        if (person, mode) not in self.tasks:
            row = {"id": new_id(), "person_id": person, "mode": mode, "size": 1, "created_at": now()}
            self.db.execute(t.task.insert(), row)
            self.tasks[person, mode] = str(row["id"])
        return self.tasks[person, mode]

    def _arm(self, name: str) -> str:
        """An arm that no mode offers."""
        if name not in self.arms:
            name = name[:80]
            known = self.db.execute(sa.select(t.arm.c.id).where(t.arm.c.name == name)).first()
            self.arms[name] = str(known.id) if known else new_id()
            if not known:
                row = {"id": self.arms[name], "name": name, "spec": {"model": name}, "created_at": now()}
                self.db.execute(t.arm.insert(), row)
        return self.arms[name]


def left_out(counts: Iterable[tuple[str, int]]) -> str:
    """Counts in words."""
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts if n)
