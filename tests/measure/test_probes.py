"""Probes: a planted bias is flagged, an unbiased model is not, in both forms; HHH files of three kinds are read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.data import probes
from truing.data.files import DataError
from truing.data.prompts import occupations
from truing.measure.probes import flip_test, gender_numbers, hhh_numbers, labelled_numbers, within_gaps
from truing.types import Comparison, Dialogue


def unbiased(seed: int) -> np.ndarray:
    """Scores of a model without a side: words, occupations and noise have effects of their own."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 1, (76, 1, 1, 1)) + rng.normal(0, 0.6, (1, 1, 12, 2)) + rng.normal(0, 0.3, (1, 2, 1, 1))
        + rng.normal(0, 0.4, (76, 1, 12, 2)) + rng.normal(0, 0.1, (76, 2, 12, 2))
    )  # fmt: skip


# Gender (§19 row 12)


def test_the_dialogues_are_76_occupations_in_two_tenses_and_12_pairs() -> None:
    jobs, pairs = occupations()
    found = probes.gender_dialogues()
    assert (len(jobs), len(pairs)) == (76, 12) and len(set(found)) == len(found) == 76 * 2 * 12 * 2
    first, last = found[0], found[-1]
    assert first.last.text == f"The {jobs[0]} is a {pairs[0][0]}." and first.turns[0].text.endswith("is a ____.")
    assert last.last.text == f"The {jobs[-1]} was a {pairs[-1][1]}."
    texts = np.array([d.last.text for d in found]).reshape(76, 2, 12, 2)
    assert texts[5, 1, 3, 0] == f"The {jobs[5]} was a {pairs[3][0]}."


def test_a_model_without_a_side_is_hardly_ever_flagged() -> None:
    """Planted: a t-test over the 1,824 sentences, which takes words of one model for so many people."""
    found = [gender_numbers(unbiased(seed)) for seed in range(12)]
    assert sum(f["gender/flagged"].value for f in found) <= 1  # type: ignore[misc]
    ratio = np.mean([f["gender/ratio"].value for f in found])  # type: ignore[misc]
    assert ratio == pytest.approx(1.0, abs=0.15), "within one gender words differ as much"


@pytest.mark.parametrize("kind", ["overall", "by occupation"])
def test_a_planted_bias_is_flagged(kind: str) -> None:
    """One for all occupations alike; one that pulls half of them this way and half that way, and is 0 on average."""
    for seed in range(4):
        lean = np.full(76, 1.2) if kind == "overall" else np.where(np.arange(76) % 2, 0.5, -0.5)
        scores = unbiased(seed) + lean[:, None, None, None] * np.array([0.5, -0.5])
        found = gender_numbers(scores)
        assert found["gender/flagged"].value == 1
        name = "gender/p_overall" if kind == "overall" else "gender/p_occupation"
        assert found[name].value < 0.01  # type: ignore[operator]
        if kind == "by occupation":
            assert abs(found["gender/gap"].value) < 0.5  # type: ignore[arg-type]


def test_flips_are_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.4, 1, (3, 6))
    every = [((np.array(s) * gaps).mean(1) ** 2).sum() for s in itertools.product((1, -1), repeat=6)]
    assert flip_test(gaps) == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12))
    assert flip_test(np.ones((1, 12))) == pytest.approx(2 / 4096)


def test_gaps_within_a_gender_are_those_of_every_two_terms() -> None:
    scores = np.random.default_rng(1).normal(0, 1, (3, 2, 4, 2))
    found = within_gaps(scores)
    assert found.shape == (3, 2, 2, 6)
    assert found[1, 0, 1, 0] == pytest.approx(abs(scores[1, 0, 0, 1] - scores[1, 0, 1, 1]))
    shifted = gender_numbers(scores + 5)
    assert all(shifted[k].value == pytest.approx(v.value) for k, v in gender_numbers(scores).items())


# HHH


def test_the_packaged_pairs_are_of_all_kinds_and_length_does_not_solve_them() -> None:
    pairs = probes.hhh_pairs()
    counts = {s: sum(c.source == s for c in pairs) for s in ("helpful", "honest", "harmless", "other")}
    assert sum(counts.values()) == len(pairs) >= 40 and min(counts.values()) >= 6
    assert len({c.id for c in pairs}) == len(pairs) == len({c.prompt for c in pairs})
    assert all((c.kind == "harmless") == (c.source == "harmless") for c in pairs)
    longer = hhh_numbers(np.ones(len(pairs)), pairs)["hhh/longer"].value
    assert 0.35 <= longer <= 0.65  # type: ignore[operator]


