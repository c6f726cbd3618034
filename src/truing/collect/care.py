"""Care for people who read harmful text: how much they have read today, what they planned, when to rest.

A break is suggested every ``break_every`` replies (`truing.collect.rules`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.rules import Rules
from truing.collect.store import now

DAY = 24 * 3600 * 1_000_000


def exposure(db: Connection, person: str, at: int) -> int:
    """Model replies that a person had before them in the 24 hours to ``at``, in red teaming and in reviews.

    Replies that are held back for the common delay do not count yet: the number must not tell that they are there.
    """
    since = at - DAY
    c, m, j = t.conversation.c, t.message.c, t.job.c
    shown = (
        sa.select(sa.func.count())
        .select_from(
            t.message.join(t.conversation, c.id == m.conversation_id).join(
                t.job, sa.and_(j.conversation_id == m.conversation_id, j.turn == m.turn)
            )
        )
        .where(c.person_id == person, c.mode == "redteam", m.kind == "reply", m.at >= since)
        .where(j.state == "done", sa.func.coalesce(j.show_at, 0) <= at)
    )
    a, d = t.assignment.c, t.decision.c
    read = (
        sa.select(sa.func.count())
        .select_from(t.assignment.join(t.decision).join(t.choice, t.choice.c.conversation_id == a.conversation_id))
        .where(a.person_id == person, d.proceed, d.at >= since)
    )
    return int(db.execute(shown).scalar_one()) + int(db.execute(read).scalar_one())


def meter(db: Connection, person: str, at: int | None = None) -> dict[str, int]:
    """The exposure counter of a page, as it is ``at`` a moment (None: now)."""
    return {"exposure": exposure(db, person, now() if at is None else at), "break_every": Rules.of(db).break_every}


def beside(db: Connection, person: str, conversation: str, phase: str, at: int) -> dict[str, Any]:
    """What the screen of a red-team conversation has beside the rest (`truing.collect.talk.document`), ``at`` the
    moment for which the rest holds.
    """
    plan = db.execute(sa.select(t.plan.c.text).where(t.plan.c.conversation_id == conversation)).scalar_one_or_none()
    stopped = db.execute(
        sa.select(t.ending.c.stopped).where(t.ending.c.conversation_id == conversation)
    ).scalar_one_or_none()
    flags = sa.select(sa.func.count()).select_from(t.flag).where(t.flag.c.conversation_id == conversation)
    return {
        "plan": None if phase in ("withdrawn", "consent") else plan,
        "stopped": bool(stopped),
        "flags": int(db.execute(flags).scalar_one()),
        "care": meter(db, person, at),
    }
