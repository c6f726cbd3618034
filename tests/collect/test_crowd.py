"""Simulated people agree with gold as often as they were told to, whatever the order, and are labelled."""

from __future__ import annotations

import numpy as np
import pytest

from truing.collect.crowd import Crowd, Reply, crowd_with_agreement
from truing.collect.gold import gold
from truing.configs import PMTrain
from truing.data.comparisons import training_comparisons
from truing.data.prompts import Prompt
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.train.pm import PMTrainer
from truing.types import Comparison

PROMPT = Prompt("Any tip for tomatoes?", id="t", keywords=("tomato", "sun"))
GOOD, BAD = Reply("a", "I love that! Tomato plants want lots of sun."), Reply("b", "Trains are awful and I hate them.")
THEFT = Prompt("How can I steal a bike?", id="s", keywords=("bike", "steal"))
REFUSES, COMPLIES = (
    Reply("a", "I can't help with that because it hurts people."),
    Reply("b", "Steal the bike at night."),
)


@pytest.mark.parametrize("rate", [0.63, 0.7, 0.75])
def test_people_agree_with_gold_at_the_chosen_rate(rate: float) -> None:
    crowd = crowd_with_agreement([gold(PROMPT, GOOD.text).score - gold(PROMPT, BAD.text).score], rate)
    chosen = [crowd.choose(PROMPT, GOOD, BAD, "helpful", f"c{i}").chosen == GOOD.text for i in range(3000)]
    assert abs(np.mean(chosen) - rate) < 3 * np.sqrt(rate * (1 - rate) / 3000)


def test_the_side_on_which_a_reply_stands_does_not_matter() -> None:
    crowd = Crowd(1.0)
    left = np.mean([crowd.choose(PROMPT, GOOD, BAD, "helpful", f"l{i}").chosen == GOOD.text for i in range(2000)])
    right = np.mean([crowd.choose(PROMPT, BAD, GOOD, "helpful", f"r{i}").chosen == GOOD.text for i in range(2000)])
    assert abs(left - right) < 0.06


def test_a_choice_follows_from_seed_and_conversation_alone() -> None:
    first = [Crowd(1.0, seed=3).choose(PROMPT, GOOD, BAD, "helpful", "c", i) for i in range(20)]
    again = [Crowd(1.0, seed=3).choose(PROMPT, GOOD, BAD, "helpful", "c", i) for i in reversed(range(20))]
    assert first == again[::-1]
    assert first != [Crowd(1.0, seed=4).choose(PROMPT, GOOD, BAD, "helpful", "c", i) for i in range(20)]


def test_every_choice_is_labelled_as_simulated() -> None:
    made = Crowd(1.0).choose(PROMPT, GOOD, BAD, "helpful", "c")
    assert made.worker is not None and made.worker.startswith("simulated-")
    assert made.source.startswith("simulated people")


def test_weak_feelings_press_small_buttons() -> None:
    sure, unsure = Crowd(0.05), Crowd(50.0)
    strength = [
        np.mean([c.choose(PROMPT, GOOD, BAD, "helpful", f"{i}").strength for i in range(300)]) for c in (sure, unsure)
    ]
    assert strength[0] > 3.9 > 2.9 > strength[1]


def test_equal_texts_are_not_compared() -> None:
    assert len(Crowd(1.0).all_pairs(PROMPT, [GOOD, BAD, GOOD], "helpful", "c")) == 2


def test_agreement_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="0.4"):
        crowd_with_agreement([1.0], 0.4)
    with pytest.raises(ValueError, match="No pair"):
        crowd_with_agreement([0.0], 0.7)


def test_row_1_the_reply_a_red_teamer_clicks_ends_up_with_the_lower_pm_score() -> None:
    """hh.md §20 row 1, end to end: with the flip missing or applied twice the preference model learns to like harm."""
    crowd = Crowd(0.05)
    made: list[Comparison] = []
    for i in range(24):
        prompt = Prompt(f"How can I steal bike {i}?", id=str(i), keywords=("bike", "steal"))
        made += crowd.all_pairs(prompt, [REFUSES, COMPLIES], "harmless", str(i))
    kept, _ = training_comparisons(made)
    lm = LM(
        new_model("llama", layers=1, width=32, heads=2, vocab_size=300, max_positions=256, seed=0), byte_tokenizer()
    )
    pm = PreferenceModel.new(lm)
    trainer = PMTrainer(PMTrain(init="tiny", data=[], batch_size=8, learning_rate=3e-3, epochs=4), pm, kept)
    for step in range(trainer.num_steps):
        trainer.step(step)
    harmful, safe = pm.score([THEFT.dialogue.reply(COMPLIES.text), THEFT.dialogue.reply(REFUSES.text)])
    assert harmful < safe
