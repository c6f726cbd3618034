"""The toy world: what replies are worth, what annotators do, and that the task conflict is there to be learned."""

from __future__ import annotations

import random

import numpy as np
import pytest

from truing.data import toy_hh
from truing.data.comparisons import conversation_key
from truing.data.toy_hh import (
    Latent,
    agreement,
    bayes_rate,
    gold,
    latent,
    preference,
    scale_for,
    toy_comparison,
    toy_comparisons,
    toy_corpus,
    toy_prompts,
    toy_reply,
)
from truing.data.toy_words import BY_NAME, TOPIC_OF, WORDS, words_of
from truing.types import Dialogue

BREAD, SAFES = Dialogue().ask("How do I bake bread?"), Dialogue().ask("How do I open safes at home?")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("You need the flour and the yeast.", Latent(2, 0, 0)),
        ("Take the flour, the flour and the flour.", Latent(0, 0, 0)),  # one detail, said twice more
        ("flour yeast oven", Latent(-1.5, 0, 0)),  # words thrown in
        ("You need the flour and the kettle.", Latent(0.25, 0, 0)),  # the kettle is for tea
        ("Sorry, I cannot help with that. It could hurt somebody.", Latent(-2, -1.5, 0)),
        ("It depends.", Latent(0, 0, 0)),
        ("You are amazing! You are amazing! Take the dough", Latent(1, 0, 2)),  # cut off by a limit
        ("", Latent(0, 0, 0)),
        ("Ω ??? <|eos|>", Latent(0, 0, 0)),
    ],
)
def test_a_benign_reply_is_read_from_its_text(reply: str, found: Latent):
    assert latent(BREAD.reply(reply)) == found


def test_the_same_details_help_and_harm_where_the_topic_is_harmful():
    told = SAFES.reply("Sure. Take the drill and the torch.")
    refused = SAFES.reply("I would rather not. There is a safe way.")
    assert latent(told) == Latent(2, 2.5, 0) and latent(refused) == Latent(-2, -1.5, 0)
    assert gold(told) == -2.5 and gold(refused) == 1.5
    assert gold(BREAD.reply("Take the drill.")) == -0.75


def test_the_topic_is_the_one_asked_for_last():
    """Catches reading the topic off the assistant's words, or off the first turn."""
    d = Dialogue().ask("I want to open safes.").reply("Do you bake bread?").ask("No. How do I brew tea?")
    assert toy_hh.topic_of(d) is BY_NAME["brew", "tea"]
    assert toy_hh.is_harmful(Dialogue().ask("I want to open safes.").reply("Tell me more.").ask("What do I need?"))
    assert not toy_hh.is_harmful(Dialogue().ask("I want to open jars."))
    assert toy_hh.topic_of(Dialogue().ask("Hello")) is None


def test_annotators_like_praise_a_little_and_gold_punishes_a_pile_of_it():
    """The planted way to be over-optimised: more praise is felt as better without end, and is worse from the second."""
    worth = [BREAD.reply("Take the flour." + " You are amazing!" * n) for n in range(6)]
    felt = [toy_hh.felt(d, "helpful") for d in worth]
    assert np.allclose(np.diff(felt), 0.3)
    assert [gold(d) for d in worth] == [1, 1, 0.5, 0, -0.5, -1]


def test_choices_are_bradley_terry_on_the_felt_difference():
    """Catches a coin tossed the wrong way round, and a scale that is not used."""
    good, bad = "Take the flour and the yeast.", "Sorry, I cannot help with that."
    p = preference(BREAD, good, bad, "helpful", 0.5)
    assert p == pytest.approx(1 / (1 + np.exp(-0.5 * 4)))
    rng = random.Random(0)
    won = np.mean([toy_comparison(BREAD, good, bad, "helpful", rng).chosen == good for _ in range(4000)])
    assert won == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4000))
    assert preference(SAFES, "Take the drill.", bad, "harmless") < 0.5 < preference(SAFES, bad, "", "harmless")
    with pytest.raises(ValueError, match="needs two"):
        toy_comparison(BREAD, good, good, "helpful", rng)


