"""Two real processes over gloo, started by torchrun, against one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import parallel_child as child
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from truing.runs import Run
from truing.train import loop
from truing.train.parallel import ALONE, Group, processes
from truing.train.pm_pairs import _grown, shares, tokenize

CHILD = Path(child.__file__)
JOBS = ["whole", "fsdp", "frozen", "lora"]
KILLED = ["killed", "killed-fsdp"]
POLICIES = list(child.POLICIES)


def torchrun(folder: Path, *jobs: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(CHILD)]
    return subprocess.run([*command, str(folder), *jobs], capture_output=True, text=True, cwd=folder, timeout=300)


def bereaved(folder: Path, job: str) -> None:
    """Two processes, of which the second kills itself in the middle of a job; the first must say what happened.

    Started by hand: torchrun would end the first before it notices.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(CHILD), str(folder), f"{job}:kill"]
        here: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "cwd": folder, "env": {**os.environ, **place}}
        processes.append(subprocess.Popen(command, **here))
    try:
        (_, said), _ = (process.communicate(timeout=200) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    assert "Another process of this training has ended, so this one ends too." in said
    assert not (folder / job / "summary.json").exists()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which two processes did every job, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    for job in KILLED:
        bereaved(folder, job)
    shutil.copytree(folder / "killed", folder / "copy")
    done = torchrun(folder, *JOBS, *KILLED, *POLICIES, "different")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for job in JOBS:
        child.train(folder / job, **(child.JOBS[job] | {"parallel": "ddp", "gradient_checkpointing": False}))
    for job in POLICIES:
        child.train_policy(folder / job, **child.POLICIES[job])
    return folder


def curve(run: Run, name: str) -> np.ndarray:
    return np.array([row[name] for row in run.metrics() if row.get(name) is not None])


def differences(one: Path, two: Path) -> dict[str, float]:
    """Largest difference of each weight, in parts of its largest entry."""
    a, b = load_file(one / "model/model.safetensors"), load_file(two / "model/model.safetensors")
    assert a.keys() == b.keys()
    return {name: ((a[name] - b[name]).abs().max() / a[name].abs().max()).item() for name in a}


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_train_what_one_trains(job: str, together: tuple[Path, str], alone: Path) -> None:
    one, two = Run.load(alone / job), Run.load(together[0] / job)
    assert two.done and len(curve(two, "loss")) == (10 if job == "lora" else 8)  # 1.4 times the rows
    for metric in ("loss", "grad_norm", "accuracy", "samples", "eval_loss", "eval_accuracy"):
        np.testing.assert_allclose(curve(two, metric), curve(one, metric), rtol=1e-4, err_msg=metric)
    assert np.ptp(curve(one, "loss")) > 0.1, "something was learned"
    assert max(differences(one.path, two.path).values()) < 1e-3
    before, after = one.summary()["numbers"], two.summary()["numbers"]
    assert before.keys() == after.keys()
    assert after["accuracy"]["value"] == before["accuracy"]["value"]
    assert after["reference_mean"]["value"] == pytest.approx(before["reference_mean"]["value"], rel=1e-3)
    assert any("2 processes" in note for note in two.summary()["notes"])


@pytest.mark.parametrize("job", POLICIES)
def test_two_processes_take_the_ppo_steps_of_one(job: str, together: tuple[Path, str], alone: Path) -> None:
    one, two = Run.load(alone / job), Run.load(together[0] / job)
    assert two.done and len(curve(two, "loss")) == 3
    for name in ("loss", "score", "kl", "entropy", "grad_norm", "value_grad_norm", "value_loss", "token_visits"):
        np.testing.assert_allclose(curve(two, name), curve(one, name), rtol=1e-3, atol=1e-6, err_msg=name)
    assert one.samples() == two.samples(), "the same replies at every seed"
    before, after = one.summary()["numbers"], two.summary()["numbers"]
    assert before.keys() == after.keys()
    for name, number in before.items():
        wanted = number["value"] and pytest.approx(number["value"], rel=1e-3, abs=1e-6)
        assert after[name]["value"] == wanted, name
    assert max(differences(one.path, two.path).values()) < 1e-3


def test_there_are_two_and_only_the_first_writes_and_speaks(together: tuple[Path, str]) -> None:
    folder, said = together
    first, second = (json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1))
    assert first["whole"]["kind"] == "Run" and second["whole"]["kind"] == "Follower"
    assert first["whole"]["run"] == second["whole"]["run"] and second["whole"]["done"]
    told = [said.count(f"step 1/{steps},") for steps in (8, 10, 3)]
    assert told == [len(JOBS) - 1, 1, len(POLICIES)], "one line per job, not one per process"
    steps = [row["step"] for row in Run.load(folder / "whole").metrics() if "loss" in row]
    assert steps == list(range(1, 9)), "each step is logged once"
    for text in (first["different"], second["different"]):
        assert "different options" in text and "learning_rate: 0.001 there, 0.002 here" in text
    assert not (folder / "different").exists()


