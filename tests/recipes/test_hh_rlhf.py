"""The recipe of 2204.05862: every stage at a scale of seconds, claims that can fail, a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from test_contract import check_names
from truing import cli
from truing.configs import Recipe
from truing.data.comparisons import conversation_key, load_comparisons
from truing.data.files import read_rows
from truing.recipes import hh_rlhf
from truing.recipes.hh_rlhf import recipe
from truing.recipes.hh_setup import SCALES
from truing.recipes.hh_story import judge_claims
from truing.stats import Interval
from truing.types import Dialogue

QUICK = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe at scale ci, through the command line, once for the tests of this file."""
    out = tmp_path_factory.mktemp("hh") / "run"
    argv = ["recipe", "hh", "--scale", "ci", "--out", str(out), "--device", "cpu", "--threads", "1"]
    assert cli.main(argv) == 0
    return out


@pytest.mark.slow
def test_every_stage_leaves_its_run_and_its_figures(run: Path):
    for child in ("base-20k", "20k", "tension", "robustness", "robustness/20k@20k", "frontier", "ood"):
        assert (run / child / "summary.json").exists(), child
    page = (run / "report.html").read_text()
    assert page.count("<svg") >= 10 and "no claim can be made" in page
    for name in ("starts", "calibration", "tension-mix-accuracy", "robustness-gold", "frontier-frontier"):
        assert (run / "figures" / f"{name}.svg").exists() and (run / "figures" / f"{name}.png").exists(), name
    summary = json.loads((run / "summary.json").read_text())
    assert not [note for note in summary["notes"] if "HOLD" in note]
    check_names("recipe", "Numbers", set(summary["numbers"]))


@pytest.mark.slow
def test_nothing_leaks_between_judges_prompts_and_tests(run: Path):
    """§20 rows 26 and 27: RL prompts and held-out ones begin no compared conversation."""
    compared = {conversation_key(c) for c in load_comparisons(run / "comparisons.jsonl")}
    rows = [row for _, row in read_rows(run / "robustness" / "20k@20k" / "evaluations.jsonl")]
    asked = {conversation_key(Dialogue.from_messages(row["dialogue"])) for row in rows}
    held = [row for _, row in read_rows(run / "prompts-harmless.jsonl")]
    fresh = {conversation_key(Dialogue.from_messages(row["prompt"])) for row in held}
    assert compared and asked <= compared and not fresh & compared
    lab = hh_rlhf.Lab(
        hh_rlhf.Run.load(run), Recipe(paper="hh"), SCALES["ci"], load_comparisons(run / "comparisons.jsonl")
    )
    assert not {conversation_key(row.dialogue) for row in hh_rlhf.rl_prompts(lab)} & compared


@pytest.mark.slow
def test_what_is_left_is_done_and_what_is_done_stays(run: Path):
    """The command after a kill: stages that are whole are read, the others are done again to the same numbers."""
    before = json.loads((run / "summary.json").read_text())["numbers"]
    for left in ("summary.json", "frontier/summary.json", "ood/summary.json"):
        (run / left).unlink()
    kept = run / "robustness" / "20k@20k" / "summary.json"
    stamp = kept.stat().st_mtime_ns
    again = recipe(Recipe(paper="hh", scale="ci", out=run, device="cpu", threads=1))
    assert again.summary()["numbers"] == before and kept.stat().st_mtime_ns == stamp


def test_out_of_time_says_where_and_goes_on(tmp_path: Path):
    stopped = recipe(Recipe(paper="hh", scale="ci", out=tmp_path / "r", max_time=0.0, **QUICK))
    assert not stopped.done and "Stopped before base-20k" in stopped.summary()["notes"][0]


def test_the_papers_own_scale_is_told_and_not_run(tmp_path: Path):
    with pytest.raises(ValueError, match="written down, not run"):
        recipe(Recipe(paper="hh", scale="paper"))
    told = "\n".join(recipe(Recipe(paper="hh", scale="paper", dry_run=True))["lines"])
    for line in told.splitlines():
        if line.startswith("  truing "):
            assert cli.find_verb(line.split()[1:])[0] in cli.VERBS
    for scale in SCALES:
        assert recipe(Recipe(paper="hh", scale=scale, dry_run=True))["lines"]


def numbers(**changed: Any) -> dict[str, Any]:
    """Numbers at which every claim holds, and some that are not so."""
    good = {"helpful_only/harmless": 0.2, "harmless_only/helpful": 0.3, "mixed/helpful": 0.75,
            "mixed/harmless": 0.76, "pm/ece": 0.01, "pm/ece_null_95": 0.02, "pm/share_of_bayes": 0.97,
            "frontier/above_bound": 0.0, "kl/best": 3.0, "frontier/r2": 0.95}  # fmt: skip
    out: dict[str, Any] = {k: Interval(v, None, None, 9, "") for k, v in good.items()}
    out |= {"gold_gain/best": Interval(0.5, 0.3, 0.7, 9, ""), "gap_early": Interval(0.0, -0.1, 0.1, 9, "")}
    return out | {"gap": Interval(0.3, 0.1, 0.5, 9, "")} | changed


def test_each_claim_can_fail_alone():
    """Catches a claim that is always true, and one that holds of a number that is not defined."""
    assert all(holds for _, holds, _ in judge_claims(numbers()))
    as_kept = {name: number.as_dict() for name, number in numbers().items()}  # what summaries below hold
    assert judge_claims(as_kept) == judge_claims(numbers())
    bad = {
        0: ("helpful_only/harmless", Interval(0.41, None, None, 9, "")),
        1: ("harmless_only/helpful", Interval(None, None, None, 0, "")),
        2: ("mixed/harmless", Interval(0.69, None, None, 9, "")),
        3: ("pm/ece", Interval(0.03, None, None, 9, "")),
        4: ("pm/share_of_bayes", Interval(0.94, None, None, 9, "")),
        5: ("frontier/above_bound", Interval(1.0, None, None, 9, "")),
        6: ("gold_gain/best", Interval(0.5, -0.1, 1.1, 9, "")),
        7: ("frontier/r2", Interval(0.5, None, None, 9, "")),
        8: ("gap_early", Interval(0.2, 0.1, 0.3, 9, "")),
        9: ("gap", Interval(0.2, -0.1, 0.5, 9, "")),
    }
    for i, (name, number) in bad.items():
        assert [j for j, (_, holds, _) in enumerate(judge_claims(numbers(**{name: number}))) if not holds] == [i]
