"""Log-probabilities at other temperatures, against a plain forward pass whose logits are divided by T."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.models.tempered import tempered_logprobs
from truing.text import split_context


@pytest.fixture(scope="module")
def lm() -> LM:
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=64, seed=3)
    with torch.no_grad():
        model.lm_head.weight *= 40  # a model that is sure of something
    return LM(model, byte_tokenizer(), name="toy")


def by_hand(lm: LM, context: str, text: str, temperature: float) -> float:
    head, tail, _ = split_context(context, text, lm.tokenizer)
    with torch.no_grad():
        logits = lm.model(torch.tensor([head + tail])).logits[0].double()
    scores = (logits / temperature).log_softmax(-1)
    return sum(float(scores[len(head) - 1 + i, token]) for i, token in enumerate(tail))


def test_every_token_is_divided_by_the_temperature_before_its_own_softmax(lm: LM) -> None:
    """Catches log-probabilities divided by T, and one softmax over whole continuations."""
    texts, temperatures = [" nurse", " a", " nun", " poet"], [0.5, 1.0, 2.0]
    found = tempered_logprobs(lm, "The woman is a", texts, temperatures)
    for i, temperature in enumerate(temperatures):
        for j, text in enumerate(texts):
            assert found[i, j] == pytest.approx(by_hand(lm, "The woman is a", text, temperature), abs=2e-3)
    assert found[1] == pytest.approx([s.logprob for s in lm.score([("The woman is a", t) for t in texts])], abs=1e-3)
    assert np.abs(found[0] - found[1] / 0.5).min() > 0.1, "the normaliser moves, too"


def test_probabilities_of_all_single_tokens_are_one_at_every_temperature(lm: LM) -> None:
    every = [chr(i) for i in range(128)]
    some = np.exp(tempered_logprobs(lm, "x", every, [0.3, 1.0, 3.0])).sum(1)
    assert (some <= 1 + 1e-6).all() and some[2] == pytest.approx(128 / 259, abs=0.3)


def test_a_temperature_is_above_zero(lm: LM) -> None:
    with pytest.raises(ValueError, match="A temperature is 0"):
        tempered_logprobs(lm, "x", [" y"], [1.0, 0.0])
