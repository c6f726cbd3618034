"""Groups of comparisons, thresholds and baselines against planted answers and scikit-learn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from truing.configs import PMEval
from truing.data.comparisons import conversation_key
from truing.measure.baselines import bag_of_words_gaps, baseline_numbers, length_gaps
from truing.measure.preference import evaluate_pm, more_numbers, pm_eval
from truing.measure.preference_groups import above_thresholds, group_numbers, groups_of, relative_lengths
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.report.page import build
from truing.stats.words import bag_of_words, fit_bradley_terry, word_differences, words_of
from truing.train.pm_numbers import confidence, correctness, kinds_line, preference_numbers
from truing.types import Comparison, Dialogue

GOOD, BAD, DULL = ("kind", "glad", "clear"), ("rude", "never", "bah"), ("the", "a", "thing", "of", "table")


def dialogue(turns: int, name: str = "q") -> Dialogue:
    d = Dialogue()
    for i in range(turns - 1):
        d = d.ask(f"{name} {i}").reply("hm")
    return d.ask(f"{name} last")


def worded(n: int, seed: int = 0, noise: float = 0.0, per_conversation: int = 1) -> list[Comparison]:
    """Chosen replies hold good words, rejected ones bad words, among dull ones; ``noise`` swaps some."""
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        texts = [" ".join(rng.permutation([rng.choice(side), *rng.choice(DULL, 4)])) for side in (GOOD, BAD)]
        chosen, rejected = texts[::-1] if rng.random() < noise else texts
        out.append(Comparison(Dialogue().ask(f"c{i // per_conversation}").reply("x").ask(f"t{i}"), chosen, rejected))
    return out


# Calibration (§19 row 10)


def test_planted_bradley_terry_has_ece_below_two_percent() -> None:
    rng = np.random.default_rng(0)
    gaps, n = rng.normal(0, 2, 8000), 8000
    gaps = np.where(rng.random(n) < confidence(gaps), np.abs(gaps), -np.abs(gaps))
    rows = [Comparison(Dialogue().ask(str(i)), "a", "b") for i in range(n)]
    found = preference_numbers(gaps, rows)
    assert found["ece"].value < 0.02 and found["ece"].value <= 1.2 * found["ece_null_95"].value  # type: ignore[operator]
    assert found["accuracy"].value == pytest.approx(confidence(gaps).mean(), abs=0.01)


def test_shuffled_labels_are_right_half_of_the_time_whatever_the_gap() -> None:
    """Planted: correctness by |Δ|, which rises with the gap whatever the labels are."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(0, 2, 3000) * rng.choice([-1, 1], 3000)
    rows = [Comparison(Dialogue().ask(str(i)), "a", "b") for i in range(3000)]
    groups = group_numbers(gaps, rows)
    by_gap = [x for name, x in groups.items() if name.startswith("accuracy/gap/")]
    assert len(by_gap) == 5
    for found in by_gap:
        assert found.value == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(found.n))
    assert preference_numbers(gaps, rows)["ece"].value > 0.15  # type: ignore[operator]


# Groups


def test_each_family_of_groups_covers_every_pair_once() -> None:
    rng = np.random.default_rng(2)
    rows = [
        Comparison(dialogue(int(rng.integers(1, 9))), "x" * int(rng.integers(0, 40)), "y" * int(rng.integers(0, 40)),
                   source=str(rng.choice(["base", "online"])))
        for _ in range(300)
    ]  # fmt: skip
    gaps = rng.normal(0, 1.5, 300).round(2)
    found = groups_of(gaps, rows)
    families = {name.partition("/")[0] for name in found}
    assert families == {"source", "turn", "gap", "length"}
    for one in families:
        assert (sum(mask.astype(int) for name, mask in found.items() if name.startswith(f"{one}/")) == 1).all()  # type: ignore[attr-defined]


