"""Pages of coming and going: sign in, sign out, first run, invitations, passwords, the start page, health."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from truing.collect import auth
from truing.collect import tables as t
from truing.collect.limits import TooMany
from truing.collect.store import Refused, note
from truing.collect.talk import progress
from truing.collect.web import (
    FORM_COOKIE,
    SESSION_COOKIE,
    SESSION_SECONDS,
    Anyone,
    FormChecked,
    Gone,
    Stranger,
    address_of,
    hashed,
    house_of,
    page,
    words_of,
)

router = APIRouter(include_in_schema=False)
Field = Annotated[str, Form(max_length=1000)]


# ---------------------------------------------------------------- health and the start page


@router.get("/health")
def health(request: Request) -> dict[str, str]:
    """Whether this process reaches its database (a proxy may ask)."""
    with house_of(request).store.read() as db:
        db.execute(sa.text("SELECT 1"))
    return {"status": "ok"}


@router.get("/")
def home(request: Request, person: Anyone) -> Response:
    """What this person may do, and how far they are."""
    with house_of(request).store.read() as db:
        far = progress(db, person)
    return page(request, "home.html", person, progress=far)


# ---------------------------------------------------------------- signing in and out


@router.get("/login")
def login_page(request: Request, _: Stranger) -> Response:
    """The form; before the first run is done, where to find the link."""
    return _login(request)


@router.post("/login")
def login(request: Request, _: FormChecked, name: Field = "", password: Field = "") -> Response:
    """Sign in: a session of its own, whatever the browser brought (no fixation)."""
    house, limits = house_of(request), house_of(request).limits
    address = address_of(request)
    buckets = [
        (limits.guess, f"{address} {hashed(name.casefold())}"),
        (limits.guess_address, address),
        (limits.guess_name, hashed(name.casefold())),
    ]
    taken: list[tuple[Any, str]] = []
    try:
        for bucket, key in buckets:
            bucket.take(key)
            taken.append((bucket, key))
    except TooMany:
        for bucket, key in taken:
            bucket.give(key)
        raise
    with house.store.read() as db:
        person = auth.person_named(db, name)
    if not auth.is_password(person.password_hash if person else None, password):
        with house.store.write() as db:
            note(db, None, "sign-in failed", person.id if person else "", address=address)
        return _login(request, words_of(request)["login.wrong"], name[:80], status=401)
    assert person is not None
    for bucket, key in buckets:
        bucket.give(key)
    with house.store.write() as db:
        note(db, person.id, "sign-in")
        return _enter(request, db, person.id)


@router.post("/logout")
def logout(request: Request, person: Anyone) -> Response:
    """End this session; the browser forgets what it kept for the pages."""
    with house_of(request).store.write() as db:
        auth.end_session(db, request.cookies.get(SESSION_COOKIE, ""))
        note(db, person.id, "sign-out")
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(SESSION_COOKIE, path="/")
    response.headers["Clear-Site-Data"] = '"storage"'
    return response


# ---------------------------------------------------------------- links


@router.get("/setup/{token}")
@router.get("/invite/{token}")
@router.get("/reset/{token}")
def link_page(request: Request, token: str, _: Stranger) -> Response:
    """The form behind a first-run link, an invitation or a link for a new password."""
    kind = _kind(request)
    with house_of(request).store.read() as db:
        row = auth.link(db, kind, token)
        name = _name(db, row.person_id) if row is not None and row.person_id else ""
    if row is None:
        raise Gone(words_of(request)["error.link"])
    return _join(request, kind, name)


@router.post("/setup/{token}")
@router.post("/invite/{token}")
@router.post("/reset/{token}")
def use_link(
    request: Request,
    token: str,
    _: FormChecked,
    name: Field = "",
    password: Field = "",
    again: Field = "",
) -> Response:
    """Come in by a link and be signed in."""
    said, kind = words_of(request), _kind(request)
    with house_of(request).store.read() as db:
        row = auth.link(db, kind, token)
        if row is not None and row.person_id:
            name = _name(db, row.person_id)
    if row is None:
        raise Gone(said["error.link"])
    try:
        name = auth.good_name(name) if kind != "reset" else name
        auth.good_password(password, name)
        if again != password:
            raise Refused(said["password.differ"])
        stored = auth.hash_password(password)
        with house_of(request).store.write() as db:
            person = auth.use_link(db, kind, token, name, stored)
            if person is None:
                raise Gone(said["error.link"])
            return _enter(request, db, person)
    except sa.exc.IntegrityError:
        return _join(request, kind, name, "That name is taken. Choose another one.")
    except Refused as problem:
        return _join(request, kind, name, str(problem))


# ---------------------------------------------------------------- one's own password


@router.get("/password")
def password_page(request: Request, person: Anyone) -> Response:
    """The form."""
    return page(request, "password.html", person, problem="", done="done" in request.query_params)


@router.post("/password")
def change_password(
    request: Request, person: Anyone, old: Field = "", password: Field = "", again: Field = ""
) -> Response:
    """Change it: the old one is asked for, and every other session ends."""
    said, house = words_of(request), house_of(request)
    house.limits.guess.take(f"password {person.id}")
    with house.store.read() as db:
        stored = db.execute(sa.select(t.person.c.password_hash).where(t.person.c.id == person.id)).scalar_one()
    try:
        if not auth.is_password(stored, old):
            raise Refused(said["password.wrong"])
        auth.good_password(password, person.name)
        if again != password:
            raise Refused(said["password.differ"])
    except Refused as problem:
        return page(request, "password.html", person, problem=str(problem), done=False, status=422)
    house.limits.guess.give(f"password {person.id}")
    stored = auth.hash_password(password)
    with house.store.write() as db:
        auth.set_password(db, person.id, stored, by=person.id)
        return _enter(request, db, person.id, "/password?done")


# ---------------------------------------------------------------- parts


def _enter(request: Request, db: Any, person: str, to: str = "/") -> Response:
    """A new session in place of whatever the browser brought, and the way in."""
    auth.end_session(db, request.cookies.get(SESSION_COOKIE, ""))
    token, _ = auth.start_session(db, person)
    response = RedirectResponse(to, status_code=303)
    secure = house_of(request).secure_cookies
    response.set_cookie(
        SESSION_COOKIE, token, max_age=SESSION_SECONDS, path="/", httponly=True, samesite="lax", secure=secure
    )
    response.delete_cookie(FORM_COOKIE, path="/")
    return response


def _login(request: Request, problem: str = "", name: str = "", status: int = 200) -> Response:
    with house_of(request).store.read() as db:
        first = not auth.has_admin(db)
    return _form(request, "login.html", status, problem=problem, name=name, first=first)


def _join(request: Request, kind: str, name: str, problem: str = "") -> Response:
    return _form(request, "join.html", 422 if problem else 200, kind=kind, name=name, problem=problem)


def _form(request: Request, template: str, status: int, /, **values: Any) -> Response:
    """A page with a form for people who are not signed in: the same token in the form and in a cookie."""
    token = request.cookies.get(FORM_COOKIE, "")
    if len(token) != 43:
        token = secrets.token_urlsafe(32)
    response = page(request, template, status=status, form=token, **values)
    secure = house_of(request).secure_cookies
    response.set_cookie(FORM_COOKIE, token, path="/", httponly=True, samesite="strict", secure=secure)
    return response


def _kind(request: Request) -> str:
    return request.url.path.split("/")[1]


def _name(db: Any, person: str) -> str:
    return str(db.execute(sa.select(t.person.c.name).where(t.person.c.id == person)).scalar_one())
