"""Rewards that are the user's own function or a server: what they are given, what is recorded, what errors say."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_toys import PROMPTS, config, toy_lm, toy_pm

from truing.models import client
from truing.models.client import Refused, ServerError
from truing.runs import Run
from truing.train.ppo import train_ppo
from truing.train.ppo_reward import RewardServer, ask, load_reward, reward_identity
from truing.types import Dialogue

FUNCTION = """
def score(dialogues):
    return [len(d.last.text) % 5 for d in dialogues]

def few(dialogues):
    return [1.0]

def odd(dialogues):
    return [float("nan")] * len(dialogues)

def none(dialogues):
    return None

def fails(dialogues):
    return [d.last.txt for d in dialogues]

limit = 3
"""
REPLIES = [d.reply(text) for d, text in zip(PROMPTS, ("a", "bb", "ccc", "dddd"), strict=True)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the user's ``rewards.py``; what is imported from it is forgotten."""
    (tmp_path / "rewards.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in ("rewards", "broken", "needs"):
        sys.modules.pop(name, None)


def run(out: Path, reward: str, **options: Any) -> Run:
    lm = toy_lm()
    c = config(out, pm="", reward=reward, **{"steps": 2, **options})
    found = train_ppo(c, prompts=PROMPTS, eval_prompts=PROMPTS[:3], lm=lm, test_pms={"judge": toy_pm(lm)})
    assert isinstance(found, Run)
    return found


def test_a_function_of_the_working_folder_is_the_reward(here: Path) -> None:
    """Planted: scores centred or scaled; the test judge's in their place; the function's name alone as identity."""
    done = run(here / "run", "rewards:score")
    numbers = done.summary()["numbers"]
    rows = [json.loads(line) for line in (done.path / "evaluations.jsonl").read_text().splitlines()]
    assert [r["score"] for r in rows] == [len(r["dialogue"][-1]["content"]) % 5 for r in rows]
    assert "pm_score_gain/judge" in numbers and numbers["pm_score_gain"]["value"] is not None
    assert done.environment["options"]["reward"].startswith("function:rewards:score sha256:")
    assert done.config["reward"] == "rewards:score"
    assert any("The reward was rewards:score" in note for note in done.summary()["notes"])
    assert run(here / "run", "rewards:score").path == done.path  # done: not trained again
    (here / "rewards.py").write_text(FUNCTION.replace("% 5", "% 7"))
    sys.modules.pop("rewards")
    with pytest.raises(ValueError, match="another config.*reward.*sha256"):
        run(here / "run", "rewards:score")


def test_what_is_wrong_with_a_function_is_told(here: Path) -> None:
    """Planted: no ``from None``, so that the importer's own lines are named; shape not looked at."""
    (here / "broken.py").write_text("x = 1\ny = x / 0\n")
    (here / "needs.py").write_text("import nothing_of_that_name\n")
    for name, said in {
        "reward:score": "there is no module 'reward' in .*Did you mean rewards",
        "zzz:score": "Python files here: broken, needs, rewards",
        "rewards:scor": "has no 'scor'. Did you mean rewards:score",
        "rewards:limit": "is a int; expected a function",
        "rewards": "expected module:function",
        "rewards.py:score": "Without the ending: rewards:score",
        "broken:score": r"cannot be imported: ZeroDivisionError: division by zero \(.*broken.py, line 2, .*y = x / 0",
        "needs:score": "cannot be imported: ModuleNotFoundError: No module named 'nothing_of.*needs.py, line 1",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_reward(name)
    for name, said in {
        "few": r"returned shape \(1,\) for 4 dialogues",
        "odd": "gave nan to 4 of 4 dialogues.*The first such reply: 'a'",
        "none": "function none returned",
        "fails": r"fails failed: AttributeError: 'Turn' object has no attribute 'txt' \(.*rewards.py, line 15, in",
    }.items():
        with pytest.raises(ValueError, match=said):
            ask(load_reward(f"rewards:{name}")[0], REPLIES)
    with pytest.raises(ValueError, match="The reward is missing. Give --pm"):
        train_ppo(config(pm=""), prompts=PROMPTS, lm=toy_lm())
    with pytest.raises(ValueError, match="both --pm and --reward"):
        train_ppo(config(pm="x", reward="rewards:score"), prompts=PROMPTS, lm=toy_lm())


def test_a_function_that_ends_the_program_is_told_like_one_that_fails() -> None:
    """Planted: only Exception caught, so that the command ends with the function's own exit code and says nothing."""

    def leaves(dialogues: list[Dialogue]) -> None:
        sys.exit(3)

    with pytest.raises(ValueError, match="leaves failed: SystemExit: 3"):
        ask(leaves, REPLIES)


def test_a_reward_in_memory_is_part_of_the_run(tmp_path: Path) -> None:
    """Planted: only what the config names is hashed, so that another reward gets the first one's finished run."""
    lm = toy_lm()

    def twice(by: int) -> Any:
        return lambda dialogues: [by * len(d.last.text) for d in dialogues]

    def train(name: str = "run", policy: Any = lm, **reward: Any) -> Any:
        c = config(tmp_path / name, pm="", steps=1)
        return train_ppo(c, prompts=PROMPTS, eval_prompts=PROMPTS[:1], lm=policy, **reward)

    train(reward_fn=twice(2))
    train(reward_fn=twice(2))
    other: tuple[dict[str, Any], ...] = (
        {"reward_fn": twice(3)},
        {"reward_fn": len},
        {"pm": toy_pm(lm)},
        {"reward_fn": twice(2), "policy": toy_lm(1)},
        {"reward_fn": twice(2), "test_pms": {"judge": toy_pm(lm)}},
    )
    for given in other:
        with pytest.raises(ValueError, match="another config"):
            train(**given)
    found = [reward_identity(toy_pm(lm, seed), None)["reward"] for seed in (1, 2, 1)]
    assert found[0] == found[2] != found[1]


def test_a_function_may_give_any_form_of_numbers() -> None:
    for given in ([1, 2, 3, 4], (1.0, 2, 3, 4), np.arange(1, 5), torch.arange(1.0, 5.0)):
        assert ask(lambda d, given=given: given, REPLIES).tolist() == [1, 2, 3, 4]


# A server


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """Start a server that answers each request with the next of some (status, body), the last one for ever."""
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Any) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, body))
                status, answer = answers[min(len(asked), len(answers)) - 1]
                answer = answer(body["dialogues"]) if callable(answer) else answer
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/judge", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def lengths(dialogues: list[dict[str, Any]]) -> dict[str, Any]:
    return {"scores": [len(d["messages"][-1]["content"]) % 5 for d in dialogues]}


