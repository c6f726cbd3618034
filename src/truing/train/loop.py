"""The one training loop: schedule in samples, exact resume, atomic checkpoints, metrics, trackers, progress.

A trained thing hands over its state (named objects with ``state_dict`` and ``load_state_dict``) and one function that
does a step. Whatever is random in a step must follow from (seed, step): the loop seeds torch with them before each
step, and ``rng(seed, step)`` gives the same for numpy. So a run that is killed at any point and started again ends
with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from truing.configs import Adapters, Optim
from truing.runs import Run, atomic_folder
from truing.train.parallel import ALONE, Group, group_for, place, place_moments
from truing.train.progress import Progress, Tracker

SECONDS_BETWEEN_CHECKPOINTS = 120.0
KEPT_CHECKPOINTS = 2
SECONDS_OF_ECHO = 3.0
"""torchrun passes a ctrl-C on that its processes have got already."""


class Stateful(Protocol):
    """What a checkpoint keeps: modules, optimisers, ``Trainable``."""

    def state_dict(self) -> Any:
        """Tensors and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take them back."""


class Trainable:
    """The parameters of a module that require gradients, as state: frozen trunks stay out of checkpoints."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Name → value."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy the values back. Raises ValueError if names differ."""
        if state.keys() != self.parameters.keys():
            odd = sorted(state.keys() ^ self.parameters.keys())[:3]
            raise ValueError(f"The checkpoint holds other parameters than this model ({', '.join(odd)}, …).")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(place(state[name], p))


# Optimiser and schedule


def param_groups(module: nn.Module, *, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups of the parameters that require gradients: with decay, and without.

    Without: norms, biases, embeddings, and heads (modules called score, head or lm_head). Each parameter once.
    """
    plain = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    plain |= {
        id(p)
        for name, m in module.named_modules()
        if name.rpartition(".")[2] in ("score", "head", "lm_head", "embed_out")
        for p in m.parameters()
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in plain]
    rest = [p for p in trained if p.ndim < 2 or id(p) in plain]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [{**group, "lr": learning_rate, "peak": learning_rate} for group in groups if group["params"]]


def make_optimizer(groups: Iterable[Mapping[str, Any]], config: Optim) -> torch.optim.AdamW:
    """Fused AdamW over groups from ``param_groups``; each group keeps its peak rate under ``peak``."""
    filled: list[dict[str, Any]] = [{"peak": group.get("lr", config.learning_rate), **group} for group in groups]
    if not any(group["params"] for group in filled):
        raise ValueError("Nothing to train: no parameter requires gradients. Freeze fewer layers.")
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(filled, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=True)


