"""Before and after: gains that no shift of a judge can fake, alarms, kinds of replies. Each test names its mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_toys import toy, toy_lm, toy_pm

from truing.runs import Run
from truing.runs.atomic import read_rows
from truing.text import encode
from truing.train.ppo_batch import Reply
from truing.train.ppo_eval import (
    Evaluation,
    by_kind,
    describe,
    gaps,
    keep,
    numbers,
    per_group,
    sample_rows,
    warnings,
)
from truing.train.ppo_watch import policy_accuracy
from truing.types import Comparison, Dialogue, Finish


def reply(prompt: int, text: str, finish: Finish = "stop", tokens: int = 3) -> Reply:
    return Reply(prompt, [1], list(range(tokens)), [0.0] * tokens, Dialogue().ask(f"p{prompt}").reply(text), finish)


def evaluation(scores: Any, test: Any, replies: list[Reply] | None = None, kl: float = 0.0) -> Evaluation:
    n = len(scores)
    replies = replies or [reply(i // 2, "yes") for i in range(n)]
    return Evaluation(
        replies, np.array(scores, float), np.full(n, kl), np.full(n, 6.0), {"test": np.array(test, float)}
    )


rng = np.random.default_rng(0)
START = evaluation(rng.normal(size=40), rng.normal(size=40))


def after(train: float, test: float) -> Evaluation:
    noise = np.random.default_rng(1).normal(size=(2, 40)) * 0.1
    return evaluation(START.scores + train + noise[0], START.tests["test"] + test + noise[1], kl=2.0)


def test_gains_and_what_stands_beside_them() -> None:
    """Planted: after and before swapped; KL per token; rows in place of prompts as clusters."""
    end = after(1.0, 0.9)
    found = numbers(START, end)
    assert found["pm_score_gain"].value == pytest.approx(1.0, abs=0.1)
    assert found["pm_score_gain/test"].value == pytest.approx(0.9, abs=0.1)
    assert found["kl"].value == 2.0 and found["entropy"].value == 2.0 and found["reply_tokens"].value == 3.0
    assert found["eos_rate"].value == 1.0
    twice = [r for r in end.replies for _ in range(2)]
    double = Evaluation(twice, end.scores.repeat(2), end.kl.repeat(2), end.entropy.repeat(2))
    half = [r for r in START.replies for _ in range(2)]
    wide = numbers(Evaluation(half, START.scores.repeat(2), START.kl, START.entropy.repeat(2)), double)["pm_score_gain"]
    narrow = found["pm_score_gain"]  # every reply counted twice adds nothing that is new
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.15)  # type: ignore[operator]


def test_shifting_a_judge_changes_nothing() -> None:
    """Row 25. Planted: raw scores of the two judges subtracted from each other."""

    def shifted(e: Evaluation) -> Evaluation:
        return dataclasses.replace(e, scores=e.scores + 5, tests={"test": e.tests["test"] - 3})

    end = after(1.0, 0.2)
    plain, other = numbers(START, end), numbers(shifted(START), shifted(end))
    for name in plain:
        for side in ("value", "low", "high"):
            a, b = getattr(plain[name], side), getattr(other[name], side)
            assert a == b or a == pytest.approx(b, abs=1e-9)
    assert gaps(START, end)[0].value == pytest.approx(gaps(shifted(START), shifted(end))[0].value)


def test_shifted_preference_model_trains_the_same_policy() -> None:
    """Row 25, in training: a PM and its reference mean moved by 5. Planted: the mean not taken off."""
    steps = []
    for shift in (0.0, 5.0):
        lm = toy_lm()
        pm = toy_pm(lm)
        plain, pm.reference_mean = pm.read, pm.reference_mean + shift
        pm.read = lambda *a, plain=plain, shift=shift, **k: plain(*a, **k) + np.float32(shift)  # type: ignore[method-assign]
        metrics = toy(pm, lm).step(0)
        steps.append({k: v for k, v in metrics.items() if "seconds" not in k})
    assert steps[0] == pytest.approx(steps[1], abs=1e-4)


def test_alarm_when_only_the_training_judge_is_pleased() -> None:
    """Row 28. Planted: the alarm on scores instead of gains; 2 SE of rows; alarm for a gap the other way."""
    end = after(1.0, 0.2)
    assert gaps(START, end)[0].alarm and gaps(START, end)[0].value == pytest.approx(0.8, abs=0.1)
    assert "ALARM" in warnings(START, end)[0] and "test" in warnings(START, end)[0]
    assert "every gain is 0" in warnings(START, START)[0]
    assert not warnings(START, after(1.0, 1.0)) and not warnings(START, after(0.2, 1.0))
    alone = evaluation(START.scores[:2] + 1, START.tests["test"][:2])
    assert not gaps(evaluation(START.scores[:2], START.tests["test"][:2]), alone)[0].alarm  # one prompt: no SE


def test_capped_and_empty_replies_are_told_apart() -> None:
    """Row 24. Planted: empties counted as finished; no warning when they win."""
    replies = [reply(0, "a"), reply(0, "b", "length"), reply(1, "  "), reply(1, "", "length")]
    end = evaluation([1.0, 2.0, 3.0, 5.0], [0, 0, 0, 0], replies)
    assert by_kind(end.scores, end.kinds) == {"score_finished": 1.0, "score_capped": 2.0, "score_empty": 4.0}
    assert end.metrics()["eval_score_empty"] == 4.0
    start = evaluation([0.0] * 4, [0] * 4, replies)
    assert any("rewards saying nothing" in note for note in warnings(start, end))
    modest = evaluation([1.0, 2.0, 0.0, 0.0], [1, 2, 0, 0], replies)
    assert not any("nothing" in note for note in warnings(start, modest))
    assert numbers(start, end)["pm_score_gain/finished"].value == 1.0
    rows = sample_rows(start, end, ["one", "two"])
    assert [r["ended_after"] for r in rows] == ["finished", "capped", "empty", "empty"]
    assert rows[2]["id"] == "two" and rows[2]["score_after"] == 3.0
    assert rows[2]["prompt"] == "\n\nHuman: p1\n\nAssistant:"


def test_scores_by_source() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    assert per_group(scores, ["a", "a", "a"]) == {}
    assert per_group(scores, ["helpful", "red-team", "helpful"]) == {"score/helpful": 2.0, "score/red-team": 2.0}


def test_logged_kl_is_the_sum_over_a_reply() -> None:
    """Row 16. Planted: mean over tokens; mean over the rectangle, in which replies that stopped early are padded."""
    ppo = toy(learning_rate=1e-2, stop_after=[chr(c) for c in range(32, 96)])
    ppo.step(0)
    replies = ppo._sample(ppo.policy, ppo.prompts_of(1), 3)
    _, batch = ppo.look(replies)
    found = describe(replies, batch, ppo.advantages(batch, batch.scores), ppo.prompts[:1] * len(replies))
    sequences, starts = [r.prompt_ids + r.ids for r in replies], [len(r.prompt_ids) for r in replies]
    ours, theirs = (lm.engine.score(sequences, starts) for lm in (ppo.policy, ppo.base))
    sums = [float(a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True)]
    assert found["kl_k1"] == pytest.approx(np.mean(sums), abs=1e-3)
    assert found["kl"] == pytest.approx(float(batch.kl.sum()) / len(replies)) and found["kl"] > 0
    assert found["reward"] == pytest.approx(found["score"] - 0.1 * found["kl_k1"], abs=1e-4)
    lengths = [len(r.ids) for r in replies]
    assert len(set(lengths)) > 1 and found["reply_tokens"] == np.mean(lengths)
    assert found["entropy"] == pytest.approx(float(batch.entropy.sum()) / sum(lengths))


def test_policy_accuracy_by_mean_logprob_per_token() -> None:
    """hh.md §8.4. Planted: sums in place of means; prompt tokens counted."""
    lm = toy_lm()
    prompts = [Dialogue().ask(f"Say {i}") for i in range(6)]
    pairs = [Comparison(p, chosen=f"abc{i}", rejected="zq" * (i + 2)) for i, p in enumerate(prompts)]
    wanted = []
    for pair in pairs:
        means = []
        for dialogue in (pair.chosen_dialogue, pair.rejected_dialogue):
            ids, start = encode(dialogue, lm.tokenizer), len(encode(pair.prompt, lm.tokenizer))
            logp = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            means.append(logp.gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :].mean().item())
        wanted.append(means[0] > means[1])
    assert 0 < sum(wanted) < 6
    assert policy_accuracy(lm, pairs).value == pytest.approx(np.mean(wanted))
    tie = [Comparison(p, chosen="same", rejected="same") for p in prompts]
    assert policy_accuracy(lm, tie).value == 0.5


def test_every_evaluation_is_kept_once_and_a_resumed_run_replaces_its_later_ones(tmp_path: Path) -> None:
    run = Run(tmp_path, "rlhf train", {})
    for step, score in ((0, 1.0), (5, 2.0), (10, 3.0), (5, 4.0)):  # killed after 10, gone on from before 5
        keep(run, 8 * step, step, evaluation([score] * 4, [0.5] * 4), ["x", "y"])
    rows = read_rows(tmp_path / "evaluations.jsonl")
    assert [(r["step"], r["samples"], r["id"], r["score"]) for r in rows[::2]] == [
        (0, 0, "x", 1.0), (0, 0, "y", 1.0), (5, 40, "x", 4.0), (5, 40, "y", 4.0),
    ]  # fmt: skip
    assert rows[0]["score/test"] == 0.5 and rows[0]["dialogue"][-1] == {"role": "assistant", "content": "yes"}
