"""pm eval on planted scores: every number has a known answer, and a constant added to all scores changes none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from truing.configs import PMEval
from truing.measure.preference import PMResult, evaluate_pm, pm_eval, within_pairs
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.types import Comparison, Dialogue

RNG = np.random.default_rng


def pairs(n: int, *, kind: str = "helpful", per_conversation: int = 1, lengths: tuple[int, int] = (10, 10)):
    return [
        Comparison(
            Dialogue().ask(f"{kind} {i // per_conversation}"),
            chosen=f"{i:0{lengths[0]}d}",
            rejected="r" + f"{i:0{lengths[1] - 1}d}",
            kind=kind,  # type: ignore[arg-type]
        )
        for i in range(n)
    ]


def with_gaps(gaps: np.ndarray, comparisons: list[Comparison], shift: float = 0.0) -> PMResult:
    """Evaluate a scorer that gives these gaps, around scores that differ widely between prompts."""
    table = {}
    for gap, c in zip(gaps, comparisons, strict=True):
        level = len(table) * 7.3 % 11
        table[c.chosen_dialogue], table[c.rejected_dialogue] = level + gap / 2 + shift, level - gap / 2 + shift
    return evaluate_pm(lambda dialogues: np.array([table[d] for d in dialogues]), comparisons)


def planted(n: int, seed: int, overconfident: float = 1.0) -> np.ndarray:
    """Gaps whose sign is right with probability σ(|Δ|); scores stretched by ``overconfident``."""
    rng = RNG(seed)
    size = rng.exponential(1.5, n)
    return np.where(rng.random(n) < 1 / (1 + np.exp(-size)), size, -size) * overconfident


def test_planted_bradley_terry_is_calibrated_and_a_stretched_one_is_not() -> None:
    comparisons = pairs(10_000)
    good = with_gaps(planted(10_000, 0), comparisons).numbers
    assert good["ece"].value < 0.02 and good["ece"].value < 1.5 * good["ece_null_95"].value
    assert good["brier"].value == pytest.approx(np.mean((1 - 1 / (1 + np.exp(-planted(10_000, 0)))) ** 2))
    comparisons = comparisons[:2000]
    sure = with_gaps(planted(2000, 0, overconfident=4), comparisons).numbers
    assert sure["accuracy"].value == with_gaps(planted(2000, 0), comparisons).numbers["accuracy"].value
    assert sure["ece"].value > 0.1
    shuffled = with_gaps(planted(2000, 0) * RNG(1).choice([-1, 1], 2000), comparisons)
    assert [b.accuracy for b in shuffled.reliability.bins] == pytest.approx([0.5] * 10, abs=0.11)


def test_a_constant_changes_nothing() -> None:
    comparisons = pairs(300, lengths=(12, 9))
    gaps = planted(300, 2)
    before, after = with_gaps(gaps, comparisons).numbers, with_gaps(gaps, comparisons, 5.0).numbers
    assert before.keys() == after.keys()
    for name, one in before.items():
        other = after[name]
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9), name


def test_a_zero_gap_counts_half() -> None:
    got = with_gaps(np.array([1.0, 0.0, -1.0, 0.0]), pairs(4))
    assert got.numbers["accuracy"].value == 0.5
    assert [r["accuracy"] for r in got.rows] == [1.0, 0.5, 0.0, 0.5]
    flat = evaluate_pm(lambda d: np.zeros(len(d)), pairs(30)).numbers
    assert flat["accuracy"].value == 0.5 and flat["brier"].value == 0.25 and flat["ece"].value == 0


def test_length_is_strict_in_characters_of_the_final_reply() -> None:
    long_prompt = Dialogue().ask("x" * 500)
    rows = [
        Comparison(long_prompt.ask(str(i)) if i else long_prompt, "ab", r) for i, r in enumerate(("abc", "a", "cd"))
    ]
    got = evaluate_pm(lambda d: np.arange(len(d), dtype=float), rows).numbers
    assert got["longer_wins"].value == pytest.approx(1 / 3) and got["shorter_wins"].value == pytest.approx(1 / 3)


def test_a_model_that_only_counts_characters_is_caught() -> None:
    rng = RNG(3)
    comparisons = []
    for i in range(400):
        a, b = rng.integers(10, 200, 2) if i % 4 else (100, 100 + rng.integers(-9, 10))
        comparisons.append(Comparison(Dialogue().ask(str(i)), "c" * int(max(a, 1)), "r" * int(max(b, 1))))
    counter = evaluate_pm(lambda d: np.array([float(len(x.last.text)) for x in d]), comparisons).numbers
    assert counter["length_correlation"].value == pytest.approx(1)
    assert counter["accuracy"].value == pytest.approx(
        counter["longer_wins"].value + (1 - counter["longer_wins"].value - counter["shorter_wins"].value) / 2
    )
    scores = {c.chosen_dialogue: 1.0 for c in comparisons}
    honest = evaluate_pm(lambda d: np.array([scores.get(x, 0.0) for x in d]), comparisons).numbers
    assert honest["accuracy_length_matched"].value == 1 and 90 <= honest["accuracy_length_matched"].n <= 160
    assert abs(honest["length_correlation"].value) < 0.15
    assert honest["length_correlation"].low < 0 < honest["length_correlation"].high


def test_within_pairs_is_the_correlation_after_centring_each_pair() -> None:
    rng = RNG(4)
    x, y = rng.normal(size=(50, 2)) + 3, rng.normal(size=(50, 2))
    y += 0.5 * x
    cx, cy = (x - x.mean(1, keepdims=True)).ravel(), (y - y.mean(1, keepdims=True)).ravel()
    dx, dy = x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]
    assert within_pairs(dx, dy) == pytest.approx(np.corrcoef(cx, cy)[0, 1])
    sign = rng.choice([-1, 1], 50)
    assert within_pairs(dx * sign, dy * sign) == pytest.approx(within_pairs(dx, dy))
    assert within_pairs(dx, np.zeros(50)) is None


def test_undefined_numbers_have_a_note() -> None:
    got = evaluate_pm(lambda d: np.zeros(len(d)), [Comparison(Dialogue().ask("?"), "long reply", "no")]).numbers
    assert got["accuracy_length_matched"].value is None and "no pair" in got["accuracy_length_matched"].note
    assert got["length_correlation"].value is None and got["length_correlation"].note
    assert got["accuracy"].low is None  # one conversation


def test_kinds_are_told_apart() -> None:
    comparisons = [*pairs(90), *pairs(10, kind="harmless")]
    got = with_gaps(np.array([1.0] * 90 + [-1.0] * 10), comparisons).numbers
    assert (got["accuracy"].value, got["accuracy/helpful"].value, got["accuracy/harmless"].value) == (0.9, 1, 0)
    assert got["accuracy/harmless"].n == 10


def test_pairs_of_one_conversation_are_one_draw() -> None:
    rng = RNG(5)
    luck = np.repeat(rng.choice([1.0, -1.0], 50), 8)
    together = with_gaps(luck, pairs(400, per_conversation=8)).numbers["accuracy"]
    apart = with_gaps(luck, pairs(400)).numbers["accuracy"]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_scorers_that_fail_are_refused() -> None:
    with pytest.raises(ValueError, match="no comparisons"):
        evaluate_pm(lambda d: np.zeros(len(d)), [])
    with pytest.raises(ValueError, match="all finite"):
        evaluate_pm(lambda d: np.full(len(d), np.nan), pairs(2))
    with pytest.raises(ValueError, match="expected as many"):
        evaluate_pm(lambda d: np.zeros(1), pairs(2))


def test_the_verb_writes_a_whole_run(tmp_path: Path) -> None:
    tokenizer = family.byte_tokenizer()
    model = family.new_model("llama", layers=1, width=16, heads=2, vocab_size=len(tokenizer), max_positions=256, seed=0)
    PreferenceModel.new(LM(model, tokenizer, name="tiny"), seed=0).save(tmp_path / "pm")
    rows = [{"prompt": f"Question {i}", "chosen": "Yes, gladly.", "rejected": "No."} for i in range(12)]
    rows.append({"prompt": "Question 0", "chosen": "Same.", "rejected": "Same."})
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = PMEval(
        pm=str(tmp_path / "pm"), files=[str(tmp_path / "c.jsonl")], out=tmp_path / "out",
        device="cpu", dtype="float32", threads=1,
    )  # fmt: skip
    run = pm_eval(config)
    summary = run.summary()
    assert summary["numbers"]["longer_wins"]["value"] == 1 and summary["numbers"]["accuracy"]["n"] == 12
    assert any("1 identical pairs" in n for n in summary["notes"]) and any("100.0%" in n for n in summary["notes"])
    kept = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    pm = PreferenceModel.load(tmp_path / "pm")
    assert kept[3]["chosen"] == pytest.approx(
        pm.score([Dialogue().ask("Question 3").reply("Yes, gladly.")])[0], abs=1e-5
    )
    with open(run.path / "reliability.csv", newline="") as file:
        assert sum(int(r["n"]) for r in csv.DictReader(file)) == 12
    assert (run.path / "samples.jsonl").exists() and pm_eval(config).summary() == summary
