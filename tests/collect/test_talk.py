"""Conversations through the API: one truth on the server, whatever browsers do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time

import pytest
import sqlalchemy as sa
from talking import LINES, Site, candidates, script

from truing.collect import acts, talk
from truing.collect import tables as t
from truing.collect.app import THREADS
from truing.collect.arms import draw_arms, draw_sides, reply_seed
from truing.collect.chat import PATHS
from truing.collect.replies import CannotLoad
from truing.collect.store import Store, new_id, now, set_setting


def texts(screen):
    return [c["text"] for c in screen["candidates"]]


def test_a_dialogue_of_four_turns(site):
    ada = site.visitor()
    assert ada.begin()["phase"] == "write"
    screens = ada.talk(["Hello", "More", "Why?", "Thanks"], picks="abba")
    last = ada.look()
    assert [x["human"] for x in last["turns"]] == ["Hello", "More", "Why?", "Thanks"]
    assert [x["reply"] for x in last["turns"]] == [
        texts(s)["ab".index(p)] for s, p in zip(screens, "abba", strict=True)
    ]
    done = ada.act("finish", {"rating": 4, "comment": "fine"})
    assert done["phase"] == "done" and done["task"] == {"done": 1, "of": 1, "size": 5}
    assert site.rows(sa.select(t.ending.c.rating, t.ending.c.comment)) == [(4, "fine")]
    assert ada.begin()["task"]["of"] == 2 and site.count(t.task) == 1
    home = ada.client.get("/").text
    assert '<progress max="5" value="1"' in home and "A conversation is waiting" in home
    versions = [s["version"] for s in (*screens, last, done)]
    assert versions == sorted(set(versions))


def test_reloading_ten_times_shows_the_same_two_replies(site):
    """redteam.md §14 row 13."""
    ada = site.visitor()
    ada.begin()
    first = ada.say("Hello", 1)
    rows = candidates(site)
    assert all(ada.look() == first for _ in range(10)) and ada.begin() == first
    assert candidates(site) == rows and len(rows) == 2


def test_every_write_twice_and_in_parallel_is_done_once(site):
    """redteam.md §14 row 12: the same click again is the same answer, another window's is refused."""
    ada = site.visitor()
    ada.begin()

    def parallel(what, body, keys):
        codes = []

        def send(key):
            headers = {"Idempotency-Key": key, "X-CSRF-Token": ada.csrf}
            path = f"/api/conversations/{ada.id}/{what}"
            codes.append(ada.client.post(path, json=body, headers=headers).status_code)

        threads = [threading.Thread(target=send, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(codes)

    one = new_id()
    codes = parallel("turns", {"turn": 1, "text": "Hello"}, [one] * 4 + [new_id() for _ in range(3)])
    assert codes in ([200] * 4 + [409] * 3, [200] + [409] * 6)
    ada.until("choose")
    body = {"turn": 1, "pick": "b", "strength": 4, "latency_ms": 900}
    codes = parallel("choices", body, [new_id() for _ in range(6)])
    assert codes == [200] + [409] * 5
    key = new_id()
    assert [ada.act("turns", {"turn": 2, "text": "x"}, key)["turn"] for _ in range(2)] == [2, 2]
    ada.act("turns", {"turn": 2, "text": "another"}, key, expect=422)
    ada.until("choose")
    ada.act("choices", body | {"turn": 2}, key := new_id())
    ada.act("choices", body | {"turn": 2}, key)
    assert parallel("finish", {"rating": 1}, [new_id() for _ in range(4)]) == [200, 409, 409, 409]
    assert [site.count(x) for x in (t.choice, t.ending, t.job)] == [2, 1, 2] and len(candidates(site)) == 4
    human = sa.select(t.message.c.turn).where(t.message.c.role == "human").order_by(t.message.c.turn)
    assert [row.turn for row in site.rows(human)] == [1, 2]


def test_two_windows_begin_one_conversation(site):
    ada = site.visitor()
    ids = []

    def begin() -> None:
        ids.append(ada.post("/api/tasks", {"mode": "helpful"})["id"])

    threads = [threading.Thread(target=begin) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1 == site.count(t.conversation) == site.count(t.task)


def test_a_stale_screen_is_refused(quick):
    ada = quick.visitor()
    ada.begin()
    choice = {"turn": 1, "pick": "a", "strength": 1}
    ada.act("choices", choice, expect=409)
    ada.act("turns", {"turn": 2, "text": "x"}, expect=409)
    ada.say("Hello", 1)
    ada.act("turns", {"turn": 1, "text": "again"}, expect=409)
    ada.act("choices", choice | {"turn": 2}, expect=409)
    ada.act("retry", {"turn": 1}, expect=409)
    ada.act("choices", choice)
    ada.act("choices", choice, expect=409)
    assert quick.count(t.choice) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"turn": 1, "pick": "c", "strength": 1},
        {"turn": 1, "pick": "a", "strength": 0},
        {"turn": 1, "pick": "a", "strength": 5},
        {"turn": 1, "pick": "a"},
        {"turn": 1, "order": ["a", "b"]},
        {"turn": 1, "pick": "a", "strength": 2, "edit": "  "},
        {"turn": 1, "pick": "a", "strength": 2, "arm": "x"},
        {"turn": 1, "pick": "a", "strength": "2"},
    ],
)
def test_what_is_no_choice_is_refused(quick, body):
    ada = quick.visitor()
    ada.begin()
    ada.say("Hello", 1)
    ada.act("choices", body, expect=422)
    assert quick.count(t.choice) == 0 and ada.look()["phase"] == "choose"


