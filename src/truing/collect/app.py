"""The web app: the routes of all rooms put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import anyio.to_thread
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute

from truing.collect import admin_care, admin_pages, admin_work, auth_pages, chat, redteam, review, surveys
from truing.collect.guard import Guard
from truing.collect.problems import add_problems
from truing.collect.web import STATIC, House

ROUTERS = (
    auth_pages.router,
    chat.router,
    redteam.router,
    review.router,
    surveys.router,
    admin_pages.router,
    admin_work.router,
    admin_care.router,
)

THREADS = 4
"""Requests that are worked on at the same moment: more threads only take the interpreter from one another, and none
waits for a database connection (`truing.collect.store` has more of them)."""


def create_app(house: House) -> FastAPI:
    """The app over a house. The store must be at the newest revision (`truing.collect.migrate.upgrade`)."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        if house.desk:
            house.desk.stop()
        house.bell.close()
        house.store.close()

    app = FastAPI(title="truing", docs_url=None, redoc_url=None, lifespan=life)
    app.state.house = house
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for router in ROUTERS:
        app.include_router(router)
    app.state.paths = {path for _, path in routes(app.routes)}
    app.add_middleware(Guard, tls=house.secure_cookies)
    add_problems(app)
    return app


def routes(found: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, also of included routers; HEAD goes with GET."""
    for route in found:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner.routes)
        elif getattr(route, "methods", None):
            yield from ((m, str(getattr(route, "path", ""))) for m in sorted(route.methods - {"HEAD"}))  # type: ignore[attr-defined]
