"""Jobs on a server: what is kept when they end early, limits of time, what the run keeps of the server."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_server import ALL, APART, QUICK, Server, lines, serving, texts_of, toy

from truing.models import client, wire
from truing.models.client import Client, ServerError
from truing.models.kept import ANSWERS, KeptAnswers
from truing.models.remote import RemoteLM

Call = Callable[..., tuple[int, str, str]]
TEXTS = [f"row {i}" for i in range(10)]


def environment(folder: str = "o") -> dict[str, Any]:
    return json.loads(Path(folder, "environment.json").read_text())


def notes(folder: str = "o") -> str:
    return " ".join(json.loads(Path(folder, "summary.json").read_text())["notes"])


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_an_answer_that_is_not_whole_in_time_is_given_up(fault: str, server: Server, monkeypatch: pytest.MonkeyPatch):
    """httpx counts between bytes: an answer that trickles would take its 150 bytes times 0.05 s."""
    monkeypatch.setenv("TRUING_TIMEOUT", "0.4")
    server.always = fault
    began = time.monotonic()
    with pytest.raises(ServerError, match="no whole answer within 0.4 s, the limit that TRUING_TIMEOUT sets"):
        RemoteLM(server.name).sample(["a"], max_tokens=2)
    assert time.monotonic() - began < 0.4 * client.LATE_TRIES + 2
    assert server.requests == client.LATE_TRIES, "the server may have worked on each: not eight times"
    server.always, server.faults = None, [fault]
    assert RemoteLM(server.name).sample(["a"], max_tokens=2)[0][0].num_tokens == 2


@pytest.mark.parametrize("value", ["0", "-3", "soon", "nan"])
def test_a_time_limit_that_means_nothing(value: str, no_limits: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRUING_TIMEOUT", value)
    with pytest.raises(ValueError, match="TRUING_TIMEOUT"):
        Client("http://127.0.0.1:9/v1")


@pytest.mark.parametrize("verb", ["score", "sample"])
def test_max_time_does_not_wait_for_a_server_that_asks_for_patience(verb: str, call: Call, server: Server):
    """The server wants 100 s before it answers again and there are 12: stop at once, keep what was answered."""
    lines("t.jsonl", [{"text": t, "prompt": t} for t in TEXTS])
    argv = (verb, server.name, "t.jsonl", "--out", "o", *(["--max-new-tokens", "2"] if verb == "sample" else []))
    server.always, server.alive = (429, {"retry-after": "100"}, {"error": {"message": "slow down"}}), 5
    began = time.monotonic()
    code, _, err = call(*argv, "--max-time", "0.2")
    assert code == 0 and "Stopped" in err and time.monotonic() - began < 30, err
    before, server.always = texts_of(server.asked), None
    server.asked.clear()
    code, out, _ = call(*argv)
    assert code == 0 and len(out.splitlines()) == 10
    assert before and texts_of(server.asked) == set(TEXTS) - before


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize("verb", ["score", "sample"])
def test_ctrl_c_loses_no_answer_and_none_is_asked_for_again(verb: str, server: Server, tmp_path: Path):
    """Exit code 130 (design); answers of rows that are not kept yet, those after a gap too, are not paid for twice."""
    rows = [{"text": t, "prompt": t} for t in TEXTS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [verb, server.name, "t.jsonl", "--out", "o", *QUICK, *(["--n", "2"] if verb == "sample" else [])]
    argv += ["--max-new-tokens", "2"] if verb == "sample" else []
    source = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "TRUING_CONCURRENCY": "3", "PYTHONPATH": source}
    command = [sys.executable, "-m", "truing", *argv]
    server.faults, server.always, server.alive = [None, "hang"], "hang", 6
    here: dict[str, Any] = {"cwd": tmp_path, "env": env, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **here)
    end = time.monotonic() + 100
    while (len(server.asked) < 6 or server.together < 3) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert len(server.asked) == 6 and server.together == 3, "three are under way, one of them since the beginning"
    time.sleep(1)  # what came last is written down
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "the same command goes on" in err, err
    assert "Traceback" not in err and "Exception" not in err
    before = texts_of(server.asked)
    server.free.set()
    server.faults, server.always = [], None
    server.asked.clear()
    done = subprocess.run(command, capture_output=True, timeout=100, **here)
    assert done.returncode == 0, done.stderr
    assert texts_of(server.asked) == set(TEXTS) - before and len(before) >= 5
    assert not (tmp_path / "o" / ANSWERS).exists()
    whole = ["whole" if word == "o" else word for word in command]
    other = subprocess.run(whole, capture_output=True, timeout=100, **here)
    assert other.stdout == done.stdout and len(done.stdout.splitlines()) == 10


@pytest.mark.parametrize("alive", range(2, 8))
def test_a_server_that_draws_one_reply_at_a_time_is_asked_for_none_twice(alive: int, server: Server, tmp_path: Path):
    """Planted: after a break the first reply of each prompt asked for again, with ``n`` or without."""
    server.gives = ALL - {"n"}

    def job(*done: str) -> list[list[str]]:
        lm = RemoteLM(server.name, concurrency=1)
        lm.client.kept = KeptAnswers(tmp_path / ANSWERS)
        lm.sample([text for text in ("first",) if text not in done], 2, max_tokens=2)  # shows what the server gives
        return [[s.text for s in samples] for samples in lm.sample(["a", "b"], 3, max_tokens=2)]

    server.always, server.alive = (401, {}, {"error": {"message": "no"}}), alive
    with pytest.raises(client.ServerError):
        job()
    assert len(server.asked) == alive
    server.always = None
    found = job("first")  # its row was kept, as those of earlier chunks are
    assert len(server.asked) == 2 + 6 and [len(set(texts)) for texts in found] == [3, 3]


def test_answers_kept_half_or_for_other_requests_are_not_used(server: Server, tmp_path: Path):
    first = RemoteLM(server.name)
    first.client.kept = KeptAnswers(tmp_path / ANSWERS)
    kept = first.sample(["a", "b"], max_tokens=3)
    text = (tmp_path / ANSWERS).read_text()
    assert text.count("\n") == 2 and "prompt" not in json.loads(text.splitlines()[0])
    (tmp_path / ANSWERS).write_text(text[:-10])
    again = RemoteLM(server.name)
    again.client.kept = KeptAnswers(tmp_path / ANSWERS)
    server.requests = 0
    assert again.sample(["a", "b"], max_tokens=3) == kept and server.requests == 1, "a cut line is asked for again"
    third = RemoteLM(server.name)
    third.client.kept = KeptAnswers(tmp_path / ANSWERS)
    assert third.sample(["a", "b"], max_tokens=3) == kept and server.requests == 1, "and is whole from then on"
    third.sample(["a", "b"], max_tokens=3, temperature=0.5)
    third.sample(["a"], max_tokens=3, seed=9)
    assert server.requests == 4, "another request has another answer"


# ---------------------------------------------------------------- joins and labels


@pytest.mark.parametrize("way", ["echo", "prompt_logprobs"])
def test_a_token_that_spans_the_join_is_scored_apart_where_the_server_can(
    way: str, no_limits: None, call: Call, monkeypatch: pytest.MonkeyPatch
):
    """Design §5: separate tokenisation and ``boundary``; equal to the same weights here. Else null, with its row."""
    lm = toy(merged="ab")
    pairs = [("x", "y"), ("a", "bc"), ("a", "c"), ("xa", "b"), ("ab", "ab")]
    here = lm.score(pairs)
    assert [s.boundary for s in here] == [False, True, False, True, False]
    rows = [{"id": f"r{i}", "context": a, "continuation": b} for i, (a, b) in enumerate(pairs)]
    with serving(lm, (APART - {"echo", "prompt_logprobs"}) | {way}) as server:
        there = RemoteLM(server.name).score(pairs)
        for one, other in zip(there, here, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert (one.num_tokens, one.boundary) == (other.num_tokens, other.boundary)
        lone = RemoteLM(server.name)
        lone.score([("a", "bc")])
        server.requests = 0
        lone.score([("a", "bc"), ("a", "bcc"), ("a", "bccc")])
        assert server.requests == 3 + 1 + 3 + 3, "whole, the context's ids once, each label's, and the two together"
        server.gives = (ALL - {"echo", "prompt_logprobs"}) | {way}
        there = RemoteLM(server.name).score(pairs)
        assert [math.isnan(s.logprob) for s in there] == [s.boundary for s in here] == [s.boundary for s in there]
        code, out, err = call("score", server.name, lines("t.jsonl", rows), "--out", "o")
        assert code == 0, err
        found = [json.loads(line) for line in out.splitlines()]
        assert [row["logprob"] is None for row in found] == [s.boundary for s in here] and "NaN" not in out
        assert "2 rows have no log-probability" in notes() and "r1, r3" in notes()
        numbers = json.loads(Path("o/summary.json").read_text())["numbers"]
        known = [s.logprob for s in here if not s.boundary]
        assert numbers["logprob"]["value"] == pytest.approx(sum(known) / 3, abs=1e-4) and numbers["logprob"]["n"] == 3
        with pytest.raises(ValueError, match=r"spans the join of \"xa\" and the label 'b'") as said:
            RemoteLM(server.name).label_logprobs(["xa"], ["y", "b"])
        assert server.name in str(said.value)


def test_a_label_that_is_not_listed_is_named_with_its_question(call: Call, server: Server):
    server.gives = frozenset({"logprobs", "top"})
    rows = [{"question": f"Which is {i}?", "choices": ["2", "3"], "answer": i % 2} for i in range(3)]
    code, _, err = call("honesty", "choices", server.name, lines("c.jsonl", rows), "--format", "chat")
    assert code == 1 and "'(A)', '(B)'" in err and re.search(r"Which is \d\?", err) and server.url in err
    assert re.search(r"not among the \d+ likeliest first tokens", err) and "--shots" in err and "vLLM" in err
    code, _, err = call("honesty", "choices", server.name, "c.jsonl")
    assert code == 1 and re.search(r"none of ' \(A\)' among the likeliest next tokens after .*Which is \d\?", err), err


# ---------------------------------------------------------------- how replies end


def test_a_filtered_reply_is_not_a_finished_one(call: Call, server: Server):
    assert wire.finish_of({"finish_reason": "content_filter"}) == "filtered"
    server.finish = "content_filter"
    argv = (server.name, lines("p.jsonl", [{"prompt": t} for t in TEXTS[:3]]), "--max-new-tokens", "2")
    code, out, err = call("sample", *argv, "--out", "o")
    assert code == 0 and {json.loads(line)["samples"][0]["finish"] for line in out.splitlines()} == {"filtered"}
    assert json.loads(Path("o/summary.json").read_text())["numbers"]["eos_rate"]["value"] == 0
    assert "3 replies were cut or withheld by the server's content filter" in err
    lines("q.jsonl", [{"question": f"{i} + 1?", "answers": [str(i + 1)]} for i in range(2)])
    code, out, _ = call("honesty", "ptrue", server.name, "q.jsonl", "--samples", "2", "--out", "t")
    assert code == 0 and "4 answers were cut or withheld" in notes("t")


def test_a_reply_that_the_server_broke_off_is_asked_for_again(server: Server):
    whole = {"choices": [{"text": "ab", "finish_reason": "abort"}]}
    server.faults = [(200, {}, whole), (200, {}, {"error": {"message": "upstream is busy", "code": 502}})]
    (sample,) = RemoteLM(server.name).sample(["a"], max_tokens=2)[0]
    assert server.requests == 3 and sample.logprob is not None
    server.always = (200, {}, {"error": {"message": "no such model", "code": 404}})
    with pytest.raises(client.Refused, match="no such model"):
        RemoteLM(server.name).sample(["b"], max_tokens=2)


# ---------------------------------------------------------------- what is kept of the server


def test_the_run_keeps_what_the_server_says_of_its_model(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRUING_API_KEY", "sk-27182818")
    row = {"id": "toy", "owned_by": "sk-27182818", "created": 5, "root": "https://me:secret@h/x", "secret": "z"}
    server.models = {"data": [{"id": "other"}, row]}
    server.more = {"model": "toy-2026", "system_fingerprint": "fp_1"}
    argv = ("sample", server.name, lines("p.jsonl", [{"prompt": t} for t in TEXTS]), "--max-new-tokens", "2")
    argv = (*argv, "--out", "o")
    server.always, server.alive = "drop", 4
    monkeypatch.setenv("TRUING_CONCURRENCY", "1")
    assert call(*argv)[0] == 1
    kept = environment()["server"]
    assert kept["listed"] == {"id": "toy", "owned_by": "[key]", "created": 5, "root": "https://h/x"}
    assert kept["answered"] == {"model": ["toy-2026"], "system_fingerprint": ["fp_1"]} and kept["model"] == "toy"
    server.always, server.more = None, {"model": "toy-2026", "system_fingerprint": "fp_2"}
    row["created"] = 6
    code, _, err = call(*argv)
    assert code == 0 and "says other things" not in err, "some servers give the time at which they are asked"
    assert environment()["server"]["answered"]["system_fingerprint"] == ["fp_1", "fp_2"]
    assert "The answers came from 2 builds of the server: fp_1, fp_2." in notes()
    files = [p for p in Path("o").rglob("*") if p.is_file()]
    assert not [p for p in files if b"27182818" in p.read_bytes() or b"secret" in p.read_bytes()]


def test_a_run_says_when_the_servers_model_changed(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRUING_CONCURRENCY", "1")
    server.models = {"data": [{"id": "toy", "max_model_len": 64}]}
    argv = ("score", server.name, lines("t.jsonl", [{"text": t} for t in TEXTS]), "--out", "o")
    server.always, server.alive = "drop", 6
    assert call(*argv)[0] == 1
    server.always, server.models = None, {"data": [{"id": "toy", "max_model_len": 128}]}
    code, _, err = call(*argv)
    assert code == 0 and "says other things of toy than when this run began" in err
    kept = environment()["server"]
    assert (kept["was"]["max_model_len"], kept["listed"]["max_model_len"]) == (64, 128)
    assert "said other things" in notes()


@pytest.mark.parametrize("models", ["<html>", {"data": "none"}, {"data": [7]}, {}, [], {"data": [{"id": "x"}]}])
def test_a_server_that_lists_no_models_is_as_good(models: Any, server: Server):
    server.models = models
    assert RemoteLM(server.name).client.about("toy") is None


def test_logprobs_at_another_temperature_are_the_servers(call: Call, server: Server):
    argv = ("sample", server.name, lines("p.jsonl", [{"prompt": "a"}]), "--max-new-tokens", "2")
    for more, out in (((), "plain"), (("--temperature", "0.7"), "warm"), (("--top-p", "0.9"), "cut")):
        code, _, err = call(*argv, *more, "--out", out)
        assert code == 0 and ("Log-probabilities are the server's" in err) == bool(more)
    assert "temperature 0.7 and top_p 1:" in notes("warm")
    server.gives = frozenset({"n"})
    assert "the server's, at" not in call(*argv, "--temperature", "0.7", "--out", "none")[2]


def test_a_server_that_does_not_sample_is_noticed(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch):
    """`transformers serve` takes the likeliest tokens, with status 200, of models that do not say do_sample."""
    argv = ("sample", server.name, lines("p.jsonl", [{"prompt": t} for t in TEXTS[:2]]), "--max-new-tokens", "6")
    assert "All replies to one prompt are equal" not in call(*argv, "--n", "2", "--out", "a")[2]
    plain = server.answer
    monkeypatch.setattr(server, "answer", lambda path, body: plain(path, {**body, "temperature": 0.0}))
    assert "All replies to one prompt are equal" in call(*argv, "--n", "2", "--seed", "1", "--out", "b")[2]
    one = ("sample", server.name, lines("one.jsonl", [{"prompt": TEXTS[0]}]), "--max-new-tokens", "6", "--n", "4")
    assert "All replies to one prompt are equal" not in call(*one, "--out", "one")[2], "one prompt may have one answer"
    assert "All replies to one prompt are equal" not in call(*argv, "--n", "2", "--temperature", "0", "--out", "c")[2]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:9/v1", True),
        ("http://127.0.0.2:9/v1", True),
        ("http://0.0.0.0:9/v1", True),
        ("http://[::1]:9/v1/", True),
        ("HTTP://LOCALHOST:9/v1", True),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example/v1", False),
    ],
)
def test_no_proxy_stands_before_this_machine(url: str, here: bool, no_limits: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    found = Client(url)
    assert ("authorization" in found._http.headers, not found._http.trust_env) == (here, here)
    assert not found.url.endswith("/")


def test_a_trailing_slash_changes_nothing(server: Server):
    assert RemoteLM(server.name.replace("/v1", "/v1/")).sample(["a"], max_tokens=2)[0][0].num_tokens == 2


def test_answers_that_lack_what_a_study_needs_are_not_kept(call: Call, server: Server):
    """Else the same command would fail on them again after the server was started anew with log-probabilities."""
    server.gives = frozenset({"n"})
    argv = ("score", server.name, lines("t.jsonl", [{"text": t} for t in TEXTS]), "--out", "o")
    code, _, err = call(*argv)
    assert code == 1 and "gives no log-probabilities" in err and not Path("o").exists()
    server.gives = ALL
    assert call(*argv)[0] == 0


def test_an_answer_that_is_none_is_asked_for_again(server: Server, tmp_path: Path):
    """Planted: whatever came with status 200 is kept, and the same command fails on it for ever."""
    kept = KeptAnswers(tmp_path / ANSWERS)
    lm = RemoteLM(server.name)
    lm.client.kept = kept
    for bad in ({"choices": [{"index": 0, "finish_reason": "stop"}]}, {"choices": "x"}, {"choices": []}):
        assert lm.client._to_keep(bad) is None
    good = {"choices": [{"text": "a"}], "usage": {}, "debug": {"authorization": "Bearer k"}}
    assert lm.client._to_keep(good) == {"choices": [{"text": "a"}], "usage": {}}
    lm.client._key = "sk-secret"
    assert lm.client._to_keep({"choices": [{"text": "a", "by": "sk-secret"}]}) == {
        "choices": [{"text": "a", "by": "[key]"}]
    }


def test_an_address_that_httpx_does_not_take_is_a_clear_error(call: Call):
    code, _, err = call("score", "http://exa mple\x7f/v1#m", lines("t.jsonl", [{"text": "a"}]))
    assert code == 1 and "Traceback" not in err and "unexpected" not in err
