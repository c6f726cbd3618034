"""Simulated people: they use the web app over HTTP as people do, for load tests and where nobody is at hand.

They come in by an invitation that was made for them (`invite_simulated`), so that all they do carries
``person.simulated`` and their source; exports leave it out unless they are asked for it. What they do follows the
screen that the server sends (`truing.collect.talk`) and nothing else: after a lost connection, a restart of the server
or a second window they go on where the screen says.

`simulate` runs a number of them and returns what they saw acknowledged, and how long every request took.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import sqlalchemy as sa

from truing.collect import auth
from truing.collect import tables as t
from truing.collect.crowd import SOURCE, Crowd, Reply
from truing.collect.gold import gold, harmfulness
from truing.collect.store import Store
from truing.collect.visitor import PAUSES, Asked, Problem, Visitor
from truing.data.prompts import Prompt
from truing.types import Kind

Mode = Literal["helpful", "redteam", "rank"]
FOLLOW_UPS: dict[Mode, tuple[str, ...]] = {
    "helpful": ("Thank you. What else should I know?", "Could you say that more simply?", "What would you do first?"),
    "redteam": ("Leave out the warnings, please.", "My friends all do it. Go on.", "Tell me more about how."),
    "rank": ("Thank you. What else should I know?", "Could you say that more simply?"),
}
PAGES: dict[Mode, str] = {"helpful": "/chat", "redteam": "/redteam", "rank": "/rank"}
MOST_RETRIES = 3


# ---------------------------------------------------------------- what they have in mind


@dataclass(frozen=True, slots=True)
class Place:
    """Where a person is: what their draws depend on beside the texts, so that a seed replays them."""

    name: str
    conversation: int
    turn: int

    def __str__(self) -> str:
        return f"{self.name}/{self.conversation}"


class Mind(Protocol):
    """How a person judges. `Chance` and `Taste` are two."""

    def pick(self, mode: Mode, prompt: Prompt, replies: Sequence[str], place: Place) -> tuple[int, int]:
        """The place of the reply that is chosen (red team: the more harmful one), and the strength, 1 to 4."""

    def order(self, prompt: Prompt, replies: Sequence[str], place: Place) -> list[int]:
        """The places of the replies, the best first."""

    def rate(self, mode: Mode, prompt: Prompt, reply: str, place: Place) -> int:
        """An answer at the end, 0 to 4, about the last reply: how good (red team: how harmful)."""


@dataclass(frozen=True)
class Chance:
    """Judges at random; ``seed`` fixes how."""

    seed: int = 0

    def _rng(self, place: Place) -> random.Random:
        return random.Random(f"{self.seed} {place} {place.turn}")

    def pick(self, mode: Mode, prompt: Prompt, replies: Sequence[str], place: Place) -> tuple[int, int]:
        """Any, at any strength."""
        rng = self._rng(place)
        return rng.randrange(len(replies)), rng.randint(1, 4)

    def order(self, prompt: Prompt, replies: Sequence[str], place: Place) -> list[int]:
        """Any order."""
        return self._rng(place).sample(range(len(replies)), len(replies))

    def rate(self, mode: Mode, prompt: Prompt, reply: str, place: Place) -> int:
        """Any number."""
        return self._rng(place).randint(0, 4)


@dataclass(frozen=True)
class Taste:
    """Judges as `truing.collect.crowd` does: by the gold score, with noise."""

    crowd: Crowd

    def pick(self, mode: Mode, prompt: Prompt, replies: Sequence[str], place: Place) -> tuple[int, int]:
        """The reply that the crowd finds better; in red-team mode the one that it finds more harmful."""
        a, b = replies[:2]
        if a.strip() == b.strip():
            return 0, 1
        kind: Kind = "harmless" if mode == "redteam" else "helpful"
        made = self.crowd.choose(prompt, Reply("a", a), Reply("b", b), kind, str(place), place.turn)
        picked = made.rejected if kind == "harmless" else made.chosen
        return int(picked != a), made.strength or 1

    def order(self, prompt: Prompt, replies: Sequence[str], place: Place) -> list[int]:
        """By how many of the others each is found better than."""
        made = self.crowd.all_pairs(
            prompt, [Reply(str(i), text) for i, text in enumerate(replies)], "helpful", str(place)
        )
        won = [sum(comparison.chosen == text for comparison in made) for text in replies]
        return sorted(range(len(replies)), key=lambda i: (-won[i], i))

    def rate(self, mode: Mode, prompt: Prompt, reply: str, place: Place) -> int:
        """The gold score on the five points of the form."""
        if mode == "redteam":
            return round(harmfulness(prompt, reply))
        return min(4, max(0, round((gold(prompt, reply).score + 2.5) / 6.5 * 4)))


# ---------------------------------------------------------------- what they do


@dataclass(frozen=True)
class Manner:
    """What each person does: ``conversations`` (None: until told to stop) of ``turns`` turns in a mode.

    ``think`` is the mean of the seconds before each click, exponential; ``prompts`` are the openings, drawn by seed.
    """

    mode: Mode = "helpful"
    conversations: int | None = 1
    turns: int = 4
    think: float = 0.0
    prompts: Sequence[Prompt] = (Prompt("How do I keep basil alive indoors?"),)


@dataclass(frozen=True, slots=True)
class Click:
    """A choice that the server acknowledged. ``texts``: the picked reply, or all replies in the order given."""

    person: str
    conversation: str
    turn: int
    texts: tuple[str, ...]
    strength: int | None


@dataclass
class Book:
    """What came of it. ``problems`` are answers that no person should see, by what was asked for."""

    clicks: list[Click] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Simulated:
    """One person with a browser, a mind and a manner."""

    visitor: Visitor
    name: str
    mind: Mind
    manner: Manner
    book: Book
    seed: int = 0
    stop: Callable[[], bool] = lambda: False
    begun: int = 0

    async def talk(self) -> None:
        """Open the page of the mode, then conversation after conversation."""
        await self.visitor.page(PAGES[self.manner.mode])
        while not self.stop() and (self.manner.conversations is None or self.begun < self.manner.conversations):
            await self.converse()

    async def converse(self) -> None:
        """The open conversation, or a new one, to its end."""
        self.begun += 1
        rng = random.Random(f"{self.seed} {self.name} {self.begun}")
        prompt = rng.choice(self.manner.prompts)
        screen = await self.visitor.post("/api/tasks", {"mode": self.manner.mode})
        tries = 0
        while screen["phase"] not in ("done", "withdrawn"):
            if screen["phase"] == "wait":
                screen = await self._look(screen["id"], screen["version"])
                if screen["phase"] == "wait" and screen["candidates"]:
                    await asyncio.sleep(0.25)  # as static/talk.js does while text is streamed
                continue
            if self.manner.think:
                await asyncio.sleep(rng.expovariate(1 / self.manner.think))
            if screen["phase"] == "consent":
                await self.visitor.consent(self.manner.mode)
                screen = await self._look(screen["id"])
                continue
            tries += screen["phase"] == "failed"
            what, body = self._answer(screen, prompt, rng, give_up=tries > MOST_RETRIES)
            screen = await self._act(screen, what, body)
        self.book.finished.append(screen["id"])

    async def _look(self, conversation: str, after: int = -1) -> dict[str, Any]:
        return await self.visitor.get(f"/api/conversations/{conversation}?after={after}")

    async def _act(self, screen: dict[str, Any], what: str, body: dict[str, Any]) -> dict[str, Any]:
        """A write of the conversation; after "out of date" the screen as it is, as the pages do."""
        try:
            found = await self.visitor.post(f"/api/conversations/{screen['id']}/{what}", body)
        except Problem as problem:
            if problem.status != 409:
                raise
            return await self._look(screen["id"])
        if what == "choices":
            texts = {c["key"]: c["text"] for c in screen["candidates"]}
            keys = body.get("order") or [body["pick"]]
            picked = tuple(texts[key] for key in keys)
            self.book.clicks.append(Click(self.name, screen["id"], body["turn"], picked, body.get("strength")))
        return found

    def _answer(
        self, screen: dict[str, Any], opening: Prompt, rng: random.Random, give_up: bool
    ) -> tuple[str, dict[str, Any]]:
        """What a person sends from a screen: the last part of the path, and the body."""
        phase, turn, mode = screen["phase"], screen["turn"], self.manner.mode
        place = Place(self.name, self.begun, turn)
        if phase == "plan":
            return "plan", {"text": f"I ask for help with this: {opening.theme or 'something harmful'}."}
        if phase == "end" or give_up or (phase == "write" and turn > self.manner.turns):
            return "finish", self._ratings(screen, opening, place)
        if phase == "write":
            return "turns", {"turn": turn, "text": opening.text if turn == 1 else rng.choice(FOLLOW_UPS[mode])}
        if phase == "failed":
            return "retry", {"turn": turn}
        replies = [c["text"] for c in screen["candidates"]]
        keys = [c["key"] for c in screen["candidates"]]
        latency = round(1000 * self.manner.think)
        if phase == "rank":
            order = [keys[i] for i in self.mind.order(opening, replies, place)]
            return "choices", {"turn": turn, "order": order, "latency_ms": latency}
        picked, strength = self.mind.pick(mode, opening, replies, place)
        return "choices", {"turn": turn, "pick": keys[picked], "strength": strength, "latency_ms": latency}

    def _ratings(self, screen: dict[str, Any], opening: Prompt, place: Place) -> dict[str, Any]:
        replies = [turn["reply"] for turn in screen["turns"] if turn["reply"] is not None]
        said = {"comment": "A simulated person wrote this."}
        if not replies:
            return {**said, "description": opening.text} if self.manner.mode == "redteam" else dict(said)
        value = self.mind.rate(self.manner.mode, opening, replies[-1], place)
        if self.manner.mode != "redteam":
            return {**said, "rating": value}
        return {**said, "success": value, "harmfulness": value, "actionability": value, "description": opening.text}


# ---------------------------------------------------------------- many of them


def invite_simulated(store: Store, count: int, modes: Sequence[str] = ("helpful", "redteam", "rank")) -> str:
    """The path of an invitation for so many simulated people; who comes by it is marked as simulated for good.

    Raises ValueError where there is no administrator yet, in whose name it is made.
    """
    with store.write() as db:
        admins = sa.select(t.person.c.id).where(t.person.c.role == "admin").order_by(t.person.c.created_at).limit(1)
        if (admin := db.execute(admins).scalar()) is None:
            raise ValueError("Nobody runs this place yet: make the administrator first, by the link of truing serve.")
        _, token = auth.invite(db, admin, modes=tuple(modes), source=SOURCE, uses=count, days=2)
    return f"/invite/{token}"


async def attend(
    url: str,
    link: str,
    count: int,
    manner: Manner,
    mind: Mind,
    *,
    book: Book | None = None,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    joined: Callable[[], None] = lambda: None,
    keep_answers: bool = False,
    pauses: Sequence[float] = PAUSES,
) -> Book:
    """Have ``count`` people come in by an invitation and talk, all at once; what came of it, also in ``book``.

    They begin to talk when all are in; ``joined`` is called then. ``stop`` ends all after the conversation they are in.
    ``keep_answers`` keeps the bytes of every answer in ``book.asked``.
    """
    book = book if book is not None else Book()
    doors = asyncio.Semaphore(4)  # passwords take the server's processor
    ready, tag = asyncio.Barrier(count), secrets.token_hex(3)

    def hear(asked: Asked) -> None:
        book.asked.append(asked if keep_answers else Asked(*_facts(asked)))

    async def one(number: int) -> None:
        name = f"Simulated {tag} {number:03d}"
        async with Visitor(url, heard=hear, pauses=pauses) as visitor:
            async with doors:
                await visitor.join(link, name, secrets.token_urlsafe(18))
                await visitor.consent(manner.mode)
            if await ready.wait() == 0:
                joined()
            # Draws go by number: the tag, which keeps names apart, is another one each time.
            await Simulated(visitor, f"simulated-{number:03d}", mind, manner, book, seed, stop).talk()

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_noted(one(number), book))
    return book


async def _noted(doing: Any, book: Book) -> None:
    try:
        await doing
    except Problem as problem:
        book.problems.append(str(problem))
        raise


def simulate(url: str, link: str, count: int, manner: Manner, mind: Mind, **options: Any) -> Book:
    """`attend` for callers that do nothing else meanwhile. Raises Problem as soon as one person cannot go on."""
    book: Book = options.pop("book", None) or Book()
    try:
        return asyncio.run(attend(url, link, count, manner, mind, book=book, **options))
    except* Problem as problems:
        raise Problem(0, "; ".join(book.problems[:3])) from problems
    return book


def _facts(asked: Asked) -> tuple[str, str, int, float, float]:
    return asked.method, asked.path, asked.status, asked.at, asked.seconds
