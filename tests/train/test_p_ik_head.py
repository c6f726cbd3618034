from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from truing.configs import PIKTrain
from truing.data.asking import question_key
from truing.data.quiz import question_prompt, split_questions
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PIK
from truing.models.lm import LM
from truing.train.loop import rng
from truing.train.p_ik import PIKTrainer, p_ik_loss, train_p_ik
from truing.types import Answers, Question

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toy_lm(layers: int = 2) -> LM:
    return LM(new_model("llama", layers=layers, width=32, heads=2, seed=3), byte_tokenizer(), name="toy")


def config(**options: Any) -> PIKTrain:
    return PIKTrain(**{"init": "toy", "data": [], **QUICK, **options})


def planted(n: int, seed: int = 0, samples: int = 8, shuffled: bool = False) -> tuple[list[Answers], np.ndarray]:
    """Questions on zip are answered right nine times in ten, those on mud once in ten. Also p(right)."""
    random = rng(seed, 5)
    p = np.where(random.random(n) < 0.5, 0.9, 0.1)
    kinds = random.permutation(p) if shuffled else p
    out = []
    for i in range(n):
        word = "zip" if kinds[i] > 0.5 else "mud"
        question = Question(f"{i}/{seed} {word}?", answers=("x",), task="even" if i % 2 == 0 else "odd", id=str(i))
        right = tuple(bool(r) for r in random.random(samples) < p[i])
        out.append(Answers(question, tuple("x" if r else "y" for r in right), right))
    return out, p


def trainer(answers: list[Answers], lm: LM | None = None, held: int = 0, **options: Any) -> PIKTrainer:
    lm, c = lm or toy_lm(), config(**options)
    model = PIK.new(lm, seed=c.seed, frozen_layers=c.frozen_layers)
    prompts = [lm.encode_prompt(question_prompt(a.question)) for a in answers]
    return PIKTrainer(c, model, prompts, np.array([a.rate for a in answers]), len(answers) - held)


def gradients(t: PIKTrainer, batch: list[int]) -> dict[str, torch.Tensor]:
    t.optimizer.zero_grad(set_to_none=True)
    t.backward(batch)
    return {n: p.grad.clone() for n, p in t.model.named_parameters() if p.grad is not None}


# Loss and gradient


def test_soft_labels_give_the_gradient_of_one_row_per_answer() -> None:
    logits = torch.tensor([0.3, -1.2], requires_grad=True)
    (soft,) = torch.autograd.grad(p_ik_loss(logits, torch.tensor([20 / 30, 3 / 30])), logits)
    rows = torch.cat([logits[:1].expand(30), logits[1:].expand(30)])
    labels = torch.tensor([1.0] * 20 + [0.0] * 10 + [1.0] * 3 + [0.0] * 27)
    (hard,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(rows, labels), logits)
    assert torch.allclose(soft, hard, atol=1e-6)
    by_hand = -(2 / 3 * math.log(0.6) + 1 / 3 * math.log(0.4))
    assert p_ik_loss(torch.tensor([math.log(1.5)]), torch.tensor([2 / 3])).item() == pytest.approx(by_hand, abs=1e-6)


def test_packed_gradient_equals_one_question_at_a_time_read_at_the_last_token() -> None:
    answers, _ = planted(7)
    t = trainer(answers, tokens_per_pack=10**6)
    whole = gradients(t, list(range(7)))
    t.budget = 50
    assert len(t.packs(range(7))) > 2
    parts = gradients(t, list(range(7)))
    t.optimizer.zero_grad(set_to_none=True)
    ids = [torch.tensor([[256, *f"Question: {a.question.question}\nAnswer:".encode()]]) for a in answers]
    alone = torch.cat([t.model.head(t.model.backbone(input_ids=i).last_hidden_state[0, -1]) for i in ids])
    F.binary_cross_entropy_with_logits(alone, torch.tensor([a.rate for a in answers])).backward()
    for name, p in t.model.named_parameters():
        assert p.grad is not None, name
        scale = p.grad.abs().max()
        assert (whole[name] - p.grad).abs().max() <= 1e-4 * scale, name
        assert (parts[name] - p.grad).abs().max() <= 1e-4 * scale, name


