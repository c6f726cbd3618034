"""A sentiment classifier in a Hugging Face folder, as a score of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from truing.models.load import find_model, load_tokenizer, quiet

BATCH = 32
NAMES = (("negative", "neg", "label_0"), ("positive", "pos", "label_1"))


def load_sentiment(name: str, device: str | torch.device = "cpu") -> Callable[[Sequence[str]], np.ndarray]:
    """Scores float64 [N] of texts: P(positive) − P(negative), from −1 to 1.

    The classes are found by their names (negative or LABEL_0, positive or LABEL_1); others, say neutral, count
    towards neither. Raises UnknownModel, or ValueError if it has no two such classes.
    """
    source = find_model(name)
    tokenizer = load_tokenizer(source)
    try:
        with quiet():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(source)
    except (OSError, ValueError) as problem:
        first = str(problem).splitlines()[0]
        raise ValueError(f"--sentiment {name} is no classifier that can be read: {first}") from None
    model = loaded.to(device).eval()
    places = {label.lower(): i for i, label in model.config.id2label.items()}
    found = [next((places[n] for n in names if n in places), None) for names in NAMES]
    if None in found or found[0] == found[1]:
        known = ", ".join(model.config.id2label.values())
        raise ValueError(f"--sentiment {name} has the classes {known}; expected a positive and a negative one.")
    negative, positive = found

    @torch.no_grad()
    def score(texts: Sequence[str]) -> np.ndarray:
        out = [np.zeros(0)]
        for at in range(0, len(texts), BATCH):
            batch = tokenizer(list(texts[at : at + BATCH]), return_tensors="pt", padding=True, truncation=True)
            shares = model(**batch.to(device)).logits.float().softmax(-1)
            out.append((shares[:, positive] - shares[:, negative]).double().cpu().numpy())
        return np.concatenate(out)

    return score
