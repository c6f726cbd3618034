"""The verb ``rlhf tension`` on data where the two kinds contradict one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_toys import QUICK, comparisons, toy_lm

from test_contract import check_names
from truing.configs import Tension
from truing.measure.tension import helpful_loss, place_in, places_over, policy_numbers
from truing.recipes import tension as recipe
from truing.recipes.tension import tension
from truing.report.page import build
from truing.runs import Run
from truing.runs.atomic import read_rows

DATA = [*comparisons(60, "helpful"), *comparisons(60, "harmless", start=1000)]


def config(out: Path | None = None, **options: Any) -> Tension:
    small: dict[str, Any] = {"step": 0.5, "weights": [1.0, 10.0], "pm_learning_rate": 3e-3, "pm_batch_size": 8}
    small |= {"samples": 16, "evaluations": 2, "eval_prompts": 8, "prompts_per_step": 4, "samples_per_prompt": 2}
    small |= {"max_new_tokens": 4, "learning_rate": 2e-3, "warmup_samples": 0, "eval_share": 0.25}
    return Tension(models=[], data=[], out=out, **small | QUICK | options)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("tension") / "o"
    given = config(out, rl_shares=[0.0, 1.0])
    run = tension(given, comparisons=DATA, lms={"tiny": toy_lm()}, refused=lambda text: "a" in text)
    assert isinstance(run, Run) and run.done
    return run


def test_one_sided_models_are_wrong_about_the_other_side(studied: Run) -> None:
    """hh.md §19 row 20 in small: the kinds disagree about yes and no, so each alone is below chance on the other."""
    numbers = studied.summary()["numbers"]
    check_names("rlhf tension", "Numbers", set(numbers))
    value = {name: number["value"] for name, number in numbers.items()}
    assert value["mix/tiny/0/helpful"] > 0.9 and value["mix/tiny/0/harmless"] < 0.4
    assert value["mix/tiny/100/harmless"] > 0.9 and value["mix/tiny/100/helpful"] < 0.4
    both = value["mix/tiny/50/helpful"], value["mix/tiny/50/harmless"]
    assert value["mix/tiny/50/mean"] == pytest.approx(sum(both) / 2)
    assert value["weight/tiny/1/helpful"] - value["weight/tiny/10/helpful"] == pytest.approx(value["helpful_loss/tiny"])
    assert value["best_mix/tiny"] in (0, 50, 100) and 0 < value["flat_mix/tiny"] <= 1


def test_every_mix_has_the_same_size_and_holds_out_the_same_pairs(studied: Run) -> None:
    """A mix that grew with its share would show more data, not another mix."""
    counts = []
    for percent in (0, 50, 100):
        child = Run.load(studied.path / f"mix-tiny-{percent}")
        counts.append(max(row["samples"] for row in child.metrics() if "samples" in row))
        kept = [row["id"] for row in read_rows(child.path / "held_out.jsonl")]
        assert kept == [row["id"] for row in read_rows(studied.path / "weight-tiny-10" / "held_out.jsonl")]
    assert len(set(counts)) == 1
    assert Run.load(studied.path / "weight-tiny-10").config["harmless_weight"] == 10


def test_policies_by_share(studied: Run) -> None:
    numbers = studied.summary()["numbers"]
    rows = read_rows(studied.path / "rl-100" / "evaluations.jsonl")
    assert {r["kind"] for r in rows} == {"helpful", "harmless"}
    child = Run.load(studied.path / "rl-100")
    assert child.config["harmless_share"] == 1 and child.config["pm"].endswith("weight-tiny-1")
    said = ["a" in r["dialogue"][-1]["content"] for r in rows if r["step"] == 2 and r["kind"] == "helpful"]
    assert numbers["rl/100/refusals"]["value"] == pytest.approx(np.mean(said))
    assert numbers["rl/0/refusals/before"]["value"] == numbers["rl/100/refusals/before"]["value"], "one start"
    build(studied.path)
    assert "The mix of prompts in RL" in (studied.path / "report.html").read_text()
    drawn = {p.stem for p in studied.figures.iterdir()}
    wanted = {"mix-accuracy", "mix-normalised", "weight-accuracy", "rl-refusals", "rl-places", "scores-harmless-100"}
    assert wanted <= drawn


def test_a_killed_study_trains_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trained = recipe.train_pm, []

    def dying(given: Any, **more: Any) -> Any:
        trained.append(Path(given.out).name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return plain(given, **more)

    monkeypatch.setattr(recipe, "train_pm", dying)
    everything: dict[str, Any] = {"comparisons": DATA[::3], "lms": {"tiny": toy_lm()}}
    with pytest.raises(KeyboardInterrupt):
        tension(config(tmp_path / "o", step=1.0, weights=[]), **everything)
    run = tension(config(tmp_path / "o", step=1.0, weights=[]), **everything)
    assert trained == ["mix-tiny-0", "mix-tiny-100"] + ["mix-tiny-0", "mix-tiny-100"] and run.done
    assert set(run.summary()["numbers"]) == {
        *(f"mix/tiny/{p}/{side}" for p in (0, 100) for side in ("helpful", "harmless", "mean")), "best_mix/tiny",
        "flat_mix/tiny",
    }  # fmt: skip
    late = tension(config(tmp_path / "late", max_time=0.0), **everything)
    assert not late.done and "Stopped before mix-tiny-0" in late.summary()["notes"][0]


def test_numbers_of_a_policy_by_hand() -> None:
    """hh.md §4.4: place says whether a kind is beyond its data; refusals count on helpful prompts alone."""

    def row(step: int, kind: str, score: float, text: str) -> dict[str, Any]:
        said = [{"role": "assistant", "content": text}]
        facts = {"step": step, "samples": 8 * step, "kind": kind, "id": f"{kind}{score > 3}"}
        return facts | {"score": score, "dialogue": said}

    rows = [row(0, "helpful", 1, "yes"), row(0, "helpful", 4, "no")]
    rows += [row(0, "harmless", 1, "no"), row(0, "harmless", 4, "no")]
    rows += [row(2, "helpful", 2, "yes"), row(2, "helpful", 6, "yes")]
    rows += [row(2, "harmless", 9, "no"), row(2, "harmless", 8, "yes")]
    data = {"helpful": [0.0, 2.0, 5.0, 7.0], "harmless": [0.0, 1.0, 2.0, 3.0]}
    found = {name: number.value for name, number in policy_numbers(rows, data, lambda text: text == "no").items()}
    assert found["gain/helpful"] == 1.5 and found["gain/harmless"] == 6
    assert found["place/harmless"] == 1 and found["place/helpful"] == pytest.approx((0.375 + 0.75) / 2)
    assert found["refusals/before"] == 0.5 and found["refusals"] == 0
    assert [(s, i.value) for s, i in places_over(rows, "harmless", data["harmless"])] == [(0, 0.6875), (16, 1)]
    assert place_in([1.0], [1.0])[0] == 0.5


def test_helpful_loss_is_paired() -> None:
    """The same pairs under both weights: what both get wrong is no noise."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, len(DATA))
    found = helpful_loss(hard + 0.4, hard - 0.4, DATA)
    alone = helpful_loss(hard + 0.4, rng.permutation(hard) - 0.4, DATA)
    assert found.value is not None and found.high - found.low < 0.7 * (alone.high - alone.low)
    assert found.n == sum(c.kind == "helpful" for c in DATA)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 0.3}, "step is 0.3"),
        ({"weights": [0.0]}, "numbers above 0"),
        ({"rl_shares": [2.0]}, "shares from 0 to 1"),
        ({"total": 4000}, "needs 4000 helpful comparisons"),
        ({"kl_coef": -1.0}, "kl_coef is -1"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ({"pm_epochs": 0}, "epochs is 0"),
        ({"prompts": ["not-there.jsonl"]}, "not-there.jsonl"),
        ({"prompts": ["red-team"], "rl_shares": [0.5]}, "needs prompts of kind helpful"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_work(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        tension(config(tmp_path / "o", **options), comparisons=DATA, lms={"tiny": toy_lm()})
    with pytest.raises(ValueError, match="both kinds are needed"):
        tension(config(tmp_path / "o"), comparisons=comparisons(), lms={"tiny": toy_lm()})
    toy_lm().save(tmp_path / "lm")
    with pytest.raises(ValueError, match="no model named 'nosuch'"):
        tension(replace(config(tmp_path / "o"), models=[str(tmp_path / "lm"), "nosuch"]), comparisons=DATA)
    assert not (tmp_path / "o").exists()
