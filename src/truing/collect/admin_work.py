"""The administration's pages of the work itself: arms, spot checks, exports."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path as File
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from truing.collect import admin, arms, numbers
from truing.collect import tables as t
from truing.collect.admin_pages import FormKey, Id, Long, Modes, Short, form_key, show, to, write
from truing.collect.exports import MODES as EXPORTS
from truing.collect.exports import NOTICES, Wanted, make_export, record_export
from truing.collect.store import Refused
from truing.collect.stories import Story, stories
from truing.collect.web import Admin, Gone, Person, Researcher, house_of
from truing.data.files import DataError

router = APIRouter(include_in_schema=False)
LETTERS = "ABCDEFGH"
FORMS = ("truing", "trl", "hh")


# ---------------------------------------------------------------- arms


@router.get("/admin/arms")
def arms_page(request: Request, person: Researcher) -> Response:
    """Arms with their settings, weights and counts."""
    with house_of(request).store.read() as db:
        found, counts = arms.arms(db), numbers.arm_counts(db)
    desk = house_of(request).desk
    problems = dict(desk.problems) if desk is not None else {}
    told = [(arm, {k: v for k, v in arm.spec.to_json().items() if v not in (None, "")}) for arm in found]
    return show(request, person, "admin_arms.html", arms=told, counts=counts, modes=arms.MODES, problems=problems)


@router.post("/admin/arms")
def add_arm(
    request: Request,
    person: Admin,
    key: FormKey,
    name: Short,
    model: Annotated[str, Form(max_length=500)],
    more: Long = "",
    weight: Short = "1",
    modes: Modes = [],  # noqa: B006
) -> Response:
    """Offer another model, or the same with other settings; ``more`` has a line KEY=VALUE for each setting."""
    values: dict[str, Any] = {"name": name, "model": model, "weight": weight, "modes": modes}
    for line in filter(None, (line.strip() for line in more.splitlines())):
        word, equals, value = line.partition("=")
        if not equals or word.strip() in values:
            raise Refused(f"Expected lines KEY=VALUE for settings, found {line[:60]!r}.")
        values[word.strip()] = value.strip()
    try:
        offer = arms.read_arm(values)
    except ValueError as problem:
        raise Refused(str(problem)) from None
    write(request, person, key, values, lambda db: arms.add_arm(db, person.id, offer))
    if (desk := house_of(request).desk) is not None:
        desk.wake()
    return to("/admin/arms")


@router.post("/admin/arms/{id}")
def weigh(request: Request, person: Admin, id: Id, key: FormKey, mode: Short, weight: Short) -> Response:
    """How often an arm is drawn from now on; 0 retires it."""
    try:
        number = float(weight)
    except ValueError:
        raise Refused("A weight is a number, 0 or more.") from None
    body = {"mode": mode, "weight": weight}
    write(request, person, key, body, lambda db: arms.set_weight(db, person.id, id, mode, number))
    return to("/admin/arms")


# ---------------------------------------------------------------- spot checks


@router.get("/admin/checks")
def checks(request: Request, person: Researcher) -> Response:
    """What to look at next: no words of anybody are on this page."""
    with house_of(request).store.read() as db:
        waiting = admin.queue(db)
        done = sa.select(t.spot_check.c.verdict, sa.func.count()).group_by(t.spot_check.c.verdict)
        verdicts = sorted(db.execute(done).tuples().all())
    return show(request, person, "admin_checks.html", queue=waiting, verdicts=verdicts)


@router.get("/admin/checks/{id}")
def look(request: Request, person: Researcher, id: Id, read: bool = False) -> Response:
    """A conversation. A red-team one is opened only after a warning; which replies were clicked is not shown before
    one has chosen oneself."""
    with house_of(request).store.read() as db:
        story = next(stories(db, ids=[id]), None)
        if story is None:
            raise Gone("There is no such conversation, or it was withdrawn.")
        o, f = t.opinion.c, t.flag.c
        mine: dict[int, str] = dict(
            db.execute(sa.select(o.turn, o.chosen_id).where(o.conversation_id == id, o.person_id == person.id))
            .tuples()
            .all()
        )
        flags = list(db.execute(sa.select(f.why).where(f.conversation_id == id)).scalars())
        checked = t.spot_check.c
        past = db.execute(
            sa.select(t.spot_check).where(checked.conversation_id == id, checked.person_id == person.id)
        ).all()
    covered = story.row.mode == "redteam" and not read
    told = [] if covered else [_turn(story, turn, mine, bool(past)) for turn in sorted(story.choices)]
    return show(
        request,
        person,
        "admin_check.html",
        story=story,
        covered=covered,
        turns=told,
        flags=[] if covered else flags,
        verdicts=admin.VERDICTS,
        past=[row.verdict for row in past],
    )


def _turn(story: Story, turn: int, mine: dict[int, str], checked: bool) -> dict[str, Any]:
    """A turn as it is shown: the replies in the order of sides; what was clicked only after one's own choice."""
    found = story.said(turn)
    choice = story.choices[turn]
    replies = [m for m in found.values() if m.kind in ("reply", "written")]
    replies.sort(key=lambda m: len(LETTERS) if m.side is None else m.side)
    told = checked or turn in mine
    return {
        "number": turn,
        "human": next((m.text for m in found.values() if m.role == "human"), ""),
        "replies": [(LETTERS[i], m.id, m.text) for i, m in enumerate(replies)],
        "mine": next((LETTERS[i] for i, m in enumerate(replies) if m.id == mine.get(turn)), ""),
        "clicked": next((LETTERS[i] for i, m in enumerate(replies) if told and m.id == choice.chosen_id), ""),
        "strength": choice.strength if told else None,
        "edit": found[choice.edit_id].text if told and choice.edit_id else "",
        "told": told,
    }


