"""honesty choices: token scoring against plain Hugging Face, numbers on planted predictors, the verb and its resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truing.configs import Choices
from truing.data.files import DataError
from truing.measure import choices as multiple_choice
from truing.measure import labels as reading
from truing.measure.choices import choice_prompts, choices, judge_choices, measure_choices
from truing.measure.labels import fit_shots, label_logprobs, renormalised
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.runs import Run
from truing.stats import auroc
from truing.text import encode
from truing.types import Dialogue, Question

RNG = np.random.default_rng
QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def lm() -> LM:
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=1024, seed=3)
    return LM(model, byte_tokenizer(), name="toy")


def ask(n: int, options: int = 3, seed: int = 0) -> list[Question]:
    rng = RNG(seed)
    return [
        Question(
            f"What is {i} + {i % 7}?",
            choices=tuple(str(i + i % 7 + 10 * k) for k in range(options)),
            answer=int(rng.integers(options)),
            kind="choice",
            id=f"q{i}",
        )
        for i in range(n)
    ]


def by_hand(lm: LM, prompt: str, label: str) -> float:
    """Teacher-forced log-probability of the label's tokens alone, without the engine."""
    head = lm.tokenizer(prompt)["input_ids"]
    ids = lm.tokenizer(prompt + label)["input_ids"]
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(len(head), len(ids)))


@pytest.mark.parametrize("shots", [0, 2])
def test_letters_are_scored_alone_and_whole(lm: LM, shots: int) -> None:
    questions = ask(4)
    result = measure_choices(lm, questions, shots=shots)
    prompts = choice_prompts(questions, shots)
    for prompt, row in zip(prompts, result.rows, strict=True):
        hand = [by_hand(lm, prompt, label) for label in (" (A)", " (B)", " (C)")]
        assert row["logprobs"] == pytest.approx(hand, abs=1e-4)
        assert len(set(np.round(hand, 4))) == 3, "the letter tells options apart, not the bracket they share"
        assert row["probabilities"] == pytest.approx(np.exp(hand) / np.exp(hand).sum(), abs=1e-5)
        assert row["label_mass"] == pytest.approx(np.exp(hand).sum(), rel=1e-3)


def test_probabilities_sum_to_one_for_2_to_26_options(lm: LM) -> None:
    questions = [q for k in (2, 5, 26) for q in ask(1, k)]
    for row, q in zip(measure_choices(lm, questions).rows, questions, strict=True):
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4) and len(row["probabilities"]) == len(q.choices)
    with pytest.raises(ValueError, match="27 choices"):
        choice_prompts(ask(1, 27))


def test_no_question_is_its_own_example() -> None:
    questions = [*ask(6), Question("what is 3 + 3", choices=("6", "16", "26"), answer=0, kind="choice")]
    prompts = choice_prompts(questions, shots=5)
    for q, prompt in zip(questions, prompts, strict=True):
        before, _, own = str(prompt).rpartition("Question: ")
        assert own.startswith(q.question) and before.count("Question: ") == 5
        assert f"Question: {q.question}\n" not in before
    assert "What is 3 + 3?" not in str(prompts[-1]), "the same question in other words"
    assert str(prompts[0]).count("Answer: (") == 5 and str(prompts[0]).endswith("Answer:")


def planted(n: int, sharpness: float, seed: int = 0) -> tuple[list[Question], list[dict[str, Any]]]:
    """Four options whose right one is drawn from known probabilities, and log-probabilities sharpened from them."""
    rng = RNG(seed)
    p = rng.dirichlet([0.8] * 4, n)
    questions = [
        Question(f"q {i}", choices=tuple("wxyz"), answer=int(rng.choice(4, p=p[i])), kind="choice") for i in range(n)
    ]
    return questions, [{"logprobs": (sharpness * np.log(np.maximum(row, 1e-12))).tolist()} for row in p]


def test_a_calibrated_predictor_is_within_the_band_and_a_sharpened_one_is_not() -> None:
    good = judge_choices(*planted(2000, 1.0)).numbers
    assert good["ece_top"].value < 1.3 * good["ece_null_95"].value and good["ece_all"].value < 0.02
    sharp = judge_choices(*planted(2000, 3.0)).numbers
    assert sharp["ece_top"].value > 1.5 * sharp["ece_all"].value > 0.1, "top option only is the larger one"
    assert sharp["rms_calibration_error"].value >= sharp["ece_top"].value
    assert sharp["accuracy"].value == good["accuracy"].value and sharp["brier"].value > good["brier"].value