def test_the_head_begins_at_the_base_rate_of_the_training_questions() -> None:
    answers = [Answers(Question(f"q{i}", ("x",)), ("x",) * 10, (i % 2 == 0,) + (False,) * 9) for i in range(40)]
    held = [Answers(Question(f"h{i}", ("x",)), ("x",), (True,)) for i in range(40)]
    t = trainer(answers + held, held=40)
    p = 1 / (1 + np.exp(-t.held_out_logits()))
    assert p.mean() == pytest.approx(0.05, abs=0.02), "5% of the training answers are right, all of the others"


def test_frozen_layers_train_the_top_only_from_kept_states() -> None:
    answers, _ = planted(12)
    lm = toy_lm(layers=3)
    t = trainer(answers, lm, frozen_layers=2, tokens_per_pack=80, batch_size=12)
    assert len(t.trunk.kept) == 12
    kept = gradients(t, list(range(12)))
    assert kept and all("layers.2" in n or n in ("backbone.norm.weight", "head.weight") for n in kept)
    t.trunk.kept = {}
    for name, gradient in gradients(t, list(range(12))).items():
        assert torch.allclose(gradient, kept[name], atol=1e-5), name
    before = {n: p.clone() for n, p in t.model.named_parameters()}
    original = {n: p.clone() for n, p in lm.model.named_parameters()}
    t.step(0)
    assert {n for n, p in t.model.named_parameters() if not torch.equal(p, before[n])} == set(kept)
    assert t.state["model"].state_dict().keys() == set(kept), "the trunk stays out of checkpoints"
    assert all(torch.equal(p, original[n]) for n, p in lm.model.named_parameters()), "labels' model is left as it was"


# The split


def test_the_same_question_never_stands_on_both_sides() -> None:
    sums = [Question(f"What is {a} plus {b}?", ("0",), task=f"t{a % 2}") for a in range(1, 9) for b in range(1, 9)]
    kept, held = split_questions(sums, 0.3, seed=1)
    assert sorted([*kept, *held]) == list(range(64)) and 12 <= len(held) <= 26
    assert not {question_key(sums[i]) for i in kept} & {question_key(sums[i]) for i in held}
    assert question_key(sums[1]) == question_key(sums[8]), "1 plus 2, 2 plus 1"
    assert {sums[i].task for i in held} == {"t0", "t1"}
    assert split_questions(sums, 0.3, seed=1) == (kept, held) != split_questions(sums, 0.3, seed=2)
    assert split_questions(sums, 0.0)[1] == []
    assert len(split_questions(sums[:1], 0.9)[0]) == 1, "something is left to train on"
    with pytest.raises(ValueError, match="less than 1"):
        split_questions(sums, 1.0)


# Training


OPTIONS: dict[str, Any] = {"learning_rate": 3e-3, "epochs": 3, "batch_size": 16, "eval_share": 0.4}


def test_planted_knowledge_is_found_and_calibrated(tmp_path: Path) -> None:
    answers, p = planted(400)
    run = train_p_ik(config(**OPTIONS, out=tmp_path / "run"), answers, toy_lm())
    numbers = run.summary()["numbers"]
    assert numbers["auroc"]["value"] > 0.95 and numbers["skill"]["value"] > 0.6
    assert numbers["ece"]["value"] < numbers["ece_null_95"]["value"]
    assert numbers["threshold"]["value"] == 0.5 and 150 <= numbers["brier"]["n"] <= 170
    assert {f"{name}/{task}" for name in ("auroc", "brier", "ece") for task in ("even", "odd")} <= set(numbers)
    loaded = PIK.load(run.path)
    lm = toy_lm()
    known = [lm.encode_prompt(question_prompt(Question(f"new {w}?"))) for w in ("zip", "mud")]
    high, low = loaded.probability(known)
    assert high == pytest.approx(0.9, abs=0.1) and low == pytest.approx(0.1, abs=0.1)


