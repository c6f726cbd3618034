"""RemoteLM against a small server over a toy LM: what it gives equals the LM's own; faults; what is never written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai_server import ALL, Server, lines, texts_of

from truing.collect.terminal import chat
from truing.configs import Chat, Choices, PTrue
from truing.data.questions import load_questions
from truing.measure.choices import choice_prompts, choices, option_logprobs
from truing.measure.p_true import brainstorm, brainstorm_prompts, judge, judging_prompts, p_true
from truing.models import client, wire
from truing.models.client import Client, Refused, ServerError
from truing.models.lm import LM
from truing.models.load import find_model
from truing.models.remote import RemoteLM, open_lm
from truing.runs import Run
from truing.types import Dialogue

ITEMS: list[str | tuple[str, str]] = ["Hello", ("Hello", " you"), ("", "Hi"), "", ("Hello", ""), "Hello"]
ITEMS += [("née 🙂", " yes"), ("Say", " 🙂é"), ("é", " 🙂")]
TALKS = [Dialogue().ask("Hi"), Dialogue().ask("Hi").reply("Hello").ask("And?"), Dialogue().ask("Hi")]
Call = Callable[..., tuple[int, str, str]]


# ---------------------------------------------------------------- scoring


@pytest.mark.parametrize("way", ["echo", "prompt_logprobs"])
def test_scores_equal_those_of_the_same_model_here(way: str, server: Server, lm: LM):
    """Catches the drawn token counted, the context counted, a BOS scored, and joins lost among broken characters."""
    server.gives = frozenset({way, "logprobs"})
    remote = RemoteLM(server.name)
    found = remote.score(ITEMS)
    for item, one, other in zip(ITEMS, found, lm.score(ITEMS), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4), item
        assert (one.num_tokens, one.boundary) == (other.num_tokens, other.boundary), item
    sent = [body["prompt"] for body in server.asked]
    assert sent.count("Hello you") == 1, "equal rows are asked once"
    before = len(server.asked)
    remote.score(ITEMS[:2])
    assert len(server.asked) - before == 2, "how this server is asked is found out once"
    assert RemoteLM(server.name).score(["", ("x", "")]) == lm.score(["", ("x", "")]), "nothing to ask"


def test_scores_stay_in_order_when_answers_do_not(server: Server, lm: LM, monkeypatch: pytest.MonkeyPatch):
    plain, items = server.answer, [f"{'x' * (i % 3)}{i}" for i in range(24)]

    def slow(path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = plain(path, body)
        server.lock.release()
        time.sleep(0.01 * (3 - len(body["prompt"]) % 3))
        server.lock.acquire()
        return found

    monkeypatch.setattr(server, "answer", slow)
    found = RemoteLM(server.name, concurrency=5).score(items)
    assert [s.logprob for s in found] == pytest.approx([s.logprob for s in lm.score(items)], abs=1e-4)
    assert 2 <= server.most_together <= 5


def test_one_token_is_read_off_the_likeliest_where_prompts_have_no_logprobs(server: Server, lm: LM):
    server.gives = frozenset({"logprobs", "top"})
    best = np.argsort(-lm.engine.next_logprobs([lm.encode_prompt("Answer:")])[0])
    labels = [chr(t) for t in best[:20] if t < 128][:3]
    remote = RemoteLM(server.name)
    found = remote.score([("Answer:", label) for label in labels])
    assert [s.logprob for s in found] == pytest.approx(lm.label_logprobs(["Answer:"], labels)[0].tolist(), abs=1e-4)
    assert sum(body.get("logprobs") == 20 for body in server.asked) == 2, "one request for all labels, one to find out"
    with pytest.raises(ValueError, match=r"none of ' \(A\)' among the likeliest.*vLLM"):
        remote.score([("Answer:", " (A)")])
    with pytest.raises(ValueError, match="gives no log-probabilities of a prompt"):
        RemoteLM(server.name).score(["a text"])


@pytest.mark.parametrize("gives", [ALL - {"echo", "prompt_logprobs", "top"}, frozenset({"n"}), frozenset({"echo"})])
def test_fields_dropped_in_silence_are_missed_and_no_number_is_made_up(gives: frozenset[str], server: Server):
    server.gives = gives
    for items in (["Hello"], [("Hello", " you")], [("", "a")]):
        with pytest.raises(ValueError, match="gives no log-probabilities") as said:
            RemoteLM(server.name).score(items)
        assert "vLLM" in str(said.value) and server.url in str(said.value)
    with pytest.raises(ValueError, match=r"begins with '\(A\)', '\(B\)'"):
        RemoteLM(server.name).label_logprobs(TALKS[:1], ["(A)", "(B)"])


def test_labels_after_a_dialogue(server: Server, lm: LM):
    """Both ways: off the likeliest tokens, and (labels of several tokens) as the beginning of a reply."""
    best = np.argsort(-lm.engine.next_logprobs([lm.encode_prompt(TALKS[0])])[0])
    labels = [chr(t) for t in best[:12] if t < 128][:2]
    server.gives = frozenset({"logprobs", "top"})
    found = RemoteLM(server.name).label_logprobs(TALKS[:1], labels)
    np.testing.assert_allclose(found, lm.label_logprobs(TALKS[:1], labels), atol=1e-4)
    server.gives = ALL
    found = RemoteLM(server.name).label_logprobs(TALKS, ["(A)", "(B)"])
    np.testing.assert_allclose(found, lm.label_logprobs(TALKS, ["(A)", "(B)"]), atol=1e-4)
    found = RemoteLM(server.name).label_logprobs(["Q:"], [" (A)", " (B)"])
    np.testing.assert_allclose(found, lm.label_logprobs(["Q:"], [" (A)", " (B)"]), atol=1e-4)


def test_a_token_that_spans_the_join_is_seen():
    tokens: list[wire.Token] = [("<s>", None), ("The", -1.0), (" cap", -1.0), ("ital", -1.0), (" is", -1.0)]
    assert wire.start_of(tokens, "The", " capital is") == 2
    assert wire.start_of(tokens, "The capital", " is") == 4
    with pytest.raises(wire.Spans):
        wire.start_of(tokens, "The ", "capital is")
    with pytest.raises(wire.Spans):
        wire.start_of([("", None), ("aa", -1.0), ("a", -2.0)], "aaa", "aa")


def test_an_echo_is_believed_only_if_it_is_whole():
    def answer(tokens: list[str], values: list[Any], text: str, counted: int | None = None) -> dict[str, Any]:
        lp = {"tokens": tokens, "token_logprobs": values}
        return {"choices": [{"text": text, "logprobs": lp}], "usage": {"prompt_tokens": counted}}

    assert wire.echoed(answer(["a", "b", "c"], [None, -1, -2], "abc"), "ab") == [("a", None), ("b", -1.0)]
    assert wire.echoed(answer(["a", "b"], [None, -1], "ab"), "ab") == [("a", None), ("b", -1.0)]
    assert wire.echoed(answer(["a", "b", ""], [None, -1, -9], "ab"), "ab") == [("a", None), ("b", -1.0)]
    assert wire.echoed(answer(["c"], [-2], "c"), "ab") is None, "only what was drawn"
    assert wire.echoed(answer(["a", "b", "c"], [None, None, -2], "abc"), "ab") is None, "a hole"
    assert wire.echoed(answer(["a", "b", "c"], [None, float("nan"), -2], "abc"), "ab") is None


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("prompts", [TALKS, ["Hello", "Good", "Hello"]])
@pytest.mark.parametrize("gives", [ALL, ALL - {"n"}])
def test_samples_are_the_servers_in_order(prompts: Any, gives: frozenset[str], server: Server, lm: LM):
    """Catches replies of one prompt given to another, seeds used twice, and missing choices filled with copies."""
    server.gives, told = gives, []
    remote = RemoteLM(server.name)
    found = remote.sample(prompts, 3, max_tokens=6, seed=5, progress=lambda done, total: told.append((done, total)))
    assert [len(some) for some in found] == [3, 3, 3] and told[-1] == (9, 9) and sorted(told) == told
    seeds = remote.seeds(prompts, 3, 5)
    assert len({s for some in seeds for s in some}) == 9, "equal prompts and different ones: other random numbers"
    if "n" not in gives:
        local = lm.sample(prompts, 3, max_tokens=6, seed=seeds)
        assert [[s.seed for s in some] for some in found] == seeds
    else:
        local = lm.sample(prompts, 3, max_tokens=6, seed=[[some[0] + k for k in range(3)] for some in seeds])
        assert [[s.seed for s in some] for some in found] == [[some[0]] * 3 for some in seeds]
    for mine, theirs in zip(found, local, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one.text, one.finish, one.num_tokens) == (other.text, other.finish, other.num_tokens)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    part = remote.sample(prompts[1:2], 3, max_tokens=6, seed=seeds[1:2])[0]
    assert [s.text for s in part] == [s.text for s in found[1]], "a job in parts is the job"


def test_a_server_that_repeats_itself_is_asked_for_each_reply(server: Server, monkeypatch: pytest.MonkeyPatch):
    plain = server.answer

    def copies(path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = plain(path, {**body, "n": 1})
        return found | {"choices": found["choices"] * body.get("n", 1)}

    monkeypatch.setattr(server, "answer", copies)
    (found,) = RemoteLM(server.name).sample(TALKS[:1], 3, max_tokens=8)
    assert len({s.text for s in found}) == len({s.seed for s in found}) == 3
    server.gives = ALL - {"logprobs"}
    (found,) = RemoteLM(server.name).sample(TALKS[:1], 3, max_tokens=8)
    assert len({s.text for s in found}) == 3, "without log-probabilities too"
    server.gives = ALL
    (same,) = RemoteLM(server.name).sample(TALKS[:1], 3, max_tokens=8, temperature=0)
    assert len({s.text for s in same}) == 1, "the likeliest tokens are the same each time"


def test_a_server_that_refuses_n_is_asked_for_each_reply(server: Server, lm: LM):
    """llama.cpp answers 400 for more replies than it has slots."""
    server.faults = [(400, {}, {"error": {"message": "Field 'n': Value must be between 1 <= value <= 2, but got 3."}})]
    remote = RemoteLM(server.name, concurrency=1)
    found = remote.sample(TALKS[:1], 3, max_tokens=6)
    assert [s.text for s in found[0]] == [
        s.text for s in lm.sample(TALKS[:1], 3, max_tokens=6, seed=remote.seeds(TALKS[:1], 3, 0))[0]
    ]
    assert len({s.seed for s in found[0]}) == 3 and all("n" not in body for body in server.asked)


@pytest.mark.parametrize("gives", [ALL, ALL - {"stop"}])
def test_replies_are_cut_here_whether_or_not_the_server_does(gives: frozenset[str], server: Server, lm: LM):
    server.gives = gives
    plain = lm.sample(["Hello"], max_tokens=24, seed=[[7]])[0][0]
    kept = [i for i, byte in enumerate(plain.token_ids) if 33 <= byte < 127]
    letter, at = chr(plain.token_ids[kept[1]]), kept[1]
    remote = RemoteLM(server.name)
    for given in ({"stop": [letter]}, {"stop_after": [letter]}):
        (one,), (other,) = (m.sample(["Hello"], max_tokens=24, seed=[[7]], **given)[0] for m in (remote, lm))
        assert (one.text, one.finish) == (other.text, "stop") and one.num_tokens == other.num_tokens == at + 1
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    remote.sample(TALKS[:1], max_tokens=2, stop=list("abcdef"), temperature=0.5, top_p=0.9)
    sent = server.asked[-1]
    assert sent["stop"] == ["\n\nHuman:", "a", "b", "c"], "servers refuse more than four"
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["model"]) == (0.5, 0.9, 2, "toy")
    assert sent["messages"] == [{"role": "user", "content": "Hi"}] and "top_k" not in sent and "n" not in sent


def test_without_logprobs_there_are_replies_and_no_numbers(server: Server, call: Call):
    server.gives = frozenset({"n"})
    (sample,) = RemoteLM(server.name).sample(["Hello"], max_tokens=4)[0]
    assert sample.text and sample.logprobs is None and sample.logprob is None and sample.num_tokens is None
    code, out, err = call("sample", server.name, lines("p.jsonl", [{"prompt": "a"}] * 2), "--max-new-tokens", "4")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(r["samples"][0]["logprob"] is None and r["samples"][0]["text"] for r in rows)
    (summary,) = Path("runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["numbers"]["reply_tokens"]["value"] is None
    assert "without log-probabilities" in err


def test_a_server_that_refuses_logprobs_is_asked_without(server: Server):
    server.faults = [(400, {}, {"error": {"message": "logprobs are not supported with this model"}})]
    remote = RemoteLM(server.name, concurrency=1)
    assert remote.sample(["Hello", "b"], max_tokens=4)[0][0].logprobs is None
    assert all("logprobs" not in body for body in server.asked)


def test_what_means_nothing_is_refused_before_anything_is_sent(server: Server):
    remote = RemoteLM(server.name)
    with pytest.raises(ValueError, match="Use top_p"):
        remote.sample(["a"], top_k=3)
    with pytest.raises(ValueError, match="nothing to reply to"):
        remote.sample([TALKS[0].reply("x")])
    with pytest.raises(ValueError, match="seeds must be"):
        remote.sample(["a"], 2, seed=[[1]])
    assert remote.sample(["a"], 2, max_tokens=0)[0][1].text == "" and server.requests == 0


# ---------------------------------------------------------------- faults

BUSY = (429, {"retry-after": "0.3"}, {"error": {"message": "slow down"}})


@pytest.mark.parametrize("fault", ["drop", "truncate", 500, 503, BUSY, (200, {}, "<html>starting</html>")])
def test_faults_that_pass_are_waited_out(fault: Any, server: Server, lm: LM):
    server.faults = [fault, fault]
    began = time.monotonic()
    (found,) = RemoteLM(server.name).score(["Hello"])
    assert found.logprob == pytest.approx(lm.score(["Hello"])[0].logprob, abs=1e-4)
    assert server.requests == 4, "two faults, one to find out how, one to score"
    if fault is BUSY:
        assert time.monotonic() - began >= 0.6, "Retry-After is honoured each time"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (500, "it says 500"),
        ("truncate", "not whole JSON"),
        ("drop", "disconnected|reset|closed"),
        ((429, {"retry-after": "9999"}, ""), "asks to wait 9999 s"),
    ],
)
def test_faults_that_stay_end_in_one_clear_error(fault: Any, said: str, server: Server):
    server.always = fault
    with pytest.raises(ServerError, match=re.compile(said, re.I)) as error:
        RemoteLM(server.name).sample(["a"] * 3, max_tokens=2)
    text = str(error.value)
    assert server.url in text and "Check that it runs" in text and "same command" in text
    assert server.requests <= 3 * client.TRIES


def test_a_refusal_is_not_repeated_and_says_what_the_server_said(server: Server):
    server.always = (400, {}, {"error": {"message": "maximum context length is 8 tokens"}})
    with pytest.raises(Refused, match="maximum context length is 8 tokens.*It was asked with 'Hello'"):
        RemoteLM(server.name).sample(["Hello"], max_tokens=2)
    assert server.requests == 1
    with pytest.raises(Refused, match="maximum context length"):
        RemoteLM(server.name).score(["Hello"])
    server.always, server.requests = 501, 0
    with pytest.raises(Refused, match="it says 501"):
        RemoteLM(server.name).sample(["Hello"], max_tokens=2)
    assert server.requests == 1
    server.always = (404, {}, {"detail": "Not Found"})
    with pytest.raises(Refused, match="Not Found.*/v1"):
        RemoteLM(server.name).sample(["Hello"], max_tokens=2)


def test_a_server_that_is_not_there(call: Call, server: Server):
    gone = "http://127.0.0.1:9/v1#toy"
    code, out, err = call("score", gone, lines("t.jsonl", [{"text": "a"}]))
    assert code == 1 and out == "" and "Traceback" not in err and "http://127.0.0.1:9/v1 gives no answer" in err
    assert not list(Path("runs").glob("*")), "nothing was computed, so no run is left"


def test_requests_per_minute_are_kept(server: Server):
    began = time.monotonic()
    RemoteLM(server.name, requests_per_minute=600).sample([f"{i}" for i in range(5)], max_tokens=1)
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 0), ("2", 2), ("-1", 0), ("soon", 0), ("inf", 0), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after(value: str | None, seconds: float):
    assert client._retry_after(value) == seconds


# ---------------------------------------------------------------- names and keys


@pytest.mark.parametrize(
    "name", ["http://h/v1", "http://h/v1#", "http://#m", "ftp://h/v1#m", "http://h:port/v1#m", "http://h:99999/v1#m"]
)
def test_names_that_are_none_are_refused(name: str):
    with pytest.raises(ValueError, match="expected http://host:port/v1#model"):
        RemoteLM(name)


def test_a_server_is_not_trained(server: Server):
    with pytest.raises(ValueError, match="whose weights are not here"):
        find_model("https://h/v1#org/model")
    with pytest.raises(ValueError, match="TRUING_CONCURRENCY"):
        RemoteLM(server.name, concurrency=0)
    remote = open_lm(server.name)
    assert isinstance(remote, RemoteLM) and remote.client.url == server.url and remote.model == "toy"


def test_one_companys_key_goes_nowhere_in_clear_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRUING_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    sent = {url: "authorization" in Client(url)._http.headers for url in ("http://h/v1", "https://h/v1")}
    assert sent == {"http://h/v1": False, "https://h/v1": True}
    assert "authorization" in Client("http://127.0.0.1:9/v1")._http.headers
    monkeypatch.setenv("TRUING_API_KEY", "sk-mine")
    assert "authorization" in Client("http://h/v1")._http.headers


def test_the_key_is_sent_and_written_nowhere(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch):
    key = "sk-3141592653589793"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("TRUING_API_KEY", f"{key}\n")
    lines("p.jsonl", [{"prompt": "a", "text": "a"}] * 2)
    said = ""
    for verb in ("sample", "score"):
        code, out, err = call(verb, server.name, "p.jsonl")
        assert code == 0, err
        said += out + err
    assert all(h["Authorization"] == f"Bearer {key}" for h in server.headers)
    for status in (401, 400, 500):
        server.always = (status, {}, {"error": {"message": f"Incorrect key: {key}"}})
        code, out, err = call("sample", server.name, "p.jsonl", "--seed", status)
        assert code == 1 and "Incorrect key: [key]" in err and "Traceback" not in err
        said += out + err
    monkeypatch.setenv("TRUING_API_KEY", f"{key}\u00e9")
    code, out, err = call("sample", server.name, "p.jsonl", "--seed", "9")
    assert code == 1 and "TRUING_API_KEY" in err
    assert key not in said + out + err
    files = [p for p in Path(".").rglob("*") if p.is_file()]
    assert len(files) > 8 and not [p for p in files if key.encode() in p.read_bytes()]


def test_a_password_in_a_name_is_refused_before_it_is_kept(call: Call, server: Server):
    for name in (server.name.replace("//", "//me:secret@"), server.name.replace("#", "?api_key=secret#")):
        code, out, err = call("sample", name, lines("p.jsonl", [{"prompt": "a"}]))
        assert code == 1 and "TRUING_API_KEY" in err and "secret" not in out + err
        assert not [p for p in Path(".").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]


# ---------------------------------------------------------------- verbs


@pytest.mark.parametrize("verb", ["score", "sample"])
@pytest.mark.parametrize("concurrency", ["1", "8"])  # with 8 the four rows are less than a part, and were thrown away
def test_a_job_whose_server_dies_goes_on_with_the_rows_that_are_left(
    verb: str, concurrency: str, call: Call, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRUING_CONCURRENCY", "1")  # rows are kept four by four
    texts = [f"row {i}" for i in range(10)]
    lines("t.jsonl", [{"text": t, "prompt": t} for t in texts])
    argv = (verb, server.name, "t.jsonl", *(["--max-new-tokens", "3", "--n", "2"] if verb == "sample" else []))
    code, whole, _ = call(*argv, "--out", "whole")
    assert code == 0
    server.asked.clear()
    server.always, server.alive = "drop", 7
    code, out, err = call(*argv, "--out", "o")
    assert code == 1 and out == "" and "the same command goes on" in err and "Traceback" not in err
    assert len(Path("o/rows-so-far.jsonl").read_text().splitlines()) == 4
    before = texts_of(server.asked)
    assert len(before) >= 6
    server.always = None
    monkeypatch.setenv("TRUING_CONCURRENCY", concurrency)
    server.asked.clear()
    code, out, _ = call(*argv, "--out", "o")
    assert code == 0 and [json.loads(line)["id"] for line in out.splitlines()] == list(range(1, 11))
    assert out == whole
    assert texts_of(server.asked) == set(texts) - before, "what was answered is not asked again, kept row or not"
    assert not Path("o/answers-so-far.jsonl").exists()


def test_honesty_gives_the_numbers_of_the_model_here(
    server: Server, lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    server.gives = ALL - {"n"}  # each reply has a seed of its own, as here
    lines("c.jsonl", [{"question": f"{i} + 1?", "choices": ["2", "3"], "answer": i % 2} for i in range(3)])
    lines("q.jsonl", [{"question": f"{i} + 1?", "answers": [str(i + 1)]} for i in range(3)])
    asked, questions = load_questions("c.jsonl"), load_questions("q.jsonl")
    answers = brainstorm(lm, questions, brainstorm_prompts(questions), 2, max_tokens=4)
    here: dict[str, Any] = {"model": server.name, "device": "cpu", "dtype": "float32", "threads": 1}
    runs = [
        (choices(Choices(file="c.jsonl", **here)), option_logprobs(lm, asked, choice_prompts(asked))),
        (
            choices(Choices(file="c.jsonl", format="chat", **here)),
            option_logprobs(lm, asked, choice_prompts(asked, format="chat")),
        ),
        (p_true(PTrue(file="q.jsonl", samples=2, max_new_tokens=4, **here)), judge(lm, judging_prompts(answers))),
    ]
    for run, rows in runs:
        assert isinstance(run, Run) and run.done
        kept = [json.loads(line)["logprobs"] for line in (run.path / "logprobs.jsonl").read_text().splitlines()]
        np.testing.assert_allclose(kept, [row["logprobs"] for row in rows], atol=1e-4)


def test_a_conversation_in_the_terminal(server: Server, capsys: pytest.CaptureFixture[str]):
    said = iter(["Hi", "/again", ""])
    chat(Chat(model=server.name, max_new_tokens=4, device="cpu", dtype="float32", threads=1), lambda _: next(said))
    shown = capsys.readouterr()
    assert shown.out.count(f"{server.name}: ") == 2 and '{"role": "user", "content": "Hi"}' in shown.err
    assert [body["messages"] for body in server.asked] == [[{"role": "user", "content": "Hi"}]] * 2
    assert len({body["seed"] for body in server.asked}) == 2


def test_a_preference_model_is_not_looked_for_on_a_server(call: Call, server: Server):
    lines("c.jsonl", [{"dialogue": "\n\nHuman: Hi\n\nAssistant: Hello"}])
    code, _, err = call("score", server.name, "c.jsonl")
    assert code == 1 and "weights are not here" in err
