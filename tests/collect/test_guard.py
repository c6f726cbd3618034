"""Headers, limits, tokens against foreign sites, errors as sentences, and logs that hold no texts."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import sqlalchemy as sa
from browser import People
from fastapi import FastAPI, Form
from fastapi.responses import StreamingResponse
from postgres_server import Postgres

from truing.collect import tables as t
from truing.collect.app import create_app
from truing.collect.guard import HEADERS
from truing.collect.limits import Buckets, TooMany, address_key
from truing.collect.store import Store, note
from truing.collect.web import STATIC, Anyone, House

SECRET = "canary words that somebody said"


@pytest.fixture
def app(house: House) -> FastAPI:
    """The app, and routes that fail in every way a route can."""
    app = create_app(house)

    @app.get("/broken")
    @app.get("/api/broken")
    def broken() -> None:
        raise KeyError(SECRET)

    @app.get("/half")
    def half() -> StreamingResponse:
        def pieces() -> Any:
            yield "x" * 100_000
            raise ValueError(SECRET)

        return StreamingResponse(pieces())

    @app.post("/api/note")
    def write(person: Anyone, body: dict[str, str]) -> dict[str, str]:
        with house.store.write() as db:
            note(db, person.id, "said", said=body["text"])
        return {"done": "yes"}

    @app.post("/a/form")
    def form(person: Anyone, text: str = Form("")) -> dict[str, str]:
        return {"text": text}

    @app.get("/api/number")
    def number(n: int) -> int:
        with house.store.read() as db:
            db.execute(sa.select(t.audit).where(t.audit.c.serial == n)).all()
        return n

    @app.post("/api/plan")
    def plan(person: Anyone, body: dict[str, Any]) -> dict[str, str]:
        with house.store.write() as db:
            db.execute(t.survey_offer.insert(), {"id": "x" * 32, "person_id": person.id} | body)
        return {}

    return app


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "path", ["/", "/login", "/nothing-here", "/api/nothing", "/broken", "/health", "/openapi.json"]
)
def test_every_answer_has_the_headers_and_is_not_kept(people: People, path: str):
    answer = people.new().get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value, name
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


def test_the_content_policy_runs_nothing_but_files_of_the_app():
    """redteam.md §14 row 14: a text that became markup after all would still do nothing."""
    policy = HEADERS["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert {rules[name] for name in ("default-src", "base-uri", "frame-ancestors")} == {"'none'"}
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert "unsafe" not in policy and "*" not in policy and HEADERS["X-Content-Type-Options"] == "nosniff"


def test_files_are_kept_by_their_hash(people: People):
    browser = people.stranger()
    address = re.search(r'href="(/static/app\.css\?\w+)"', browser.get("/login").text)[1]
    assert "immutable" in browser.get(address).headers["cache-control"]
    assert browser.get("/static/app.css").headers["cache-control"] == "no-cache"
    assert browser.get("/static/none.css?x").headers["cache-control"] == "no-store"
    assert browser.get("/static/../web.py").status_code == 404


def test_behind_a_proxy_cookies_and_browsers_keep_to_https(sqlite_store: Store):
    people = People(create_app(House(sqlite_store, secure_cookies=True)))
    answer = people.stranger().get("/login")
    assert "Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    people.close()


def test_pages_hold_no_script_or_style_of_their_own():
    """The content policy would stop them; and texts reach the page as text only."""
    for page in (STATIC.parent / "pages").iterdir():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|\|\s*safe|autoescape", text), page.name
        assert not [s for s in re.findall(r"<script[^>]*>([^<]*)", text) if s.strip()], page.name
    for code in STATIC.glob("*.js"):
        text = code.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", text), code


# ---------------------------------------------------------------- foreign sites


def test_a_write_needs_the_token_of_its_session(people: People):
    browser, other = people.new(), people.new()
    body = {"text": "hello"}
    assert browser.post("/api/note", body).status_code == 200
    for token in ("", "wrong", other.csrf, "\xe9"):
        answer = browser.client.post("/api/note", json=body, headers={"X-CSRF-Token": token.encode("latin-1")})
        assert answer.status_code == 403, token
    assert browser.client.post("/api/note", json=body).status_code == 403
    assert browser.form("/a/form", text="x").json() == {"text": "x"}
    assert browser.client.post("/a/form", data={"text": "x"}).status_code == 403
    assert browser.client.post("/a/form", data={"csrf": other.csrf}).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_cannot_write_even_with_a_token(people: People, site: str):
    browser = people.new()
    answer = browser.post("/api/note", {"text": "x"}, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 403 and "another site" in answer.json()["error"]
    assert browser.post("/api/note", {"text": "x"}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_forms_of_strangers_need_the_token_of_their_cookie(people: People):
    browser, other = people.stranger(), people.stranger()
    pages = [re.search(r'name="form" value="([\w-]+)"', b.get("/login").text)[1] for b in (browser, other)]
    assert browser.form("/login", form=pages[1], name="x", password="y").status_code == 403
    assert browser.form("/login", name="x", password="y").status_code == 403
    assert people.stranger().form("/login", form=pages[0], name="x", password="y").status_code == 403
    assert people.stranger().form("/login", form="", name="x", password="y").status_code == 403
    assert browser.form("/login", form=pages[0], name="x", password="y").status_code == 401


# ---------------------------------------------------------------- limits


def test_a_bucket_gives_its_tokens_and_fills_again():
    clock = [0.0]
    bucket = Buckets(3, 0.5, clock=lambda: clock[0])
    for _ in range(3):
        bucket.take("a")
    with pytest.raises(TooMany) as told:
        bucket.take("a")
    assert told.value.seconds >= 2
    bucket.take("b")
    clock[0] = 2.0
    bucket.take("a")
    with pytest.raises(TooMany):
        bucket.take("a")
    bucket.give("a")
    bucket.take("a")


def test_buckets_forget_those_who_are_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("truing.collect.limits.MOST_KEYS", 100)
    clock = [0.0]
    bucket = Buckets(2, 0.001, clock=lambda: clock[0])
    for n in range(1000):
        clock[0] += 0.01
        bucket.take(f"address {n}")
    assert len(bucket._held) <= 100
    bucket.take("address 999")
    with pytest.raises(TooMany):  # the latest are remembered
        bucket.take("address 999")


def test_addresses_of_one_machine_count_as_one():
    assert address_key("10.0.0.1") != address_key("10.0.0.2")
    assert address_key("2001:db8:1:2::1") == address_key("2001:db8:1:2:ffff::9") != address_key("2001:db8:1:3::1")
    assert address_key(None) == "?" and address_key("testclient") == "testclient"


def test_a_person_who_asks_too_often_waits_and_others_do_not(house: House, people: People):
    house.limits.person = Buckets(5, 0.01)
    browser, other = people.new(), people.new()
    assert [browser.get("/").status_code for _ in range(6)] == [200] * 5 + [429]
    answer = browser.post("/api/note", {"text": "x"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 and "wait" in answer.json()["error"]
    assert other.get("/").status_code == 200


def test_strangers_count_by_address_whatever_cookie_they_make_up(house: House, people: People):
    house.limits.address = Buckets(5, 0.01)
    known = people.new()
    found = []
    for n in range(7):
        browser = people.stranger()
        browser.session = f"made up {n}"
        found.append(browser.get("/" if n % 2 else "/login").status_code)
    assert found == [200, 303, 200, 303, 200, 429, 429]
    assert known.get("/").status_code == 200


def test_passwords_cannot_be_tried_out(house: House, people: People, store: Store):
    def guess(name: str) -> int:
        browser = people.stranger()
        form = re.search(r'name="form" value="([\w-]+)"', browser.get("/login").text)[1]
        return int(browser.form("/login", form=form, name=name, password="some password").status_code)

    house.limits.guess = Buckets(3, 0.01)
    people.new(name="Ada")
    assert [guess("Ada") for _ in range(3)] == [401] * 3
    assert guess("ADA") == 429 and guess("Ada") == 429
    assert guess("Bob") == 401
    house.limits.guess_address = Buckets(2, 0.01)
    assert [guess(f"name {n}") for n in range(3)] == [401, 401, 429]


# ---------------------------------------------------------------- errors and logs


def test_an_unexpected_error_is_a_number_for_people_and_places_for_us(people: People, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    browser = people.new()
    page, api = browser.get("/broken"), browser.get("/api/broken")
    assert page.status_code == api.status_code == 500
    assert "<h1>" in page.text and set(api.json()) == {"error"}
    number = re.search(r"this number: (\w{8})", page.text)[1]
    logged = "\n".join(r.getMessage() for r in caplog.records)
    assert number in logged and "KeyError" in logged and "test_guard.py" in logged
    with pytest.raises(RuntimeError, match="broken off"):
        browser.get("/half")
    assert SECRET not in page.text + api.text + caplog.text


def test_what_cannot_be_stored_is_said_and_not_a_fault(people: People, store: Store):
    browser = people.new()
    answer = browser.client.post(
        "/api/plan", content=b'{"survey": "a\\u0000b", "tasks": 1, "at": 1}',
        headers={"X-CSRF-Token": browser.csrf, "Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == (200 if store.sqlite else 422)
    for body in (b'{"survey": "a\\ud800b", "tasks": 1, "at": 1}', b'{"survey": "a", "tasks": 1, "at": %d}' % 10**40):
        answer = browser.client.post(
            "/api/plan", content=body, headers={"X-CSRF-Token": browser.csrf, "Content-Type": "application/json"}
        )
        assert answer.status_code == 422, answer.text
    assert browser.get(f"/api/number?n={10**30}").status_code == 422


def test_too_much_is_refused(people: People):
    answer = people.new().post("/api/note", {"text": "x" * (1 << 20)})
    assert answer.status_code == 413 and answer.json() == {"error": "That was too long to send."}

    def pieces() -> Any:  # of a length that nobody was told
        yield b"{"
        for _ in range(40):
            yield b" " * (1 << 15)

    browser = people.new()
    assert browser.client.post("/api/note", content=pieces(), headers={"X-CSRF-Token": browser.csrf}).status_code == 413


def test_the_log_holds_no_token_name_or_text(people: People, store: Store, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    browser = people.new(name="Ada Canary")
    browser.get("/invite/secret-token-1")
    browser.get("/no/such/secret-token-2?secret-token-3")
    browser.post("/api/note", {"text": SECRET})
    browser.get("/health")
    mine = [r.getMessage() for r in caplog.records if r.name.startswith(("truing", "uvicorn", "sqlalchemy"))]
    assert any(re.fullmatch(r"POST /api/note 200 \d+ ms", line) for line in mine)
    assert any(line.startswith("GET /invite/{token} 404") for line in mine)
    assert any(line.startswith("GET (no page) 404") for line in mine)
    for word in ("secret-token", "Canary", "canary", browser.csrf, browser.session, browser.person):
        assert not any(word in line for line in mine), word


def test_a_full_disk_is_a_clear_page_and_loses_nothing(sqlite_store: Store, caplog: Any):
    people = People(_with_note(sqlite_store))
    browser = people.new()
    with sqlite_store.engine.connect() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()

    @sa.event.listens_for(sqlite_store.engine, "begin")
    def limit(db: Any) -> None:
        db.exec_driver_sql(f"PRAGMA max_page_count={pages + 30}")

    done = 0
    for _ in range(40):
        answer = browser.post("/api/note", {"text": SECRET * 100})
        if answer.status_code != 200:
            break
        done += 1
    assert 0 < done < 40 and answer.status_code == 503 and answer.headers["retry-after"]
    assert "disk of the server is full" in answer.json()["error"]
    page = browser.form("/note", text=SECRET * 1000)
    assert page.status_code == 503 and "disk of the server is full" in page.text and "<h1>" in page.text
    assert _said(sqlite_store) == done  # every one that was acknowledged, and none that was not
    assert browser.get("/").status_code == 200  # reading goes on
    assert "SQLITE_FULL" in caplog.text and SECRET not in caplog.text
    people.close()


def test_a_database_that_crashes_is_a_clear_page_and_loses_nothing(
    postgres: Postgres, empty_database: str, caplog: pytest.LogCaptureFixture
):
    postgres.do(f"CREATE DATABASE crashing TEMPLATE {empty_database}")
    store = Store(postgres.url("crashing"))
    people = People(_with_note(store))
    browser = people.new()
    for _ in range(3):
        assert browser.post("/api/note", {"text": SECRET}).status_code == 200
    postgres.stop("immediate")
    try:
        answer, page = browser.post("/api/note", {"text": SECRET}), browser.get("/")
        assert answer.status_code == page.status_code == 503
        assert "could not be reached" in answer.json()["error"] and "could not be reached" in page.text
        assert browser.get("/health").status_code == 503
        assert people.stranger().get("/login").status_code == 503
    finally:
        postgres.start()
    assert browser.post("/api/note", {"text": SECRET}).status_code == 200
    assert _said(store) == 4
    assert SECRET not in caplog.text
    people.close()
    store.close()


def _with_note(store: Store) -> FastAPI:
    app = create_app(House(store))

    @app.post("/api/note")
    def write(person: Anyone, body: dict[str, str]) -> dict[str, str]:
        with store.write() as db:
            note(db, person.id, "said", said=body["text"])
        return {"done": "yes"}

    @app.post("/note")
    def form(person: Anyone, text: str = Form("")) -> dict[str, str]:
        return write(person, {"text": text})

    return app


def _said(store: Store) -> int:
    query = sa.select(sa.func.count()).select_from(t.audit).where(t.audit.c.action == "said")
    with store.read() as db:
        return int(db.execute(query).scalar_one())
