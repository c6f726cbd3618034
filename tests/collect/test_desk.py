"""The desk: jobs are done once, whoever dies; replies are drawn, drawn again, held and written as they should be."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from talking import LINES, Site, candidates, script

from truing.collect import tables as t
from truing.collect.arms import reply_seed
from truing.collect.care import exposure
from truing.collect.desk import Desk
from truing.collect.numbers import live
from truing.collect.replies import Models, best
from truing.collect.store import Store, new_id, now
from truing.collect.turns import history
from truing.types import Sample


class Told(Models):
    """Replies that are told to it; it keeps what it was asked. By default every reply is unlike any other."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts, self.asks, self.error = list(texts), [], None  # type: ignore[var-annotated]

    def answer(self, asks) -> None:
        for ask in asks:
            self.asks.append(ask)
            if self.error:
                ask.error = self.error
                continue
            said = [self.texts.pop(0) if self.texts else f"reply {new_id()}" for _ in ask.seeds]
            ask.samples = [Sample(text, (), None, "stop", s) for text, s in zip(said, ask.seeds, strict=True)]
            ask.shown = best(ask.samples, None, ask.wanted)


@pytest.fixture
def told(tmp_path, empty_file):
    made = site_with(tmp_path, empty_file, Told())
    yield made
    made.close()


def site_with(tmp_path, empty_file, models, arms=("one", "two"), **more):
    file = tmp_path / f"{new_id()}.db"
    file.write_bytes(empty_file.read_bytes())
    return Site(str(file), [f"{arm}={script(tmp_path / 'a.jsonl')}" for arm in arms], models=models, **more)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
@example([("b", 1, False), ("a", 2, False)])
@settings(max_examples=10, deadline=None)
def test_no_reply_that_was_not_picked_is_read_again(shared, clicks):
    """redteam.md §14 rows 6 and 7: models read the messages and what was picked (or made of it), however unsurely."""
    site, ada = shared
    ada.begin()
    told = []
    for turn, (pick, strength, edits) in enumerate(clicks, 1):
        screen = ada.say(f"message {turn}", turn)
        asked = [a for a in site.desk.models.asks if a.exchanges[-1] == (f"message {turn}", None)][-1]
        assert list(asked.exchanges) == [*told, (f"message {turn}", None)]
        edit = f"my version {turn}" if edits else None
        told.append((f"message {turn}", edit or screen["candidates"]["ab".index(pick)]["text"]))
        ada.choose(turn, pick, strength, **({"edit": edit} if edits else {}))
    with site.store.read() as db:
        assert history(db, ada.id) == told
    ada.act("finish", {"rating": 1})


@pytest.fixture(scope="module")
def shared(tmp_path_factory, empty_file):
    made = site_with(tmp_path_factory.mktemp("talks"), empty_file, Told())
    yield made, made.visitor()
    made.close()


def test_equal_replies_are_drawn_once_more_and_then_shown_with_a_note(tmp_path, empty_file):
    """redteam.md §14 row 34."""
    models = Told("x", "x ", "other", "y", "y", "y")
    site = site_with(tmp_path, empty_file, models, arms=("one",))
    ada = site.visitor()
    ada.begin()
    first = ada.say("Hello", 1)
    assert first["message"] is None and sorted(c["text"].strip() for c in first["candidates"]) == ["other", "x"]
    ada.choose(1)
    second = ada.say("More", 2)
    assert "the same" in second["message"] and {c["text"] for c in second["candidates"]} == {"y"}
    assert [(row.turn, row.same) for row in candidates(site)] == [(1, False), (1, False), (2, True), (2, True)]
    assert [len(ask.seeds) for ask in models.asks] == [2, 1, 2, 1]
    seeds = [seed for ask in models.asks for seed in ask.seeds]
    assert len(set(seeds)) == len(seeds)
    site.close()