def test_a_conversation_is_its_persons_alone(quick):
    ada, eve = quick.visitor("Ada"), quick.visitor("Eve")
    ada.begin()
    eve.id = ada.id
    eve.act("turns", {"turn": 1, "text": "Hello"}, expect=404)
    assert eve.client.get(f"/api/conversations/{ada.id}").status_code == 404
    assert ada.client.get("/api/conversations/nothing").status_code == 422
    assert quick.visitor("Rex", "reviewer").client.get(f"/api/conversations/{ada.id}").status_code == 403


def test_blank_endless_and_odd_texts(quick):
    ada = quick.visitor()
    ada.begin()
    ada.act("turns", {"turn": 1, "text": " \n"}, expect=422)
    ada.act("turns", {"turn": 1, "text": "x" * (acts.MOST_LETTERS + 1)}, expect=422)
    ada.act("turns", {"turn": 1, "text": "a\x00b\u202e\r\nc <script>"})
    assert ada.until("choose")["turns"][0]["human"] == "a\ufffdb\u202e\nc <script>"


def test_the_conversation_goes_on_with_the_persons_edit(quick):
    ada = quick.visitor()
    ada.begin()
    first = ada.say("Hello", 1)
    assert first["can"]["edit"]
    ada.choose(1, "b", edit="A better reply.")
    ada.say("More", 2)
    ada.choose(2, "a", edit=texts(ada.look())[0])
    assert [x["reply"] for x in ada.look()["turns"]][0] == "A better reply."
    one, two = quick.rows(sa.select(t.choice).order_by(t.choice.c.turn))
    assert one.edit_id and not two.edit_id, "an edit that changes nothing is none"
    chosen = quick.rows(sa.select(t.message.c.text).where(t.message.c.id == one.chosen_id))[0].text
    assert chosen == texts(first)[1]
    parent = sa.select(t.message.c.parent_id).where(t.message.c.turn == 2, t.message.c.role == "human")
    assert quick.rows(parent)[0].parent_id == one.edit_id


