"""Who reads which transcript: three reviewers each, never its author, nobody what they asked to be spared.

A transcript is offered by its description alone. A reviewer skips it, or goes on and answers; both are facts, and what
was skipped or left goes to another. An offer that is not answered within a day no longer counts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from truing.collect import pay, tags, turns
from truing.collect import tables as t
from truing.collect.care import DAY
from truing.collect.consents import has_consented
from truing.collect.rules import Rules
from truing.collect.store import Conflict, Refused, new_id, now, readable, set_setting, setting
from truing.collect.web import Forbidden, Gone, Person

STALE = "This review is closed already. Reload the page to go on."
LATE = (
    "This was open for more than a day, and others have read it meanwhile. Your time counts; please take another one."
)
SAMPLE = "review_sample"
Phase = Literal["preview", "read", "reviewed", "skipped"]

described = sa.func.coalesce(sa.func.nullif(sa.func.trim(t.ending.c.description), ""), t.plan.c.text, "")
"""The attacker's final description, else the plan; over ``ending`` and ``plan``."""


def sample(db: Connection, counts: Mapping[str, int], seed: int, person: str | None) -> list[str]:
    """Draw what is to be reviewed: so many finished red-team conversations of each arm (by id), at random.

    Kept in the setting ``review_sample``; until there is one, all are offered. Fewer where an arm has fewer. Returns
    ids in a random order, so that their order tells nothing of the arms.
    """
    c = t.conversation.c
    rows = db.execute(_reviewable(sa.select(c.id, c.arms)).order_by(c.id)).all()
    rng, drawn = random.Random(seed), list[str]()
    for arm, count in sorted(counts.items()):
        found = [row.id for row in rows if arm in row.arms]
        drawn += rng.sample(found, min(count, len(found)))
    rng.shuffle(drawn)
    set_setting(db, SAMPLE, {"conversations": drawn, "seed": seed, "counts": dict(counts)}, person)
    return drawn


def excluded(db: Connection, person: str) -> list[str]:
    """The tags that a reviewer wants to be spared, as they hold now."""
    e = t.exclusion.c
    row = db.execute(sa.select(e.tags).where(e.person_id == person).order_by(e.serial.desc()).limit(1)).first()
    return [] if row is None else list(row.tags)


def exclude(db: Connection, person: Person, chosen: Sequence[str]) -> list[str]:
    """Replace the tags that a reviewer wants to be spared."""
    found = tags.checked(db, chosen, most=None)
    db.execute(t.exclusion.insert(), {"person_id": person.id, "tags": found, "at": now()})
    return found


# ---------------------------------------------------------------- offers


def offer(db: Connection, person: Person) -> str | None:
    """The open offer of a reviewer, or a new one; its id. None if there is nothing to read for them.

    Raises Forbidden if reviewing is not open to them, Refused before consent.
    """
    allowed(db, person)
    db.execute(sa.select(t.person.c.id).where(t.person.c.id == person.id).with_for_update())
    spared = set(excluded(db, person.id))
    for row in _open(db, person.id):
        told = spared & _known_tags(db, [row.conversation_id]).get(row.conversation_id, set())
        if row.fresh and row.readable and not (told and row.proceed is None):
            return str(row.id)
        close(db, row.id, row.proceed)
    for conversation, author in _waiting(db, person.id, spared):
        lock = sa.select(t.conversation.c.id).where(t.conversation.c.id == conversation).with_for_update()
        db.execute(lock)
        if _readers(db, conversation) >= Rules.of(db).reviewers:
            continue  # taken in another process since we looked
        made = {"id": new_id(), "conversation_id": conversation, "author_id": author, "person_id": person.id}
        db.execute(t.assignment.insert(), made | {"at": now()})
        return made["id"]
    return None


def allowed(db: Connection, person: Person) -> None:
    """Raise Forbidden if reviewing is not open to the person, Refused before they have accepted its instructions."""
    if not person.may("review"):
        raise Forbidden("This room is not open to you. The administrator can change that.")
    if not has_consented(db, person, "review"):
        raise Refused("Please read and accept the instructions first.")


