"""Two surveys that nobody has to answer, tied to no person (redteam.md §4.2, §4.4).

Answers hold no person, no time but the month, and no order: they are stored by a random id that comes with the form
and makes a second sending harmless. They do not go through ``Store.once``, which would tie them to a person. That
somebody was *asked* is kept apart, rounded to the month. On PostgreSQL every answer rewrites its small table, so that
neither the order of rows nor the numbers of transactions can be laid beside anything else.
"""

from __future__ import annotations

import calendar
import random
import time
from collections.abc import Mapping
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect import turns
from truing.collect.rules import Rules
from truing.collect.store import Refused, Store, new_id
from truing.collect.web import Anyone, Gone, Person, house_of, page

router = APIRouter(include_in_schema=False)

POSITIVE = ("alert", "inspired", "determined", "attentive", "active")
NEGATIVE = ("upset", "hostile", "ashamed", "nervous", "afraid")
"""The ten feelings of the international short PANAS, each 0 (not at all) to 4 (very)."""
DEMOGRAPHICS: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "man", "nonbinary", "other"),
    "orientation": ("straight", "gay", "bisexual", "unsure", "other"),
    "age": ("18-24", "25-34", "35-44", "45-54", "55-64", "65+"),
    "ethnicity": ("native", "asian", "black", "hispanic", "mena", "pacific", "white", "other"),
    "education": ("school", "college", "graduate", "other"),
    "disability": ("hearing", "vision", "cognitive", "mobility", "selfcare", "other", "none"),
}
SEVERAL = ("ethnicity", "disability")
"""Items with more than one answer."""
DECLINED = "declined"
LONGEST_COMMENT = 4000
TABLES = {"demographics": t.demographics, "wellbeing": t.wellbeing}
ENOUGH = 3
"""Answers that a month must have before it can alarm anybody."""
RISE = 0.5
LEVEL = 1.5


# ---------------------------------------------------------------- when


def tasks_done(db: Connection, person: str) -> int:
    """Tasks with harmful text that a person has finished: of red teaming, and reviews by the size of a task."""
    c = t.conversation.c
    ended = (
        sa.select(sa.func.count())
        .select_from(t.conversation.join(t.ending))
        .where(c.task_id == t.task.c.id)
        .scalar_subquery()
    )
    mine = sa.and_(t.task.c.person_id == person, t.task.c.mode == "redteam", ended >= t.task.c.size)
    attacks = db.execute(sa.select(sa.func.count()).select_from(t.task).where(mine)).scalar_one()
    reviews = db.execute(
        sa.select(sa.func.count()).select_from(t.assignment.join(t.review)).where(t.assignment.c.person_id == person)
    ).scalar_one()
    return int(attacks) + int(reviews) // Rules.of(db).task_size


def due(db: Connection, person: Person) -> str | None:
    """The survey that a person is to be asked now: ``demographics``, ``wellbeing`` or None. Simulated people: none."""
    if person.simulated:
        return None
    care, count = Rules.of(db), tasks_done(db, person.id)
    o = t.survey_offer.c
    asked = {
        row.survey: int(row.tasks)
        for row in db.execute(
            sa.select(o.survey, sa.func.max(o.tasks).label("tasks")).where(o.person_id == person.id).group_by(o.survey)
        )
    }
    if count >= care.demographics_after and "demographics" not in asked:
        return "demographics"
    every = care.wellbeing_every
    return "wellbeing" if count // every > asked.get("wellbeing", 0) // every else None


def close(db: Connection, person: Person, survey: str) -> None:
    """Note that a person was asked, whether or not they answered. The month is all that is kept of the time."""
    year, number = time.gmtime()[:2]
    month = calendar.timegm((year, number, 1, 0, 0, 0)) * 1_000_000
    row = {"id": new_id(), "person_id": person.id, "survey": survey, "tasks": tasks_done(db, person.id), "at": month}
    db.execute(t.survey_offer.insert(), row)


# ---------------------------------------------------------------- answers


def read_answers(survey: str, form: Mapping[str, list[str]]) -> dict[str, Any]:
    """The answers of a form: an item that was left out is not in them, one that was declined says so.

    Raises Refused for an answer that the form does not offer.
    """
    answers: dict[str, Any] = {}
    offered: dict[str, tuple[str, ...]] = (
        DEMOGRAPHICS if survey == "demographics" else dict.fromkeys(POSITIVE + NEGATIVE, ("0", "1", "2", "3", "4"))
    )
    for item, options in offered.items():
        given = [value for value in form.get(item, []) if value]
        if not given:
            continue
        if DECLINED in given:
            answers[item] = DECLINED
            continue
        if any(value not in options for value in given) or (len(given) > 1 and item not in SEVERAL):
            raise Refused("That answer is not one of those offered. Reload the page and try again.")
        answers[item] = int(given[0]) if survey == "wellbeing" else sorted(given) if item in SEVERAL else given[0]
    return answers