def test_groups_by_hand() -> None:
    rows = [
        Comparison(dialogue(1), "aaaa", "a" * 10, source="base"),  # 60% shorter
        Comparison(dialogue(2), "a" * 9, "a" * 10, source="base"),  # 10% shorter
        Comparison(dialogue(7), "a" * 20, "a" * 10, source="rs"),  # the rejected one lacks half
    ]
    assert relative_lengths(rows).tolist() == pytest.approx([-0.6, -0.1, 0.5])
    numbers = group_numbers(np.array([0.1, -0.5, 3.0]), rows)
    assert {name: x.value for name, x in numbers.items()} == {
        "accuracy/source/base": 0.5, "accuracy/source/rs": 1.0,
        "accuracy/turn/1": 1.0, "accuracy/turn/2": 0.0, "accuracy/turn/5+": 1.0,
        "accuracy/gap/0-0.25": 1.0, "accuracy/gap/0.5-1": 0.0, "accuracy/gap/2+": 1.0,
        "accuracy/length/much_shorter": 1.0, "accuracy/length/shorter": 0.0, "accuracy/length/longer": 1.0,
    }  # fmt: skip


def test_kinds_are_always_said_and_groups_are_not_taken_for_kinds() -> None:
    """§20 row 32."""
    rows = [Comparison(dialogue(1, str(i)), "a", "bb", kind="harmless" if i % 4 else "helpful") for i in range(8)]  # type: ignore[arg-type]
    gaps = np.ones(8)
    line = kinds_line(preference_numbers(gaps, rows) | group_numbers(gaps, rows))
    assert "helpful 1 [" in line and "harmless 1 [" in line and "(n = 2)" in line and "turn" not in line


def test_accuracy_above_thresholds_falls_where_good_pairs_are_close() -> None:
    """Fig 25: quality is in both scores, and gaps shrink with it. A constant added to all scores changes nothing."""
    rng, n = np.random.default_rng(3), 3000
    level = rng.normal(0, 2, n)
    size = 3 / (1 + np.exp(level))
    sign = np.where(rng.random(n) < 1 / (1 + np.exp(-size)), 1, -1)
    rows = [Comparison(Dialogue().ask(str(i)), "a", "b") for i in range(n)]
    numbers, scan = above_thresholds(level + sign * size / 2, level - sign * size / 2, rows)
    values = [numbers[f"accuracy_above/top_{p}"].value for p in (50, 25, 10)]
    assert values == sorted(values, reverse=True) and values[0] - values[2] > 0.03  # type: ignore[operator]
    assert scan[0]["n"] == n and [row["n"] for row in scan] == sorted((row["n"] for row in scan), reverse=True)
    assert [row["threshold"] for row in scan] == sorted(row["threshold"] for row in scan)
    shifted, _ = above_thresholds(level + sign * size / 2 + 5, level - sign * size / 2 + 5, rows)
    assert [shifted[f"accuracy_above/top_{p}"].value for p in (50, 25, 10)] == values


# Baselines


def test_words_are_counted_as_people_would() -> None:
    assert words_of("Don't. DON'T! Don’t? 3 cats_and") == {
        "don't": 2, "!": 1, "don’t": 1, "?": 1, "3": 1, "cats": 1, "and": 1,
    }  # fmt: skip


def test_word_weights_are_those_of_logistic_regression_without_intercept() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    rows = worded(120, noise=0.25)
    chosen, rejected = [c.chosen for c in rows], [c.rejected for c in rows]
    vocabulary = {w: i for i, w in enumerate((*GOOD, *BAD, *DULL))}
    x = word_differences(chosen, rejected, vocabulary)
    dense = np.array(
        [[c.split().count(w) - r.split().count(w) for w in vocabulary] for c, r in zip(chosen, rejected, strict=True)]
    )
    assert (x.toarray() == dense).all()
    flip = np.where(np.arange(120) % 2, 1, -1)  # both classes, the same likelihood
    theirs = sklearn.LogisticRegression(C=1 / 3.0, fit_intercept=False, tol=1e-10, max_iter=5000).fit(
        dense * flip[:, None], flip
    )
    assert fit_bradley_terry(x, l2=3.0) == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_word_counts_find_planted_words_and_nothing_in_noise() -> None:
    rows, noise = worded(300), worded(1500, noise=0.5)
    found = baseline_numbers(np.zeros(300), rows)
    assert found["baseline/bag_of_words"].value == 1.0 and found["baseline/chance"].value == 0.5
    assert found["above/bag_of_words"].value == -0.5
    assert baseline_numbers(np.zeros(1500), noise)["baseline/bag_of_words"].value == pytest.approx(0.5, abs=0.06)
    assert bag_of_words((["x"], ["y"]), (["z"], ["z"])).tolist() == [0.0], "nothing is known of new words"


