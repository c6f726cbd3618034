from __future__ import annotations

import builtins
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from truing.configs import Optim
from truing.runs import Run
from truing.train import loop
from truing.train.loop import Trainable, clip, lr_factor, make_optimizer, param_groups, rng, set_lr, train
from truing.train.progress import Progress


@dataclass(kw_only=True)
class Config(Optim):
    out: Path | None = None
    seed: int = 0
    max_time: float | None = None
    report_to: str = "none"
    learning_rate: float = 1e-2
    save_every: int = 4


def toy(out: Path, kill_at: int = 0, num_steps: int = 20, **options: object) -> tuple[str, Run, nn.Module]:
    """Train a toy with dropout; the process kills itself at step ``kill_at`` if asked."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1)).train()
    config = Config(out=out, **options)  # type: ignore[arg-type]
    optimizer = make_optimizer(param_groups(model, learning_rate=config.learning_rate, weight_decay=0.1), config)
    run = Run.open("toy", config)

    def step(i: int) -> dict[str, float]:
        set_lr(optimizer, i * 8, config, num_steps * 8)
        x = torch.from_numpy(rng(config.seed, i).standard_normal((8, 4))).float()
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = clip(model.parameters(), config.max_grad_norm)
        optimizer.step()
        if i + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": loss.item(), "grad_norm": norm, "samples": (i + 1) * 8}

    state = {"model": Trainable(model), "optimizer": optimizer}
    status = train(run, state=state, num_steps=num_steps, step_fn=step, config=config, label="toy")
    run.close()
    return status, run, model


def fingerprint(model: nn.Module) -> str:
    kept = io.BytesIO()
    for p in model.parameters():
        kept.write(p.detach().numpy().tobytes())
    return hashlib.sha256(kept.getvalue()).hexdigest()


def rows(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


@pytest.mark.parametrize("where", ["step", "checkpoint"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, where: str) -> None:
    _, whole, model = toy(tmp_path / "whole")
    code = f"""
import os, signal, sys, torch; from pathlib import Path
torch.set_num_threads(1); sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_loop
if {where!r} == "checkpoint":
    save = torch.save
    def torn(state, file):
        if "checkpoint-12" in file.name and "optimizer" in file.name:
            file.write(b"half"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)
    torch.save = torn
test_loop.toy(Path({str(tmp_path / "cut")!r}), kill_at=14 if {where!r} == "step" else 0)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    cut = Run.load(tmp_path / "cut")
    assert len(cut.metrics()) >= 11 and loop.checkpoints(cut)[-1].name == f"checkpoint-{12 if where == 'step' else 8}"
    status, cut, resumed = toy(tmp_path / "cut")
    assert status == "done" and fingerprint(resumed) == fingerprint(model)
    assert rows(cut) == rows(whole) and [row["step"] for row in rows(cut)] == list(range(1, 21))
    assert not list(cut.path.glob(".*")), "half-written folders are swept up"


def test_two_checkpoints_are_kept_and_load_without_pickles(tmp_path: Path) -> None:
    _, run, _ = toy(tmp_path / "r")
    assert [p.name for p in loop.checkpoints(run)] == ["checkpoint-16", "checkpoint-20"]
    torch.load(tmp_path / "r/checkpoint-20/optimizer.pt", weights_only=True)
    (tmp_path / "r/checkpoint-20/model.pt").write_bytes(b"rotten")
    with pytest.raises(ValueError, match="checkpoint-20 cannot be read .* one before"):
        toy(tmp_path / "r")


def test_interrupt_ends_the_step_saves_and_goes_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = loop.clip

    def press(parameters: object, norm: float) -> float:
        press.calls += 1
        if press.calls == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(parameters, norm)  # type: ignore[arg-type]

    press.calls = 0
    before = signal.getsignal(signal.SIGINT)
    globals()["clip"], kept = press, clip
    try:
        with pytest.raises(KeyboardInterrupt):
            toy(tmp_path / "r")
    finally:
        globals()["clip"] = kept
    assert "saving" in capsys.readouterr().err and signal.getsignal(signal.SIGINT) is before
    run = Run.load(tmp_path / "r")
    assert loop.checkpoints(run)[-1].name == "checkpoint-6"
    _, _, resumed = toy(tmp_path / "r")
    assert fingerprint(resumed) == fingerprint(toy(tmp_path / "whole")[2])


def test_max_time_stops_cleanly_and_the_same_call_ends_it(tmp_path: Path) -> None:
    assert toy(tmp_path / "r", max_time=0.0)[0] == "stopped"
    assert toy(tmp_path / "r")[0] == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a full disk (Linux)")