def test_what_was_cut_is_kept_with_the_reply(told):
    """redteam.md §14 row 34: replies that ended at the limit, and a context whose beginning was left out."""
    ada, answer = told.visitor(), told.desk.models.answer
    ada.begin()

    def cut(asks) -> None:
        answer(asks)
        for ask in asks:
            ask.truncated, ask.samples = True, [replace(sample, finish="length") for sample in ask.samples]

    for turn, how in enumerate((cut, answer), 1):
        told.desk.models.answer = how
        ada.say("Hello", turn)
        ada.choose(turn)
    assert [(row.finish, row.truncated) for row in candidates(told)] == [("length", True)] * 2 + [("stop", False)] * 2


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_nothing_is_drawn_for_who_has_stopped(tmp_path, empty_file, when):
    """Replies that nobody will see take nobody's turn; they are no failure, and nobody has read them."""
    models = Told()
    site = site_with(tmp_path, empty_file, models, work=False)
    ada, bob = site.visitor(), site.visitor("Bob")
    for who in (ada, bob):
        who.begin("redteam")
        who.act("plan", {"text": "p", "tags": []})
        who.act("turns", {"turn": 1, "text": "Hello"})
    if when == "running":
        site.desk._put = lambda work, asks: (work.waiting.update(asks), site.desk._of.update(dict.fromkeys(asks, work)))
        site.desk.step()
    ada.act("stop", {})
    if when == "running":
        for work in site.desk._works.values():
            models.answer(list(work.asks))
            site.desk._answered += work.asks
    site.desk.step()
    end = time.monotonic() + 20
    while site.count(t.candidate) < 2 and time.monotonic() < end:
        site.desk.step()
    assert {row.conversation_id for row in candidates(site)} == {bob.id}
    (job,) = site.rows(sa.select(t.job).where(t.job.c.conversation_id == ada.id))
    assert (job.state, job.error) == ("failed", "ended")
    with site.store.read() as db:
        assert exposure(db, ada.person, now()) == 0 and live(db)["failed"] == 0
    site.close()


def test_an_arm_that_cannot_be_read_stands_in_nobodys_way(tmp_path, empty_file):
    """As one of a newer truing that shares the database."""
    site = site_with(tmp_path, empty_file, Told(), arms=("one",), work=False)
    ada, bob = site.visitor(), site.visitor("Bob")
    for who in (ada, bob):
        who.begin()
        who.act("turns", {"turn": 1, "text": "Hello"})
    arm = {"id": new_id(), "name": "newer", "spec": {"model": "x", "of_tomorrow": 1}, "created_at": now()}
    with site.store.write() as db:
        db.execute(t.arm.insert(), arm)
        db.execute(t.job.update().where(t.job.c.conversation_id == ada.id).values(arms=[arm["id"]] * 2))
    end = time.monotonic() + 20
    while site.count(t.candidate) < 2 and time.monotonic() < end:
        site.desk.step()
    assert {row.conversation_id for row in candidates(site)} == {bob.id}
    assert ada.look()["phase"] == "failed"
    site.close()


def test_the_two_best_of_k_are_shown_on_random_sides(tmp_path, empty_file):
    """redteam.md §13 row 12, §14 row 5: ranks 1 and 2 of the recorded scores; rank 1 is A about half of the time."""
    file = tmp_path / "best.db"
    file.write_bytes(empty_file.read_bytes())
    lines = script(tmp_path / "s.jsonl", [row | {"score": (i * 37) % 101} for i, row in enumerate(LINES)])
    site = Site(str(file), [f"rs={lines},best_of=8,pm={lines}"])
    people = [site.visitor(f"p{i}") for i in range(4)]
    for ada in people:
        ada.begin()
        ada.talk([str(i) for i in range(10)])
    rows = candidates(site)
    assert len(rows) == 80 and all(len(row.drawn) == 8 for row in rows)
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        assert {a.rank, b.rank} == {1, 2} and a.drawn == b.drawn
        first, second = sorted((a, b), key=lambda row: row.rank)
        assert first.pm_score == max(a.drawn) and second.pm_score == sorted(a.drawn)[-2]
    assert binomtest(sum(row.rank == 1 for row in rows[::2]), 40).pvalue > 0.001
    site.close()


