"""Losses against closed forms, weighted gradients against padded brute force, mixtures counted exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from truing.configs import PMTrain
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.train.pm import PMTrainer, train_pm
from truing.train.pm_loss import loss_weights, margins, pair_losses, times_seen
from truing.train.pm_pairs import batches
from truing.train.pm_setup import check, data_of, start
from truing.types import Comparison, Dialogue

QUICK: dict[str, Any] = {"init": "toy", "data": [], "device": "cpu", "dtype": "float32", "threads": 1}
MIXED: dict[str, Any] = {"harmless_weight": 3.0, "strength_weights": [0.5, 1.0, 2.0], "margin": [0.1, 0.4, 0.9]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toy_lm() -> LM:
    return LM(new_model("llama", layers=2, width=32, heads=2, seed=3), byte_tokenizer(), name="toy")


def rows(n: int, source: str = "", prompts: int = 0) -> list[Comparison]:
    """Some prompts have several pairs; kinds and strengths vary, some have no strength."""
    asked = [Dialogue().ask(f"{source} q{i % prompts if prompts else i}") for i in range(n)]
    kinds = ["helpful" if i % 3 else "harmless" for i in range(n)]
    found = zip(range(n), asked, kinds, strict=True)
    return [
        Comparison(q, f"yes {i}", f"no {i} no", strength=(None, 2, 3, 4)[i % 4], kind=k, source=source, id=f"{i}")  # type: ignore[arg-type]
        for i, q, k in found
    ]


def trainer(data: list[Comparison], held_out: list[Comparison] = [], **options: Any) -> PMTrainer:  # noqa: B006
    c = PMTrain(**QUICK | options)
    return PMTrainer(c, start(c, torch.device("cpu"), toy_lm()), data, held_out)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# The loss of a pair


def test_losses_of_pairs_are_their_closed_forms() -> None:
    random = np.random.default_rng(0)
    good, bad, margin = random.normal(0, 3, (3, 20))
    tensors = [torch.tensor(x) for x in (good, bad, margin)]
    for i in range(20):
        plain, led = -log_sigmoid(good[i] - bad[i]), -log_sigmoid(good[i] - bad[i] - margin[i])
        alone = -log_sigmoid(good[i]) - log_sigmoid(-bad[i])
        assert pair_losses(*tensors[:2])[i].item() == pytest.approx(plain)
        assert pair_losses(*tensors)[i].item() == pytest.approx(led)
        assert pair_losses(*tensors[:2], binarised=True)[i].item() == pytest.approx(alone)


def test_a_binarised_loss_sees_a_shift_that_a_pair_does_not() -> None:
    good, bad = torch.tensor([1.0]), torch.tensor([-1.0])
    assert pair_losses(good + 5, bad + 5).item() == pytest.approx(pair_losses(good, bad).item())
    assert pair_losses(good + 5, bad + 5, binarised=True) > pair_losses(good, bad, binarised=True) + 3


def test_weights_and_margins_by_kind_and_strength() -> None:
    c, some = PMTrain(**QUICK | MIXED), rows(6)
    assert [(x.kind, x.strength) for x in some[:4]] == [
        ("harmless", None),
        ("helpful", 2),
        ("helpful", 3),
        ("harmless", 4),
    ]
    assert loss_weights(some, c)[:4].tolist() == [3.0, 0.5, 1.0, 6.0]
    assert margins(some, c)[:4].tolist() == [0.0, 0.1, 0.4, 0.9]
    assert margins(some, PMTrain(**QUICK, margin=[0.7])).tolist() == [0.7] * 6
    assert loss_weights(some, PMTrain(**QUICK)).tolist() == [1.0] * 6, "the paper's: all equal"
    assert margins(some, PMTrain(**QUICK)).tolist() == [0.0] * 6


@pytest.mark.parametrize("options", [MIXED, {"harmless_weight": 2.0, "binarised": True}])
def test_the_gradient_of_weighted_packs_is_that_of_padded_rows(options: dict[str, Any]) -> None:
    """The reference reads right-padded rows and writes the loss out. Planted: weights in the order of another pack."""
    data = rows(11, prompts=4)
    t = trainer(data, tokens_per_pack=60, **options)
    batch = np.array([10, 3, 7, 7, 0, 1, 2, 9])  # in any order, one pair twice
    loss, _, _ = t.backward(batch)
    packed = {n: p.grad.clone() for n, p in t.pm.named_parameters() if p.grad is not None}
    t.optimizer.zero_grad(set_to_none=True)
    ids = [t.pm.pm_ids(d) for i in batch for d in (data[i].chosen_dialogue, data[i].rejected_dialogue)]
    padded = torch.tensor([row + [0] * (max(map(len, ids)) - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (padded.shape[1] - len(row)) for row in ids])
    hidden = t.pm.backbone(input_ids=padded, attention_mask=mask).last_hidden_state
    scores = t.pm.head(hidden[torch.arange(len(ids)), mask.sum(1) - 1]).squeeze(-1)
    total = torch.zeros(())
    for place, i in enumerate(batch):
        good, bad = scores[2 * place], scores[2 * place + 1]
        weight = (options["harmless_weight"] if data[i].kind == "harmless" else 1.0) * (
            {2: 0.5, 4: 2.0}.get(data[i].strength or 0, 1.0) if "strength_weights" in options else 1.0
        )
        lead = {2: 0.1, 3: 0.4, 4: 0.9}.get(data[i].strength or 0, 0.0) if "margin" in options else 0.0
        one = -nn.functional.logsigmoid(good) - nn.functional.logsigmoid(-bad)
        total = total + weight * (one if options.get("binarised") else -nn.functional.logsigmoid(good - bad - lead))
    (total / len(batch)).backward()
    assert loss == pytest.approx(total.item() / len(batch), rel=1e-5)
    for name, p in t.pm.named_parameters():
        assert (packed[name] - p.grad).abs().max() <= 1e-4 * p.grad.abs().max(), name  # type: ignore[union-attr]


def test_lambda_adds_harmless_losses_to_helpful_ones() -> None:
    """L = L_helpful + λ·L_harmless (§20 row 32). Planted: λ on the wrong kind."""
    data = rows(12)
    parts = [np.flatnonzero([c.kind == kind for c in data]) for kind in ("helpful", "harmless")]
    sums = [trainer(data).backward(part)[0] * len(part) for part in parts]
    whole = trainer(data, harmless_weight=4.0).backward(np.arange(12))[0] * 12
    assert whole == pytest.approx(sums[0] + 4 * sums[1], rel=1e-5)


def test_harmless_weight_zero_trains_like_helpful_ones_alone(tmp_path: Path) -> None:
    data, held_out = rows(24), rows(12, "held out")
    run = train_pm(
        PMTrain(**QUICK, harmless_weight=0.0, learning_rate=3e-3, epochs=3, batch_size=24),
        comparisons=data, eval_comparisons=held_out, lm=toy_lm(),
    )  # fmt: skip
    only = [c for c in data if c.kind == "helpful"]
    alone = trainer(only).backward(np.arange(len(only)))[0]
    logged = next(row["loss"] for row in run.metrics() if "loss" in row)  # type: ignore[union-attr]
    assert logged * 24 == pytest.approx(alone * len(only), rel=1e-5)


# Mixtures


def test_each_file_is_seen_as_often_as_its_weight_says_exactly() -> None:
    """Planted: weights as chances, which give the right numbers on average only."""
    parts = np.array([0] * 40 + [1] * 31 + [2] * 7)
    for epoch in range(5):
        times = times_seen(parts, [1.0, 0.5, 2.4], seed=1, epoch=epoch)
        assert [times[parts == i].sum() for i in range(3)] == [40, 16, 17], "15.5 and 16.8, rounded"
        assert set(times[parts == 0]) == {1} and set(times[parts == 1]) == {0, 1} and set(times[parts == 2]) == {2, 3}
    drawn = [tuple(times_seen(parts, [1, 0.5, 1], 1, e)) for e in range(4)]
    assert len(set(drawn)) == 4, "another half in each pass"
    assert drawn[2] == tuple(times_seen(parts, [1, 0.5, 1], 1, 2)) != tuple(times_seen(parts, [1, 0.5, 1], 2, 2))
    assert times_seen(parts, [], 0, 0).tolist() == [1] * 78


def test_batches_hold_every_time_of_a_pair() -> None:
    t = trainer(rows(20, prompts=7), batch_size=8)
    times = np.array([i % 4 for i in range(20)])
    cut = batches(t.pairs, 8, 0, 0, times)
    assert np.bincount(np.concatenate(cut), minlength=20).tolist() == times.tolist()
    assert [len(b) for b in cut] == [8, 8, 8, 6]
    plain = batches(t.pairs, 8, 0, 0)
    assert all((a == b).all() for a, b in zip(plain, batches(t.pairs, 8, 0, 0, np.ones(20, int)), strict=True))


def test_weights_belong_to_files_in_order(tmp_path: Path) -> None:
    for name, n in (("a", 30), ("b", 20)):
        lines = [{"prompt": f"{name} {i}", "chosen": "yes", "rejected": "no"} for i in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    notes: list[str] = []
    c = PMTrain(**QUICK | {"data": ["b.jsonl", "a.jsonl"]}, weights=[2, 0.5], eval_share=0.2)
    train, held_out, parts = data_of(c, None, None, notes)
    assert len(train) + len(held_out) == 50
    assert all(c.id.startswith("ba"[part]) for c, part in zip(train, parts, strict=True))
    counts = np.bincount(parts)
    seen = 2 * counts[0], math.floor(counts[1] / 2 + 0.5)
    mixed = f"{seen[0]} of b.jsonl ({counts[0]} rows), {seen[1]} of a.jsonl ({counts[1]} rows)"
    assert notes[0] == f"A pass is {sum(seen)} comparisons: {mixed}."


def test_a_mixture_trains_resumes_and_says_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ, the harmless share of a pass and the accuracy of each kind stand in the summary (§20 row 32)."""
    data, held_out = rows(20, "hh") + rows(12, "other"), rows(16, "held out")
    options = {"weights": [0.5, 2.0], "harmless_weight": 2.5, "batch_size": 8, "epochs": 2, "learning_rate": 3e-3}

    def once(out: str, **more: Any) -> Any:
        config = PMTrain(**QUICK | options | more, out=tmp_path / out)
        return train_pm(config, comparisons=data, eval_comparisons=held_out, lm=toy_lm())

    seen: list[int] = []
    backward = PMTrainer.backward
    with monkeypatch.context() as watched:
        watched.setattr(PMTrainer, "backward", lambda self, b, *a, **k: (seen.extend(b), backward(self, b, *a, **k))[1])
        run = once("whole")
    numbers, metrics = run.summary()["numbers"], run.metrics()
    assert numbers["harmless_weight"]["value"] == 2.5 and numbers["harmless_share"]["n"] == 10 + 24
    share = np.mean([data[i].kind == "harmless" for i in seen[:34]])  # of a pass, not of the rows
    assert len(seen) == 68 and numbers["harmless_share"]["value"] == pytest.approx(share)
    assert {"accuracy/helpful", "accuracy/harmless"} <= set(numbers)
    assert max(row["step"] for row in metrics) == 2 * math.ceil(34 / 8) and metrics[-1]["step"] == 10
    assert [row["samples"] for row in metrics if "samples" in row][4:6] == [34, 42]
    # >1 epoch: calibration after each pass (§20 row 31)
    passes = [row["eval_ece"] for row in metrics if "eval_ece" in row][1:]
    assert [numbers[f"ece/pass_{i}"]["value"] for i in (1, 2)] == passes and len(passes) == 2
    gaps = [json.loads(line)["gap"] for line in (run.path / "held_out.jsonl").read_text().splitlines()]
    assert np.mean([(g > 0) + 0.5 * (g == 0) for g in gaps]) == pytest.approx(numbers["accuracy"]["value"])

    steps, plain = [], PMTrainer.step

    def dying(self: PMTrainer, step: int) -> dict[str, float]:
        steps.append(step)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return plain(self, step)

    with monkeypatch.context() as once_only:
        once_only.setattr(PMTrainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            once("killed", save_every=3)
    again = once("killed", save_every=3)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in again.metrics()]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in metrics]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": [1, -1]}, "weights are"),
        ({"data": ["a", "b"], "weights": [1]}, "1 weights for 2 files"),
        ({"strength_weights": [1, 2]}, "three numbers"),
        ({"margin": [1, 2]}, "one number, or three"),
        ({"harmless_weight": -1.0}, "harmless_weight is -1"),
        ({"harmless_weight": math.nan}, "harmless_weight is nan"),
        ({"binarised": True, "margin": [1.0]}, "no --margin"),
    ],
)
def test_weights_that_mean_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(PMTrain(**QUICK | options))


def test_mixtures_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no comparison to train on"):
        data_of(PMTrain(**QUICK, weights=[0.0]), rows(9), None, [])
    with pytest.raises(ValueError, match="2 weights for 1 sources"):
        data_of(PMTrain(**QUICK, weights=[1, 2]), rows(9), None, [])
