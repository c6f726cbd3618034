"""RemoteLM against a server of others, on loopback: llama.cpp (xllamacpp), which answers what it knows and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from truing.models import client
from truing.models.lm import LM
from truing.models.load import smollm2_file
from truing.models.remote import RemoteLM
from truing.types import Dialogue

pytestmark = pytest.mark.slow
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


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*client.KEYS, "TRUING_CONCURRENCY", "TRUING_REQUESTS_PER_MINUTE"):
        monkeypatch.delenv(variable, raising=False)


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
