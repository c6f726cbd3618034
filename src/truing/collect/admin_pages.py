"""The administrator's pages: what is going on, people, invitations, pay, texts, the log.

Researchers see numbers, conversations and exports; people, money and texts are the administrators'. Every form carries
the CSRF token and a key made with the page: sent twice, it acts once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.engine import Connection

from truing.collect import admin, auth, numbers
from truing.collect.exports import to_csv
from truing.collect.store import Refused, new_id, setting
from truing.collect.tags import tags_of
from truing.collect.web import Admin, Person, Researcher, house_of, page
from truing.collect.words import LANGUAGES, SHIPPED, words

router = APIRouter(include_in_schema=False)

FormKey = Annotated[str, Form(min_length=8, max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
Short = Annotated[str, Form(max_length=200)]
Long = Annotated[str, Form(max_length=20_000)]
Modes = Annotated[list[str], Form()]
PAGES = (
    ("overview", "/admin", False),
    ("checks", "/admin/checks", False),
    ("reviews", "/admin/reviews", False),
    ("exports", "/admin/exports", False),
    ("arms", "/admin/arms", False),
    ("people", "/admin/people", True),
    ("pay", "/admin/pay", True),
    ("settings", "/admin/settings", True),
    ("audit", "/admin/audit", True),
)
"""(name, path, for administrators only) of the pages in the bar."""


def show(request: Request, person: Person, template: str, status: int = 200, **values: Any) -> Response:
    """A page of the administration."""
    tabs = [(name, path) for name, path, only in PAGES if person.role == "admin" or not only]
    made = {"tabs": tabs, "key": new_id, "when": when, "money": money}
    return page(request, template, person, status=status, **made, **values)


def write(
    request: Request, person: Person, key: str, body: Mapping[str, Any], act: Callable[[Connection], Any]
) -> dict[str, Any]:
    """Do what a form asks for, once."""

    def once(db: Connection) -> dict[str, Any]:
        act(db)
        return {}

    return house_of(request).store.once(person.id, key, request.url.path, body, once)


def form_key(form: Mapping[str, str]) -> str:
    """The key of a form that is read by hand. Raises Refused."""
    key = form.get("key", "")
    if not (8 <= len(key) <= 80 and key.isascii() and key.replace("-", "").replace("_", "").isalnum()):
        raise Refused("This form has no key. Reload the page.")
    return key


def to(path: str) -> RedirectResponse:
    """Back to a page after a write."""
    return RedirectResponse(path, status_code=303)


def when(microseconds: int | None) -> str:
    """A time in UTC for people."""
    if microseconds is None:
        return "–"
    return datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def money(cents: int, currency: str) -> str:
    """A sum for people."""
    return f"{'−' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d} {currency}"


# ---------------------------------------------------------------- what is going on


@router.get("/admin")
def overview(request: Request, person: Researcher) -> Response:
    """Progress, balance of sides, time per choice, agreement."""
    with house_of(request).store.read() as db:
        sides = {mode: numbers.side_balance(db, mode) for mode in ("helpful", "redteam")}
        most, everybody, busiest = numbers.shares(db)
        values: dict[str, Any] = {
            "live": numbers.live(db),
            "progress": numbers.progress(db),
            "days": numbers.bars(numbers.choices_by_day(db)),
            "sides": [(numbers.interval_bar(mode, x), numbers.is_balanced(x)) for mode, x in sides.items()],
            "times": numbers.choice_times(db),
            "agreement": [numbers.interval_bar(m, x) for m, x in numbers.researcher_agreement(db).items()],
            "kappas": numbers.reviewers_agreement(db),
            "most": most,
            "everybody": everybody,
            "busiest": numbers.bars(busiest),
        }
    return show(request, person, "admin.html", **values)


@router.get("/api/admin/live", include_in_schema=True)
def live(request: Request, person: Researcher) -> dict[str, int]:
    """The numbers of the moment."""
    with house_of(request).store.read() as db:
        return numbers.live(db)


# ---------------------------------------------------------------- people and invitations


@router.get("/admin/people")
def people(request: Request, person: Admin) -> Response:
    """Everybody, and the links that were given out."""
    return _people(request, person)


def _people(request: Request, person: Person, link: str = "", kind: str = "") -> Response:
    with house_of(request).store.read() as db:
        found, links = admin.people(db), admin.invitations(db)
    return show(
        request, person, "admin_people.html", people=found, invitations=links, link=link, kind=kind, modes=auth.MODES
    )


@router.post("/admin/people/{id}")
def change(
    request: Request,
    person: Admin,
    id: Id,
    key: FormKey,
    role: Short,
    modes: Modes = [],  # noqa: B006
    quota: Short = "",
    disabled: Short = "",
) -> Response:
    """Another role, modes, quota; close or open the door."""
    body = {"role": role, "modes": modes, "quota": quota, "disabled": disabled}
    number = whole(quota, "A quota") if quota.strip() else None
    write(
        request, person, key, body, lambda db: admin.change_person(db, person, id, role, modes, number, bool(disabled))
    )
    return to("/admin/people")


@router.post("/admin/people/{id}/reset")
def reset(request: Request, person: Admin, id: Id, key: FormKey) -> Response:
    """A link by which the person sets a new password; shown once."""
    made: list[str] = []
    write(request, person, key, {}, lambda db: made.append(auth.reset_link(db, person.id, id)))
    return _shown(request, person, made, "reset")


@router.post("/admin/invitations")
def invite(
    request: Request,
    person: Admin,
    key: FormKey,
    role: Short = "worker",
    modes: Modes = [],  # noqa: B006
    source: Annotated[str, Form(max_length=40)] = "",
    quota: Short = "",
    uses: Short = "1",
    days: Short = "14",
) -> Response:
    """A link by which people come in; shown once."""
    body = {"role": role, "modes": modes, "source": source, "quota": quota, "uses": uses, "days": days}
    number = whole(quota, "A quota") if quota.strip() else None
    many, long, made = whole(uses, "The number of people"), whole(days, "The number of days"), []  # type: ignore[var-annotated]

    def act(db: Connection) -> None:
        link = auth.invite(
            db, person.id, role, modes=tuple(modes), source=source.strip(), quota=number, uses=many, days=long
        )
        made.append(link[1])

    write(request, person, key, body, act)
    return _shown(request, person, made, "invite")


def _shown(request: Request, person: Person, made: list[str], kind: str) -> Response:
    """The page with the new link. A form that is sent again made its link the first time: nobody can read it again."""
    if not made:
        raise Refused(
            "This link was made already and is shown only once. Make another one; the first can be taken back."
        )
    return _people(request, person, f"{request.base_url}{kind}/{made[0]}", kind)


@router.post("/admin/invitations/{id}/revoke")
def revoke(request: Request, person: Admin, id: Id, key: FormKey) -> Response:
    """Take a link back."""
    write(request, person, key, {}, lambda db: auth.revoke(db, person.id, id))
    return to("/admin/people")


# ---------------------------------------------------------------- pay


@router.get("/admin/pay")
def pay(request: Request, person: Admin) -> Response:
    """The ledger and the rates."""
    with house_of(request).store.read() as db:
        values: dict[str, Any] = {
            "ledger": admin.ledger(db)[:500],
            "people": admin.people(db),
            "rates": setting(db, "pay") or {},
        }
    return show(request, person, "admin_pay.html", paid=admin.PAID, **values)


@router.get("/admin/pay.csv")
def pay_csv(request: Request, person: Admin) -> Response:
    """The whole ledger for a spreadsheet."""
    with house_of(request).store.read() as db:
        rows = admin.ledger(db)
    text = to_csv(
        ("at", "person", "source", "cents", "currency", "why", "by_hand"),
        (
            (when(r["at"]), r["name"], r["source"], r["cents"], r["currency"], r["why"], r["by"] is not None)
            for r in rows
        ),
    )
    headers = {"Content-Disposition": 'attachment; filename="pay.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/admin/pay")
def add_pay(
    request: Request, person: Admin, key: FormKey, who: Short, cents: Short, why: Long, currency: Short = "USD"
) -> Response:
    """A row of the ledger."""
    sum_, body = whole(cents, "The sum in cents"), {"who": who, "cents": cents, "why": why, "currency": currency}
    write(request, person, key, body, lambda db: admin.add_pay(db, person, who, sum_, currency, why))
    return to("/admin/pay")


@router.post("/admin/pay/rates")
def set_rate(
    request: Request, person: Admin, key: FormKey, mode: Short, by: Short, cents: Short = "0", currency: Short = "USD"
) -> Response:
    """What a mode is paid from now on."""
    sum_, body = whole(cents, "The sum in cents"), {"mode": mode, "by": by, "cents": cents, "currency": currency}
    write(request, person, key, body, lambda db: admin.set_rate(db, person, mode, by, sum_, currency))
    return to("/admin/pay")


# ---------------------------------------------------------------- texts, tags, rules


@router.get("/admin/settings")
def settings(request: Request, person: Admin, room: Annotated[str, Query(max_length=40)] = "consent") -> Response:
    """The texts of a page, tags, rules, language."""
    with house_of(request).store.read() as db:
        now_, edited, rules = words(db), setting(db, "words") or {}, admin.RULES | (setting(db, "rules") or {})
        values: dict[str, Any] = {"tags": tags_of(db), "versions": admin.history(db, "words"), "rules": rules}
    rooms = sorted({name.split(".")[0] for name in SHIPPED if "." in name})
    shown = [(name, now_[name], name in edited) for name in sorted(SHIPPED) if name.split(".")[0] == room]
    values |= {
        "sections": rooms,
        "room": room,
        "texts": shown,
        "language": now_["language"],
        "languages": list(LANGUAGES),
    }
    return show(request, person, "admin_settings.html", title=now_["title"], **values)


@router.post("/admin/settings/words")
def set_word(
    request: Request, person: Admin, key: FormKey, name: Short, value: Long = "", reset: Short = ""
) -> Response:
    """Another text; ``reset`` goes back to what we ship."""
    text, body = None if reset else value, {"name": name, "value": value, "reset": reset}
    write(request, person, key, body, lambda db: admin.set_word(db, person, name, text))
    room = name.split(".")[0]
    return to(f"/admin/settings?room={room}" if "." in name and room.isalnum() else "/admin/settings")


@router.post("/admin/settings/tags")
def set_tags(request: Request, person: Admin, key: FormKey, tags: Long) -> Response:
    """The tags of reviews."""
    write(request, person, key, {"tags": tags}, lambda db: admin.set_tags(db, person, tags))
    return to("/admin/settings")


@router.post("/admin/settings/rules")
def set_rules(request: Request, person: Admin, key: FormKey, name: Short, value: Short) -> Response:
    """A number of the rules."""
    number = whole(value, name[:40])
    body = {"name": name, "value": value}
    write(request, person, key, body, lambda db: admin.set_rules(db, person, {name: number}))
    return to("/admin/settings")


# ---------------------------------------------------------------- the log


@router.get("/admin/audit")
def audit(
    request: Request,
    person: Admin,
    before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    action: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """Who did what."""
    with house_of(request).store.read() as db:
        lines = admin.audit(db, before, action)
    return show(request, person, "admin_audit.html", lines=lines, action=action)


def whole(text: str, what: str) -> int:
    """A whole number that was typed. Raises Refused."""
    try:
        number = int(text.strip())
    except ValueError:
        raise Refused(f"{what} is a whole number.") from None
    if abs(number) > 2**31:
        raise Refused(f"{what} is too large.")
    return number