def test_a_killed_pair_goes_on_together_and_one_process_goes_on_where_two_stopped(
    together: tuple[Path, str], alone: Path
) -> None:
    folder, said = together
    assert loop.checkpoints(Run.load(folder / "copy"))[-1].name == "checkpoint-3"
    assert said.count("going on from step 3 of 8") == len(KILLED)
    child.train(folder / "copy")
    one = Run.load(alone / "whole")
    for run in (Run.load(folder / name) for name in (*KILLED, "copy")):
        assert run.done and [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 9))
        np.testing.assert_allclose(curve(run, "loss"), curve(one, "loss"), rtol=1e-4)
        assert max(differences(one.path, run.path).values()) < 1e-3


# One process


def test_a_process_that_would_train_alone_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK.*is not set: each process would train alone.*torchrun"):
        child.train(tmp_path / "run")
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # what each does that meets nobody
    try:
        with pytest.raises(ValueError, match="2 processes were started, but 1 met"):
            child.train(tmp_path / "run")
    finally:
        dist.destroy_process_group()
    assert not (tmp_path / "run").exists()


def test_sharding_needs_several_processes_and_the_whole_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fsdp spreads a model over processes, and there is one"):
        child.train(tmp_path / "run", parallel="fsdp")
    for options in ({"frozen_layers": 1}, {"lora_rank": 2}):
        with pytest.raises(ValueError, match="trains the whole model"):
            child.train(tmp_path / "run", parallel="fsdp", **options)


def test_a_batch_is_cut_into_runs_of_about_as_many_tokens() -> None:
    rows = child.comparisons(40)
    pairs = tokenize(rows, lambda d: list("|".join(t.text for t in d.turns).encode()))
    batch = np.random.default_rng(0).permutation(40)
    assert shares(pairs, batch, 1)[0] is batch
    for count in (2, 3, 7):
        found = shares(pairs, batch, count)
        assert np.concatenate(found).tolist() == batch.tolist(), "no pair lost, none twice, in order"
        sizes = [_tokens(pairs, share) for share in found]
        assert max(sizes) < 1.5 * np.mean(sizes), sizes
    assert [len(s) for s in shares(pairs, batch[:1], 3)] == [0, 1, 0], "some may be empty"


def _tokens(pairs: Any, share: np.ndarray) -> int:
    members = list(dict.fromkeys([*pairs.chosen[share].tolist(), *pairs.rejected[share].tolist()]))
    return _grown(pairs, [], members)


def test_alone_everything_is_what_it_is() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([3.0, 4.0])
    ALONE.sum_gradients([p])
    assert p.grad.tolist() == [3.0, 4.0] and ALONE.same(5) == 5 and ALONE.gather(5) == [5] and ALONE.any(True)
    assert ALONE.deal([1, 2, 3]) == [1, 2, 3] and ALONE.deal([]) == []
    assert ALONE.clip([p], 1.0) == 5.0 and p.grad.norm().item() == pytest.approx(1.0)
    with processes() as group:
        assert group is ALONE and group.leads
    dealt = [Group(rank, 2).deal([0, 1, 2]) for rank in (0, 1)]
    assert [len(d) for d in dealt] == [2, 2] and {*dealt[0], *dealt[1]} == {0, 1, 2}
