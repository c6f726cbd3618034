from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from truing.collect.arms import (
    ArmSpec,
    Offer,
    add_arm,
    arms,
    draw_arms,
    draw_sides,
    install,
    parse_arm,
    read_arm,
    reply_seed,
    set_weight,
    weights,
)
from truing.collect.migrate import upgrade
from truing.collect.store import Refused, Store


@pytest.fixture
def store(tmp_path):
    made = Store(str(tmp_path / "store.db"))
    upgrade(made)
    yield made
    made.close()


def test_an_arm_on_the_command_line():
    offer = parse_arm(
        "rs=smollm2,best_of=16,pm=runs/pm,temperature=0.7,modes=redteam,weight=2,model_type=rejection sampling"
    )
    assert offer.name == "rs" and offer.weights == {"redteam": 2.0}
    assert offer.spec == ArmSpec("smollm2", best_of=16, pm="runs/pm", temperature=0.7, model_type="rejection sampling")
    remote = parse_arm("far=http://localhost:8000/v1#m").spec
    assert remote.remote and not remote.can_stream
    assert read_arm({"name": "x", "model": "m", "max_tokens": 7, "modes": ["rank"]}) == Offer(
        "x", ArmSpec("m", max_tokens=7), {"rank": 1.0}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smollm2", "expected NAME=MODEL"),
        ("a=m,temprature=1", "Did you mean 'temperature'"),
        ("a=m,temperature", "has no value"),
        ("a=m,max_tokens=many", "expected a whole number"),
        ("a=m,best_of=4", "needs a preference model"),
        ("a=m,format=xml", "expected chat or raw"),
        ("a=m,modes=helpful+fun", "expected some of helpful"),
        ("a=m,weight=-1", "expected 0 (retired) or more"),
        ("a=http://h/v1#m,top_k=5", "not a server's"),
        ("a=m,top_p=0", "above 0"),
    ],
)
def test_a_wrong_arm_says_what_is_right(text, said):
    with pytest.raises(ValueError) as error:
        parse_arm(text)
    assert said in str(error.value)


def test_weights_change_while_the_app_runs_and_specs_never(store):
    install(store, [parse_arm("one=m"), parse_arm("two=n,modes=helpful,weight=3")])
    with store.write() as db:
        one, two = arms(db)
        assert (one.name, two.name) == ("one", "two")
        assert weights(db, "helpful") == {one.id: 1.0, two.id: 3.0} and weights(db, "redteam") == {one.id: 1.0}
        set_weight(db, None, one.id, "helpful", 0)
        assert weights(db, "helpful") == {two.id: 3.0}
        with pytest.raises(Refused, match="Choose a new name"):
            add_arm(db, None, parse_arm("one=other"))
        with pytest.raises(Refused):
            set_weight(db, None, "f" * 32, "helpful", 1)
        with pytest.raises(Refused):
            set_weight(db, None, one.id, "fun", 1)
    install(store, [parse_arm("one=m,weight=5")])
    with store.read() as db:
        assert weights(db, "helpful") == {two.id: 3.0}, "a restart changes no weight that was set in the app"


def test_assignment_follows_the_weights_and_can_be_replayed():
    """redteam.md §13 row 2: 1,200 draws, chi-square against the weights, the same again from the seeds."""
    shares = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.0}
    drawn = [draw_arms(shares, 1, reply_seed(11, "someone", i), 0)[0] for i in range(1200)]
    counts = [drawn.count(arm) for arm in "abc"]
    assert sum(counts) == 1200
    assert chisquare(counts, np.array([1, 2, 5]) / 8 * 1200).pvalue > 0.01
    assert drawn == [
        draw_arms(dict(reversed(shares.items())), 1, reply_seed(11, "someone", i), 0)[0] for i in range(1200)
    ]
    with pytest.raises(Refused, match="No model is offered"):
        draw_arms({"d": 0.0}, 1, 5)


def test_sides_are_random():
    """hh.md §19 row 3: the share of A in 400 draws is 0.5 ± 0.05, and in more no coin is more even."""
    first = [draw_sides(2, reply_seed(3, i), 1, 0)[0] for i in range(400)]
    assert abs(first.count(0) / 400 - 0.5) <= 0.05
    many = [draw_sides(2, reply_seed(4, i), turn, 0)[0] for i in range(500) for turn in range(1, 9)]
    assert binomtest(many.count(0), len(many)).pvalue > 0.01
    assert {tuple(draw_sides(3, i, 1, 0)) for i in range(100)} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip


def test_seeds_of_replies_differ_and_are_what_servers_take():
    seeds = {reply_seed(9, turn, 0, slot, k) for turn in range(20) for slot in range(2) for k in range(16)}
    assert len(seeds) == 640 and all(0 <= seed < 2**31 for seed in seeds)


def test_the_text_of_an_arm():
    plain = ArmSpec("m", format="raw", prompt="one-shot").prompt_text
    assert plain.startswith("Human:") and plain.count("Assistant:") == 3 and plain.endswith("-----")
    assert ArmSpec("m", prompt="hhh").prompt_text.count("-----") >= 14
    said = ArmSpec("m", format="raw", prompt="hhh").settings
    assert "model" not in said and len(said["prompt_sha256"]) == 64