def test_ranking_with_a_reply_of_ones_own(quick):
    """hh.md §14: three replies, blind, one of them written by a person."""
    ada = quick.visitor()
    assert ada.begin("rank")["can"]["own_reply"]
    ada.act("turns", {"turn": 1, "text": "Hello", "own_reply": "Mine!"})
    screen = ada.until("rank")
    assert [c["key"] for c in screen["candidates"]] == ["a", "b", "c"]
    own = next(c["key"] for c in screen["candidates"] if c["own"])
    order = sorted("abc", key=lambda key: key != own)
    for wrong in (["a", "b"], ["a", "a", "b"], ["a", "b", "d"]):
        ada.act("choices", {"turn": 1, "order": wrong}, expect=422)
    after = ada.act("choices", {"turn": 1, "order": order})
    assert after["turns"][0]["reply"] == "Mine!"
    (choice,) = quick.rows(sa.select(t.choice))
    assert len(choice.order) == 3 and choice.order[0] == choice.chosen_id and choice.strength is None
    ada.say("More", 2)
    assert len(ada.look()["candidates"]) == 3
    ada.act("turns", {"turn": 2, "text": "x"}, expect=409)


def test_arms_sides_and_seeds_are_replayed_from_the_conversation(site):
    ada = site.visitor()
    for number in range(3):
        ada.begin()
        ada.talk(["Hello", "More"])
        ada.act("finish", {"rating": 0})
        (talk,) = site.rows(sa.select(t.conversation).where(t.conversation.c.id == ada.id))
        assert talk.seed == reply_seed(7, "Ada", number)
    jobs = {(j.conversation_id, j.turn): j for j in site.rows(sa.select(t.job))}
    talks = {c.id: c for c in site.rows(sa.select(t.conversation))}
    for row in candidates(site):
        talk, job = talks[row.conversation_id], jobs[row.conversation_id, row.turn]
        assert job.arms == draw_arms(talk.weights, 2, talk.seed, row.turn, 0) and job.weights == talk.weights
        slot = draw_sides(2, talk.seed, row.turn, 0).index(row.side)
        assert row.arm_id == job.arms[slot]
        first = job.arms.index(row.arm_id)
        again = [reply_seed(talk.seed, row.turn, 0, slot, 0, "again")]
        assert row.seed in [reply_seed(talk.seed, row.turn, 0, first, slot - first), *again]


def test_a_red_team_conversation_has_one_arm_and_waits_for_its_plan(site):
    ada = site.visitor()
    assert ada.begin("redteam")["phase"] == "plan"
    ada.act("turns", {"turn": 1, "text": "x"}, expect=409)
    with site.store.write() as db:
        db.execute(t.plan.insert(), {"conversation_id": ada.id, "text": "p", "tags": [], "at": now()})
    ada.talk(["Hello", "More", "More"])
    assert len({row.arm_id for row in candidates(site)}) == 1
    ada.act("finish", {"success": 3}, expect=422)
    ada.act("finish", {"success": 0, "harmfulness": 4, "actionability": 2, "description": "d"})
    assert site.rows(sa.select(t.ending.c.success, t.ending.c.harmfulness)) == [(0, 4)]
    ada.begin("redteam")


