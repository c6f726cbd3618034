"""Every error as a sentence: a page for people, ``{"error": …}`` for the API. None quotes what anybody said."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from truing.collect.limits import TooMany
from truing.collect.store import Conflict, Refused
from truing.collect.web import Forbidden, Gone, NotSignedIn, error_words, page

errors = logging.getLogger("truing.errors")


def answer(request: Request, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error for whoever asked."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": text}, status_code=status, headers=headers)
    response = page(request, "error.html", status=status, text=text)
    response.headers.update(headers or {})
    return response


def add_problems(app: FastAPI) -> None:
    """Teach the app what to answer to which exception."""
    for kind, status in ((Forbidden, 403), (Gone, 404), (Conflict, 409), (Refused, 422)):
        app.exception_handler(kind)(_said(status))
    app.exception_handler(NotSignedIn)(_not_signed_in)
    app.exception_handler(TooMany)(_too_many)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    for down in (OperationalError, InterfaceError, PoolTimeout):
        app.exception_handler(down)(_database)
    for unstorable in (DataError, UnicodeEncodeError):
        app.exception_handler(unstorable)(_unstorable)
    app.exception_handler(OverflowError)(_out_of_range)


def _said(status: int):  # type: ignore[no-untyped-def]
    def handler(request: Request, problem: Exception) -> Response:
        return answer(request, status, str(problem))

    return handler


def _not_signed_in(request: Request, problem: NotSignedIn) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "Please sign in again."}, status_code=401)
    return RedirectResponse("/login", status_code=303)


def _too_many(request: Request, problem: TooMany) -> Response:
    text = error_words(request)["error.429"].replace("{seconds}", str(problem.seconds))
    return answer(request, 429, text, {"Retry-After": str(problem.seconds)})


def _invalid(request: Request, problem: RequestValidationError) -> Response:
    first = problem.errors()[0]
    where = ".".join(str(x) for x in first["loc"] if x not in ("body", "query", "header", "path"))
    return answer(request, 422, f"{where[:80] or 'The request'}: {first['msg']}.")


def _http(request: Request, problem: HTTPException) -> Response:
    text = error_words(request).get(f"error.{problem.status_code}", str(problem.detail))
    return answer(request, problem.status_code, text, dict(problem.headers or {}))


def _database(request: Request, problem: Exception) -> Response:
    """The database is full, busy or gone. The log gets the kind of error, not the statement."""
    origin = problem.orig if isinstance(problem, DBAPIError) else problem
    state = getattr(origin, "sqlite_errorname", None) or getattr(origin, "sqlstate", None) or ""
    kind = (
        "full" if is_full(problem) else "busy" if "BUSY" in str(state) or isinstance(problem, PoolTimeout) else "gone"
    )
    errors.error("database %s: %s %s", kind, type(origin).__qualname__, state)
    return answer(request, 503, error_words(request)[f"error.{kind}"], {"Retry-After": "5"})


def is_full(problem: Exception) -> bool:
    """Whether an error of the database says that there is no room to write."""
    origin = problem.orig if isinstance(problem, DBAPIError) else problem
    return getattr(origin, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(origin, "sqlstate", "") == "53100"


def _unstorable(request: Request, problem: Exception) -> Response:
    return answer(request, 422, error_words(request)["error.text"])


def _out_of_range(request: Request, problem: Exception) -> Response:
    return answer(request, 422, error_words(request)["error.number"])
