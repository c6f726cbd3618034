"""People and their browsers, for tests: sessions as the app makes them, requests as its pages send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from truing.collect import auth
from truing.collect.store import new_id
from truing.collect.web import SESSION_COOKIE, House

ALL_MODES = ("helpful", "redteam", "rank", "review")


class Browser:
    """One browser. ``person`` is the id of who is signed in, ``csrf`` the token of their pages ("" for nobody)."""

    def __init__(self, app: FastAPI, person: str = "", token: str = "", csrf: str = "") -> None:
        self.client = TestClient(app, follow_redirects=False)
        self.person, self.csrf = person, csrf
        if token:
            self.session = token

    @property
    def session(self) -> str:
        """The cookie by which the app knows the person."""
        return str(self.client.cookies[SESSION_COOKIE])

    @session.setter
    def session(self, token: str) -> None:
        self.client.cookies.set(SESSION_COOKIE, token, domain="testserver.local", path="/")

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def post(self, path: str, body: Any = None, *, key: str | None = None, **options: Any) -> Any:
        """A write of the API, as static/http.js sends it."""
        headers = {"Idempotency-Key": key or new_id(), "X-CSRF-Token": self.csrf} | options.pop("headers", {})
        return self.client.post(path, json={} if body is None else body, headers=headers, **options)

    def form(self, path: str, **fields: str) -> Any:
        """A form of a page, with its token."""
        return self.client.post(path, data={"csrf": self.csrf} | fields)


class People:
    """Makes people."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.house: House = app.state.house
        self.browsers: list[Browser] = []

    def new(self, role: str = "worker", name: str = "", modes: Iterable[str] = ALL_MODES, **more: Any) -> Browser:
        """A new person who is signed in."""
        with self.house.store.write() as db:
            person = auth.add_person(db, name or f"{role} {new_id()[:6]}", role, modes=tuple(modes), **more)
            token, csrf = auth.start_session(db, person)
        self.browsers.append(Browser(self.app, person, token, csrf))
        return self.browsers[-1]

    def stranger(self) -> Browser:
        """Somebody who is not signed in."""
        self.browsers.append(Browser(self.app))
        return self.browsers[-1]

    def close(self) -> None:
        for browser in self.browsers:
            browser.client.close()