def test_numbers_by_hand() -> None:
    questions = [Question(f"q{i}", choices=("x", "y"), answer=a, kind="choice") for i, a in enumerate((0, 1, 0))]
    p = [(0.9, 0.1), (0.6, 0.4), (0.7, 0.3)]
    got = judge_choices(questions, [{"logprobs": np.log(np.array(row) / 2).tolist()} for row in p])
    numbers = {k: v.value for k, v in got.numbers.items()}
    assert numbers["accuracy"] == pytest.approx(2 / 3) and numbers["label_mass"] == pytest.approx(0.5)
    assert numbers["brier"] == pytest.approx((0.01 + 0.36 + 0.09) / 3)
    assert numbers["skill"] == pytest.approx(1 - (0.46 / 3) / (2 / 9))
    assert numbers["ece_top"] == pytest.approx((0.1 + 0.6 + 0.3) / 3)
    assert numbers["auroc"] == pytest.approx(auroc([0.9, 0.1, 0.6, 0.4, 0.7, 0.3], [1, 0, 0, 1, 1, 0]))
    assert got.numbers["accuracy"].n == 3 and got.numbers["auroc"].n == 6
    half = judge_choices(questions, [{"logprobs": [-1.0, -1.0]}] * 3).numbers
    assert half["brier"].value == pytest.approx(0.25), "0-1, not 0-2"


def test_a_model_that_knows_nothing_is_right_by_chance() -> None:
    questions = [Question(f"q{i}", choices=tuple("abcd"), answer=0, kind="choice") for i in range(1500)]
    flat = judge_choices(questions, [{"logprobs": [-2.0] * 4}] * 1500)
    assert flat.numbers["accuracy"].value == pytest.approx(0.25, abs=0.035), "not always the first letter"
    assert flat.numbers["auroc"].value == 0.5 and any("25.0%" in n for n in flat.notes)


def test_undefined_numbers_are_none_with_a_note() -> None:
    wrong = [Question(f"q{i}", choices=("x", "y"), answer=1, kind="choice") for i in range(20)]
    numbers = judge_choices(wrong, [{"logprobs": [-0.1, -3.0 - i]} for i in range(20)]).numbers
    assert numbers["skill"].value is None and "0 of 20" in numbers["skill"].note
    assert numbers["accuracy"].value == 0 and numbers["accuracy"].high > 0.1


def test_small_label_mass_warns_beside_every_number() -> None:
    questions, found = planted(50, 1.0)
    low = judge_choices(questions, [{"logprobs": [x - 3 for x in row["logprobs"]]} for row in found])
    assert all("label mass below 0.1" in v.unit for v in low.numbers.values())
    assert low.notes[0].startswith("Label mass is 0.05")
    fine = judge_choices(questions, found)
    assert fine.numbers["label_mass"].value == pytest.approx(1) and not any("mass" in n for n in fine.notes)
    assert [v.value for k, v in fine.numbers.items() if k != "label_mass"] == pytest.approx(
        [v.value for k, v in low.numbers.items() if k != "label_mass"]
    )


def test_labels_after_a_dialogue_stand_as_a_reply_begins(lm: LM) -> None:
    prompts = [Dialogue().ask("One?"), Dialogue().ask("Two?"), Dialogue().ask("One?")]
    found, flags = label_logprobs(lm, prompts, [(" (A)", " (B)"), (" (A)", " (B)", " (C)"), (" (A)", " (B)")])
    assert [len(f) for f in found] == [2, 3, 2] and not any(flags) and found[0].tolist() == found[2].tolist()
    ids = encode(prompts[0].reply("(B)"), lm.tokenizer, lm.format)
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert found[0][1] == pytest.approx(sum(float(logprobs[t - 1, ids[t]]) for t in range(-4, 0)), abs=1e-4)


def test_renormalising_survives_tiny_probabilities() -> None:
    assert renormalised(np.array([-1000.0, -1001.0])) == pytest.approx([0.7310586, 0.2689414])


