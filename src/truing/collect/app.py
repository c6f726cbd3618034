"""The web app: routes of all rooms put together, headers of every answer, and errors as pages for people."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from truing.collect import auth
from truing.collect.store import Conflict, Refused
from truing.collect.web import STATIC, Forbidden, House, NotSignedIn, page

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


def create_app(house: House) -> FastAPI:
    """The app over a house. The store must be at the newest revision (`truing.collect.migrate.upgrade`)."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        house.store.close()

    app = FastAPI(title="truing", docs_url=None, redoc_url=None, lifespan=life)
    app.state.house = house
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for room in (auth,):
        app.include_router(room.router)
    app.middleware("http")(_headers)
    _errors(app)
    return app


async def _headers(request: Request, call_next) -> Response:  # type: ignore[no-untyped-def]
    response: Response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers[name] = value
    if not request.url.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-store"
    return response


def _errors(app: FastAPI) -> None:
    """Every error is a sentence: a page for people, ``{"error": …}`` for the API."""

    def answer(request: Request, status: int, text: str) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": text}, status_code=status)
        return page(request, "error.html", status=status, status_code=status, text=text)

    @app.exception_handler(NotSignedIn)
    def _(request: Request, problem: NotSignedIn) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": "Please sign in again."}, status_code=401)
        return RedirectResponse("/login", status_code=303)

    @app.exception_handler(Forbidden)
    def _(request: Request, problem: Forbidden) -> Response:
        return answer(request, 403, str(problem))

    @app.exception_handler(Conflict)
    def _(request: Request, problem: Conflict) -> Response:
        return answer(request, 409, str(problem))

    @app.exception_handler(Refused)
    def _(request: Request, problem: Refused) -> Response:
        return answer(request, 422, str(problem))

    @app.exception_handler(RequestValidationError)
    def _(request: Request, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        where = ".".join(str(x) for x in first["loc"] if x not in ("body", "query", "header", "path"))
        return answer(request, 422, f"{where or 'The request'}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    def _(request: Request, problem: HTTPException) -> Response:
        texts = {404: "There is no such page.", 405: "This page cannot be used like that."}
        return answer(request, problem.status_code, texts.get(problem.status_code, str(problem.detail)))

    @app.exception_handler(SQLAlchemyError)
    def _(request: Request, problem: SQLAlchemyError) -> Response:
        text = "The database could not be reached. Nothing that was confirmed is lost: please try again in a minute."
        return JSONResponse({"error": text}, status_code=503, headers={"Retry-After": "5"})