def test_labels_without_a_pattern_teach_nothing(tmp_path: Path) -> None:
    answers, _ = planted(300, seed=4, shuffled=True)
    run = train_p_ik(config(**{**OPTIONS, "epochs": 1}, out=tmp_path / "run"), answers, toy_lm())
    area = run.summary()["numbers"]["auroc"]
    assert area["low"] <= 0.5 <= area["high"] and run.summary()["numbers"]["skill"]["value"] < 0.1


def test_what_the_run_leaves_agrees(tmp_path: Path) -> None:
    answers, _ = planted(40)
    run = train_p_ik(config(batch_size=8, out=tmp_path / "run"), answers, toy_lm())
    from truing.runs.atomic import read_rows

    rows = read_rows(run.path / "rows.jsonl")
    numbers = run.summary()["numbers"]
    known = np.array([row["share_right"] > 0.5 for row in rows], float)
    p = np.array([row["p_ik"] for row in rows])
    assert numbers["brier"]["value"] == pytest.approx(((p - known) ** 2).mean(), abs=1e-5)
    lm = toy_lm()
    again = PIK.load(run.path).probability([lm.encode_prompt(f"Question: {r['question']}\nAnswer:") for r in rows])
    assert np.abs(again - p).max() < 1e-4, "the saved model is the measured one"
    by_id = {a.question.id: a for a in answers}
    assert all(by_id[row["id"]].rate == row["share_right"] for row in rows)
    assert (run.path / "reliability.csv").exists() and read_rows(run.path / "samples.jsonl")


def test_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, _ = planted(60)
    options = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "save_every": 3, "eval_share": 0.2}
    whole = train_p_ik(config(**options, out=tmp_path / "a"), answers, toy_lm())
    step = PIKTrainer.step

    def killed(self: PIKTrainer, number: int) -> dict[str, float]:
        if number == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(PIKTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_p_ik(config(**options, out=tmp_path / "b"), answers, toy_lm())
    monkeypatch.setattr(PIKTrainer, "step", step)
    parts = train_p_ik(config(**options, out=tmp_path / "b"), answers, toy_lm())
    one, two = PIK.load(whole.path), PIK.load(parts.path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert whole.summary()["numbers"] == parts.summary()["numbers"]
    losses = [[row.get("loss") for row in run.metrics()] for run in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 12 + 3


def test_a_finished_run_comes_back_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, _ = planted(20)
    first = train_p_ik(config(out=tmp_path / "run"), answers, toy_lm())
    monkeypatch.setattr(PIKTrainer, "step", lambda *_: pytest.fail("trained again"))
    assert train_p_ik(config(out=tmp_path / "run"), answers).path == first.path
    with pytest.raises(ValueError, match="another config"):
        train_p_ik(config(out=tmp_path / "run"), planted(20, seed=9)[0])


def test_max_time_stops_with_a_model_and_goes_on(tmp_path: Path) -> None:
    answers, _ = planted(20)
    run = train_p_ik(config(out=tmp_path / "run", max_time=0.0), answers, toy_lm())
    assert not run.done and any("goes on" in note for note in run.summary()["notes"])
    assert train_p_ik(config(out=tmp_path / "run"), answers, toy_lm()).done


def test_nothing_held_out_gives_no_numbers_and_says_so(tmp_path: Path) -> None:
    answers, _ = planted(20)
    summary = train_p_ik(config(eval_share=0.0, out=tmp_path / "run"), answers, toy_lm()).summary()
    assert {n["value"] for n in summary["numbers"].values()} == {None} and "auroc" in summary["numbers"]
    assert any("nothing was held out" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"samples": 0}, "samples is 0"), ({"eval_share": 1.0}, "eval_share is 1.0"), ({"batch_size": 0}, "batch_size")],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_p_ik(config(**options), planted(4)[0], toy_lm())
    assert not Path("runs").exists()


def test_questions_without_answers_are_named() -> None:
    with pytest.raises(ValueError, match="'lonely' has no answers"):
        train_p_ik(config(), [Answers(Question("q", ("x",), id="lonely"), (), ())], toy_lm())
    with pytest.raises(ValueError, match="no answered questions"):
        train_p_ik(config(), [], toy_lm())