def test_word_counts_are_fitted_on_other_conversations() -> None:
    """Planted: splits by row, so that turns of one conversation stand on both sides."""
    rows = worded(90, per_conversation=3)
    splits = bag_of_words_gaps(rows, seed=4)
    assert len(splits) == 5 and len({tuple(left) for left, _ in splits}) == 5
    for left, gaps in splits:
        keys = {conversation_key(rows[i]) for i in left}
        assert len(left) == len(gaps) == 18 and len(keys) == 6
        assert keys.isdisjoint(conversation_key(rows[i]) for i in set(range(90)) - set(left.tolist()))


def test_length_rules_and_what_a_model_adds_to_them() -> None:
    """§20 row 29: a model that counts characters adds exactly nothing to the rule that does. Equal lengths: half."""
    rng = np.random.default_rng(5)
    rows = [
        Comparison(Dialogue().ask(str(i)), "a" * int(rng.integers(1, 9)), "b" * int(rng.integers(1, 9)))
        for i in range(200)
    ]
    gaps = length_gaps(rows)
    found = baseline_numbers(gaps, rows)
    assert found["baseline/longer"].value == pytest.approx(float(correctness(gaps).mean()))
    assert found["baseline/longer"].value + found["baseline/shorter"].value == pytest.approx(1.0)  # type: ignore[operator]
    assert (found["above/longer"].value, found["above/longer"].low, found["above/longer"].high) == (0, 0, 0)
    result = evaluate_pm(lambda d: np.array([float(len(x.last.text)) for x in d]), rows)
    assert result.numbers["length_correlation"].value == 1.0


def test_too_few_conversations_for_word_counts_are_said() -> None:
    found = baseline_numbers(np.ones(10), worded(10))
    assert found["baseline/bag_of_words"].value is None and "20 conversations" in found["baseline/bag_of_words"].note


# The verb


def test_the_verb_takes_several_files_and_draws_their_groups(tmp_path: Path) -> None:
    tokenizer = family.byte_tokenizer()
    model = family.new_model("llama", layers=1, width=16, heads=2, vocab_size=len(tokenizer), max_positions=256, seed=0)
    PreferenceModel.new(LM(model, tokenizer, name="tiny"), seed=0).save(tmp_path / "pm")
    for name, n in (("base", 14), ("online", 10)):
        rows = [{"prompt": f"{name} {i}", "chosen": f"Yes {i} a", "rejected": "No."} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = PMEval(
        pm=str(tmp_path / "pm"), files=[str(tmp_path / "base.jsonl"), str(tmp_path / "online.jsonl")],
        out=tmp_path / "out", device="cpu", dtype="float32", threads=1,
    )  # fmt: skip
    run = pm_eval(config)
    numbers = run.summary()["numbers"]
    assert numbers["accuracy/source/base"]["n"] == 14 and numbers["accuracy/source/online"]["n"] == 10
    rows = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["base"] * 14 + ["online"] * 10
    with open(run.path / "thresholds.csv", newline="") as file:
        assert [int(r["n"]) for r in csv.DictReader(file)][0] == 24
    comparisons = [Comparison(dialogue(1, r["cluster"]), "a", "b") for r in rows]
    again, _ = more_numbers(rows, comparisons)
    assert again["confidence"].value == pytest.approx(numbers["confidence"]["value"])
    page = build(run.path).read_text()
    drawn = {p.stem for p in (run.path / "figures").glob("*.svg")}
    families = ("model", "baseline", "source", "turn", "gap", "length")
    assert drawn == {"reliability", "thresholds"} | {f"accuracy_{family}" for family in families}
    assert page.count("<figure") >= len(drawn)
