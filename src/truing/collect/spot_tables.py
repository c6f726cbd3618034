"""A table of spot checks: what researchers would have chosen themselves (hh.md §3.4)."""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table, UniqueConstraint

from truing.collect.columns import metadata, moment, of, row_id

opinion = Table(
    "opinion",
    metadata,
    row_id(),
    of("conversation"),
    Column("turn", Integer, nullable=False),
    of("person"),
    of("message", name="chosen_id", index=False),
    moment(),
    UniqueConstraint("conversation_id", "turn", "person_id"),
)
"""Which of a turn's replies somebody else chose, without knowing what was clicked."""
