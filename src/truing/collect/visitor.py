"""A browser without a screen: what the pages of the web app send, over HTTP, for people who are simulated.

It comes in by an invitation, keeps its cookies, carries the CSRF token of its pages, gives every write one key however
often it is sent, and tries again as ``static/http.js`` does: without a connection, and while the server is overloaded.
"""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import httpx

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Seconds before each further try, as in ``static/http.js``."""
AGAIN = frozenset((429, 502, 503, 504))
_ID = re.compile(r"[0-9a-f]{32}")
_SECRET = re.compile(r"(?<=/)[A-Za-z0-9_-]{43}")


class Problem(Exception):
    """What the server, or the lack of one, answered; ``status`` is 0 without a connection."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status or 'no connection'}: {text}")
        self.status, self.text = status, text


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that was answered, or not (``status`` 0, no ``answer``). ``at`` is `time.monotonic` at its end."""

    method: str
    path: str
    """The path with its ids and tokens taken out."""
    status: int
    at: float
    seconds: float
    answer: httpx.Response | None = None


class Visitor:
    """One browser at ``url``. ``heard`` is called with every request; ``pauses`` as `PAUSES`.

    Use as ``async with Visitor(url) as visitor``.
    """

    def __init__(
        self, url: str, *, heard: Callable[[Asked], None] | None = None, pauses: Sequence[float] = PAUSES
    ) -> None:
        place = urlsplit(url)
        self.url = f"{place.scheme}://{place.netloc}"
        self.heard, self.pauses = heard, tuple(pauses)
        self.csrf = ""
        own = place.hostname in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            verify=_tls(),
            timeout=httpx.Timeout(40.0, connect=10.0),  # a long poll takes up to 25 s
            trust_env=not own,  # a proxy for the world is none for this machine
        )

    async def __aenter__(self) -> Visitor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    # ------------------------------------------------------------ coming in

    async def join(self, link: str, name: str, password: str) -> None:
        """Use an invitation, with the name and the password to be had; sign in where the name is ours already.

        Raises Problem if the link does not work.
        """
        path = urlsplit(link).path
        for pause in (*self.pauses, None):
            try:
                await self._form(path, name=name, password=password, again=password)
                return
            except Problem as problem:
                if problem.status == 422:  # taken: by an earlier try of ours, whose answer was lost
                    await self.sign_in(name, password)
                    return
                if problem.status not in (0, *AGAIN) or pause is None:
                    raise
                await asyncio.sleep(pause)

    async def sign_in(self, name: str, password: str) -> None:
        """Sign in. Raises Problem for a wrong password."""
        await self._form("/login", name=name, password=password)

    async def consent(self, room: str) -> None:
        """Accept the instructions of a room as they stand."""
        found = read_page((await self._send("GET", f"/consent/{room}")).text)
        if "version" in found:  # else they are accepted
            data = {"csrf": found["csrf"], "version": found["version"]}
            await self._send("POST", f"/consent/{room}", data=data)

    async def page(self, path: str) -> str:
        """A page, and what it names: its scripts and styles, as a browser without a cache fetches them."""
        text = (await self._send("GET", path)).text
        for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            await self._send("GET", name)
        return text

    async def _form(self, path: str, **fields: str) -> None:
        """Send a form of somebody who is not signed in; then the start page, whose token every write carries."""
        found = read_page((await self._send("GET", path)).text)
        await self._send("POST", path, data={"form": found.get("form", "")} | fields)
        self.csrf = read_page((await self._send("GET", "/")).text).get("csrf", "")
        if not self.csrf:
            raise Problem(401, "The app did not sign us in.")

    # ------------------------------------------------------------ the API

    async def post(self, path: str, body: Mapping[str, Any], key: str = "") -> dict[str, Any]:
        """A write, done once by the server. Raises Problem."""
        headers = {"Idempotency-Key": key or secrets.token_hex(16), "X-CSRF-Token": self.csrf}
        return dict((await self._send("POST", path, json=dict(body), headers=headers)).json())

    async def get(self, path: str) -> dict[str, Any]:
        """A read. Raises Problem."""
        return dict((await self._send("GET", path, headers={"Accept": "application/json"})).json())

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for pause in (*self.pauses, None):
            try:
                return await self._once(method, path, **options)
            except Problem as problem:
                # A form is not sent again by itself: it has no key.
                if problem.status not in (0, *AGAIN) or pause is None or "data" in options:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        began = time.monotonic()
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as problem:
            self._hear(method, path, 0, began)
            raise Problem(0, type(problem).__name__) from None
        self._hear(method, path, answer.status_code, began, answer)
        if answer.status_code >= 400:
            raise Problem(answer.status_code, _error(answer))
        return answer

    def _hear(self, method: str, path: str, status: int, began: float, answer: httpx.Response | None = None) -> None:
        if self.heard:
            at = time.monotonic()
            self.heard(Asked(method, pattern(path), status, at, at - began, answer))


def pattern(path: str) -> str:
    """A path without query, ids and tokens.

    >>> pattern("/api/conversations/0123456789abcdef0123456789abcdef/turns?after=3")
    '/api/conversations/ID/turns'
    """
    return _SECRET.sub("TOKEN", _ID.sub("ID", path.partition("?")[0]))


def read_page(text: str) -> dict[str, str]:
    """What a page's forms and ``meta`` tags hold: name → value (hidden fields) or content.

    >>> read_page('<meta name="csrf" content="x"><input type="hidden" name="form" value="y">')
    {'csrf': 'x', 'form': 'y'}
    """
    found: dict[str, str] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag in ("meta", "input") and given.get("name"):
                found.setdefault(str(given["name"]), given.get("content" if tag == "meta" else "value") or "")

    Reader().feed(text)
    return found


def _error(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all: making it takes longer than everything else about a visitor."""
    return ssl.create_default_context()
