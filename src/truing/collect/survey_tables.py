"""Tables of the surveys: answers have no person, no time of day and no order of rows (redteam.md §4.2, §13 row 19)."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Integer, String, Table, Text

from truing.collect.columns import metadata, moment, of, row_id

demographics = Table(
    "demographics",
    metadata,
    row_id(),
    Column("answers", JSON, nullable=False),
    Column("month", String(7), nullable=False),
    sqlite_with_rowid=False,
)
wellbeing = Table(
    "wellbeing",
    metadata,
    row_id(),
    Column("answers", JSON, nullable=False),
    Column("comment", Text, nullable=False, default=""),
    Column("month", String(7), nullable=False),
    sqlite_with_rowid=False,
)
survey_offer = Table(
    "survey_offer",
    metadata,
    row_id(),
    of("person"),
    Column("survey", String(16), nullable=False),
    Column("tasks", Integer, nullable=False),
    moment(),
)
"""That a person was asked, whether or not they answered."""
