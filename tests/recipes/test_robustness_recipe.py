"""The verb ``rlhf robustness`` on tiny models: two sizes, both scans, curves against judges that never train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_toys import QUICK, comparisons, toy_lm

from test_contract import check_names
from truing.configs import Robustness
from truing.recipes import robustness as recipe
from truing.recipes.robustness import Trained, numbers_of, pairs_of, robustness, split
from truing.report.page import build
from truing.runs import Run
from truing.runs.atomic import read_rows
from truing.stats import Interval
from truing.types import Dialogue


def config(out: Path | None = None, **options: Any) -> Robustness:
    small: dict[str, Any] = {"samples": 16, "evaluations": 2, "eval_prompts": 4, "prompts_per_step": 4}
    small |= {"samples_per_prompt": 2, "max_new_tokens": 4, "pm_batch_size": 16, "eval_share": 0.25}
    return Robustness(models=[], data=[], out=out, learning_rate=2e-3, warmup_samples=0, **small | QUICK | options)


def ends_in_vowel(dialogues: list[Dialogue]) -> list[float]:
    return [float(d.last.text[-1:] in "aeiou") for d in dialogues]


MODELS = {"small": toy_lm(0, width=16), "large": toy_lm(1)}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("study") / "o"
    run = robustness(config(out), comparisons=comparisons(), lms=MODELS, gold=ends_in_vowel)
    assert isinstance(run, Run) and run.done
    return run


def test_both_scans_with_all_judges(studied: Run) -> None:
    numbers = studied.summary()["numbers"]
    check_names("rlhf robustness", "Numbers", set(numbers))
    children = {p.parent.name for p in studied.path.glob("*/environment.json")}
    policies = {"small@large", "large@large", "small@small"}
    assert children == {"train-small", "train-large", "test-small", "test-large"} | policies
    for name in policies:
        child = Run.load(studied.path / name)
        assert child.config["ppo_epochs"] == 2 and child.config["pm"].endswith(f"train-{name.split('@')[1]}")
        rows = read_rows(child.path / "evaluations.jsonl")
        assert {"score/test-small", "score/test-large"} <= set(rows[0]) and {r["samples"] for r in rows} == {0, 8, 16}
        test = f"score/test-{name.split('@')[1]}"
        gap = {s: np.mean([r["score"] - r[test] for r in rows if r["samples"] == s]) for s in (0, 8, 16)}
        assert numbers[f"gap/{name}"]["value"] == pytest.approx(gap[16] - gap[0], abs=1e-6)
        assert numbers[f"gap_early/{name}"]["value"] == pytest.approx(gap[8] - gap[0], abs=1e-6)
        gold = np.array(json.loads((child.path / "gold.json").read_text()))
        last = gold[[r["samples"] == 16 for r in rows]].mean() - gold[[r["samples"] == 0 for r in rows]].mean()
        assert numbers[f"gain_gold/{name}"]["value"] == pytest.approx(last)
    build(studied.path)
    page = (studied.path / "report.html").read_text()
    assert "Judges that have nothing in common" in page
    drawn = {p.name for p in studied.figures.iterdir()}
    assert {"gaps.png", "gold.svg", "test-sizes.png", "curve-small-by-large.png"} <= drawn


def test_a_table_of_one_cell_is_not_drawn(tmp_path: Path) -> None:
    rng, run = np.random.default_rng(0), Run.open("rlhf robustness", config(tmp_path / "o"))
    some = [rng.normal(0, 1, (3, 8)) for _ in range(3)]
    one = recipe.Trained("small", "small", [0, 8, 16], some[0], {"small": some[1]}, None, some[2])
    assert recipe.draw(run, ["small"], [one])["sizes"] == [] and not (run.figures / "test-sizes.svg").exists()
    both = dataclasses.replace(one, tests={"small": some[1], "large": some[2]})
    assert recipe.draw(run, ["small", "large"], [both])["sizes"]


def test_no_conversation_serves_two_purposes(studied: Run, tmp_path: Path) -> None:
    """hh.md §20 rows 26 and 27: halves, held-out pairs, and prompts of RL that are from the train half alone."""
    parts = split(comparisons(), config())
    keys = [{c.prompt.turns[0].text for c in part} for part in (parts.train, parts.test, parts.held_out)]
    assert keys[0] & keys[1] == keys[0] & keys[2] == keys[1] & keys[2] == set()
    asked = recipe.rl_prompts(config(), parts, None)
    assert {row.dialogue.turns[0].text for row in asked} == keys[0]
    mixed = [part[0] for part in (parts.train, parts.test, parts.held_out)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": c.prompt.to_messages()}) + "\n" for c in mixed))
    (kept,) = recipe.rl_prompts(config(prompts=[str(tmp_path / "p.jsonl")]), parts, None)
    assert kept.dialogue == mixed[0].prompt, "prompts of a file that test-PMs or evaluations know are dropped"
    answered = {r["dialogue"][0]["content"] for r in read_rows(studied.path / "small@small" / "evaluations.jsonl")}
    assert answered <= keys[2] and answered


def test_a_killed_study_goes_on_where_it_was(studied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trained = recipe.train_ppo, []

    def dying(given: Any, **more: Any) -> Any:
        trained.append(Path(given.out).name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return plain(given, **more)

    monkeypatch.setattr(recipe, "train_ppo", dying)
    everything: dict[str, Any] = {"comparisons": comparisons(), "lms": MODELS, "gold": ends_in_vowel}
    with pytest.raises(KeyboardInterrupt):
        robustness(config(tmp_path / "o"), **everything)
    first = (tmp_path / "o" / "small@large" / "summary.json").stat().st_mtime_ns
    again = robustness(config(tmp_path / "o"), **everything)
    assert trained == ["small@large", "large@large", "small@large", "large@large", "small@small"]
    assert (tmp_path / "o" / "small@large" / "summary.json").stat().st_mtime_ns == first
    for name, number in studied.summary()["numbers"].items():
        assert again.summary()["numbers"][name]["value"] == pytest.approx(number["value"], abs=1e-4), name
    out_of_time = robustness(config(tmp_path / "t", max_time=0.0), **everything)
    assert not out_of_time.done and "Stopped before train-small" in out_of_time.summary()["notes"][0]


def policy(train: np.ndarray, test: np.ndarray) -> Trained:
    return Trained("p", "q", [0, 8, 16, 24], train, {"q": test}, None, np.ones_like(train))


def test_shifting_a_judge_by_five_changes_no_number() -> None:
    """hh.md §20 row 25: were scores compared raw, the gap would be 5 more and the onset at the first evaluation."""
    rng = np.random.default_rng(0)
    rise = np.linspace(0, 1, 4)[:, None]
    train, test = (rng.normal(0, 1, 20) + s * rise + rng.normal(0, 0.2, (4, 20)) for s in (2, 1))
    plain = numbers_of(policy(train, test))
    for shifted in (numbers_of(policy(train + 5, test)), numbers_of(policy(train, test + 5))):
        for name, number in plain.items():
            found = shifted[name]
            assert (found.value, found.low, found.high) == pytest.approx((number.value, number.low, number.high)), name
    assert plain["gap/p@q"].value == pytest.approx(1, abs=0.2) and plain["onset/p@q"].value is not None


def test_a_gain_of_the_train_pm_alone_is_an_alarm(tmp_path: Path) -> None:
    """hh.md §20 row 28: the page shows who else judges, and the notes say from where on the train-PM rises alone."""
    rise, noise = np.linspace(0, 2, 4)[:, None], np.random.default_rng(1).normal(0, 0.1, (2, 4, 20))
    up, flat = rise + noise[0], noise[1]
    hacked = Trained("p", "q", [0, 8, 16, 24], up, {"q": flat}, up[::-1], np.ones((4, 20)))
    honest = Trained("h", "q", [0, 8, 16, 24], up, {"q": up + noise[1]}, up, np.ones((4, 20)))
    run = Run(tmp_path, "rlhf robustness", {})
    accuracy = {f"accuracy/{half}-q": Interval(0.7, 0.6, 0.8, 9, "share") for half in ("train", "test")}
    parts = split(comparisons(), config())
    numbers, notes = recipe.tell(run, ["q"], (accuracy, [hacked, honest]), parts, seed=0)
    assert [n for n in notes if n.startswith("ALARM")] == [
        "ALARM: p@q: from 8 samples on the train-PM gains more than the test-PM of its size: later gains are partly "
        "the train-PM's mistakes."
    ]
    assert numbers["onset/p@q"].value == 8 and numbers["onset/h@q"].value is None
    assert numbers["gold_peak/p@q"].value == 0 and numbers["gold_fall/p@q"].low > 1
    assert numbers["gold_fall/h@q"].value == 0
    page = build(tmp_path).read_text()
    for words in ("risen above the test-PM of its size", "What is really wanted", "Final gain of each policy"):
        assert words in page, words


def test_scans() -> None:
    assert pairs_of("abc", "largest") == [("a", "c"), ("b", "c"), ("c", "c")]
    assert pairs_of("abc", "own") == [("a", "a"), ("b", "b"), ("c", "c")]
    assert len(pairs_of("abc", "both")) == 5, "the largest against its own is one run"


def test_what_cannot_be_studied_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one or more of different names"):
        robustness(config(), comparisons=comparisons())
    with pytest.raises(ValueError, match="is none; give a larger share"):
        robustness(config(eval_share=0.0), comparisons=comparisons(), lms=MODELS)
    lines = robustness(config(dry_run=True), comparisons=comparisons(), prompts=None, lms=MODELS)
    assert isinstance(lines, dict) and "4 preference models (small, large)" in lines["lines"][0]


@pytest.mark.parametrize("name", ["kl_coef", "ppo_epochs", "samples_per_prompt", "samples", "evaluations", "pm_epochs"])
def test_what_a_later_part_would_refuse_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name.removeprefix('pm_')} is -1"):
        robustness(config(tmp_path / "o", **{name: -1}), comparisons=comparisons(), lms=MODELS)
    assert not (tmp_path / "o").exists(), "nothing was trained"


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (lambda ds: [float("nan")] * len(ds), "gave nan to 2 of 2"),
        (lambda ds: [1.0], r"shape \(1,\) for 2 dialogues"),
        (lambda ds: ds[0].nothing, "AttributeError"),
    ],
)
def test_a_gold_that_gives_no_numbers_is_found_out_before_training(gold: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        robustness(config(tmp_path / "o"), comparisons=comparisons(), lms=MODELS, gold=gold)
    assert not list((tmp_path / "o").glob("*/environment.json"))
