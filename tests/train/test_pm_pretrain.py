"""Preference model pretraining: its learning rate, its loss on labelled replies, and what pm train takes over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truing.configs import PMPretrain, PMTrain
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.runs import Run
from truing.train.pm import train_pm
from truing.train.pm_loss import pair_losses
from truing.train.pm_pretrain import FINETUNE, PRETRAIN, pretrain_pm, with_learning_rate
from truing.types import Comparison, Dialogue

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


def toy() -> LM:
    tokenizer = family.byte_tokenizer()
    return LM(family.new_model("llama", layers=2, width=32, heads=2, vocab_size=len(tokenizer)), tokenizer, name="toy")


def pairs(n: int, first: int = 0) -> list[Comparison]:
    """The reply that says yes was voted up."""
    asks = [Dialogue().ask(f"Is {i} even?") for i in range(first, first + n)]
    return [Comparison(ask, "yes, it is", "no", source="votes", id=str(i)) for i, ask in enumerate(asks)]


def test_the_learning_rate_is_a_tenth_of_the_language_models():
    def config(**options: Any) -> PMPretrain:
        return PMPretrain(init="toy", data=[], **options)

    assert (PRETRAIN, FINETUNE) == (0.1, 0.01)
    assert with_learning_rate(config()).learning_rate == PMTrain(init="toy", data=[]).learning_rate
    found = with_learning_rate(config(lm_learning_rate=6e-4))
    assert found.learning_rate == pytest.approx(6e-5)
    assert with_learning_rate(found) == found, "a run's config.yaml gives the same again"
    for wrong in ({"lm_learning_rate": 6e-4, "learning_rate": 1e-3}, {"lm_learning_rate": -1.0}):
        with pytest.raises(ValueError, match="learning_rate is"):
            with_learning_rate(config(**wrong))
    assert config().binarised and config().epochs == 1 and config().max_length == 1024


def test_a_binarised_pair_is_two_labelled_replies():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=(2, 9))
    labelled = [math.log1p(math.exp(-r)) for r in good], [math.log1p(math.exp(r)) for r in bad]  # −log σ(±r)
    found = pair_losses(torch.tensor(good), torch.tensor(bad), binarised=True)
    np.testing.assert_allclose(found.numpy(), np.sum(labelled, axis=0), rtol=1e-12)
    shifted = pair_losses(torch.tensor(good + 1), torch.tensor(bad + 1), binarised=True)
    assert not torch.allclose(found, shifted), "unlike a ranked pair's, this loss knows a zero"


def test_pretraining_learns_both_ways_and_training_goes_on_from_it(tmp_path: Path):
    held = pairs(12, first=500)
    runs = {}
    for binarised in (True, False):
        config = PMPretrain(init="toy", data=[], learning_rate=3e-3, batch_size=8, binarised=binarised, **QUICK)
        config.out = tmp_path / f"binarised-{binarised}"
        found = pretrain_pm(config, comparisons=pairs(64), eval_comparisons=held, lm=toy())
        assert isinstance(found, Run) and found.verb == "pm pretrain"
        runs[binarised] = found
        assert found.summary()["numbers"]["accuracy"]["value"] == 1.0
    told = {b: PreferenceModel.load(run.path) for b, run in runs.items()}
    dialogues = [d for c in held for d in (c.chosen_dialogue, c.rejected_dialogue)]
    raw = told[True].score(dialogues, centred=False)
    assert (raw[::2] > 0).all() and (raw[1::2] < 0).all(), "good replies score above 0, bad ones below"
    config = PMTrain(init=str(runs[True].path), data=[], learning_rate=1e-9, batch_size=8, **QUICK)
    config.out = tmp_path / "after"
    after = train_pm(config, comparisons=pairs(16, first=900), eval_comparisons=held)
    assert isinstance(after, Run) and after.verb == "pm train"
    np.testing.assert_allclose(PreferenceModel.load(after.path).score(dialogues, centred=False), raw, atol=1e-3)