def test_a_server_is_the_reward(serve: Any, here: Path) -> None:
    """The same run as by the function. Planted: parts of a batch joined in the order of their answers."""
    url, asked = serve((200, lengths))
    one, two = run(here / "one", url), run(here / "two", "rewards:score")
    assert one.summary()["numbers"] == two.summary()["numbers"]
    path, body = asked[0]
    assert path == "/judge" and body["dialogues"][0]["messages"][0] == {"role": "user", "content": "Hi"}
    assert body["dialogues"][0]["text"].startswith("\n\nHuman: Hi\n\nAssistant: ")
    many = [Dialogue().ask("x").reply("y" * (i % 5)) for i in range(100)]
    assert RewardServer(url)(many).tolist() == [i % 5 for i in range(100)] and len(asked[-1][1]["dialogues"]) <= 32


def test_a_server_is_asked_again_and_its_faults_are_told(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", 0.001)
    url, asked = serve((500, {"error": "busy"}), (503, {}), (200, lengths))
    assert RewardServer(url)(REPLIES).tolist() == [1, 2, 3, 4] and len(asked) == 3
    for answer, said in (
        ({"scores": [1.0]}, "asked about 4 dialogues and answered with 1 scores"),
        ({"rewards": [1, 2, 3, 4]}, "answered with rewards.*Expected"),
        ({"scores": [1, 2, 3, "4"]}, "one number per dialogue"),
    ):
        with pytest.raises(Refused, match=said):
            ask(RewardServer(serve((200, answer))[0]), REPLIES)
    with pytest.raises(Refused, match="HTTP 404.*Check the address[.]"):
        ask(RewardServer(serve((404, {"detail": "no"}))[0]), REPLIES)
    monkeypatch.setattr(client, "TRIES", 2)
    with pytest.raises(ServerError, match="gives no answer: .*2 attempts"):
        ask(RewardServer("http://127.0.0.1:9/judge"), REPLIES)
