"""Numbers of the administrator's pages: progress, balance of sides, time per choice, shares of people, agreement.

Agreement is shown and filters nothing: researchers and workers agree in about 63% of choices (2204.05862 §2.1).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.kappas import agreement
from truing.collect.store import now, readable
from truing.collect.work import NO_USE
from truing.stats import Interval, mean_interval

DAY = 24 * 3600 * 1_000_000
ACTIVE = 15 * 60 * 1_000_000
MODES = ("helpful", "rank", "redteam")
BALANCED = (0.48, 0.52)
"""Where the share of left-hand choices should lie (hh.md §20, row 42)."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart: ``share`` of the longest one, 0 to 100; ``low`` and ``high`` end its interval."""

    name: str
    text: str
    share: int
    low: int | None = None
    high: int | None = None


def bars(values: Sequence[tuple[str, float]], most: float | None = None) -> list[Bar]:
    """Bars as long as their numbers, in whole percent of the greatest (or of ``most``)."""
    top = most or max((v for _, v in values), default=0) or 1
    return [Bar(name, f"{value:g}", round(100 * min(value / top, 1))) for name, value in values]


def interval_bar(name: str, found: Interval) -> Bar:
    """A share with its interval, as a bar from 0 to 100%."""
    if found.value is None:
        return Bar(name, found.note or "no rows", 0)
    text = f"{100 * found.value:.1f}%"
    if found.low is None or found.high is None:
        return Bar(name, f"{text} (n = {found.n})", round(100 * found.value))
    text += f" [{100 * found.low:.1f}, {100 * found.high:.1f}] (n = {found.n})"
    return Bar(name, text, round(100 * found.value), round(100 * found.low), round(100 * found.high))


def _count(db: Connection, *where: sa.ColumnElement[bool], of: sa.Table) -> int:
    return int(db.execute(sa.select(sa.func.count()).select_from(of).where(*where)).scalar_one())


