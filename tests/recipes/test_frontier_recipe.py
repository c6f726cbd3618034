"""The verb ``rlhf frontier`` on a tiny policy: numbers, figures and page from a run's own evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_toys import QUICK, save_models, toy_policy

from test_contract import check_names
from truing.configs import Frontier
from truing.measure.frontier import by_prompt
from truing.recipes import frontier as recipe
from truing.recipes.frontier import Policy, frontier, notes_of, study
from truing.report.page import build
from truing.runs import Run
from truing.runs.atomic import read_rows


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    save_models(folder)
    toy_policy(folder)
    toy_policy(folder, "slow", learning_rate=2e-4, steps=3)
    return folder


def test_two_policies_of_one_start_on_one_page(policies: Path, tmp_path: Path) -> None:
    config = Frontier(
        runs=[str(policies / "rlhf"), str(policies / "slow")], best_of=[1, 4, 8], out=tmp_path / "o", **QUICK
    )
    run = frontier(config)
    assert isinstance(run, Run) and run.done
    numbers = run.summary()["numbers"]
    check_names("rlhf frontier", "Numbers", set(numbers))
    rows = read_rows(run.path / "start-0.jsonl")
    assert len(rows) == 4 and not (run.path / "start-1.jsonl").exists(), "one start is asked once"
    scores = np.array([r["scores"] for r in rows])
    assert scores.shape == (4, 8)
    sigma = float(np.sqrt(scores.var(1, ddof=1).mean()))
    assert numbers["sigma_w/rlhf"]["value"] == pytest.approx(sigma)
    assert numbers["best_of/1/rlhf"]["value"] == pytest.approx(0, abs=1e-9)
    assert numbers["best_of/8/rlhf"]["value"] == pytest.approx((scores.max(1) - scores.mean(1)).mean())
    score = by_prompt(read_rows(policies / "rlhf" / "evaluations.jsonl"), "score")
    assert numbers["gain/rlhf"]["value"] == pytest.approx((score[-1] - score[0]).mean())
    told = Run.load(policies / "rlhf").summary()["numbers"]["pm_score_gain"]["value"]
    assert numbers["gain/rlhf"]["value"] == pytest.approx(told, abs=1e-5)
    assert numbers["kl/rlhf"]["value"] > numbers["kl/slow"]["value"] > 0
    build(run.path)
    page = (run.path / "report.html").read_text()
    assert "Compared with what?" in page and {"frontier.svg", "slopes.png"} <= {p.name for p in run.figures.iterdir()}
    when = (run.path / "summary.json").stat().st_mtime_ns
    assert frontier(config).summary()["numbers"] == numbers and (run.path / "summary.json").stat().st_mtime_ns == when


def test_a_killed_study_draws_only_the_rest(policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(name: str) -> Frontier:
        return Frontier(runs=[str(policies / "rlhf")], best_of=[4], out=tmp_path / name, **QUICK)

    whole = frontier(config("whole"))
    monkeypatch.setattr(recipe, "CHUNK", 8)
    plain, asked = recipe.draw, []

    def dying(lm: Any, some: Any, **how: Any) -> Any:
        asked.append(len(some))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(lm, some, **how)

    monkeypatch.setattr(recipe, "draw", dying)
    with pytest.raises(KeyboardInterrupt):
        frontier(config("killed"))
    again = frontier(config("killed"))
    assert asked == [2, 2, 2], "two prompts, killed, the other two"
    for name, number in whole.summary()["numbers"].items():
        assert again.summary()["numbers"][name]["value"] == pytest.approx(number["value"], abs=1e-4), name


def test_scores_of_the_start_are_those_of_training(policies: Path, tmp_path: Path) -> None:
    """Another centring, template or stop in the start's replies would shift every gain: step 0 must look alike."""
    run = frontier(Frontier(runs=[str(policies / "rlhf")], best_of=[4], samples=200, out=tmp_path / "o", **QUICK))
    start = np.array([r["scores"] for r in read_rows(run.path / "start-0.jsonl")])
    first = by_prompt(read_rows(policies / "rlhf" / "evaluations.jsonl"), "score")[0]
    error = start.std(1) * np.sqrt(1 / 200 + 1 / 2)
    assert (np.abs(start.mean(1) - first) < 4 * error).all()