def test_a_checkpoint_on_a_full_disk_says_so_and_keeps_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, model = toy(tmp_path, num_steps=4)
    monkeypatch.setattr(loop, "open", lambda name, mode: builtins.open("/dev/full", mode), raising=False)
    with pytest.raises(OSError, match="The disk is full: .*checkpoint-8"):
        loop.save_checkpoint(run, 8, {"model": Trainable(model)})
    assert [p.name for p in loop.checkpoints(run)] == ["checkpoint-4"]


def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path: Path) -> None:
    run = Run.open("toy", Config(out=tmp_path / "r"))

    def step(i: int) -> dict[str, float]:
        return {"loss": math.nan if i == 5 else 1.0}

    with pytest.raises(ValueError, match="loss is nan at step 6.*checkpoint-4"):
        train(run, state={}, num_steps=9, step_fn=step, config=Config(), label="toy")
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="grad_norm is inf at step 5"):
        train(run, state={}, num_steps=9, step_fn=lambda i: {"loss": 1.0, "grad_norm": math.inf}, config=Config())


def test_evaluation_at_start_between_and_end_once_each(tmp_path: Path) -> None:
    config = Config(out=tmp_path / "r", save_every=3)
    run, seen = Run.open("toy", config), []

    def step(i: int) -> dict[str, float]:
        if i == 4 and len(seen) == 2:
            raise RuntimeError
        return {"loss": float(i)}

    def evaluate(done: int) -> dict[str, float]:
        seen.append(done)
        return {"eval_loss": 0.5}

    with pytest.raises(RuntimeError):
        train(run, state={}, num_steps=7, step_fn=step, config=config, eval_fn=evaluate, eval_every=3)
    seen.append(-1)
    train(run, state={}, num_steps=7, step_fn=step, config=config, eval_fn=evaluate, eval_every=3)
    assert seen == [0, 3, -1, 6, 7]
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == [0, 3, 6, 7]


def test_halving_is_counted_in_samples_whatever_the_batch() -> None:
    config = Config(schedule="halve", learning_rate=0.5)
    for batch in (1, 32, 96, 1000):
        rates = [config.learning_rate * lr_factor(step * batch, config, 10**6) for step in range(300_000 // batch)]
        below = next(step for step, rate in enumerate(rates) if rate < 0.5)
        assert below == math.ceil(100_000 / batch) and rates[below] == 0.25
        assert rates[math.ceil(200_000 / batch)] == 0.125


def test_shapes_of_the_schedule() -> None:
    def rates(schedule: str, samples: list[int]) -> list[float]:
        config = Config(schedule=schedule, learning_rate=1.0, warmup_samples=100)  # type: ignore[arg-type]
        return [round(lr_factor(s, config, 1100), 6) for s in samples]

    assert rates("constant", [0, 50, 100, 1100]) == [0.0, 0.5, 1.0, 1.0]
    assert rates("linear", [50, 100, 600, 1100, 2000]) == [0.5, 1.0, 0.5, 0.0, 0.0]
    assert rates("cosine", [50, 100, 600, 1100]) == [0.5, 1.0, 0.5, 0.0]


def test_no_decay_on_norms_biases_heads_embeddings_and_each_group_keeps_its_peak() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.up, self.norm, self.score = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1, bias=False)

    net = Net()
    decayed, rest = param_groups(net, learning_rate=0.1, weight_decay=0.3)
    assert [p is net.up.weight for p in decayed["params"]] == [True] and len(rest["params"]) == 5
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    rest["lr"] = rest["peak"] = 0.8
    config = Config(schedule="halve", learning_rate=0.1)
    optimizer = make_optimizer([decayed, rest], config)
    assert set_lr(optimizer, 100_000, config, 10**6) == 0.05
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.4]
    with pytest.raises(ValueError, match="Nothing to train"):
        make_optimizer([], config)


def test_frozen_parameters_stay_out_of_checkpoints() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert set(Trainable(net).state_dict()) == {"1.weight", "1.bias"}
    with pytest.raises(ValueError, match=r"other parameters than this model \(1.bias"):
        Trainable(net).load_state_dict({"1.weight": net[1].weight})


def test_several_processes_are_refused_rather_than_trained_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2"):
        toy(tmp_path / "r")


def test_a_missing_tracker_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(ValueError, match=f"--report-to {name} needs a package"):
            toy(tmp_path / name, report_to=name)


def test_progress_says_step_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 1.0, 31.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truing.train.progress.time.monotonic", lambda: next(clock))
        with Progress("pm train", 13) as progress:
            progress.show(1, {"loss": 0.7, "samples": 32})
            progress.show(4, {"loss": 0.65, "samples": 128})
    said = capsys.readouterr().err.splitlines()
    assert said == ["pm train: step 1/13, loss 0.7000", "pm train: step 4/13, loss 0.6500, 3.2 samples/s, ETA 1:30"]


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    _, run, _ = toy(tmp_path / "r", num_steps=2)
    first = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["samples"] == 8 and first["seconds"] >= 0