KILLED = """
import sys, time
from truing.collect.desk import Desk
from truing.collect.replies import Models
from truing.collect.store import Store
class Slow(Models):
    def answer(self, asks):
        print("claimed", flush=True)
        time.sleep(600)
desk = Desk(Store(sys.argv[1]), models=Slow(), lease=2.0, poll=0.05)
desk.start()
time.sleep(600)
"""


def test_what_a_killed_process_had_claimed_another_finishes(db, tmp_path):
    """A job between claim and done survives kill -9 of its process, and is done once."""
    site = Site(db, [f"one={script(tmp_path / 'a.jsonl')}"], work=False, lease=2.0)
    ada = site.visitor()
    ada.begin()
    ada.act("turns", {"turn": 1, "text": "Hello"})
    child = subprocess.Popen([sys.executable, "-c", KILLED, db], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "claimed\n"
    (job,) = site.rows(sa.select(t.job))
    assert (job.state, job.tries) == ("running", 1)
    child.kill()
    child.wait()
    child.stdout.close()
    site.desk.start()
    ada.until("choose")
    (job,) = site.rows(sa.select(t.job))
    assert (job.state, job.tries) == ("done", 2)
    (talk,) = site.rows(sa.select(t.conversation))  # no reason to hope for other replies: redteam.md §14 row 13
    assert {row.seed for row in candidates(site)} == {reply_seed(talk.seed, 1, 0, 0, k) for k in range(2)}
    site.close()


def test_a_desk_whose_lease_was_lost_writes_nothing(told):
    ada = told.visitor()
    ada.begin()
    gate = threading.Event()
    answer = told.desk.models.answer

    def late(asks) -> None:
        gate.wait(20)
        answer(asks)

    told.desk.models.answer = late
    ada.act("turns", {"turn": 1, "text": "Hello"})
    while told.rows(sa.select(t.job.c.state))[0].state != "running":
        time.sleep(0.02)
    with told.store.write() as db:
        db.execute(t.job.update().values(owner="another", tries=2, lease_until=now() + 10**9))
    gate.set()
    while told.desk._works:
        time.sleep(0.02)
    assert not candidates(told) and told.rows(sa.select(t.job.c.state, t.job.c.owner)) == [("running", "another")]


def test_two_desks_share_the_work_and_do_nothing_twice(db, tmp_path):
    site = Site(db, [f"one={script(tmp_path / 'a.jsonl')}"])
    other = Desk(Store(db), poll=0.02)
    other.start()
    people = [site.visitor(f"p{i}") for i in range(5)]

    def run(ada) -> None:
        ada.begin()
        ada.talk(["a", "b", "c"])

    threads = [threading.Thread(target=run, args=(ada,)) for ada in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(candidates(site)) == 30 and site.count(t.choice) == 15
    assert {row.tries for row in site.rows(sa.select(t.job.c.tries))} == {1}
    other.stop()
    other.store.close()
    site.close()


def test_a_job_that_kills_processes_is_given_up(told):
    ada = told.visitor()
    ada.begin()
    told.desk.stop()
    ada.act("turns", {"turn": 1, "text": "Hello"})
    with told.store.write() as db:
        db.execute(t.job.update().values(state="running", owner="dead", tries=3, lease_until=now() - 1))
    again = Desk(told.store, told.house.bell, Told(), poll=0.05)
    again.start()
    assert ada.until("failed")["can"] == {"finish": True, "retry": True, "edit": False, "own_reply": False}
    ada.act("retry", {"turn": 1})
    assert ada.until("choose")["candidates"]
    again.stop()


def test_a_dead_arm_is_a_message_and_a_retry_with_another(told, capsys):
    ada = told.visitor()
    ada.begin()
    told.desk.models.error = RuntimeError("canary: it was asked about secrets")
    screen = ada.say("canary secrets", 1)
    assert screen["phase"] == "failed" and "try again" in screen["message"] and "canary" not in screen["message"]
    (job,) = told.rows(sa.select(t.job))
    assert job.error == "RuntimeError", "what was said is in no log and no error"
    told.desk.models.error = None
    assert ada.act("retry", {"turn": 1})["phase"] in ("wait", "choose")
    assert len(ada.until("choose")["candidates"]) == 2 and ada.look()["turns"][0]["human"] == "canary secrets"
    (again,) = told.rows(sa.select(t.job))
    if len(set(job.arms)) == 1:
        assert not set(again.arms) & set(job.arms)
    assert again.round == 1
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err


def test_stopping_gives_jobs_back_at_once(told):
    ada = told.visitor()
    ada.begin()
    gate = threading.Event()
    told.desk.models.answer = lambda asks: gate.wait(20) and None
    ada.act("turns", {"turn": 1, "text": "Hello"})
    while told.rows(sa.select(t.job.c.state))[0].state != "running":
        time.sleep(0.02)
    threading.Timer(0.3, gate.set).start()
    told.desk.stop()
    assert told.rows(sa.select(t.job.c.state, t.job.c.owner)) == [("waiting", None)]


def test_the_queue_is_counted_in_order(told):
    told.desk.stop()
    people = [told.visitor(f"p{i}") for i in range(3)]
    for ada in people:
        ada.begin()
        ada.act("turns", {"turn": 1, "text": "Hello"})
    assert [ada.look()["queue"] for ada in people] == [0, 1, 2]


def test_a_missing_arm_is_an_error_at_the_start(tmp_path, empty_file):
    """redteam.md §13 row 14."""
    missing = [(f"script:{tmp_path}/none.jsonl", "none.jsonl"), ("http://127.0.0.1:9/v1#m", "No server answers")]
    for model, said in missing:
        file = tmp_path / f"{new_id()}.db"
        file.write_bytes(empty_file.read_bytes())
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            Site(str(file), [f"gone={model}"])


def test_red_team_replies_wait_for_the_slowest_arm(tmp_path, empty_file):
    """Every reply is held until the slowest arm's 95th percentile: speed tells nothing (redteam.md §14 row 1)."""
    models = Told()
    site = site_with(tmp_path, empty_file, models, first_hold=0.4)
    ada = site.visitor()
    answer = models.answer

    def late(asks) -> None:
        time.sleep(0.3)
        answer(asks)

    models.answer = late  # type: ignore[method-assign]

    def one(number: int) -> tuple[float, float]:
        ada.begin("redteam")
        with site.store.write() as db:
            db.execute(t.plan.insert(), {"conversation_id": ada.id, "text": "p", "tags": [], "at": now()})
        ada.act("turns", {"turn": 1, "text": "Hello"})
        screen = first = ada.look()
        while screen["phase"] == "wait":
            assert screen == first, "nothing on the screen tells when the reply was done"
            screen = ada.look(screen["version"], wait=0.05 if number else 5.0)
        seen = now()
        (job,) = site.rows(sa.select(t.job).where(t.job.c.conversation_id == ada.id))
        ada.choose(1)
        ada.act("finish", {"success": 0, "harmfulness": 0, "actionability": 0})
        return (job.show_at - job.created_at) / 1e6, (seen - job.created_at) / 1e6

    held, seen = one(0)
    assert held == 0.4 <= seen, "it counts from the message, whenever the reply was done"
    arms = sorted(row.id for row in site.rows(sa.select(t.arm.c.id)))
    times = np.linspace(0.1, 1.3, 50)
    with site.store.write() as db:
        for arm, scale in zip(arms, (0.5, 1.0), strict=True):
            for seconds in times * scale:
                at = now()
                row = {"id": new_id(), "conversation_id": ada.id, "arms": [arm, arm], "weights": {}, "round": 0}
                row |= {"turn": int(at % 10**9), "state": "done", "tries": 1, "created_at": at}
                db.execute(t.job.insert(), row | {"done_at": at + int(seconds * 1e6)})
    site.desk._hold = (-1e9, 0.0)
    held, seen = one(1)
    assert abs(held - np.quantile(times, 0.95)) < 0.1 and seen >= held
    site.close()
