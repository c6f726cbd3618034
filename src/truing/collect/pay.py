"""What people have earned: by the task or by the time, counted so that stopping never costs anything.

The setting ``pay`` says what is paid for a mode: ``{"redteam": {"by": "task", "cents": 900, "currency": "USD"},
"review": {"by": "time", "cents": 2000}}`` (``cents`` for a task of conversations, or for an hour). A mode that is not
in it is not paid through truing. What is earned is added to the ledger when a task is complete and whenever a person
stops; rows are never changed. Work is paid by the rate under which it was begun: another rate is for what comes after.
Somebody who stops in the middle is paid for every conversation that they began.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.rules import Rules
from truing.collect.store import new_id, now

IDLE = 300 * 1_000_000
"""Microseconds without any act that still count as work: reading and thinking, not lunch."""
REVIEWS = "reviews"


@dataclass(frozen=True, slots=True)
class Rate:
    """What a mode is paid: ``cents`` for a task, or for an hour."""

    by: Literal["task", "time"]
    cents: int
    currency: str = "USD"


def rate(db: Connection, mode: str, at: int | None = None) -> Rate | None:
    """The rate of a mode as it holds now, or held at a moment; None if it is not paid.

    Work is paid by the rate under which it was begun; where there was none yet, by the first one that came after.
    Raises ValueError for a setting that is none.
    """
    return _rate(_versions(db, "pay"), mode, at)


def _versions(db: Connection, key: str) -> Sequence[tuple[int, Any]]:
    """(since when, value) of all that a setting has been, the oldest first."""
    s = t.setting.c
    return db.execute(sa.select(s.at, s.value).where(s.key == key).order_by(s.serial)).tuples().all()


def _rate(versions: Sequence[tuple[int, Any]], mode: str, at: int | None) -> Rate | None:
    found: Any = None
    for since, value in versions:
        if at is not None and since > at and found is not None:
            break
        found = (value or {}).get(mode)
    if found is None:
        return None
    made = Rate(**found)
    if made.by not in ("task", "time") or made.cents < 0 or len(made.currency) != 3:
        raise ValueError(
            f"The setting pay of {mode} is {found}; expected by: task or time, cents, currency (3 letters)."
        )
    return made


def _task_size(versions: Sequence[tuple[int, Any]], at: int) -> int:
    """Reviews in a task, as the rules had it at a moment."""
    sizes = [(value or {}).get("task_size") for since, value in versions if since <= at]
    return max(1, int((sizes[-1] if sizes else None) or Rules().task_size))


def worked(times: Iterable[int]) -> float:
    """Seconds of work between acts at these times (microseconds); a pause counts `IDLE` at most.

    >>> worked([0, 60_000_000, 3600_000_000])
    360.0
    """
    order = sorted(times)
    return sum(min(b - a, IDLE) for a, b in zip(order, order[1:], strict=False)) / 1e6


def settle_task(db: Connection, task: str, *, stopping: bool = False) -> None:
    """Add to the ledger what a task has earned beyond what was paid, if it is complete or its person stops."""
    row = db.execute(
        sa.select(t.task, t.person.c.simulated).join(t.person).where(t.task.c.id == task).with_for_update(of=t.person)
    ).one()
    paid = rate(db, row.mode, row.created_at)
    c = t.conversation.c
    ended = db.execute(sa.select(c.id).join(t.ending).where(c.task_id == task)).scalars().all()
    if paid is None or row.simulated or not (stopping or len(ended) >= row.size):
        return
    if paid.by == "task":
        earned = paid.cents * min(len(ended), row.size) // row.size
    else:
        earned = int(paid.cents * sum(worked(_times(db, one)) for one in ended) / 3600)
    why = f"{row.mode}: {len(ended)} of {row.size} conversations, by {paid.by}"
    _add(db, row.person_id, paid.currency, earned, why, t.pay.c.task_id == task, task)


def settle_reviews(db: Connection, person: str) -> None:
    """Add to the ledger what a person's reviewing has earned beyond what was paid.

    By time it counts the time with transcripts and previews, read or skipped, not their number (redteam.md §3); by the
    task every review is its part of one, so that stopping in the middle costs nothing.
    """
    pays, rules = _versions(db, "pay"), _versions(db, "rules")
    who = db.execute(sa.select(t.person).where(t.person.c.id == person).with_for_update()).one()
    if who.simulated:
        return
    a = t.assignment.c
    rows = db.execute(
        sa.select(a.at, t.decision.c.at.label("decided"), t.leaving.c.at.label("left"), t.review.c.at.label("reviewed"))
        .select_from(t.assignment.outerjoin(t.decision).outerjoin(t.leaving).outerjoin(t.review))
        .where(a.person_id == person)
    ).all()
    earned: dict[str, Fraction] = {}
    hows: dict[str, set[str]] = {}
    for r in rows:
        if (paid := _rate(pays, "review", r.at)) is None:
            continue
        if paid.by == "time":
            spans = [x for x in (r.at, r.decided, r.left, r.reviewed) if x is not None]
            part = paid.cents * Fraction(worked(spans)) / 3600
        else:
            part = Fraction(paid.cents, _task_size(rules, r.at)) if r.reviewed is not None else Fraction()
        earned[paid.currency] = earned.get(paid.currency, Fraction()) + part
        hows.setdefault(paid.currency, set()).add(paid.by)
    for currency, cents in earned.items():
        why = f"{REVIEWS}, by {' and '.join(sorted(hows[currency]))}"
        _add(db, person, currency, int(cents), why, t.pay.c.why.like(f"{REVIEWS},%"), None)


def _times(db: Connection, conversation: str) -> Sequence[int]:
    """When something was done in a conversation."""
    found: list[int] = []
    c = t.conversation.c
    for table in (t.message, t.choice, t.plan, t.ending):
        found += db.execute(sa.select(table.c.at).where(table.c.conversation_id == conversation)).scalars()
    return [*found, db.execute(sa.select(c.created_at).where(c.id == conversation)).scalar_one()]


def _add(
    db: Connection, person: str, currency: str, earned: int, why: str, mine: sa.ColumnElement[bool], task: str | None
) -> None:
    """Pay the difference. Rows that an administrator added (``by``) are beside the count."""
    p = t.pay.c
    before = db.execute(
        sa.select(sa.func.coalesce(sa.func.sum(p.cents), 0)).where(
            p.person_id == person, p.currency == currency, p.by.is_(None), mine
        )
    ).scalar_one()
    if (due := earned - int(before)) > 0:
        row: dict[str, Any] = {"id": new_id(), "person_id": person, "task_id": task, "cents": due, "why": why}
        db.execute(t.pay.insert(), row | {"currency": currency, "by": None, "at": now()})
