"""The bench's shared part on made-up sides: medians, refusals and the arithmetic of floors."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import floor
import lm_eval_scoring
import output
import pairs
import pm_training
import ppo_iteration
import sampling
import scoring_floor
import side

BENCH = Path(side.__file__).parent
FAKE = f"""
import sys, time
sys.path.insert(0, {str(BENCH)!r})
from clock import run
def work(job, clock):
    clock.seconds["all"] = clock.cpu_seconds["all"] = job["takes"]
    with clock.time("slept"):
        time.sleep(0.01)
    if job.get("fails"):
        raise ValueError("out of luck")
    return {{"logprobs": job["logprobs"], "threads": job["threads"]}}
run(work)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(side, "WORK", tmp_path / "work")
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return path


def fake(name: str, script: Path, **job: Any) -> side.Side:
    return side.Side(name, sys.executable, script, job)


def test_sides_take_turns_in_processes_of_their_own(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [fake("ours", script, takes=2.0, logprobs=[-1.0]), fake("theirs", script, takes=6.0, logprobs=[-1.00001])]
    found = side.alternate(sides, threads=1, repeats=2)
    order = re.findall(r"of 2: (\w+)", capsys.readouterr().err)
    assert order == ["ours", "theirs", "theirs", "ours"]
    ours, theirs = found["ours"], found["theirs"]
    assert ours[0]["results"] == {"logprobs": [-1.0], "threads": 1}
    assert 0.01 <= ours[0]["seconds"]["slept"] < 5 and ours[0]["peak_mib"] > 1
    difference = side.largest_difference(ours[0]["results"]["logprobs"], theirs[0]["results"]["logprobs"])
    assert difference == pytest.approx(1e-5)
    assert side.ratio(side.median(theirs, "all"), side.median(ours, "all"), difference, 1e-4) == pytest.approx(3.0)
    with pytest.raises(side.ResultsDiffer, match=r"differ by 1e-05, and at most 1e-06"):
        side.ratio(6.0, 2.0, difference, 1e-6)
    assert list(side.WORK.iterdir()) == [], "job files are gone"


def test_a_side_that_fails_says_why(script: Path) -> None:
    with pytest.raises(RuntimeError, match=r"theirs failed with exit code 1:[\s\S]*out of luck"):
        side.run_side(fake("theirs", script, takes=1.0, fails=True), 1)


def test_medians_and_spreads() -> None:
    outcomes = [{"seconds": {"all": s}, "cpu_seconds": {"all": 2 * s}} for s in (5.0, 1.0, 2.0)]
    assert side.median(outcomes, "all") == 2.0 and side.median(outcomes, "all", "cpu_seconds") == 4.0
    assert side.spread(outcomes, "all") == (1.0, 5.0)


@pytest.mark.parametrize("theirs", [[], [-1.0], [-1.0, math.nan], [-1.0, -math.inf], [-1.0, -2.1]])
def test_no_ratio_where_results_are_not_the_same(theirs: list[float]) -> None:
    with pytest.raises(side.ResultsDiffer):
        side.ratio(3.0, 1.0, side.largest_difference([-1.0, -2.0], theirs), 0.05)


def test_time_is_scaled_only_if_it_is_steady() -> None:
    assert side.scaled({4: 20.0, 8: 42.0}, 200) == 1000.0
    for unsteady in ({4: 20.0, 8: 80.0}, {8: 40.0}):
        with pytest.raises(ValueError, match="not constant"):
            side.scaled(unsteady, 200)


def outcome(logprobs: list[float], **seconds: float) -> side.Outcome:
    return {"seconds": {k[1:]: s for k, s in seconds.items()}, "results": {"logprobs": logprobs}}


def test_questions_are_compared_where_both_sides_answered() -> None:
    questions = [{"options": ["a", "b"]}] * 100
    ours = [outcome([-1.0, -2.0, -5.0, -4.0, *[-9.0] * 196], _2=0.5, _100=10.0)]
    theirs = [outcome([-1.0, -2.0, -5.0, -4.00001], _1=1.0, _2=2.0)]
    found = {lm_eval_scoring.TRUING: ours, lm_eval_scoring.PEER: theirs}
    verdict, extra = lm_eval_scoring.judge(found, questions, [1, 2], 1e-4, 15)
    assert verdict.ratio == pytest.approx(10.0) and extra["ratio_at_common"] == pytest.approx(4.0)
    assert "MISSED" in str(verdict) and "scaled to 100" in str(verdict) and "in 1 of 1" in extra["agreement"]
    verdict, _ = lm_eval_scoring.judge(found, questions, [1, 2], 1e-6, 15)
    assert verdict.ratio is None and "NO RATIO" in str(verdict) and "ratio 1" not in str(verdict)


def test_distinct_tokens_equal_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 2, (int(n),), generator=generator).tolist() for n in torch.arange(2, 40)]
    starts = [max(1, len(row) - 3) for row in rows]
    work = floor.scoring_work(rows, starts)
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row))}
    heads = {tuple(row[:n]) for row, start in zip(rows, starts, strict=True) for n in range(start, len(row))}
    assert work == floor.Work(len(prefixes), sum(map(len, prefixes)), len(heads))


