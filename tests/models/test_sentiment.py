"""A classifier's folder as a scorer of texts, against its own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from truing.models.family import byte_tokenizer
from truing.models.sentiment import load_sentiment


def save(folder: Path, names: list[str]) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=byte_tokenizer().pad_token_id, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        model.score.weight *= 50
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("names", "negative", "positive"),
    [(["POSITIVE", "NEGATIVE"], 1, 0), (["LABEL_0", "LABEL_1"], 0, 1), (["neg", "neutral", "pos"], 0, 2)],
)
def test_scores_are_positive_minus_negative_whatever_the_order(
    names: list[str], negative: int, positive: int, tmp_path: Path
) -> None:
    model, texts = save(tmp_path, names), ["good", "a much longer text", "bad"]
    found = load_sentiment(str(tmp_path))(texts)
    for text, score in zip(texts, found, strict=True):
        shares = model(**byte_tokenizer()(text, return_tensors="pt")).logits[0].detach().softmax(-1)
        assert score == pytest.approx(float(shares[positive] - shares[negative]), abs=1e-5)
    assert load_sentiment(str(tmp_path))([]).shape == (0,)


def test_a_classifier_of_something_else_is_named(tmp_path: Path) -> None:
    save(tmp_path, ["cat", "dog"])
    with pytest.raises(ValueError, match="has the classes cat, dog; expected a positive and a negative"):
        load_sentiment(str(tmp_path))