def lr_factor(samples_seen: int, config: Optim, total_samples: int) -> float:
    """The schedule as a factor 0–1 on the peak rate, for a step before which ``samples_seen`` samples were seen.

    Counted in samples, so that it does not change with the batch (2204.05862 App B.1). ``linear`` and ``cosine``
    end at 0 after ``total_samples``; ``halve`` halves at every ``halve_every`` samples. Warm-up multiplies it.
    """
    warm = min(1.0, samples_seen / config.warmup_samples) if config.warmup_samples else 1.0
    if config.schedule == "halve":
        return warm * 0.5 ** (samples_seen // config.halve_every)
    if config.schedule == "constant":
        return warm
    after = max(0, samples_seen - config.warmup_samples)
    left = 1.0 - min(1.0, after / max(1, total_samples - config.warmup_samples))
    return warm * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def check_optim(config: Optim) -> None:
    """Refuse rates, schedules and norms that mean nothing. Raises ValueError."""
    for name, low in (("learning_rate", 0.0), ("warmup_samples", 0), ("weight_decay", 0.0), ("save_every", 0)):
        if not getattr(config, name) >= low:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {low} or more.")
    for name in ("halve_every", "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; expected a number above 0.")


def check_adapters(config: Adapters) -> None:
    """Refuse ranks and scales that mean nothing. Raises ValueError."""
    if config.lora_rank < 0 or (config.lora_alpha is not None and not config.lora_alpha > 0):
        raise ValueError(
            f"lora_rank is {config.lora_rank} and lora_alpha {config.lora_alpha}; expected numbers above 0."
        )
    if config.lora_alpha is not None and not config.lora_rank:
        raise ValueError("--lora-alpha scales adapters, and there are none. Give --lora-rank too, for example 16.")


def set_lr(optimizer: torch.optim.Optimizer, samples_seen: int, config: Optim, total_samples: int) -> float:
    """Set every group's rate to its own peak times the schedule; returns the body's rate."""
    factor = lr_factor(samples_seen, config, total_samples)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return config.learning_rate * factor


def clip(parameters: Iterable[nn.Parameter], max_norm: float, group: Group = ALONE) -> float:
    """Clip gradients to ``max_norm`` in all (0: do not clip); returns the norm before."""
    if group.sharded:
        return group.clip(list(parameters), max_norm)
    return float(nn.utils.clip_grad_norm_(list(parameters), max_norm or math.inf))


def rng(*parts: int) -> np.random.Generator:
    """A numpy generator that follows from the numbers alone, e.g. ``rng(seed, epoch)``."""
    return np.random.default_rng([part % 2**63 for part in parts])


# Checkpoints


def save_checkpoint(
    run: Run,
    step: int,
    state: Mapping[str, Stateful],
    seconds: float = 0.0,
    keep: int = 0,
    group: Group = ALONE,
) -> Path:
    """Write ``checkpoint-<step>/`` whole or not at all, then drop all but the newest ``keep`` (0: two).

    The leader of ``group`` writes, what was sharded in one piece; the others only hand over their parts.
    """
    path = run.path / f"checkpoint-{step}"
    if not group.leads:
        for thing in state.values():
            group.whole(thing.state_dict())
        return path
    with atomic_folder(path) as folder:
        for name, thing in state.items():
            with open(folder / f"{name}.pt", "wb") as file:  # given a name, torch's writer hides that a disk is full
                torch.save(group.whole(thing.state_dict()), file)
        (folder / "progress.json").write_text(json.dumps({"step": step, "seconds": seconds, "state": sorted(state)}))
    for old in checkpoints(run)[: -(keep or KEPT_CHECKPOINTS)]:
        shutil.rmtree(old)
    return path


def checkpoints(run: Run) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [p for p in run.path.glob("checkpoint-*") if (p / "progress.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def load_checkpoint(run: Run, state: Mapping[str, Stateful], group: Group = ALONE) -> tuple[int, float]:
    """Load the newest checkpoint; returns its step and the seconds trained so far, (0, 0) if there is none.

    Every process of ``group`` loads the one that the leader found. Raises ValueError naming the folder if a
    checkpoint cannot be read.
    """
    newest = group.same([path.name for path in checkpoints(run)][-1:])
    if not newest:
        return 0, 0.0
    path = run.path / newest[0]
    try:
        progress = json.loads((path / "progress.json").read_text())
        how: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": group.sharded}
        saved = {name: torch.load(path / f"{name}.pt", **how) for name in state}
    except Exception as problem:  # torn files raise whatever the unpickler stumbles on
        why = (str(problem) or type(problem).__name__).splitlines()[0]
        where = "" if group.leads else f"Process {group.rank}: all processes need the run's folder. "
        raise ValueError(
            f"{where}{path} cannot be read ({why}). Remove that folder to go on from the one before."
        ) from None
    for name, thing in state.items():
        whole = isinstance(thing, torch.optim.Optimizer) and group.sharded
        thing.load_state_dict(place_moments(saved[name], thing) if whole else saved[name])  # type: ignore[arg-type]
    return progress["step"], progress["seconds"]


# The loop


def train(
    run: Run,
    *,
    state: Mapping[str, Stateful],
    num_steps: int,
    step_fn: Callable[[int], Mapping[str, float]],
    config: Any,
    eval_fn: Callable[[int], Mapping[str, float]] | None = None,
    eval_every: int = 0,
    label: str = "",
    group: Group = ALONE,
) -> Literal["done", "stopped"]:
    """Call ``step_fn(step)`` for steps 0 … num_steps − 1, from the newest checkpoint on; "stopped" at --max-time.

    ``step_fn`` returns metrics with a ``loss``, and ``samples`` (seen so far, this step included) for the speed shown.
    ``eval_fn(steps_done)`` is called before the first step, every ``eval_every`` steps and after the last one. Rows
    of ``metrics.jsonl`` carry ``step`` = steps done. The processes of ``group`` call this together, stop together and
    save together. Raises ValueError when a loss or gradient norm is not finite;
    on ctrl-C or SIGTERM ends the step, writes a checkpoint and raises KeyboardInterrupt.
    """
    group = group_for(group)
    start, before = load_checkpoint(run, state, group)
    run.truncate_metrics(start if checkpoints(run) else -1)
    if start:
        print(f"{label or run.verb}: going on from step {start} of {num_steps}", file=sys.stderr)
    opened = saved = time.monotonic()
    tracker, slowest, done = Tracker(run, config if group.leads else None), 0.0, start

    def seconds() -> float:
        return before + time.monotonic() - opened

    def evaluate(steps_done: int) -> None:
        if eval_fn is not None:
            _note(run, tracker, steps_done, eval_fn(steps_done), seconds())

    with (
        Progress(label or run.verb, num_steps, start) as progress,
        _interruptible(group.size > 1) as interrupted,
        tracker,
    ):
        if start == 0:
            evaluate(0)
        for step in range(start, num_steps):
            began = time.monotonic()
            if group.any(interrupted() or _out_of_time(run, config, slowest)):
                break
            torch.manual_seed(int(rng(config.seed, step).integers(2**63)))
            metrics = dict(step_fn(step))
            _check_finite(run, step + 1, metrics, label)
            done = step + 1
            _note(run, tracker, done, metrics, seconds())
            progress.show(done, metrics)
            if done == num_steps or (eval_every and done % eval_every == 0):
                evaluate(done)
            slowest = max(slowest, time.monotonic() - began)
            if done == num_steps or group.any(_save_is_due(config, done, saved)):
                save_checkpoint(run, done, state, seconds(), group=group)
                saved = time.monotonic()
        if done < num_steps and done > start:
            save_checkpoint(run, done, state, seconds(), group=group)
        if group.any(interrupted()):
            raise KeyboardInterrupt
    return "done" if done == num_steps else "stopped"


def _note(run: Run, tracker: Tracker, step: int, metrics: Mapping[str, float], seconds: float) -> None:
    run.log(step, **metrics, seconds=round(seconds, 3))
    tracker.log(step, metrics)


def _save_is_due(config: Any, done: int, saved: float) -> bool:
    every = getattr(config, "save_every", 0)
    return done % every == 0 if every else time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS


def _out_of_time(run: Run, config: Any, slowest: float) -> bool:
    limit = getattr(config, "max_time", None)
    return limit is not None and time.monotonic() - run.opened + slowest > 60 * limit


def _check_finite(run: Run, step: int, metrics: Mapping[str, float], label: str) -> None:
    if "loss" not in metrics:
        raise ValueError(f"{label or run.verb}: step {step} returned no loss.")
    bad = [name for name in ("loss", "grad_norm") if name in metrics and not math.isfinite(metrics[name])]
    if bad:
        last = checkpoints(run)
        kept = f"The last good checkpoint is {last[-1].name}." if last else "No checkpoint had been written yet."
        raise ValueError(
            f"{label or run.verb}: {bad[0]} is {metrics[bad[0]]} at step {step}, so training stopped. {kept} "
            "A lower --learning-rate, some --warmup-samples or --dtype float32 usually help."
        )


@contextmanager
def _interruptible(many: bool = False) -> Iterator[Callable[[], bool]]:
    """The first ctrl-C or SIGTERM is remembered until the step ends, the second one is obeyed at once.

    With ``many`` processes it must come later than torchrun's echo of the first one.
    """
    asked: list[float] = []

    def ask(_: int, __: object) -> None:
        if asked:
            if many and time.monotonic() - asked[0] < SECONDS_OF_ECHO:
                return
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        print("Ending this step and saving; press ctrl-C again to stop at once.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