def test_sampling_counts_by_hand() -> None:
    shape = floor.Shape(layers=1, hidden=2, width=2, kv_width=2, inner=3, vocabulary=5, item=4)
    prompts, lengths = [[1, 2, 3]], [[1, 3]]
    # the prompt, then two tokens of the longer reply that see 4 and 5; three predictions (the first is shared)
    assert floor.sampling_work(prompts, lengths) == floor.Work(3 + 2, 6 + 4 + 5, 3)
    weights = 4 * (2 * (2 * 2 + 2 * 2 + 3 * 3) + 2 * 5)
    # three steps; the prompt's keys and values are read at two of them, the reply's own tokens 1 and 2 at a time
    assert floor.sampling_bytes(shape, prompts, lengths) == 3 * weights + 4 * 2 * 2 * (2 * 3 + 1 + 2)


def test_the_floor_is_the_higher_of_both() -> None:
    shape = floor.Shape(layers=1, hidden=2, width=2, kv_width=2, inner=3, vocabulary=5)
    assert shape.flops(tokens=10, keys=55, heads=4) == 2 * 34 * 10 + 4 * 2 * 55 + 2 * 10 * 4
    least = floor.floor(shape, floor.Work(10, 55, 4), 600, floor.Machine(flops=600.0, bandwidth=300.0, threads=1))
    assert (least.compute_seconds, least.memory_seconds, least.seconds) == (2.0, 2.0, 2.0)
    assert "1.50 times the floor" in output.above_floor(3.0, {"compute_seconds": 2.0, "memory_seconds": 1.0})


def test_operations_equal_those_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from truing.models.family import new_model

    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=64, seed=0)
    model.set_attn_implementation("eager")  # counts the whole square of attention: every token sees all 20
    shape = floor.Shape.of(model.config.to_dict())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(20)[None], use_cache=False)
    assert counter.get_total_flops() == shape.flops(20, 20 * 20, 20)
    assert shape.weight_bytes == 4 * sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n
    )


@pytest.mark.parametrize("frozen", [0, 1])
def test_operations_of_training_equal_those_torch_counts(frozen: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from truing.models.family import new_model

    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=64, seed=0).model
    model.set_attn_implementation("eager")
    shape = floor.Shape.of(model.config.to_dict())
    model.requires_grad_(not frozen)
    model.layers[1].requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(20)[None], use_cache=False).last_hidden_state.sum().backward()
    triangle = 20 * 21 // 2  # what is needed of the square of attention that eager computes
    spared = 4 * shape.width * (20 * 20 - triangle) * (shape.layers + 2 * (shape.layers - frozen))
    assert counter.get_total_flops() - spared == floor.training_flops(shape, [list(range(20))], frozen)


def test_common_beginnings_are_trained_on_once() -> None:
    shape = floor.Shape(layers=2, hidden=2, width=2, kv_width=2, inner=3, vocabulary=5)
    work = shape.flops(tokens=3 + 2 + 1, keys=1 + 2 + 3 + 4 + 5 + 4, heads=0)
    assert floor.training_flops(shape, [[1, 2, 3, 4, 5], [1, 2, 3, 9]]) == 3 * work


class Bytes:
    """A tokenizer of one token a byte, with a plain chat template."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("latin-1", "replace"))}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("latin-1")

    chat_template = "yes"
    added_tokens_decoder: dict[int, Any] = {}

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool, **_: Any) -> str:
        return "".join(f"<{m['role'][0]}>{m['content']}<e>" for m in messages) + "<a>" * add_generation_prompt


def test_pairs_are_as_long_as_those_of_hh() -> None:
    tokenizer, longer = Bytes(), 5  # bytes: the packaged questions alone are longer than HH's shortest prompts
    found = pairs.hh_like(tokenizer, 100, seed=0)
    assert found == pairs.hh_like(tokenizer, 100, seed=0) != pairs.hh_like(tokenizer, 100, seed=1)
    assert len({c.prompt for c in found}) == 100 and all(c.prompt.is_prompt for c in found)
    for replies in ([c.chosen for c in found], [c.rejected for c in found]):
        lengths = sorted(map(len, replies))
        assert abs(lengths[50] - 56) < longer and abs(lengths[25] - 26) < longer and 250 < lengths[-1] <= 300
    sizes = torch.tensor([[len(c.chosen), len(c.rejected)] for c in found], dtype=torch.float)
    assert 0.2 < torch.corrcoef(sizes.T)[0, 1] < 0.8
    prompts = sorted(sum(len(turn.text) for turn in c.prompt.turns) for c in found)
    assert prompts[-1] < 760 and 200 < prompts[75] < 270
    assert sum(len(c.prompt.turns) > 1 for c in found) > 25


def training_sides(steps: tuple[int, int] = (4, 4), lengths: tuple[int, int] = (100, 50)) -> dict[str, Any]:
    """Outcomes of both sides by either module's names; ours takes 10 s, the peer 30 s."""
    sides = zip(("ours", "theirs"), (10.0, 30.0), steps, lengths, strict=True)
    return {
        name: [{"seconds": {"all": s}, "results": {"steps": n, "lengths": [drawn - 5, 5]}}]
        for name, s, n, drawn in sides
    }