def keep(store: Store, survey: str, row_id: str, answers: Mapping[str, Any], comment: str = "") -> None:
    """Store answers under a random id, once. Raises Refused for an id that is none."""
    if len(row_id) != 32 or not set(row_id) <= set("0123456789abcdef"):
        raise Refused("The form is out of date. Reload the page and try again.")
    table = TABLES[survey]
    row: dict[str, Any] = {"id": row_id, "answers": dict(answers), "month": time.strftime("%Y-%m", time.gmtime())}
    if survey == "wellbeing":
        row["comment"] = turns.clean(comment).strip()[:LONGEST_COMMENT]
    if not answers and not row.get("comment"):
        return
    with store.write() as db:
        if not store.sqlite:
            db.execute(sa.text(f"LOCK TABLE {survey} IN ACCESS EXCLUSIVE MODE"))
        if db.execute(sa.select(table.c.id).where(table.c.id == row_id)).first() is not None:
            return
        db.execute(table.insert(), row)
        if not store.sqlite:  # one transaction number for all rows, in the order of their random ids
            db.execute(table.update().values(month=table.c.month))
            db.execute(sa.text(f"CLUSTER {survey} USING pk_{survey}"))


# ---------------------------------------------------------------- what comes of it


def affect(answers: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(positive, negative) affect: the means of the feelings that were answered, 0 to 4; None where none was.

    >>> affect({"alert": 2, "active": 1, "upset": "declined"})
    (1.5, None)
    """
    means = []
    for items in (POSITIVE, NEGATIVE):
        given = [answers[item] for item in items if isinstance(answers.get(item), int | float)]
        means.append(sum(given) / len(given) if given else None)
    return means[0], means[1]


def wellbeing_by_month(db: Connection) -> list[dict[str, Any]]:
    """For the administrator's page: ``month, n, positive, negative`` (means, None without answers)."""
    months: dict[str, list[tuple[float | None, float | None]]] = {}
    for row in db.execute(sa.select(t.wellbeing.c.month, t.wellbeing.c.answers).order_by(t.wellbeing.c.month)):
        months.setdefault(row.month, []).append(affect(row.answers))
    return [
        {
            "month": month,
            "n": len(rows),
            "positive": _mean([r[0] for r in rows]),
            "negative": _mean([r[1] for r in rows]),
        }
        for month, rows in months.items()
    ]


def alert(db: Connection) -> dict[str, Any] | None:
    """The latest month, if negative affect has risen in it: by `RISE` over the months before, or to `LEVEL`.

    None otherwise, and while a month has fewer than `ENOUGH` answers. ``before`` is the mean of the months before.
    """
    months = [m for m in wellbeing_by_month(db) if m["negative"] is not None and m["n"] >= ENOUGH]
    if not months:
        return None
    last, earlier = months[-1], months[:-1]
    count = sum(m["n"] for m in earlier)
    before = sum(m["negative"] * m["n"] for m in earlier) / count if count else None
    risen = last["negative"] >= LEVEL or (before is not None and last["negative"] >= before + RISE)
    return last | {"before": before} if risen else None


def demographics_counts(db: Connection) -> dict[str, dict[str, int]]:
    """For the administrator's page: item → answer → people; ``declined`` and ``left out`` are counted too."""
    rows = [dict(row) for row in db.execute(sa.select(t.demographics.c.answers)).scalars()]
    found: dict[str, dict[str, int]] = {}
    for item, options in DEMOGRAPHICS.items():
        counts = dict.fromkeys((*options, DECLINED, "left out"), 0)
        for answers in rows:
            given = answers.get(item, "left out")
            for value in given if isinstance(given, list) else [given]:
                counts[value] += 1
        found[item] = counts
    return found


def _mean(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


# ---------------------------------------------------------------- the page


async def fields(request: Request) -> dict[str, list[str]]:
    """All fields of the form."""
    form = await request.form()
    return {name: [str(value) for value in form.getlist(name)] for name in form}


@router.get("/surveys/{survey}", response_class=HTMLResponse)
def survey_page(request: Request, person: Anyone, survey: str) -> Response:
    """The form, its items in an order of their own each time."""
    if survey not in TABLES:
        raise Gone("There is no such page.")
    with house_of(request).store.read() as db:
        if due(db, person) != survey:
            return RedirectResponse(_back(request, person), status_code=303)
    items = list(DEMOGRAPHICS) if survey == "demographics" else list(POSITIVE + NEGATIVE)
    random.SystemRandom().shuffle(items)
    options = DEMOGRAPHICS if survey == "demographics" else None
    return page(
        request, "survey.html", person, survey=survey, items=items, options=options, several=SEVERAL, id=new_id()
    )


@router.post("/surveys/{survey}")
def answer(
    request: Request, person: Anyone, survey: str, form: Annotated[dict[str, list[str]], Depends(fields)]
) -> Response:
    """Answers, or "not now"; either way the person is not asked again until it is due again."""
    if survey not in TABLES:
        raise Gone("There is no such page.")
    store = house_of(request).store
    with store.read() as db:
        open_now = due(db, person) == survey
    if open_now:
        if "skip" not in form:
            keep(
                store, survey, (form.get("id") or [""])[0], read_answers(survey, form), (form.get("comment") or [""])[0]
            )
        with store.write() as db:  # a transaction of its own: nothing ties it to the answers
            close(db, person, survey)
    return RedirectResponse(_back(request, person), status_code=303)


def _back(request: Request, person: Person) -> str:
    """Where the person came from: the room of their role."""
    there: set[str] = request.app.state.paths
    rooms = [("redteam", "/redteam", ("worker", "admin")), ("review", "/review", ("reviewer", "admin"))]
    return next((p for mode, p, who in rooms if p in there and person.role in who and person.may(mode)), "/")
