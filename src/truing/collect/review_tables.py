"""Tables of review mode: who was asked to read which transcript, whether they went on, and what they said of it."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)  # fmt: skip

from truing.collect.columns import metadata, moment, of, row_id


def _of_assignment() -> Column[str]:
    return Column("assignment_id", String(32), ForeignKey("assignment.id"), primary_key=True)


assignment = Table(
    "assignment",
    metadata,
    row_id(),
    Column("conversation_id", String(32), nullable=False, index=True),
    Column("author_id", String(32), nullable=False),
    of("person"),
    moment(),
    UniqueConstraint("conversation_id", "person_id"),
    ForeignKeyConstraint(["conversation_id", "author_id"], ["conversation.id", "conversation.person_id"]),
    CheckConstraint("author_id <> person_id", name="not_the_author"),
)
"""A conversation offered to a reviewer. ``author_id`` is that of the conversation and stands here so that the database
itself refuses a reviewer's own."""

decision = Table("decision", metadata, _of_assignment(), Column("proceed", Boolean, nullable=False), moment())
"""After reading the attacker's description alone: go on to the transcript, or skip."""

leaving = Table("leaving", metadata, _of_assignment(), moment())
"""The reviewer went on to the transcript and left without an answer, as they may at any time."""

review = Table(
    "review",
    metadata,
    _of_assignment(),
    Column("rating", Integer, nullable=False),
    Column("intent", Integer, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("comment", Text, nullable=False, default=""),
    moment(),
    CheckConstraint("rating BETWEEN 0 AND 4", name="rating"),
    CheckConstraint("intent BETWEEN 0 AND 4", name="intent"),
)
