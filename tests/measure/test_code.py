"""pass@k without bias, the same search for both models, and the whole way from a model to its programs' ends."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import Code
from truing.data import sandbox
from truing.data.code_tasks import CodeTask, code_prompt
from truing.data.easy_functions import easy_tasks
from truing.measure import code as measuring
from truing.measure.code import Plan, answer, measure_code, plan_of
from truing.measure.code_numbers import Tally, grid_of, numbers_of, pass_at_k
from truing.models import family
from truing.models.lm import LM
from truing.types import Sample

here = pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
SETTINGS = ((0.4, 0.95), (0.4, 1.0), (0.8, 0.95), (0.8, 1.0))


# ---------------------------------------------------------------- the estimator


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(n: int):
    """Brute force over every subset."""
    for k in range(1, n + 1):
        for c in range(n + 1):
            choices = [any(i < c for i in some) for some in combinations(range(n), k)]
            assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(choices), len(choices))), abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(100, 100), (200, 100), (200, 1), (1000, 25)])
def test_pass_at_k_of_many_samples(n: int, k: int):
    c = np.arange(n + 1)
    exact = [1 - Fraction(math.comb(n - i, k), math.comb(n, k)) for i in c.tolist()]
    assert pass_at_k(n, c, k) == pytest.approx([float(x) for x in exact], abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_pass_at_k_is_unbiased(k: int):
    """Row 37: its mean over all that 10 samples may give is 1 − (1 − p)^k. The plug-in of c/n is not."""
    n, p = 10, 0.15
    chance = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    assert float(chance @ pass_at_k(n, np.arange(n + 1), k)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    plug_in = 1 - (1 - np.arange(n + 1) / n) ** k
    assert k == 1 or abs(float(chance @ plug_in) - (1 - (1 - p) ** k)) > 0.01


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 1, 0), (5, 6, 1), (5, -1, 1)])
def test_pass_at_k_refuses_what_it_cannot_know(n: int, c: int, k: int):
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


# ---------------------------------------------------------------- one model or two


def random_tally(rng: np.random.Generator, chance: np.ndarray, samples: int = 4) -> Tally:
    """Counts drawn from chances [T], the same at every setting."""
    right = rng.binomial(samples, np.broadcast_to(chance, (len(SETTINGS), len(chance))))
    return Tally(SETTINGS, (samples,) * len(SETTINGS), right)


def test_best_is_each_models_best_setting_and_fixed_is_one_for_both():
    rng = np.random.default_rng(0)
    one, two = (random_tally(rng, rng.uniform(size=12), 6) for _ in range(2))
    clusters = [f"f{i // 3}" for i in range(12)]
    numbers = numbers_of(one, two, [1, 5], (0.8, 0.95), clusters)
    for k in (1, 5):
        means = [[np.mean([pass_at_k(6, c, k) for c in row]) for row in tally.right] for tally in (one, two)]
        assert numbers[f"pass@{k}"].value == pytest.approx(max(means[0]))
        assert numbers[f"pass@{k}/before"].value == pytest.approx(max(means[1]))
        assert numbers[f"pass@{k}/difference"].value == pytest.approx(max(means[0]) - max(means[1]))
        assert numbers[f"pass@{k}/fixed/difference"].value == pytest.approx(means[0][2] - means[1][2])
        assert one.best(k) == SETTINGS[int(np.argmax(means[0]))]
    for number in numbers.values():
        assert number.low is not None and number.high is not None and number.n == 12


def test_two_models_that_are_alike_do_not_differ_on_average():
    """Row 37: a maximum over settings for one of two models only would be a gain out of nothing."""
    rng, gaps, unfair = np.random.default_rng(1), [], []
    for _ in range(300):
        chance = rng.uniform(0, 0.6, size=20)
        after, before = random_tally(rng, chance), random_tally(rng, chance)
        gaps.append(after.at(1).mean(1).max() - before.at(1).mean(1).max())
        unfair.append(after.at(1).mean(1).max() - before.at(1).mean(1)[2])
        if len(gaps) == 1:
            numbers = numbers_of(after, before, [1], SETTINGS[2], [str(i) for i in range(20)])
            assert numbers["pass@1/difference"].value == pytest.approx(gaps[0])
    se = np.std(gaps) / math.sqrt(len(gaps))
    assert abs(np.mean(gaps)) < 3 * se < 0.02
    assert np.mean(unfair) > 10 * se


def test_a_model_against_itself_is_exactly_0():
    tally = random_tally(np.random.default_rng(2), np.linspace(0, 1, 9))
    numbers = numbers_of(tally, tally, [1, 2, 4], SETTINGS[0], [str(i) for i in range(9)])
    gaps = [numbers[name] for name in numbers if name.endswith("difference")]
    assert len(gaps) == 6 and all(gap.value == gap.low == gap.high == 0 for gap in gaps)


def test_models_sampled_at_different_settings_are_not_compared():
    tally = random_tally(np.random.default_rng(3), np.full(3, 0.5))
    fewer = Tally(SETTINGS[:2], (4, 4), tally.right[:2])
    with pytest.raises(ValueError, match="different settings"):
        numbers_of(tally, fewer, [1], SETTINGS[0], ["a", "b", "c"])
    with pytest.raises(ValueError, match="fixed setting"):
        numbers_of(fewer, None, [1], SETTINGS[3], ["a", "b", "c"])


def test_none_right_is_no_certainty():
    nothing = Tally(SETTINGS, (4,) * 4, np.zeros((4, 10), dtype=int))
    found = numbers_of(nothing, None, [1], SETTINGS[0], [str(i) for i in range(10)])
    assert found["pass@1"].value == 0 and 0.2 < (found["pass@1"].high or 0) < 0.4


def test_an_interval_of_a_share_stays_inside_0_and_1():
    right = np.array([[4] * 9 + [0], [3] * 9 + [4]])
    found = numbers_of(Tally(SETTINGS[:2], (4, 4), right), None, [1], SETTINGS[0], [str(i) for i in range(10)])
    assert found["pass@1"].value == 0.9 and (found["pass@1"].high or 2) <= 1
    all_right = Tally(SETTINGS[:2], (4, 4), np.array([[4] * 10, [3] * 10]))
    found = numbers_of(all_right, None, [1], SETTINGS[0], [str(i) for i in range(10)])
    assert found["pass@1"].value == 1 and (found["pass@1"].low or 1) < 0.8, "ten of ten are no certainty"


def test_the_grid_has_temperature_0_once():
    assert len(grid_of([0, 0.4, 0.6, 0.8, 1], [0.95, 1])) == 9 and grid_of([0.0], [0.5, 0.9]) == [(0.0, 1.0)]
    greedy = Tally(((0.0, 1.0),), (1,), np.array([[0, 1]]))
    assert greedy.at(10).tolist() == [[0.0, 1.0]], "ten tries at temperature 0 are one try"


# ---------------------------------------------------------------- from a model to its programs' ends

TASKS = tuple(easy_tasks()[::30])
PLAN = Plan(TASKS, ((0.0, 1.0), (1.0, 1.0)), 3, (1.0, 1.0), max_new_tokens=6, cpu_seconds=1)


class Writer:
    """A model that knows some solutions: at temperature 1 its second and third tries are wrong."""

    name = "writer"

    def __init__(self, knows: set[str]) -> None:
        self.knows = knows

    def sample(self, prompts: list[str], n: int, *, temperature: float, **_: Any) -> list[list[Sample]]:
        by_prompt = {code_prompt(task): task for task in TASKS}
        out = []
        for prompt in prompts:
            task = by_prompt[prompt]
            first = task.solution if task.task_id in self.knows else "\n    return None"
            second = "\n    while True: pass" if task == TASKS[-1] else "\n    return [["
            out.append([Sample(t, (), (), "stop", 0) for t in [first, second, "\n  ("][:n]])
        return out


@here
def test_completions_are_run_and_counted():
    knows = {task.task_id for task in TASKS[::2]}
    found = measure_code(Writer(knows), PLAN)  # type: ignore[arg-type]
    want = [int(task.task_id in knows) for task in TASKS]
    assert found.right.tolist() == [want, want] and found.drawn == (1, 3)
    assert found.at(3)[1].tolist() == [float(w) for w in want] and found.at(1)[1] == pytest.approx(np.array(want) / 3)
    rows = answer(Writer(knows), PLAN)(PLAN.jobs[-1:], 0)  # type: ignore[arg-type]
    assert rows[0]["status"][1:] == ["timeout", "error"] and rows[0]["id"] == TASKS[-1].task_id


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = family.byte_tokenizer()
    size = {"layers": 2, "width": 32, "heads": 2, "max_positions": 8192, "seed": 0}
    family.new_model("llama", vocab_size=len(tokenizer), **size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@here
def test_a_completion_does_not_depend_on_what_is_drawn_beside_it(model: str):
    lm = LM.load(model)
    whole = answer(lm, PLAN)(PLAN.jobs, 0)
    parts = [row for i in range(0, len(PLAN.jobs), 3) for row in answer(lm, PLAN)(PLAN.jobs[i : i + 3], i)]
    assert whole == parts and len({row["samples"][0] for row in whole}) > 3


def options(model: str, out: Path, **more: Any) -> Code:
    small = {"limit": 5, "samples": 2, "ks": [1, 2], "temperatures": [0.0, 1.0], "max_new_tokens": 5}
    return Code(model=model, out=out, device="cpu", dtype="float32", threads=1, **{**small, **more})


@here
def test_a_stopped_run_goes_on_and_ends_with_the_same_completions(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "CHUNK", 4)
    whole = measuring.code(options(model, tmp_path / "whole"))
    work, calls = measuring.answer, []

    def dying(lm: Any, plan: Plan) -> Any:
        inner = work(lm, plan)

        def once(jobs: Any, place: int) -> Any:
            calls.append(place)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return inner(jobs, place)

        return once

    monkeypatch.setattr(measuring, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        measuring.code(options(model, tmp_path / "cut"))
    again = measuring.code(options(model, tmp_path / "cut"))
    assert not isinstance(whole, dict) and not isinstance(again, dict) and again.done
    assert calls == [0, 2, 4, 4, 6, 8, 10, 12, 14], "what was kept is not drawn again"
    for name in ("completions-after.jsonl", "rows.jsonl", "grid.csv"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert again.summary()["numbers"] == whole.summary()["numbers"]


@here
def test_out_of_time_is_said_and_kept(model: str, tmp_path: Path):
    run = measuring.code(options(model, tmp_path / "o", max_time=0.0))
    assert not isinstance(run, dict) and not run.done and "goes on" in run.summary()["notes"][0]


@here
def test_problems_of_a_file_whose_own_solution_fails_are_named(model: str, tmp_path: Path):
    good, bad = TASKS[0], {"canonical_solution": "    return 'wrong'\n", "task_id": "mine/bad", "family": ""}
    rows = [{k: getattr(good, k) for k in CodeTask.__slots__ if k != "family"}]
    rows.append({**rows[0], **bad})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = measuring.code(options(model, tmp_path / "o", problems=str(tmp_path / "p.jsonl")))
    assert not isinstance(run, dict)
    assert any("mine/bad" in note and "1 problems fail" in note for note in run.summary()["notes"])
    assert "families_solved" not in run.summary()["numbers"] and not (run.path / "families.csv").exists()


def test_without_a_sandbox_nothing_is_sampled_and_no_run_is_left(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sandbox, "why_not", lambda: "bubblewrap is not installed.")
    with pytest.raises(sandbox.NoSandbox, match="bubblewrap is not installed"):
        measuring.code(options(model, tmp_path / "o"))
    assert not (tmp_path / "o").exists()
    said = measuring.code(options(model, tmp_path / "o", dry_run=True))
    assert isinstance(said, dict) and any("refused here: bubblewrap" in line for line in said["lines"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"samples": 0}, "samples 0"),
        ({"cpu_seconds": 0}, "cpu_seconds 0"),
        ({"ks": []}, "--ks are"),
        ({"ks": [0, 1]}, "--ks are"),
        ({"ks": [5], "samples": 4}, "pass@5 needs as many samples; --samples is 4"),
        ({"temperatures": [-1.0]}, "--temperatures are"),
        ({"top_ps": [0.0]}, "--top-ps are"),
        ({"fixed": (0.5, 1.0)}, "--fixed 0.5 1.0 is not in the grid"),
        ({"limit": 0}, "--limit is 0"),
        ({"context": "rude"}, "context is 'rude'"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        plan_of(Code(model="m", **wrong)).prompts()


def test_a_context_that_does_not_fit_is_said_before_sampling(model: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"reads 8192.* Take --context hhh-short or none"):
        measure_code(LM.load(model), plan_of(options(model, tmp_path, context="hhh")))


def test_the_plan_is_the_papers_grid_by_default():
    plan = plan_of(Code(model="m", limit=20))
    assert {t for t, _ in plan.settings} == {0, 0.4, 0.6, 0.8, 1} and {p for _, p in plan.settings} == {0.95, 1}
    assert plan.fixed == (0.8, 0.95) and len({task.family for task in plan.tasks}) == 20
    assert Code(model="m").ks == [1, 5, 10, 25, 50, 75, 100]
