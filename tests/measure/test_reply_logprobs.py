"""A language model's own taste in comparisons, against one plain forward pass a reply (2204.05862 App B.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from truing.measure.reply_logprobs import pair_numbers, pair_rows, too_long
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.models.reply_means import reply_means
from truing.text import to_hh
from truing.types import Dialogue


@pytest.fixture(scope="module")
def lm() -> LM:
    model = new_model("llama", layers=2, width=32, heads=2, max_positions=64, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6)
    return LM(model, byte_tokenizer())


def test_the_mean_is_over_the_replys_tokens_alone(lm: LM):
    talks = [Dialogue().ask("Hi").reply(text) for text in ("yes", "no, never", "")]
    found = reply_means(lm, talks)
    for talk, mean in zip(talks, found, strict=True):
        ids = [256, *to_hh(talk.prompt).encode(), *(f" {talk.last.text}".encode() if talk.last.text else b" ")]
        start = 1 + len(to_hh(talk.prompt).encode())
        with torch.no_grad():
            logprobs = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids))]
        assert mean == pytest.approx(np.mean(wanted), abs=1e-4)


def test_accuracy_is_the_share_of_higher_means_and_a_tie_counts_half(lm: LM):
    """Catches sums in place of means: then the shorter reply nearly always wins."""
    pairs = [[Dialogue().ask(f"q{i}").reply(a), Dialogue().ask(f"q{i}").reply(b)] for i, (a, b) in enumerate(PAIRS)]
    rows = pair_rows(lm, pairs)
    means = [[reply_means(lm, [d])[0] for d in pair] for pair in pairs]
    wanted = [0.5 if a == b else float(a > b) for a, b in means]
    numbers, _ = pair_numbers(pairs, 0)(rows)
    assert numbers["accuracy"].value == pytest.approx(np.mean(wanted)) and 0 < np.mean(wanted) < 1
    assert numbers["accuracy"].low <= numbers["accuracy"].value <= numbers["accuracy"].high
    sums = [
        m * (len(d.last.text) + 1) for pair, ms in zip(pairs, means, strict=True) for d, m in zip(pair, ms, strict=True)
    ]
    by_sum = [float(a > b) for a, b in np.reshape(sums, (-1, 2))]
    assert by_sum != wanted, "these replies tell a mean from a sum"
    assert numbers["gap"].value == pytest.approx(numbers["chosen"].value - numbers["rejected"].value)


PAIRS = [
    ("yes", "no no no no"),
    ("a longer reply", "b"),
    ("same", "same"),
    ("zzzz", "the"),
    ("ok then", "ko"),
    ("1", "12"),
]


def test_a_reply_that_does_not_fit_is_named(lm: LM):
    pairs = [[Dialogue().ask("a").reply("b")] * 2, [Dialogue().ask("a").reply("b" * 60)] * 2]
    assert too_long(lm, pairs[:1]) is None
    place, words = too_long(lm, pairs) or (None, "")
    assert place == 1 and "reads at most 64" in words
