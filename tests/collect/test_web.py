"""Coming in, going out, and what everybody is kept from doing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa
from browser import Browser, People

from truing.collect import auth
from truing.collect import tables as t
from truing.collect.store import Refused, Store, now, set_setting
from truing.collect.web import SESSION_COOKIE, hashed

GOOD = "correct horse battery"


def invited(store: Store, **more: Any) -> str:
    with store.write() as db:
        return auth.invite(db, "admin-id", **more)[1]


def form_of(browser: Browser, path: str) -> str:
    """Open a page with a form for strangers, as one must; the token in it."""
    page = browser.get(path)
    assert page.status_code == 200, page.text
    return str(re.search(r'name="form" value="([\w-]{43})"', page.text)[1])


def join(browser: Browser, path: str, name: str = "Ada", password: str = GOOD, again: str | None = None) -> Any:
    token = form_of(browser, path)
    return browser.form(path, form=token, name=name, password=password, again=password if again is None else again)


def sign_in(browser: Browser, name: str = "Ada", password: str = GOOD) -> Any:
    return browser.form("/login", form=form_of(browser, "/login"), name=name, password=password)


def count(store: Store, table: sa.Table) -> int:
    with store.read() as db:
        return int(db.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_the_first_link_makes_one_administrator(store: Store, people: People):
    browser = people.stranger()
    assert "truing serve printed" in browser.get("/login").text
    with store.write() as db:
        links = [auth.invite(db, "setup", "admin", modes=auth.MODES, days=1)[1] for _ in range(2)]
    answer = join(browser, f"/setup/{links[0]}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Welcome, Ada" in browser.get("/").text
    assert people.stranger().get(f"/setup/{links[1]}").status_code == 404  # there is one now
    assert people.stranger().get(f"/setup/{links[0]}").status_code == 404
    with store.read() as db:
        row = db.execute(sa.select(t.person)).one()
    assert (row.role, row.name) == ("admin", "Ada") and row.password_hash.startswith("$argon2id$")


def test_an_invitation_brings_role_modes_source_and_quota(store: Store, people: People):
    token = invited(store, role="worker", modes=("redteam",), source="upwork", quota=7, uses=2)
    assert join(people.stranger(), f"/invite/{token}").status_code == 303
    assert join(people.stranger(), f"/invite/{token}", name="Bob").status_code == 303
    assert people.stranger().get(f"/invite/{token}").status_code == 404
    with store.read() as db:
        rows = db.execute(sa.select(t.person).order_by(t.person.c.name)).all()
        assert [r.name for r in rows] == ["Ada", "Bob"]
        assert {(r.role, tuple(r.modes), r.source, r.quota) for r in rows} == {("worker", ("redteam",), "upwork", 7)}
        kept = db.execute(sa.select(t.invitation)).one()
    assert token not in str(kept) and kept.token_hash == hashed(token)


@pytest.mark.parametrize("how", ["expired", "revoked", "other kind", "unknown"])
def test_a_dead_link_says_so(store: Store, people: People, how: str):
    token = invited(store)
    with store.write() as db:
        if how == "expired":
            db.execute(t.invitation.update().values(expires_at=now() - 1))
        if how == "revoked":
            auth.revoke(db, "admin-id", db.execute(sa.select(t.invitation.c.id)).scalar_one())
    path = {"other kind": f"/reset/{token}", "unknown": "/invite/xyz"}.get(how, f"/invite/{token}")
    answer = people.stranger().get(path)
    assert answer.status_code == 404 and "does not work any more" in answer.text
    browser = people.stranger()
    form = form_of(browser, "/login")
    assert browser.form(path, form=form, name="Ada", password=GOOD, again=GOOD).status_code == 404
    assert count(store, t.person) == 0


def test_what_is_typed_wrong_is_said_and_the_link_still_works(store: Store, people: People):
    path, browser = f"/invite/{invited(store)}", people.stranger()
    people.new(name="Ada")
    for name, password, again, said in [
        ("Bob", "short", "short", "needs at least 10"),
        ("Bob", GOOD, "something else", "not the same"),
        ("Bob", "aaaaaaaaaaaa", "aaaaaaaaaaaa", "too easy"),
        ("ADA", GOOD, GOOD, "is taken"),
        ("<b>", GOOD, GOOD, "may hold letters"),
        ("  ", GOOD, GOOD, "1 to 80"),
    ]:
        answer = join(browser, path, name, password, again)
        assert answer.status_code == 422 and said in answer.text, said
    assert join(browser, path, "  Bob \u00a0 Ross ").status_code == 303
    assert "Bob Ross" in browser.get("/").text


def test_signing_in_makes_a_new_session_and_signing_out_ends_it(store: Store, people: People):
    join(people.stranger(), f"/invite/{invited(store)}")
    browser = people.stranger()
    browser.session = "planted-by-somebody-else"
    answer = sign_in(browser, "ada")
    assert answer.status_code == 303
    token = browser.session
    cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith(SESSION_COOKIE))
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and token != "planted-by-somebody-else"
    with store.read() as db:
        hashes = set(db.execute(sa.select(t.login.c.token_hash)).scalars())
    assert hashed(token) in hashes and token not in hashes and hashed("planted-by-somebody-else") not in hashes
    again = sign_in(browser)  # signing in again gives the old session up
    assert again.status_code == 303 and browser.session != token
    thief = people.stranger()
    thief.session = token
    assert thief.get("/").headers["location"] == "/login"
    token = browser.session
    csrf = re.search(r'name="csrf" content="([\w-]+)"', browser.get("/").text)[1]
    assert browser.form("/logout", csrf="wrong").status_code == 403
    answer = browser.form("/logout", csrf=csrf)
    assert answer.headers["clear-site-data"] == '"storage"' and answer.headers["location"] == "/login"
    thief.session = token
    assert thief.get("/").status_code == 303


def test_a_wrong_password_an_unknown_name_and_a_disabled_person_get_the_same_answer(store: Store, people: People):
    for name in ("Ada", "Eve"):
        join(people.stranger(), f"/invite/{invited(store)}", name)
    with store.write() as db:
        db.execute(t.person.update().where(t.person.c.name == "Eve").values(disabled=True))
    texts = set()
    for name, password in (("Ada", "not the password"), ("Nobody", GOOD), ("Eve", GOOD)):
        answer = sign_in(people.stranger(), name, password)
        assert answer.status_code == 401
        texts.add(re.sub(r'value="[^"]*"', "", answer.text))
    assert len(texts) == 1
    with store.read() as db:
        noted = db.execute(sa.select(t.audit).where(t.audit.c.action == "sign-in failed")).all()
    assert len(noted) == 3 and "Nobody" not in str(noted) and GOOD not in str(noted)


def test_a_person_who_is_disabled_is_out_at_once(store: Store, people: People):
    browser = people.new()
    assert browser.get("/").status_code == 200
    with store.write() as db:
        db.execute(t.person.update().values(disabled=True))
    assert browser.get("/").status_code == 303


def test_a_session_ends_after_its_time(store: Store, people: People):
    browser = people.new()
    with store.write() as db:
        db.execute(t.login.update().values(expires_at=now() - 1))
    assert browser.get("/").status_code == 303
    people.new()
    assert count(store, t.login) == 1  # the old one was cleared away


def test_the_administrator_gives_a_link_for_a_new_password(store: Store, people: People):
    join(people.stranger(), f"/invite/{invited(store)}")
    browser = people.stranger()
    sign_in(browser)
    with store.write() as db:
        person = db.execute(sa.select(t.person.c.id)).scalar_one()
        links = [auth.reset_link(db, "admin-id", person) for _ in range(2)]
    assert people.stranger().get(f"/reset/{links[0]}").status_code == 404  # a later link replaces it
    other = people.stranger()
    assert "for Ada" in other.get(f"/reset/{links[1]}").text
    assert join(other, f"/reset/{links[1]}", "", "a new one, longer").status_code == 303
    assert browser.get("/").status_code == 303  # signed out everywhere
    assert sign_in(people.stranger()).status_code == 401
    assert sign_in(people.stranger(), "Ada", "a new one, longer").status_code == 303
    assert people.stranger().get(f"/reset/{links[1]}").status_code == 404


def test_people_change_their_password(store: Store, people: People):
    browser, elsewhere = people.stranger(), people.stranger()
    join(browser, f"/invite/{invited(store)}")
    sign_in(elsewhere)

    def change(old: str, new: str) -> Any:
        csrf = re.search(r'name="csrf" content="([\w-]+)"', browser.get("/password").text)[1]
        return browser.form("/password", csrf=csrf, old=old, password=new, again=new)

    assert "was not right" in change("wrong", "another long one").text
    assert change(GOOD, "short").status_code == 422
    assert change(GOOD, "another long one").headers["location"] == "/password?done"
    assert "is changed" in browser.get("/password?done").text
    assert elsewhere.get("/").status_code == 303
    assert sign_in(elsewhere, "Ada", "another long one").status_code == 303


def test_invitations_that_cannot_be_are_refused(sqlite_store: Store):
    with sqlite_store.write() as db:
        for wrong in ({"role": "boss"}, {"modes": ("fly",)}, {"uses": 0}, {"days": 0}, {"quota": -1}):
            with pytest.raises(Refused):
                auth.invite(db, "admin-id", **wrong)  # type: ignore[arg-type]


def test_the_language_of_the_frame_is_the_administrators(store: Store, people: People):
    with store.write() as db:
        set_setting(db, "words", {"language": "de", "title": "Werkstatt <1>"}, None)
    page = people.new(name="Ada").get("/").text
    assert '<html lang="de">' in page and "Abmelden" in page and "Willkommen, Ada" in page
    assert "Werkstatt &lt;1&gt;" in page and "<1>" not in page
