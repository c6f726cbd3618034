"""RemoteLM against servers of others, on loopback: llama.cpp and `transformers serve`, which drop fields with 200."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import toy

from truing.models.lm import LM
from truing.models.load import smollm2_file
from truing.models.remote import RemoteLM
from truing.types import Dialogue

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_limits")]
ASK = Dialogue().ask("Is 2 + 2 = 4? Answer Yes or No.")
PAIR = ("The capital of France is", " Paris")


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    xllamacpp = pytest.importorskip("xllamacpp", reason="no foreign server: pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_file())
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.port = 1024, 2, 1, 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1#smollm2"
    del server


def test_llama_cpp_samples_more_replies_than_it_has_slots(name: str) -> None:
    (found,) = RemoteLM(name, concurrency=2).sample([ASK], 3, max_tokens=8, seed=1)
    assert len(found) == len({s.seed for s in found}) == 3 and len({s.text for s in found}) > 1
    assert all(s.logprob is not None and s.logprob < 0 and 1 <= (s.num_tokens or 0) <= 8 for s in found)


def test_llama_cpp_scores_one_token_as_the_same_weights_do_here(name: str) -> None:
    """Quantised arithmetic there, float32 here: alike in tenths of a nat, so wrong tokens and units are caught."""
    remote, lm = RemoteLM(name, concurrency=2), LM.load("smollm2")
    (there,), (here,) = remote.score([PAIR]), lm.score([PAIR])
    assert there.num_tokens == here.num_tokens == 1 and there.logprob == pytest.approx(here.logprob, abs=0.2)
    labels = ["Yes", "No"]
    mine, theirs = lm.label_logprobs([ASK], labels), remote.label_logprobs([ASK], labels)
    assert theirs[0].tolist() == pytest.approx(mine[0].tolist(), abs=0.4), "the template, too, is the same"


def test_llama_cpp_ignores_echo_and_that_is_noticed(name: str) -> None:
    with pytest.raises(ValueError, match=r"gives no log-probabilities of a prompt.*vLLM"):
        RemoteLM(name).score(["Hello there"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with a toy that has a chat template."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="no foreign server: pip install 'transformers[serving]'")
    folder = tmp_path_factory.mktemp("served") / "toy"
    lm = toy()
    lm.model.generation_config.do_sample = True  # else it takes the likeliest tokens whatever temperature is asked for
    lm.save(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.parent / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", "--dtype", "float32"], stdout=said, stderr=said, env=env
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1#{folder}"
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"transformers serve did not come up: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("prompt", [ASK, "The capital of France is"], ids=["chat", "text"])
def test_transformers_serve_samples_without_logprobs(plain: str, prompt: Dialogue | str) -> None:
    """It drops n, logprobs and echo with status 200; its random numbers are one stream, so one request at a time."""
    remote = RemoteLM(plain, concurrency=1)
    (found,) = remote.sample([prompt], 3, max_tokens=8, seed=1)
    assert (
        len(found) == len({s.seed for s in found}) == 3 and [s.seed for s in found] == remote.seeds([prompt], 3, 1)[0]
    )
    assert len({s.text for s in found}) > 1, "a seed each, so not the same reply three times"
    assert all(s.logprobs is None and s.logprob is None and s.num_tokens is None for s in found)
    assert {s.finish for s in found} <= {"stop", "length"}
    (again,) = RemoteLM(plain, concurrency=1).sample([prompt], 3, max_tokens=8, seed=1)
    assert [s.text for s in again] == [s.text for s in found], "it takes seeds"
    (other,) = RemoteLM(plain, concurrency=1).sample([prompt], 3, max_tokens=8, seed=2)
    assert [s.text for s in other] != [s.text for s in found]
    (greedy,) = remote.sample([prompt], 2, max_tokens=4, temperature=0)
    assert greedy[0].text == greedy[1].text


def test_transformers_serve_gives_no_logprobs_and_that_is_said(plain: str) -> None:
    remote = RemoteLM(plain, concurrency=1)
    for items in (["Hello there"], [("Hello", " you")]):
        with pytest.raises(ValueError, match="gives no log-probabilities of a prompt.*`transformers serve` none"):
            remote.score(items)
    with pytest.raises(
        ValueError, match=r"gives no log-probabilities of a reply that begins with 'Yes', 'No' to .Is 2"
    ):
        remote.label_logprobs([ASK], ["Yes", "No"])
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        remote.label_logprobs(["2 + 2 ="], [" 4", " 5"])
