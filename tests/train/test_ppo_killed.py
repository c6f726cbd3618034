"""A process that is killed (SIGKILL) at random moments ends with the bits of one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ppo_child
import pytest
import torch
from safetensors.torch import load_file

from truing.runs import Run


def start(folder: Path, advantage: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(ppo_child.__file__)), str(folder), advantage]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder.parent)


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def kill_after(folder: Path, advantage: str, step: int, random_: random.Random) -> bool:
    """Start the run and kill it some moment after that step; whether it was killed before its end."""
    process = start(folder, advantage)
    limit = time.monotonic() + 600
    while steps_done(folder) < step and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)
    time.sleep(random_.uniform(0, 0.08))  # about one step: within sampling, an update, a checkpoint, an evaluation
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_a_run_killed_five_times_ends_bit_equal(advantage: str, tmp_path: Path) -> None:
    """Planted: the optimiser, or the value function, left out of the checkpoint; a random stream that goes on."""
    random_ = random.Random(time.time_ns())
    assert start(tmp_path / "whole", advantage).wait(timeout=600) == 0
    moments = sorted(random_.sample(range(1, ppo_child.STEPS - 1), 5 if advantage == "gae" else 2))
    assert all(kill_after(tmp_path / "cut", advantage, step, random_) for step in moments), moments
    assert (
        not (tmp_path / "cut" / "summary.json").exists() and start(tmp_path / "cut", advantage).wait(timeout=600) == 0
    )
    whole, cut = (Run.load(tmp_path / name) for name in ("whole", "cut"))
    one, two = (load_file(run.path / "model" / "model.safetensors") for run in (whole, cut))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one), f"killed after steps {moments}"
    assert whole.summary()["numbers"] == cut.summary()["numbers"]
    logs = [[{k: v for k, v in row.items() if "seconds" not in k} for row in run.metrics()] for run in (whole, cut)]
    assert logs[0] == logs[1] and len(logs[0]) == ppo_child.STEPS + 4  # evaluations at 0, 5, 10 and the end
    assert (whole.path / "evaluations.jsonl").read_text() == (cut.path / "evaluations.jsonl").read_text()
