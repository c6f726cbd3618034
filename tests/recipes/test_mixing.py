"""One preference model for two toy tasks: mixing costs neither (spec, §19 row 26)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import PMMixing
from truing.data.comparisons import conversation_key
from truing.models import family
from truing.models.lm import LM
from truing.recipes.mixing import apart, numbers_of, tldr_mixing
from truing.report.page import build
from truing.runs import Run
from truing.types import Comparison, Dialogue

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
NOISE = 0.15
"""Share of choices that go the wrong way: a perfect judge is right on the others."""


def toy() -> LM:
    tokenizer = family.byte_tokenizer()
    model = family.new_model("llama", layers=2, width=32, heads=2, vocab_size=len(tokenizer), seed=3)
    return LM(model, tokenizer, name="toy")


def chosen(rng: random.Random, prompt: str, better: str, worse: str, i: int) -> Comparison:
    if rng.random() < NOISE:
        better, worse = worse, better
    return Comparison(Dialogue().ask(prompt), better, worse, id=str(i))


def dialogues(n: int, seed: int = 0) -> list[Comparison]:
    """The longer reply is the better one."""
    rng = random.Random(seed)
    asks = [f"May I {rng.choice(['eat', 'see', 'buy'])} item {i}?" for i in range(n)]
    return [chosen(rng, ask, f"yes, {rng.choice(['do', 'go'])} it and enjoy", "no", i) for i, ask in enumerate(asks)]


def summaries(n: int, seed: int = 1) -> list[Comparison]:
    """The shorter summary is the better one: the tasks contradict each other where the prompt is not read."""
    rng = random.Random(seed)
    words = [rng.choice(["tea", "rain", "cake"]) for _ in range(n)]
    told = [(f"Summarise: post {i} of {word}", word, f"{word}, and it is of {word}") for i, word in enumerate(words)]
    return [chosen(rng, ask, short, long, i) for i, (ask, short, long) in enumerate(told)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = tldr_mixing(
        config(tmp_path_factory.mktemp("study") / "run"), hh=dialogues(140), tldr=summaries(140), lm=toy()
    )
    assert isinstance(found, Run) and found.done
    return found


def config(out: Path, **options: Any) -> PMMixing:
    training = {"pm_learning_rate": 3e-3, "pm_batch_size": 16, "pm_epochs": 2, "eval_share": 0.3}
    return PMMixing(init="toy", hh=["unused"], tldr=["unused"], out=out, **training, **QUICK, **options)


def test_the_mixed_model_is_as_good_on_both_tasks(study: Run):
    numbers = study.summary()["numbers"]
    for task in ("hh", "tldr"):
        single, both = numbers[f"accuracy/{task}/{task}"], numbers[f"accuracy/{task}/both"]
        assert single["value"] > 0.7 and both["value"] > 0.7, "both have learned the task (a perfect judge: 0.85)"
        change, error = numbers[f"change/{task}"], numbers[f"change_error/{task}"]["value"]
        assert both["value"] - single["value"] == pytest.approx(change["value"], abs=1e-12)
        assert change["value"] >= -error, "within one standard error of the model of this task alone"
        other = numbers[f"accuracy/{task}/{'tldr' if task == 'hh' else 'hh'}"]
        assert other["value"] < 0.4, "the tasks contradict each other, so this is no one rule for both"
        assert change["low"] is not None and change["high"] >= 0


def test_the_three_models_are_trained_and_measured_on_what_they_should(study: Run):
    numbers = study.summary()["numbers"]
    rows = {name: Run.load(study.path / f"pm-{name}").summary()["numbers"]["train_pairs"]["value"] for name in
            ("hh", "tldr", "both")}  # fmt: skip
    assert rows["both"] == rows["hh"] + rows["tldr"] == numbers["pairs/hh"]["value"] + numbers["pairs/tldr"]["value"]
    held = {numbers[f"accuracy/{t}/{a}"]["n"] for t in ("hh", "tldr") for a in ("hh", "tldr", "both")}
    assert len(held) <= 2 and min(held) >= 40
    build(study.path)
    page = (study.path / "report.html").read_text()
    assert "One preference model for two tasks" in page and "against the one trained on them alone" in page
    assert (study.path / "figures" / "mixing.png").exists()


def test_numbers_by_hand():
    rows = {"hh": dialogues(4), "tldr": summaries(2)}
    right = {
        "hh": {"hh": np.array([1, 1, 0, 0.0]), "tldr": np.array([0, 1.0])},
        "tldr": {"hh": np.array([0, 0, 0, 1.0]), "tldr": np.array([1, 1.0])},
        "both": {"hh": np.array([1, 1, 1, 0.0]), "tldr": np.array([1, 0.0])},
    }
    found = numbers_of(right, rows)
    assert found["accuracy/hh/both"].value == 0.75 and found["accuracy/hh/tldr"].value == 0.25
    assert found["change/hh"].value == 0.25 and found["change/tldr"].value == -0.5
    assert found["change_error/hh"].value == pytest.approx(np.std([0, 0, 1, 0], ddof=1) / 2)


def test_a_stopped_study_says_so_and_goes_on(tmp_path: Path):
    given: dict[str, Any] = {"hh": dialogues(10), "tldr": summaries(10), "lm": toy()}
    stopped = tldr_mixing(config(tmp_path / "run", max_time=0.0), **given)
    assert isinstance(stopped, Run) and not stopped.done and "Stopped before pm-hh" in stopped.summary()["notes"][0]
    assert tldr_mixing(config(tmp_path / "run"), **given).done  # type: ignore[union-attr]


def test_what_cannot_be_split_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="eval_share is 0"):
        tldr_mixing(PMMixing(init="toy", hh=[], tldr=[], eval_share=0.0), hh=dialogues(9), tldr=summaries(9))
    with pytest.raises(ValueError, match="no summaries comparisons"):
        tldr_mixing(config(tmp_path), hh=dialogues(9), tldr=[])
    with pytest.raises(ValueError, match="no model named 'nosuch'"):
        tldr_mixing(PMMixing(init="nosuch", hh=[], tldr=[], out=tmp_path / "no"), hh=dialogues(9), tldr=summaries(9))
    assert not (tmp_path / "no").exists()


def test_what_is_held_out_of_one_task_is_not_trained_on_for_the_other():
    a, b, notes = dialogues(4), summaries(3), list[str]()
    parts = apart({"hh": (a[:3], a[3:]), "tldr": ([*b, a[3], replace(a[0], chosen="else")], a[:1])}, notes)
    keys = {conversation_key(c) for _, held in parts.values() for c in held}
    assert parts["tldr"] == (b, a[:1]) and parts["hh"] == (a[1:3], a[3:])
    assert not any(conversation_key(c) in keys for train, _ in parts.values() for c in train)
    assert "3 comparisons to train on" in notes[0]
