"""Whole conversations out of the store, for exports and for those who look after the place.

A story is read with all its facts at once, in bunches, so that an export of a hundred thousand conversations takes
neither a query for each nor the memory for all. Only what ``readable`` lets through is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from truing.collect import tables as t
from truing.collect import turns
from truing.collect.store import readable
from truing.types import Dialogue

Status = Literal["done", "stopped", "unfinished"]
BUNCH = 200


@dataclass
class Story:
    """A conversation and its facts. ``row`` has the columns of ``conversation``, and of its person ``source``,
    ``simulated`` and ``name``; a message has the columns of ``message`` and, where it is a drawn reply, ``arm_id`` and
    ``side`` (None otherwise)."""

    row: Row[Any]
    messages: list[Row[Any]] = field(default_factory=list)
    choices: dict[int, Row[Any]] = field(default_factory=dict)
    plan: Row[Any] | None = None
    ending: Row[Any] | None = None
    reviews: list[Row[Any]] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """``done``: its closing questions are answered; ``stopped``: left by "stop now"; else ``unfinished``."""
        if self.ending is None:
            return "unfinished"
        return "stopped" if self.ending.stopped else "done"

    @property
    def first_words(self) -> str:
        """The first human message; "" if there is none yet."""
        return next((str(m.text) for m in self.messages if m.role == "human"), "")

    def said(self, turn: int) -> dict[str, Row[Any]]:
        """The messages of a turn by id."""
        return {m.id: m for m in self.messages if m.turn == turn}

    def exchanges(self) -> list[turns.Exchange]:
        """Human turns and the replies with which the conversation went on."""
        return turns.told(self.messages, self.choices.values())

    def prompt(self, turn: int) -> Dialogue:
        """What stood before the replies of a turn: only clicked replies, with the human message at the end."""
        exchanges = self.exchanges()[:turn]
        return turns.dialogue([*exchanges[:-1], (exchanges[-1][0], None)])

    def dialogue(self) -> Dialogue:
        """The conversation as it went, up to the last reply that was chosen."""
        return turns.dialogue([exchange for exchange in self.exchanges() if exchange[1] is not None])


def stories(
    db: Connection,
    modes: Sequence[str] = (),
    people: Literal["real", "simulated", "all"] = "all",
    ids: Sequence[str] | None = None,
) -> Iterator[Story]:
    """Every readable conversation of these modes (none given: all), or of these ids, in the order of random ids."""
    c, p = t.conversation.c, t.person.c
    query = sa.select(t.conversation, p.source, p.simulated, p.name).join(t.person, p.id == c.person_id)
    query = query.where(readable()).order_by(c.id).limit(BUNCH)
    if modes:
        query = query.where(c.mode.in_(modes))
    if people != "all":
        query = query.where(p.simulated == (people == "simulated"))
    if ids is not None:
        query = query.where(c.id.in_(ids))
    last = ""
    while rows := db.execute(query.where(c.id > last)).all():
        last = rows[-1].id
        found = {row.id: Story(row) for row in rows}
        _fill(db, found)
        yield from found.values()


def _fill(db: Connection, found: dict[str, Story]) -> None:
    ids = list(found)
    m, d = t.message, t.candidate.c
    said = sa.select(m, d.arm_id, d.side).select_from(m.outerjoin(t.candidate)).where(m.c.conversation_id.in_(ids))
    for row in db.execute(said.order_by(m.c.turn, d.side)):
        found[row.conversation_id].messages.append(row)
    for row in db.execute(sa.select(t.choice).where(t.choice.c.conversation_id.in_(ids))):
        found[row.conversation_id].choices[row.turn] = row
    for row in db.execute(sa.select(t.plan).where(t.plan.c.conversation_id.in_(ids))):
        found[row.conversation_id].plan = row
    for row in db.execute(sa.select(t.ending).where(t.ending.c.conversation_id.in_(ids))):
        found[row.conversation_id].ending = row
    a = t.assignment.c
    judged = sa.select(t.review, a.conversation_id, a.person_id).join(t.assignment).where(a.conversation_id.in_(ids))
    for row in db.execute(judged.order_by(a.person_id)):
        found[row.conversation_id].reviews.append(row)
