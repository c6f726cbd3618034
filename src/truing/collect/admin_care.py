"""The administration's page of reviews and surveys: what is drawn for reviewers, and how people are."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from truing.collect import arms, numbers, readers, surveys
from truing.collect.admin_pages import form_key, show, to, whole, write
from truing.collect.store import Refused, setting
from truing.collect.web import Person, Researcher, house_of

router = APIRouter(include_in_schema=False)


@router.get("/admin/reviews")
def reviews(request: Request, person: Researcher) -> Response:
    """Agreement, the sample for reviewers, and counts of the surveys, whose answers belong to nobody."""
    with house_of(request).store.read() as db:
        values: dict[str, Any] = {
            "kappas": numbers.reviewers_agreement(db),
            "sample": setting(db, readers.SAMPLE),
            "arms": [(arm.id, arm.name) for arm in arms.arms(db)],
            "months": surveys.wellbeing_by_month(db),
            "alert": surveys.alert(db),
            "demographics": surveys.demographics_counts(db),
        }
    return show(request, person, "admin_reviews.html", **values)


@router.post("/admin/reviews")
async def draw(request: Request, person: Researcher) -> Response:
    """Draw a sample for reviewers: so many conversations of each arm (fields ``count-ARM``), by a seed."""
    form = {k: str(v) for k, v in (await request.form()).items()}
    return await run_in_threadpool(_draw, request, person, form)


def _draw(request: Request, person: Person, form: dict[str, str]) -> Response:
    given = {k.removeprefix("count-"): v for k, v in form.items() if k.startswith("count-") and v.strip()}
    counts = {arm: whole(count, "The number of conversations") for arm, count in given.items()}
    seed = whole(form.get("seed", "0"), "The seed")
    if not any(counts.values()) or any(not 0 <= count <= 100_000 for count in counts.values()) or seed < 0:
        raise Refused("Say how many conversations of which model are to be reviewed, and a seed of 0 or more.")
    body = {"counts": counts, "seed": seed}
    write(request, person, form_key(form), body, lambda db: readers.sample(db, counts, seed, person.id))
    return to("/admin/reviews")