@router.post("/admin/checks/{id}")
async def judge(request: Request, person: Researcher, id: Id) -> Response:
    """A verdict, and what one would have chosen (fields ``pick-TURN``)."""
    from starlette.concurrency import run_in_threadpool

    form = {k: str(v) for k, v in (await request.form()).items()}
    return await run_in_threadpool(_judge, request, person, id, form)


def _judge(request: Request, person: Person, id: str, form: dict[str, str]) -> Response:
    picks = {int(k[5:]): v for k, v in form.items() if k.startswith("pick-") and k[5:].isdigit() and len(k) < 10 and v}
    verdict, comment = form.get("verdict", ""), form.get("comment", "").strip()
    body = {"verdict": verdict, "comment": comment, "picks": {str(k): v for k, v in picks.items()}}
    write(request, person, form_key(form), body, lambda db: admin.check(db, person, id, verdict, comment, picks))
    return to(f"/admin/checks/{id}?read=true")


@router.post("/admin/checks/{id}/withdraw")
def withdraw(request: Request, person: Admin, id: Id, key: FormKey) -> Response:
    """Take a conversation out of every reader's and export's sight."""
    write(request, person, key, {}, lambda db: admin.withdraw(db, person, id))
    house_of(request).bell.ring(id)
    return to("/admin/checks")


# ---------------------------------------------------------------- exports


@router.get("/admin/exports")
def exports(request: Request, person: Researcher) -> Response:
    """What can leave, and what has left."""
    e = t.export.c
    query = sa.select(t.export, t.person.c.name).outerjoin(t.person, t.person.c.id == e.person_id)
    with house_of(request).store.read() as db:
        made = [dict(row) for row in db.execute(query.order_by(e.at.desc()).limit(100)).mappings()]
    return show(request, person, "admin_exports.html", made=made, kinds=list(EXPORTS), notices=NOTICES, forms=FORMS)


@router.post("/admin/exports")
def export(
    request: Request,
    person: Researcher,
    key: FormKey,
    kind: Short,
    to_: Annotated[str, Form(alias="to", max_length=20)] = "truing",
    part: Short = "all",
    test_share: Annotated[float, Form(ge=0, le=1)] = 0.05,
    people: Short = "real",
    arms_: Annotated[str, Form(alias="arms", max_length=20)] = "",
    unfinished: Short = "",
) -> Response:
    """Write a file and send it. Its hash and what it holds are kept."""
    if to_ not in FORMS or part not in ("all", "train", "test") or people not in ("real", "simulated", "all"):
        raise Refused("Choose a form, a part and whose conversations.")
    folder = File(tempfile.mkdtemp(prefix="truing-export-"))
    made = None
    try:
        wanted = Wanted(kind, to_, part, test_share, 0, bool(arms_), bool(unfinished), people)  # type: ignore[arg-type]
        found = make_export(house_of(request).store, wanted, folder)
        body = {"kind": kind, "to": to_, "part": part, "share": test_share, "people": people}
        done: list[str] = []
        body |= {"arms": arms_, "unfinished": unfinished}
        write(request, person, key, body, lambda db: done.append(record_export(db, person.id, found)))
        if not done:
            raise Refused("This export was made already. Reload the page to make another one.")
        made = found
    except DataError:
        raise Refused("There is nothing to export yet with these choices.") from None
    except ValueError as problem:
        raise Refused(str(problem)) from None
    finally:
        if made is None:
            shutil.rmtree(folder, ignore_errors=True)
    headers = {"X-Truing-SHA256": made.sha256}
    if wanted.notice:
        headers["X-Truing-Notice"] = wanted.notice
    return FileResponse(
        made.path,
        filename=wanted.name,
        media_type="application/octet-stream",
        headers=headers,
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
