"""A feedback store on SQLite and on a real PostgreSQL, and people with browsers who use the app over it."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, People
from fastapi import FastAPI
from postgres_server import Postgres
from talking import Site, script

from truing.collect import migrate
from truing.collect.app import create_app
from truing.collect.store import Store, new_id
from truing.collect.web import House

HOW_TO = "PostgreSQL is not installed: apt-get install --no-install-recommends postgresql"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for this session; skips, saying what to install, where there is none."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[-2]))
    path = shutil.which("initdb")
    if not found and not path:
        pytest.skip(HOW_TO)
    with tempfile.TemporaryDirectory(prefix="truing-pg-") as folder:
        server = Postgres(found[-1] if found else str(Path(str(path)).parent), Path(folder))
        yield server
        server.stop("fast")


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store at the newest revision with nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    store = Store(str(path))
    migrate.upgrade(store)
    store.close()
    return path


@pytest.fixture(scope="session")
def empty_database(postgres: Postgres) -> str:
    """The same on PostgreSQL: the name of a database that others are made after."""
    postgres.do("CREATE DATABASE truing_empty")
    store = Store(postgres.url("truing_empty"))
    migrate.upgrade(store)
    store.close()
    return "truing_empty"


@pytest.fixture(params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What ``--db`` is given: an empty store at the newest revision. Each test that takes it runs on both databases."""
    if request.param == "sqlite":
        return str(shutil.copy(request.getfixturevalue("empty_file"), tmp_path / "truing.db"))
    template, server, name = request.getfixturevalue("empty_database"), request.getfixturevalue("postgres"), new_id()
    server.do(f'CREATE DATABASE "{name}" TEMPLATE {template}')
    return str(server.url(name))


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    store = Store(db)
    yield store
    store.close()


@pytest.fixture
def sqlite_store(tmp_path: Path, empty_file: Path) -> Iterator[Store]:
    """For what does not depend on the database."""
    store = Store(str(shutil.copy(empty_file, tmp_path / "truing.db")))
    yield store
    store.close()


@pytest.fixture
def house(store: Store) -> House:
    return House(store)


@pytest.fixture
def app(house: House) -> FastAPI:
    return create_app(house)


@pytest.fixture
def people(app: FastAPI) -> Iterator[People]:
    """``people.new("worker", modes=("redteam",))`` is a browser of a new person who is signed in."""
    found = People(app)
    yield found
    found.close()


@pytest.fixture
def stranger(people: People) -> Browser:
    """A browser of nobody who is known."""
    return people.stranger()


@pytest.fixture
def site(db: str, tmp_path: Path) -> Iterator[Site]:
    """The app with two scripted arms, on both databases."""
    made = Site(db, [f"one={script(tmp_path / 'one.jsonl')}", f"two={script(tmp_path / 'two.jsonl')}"])
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path: Path, empty_file: Path) -> Iterator[Site]:
    """With one arm, on SQLite, for what does not depend on the database."""
    made = Site(str(shutil.copy(empty_file, tmp_path / "truing.db")), [f"one={script(tmp_path / 'one.jsonl')}"])
    yield made
    made.close()