@pytest.mark.parametrize("mode", ["helpful", "rank", "redteam"])
def test_nothing_of_an_arm_reaches_a_browser(tmp_path, empty_file, mode):
    """redteam.md §14 row 1: no name, id, model, setting or score, nor why it failed; lengths are multiples of 2 KiB."""
    (tmp_path / "truing.db").write_bytes(empty_file.read_bytes())
    file = script(tmp_path / "canary.jsonl")
    arms = [f"canaryname{i}={file},max_tokens={100 + i},model_type=canarytype,num_params=9.9B" for i in range(3)]
    arms.append(f"canaryrs={file},best_of=4,pm={file},model_type=canarytype")
    site = Site(str(tmp_path / "truing.db"), arms)
    ada = site.visitor()
    seen = []
    keep = ada.client.request

    def watch(*args, **options):
        answer = keep(*args, **options)
        seen.append(answer)
        return answer

    def fail(asks):
        for ask in asks:
            ask.error = CannotLoad(f"canary: {ask.spec.model} cannot be loaded")

    ada.client.request = watch  # type: ignore[method-assign]
    ada.begin(mode)
    if mode == "redteam":
        ada.act("plan", {"text": "a plan", "tags": []})
    judged = {"order": ["a", "b", "c"]} if mode == "rank" else {"pick": "a", "strength": 2}
    for turn in range(1, 4):
        ada.say("Hello", turn)
        ada.act("choices", {"turn": turn, **judged})
    ada.act("choices", {"turn": 1, **judged}, expect=409)
    site.desk.models.answer = fail
    assert ada.say("Hello", 4)["phase"] == "failed"
    ada.act("finish", {"rating": 2} if mode != "redteam" else {"success": 1, "harmfulness": 0, "actionability": 2})
    for path in ("/", PATHS[mode], f"/consent/{mode}", "/mine"):
        ada.client.get(path)
    words = ["canary", "max_tokens", "9.9B", "logprob", "seed", "pm_score", "arm", str(tmp_path)]
    words += [row.id for row in site.rows(sa.select(t.arm.c.id))]
    words += [row.message_id for row in candidates(site)]
    assert len(seen) > 12 and len(words) > 16
    for answer in seen:
        said = answer.text + json.dumps(dict(answer.headers))
        assert not [word for word in words if word in said.replace("warm", "").replace("harm", "")]
        if answer.request.url.path.startswith("/api/") and answer.status_code == 200:
            assert len(answer.content) % 2048 == 0
    site.close()


def test_the_instructions_come_first_and_new_ones_are_asked_again(quick):
    ada = quick.visitor(consents=())
    assert ada.client.get("/chat", follow_redirects=False).headers["location"] == "/consent/helpful"
    ada.post("/api/tasks", {"mode": "helpful"}, expect=422)
    page = ada.client.get("/consent/helpful").text
    version = page.split('name="version" value="')[1].split('"')[0]
    form = {"csrf": ada.csrf, "version": version}
    assert ada.client.post("/consent/helpful", data=form, follow_redirects=False).headers["location"] == "/chat"
    ada.client.post("/consent/helpful", data=form, follow_redirects=False)
    assert quick.rows(sa.select(t.consent.c.page, t.consent.c.version)) == [("helpful", version)]
    ada.begin()
    assert ada.client.get("/chat").status_code == 200
    ada.say("Hello", 1)
    with quick.store.write() as db:
        set_setting(db, "words", {"consent.helpful": "Something new."}, None)
    screen = ada.look()
    assert screen["phase"] == "consent" and not screen["turns"] and not screen["candidates"]
    ada.act("choices", {"turn": 1, "pick": "a", "strength": 2}, expect=422)
    assert ada.client.post("/consent/helpful", data=form).status_code == 409
    assert ada.client.get("/chat", follow_redirects=False).status_code == 303


def test_modes_and_quotas(quick):
    eve = quick.visitor("Eve", modes=("redteam",), quota=1)
    eve.post("/api/tasks", {"mode": "helpful"}, expect=403)
    assert eve.client.get("/chat").status_code == 403 == eve.client.get("/consent/helpful").status_code
    eve.begin("redteam")
    assert eve.begin("redteam")["id"] == eve.id
    with quick.store.write() as db:
        db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": eve.id, "by": eve.person, "at": now()})
    assert eve.look()["phase"] == "withdrawn"
    eve.post("/api/tasks", {"mode": "redteam"}, expect=422)


def test_a_withdrawn_conversation_shows_nothing(quick):
    ada = quick.visitor()
    ada.begin()
    ada.talk(["canary one"])
    with quick.store.write() as db:
        db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": ada.id, "by": ada.person, "at": now()})
    screen = ada.look()
    assert screen["phase"] == "withdrawn" and "canary" not in json.dumps(screen) and not screen["can"]["finish"]
    ada.act("turns", {"turn": 2, "text": "x"}, expect=422)