def fake(gain: float, kl: float) -> tuple[Policy, list[dict[str, Any]]]:
    """A policy of 6 prompts that gained so much at such a KL; within prompts its start's scores have deviation 1."""
    rows = []
    for step in range(4):
        done = step / 3
        for p in range(6):
            row = {"step": step, "samples": 8 * step, "id": str(p), "dialogue": [], "tokens": 5, "kl": done**2 * kl}
            rows += [row | {"score": p + done * gain + 0.01 * p * step + e} for e in (-1, 1)]
    spread = [-1.3, -0.4, 0.4, 1.3]
    start = [{"scores": [p + s for s in spread], "tokens": [4, 5, 5, 6], "distinct": 4} for p in range(6)]
    return Policy("p", {"policy": "x", "pm": "y"}, rows), start


def test_a_policy_above_the_bound_is_an_alarm() -> None:
    """hh.md §10: 0.5 PM units for 0.02 nats is more than σ_w·√(2·KL) = 0.22 allows."""
    wrong = study(*fake(gain=0.5, kl=0.02), [4])
    right = study(*fake(gain=0.15, kl=0.02), [4])
    assert wrong.numbers["above_bound"]["value"] == 3 and right.numbers["above_bound"]["value"] == 0
    assert notes_of([wrong])[0].startswith("ALARM: p gains more than the bound") and notes_of([right]) == []


def test_copies_among_the_starts_replies_are_said() -> None:
    policy, start = fake(0.1, 0.02)
    found = study(policy, [row | {"distinct": 1} for row in start], [4])
    assert "75% of the start's replies" in notes_of([found])[0]


def test_what_cannot_be_followed_is_refused(policies: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many as the largest"):
        frontier(Frontier(runs=[str(policies / "rlhf")], samples=2, **QUICK))
    (tmp_path / "environment.json").write_text(json.dumps({"verb": "pm train"}))
    with pytest.raises(ValueError, match="run of 'pm train' with 0 evaluations; expected one of 'rlhf train'"):
        frontier(Frontier(runs=[str(tmp_path)], **QUICK))
    lines = frontier(Frontier(runs=[str(policies / "rlhf")], dry_run=True, **QUICK))
    assert isinstance(lines, dict) and lines["lines"][0].startswith("1 starts, 4 prompts, 256 replies")


def test_a_run_that_went_on_is_another_study(tmp_path: Path) -> None:
    """Its name is the same; planted: the rows are no part of the identity, and the old numbers are given again."""
    run = toy_policy(tmp_path)
    (run.path / "summary.json").unlink()  # as in a run that is not over yet
    config = Frontier(runs=[str(run.path)], best_of=[2], out=tmp_path / "o", **QUICK)
    frontier(config)
    rows = (run.path / "evaluations.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])["step"]
    fewer = [row for row in rows if json.loads(row)["step"] < last]
    (run.path / "evaluations.jsonl").write_text("".join(row + "\n" for row in fewer))
    with pytest.raises(ValueError, match="another config"):
        frontier(config)


def test_a_reward_that_gives_no_numbers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_reward.py").write_text("def score(ds):\n    return [len(d.last.text) for d in ds]\n")
    monkeypatch.chdir(tmp_path)
    run = toy_policy(tmp_path, pm="", reward="late_reward:score")
    import late_reward  # type: ignore[import-not-found]

    monkeypatch.setattr(late_reward, "score", lambda ds: [float("nan")] * len(ds))
    with pytest.raises(ValueError, match="gave nan to"):
        frontier(Frontier(runs=[str(run.path)], best_of=[2], out=tmp_path / "o", **QUICK))