def live(db: Connection) -> dict[str, int]:
    """What is going on at this moment: what the page asks for again and again."""
    at, j = now(), t.job.c
    oldest = db.execute(sa.select(sa.func.min(j.created_at)).where(j.state == "waiting")).scalar_one()
    seen = sa.select(sa.func.count(sa.distinct(t.login.c.person_id))).where(t.login.c.seen_at > at - ACTIVE)
    return {
        "people": int(db.execute(seen).scalar_one()),
        "conversations": _count(db, t.conversation.c.created_at > at - DAY, of=t.conversation),
        "choices": _count(db, t.choice.c.at > at - DAY, of=t.choice),
        "waiting": _count(db, j.state == "waiting", of=t.job),
        "running": _count(db, j.state == "running", of=t.job),
        "failed": _count(
            db, j.state == "failed", sa.func.coalesce(j.error, "").not_in(NO_USE), j.done_at > at - DAY, of=t.job
        ),
        "oldest": 0 if oldest is None else max(0, (at - oldest) // 1_000_000),
        "flags": _count(db, t.flag.c.at > at - DAY, of=t.flag),
    }


def progress(db: Connection) -> list[dict[str, Any]]:
    """For each mode: conversations begun, done, stopped, withdrawn, and choices. Simulated people are left out, and
    what was imported."""
    c, out = t.conversation.c, []
    real = sa.and_(t.person.c.id == c.person_id, ~t.person.c.simulated, c.seed != t.IMPORTED)
    for mode in MODES:
        mine = t.conversation.join(t.person, real)

        def count(table: sa.Table, *where: sa.ColumnElement[bool], mode: str = mode, mine: Any = mine) -> int:
            joined = mine if table is t.conversation else mine.join(table, table.c.conversation_id == c.id)
            query = sa.select(sa.func.count()).select_from(joined).where(c.mode == mode, *where)
            return int(db.execute(query).scalar_one())

        row = {"mode": mode, "begun": count(t.conversation), "choices": count(t.choice)}
        row |= {"done": count(t.ending, ~t.ending.c.stopped), "stopped": count(t.ending, t.ending.c.stopped)}
        out.append(row | {"withdrawn": count(t.withdrawal), "erased": count(t.erasure)})
    return out


def choices_by_day(db: Connection, days: int = 14) -> list[tuple[str, int]]:
    """(day, choices), the oldest first, by days of 24 hours up to now; none that were imported."""
    at = now()
    day = (at - t.choice.c.at) / DAY
    whole = sa.cast(sa.func.floor(day), sa.Integer) if db.dialect.name == "postgresql" else sa.cast(day, sa.Integer)
    query = sa.select(whole, sa.func.count()).select_from(t.choice.join(t.conversation))
    query = query.where(t.choice.c.at > at - days * DAY, t.conversation.c.seed != t.IMPORTED)
    rows = db.execute(query.group_by(whole))
    found = {int(ago): int(n) for ago, n in rows}
    return [("today" if ago == 0 else f"{ago} d ago", found.get(ago, 0)) for ago in reversed(range(days))]


def side_balance(db: Connection, mode: str) -> Interval:
    """Share of choices between two replies that fell on A; intervals resample people. Simulated ones are left out."""
    c, d = t.conversation.c, t.candidate.c
    query = (
        sa.select(d.side, c.person_id)
        .select_from(
            t.choice.join(t.conversation, c.id == t.choice.c.conversation_id)
            .join(t.candidate, d.message_id == t.choice.c.chosen_id)
            .join(t.person, t.person.c.id == c.person_id)
        )
        .where(c.mode == mode, ~t.person.c.simulated, c.seed != t.IMPORTED)  # those were shown somewhere else
    )
    rows = [row for row in db.execute(query) if row.side in (0, 1)]
    return mean_interval([float(r.side == 0) for r in rows], [r.person_id for r in rows], unit="share", n_boot=1000)


def is_balanced(found: Interval) -> bool | None:
    """Whether the interval reaches the band of `BALANCED`; None while there is none."""
    if found.low is None or found.high is None:
        return None
    return found.high >= BALANCED[0] and found.low <= BALANCED[1]


def choice_times(db: Connection) -> list[dict[str, Any]]:
    """For each mode: quartiles of the seconds from seeing the replies to choosing, and how many took under two."""
    out = []
    for mode in MODES:
        query = sa.select(t.choice.c.latency_ms).join(t.conversation).where(t.conversation.c.mode == mode)
        query = query.where(t.choice.c.latency_ms.is_not(None)).order_by(t.choice.c.at.desc()).limit(20_000)
        seconds = [ms / 1000 for ms in db.execute(query).scalars()]
        if len(seconds) > 1:
            low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
            fast = sum(x < 2 for x in seconds) / len(seconds)
            out.append({"mode": mode, "n": len(seconds), "low": low, "median": middle, "high": high, "fast": fast})
    return out


def shares(db: Connection) -> tuple[int, int, list[tuple[str, int]]]:
    """(people who made 80% of the choices here, people with choices, the busiest ten as (name, choices))."""
    c, p = t.conversation.c, t.person.c
    count = sa.func.count()
    query = (
        sa.select(p.name, count)
        .select_from(
            t.choice.join(t.conversation, c.id == t.choice.c.conversation_id).join(t.person, p.id == c.person_id)
        )
        .where(c.seed != t.IMPORTED)
        .group_by(p.id, p.name)
        .order_by(count.desc(), p.name)
    )
    rows = [(str(name), int(n)) for name, n in db.execute(query)]
    total, so_far, people = sum(n for _, n in rows), 0, 0
    while so_far < 0.8 * total:
        so_far += rows[people][1]
        people += 1
    return people, len(rows), rows[:10]


def researcher_agreement(db: Connection) -> dict[str, Interval]:
    """Share of turns in which who looked chose as the worker had; unsure clicks count. By mode; people resampled."""
    o, c = t.opinion.c, t.conversation.c
    query = (
        sa.select(c.mode, c.person_id, (o.chosen_id == t.choice.c.chosen_id).label("same"))
        .select_from(
            t.opinion.join(t.conversation, c.id == o.conversation_id).join(
                t.choice, sa.and_(t.choice.c.conversation_id == o.conversation_id, t.choice.c.turn == o.turn)
            )
        )
        .where(readable())
    )
    rows = db.execute(query).all()
    found = {}
    for mode in sorted({row.mode for row in rows}):
        mine = [row for row in rows if row.mode == mode]
        found[mode] = mean_interval(
            [bool(r.same) for r in mine], [r.person_id for r in mine], unit="share", n_boot=1000
        )
    return found


def arm_counts(db: Connection) -> dict[str, Counter[str]]:
    """Replies shown and clicked, by arm id. Red-team clicks are on the more harmful reply."""
    d, m = t.candidate.c, t.message.c
    shown = db.execute(sa.select(d.arm_id, sa.func.count()).group_by(d.arm_id)).all()
    clicked = sa.select(d.arm_id, sa.func.count()).select_from(
        t.candidate.join(t.message, m.id == d.message_id).join(t.choice, t.choice.c.chosen_id == m.id)
    )
    found: dict[str, Counter[str]] = {}
    for kind, rows in (("shown", shown), ("clicked", db.execute(clicked.group_by(d.arm_id)).all())):
        for arm, n in rows:
            found.setdefault(arm, Counter())[kind] = n
    return found


def reviewers_agreement(db: Connection) -> list[tuple[str, str]]:
    """Fleiss' kappa of attackers and reviewers (redteam.md §3.2) as (what, value with its interval)."""

    def told(found: Interval) -> str:
        if found.value is None or found.low is None or found.high is None:
            return str(found)
        value, low, high = (f"{round(x, 2) + 0.0:.2f}" for x in (found.value, found.low, found.high))  # no -0.00
        return f"{value} [{low}, {high}]"

    return [(name, told(found)) for name, found in agreement(db).items()]