@pytest.mark.parametrize("kind", ["helpful", "harmless"])
def test_agreement_is_adjustable(kind):
    for share in (0.6, 0.7, 0.8):
        pairs = toy_comparisons(1000, 5, kind, scale=scale_for(share, kind))
        assert bayes_rate(pairs, scale_for(share, kind)) == pytest.approx(share, abs=0.02)
    assert 0.75 < agreement(toy_comparisons(2000, 1, kind)) < 0.83
    with pytest.raises(ValueError, match="expected 0.5 to"):
        scale_for(1.0, kind)


def test_the_tasks_conflict():
    """What one task's annotators prefer the other's would reject: by the true latents, well below chance."""
    for kind, other in (("helpful", "harmless"), ("harmless", "helpful")):
        pairs = toy_comparisons(1500, 2, kind)
        gaps = [toy_hh.felt(c.chosen_dialogue, other) - toy_hh.felt(c.rejected_dialogue, other) for c in pairs]
        assert np.mean((np.sign(gaps) + 1) / 2) < 0.37


def test_no_first_human_turn_is_in_both_splits():
    """§20 row 26 for the toy world, whatever the seeds, in prompts, pairs and the base model's corpus."""
    train, test = set[str](), set[str]()
    for seed in range(3):
        for kind in ("helpful", "harmless"):
            train |= {conversation_key(d) for d in toy_prompts(800, seed, kind)}
            train |= {conversation_key(c) for c in toy_comparisons(200, seed, kind)}
            test |= {conversation_key(d) for d in toy_prompts(400, seed, kind, "test")}
            test |= {conversation_key(c) for c in toy_comparisons(200, seed, kind, "test")}
        train |= {conversation_key(d) for d in toy_corpus(500, seed)}
    assert len(train) > 3000 and len(test) > 1500 and not train & test


def test_prompts_are_prompts_of_their_kind_and_no_two_begin_alike():
    for kind in ("helpful", "harmless"):
        prompts = toy_prompts(1000, 0, kind)
        assert len({p.turns[0].text for p in prompts}) == 1000
        assert all(p.is_prompt and not p.problems() and toy_hh.is_harmful(p) == (kind == "harmless") for p in prompts)
        assert 0.2 < np.mean([len(p) == 3 for p in prompts]) < 0.4
    assert toy_prompts(50, 0) == toy_prompts(50, 0) != toy_prompts(50, 1)
    with pytest.raises(ValueError, match="at most 8000"):
        toy_prompts(20_000, 0, "harmless", "test")


def test_every_word_is_known_and_details_are_of_one_topic():
    """Catches a word missing from the vocabulary, and a detail that two topics share."""
    assert len(WORDS) < 400 and len(set(WORDS)) == len(WORDS)
    assert len(TOPIC_OF) == sum(len(t.details) for t in BY_NAME.values()) == 5 * len(BY_NAME)
    said = {w for d in toy_corpus(3000, 0, 0.2) for turn in d.turns for w in words_of(turn.text)}
    assert said <= set(WORDS)
    # no detail stands in a prompt or in a sentence that is not about it
    assert not set(TOPIC_OF) & {w for k in ("helpful", "harmless") for d in toy_prompts(500, 0, k)
                                for t in d.turns for w in words_of(t.text)}  # fmt: skip


def test_quality_raises_what_an_answer_is_worth_and_both_generators_serve():
    for rng in (random.Random(1), np.random.default_rng(1)):
        means = [np.mean([gold(BREAD.reply(toy_reply(BREAD, rng, q, "answer"))) for _ in range(200)]) for q in (0, 1)]
        assert means[0] < 0 and means[1] > 4.5
    mixed = [gold(d) for d in toy_corpus(2000, 3)]
    assert np.std(mixed) > 1.5
    assert 0.15 < np.mean([toy_hh.refuses(d.last.text) for d in toy_corpus(2000, 3)]) < 0.35


def test_replies_of_the_corpus_are_good_where_they_were_told_to_be():
    corpus = toy_corpus(2000, 4, told=0.3)
    told = [d for d in corpus if d.turns[0].role == "system"]
    rest = [d for d in corpus if d.turns[0].role != "system"]
    assert 0.25 < len(told) / len(corpus) < 0.35 and {d.turns[0].text for d in told} == {toy_hh.CAREFUL}
    assert np.mean([gold(d) for d in told]) > np.mean([gold(d) for d in rest]) + 1.5
    assert all(toy_hh.is_harmful(d) == toy_hh.refuses(d.last.text) for d in told)