def named(module: Any, outcomes: dict[str, Any]) -> dict[str, Any]:
    return {module.TRUING: outcomes["ours"], module.PEER: outcomes["theirs"]}


def test_training_is_compared_only_where_both_sides_learn_alike() -> None:
    options = pm_training.options_of(["defaults"])
    agreed = {"same_job": True, "difference_before": 1e-6, "difference_after": 1e-5, "moved": 0.01}
    verdict = pm_training.judge(named(pm_training, training_sides()), agreed, options)
    assert verdict.ratio == pytest.approx(3.0) and verdict.target == 2.5
    for wrong in (
        {"same_job": False},
        {"difference_before": 0.1},
        {"difference_after": 0.5},
        {"moved": 0.0},
        {"moved": 2e-5},
    ):
        verdict = pm_training.judge(named(pm_training, training_sides()), agreed | wrong, options)
        assert verdict.ratio is None and "NO RATIO" in str(verdict)
    assert pm_training.judge(named(pm_training, training_sides(steps=(4, 3))), agreed, options).ratio is None


def test_the_lower_of_both_ppo_ratios_counts() -> None:
    options = ppo_iteration.options_of(["shared-trunk"])
    agreed = {"same_prompts": True, "difference": 1e-5}
    verdict = ppo_iteration.judge(named(ppo_iteration, training_sides()), agreed, options)
    assert verdict.ratio == pytest.approx(3.0) and "6.00 by time per reply token" in verdict.note
    verdict = ppo_iteration.judge(named(ppo_iteration, training_sides(lengths=(50, 100))), agreed, options)
    assert verdict.ratio == pytest.approx(1.5) and "MISSED" in str(verdict)
    for wrong in ({"same_prompts": False}, {"difference": 1.0}):
        assert ppo_iteration.judge(named(ppo_iteration, training_sides()), agreed | wrong, options).ratio is None
    assert ppo_iteration.judge(named(ppo_iteration, training_sides(steps=(2, 8))), agreed, options).ratio is None


def test_ppo_operations_by_hand() -> None:
    shape = floor.Shape(layers=4, hidden=2, width=2, kv_width=2, inner=3, vocabulary=5)
    prompts, lengths = [[1, 2, 3]], [[1, 2]]
    whole = shape.flops(tokens=3 + 1 + 2, keys=6 + 4 + 4 + 5, heads=0)
    head = 2 * 2 * 5 * 3
    # reference, PM and value once; then the passes of policy and value function with their gradients
    assert ppo_iteration.iteration_flops(shape, prompts, lengths, 2, 0) == 3 * whole + head + 2 * (6 * whole + 3 * head)
    top = whole // 4
    assert ppo_iteration.iteration_flops(shape, prompts, lengths, 1, 3) == 3 * top + head + 6 * top + 3 * head


def test_what_is_written_is_plain_json_without_paths(tmp_path: Path) -> None:
    options = lm_eval_scoring.options_of(["zeroshot-letters", "--out", str(tmp_path), "--model", f"{Path.home()}/m"])
    verdict = output.Verdict(math.inf, 1e-3, "nats", None, 1, "results differ")
    machine = floor.Machine(1e9, 1e9, 1)
    found = {"outcomes": {"truing": [{**outcome([-1.0], _1=1.0), "peak_mib": 1.0}]}}
    text = output.write("zeroshot-letters", options, machine, found, verdict).read_text()
    whole = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert whole["verdict"]["difference"] is None and whole["options"]["model"] == "~/m"
    assert str(tmp_path) not in text and "logprobs" not in text and whole["hardware"]["cores"]


def test_every_command_of_the_readme_exists() -> None:
    commands = re.findall(r"^\| `python bench/(\w+)\.py (\S+)`", (BENCH / "README.md").read_text(), re.M)
    every = (lm_eval_scoring, sampling, scoring_floor, pm_training, ppo_iteration)
    modules = {module.__name__: module for module in every}
    assert {name for name, _ in commands} == set(modules) and len(commands) == 12
    for name, row in commands:
        assert modules[name].options_of([row]).row == row
