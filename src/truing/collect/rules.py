"""The rules that the administrator sets (setting ``rules``), each a whole number of at least 1."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sqlalchemy.engine import Connection

from truing.collect.store import setting


@dataclass(frozen=True, slots=True)
class Rules:
    """Conversations in a task, turns that are suggested, replies between breaks, tasks between wellbeing surveys and
    before the survey of who takes part, readers of a transcript.
    """

    task_size: int = 5
    suggested_turns: int = 4
    break_every: int = 20
    wellbeing_every: int = 10
    demographics_after: int = 1
    reviewers: int = 3

    @staticmethod
    def of(db: Connection) -> Rules:
        """The rules as they hold now."""
        found = setting(db, "rules") or {}
        return Rules(**{f.name: max(1, int(found[f.name])) for f in fields(Rules) if f.name in found})