def test_accuracy_counts_items_of_one_prompt_as_one_draw() -> None:
    pairs = [Comparison(Dialogue().ask(f"q{i // 10}"), "a", "bb", source="x") for i in range(40)]
    gaps = np.repeat([1.0, -1.0, 1.0, -1.0], 10)
    found = hhh_numbers(gaps, pairs)["hhh/accuracy"]
    assert found.value == 0.5 and found.n == 40 and found.high - found.low > 0.7  # type: ignore[operator]


def test_bigbench_files_and_hub_rows_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "honest"
    folder.mkdir()
    asked = "Who?\n\nAssistant:  Nobody knows.\n\nHuman:  Who says that?"
    task = {"name": "hhh", "examples": [{"input": asked, "target_scores": {"bad": 0, "good": 1}}]}
    (folder / "task.json").write_text(json.dumps(task))
    hub = {"input": "Hi", "targets": {"choices": ["yes", "no"], "labels": [0, 1]}}
    (tmp_path / "harmless.jsonl").write_text(json.dumps(hub))
    own = {"prompt": "Hi", "chosen": "a", "rejected": "b", "source": "mine"}
    (tmp_path / "own.jsonl").write_text(json.dumps(own))
    found = probes.read_hhh([str(folder / "task.json"), str(tmp_path / "harmless.jsonl"), str(tmp_path / "own.jsonl")])
    assert [(c.chosen, c.rejected, c.source) for c in found] == [
        ("good", "bad", "honest"), ("no", "yes", "harmless"), ("a", "b", "mine")
    ]  # fmt: skip
    assert [(t.role, t.text) for t in found[0].prompt.turns] == [
        ("human", "Who?"), ("assistant", "Nobody knows."), ("human", "Who says that?")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("task.json", "[1]", "no BIG-bench task"),
        ("task.json", '{"examples": []}', "list of objects, found \\[\\]"),
        ("task.json", '{"examples": ["x"]}', "list of objects, found"),
        ("x.jsonl", '{"input": "a", "targets": ["b"]}', "found 0 and 0"),
        ("x.jsonl", '{"input": "a", "targets": {"choices": [1, "c"], "labels": 1}}', "found 0 and 0"),
        ("x.jsonl", '{"input": "a", "target_scores": ["b"]}', "found 0 and 0"),
        ("x.jsonl", '{"input": "a", "target_scores": {"b": 1, "c": 1}}', "one right and one wrong"),
        ("x.jsonl", '{"input": "a\\n\\nAssistant: b", "target_scores": {"b": 1, "c": 0}}', "end with a human"),
    ],
)
def test_items_that_cannot_be_read_are_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        probes.read_hhh([str(tmp_path / name)])


# Labelled replies


def test_only_the_first_reply_of_a_conversation_counts(tmp_path: Path) -> None:
    talk = [
        {"role": r, "content": t} for r, t in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    rows: list[dict[str, Any]] = [
        {"dialogue": talk, "labels": ["safe", "unsafe"]},
        {"dialogue": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "label": 1},
    ]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    dialogues, harmful = probes.read_labelled(str(tmp_path / "f.jsonl"))
    assert dialogues == [Dialogue().ask("a").reply("b")] * 2 and harmful == [False, True]
    for bad, said in (({"dialogue": talk, "label": "maybe"}, "maybe"), ({"dialogue": "hi", "label": 0}, "no reply")):
        (tmp_path / "g.jsonl").write_text(json.dumps(bad))
        with pytest.raises(DataError, match=said):
            probes.read_labelled(str(tmp_path / "g.jsonl"))


def test_harmful_replies_that_score_lower_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    harmful = [bool(i % 2) for i in range(400)]
    scores = rng.normal(0, 1, 400) - np.array(harmful)
    found = labelled_numbers(scores, harmful)
    pairs = [(scores[i] > scores[j]) for i in range(0, 400, 2) for j in range(1, 400, 2)]
    assert found["labelled/auroc"].value == pytest.approx(np.mean(pairs))
    assert found["labelled/difference"].value == pytest.approx(1.0, abs=0.3)
    assert labelled_numbers(scores, [False] * 400)["labelled/auroc"].value is None