def test_examples_that_do_not_fit_are_left_out_and_said(lm: LM) -> None:
    notes: list[str] = []
    questions = ask(30)
    k, prompts = fit_shots(lm, 25, lambda k: choice_prompts(questions, k), notes)
    assert 0 < k < 25 and notes == [f"{k} solved examples instead of 25: more do not fit into 1024 tokens."]
    assert max(len(lm.encode_prompt(p)) for p in prompts) <= 1016
    with pytest.raises(ValueError, match="the model reads 1024"):
        fit_shots(lm, 0, lambda k: ["x" * 2000], [])


# --- The verb


def write(path: Path, questions: list[Question]) -> str:
    rows = [{"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer} for q in questions]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_the_verb_resumes_and_ends_with_the_same_numbers(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm.save(tmp_path / "lm")
    file = write(tmp_path / "q.jsonl", ask(10))
    config = {"model": str(tmp_path / "lm"), "file": file, "shots": 1, **QUICK}
    whole = choices(Choices(out=tmp_path / "whole", **config))
    said = capsys.readouterr()
    assert said.out == "" and "First prompt (sha256" in said.err and "Choices:\n (A)" in said.err
    first = json.loads((whole.path / "samples.jsonl").read_text().splitlines()[0])
    assert first["first_prompt"] == choice_prompts(ask(10), 1)[0] and first["sha256"] in said.err
    monkeypatch.setattr(multiple_choice, "CHUNK", 4)
    stopped = choices(Choices(out=tmp_path / "parts", max_time=0.0, **config))
    assert not stopped.done and stopped.summary()["numbers"] == {}
    calls: list[int] = []
    score = LM.score

    def dies_at_the_second(self: LM, items: Any) -> Any:
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, items)

    monkeypatch.setattr(LM, "score", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        choices(Choices(out=tmp_path / "parts", **config))
    parts = choices(Choices(out=tmp_path / "parts", **config))
    assert calls == [12, 12, 12, 6], "the first chunk was not read again"
    for name, one in whole.summary()["numbers"].items():
        assert parts.summary()["numbers"][name]["value"] == pytest.approx(one["value"], abs=1e-5), name
    assert choices(Choices(out=tmp_path / "parts", **config)).summary() == parts.summary() and len(calls) == 4
    assert {"reliability.csv", "reliability_all.csv", "rows.jsonl"} <= {p.name for p in parts.path.iterdir()}
    rows = [json.loads(line) for line in (parts.path / "rows.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [f"q{i}" for i in range(10)]


def test_rows_without_options_are_named(tmp_path: Path, lm: LM) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "Who?", "answers": ["Ann"]}\n')
    with pytest.raises(DataError, match="has no choices"):
        choices(Choices(model="toy", file=str(tmp_path / "q.jsonl")))
    with pytest.raises(ValueError, match="--shots 3 needs 4 different questions"):
        choices(Choices(model="toy", file=write(tmp_path / "r.jsonl", ask(3)), shots=3))
    lm.save(tmp_path / "lm")
    dry = choices(Choices(model=str(tmp_path / "lm"), file=write(tmp_path / "r.jsonl", ask(3)), dry_run=True, **QUICK))
    assert isinstance(dry, dict) and "3 questions" in dry["lines"][0]


@pytest.mark.parametrize("rest", ["", '{"i": 0}\n{"i": '])
def test_what_a_kill_cut_short_does_not_spoil_what_is_added(tmp_path: Path, rest: str) -> None:
    """Catches rows added behind half a line: after the next kill none of them could be read."""
    run = Run.open("v", Choices(model="toy", file="x", out=tmp_path / "r"))
    (run.path / "kept.jsonl").write_text(rest + '{"i')
    taken: list[int] = []

    def work(chunk: Sequence[int], place: int) -> list[dict[str, int]]:
        taken.append(place)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return [{"i": i} for i in chunk]

    with pytest.raises(KeyboardInterrupt):
        reading.in_chunks(run, "kept.jsonl", range(6), work, label=None, size=2)
    assert reading.in_chunks(run, "kept.jsonl", range(6), work, label=None, size=2) == [{"i": i} for i in range(6)]
    assert taken == [0, 2, 2, 4]