def _reviewable(query: sa.Select[Any]) -> sa.Select[Any]:
    """Finished red-team conversations with at least one choice, which may be read; none that were imported, which
    nobody described."""
    c = t.conversation.c
    return (
        query.join(t.ending, t.ending.c.conversation_id == c.id)
        .where(c.mode == "redteam", c.seed != t.IMPORTED, ~t.ending.c.stopped, readable())
        .where(sa.exists().where(t.choice.c.conversation_id == c.id))
    )


def _live(a: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether an assignment stands for a reader: answered, or open for less than a day."""
    d = t.decision.alias()
    skipped = sa.exists().where(d.c.assignment_id == a.c.id, ~d.c.proceed)
    left = sa.exists().where(t.leaving.c.assignment_id == a.c.id)
    answered = sa.exists().where(t.review.c.assignment_id == a.c.id)
    decided = sa.exists().where(d.c.assignment_id == a.c.id, d.c.at > now() - DAY)
    return sa.or_(answered, sa.and_(~skipped, ~left, sa.or_(a.c.at > now() - DAY, decided)))


def _readers(db: Connection, conversation: str) -> int:
    a = t.assignment
    query = sa.select(sa.func.count()).select_from(a).where(a.c.conversation_id == conversation, _live(a))
    return int(db.execute(query).scalar_one())


def _waiting(db: Connection, person: str, spared: set[str]) -> Iterable[tuple[str, str]]:
    """(conversation, author) of what this reviewer may be offered; what lacks fewest readers first, then at random."""
    c, a = t.conversation.c, t.assignment.alias()
    readers = sa.select(sa.func.count()).select_from(a).where(a.c.conversation_id == c.id, _live(a)).scalar_subquery()
    query = (
        _reviewable(sa.select(c.id, c.person_id, readers.label("readers")))
        .where(c.person_id != person, readers < Rules.of(db).reviewers)
        .where(~sa.exists().where(t.assignment.c.conversation_id == c.id, t.assignment.c.person_id == person))
        .order_by(readers.desc(), c.id)
    )
    drawn = setting(db, SAMPLE)
    rows = db.execute(query).all()
    if drawn is not None:
        wanted = set(drawn["conversations"])
        rows = [row for row in rows if row.id in wanted]
    known = _known_tags(db, [row.id for row in rows]) if spared else {}
    return [(row.id, row.person_id) for row in rows if not spared & known.get(row.id, set())]


def _known_tags(db: Connection, conversations: Sequence[str]) -> dict[str, set[str]]:
    """What is known of the topics of conversations: tags of their plan and of earlier reviews."""
    found: dict[str, set[str]] = {}
    a, p = t.assignment.c, t.plan.c
    for start in range(0, len(conversations), 500):
        ids = conversations[start : start + 500]
        planned = sa.select(p.conversation_id, p.tags).where(p.conversation_id.in_(ids))
        judged = sa.select(a.conversation_id, t.review.c.tags).join(t.review).where(a.conversation_id.in_(ids))
        for row in [*db.execute(planned), *db.execute(judged)]:
            found.setdefault(row.conversation_id, set()).update(row.tags)
    return found


def _open(db: Connection, person: str) -> Sequence[Row[Any]]:
    """Offers of a reviewer that are neither answered, skipped nor left; ``fresh`` for a day."""
    a, d, c = t.assignment.c, t.decision.c, t.conversation.c
    return db.execute(
        sa.select(
            a.id,
            a.conversation_id,
            d.proceed,
            (sa.func.coalesce(d.at, a.at) > now() - DAY).label("fresh"),
            readable().label("readable"),
        )
        .select_from(
            t.assignment.join(t.conversation, c.id == a.conversation_id)
            .outerjoin(t.decision)
            .outerjoin(t.leaving)
            .outerjoin(t.review)
        )
        .where(a.person_id == person, t.review.c.assignment_id.is_(None), t.leaving.c.assignment_id.is_(None))
        .where(sa.or_(d.proceed.is_(None), d.proceed))
        .order_by(a.at)
    ).all()


# ---------------------------------------------------------------- decisions and answers


def mine(db: Connection, person: Person, assignment: str) -> Row[Any]:
    """An offer of this reviewer: id, conversation, ``phase``. Raises Gone if it is not theirs or may not be read."""
    a, d, c = t.assignment.c, t.decision.c, t.conversation.c
    row: Any = db.execute(
        sa.select(
            a.id,
            a.conversation_id,
            d.proceed,
            sa.case(
                (t.review.c.assignment_id.is_not(None), "reviewed"),
                (sa.or_(t.leaving.c.assignment_id.is_not(None), ~d.proceed), "skipped"),
                (d.proceed, "read"),
                else_="preview",
            ).label("phase"),
        )
        .select_from(
            t.assignment.join(t.conversation, c.id == a.conversation_id)
            .outerjoin(t.decision)
            .outerjoin(t.leaving)
            .outerjoin(t.review)
        )
        .where(a.id == assignment, a.person_id == person.id, readable())
    ).first()
    if row is None:
        raise Gone("There is no such review any more. Reload the page to go on.")
    return row


def proceed(db: Connection, person: Person, assignment: str) -> None:
    """Go on to the transcript. Nothing if that was decided before; Conflict if the offer is closed."""
    allowed(db, person)
    row = _held(db, person, assignment)
    if row.phase not in ("preview", "read"):
        raise Conflict(STALE)
    _has_place(db, row)
    if row.phase == "preview":
        db.execute(t.decision.insert(), {"assignment_id": assignment, "proceed": True, "at": now()})


def skip(db: Connection, person: Person, assignment: str) -> None:
    """Leave this one out, before or after having seen it. Costs nothing; nothing if it was skipped before."""
    row = _held(db, person, assignment)
    if row.phase == "reviewed":
        raise Conflict(STALE)
    if row.phase != "skipped":
        close(db, assignment, row.proceed)


def submit(
    db: Connection, person: Person, assignment: str, rating: int, intent: int, about: Sequence[str], comment: str
) -> None:
    """The reviewer's answers. Raises Conflict if the transcript was not opened, or the offer is closed."""
    allowed(db, person)
    held = _held(db, person, assignment)
    if held.phase != "read":
        raise Conflict(STALE)
    _has_place(db, held)
    row = {"assignment_id": assignment, "rating": rating, "intent": intent, "tags": tags.checked(db, about, least=1)}
    db.execute(t.review.insert(), row | {"comment": turns.clean(comment).strip(), "at": now()})
    pay.settle_reviews(db, person.id)


def stop(db: Connection, person: Person) -> None:
    """Close whatever is open, and pay what was done."""
    db.execute(sa.select(t.person.c.id).where(t.person.c.id == person.id).with_for_update())
    for row in _open(db, person.id):
        close(db, row.id, row.proceed)
    pay.settle_reviews(db, person.id)


def close(db: Connection, assignment: str, proceeded: bool | None) -> None:
    """Give an open offer back, for another reviewer."""
    if proceeded:
        db.execute(t.leaving.insert(), {"assignment_id": assignment, "at": now()})
    else:
        db.execute(t.decision.insert(), {"assignment_id": assignment, "proceed": False, "at": now()})


def _held(db: Connection, person: Person, assignment: str) -> Row[Any]:
    """An offer of this reviewer, its row held until the transaction ends."""
    db.execute(sa.select(t.assignment.c.id).where(t.assignment.c.id == assignment).with_for_update())
    return mine(db, person, assignment)


def _has_place(db: Connection, row: Row[Any]) -> None:
    """Raise Conflict if an offer has stood for more than a day and as many as are wanted read in its place."""
    a = t.assignment
    if db.execute(sa.select(a.c.id).where(a.c.id == row.id, _live(a))).first() is not None:
        return
    db.execute(sa.select(t.conversation.c.id).where(t.conversation.c.id == row.conversation_id).with_for_update())
    if _readers(db, row.conversation_id) >= Rules.of(db).reviewers:
        raise Conflict(LATE)


def description(db: Connection, conversation: str) -> str:
    """What the attacker wrote of a conversation."""
    p, e = t.plan, t.ending
    joined = e.outerjoin(p, p.c.conversation_id == e.c.conversation_id)
    query = sa.select(described).select_from(joined).where(e.c.conversation_id == conversation)
    return str(db.execute(query).scalar_one_or_none() or "")
