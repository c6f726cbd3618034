"""Around the whole app: headers of every answer, one line a request in the log, and no error that tells too much.

What people and models say never reaches a log: paths are logged as their pattern (so that no token and no id is
either), and of an unexpected error its kind and its places in the code, without its text, which may quote a row.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from truing.collect.problems import answer
from truing.collect.store import new_id
from truing.collect.words import SHIPPED

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
LONGEST_BODY = 1 << 20
"""Bytes that a request may have: people send words, never files."""
TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
access = logging.getLogger("truing.access")
errors = logging.getLogger("truing.errors")


class Guard:
    """Middleware; ``tls``: people reach the app by https only."""

    def __init__(self, app: ASGIApp, tls: bool = False) -> None:
        self.app = app
        self.headers = HEADERS | (TLS_HEADERS if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, length = time.perf_counter(), 0, 0
        declared = Headers(scope=scope).get("content-length", "0")

        async def receive_some() -> Message:
            nonlocal length
            if declared.isdigit() and int(declared) > LONGEST_BODY:
                raise HTTPException(413)
            message = await receive()
            length += len(message.get("body", b""))
            if length > LONGEST_BODY:
                raise HTTPException(413)
            return message

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers.update(self.headers)
                headers["Cache-Control"] = caching(scope, status)
                message["headers"] = headers.raw
            await send(message)

        try:
            await self.app(scope, receive_some, send_on)
        except Exception as problem:
            number = new_id()[:8]
            errors.error("%s %s\n%s", number, pattern(scope), without_texts(problem))
            if status:
                raise RuntimeError(f"an answer was broken off: see {number} above") from None
            text = SHIPPED["error.500"].replace("{number}", number)
            await answer(Request(scope, receive), 500, text)(scope, receive, send_on)
        finally:
            milliseconds = (time.perf_counter() - began) * 1000
            access.info("%s %s %d %.0f ms", scope["method"], pattern(scope), status, milliseconds)


def caching(scope: Scope, status: int) -> str:
    """Nothing is kept but files of ``static``, and those with their hash in the address for good."""
    if not scope["path"].startswith("/static/") or status >= 400:
        return "no-store"
    return "public, max-age=31536000, immutable" if scope["query_string"] else "no-cache"


def pattern(scope: Scope) -> str:
    """The route of a request as it stands in the code; nothing that was typed."""
    route = scope.get("route")
    return str(getattr(route, "path", None) or ("/static" if scope["path"].startswith("/static/") else "(no page)"))


def without_texts(problem: BaseException) -> str:
    """An error, and what it came from: kinds and places, no messages."""
    lines: list[str] = []
    seen: list[Any] = []
    at: BaseException | None = problem
    while at is not None and at not in seen:
        seen.append(at)
        lines.append(type(at).__qualname__)
        lines += [f"  {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(at.__traceback__)]
        at = at.__cause__ or at.__context__
    return "\n".join(lines)
