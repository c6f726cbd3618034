"""Who reaches which route: every route of the app is listed here with its roles, and one that is not fails."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from browser import Browser, People
from fastapi import FastAPI

from truing.collect import auth_pages
from truing.collect.app import create_app, routes
from truing.collect.store import Store
from truing.collect.web import FORM_COOKIE, ROLES, House

OPEN = ("nobody", *ROLES)
ALL = ROLES
WORKER = ("worker", "admin")
REVIEWER = ("reviewer", "admin")
RESEARCHER = ("researcher", "admin")
ADMIN = ("admin",)

REACH: dict[str, tuple[str, ...]] = {
    "GET /openapi.json": OPEN,
    "GET /health": OPEN,
    "GET /login": OPEN,
    "POST /login": OPEN,
    "GET /setup/{token}": OPEN,
    "POST /setup/{token}": OPEN,
    "GET /invite/{token}": OPEN,
    "POST /invite/{token}": OPEN,
    "GET /reset/{token}": OPEN,
    "POST /reset/{token}": OPEN,
    "GET /": ALL,
    "POST /logout": ALL,
    "GET /password": ALL,
    "POST /password": ALL,
    "GET /consent/{room}": ALL,
    "POST /consent/{room}": ALL,
    "GET /chat": WORKER,
    "GET /rank": WORKER,
    "POST /api/tasks": WORKER,
    "GET /api/conversations/{conversation}": WORKER,
    "POST /api/conversations/{conversation}/turns": WORKER,
    "POST /api/conversations/{conversation}/choices": WORKER,
    "POST /api/conversations/{conversation}/retry": WORKER,
    "POST /api/conversations/{conversation}/finish": WORKER,
    "GET /redteam": WORKER,
    "GET /mine": WORKER,
    "POST /api/conversations/{conversation}/plan": WORKER,
    "POST /api/conversations/{conversation}/stop": WORKER,
    "POST /api/conversations/{conversation}/flag": WORKER,
    "POST /api/conversations/{conversation}/withdraw": WORKER,
    "GET /review": REVIEWER,
    "POST /api/reviews/next": REVIEWER,
    "POST /api/reviews/stop": REVIEWER,
    "POST /api/reviews/{assignment}/proceed": REVIEWER,
    "POST /api/reviews/{assignment}/skip": REVIEWER,
    "POST /api/reviews/{assignment}/submit": REVIEWER,
    "POST /api/exclusions": REVIEWER,
    "GET /surveys/{survey}": ALL,
    "POST /surveys/{survey}": ALL,
    "GET /admin": RESEARCHER,
    "GET /admin/arms": RESEARCHER,
    "GET /admin/checks": RESEARCHER,
    "GET /admin/checks/{id}": RESEARCHER,
    "POST /admin/checks/{id}": RESEARCHER,
    "GET /admin/exports": RESEARCHER,
    "POST /admin/exports": RESEARCHER,
    "GET /admin/reviews": RESEARCHER,
    "POST /admin/reviews": RESEARCHER,
    "GET /api/admin/live": RESEARCHER,
    "POST /admin/arms": ADMIN,
    "POST /admin/arms/{id}": ADMIN,
    "POST /admin/checks/{id}/withdraw": ADMIN,
    "GET /admin/people": ADMIN,
    "POST /admin/people/{id}": ADMIN,
    "POST /admin/people/{id}/reset": ADMIN,
    "POST /admin/invitations": ADMIN,
    "POST /admin/invitations/{id}/revoke": ADMIN,
    "GET /admin/pay": ADMIN,
    "GET /admin/pay.csv": ADMIN,
    "POST /admin/pay": ADMIN,
    "POST /admin/pay/rates": ADMIN,
    "GET /admin/settings": ADMIN,
    "POST /admin/settings/words": ADMIN,
    "POST /admin/settings/tags": ADMIN,
    "POST /admin/settings/rules": ADMIN,
    "GET /admin/audit": ADMIN,
}
PLACES = {"room": "helpful", "survey": "wellbeing"}
"""What stands for a part of a path; for others an id that nothing has."""


def address(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: PLACES.get(m[1], "0" * 32), path)


def ask(browser: Browser, route: str, *, open_form: bool = False, **options: bool) -> int:
    """The status of a request as the pages make it, but with nothing in it. 401 for being led to the sign-in."""
    method, path = route.split(" ", 1)
    if method == "GET":
        answer = browser.get(address(path))
    elif open_form:
        browser.client.cookies.set(FORM_COOKIE, "t" * 43, domain="testserver.local", path="/")
        answer = browser.form(address(path), form="t" * 43, name="x", password="y", again="z")
    elif options.get("token", True):
        answer = browser.client.request(method, address(path), json={}, headers=sent(browser))
    else:
        answer = browser.client.request(method, address(path), json={}, headers={"Idempotency-Key": "0123456789"})
    led_away = answer.headers.get("location") == "/login" and "clear-site-data" not in answer.headers
    return 401 if led_away else int(answer.status_code)


def sent(browser: Browser) -> dict[str, str]:
    return {"X-CSRF-Token": browser.csrf, "Idempotency-Key": "0123456789"}


@pytest.fixture
def people(sqlite_store: Store) -> Iterator[People]:
    found = People(create_app(House(sqlite_store)))
    yield found
    found.close()


def unlisted(app: FastAPI) -> set[str]:
    there = {f"{method} {path}" for method, path in routes(app.routes)}
    assert not (gone := set(REACH) - there), f"listed, but no route of the app: {sorted(gone)}"
    return there - set(REACH)


def test_every_route_is_listed(people: People):
    assert unlisted(people.app) == set()


def test_an_unlisted_route_is_found(people: People):
    people.app.add_api_route("/new", auth_pages.health)
    assert unlisted(people.app) == {"GET /new"}


@pytest.mark.parametrize("role", OPEN)
def test_each_role_reaches_its_routes_and_no_other(people: People, role: str):
    wrong = []
    for route, roles in REACH.items():
        browser = people.stranger() if role == "nobody" else people.new(role)
        status = ask(browser, route, open_form=roles is OPEN)
        reached = status not in (401, 403) or (route == "POST /login" and status == 401)
        if status >= 500 or reached != (role in roles):
            wrong.append(f"{route} as {role}: {status}")
    assert wrong == []


def test_every_write_needs_the_csrf_token(people: People):
    writes = [r for r, roles in REACH.items() if not r.startswith("GET ") and roles is not OPEN]
    assert len(writes) > 5
    browser = people.new("admin")
    assert {route: ask(browser, route, token=False) for route in writes} == dict.fromkeys(writes, 403)
    strangers = [r for r, roles in REACH.items() if not r.startswith("GET ") and roles is OPEN]
    assert {route: ask(people.stranger(), route, token=False) for route in strangers} == dict.fromkeys(strangers, 403)


def test_every_write_of_the_api_needs_an_idempotency_key(people: People):
    writes = [r for r in REACH if " /api/" in r and not r.startswith("GET ")]
    for route in writes:
        browser = people.new("admin")
        method, path = route.split(" ", 1)
        answer = browser.client.request(method, address(path), json={}, headers={"X-CSRF-Token": browser.csrf})
        assert answer.status_code == 422 and "Idempotency-Key" in answer.text, route


def test_no_request_holds_two_connections_at_once(people: People):
    """Or, with as many requests as connections, all would wait for one another."""
    held, most, found = 0, 0, {}
    pool = people.house.store.engine.pool

    @sa.event.listens_for(pool, "checkout")
    def out(*_: object) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)

    @sa.event.listens_for(pool, "checkin")
    def back(*_: object) -> None:
        nonlocal held
        held -= 1

    for route, roles in REACH.items():
        browser = people.new("admin")
        held = most = 0
        ask(browser, route, open_form=roles is OPEN)
        found[route] = most
    assert {route: n for route, n in found.items() if n > 1} == {}
    assert sum(found.values()) > len(found) / 2
