"""The desk: takes jobs (replies to be drawn) from the database, has models answer them, and writes what they said.

Every process of the app has one. A job is claimed with a lease that is renewed while its process lives; when that
dies, another desk (or the same after a restart) claims the job again and, because seeds belong to the conversation,
draws the same replies. All jobs that wait for one model are drawn in one call.

Use: ``desk = Desk(store, bell)``, ``desk.start()`` (loads the arms that have a weight; a missing one is an error
here, not in a chat), ``desk.wake()`` after a job was added, ``desk.stop()``. ``desk.partials(conversation, turn)`` are
replies in the making, ``desk.problems`` what could not be loaded (by arm id, for the administrator).
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from truing.collect import tables as t
from truing.collect import turns
from truing.collect.arms import MODES, ArmSpec, draw_sides, reply_seed, spec_of, weights
from truing.collect.bell import Bell
from truing.collect.lanes import Lane
from truing.collect.replies import Ask, CannotLoad, Models
from truing.collect.store import Store, now
from truing.collect.work import Work, kept, of_no_use, own_replies, reason, slowest, write_replies

MOST_DEATHS = 3
"""How many processes may die over one job before it is given up: it may be what kills them."""

_J = t.job.c
_OPEN = sa.or_(_J.state == "waiting", sa.and_(_J.state == "running", _J.lease_until < sa.bindparam("at")))
_ANY = sa.select(_J.id).where(_OPEN).limit(1)
_FREE = sa.select(t.job).where(_OPEN).order_by(_J.created_at, _J.id).limit(sa.bindparam("most"))
_FREE = _FREE.with_for_update(skip_locked=True)
_TAKE = t.job.update().where(_J.id == sa.bindparam("job"))
_TAKE = _TAKE.values({name: sa.bindparam(name) for name in ("state", "owner", "lease_until", "tries")})
_ANSWERED = t.job.update().where(
    _J.id == sa.bindparam("job"),
    _J.owner == sa.bindparam("mine"),
    _J.tries == sa.bindparam("try"),
    _J.state == "running",
)
_ANSWERED = _ANSWERED.values({name: sa.bindparam(name) for name in ("state", "error", "done_at", "show_at")})
_TALK = sa.select(t.conversation).where(t.conversation.c.id == sa.bindparam("conversation"))
_LOCK = sa.select(t.conversation.c.id).where(t.conversation.c.id == sa.bindparam("conversation")).with_for_update()


@dataclass
class Partial:
    """Replies in the making, by side; ``version`` grows with every piece."""

    turn: int
    texts: list[str]
    version: int = 0


class Desk:
    """See the module. ``lease``, ``poll``, ``longest`` (a job's most) and ``first_hold`` are in seconds.

    ``first_hold`` is the delay of red-team replies until an arm's own times are known; ``most`` jobs are in hand.
    """

    def __init__(
        self,
        store: Store,
        bell: Bell | None = None,
        models: Models | None = None,
        *,
        lease: float = 30.0,
        poll: float = 0.5,
        longest: float = 900.0,
        first_hold: float = 8.0,
        most: int = 128,
    ) -> None:
        self.store, self.bell, self.models = store, bell or Bell(), models or Models()
        self.lease, self.poll, self.longest, self.first_hold, self.most = lease, poll, longest, first_hold, most
        self.owner = f"{socket.gethostname()[:40]}-{secrets.token_hex(6)}"
        self.problems: dict[str, str] = {}
        self._specs: dict[str, ArmSpec] = {}
        self._lanes: dict[str, Lane] = {}
        self._works: dict[str, Work] = {}
        self._of: dict[Ask, Work] = {}
        self._answered: list[Ask] = []
        self._partials: dict[str, Partial] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stopping = False
        self._renewed = self._peeked = 0.0
        self._hold: tuple[float, float] = (-1e9, first_hold)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the models of all arms that are offered, then begin. Raises ValueError for one that cannot be had."""
        with self.store.read() as db:
            offered = sorted({arm for mode in MODES for arm in weights(db, mode)})
            rows = db.execute(sa.select(t.arm.c.id, t.arm.c.name).where(t.arm.c.id.in_(offered))).all()
            specs = [(row.name, spec_of(db, row.id)) for row in rows]
        for name, spec in specs:
            try:
                self._lane(spec).open(spec).result()
            except (ValueError, OSError) as error:
                self.stop()
                raise ValueError(f"The arm {name!r} cannot be loaded: {error}") from error
        self._thread = threading.Thread(target=self._run, name="truing desk", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Begin nothing more; jobs in hand are left to whoever comes next, at once."""
        self._stopping = True
        self.wake()
        if self._thread:
            self._thread.join(seconds)
        for lane in list(self._lanes.values()):
            lane.close(seconds)
        self.bell.close()

    def wake(self) -> None:
        """Look for jobs now."""
        self._news.set()

    def partials(self, conversation: str, turn: int) -> Partial | None:
        """Replies in the making of a turn, if they are shown while they are made and this process makes them."""
        with self._lock:
            found = self._partials.get(conversation)
            return Partial(found.turn, list(found.texts), found.version) if found and found.turn == turn else None

    def hold(self, db: Connection) -> float:
        """Seconds that every red-team reply takes: the 95th percentile of the slowest offered arm, of its last jobs."""
        if time.monotonic() - self._hold[0] > 5.0:
            self._hold = (time.monotonic(), slowest(db, self.first_hold))
        return self._hold[1]

    # ------------------------------------------------------------ the desk's own thread: all of the database

    def _run(self) -> None:
        while not self._stopping:
            self._news.wait(self._pause())
            self._news.clear()
            try:
                self.step()
            except SQLAlchemyError as error:  # the database is gone: what is in hand is kept until it is back
                print(f"The database could not be reached ({type(error).__name__}); trying again.", file=sys.stderr)
                time.sleep(1.0)
        self._give_back()

    def _pause(self) -> float:
        return min(self.poll, max(0.05, self.lease / 3 - (time.monotonic() - self._renewed)))

    def step(self) -> None:
        """One round: write what was answered, renew the leases, claim what waits."""
        self._collect()
        if time.monotonic() - self._renewed > self.lease / 3:
            self._renew()
        self._claim()

    def _claim(self) -> None:
        if len(self._works) >= self.most or self._stopping:
            return
        at = now()
        with self.store.read() as db:
            if db.execute(_ANY, {"at": at}).first() is None:
                return
        taken: list[Row[Any]] = []
        over: list[str] = []
        with self.store.write() as db:
            for row in db.execute(_FREE, {"at": at, "most": self.most - len(self._works)}).all():
                if why := of_no_use(db, row.conversation_id):
                    _fail(db, row.id, why)
                elif row.state == "running" and row.tries >= MOST_DEATHS:
                    _fail(db, row.id, f"{row.tries} processes died over it")
                    over.append(row.conversation_id)
                else:
                    mine = {"state": "running", "owner": self.owner, "lease_until": at + self._lease_us}
                    db.execute(_TAKE, {"job": row.id, "tries": row.tries + 1, **mine})
                    taken.append(row)
        for conversation in over:
            self.bell.ring(conversation)
        begun: list[Work] = []
        broken: list[tuple[Row[Any], str]] = []
        with self.store.read() as db:  # after the write, which keeps all others from writing
            for row in taken:
                try:
                    begun.append(self._begin(db, row))
                except (KeyError, TypeError, ValueError) as error:  # it must not stand in the way of all others
                    broken.append((row, reason(error)))
        self._give_up(broken)
        for work in begun:
            self._works[work.id] = work
            if work.streams:
                with self._lock:
                    self._partials[work.conversation] = Partial(work.turn, [""] * len(work.sides))
            self._put(work, work.asks)

    def _give_up(self, jobs: Sequence[tuple[Row[Any], str]]) -> None:
        """Fail jobs that cannot be begun, as those of an arm of a newer truing."""
        if not jobs:
            return
        with self.store.write() as db:
            for row, why in jobs:
                _fail(db, row.id, why)
        for row, _ in jobs:
            self.bell.ring(row.conversation_id)

    @property
    def _lease_us(self) -> int:
        return int(self.lease * 1e6)

    def _begin(self, db: Connection, job: Row[Any]) -> Work:
        talk = db.execute(_TALK, {"conversation": job.conversation_id}).one()
        specs = {arm: self._spec(db, arm) for arm in {*job.arms, *job.weights}}
        words = (job.turn, job.round)
        work = Work(
            job.id, talk.id, job.turn, job.round, job.tries + 1, talk.mode, talk.seed, job.arms, job.weights,
            job.created_at, draw_sides(len(job.arms) + own_replies(db, talk.id, job.turn), talk.seed, *words),
            talk.mode == "helpful" and all(spec.can_stream for spec in specs.values()), specs,
            turns.history(db, talk.id, job.turn),
        )  # fmt: skip
        for arm in dict.fromkeys(job.arms):
            slots = [i for i, other in enumerate(job.arms) if other == arm]
            spec = specs[arm]
            count = len(slots) if spec.best_of == 1 else max(spec.best_of, len(slots))
            seeds = [reply_seed(talk.seed, *words, slots[0], k) for k in range(count)]
            work.asks[Ask(spec, work.exchanges, seeds, len(slots))] = slots
        return work

    def _spec(self, db: Connection, arm: str) -> ArmSpec:
        if arm not in self._specs:
            self._specs[arm] = spec_of(db, arm)
        return self._specs[arm]

    def _put(self, work: Work, asks: dict[Ask, Any]) -> None:
        """Give asks to their lanes."""
        for ask in asks:
            work.waiting.add(ask)
            self._of[ask] = work
            slots = work.slots(ask)
            if work.streams:
                ask.tell = lambda reply, piece, slots=slots: self._hear(work, work.sides[slots[reply]], piece)
        for ask in asks:
            self._lane(ask.spec).put([ask])

    def _hear(self, work: Work, side: int, piece: str) -> None:
        with self._lock:
            partial = self._partials.get(work.conversation)
            if partial is None or partial.turn != work.turn:
                return
            partial.texts[side] += piece
            partial.version += 1
        self.bell.ring(work.conversation)

    def _lane(self, spec: ArmSpec) -> Lane:
        name = Ask(spec, (), ()).lane
        if name not in self._lanes:
            self._lanes[name] = Lane(name, self.models, self._done)
        return self._lanes[name]

    def _done(self, ask: Ask) -> None:
        """A lane's thread has answered."""
        with self._lock:
            self._answered.append(ask)
        self.wake()

    def _collect(self) -> None:
        """Write the jobs whose last ask was answered; ask again where two replies are equal."""
        with self._lock:
            answered = list(self._answered)
        ready: list[Work] = []
        for ask in answered:
            work = self._of.get(ask)
            if work is None or work.id not in self._works:
                continue
            work.waiting.discard(ask)
            arms = [work.arms[slot] for slot in work.slots(ask)]
            if isinstance(ask.error, CannotLoad):
                self.problems.update(dict.fromkeys(arms, str(ask.error)))
            elif ask.error is None:
                self.problems = {arm: why for arm, why in self.problems.items() if arm not in arms}
            if ask.error is not None:
                work.failed = work.failed or reason(ask.error)
            if not work.waiting and work not in ready:
                if not work.failed and not work.again and self._again(work):
                    continue
                ready.append(work)
        if ready:
            self._store(ready)
        with self._lock:  # only now: were the database gone, all would be done again
            self._answered = [ask for ask in self._answered if ask not in answered]
        for ask in answered:
            self._of.pop(ask, None)

    def _again(self, work: Work) -> bool:
        """Whether a reply equals an earlier one, so that it is drawn once more (redteam.md §14 row 34)."""
        seen: set[str] = set()
        for slot, (ask, place, _) in sorted(kept(work).items()):
            text = ask.samples[place].text.strip()
            if text in seen:
                seeds = [reply_seed(work.seed, *work.words(), slot, k, "again") for k in range(len(ask.seeds))]
                one = seeds if ask.spec.best_of > 1 else seeds[:1]
                work.again[Ask(ask.spec, ask.exchanges, one)] = slot
            seen.add(text)
        if not work.again:
            return False
        if work.streams:
            with self._lock:
                partial = self._partials[work.conversation]
                partial.version += 1
                for slot in work.again.values():
                    partial.texts[work.sides[slot]] = ""
        self._put(work, work.again)
        return True

    def _store(self, works: Sequence[Work]) -> None:
        with self.store.write() as db:
            for work in sorted(works, key=lambda w: w.conversation):
                db.execute(_LOCK, {"conversation": work.conversation})
                mine = {"job": work.id, "mine": self.owner, "try": work.tries, "done_at": now(), "show_at": None}
                if why := work.failed or of_no_use(db, work.conversation):
                    db.execute(_ANSWERED, mine | {"state": "failed", "error": why})
                    continue
                if work.mode == "redteam":
                    mine["show_at"] = work.created_at + int(self.hold(db) * 1e6)
                if db.execute(_ANSWERED, mine | {"state": "done", "error": None}).rowcount == 1:
                    write_replies(db, work)
        for work in works:
            self._works.pop(work.id, None)
            with self._lock:
                self._partials.pop(work.conversation, None)
            self.bell.ring(work.conversation)

    def _renew(self) -> None:
        """Keep the leases of what is in hand; give up what takes too long."""
        self._renewed = time.monotonic()
        late = [w for w in self._works.values() if time.monotonic() - w.since > self.longest]
        for work in late:
            work.failed = f"it took more than {self.longest:.0f} seconds"
        if late:
            self._store(late)
        if self._works:
            until = now() + self._lease_us
            mine = sa.and_(t.job.c.id.in_(list(self._works)), t.job.c.owner == self.owner)
            with self.store.write() as db:
                db.execute(t.job.update().where(mine, t.job.c.state == "running").values(lease_until=until))

    def _give_back(self) -> None:
        """Let other processes have at once what was not finished."""
        if not self._works:
            return
        mine = sa.and_(t.job.c.owner == self.owner, t.job.c.state == "running")
        try:
            with self.store.write() as db:
                db.execute(t.job.update().where(mine).values(state="waiting", owner=None, lease_until=None))
        except SQLAlchemyError:
            pass  # their leases will end


def _fail(db: Connection, job: str, why: str) -> None:
    db.execute(t.job.update().where(t.job.c.id == job).values(state="failed", error=why, done_at=now()))
