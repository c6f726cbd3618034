"""A whole app in memory for tests: a store, a desk with scripted arms, and people who click."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi.testclient import TestClient

from truing.collect import tables as t
from truing.collect.app import create_app
from truing.collect.arms import install, parse_arm
from truing.collect.auth import add_person, start_session
from truing.collect.consents import consent_text, give_consent
from truing.collect.desk import Desk
from truing.collect.migrate import upgrade
from truing.collect.store import Store, digest, new_id
from truing.collect.web import SESSION_COOKIE, House, Person

ROOMS = ("helpful", "rank", "redteam")
LINES = [{"reply": f"This is reply number {i}."} for i in range(400)]


def script(path: Path, rows: Sequence[Mapping[str, Any]] = LINES) -> str:
    """A scripted arm's model: the rows, in a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"script:{path}"


class Site:
    """An app with its desk. ``arms`` are as on the command line; a desk can be left standing (``work=False``)."""

    def __init__(self, db: str, arms: Sequence[str], *, seed: int | None = 7, work: bool = True, **desk: Any) -> None:
        self.store = Store(db)
        upgrade(self.store)
        install(self.store, [parse_arm(arm) for arm in arms])
        self.house = House(self.store)
        self.house.seed = seed
        self.desk = Desk(self.store, self.house.bell, **({"poll": 0.05, "first_hold": 0.0} | desk))
        if work:
            self.desk.start()
            self.house.desk = self.desk
        self.app = create_app(self.house)

    def visitor(self, name: str = "Ada", role: str = "worker", consents: Sequence[str] = ROOMS, **more: Any) -> Visitor:
        """A person who is signed in and has read the instructions."""
        modes = more.pop("modes", ("helpful", "rank", "redteam", "review"))
        with self.store.write() as db:
            person = add_person(db, name, role, modes=modes, **more)
            token, csrf = start_session(db, person)
            for room in consents:
                if (text := consent_text(db, room)) is not None:
                    give_consent(db, Person(person, name, role, modes, None, csrf), room, digest(text))
        return Visitor(self, person, token, csrf)

    def rows(self, query: Any) -> list[Any]:
        """What a query finds."""
        with self.store.read() as db:
            return list(db.execute(query).all())

    def count(self, table: sa.Table) -> int:
        """How many rows a table has."""
        return int(self.rows(sa.select(sa.func.count()).select_from(table))[0][0])

    def close(self) -> None:
        """Stop."""
        self.desk.stop()
        self.store.close()


class Visitor:
    """A browser of one person. ``begin`` a conversation, then ``say``, ``choose``, ``look``."""

    def __init__(self, site: Site, person: str, token: str, csrf: str) -> None:
        self.site, self.person, self.token, self.csrf = site, person, token, csrf
        self.client = TestClient(site.app, raise_server_exceptions=True)
        self.client.cookies.set(SESSION_COOKIE, token)
        self.id = ""

    def post(self, path: str, body: Mapping[str, Any], key: str = "", expect: int = 200) -> dict[str, Any]:
        """A write of the API."""
        headers = {"Idempotency-Key": key or new_id(), "X-CSRF-Token": self.csrf}
        answer = self.client.post(path, json=dict(body), headers=headers)
        assert answer.status_code == expect, (answer.status_code, answer.text[:300])
        return dict(answer.json())

    def begin(self, mode: str = "helpful") -> dict[str, Any]:
        """The open conversation, or a new one."""
        screen = self.post("/api/tasks", {"mode": mode})
        self.id = screen["id"]
        return screen

    def act(self, what: str, body: Mapping[str, Any], key: str = "", expect: int = 200) -> dict[str, Any]:
        """A write of the conversation."""
        return self.post(f"/api/conversations/{self.id}/{what}", body, key, expect)

    def look(self, after: int = -1, wait: float = 0.0) -> dict[str, Any]:
        """The screen."""
        answer = self.client.get(f"/api/conversations/{self.id}", params={"after": after, "wait": wait})
        assert answer.status_code == 200, answer.text[:300]
        return dict(answer.json())

    def until(self, *phases: str, seconds: float = 20.0) -> dict[str, Any]:
        """The screen in one of these phases."""
        end = time.monotonic() + seconds
        screen = self.look()
        while screen["phase"] not in phases:
            assert time.monotonic() < end, f"still {screen['phase']}"
            screen = self.look(screen["version"], wait=2.0)
        return screen

    def say(self, text: str, turn: int) -> dict[str, Any]:
        """A message; the screen with the replies."""
        self.act("turns", {"turn": turn, "text": text})
        return self.until("choose", "rank", "failed")

    def choose(self, turn: int, pick: str = "a", strength: int = 3, **more: Any) -> dict[str, Any]:
        """A click on one of the eight buttons."""
        return self.act("choices", {"turn": turn, "pick": pick, "strength": strength, **more})

    def talk(self, texts: Sequence[str], picks: str = "ab") -> list[dict[str, Any]]:
        """A dialogue; the screens with replies."""
        screens = []
        for turn, (text, pick) in enumerate(zip(texts, itertools.cycle(picks), strict=False), 1):
            screens.append(self.say(text, turn))
            self.choose(turn, pick)
        return screens


def candidates(site: Site) -> list[Any]:
    """All candidates with their messages, in the order of conversation, turn and side."""
    m, c = t.message.c, t.candidate.c
    query = sa.select(t.message, t.candidate).join(t.candidate).order_by(m.conversation_id, m.turn, c.side)
    return site.rows(query)