def test_a_long_poll_wakes_at_once(quick):
    ada = quick.visitor()
    before = ada.begin()["version"]
    start = time.monotonic()
    threading.Timer(0.3, lambda: ada.act("turns", {"turn": 1, "text": "Hello"})).start()
    screen = ada.look(before, wait=20.0)
    assert screen["version"] > before and time.monotonic() - start < 10
    assert ada.look(ada.until("choose")["version"], wait=0.2)["phase"] == "choose"


def test_both_replies_appear_together_or_stream_together(tmp_path, empty_file):
    """hh.md §3.3, §19 row 3, §20 row 42: where one arm cannot stream, neither text is seen until both are done."""
    slow = script(tmp_path / "slow.jsonl", [row | {"seconds": 1.0, "score": i} for i, row in enumerate(LINES)])
    fast = script(tmp_path / "fast.jsonl")
    for name, arms, streams in (
        ("barrier", [f"rs={slow},best_of=4,pm={slow}", f"plain={fast}"], False),
        ("stream", [f"slow={slow}", f"plain={fast}"], True),
    ):
        (tmp_path / f"{name}.db").write_bytes(empty_file.read_bytes())
        site = Site(str(tmp_path / f"{name}.db"), arms, seed=3)
        ada = site.visitor()
        ada.begin()
        partly, kinds = 0, set[str]()
        for turn in range(1, 7):
            ada.act("turns", {"turn": turn, "text": "Hello"})
            screen = ada.look()
            while screen["phase"] == "wait":
                partly += bool(screen["candidates"])
                assert streams or (not screen["candidates"] and "number" not in json.dumps(screen["turns"][turn - 1 :]))
                assert all(c["partial"] for c in screen["candidates"])
                screen = ada.look(screen["version"], wait=0.05)
            assert len(screen["candidates"]) == 2 and not any(c["partial"] for c in screen["candidates"])
            kinds.add("".join(sorted({site_name(site, row.arm_id) for row in candidates(site) if row.turn == turn})))
            ada.choose(turn)
        assert (partly > 0) is streams and len(kinds) > 1, kinds
        site.close()


def test_who_waits_keeps_nobody_waiting(quick, monkeypatch):
    """redteam.md §14 row 32: while a model works and more polls wait than there are threads, others are answered at
    once; and no request reads or writes on the event loop, where all would wait for it."""
    ada, gate, answer, on_the_loop = quick.visitor(), threading.Event(), quick.desk.models.answer, []

    def late(asks):
        gate.wait(30)
        answer(asks)

    def watched(connect):
        @contextlib.contextmanager
        def watch(store):
            with contextlib.suppress(RuntimeError):
                on_the_loop.append(asyncio.get_running_loop())
            with connect(store) as db:
                yield db

        return watch

    monkeypatch.setattr(quick.desk.models, "answer", late)
    monkeypatch.setattr(talk, "LOOK", 8.0)
    for name in ("read", "write"):
        monkeypatch.setattr(Store, name, watched(getattr(Store, name)))
    ada.begin()
    version = ada.act("turns", {"turn": 1, "text": "Hello"})["version"]
    with ada.client:  # one event loop for all requests
        polls = [threading.Thread(target=ada.look, args=(version, 20.0)) for _ in range(THREADS + 4)]
        for poll in polls:
            poll.start()
        took = []
        for path in ("/health", "/", "/chat", "/health"):
            began = time.monotonic()
            assert ada.client.get(path).status_code == 200
            took.append(time.monotonic() - began)
        gate.set()
        for poll in polls:
            poll.join()
        ada.until("choose")
        ada.choose(1)
    assert max(took) < 3.0, took
    assert not on_the_loop


def site_name(site, arm):
    return site.rows(sa.select(t.arm.c.name).where(t.arm.c.id == arm))[0].name
