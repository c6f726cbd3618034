"""What a person sees of a training run while it runs: one line on stderr, and a tracker if asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from truing.runs import Run

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Step, loss, samples per second and time left: a live bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, label: str, num_steps: int, start: int = 0) -> None:
        self.label, self.num_steps, self.start = label, num_steps, start
        self.began = self.said = time.monotonic()
        self.first_samples: float | None = None
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[facts]}"))
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(self.label, total=self.num_steps, completed=self.start, facts="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        """Say how far it is; ``metrics`` hold ``loss`` and perhaps ``samples``."""
        now = time.monotonic()
        facts = self._facts(done, metrics, now - self.began)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, facts=facts)
        elif done in (self.start + 1, self.num_steps) or now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            print(f"{self.label}: {facts}", file=sys.stderr, flush=True)

    def _facts(self, done: int, metrics: Mapping[str, float], seconds: float) -> str:
        facts = [f"step {done}/{self.num_steps}", f"loss {metrics['loss']:.4f}"]
        steps = done - self.start
        if "samples" in metrics and steps > 1:
            if self.first_samples is not None:
                facts.append(f"{(metrics['samples'] - self.first_samples) / max(seconds, 1e-9):.1f} samples/s")
        elif "samples" in metrics:  # the first step carries what is done once: leave it out of the speed
            self.first_samples, self.began, seconds = metrics["samples"], time.monotonic(), 0.0
        if steps > 1:
            facts.append(f"ETA {_clock(seconds / (steps - 1) * (self.num_steps - done))}")
        return ", ".join(facts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def counting(label: str, start: int = 0) -> Callable[[int, int], None]:
    """For work that counts what is done: ``(done, total)`` → "label: 120 of 720, ETA 1:20" on stderr.

    One line that changes on a terminal, a line every ten seconds elsewhere. ``start`` was done before, at no time.
    """
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now, live = time.monotonic(), sys.stderr.isatty()
        if done < total and now - said < (0.5 if live else SECONDS_BETWEEN_LINES):
            return
        said = now
        new, left = done - start, total - done
        eta = f", ETA {_clock((now - began) / new * left)}" if left and new >= (total - start) / 20 else ""
        line = f"{label}: {done:,} of {total:,}{eta}"
        end = "\n" if done == total or not live else ""
        print(f"\r\033[K{line}" if live else line, end=end, file=sys.stderr, flush=True)

    return tell


class Tracker:
    """Sends metrics to tensorboard, wandb or trackio when ``config.report_to`` names one; else does nothing.

    Raises ValueError if the tracker is not installed.
    """

    def __init__(self, run: Run, config: Any) -> None:
        self.name = getattr(config, "report_to", "none")
        self.client: Any = None
        if self.name == "none":
            return
        try:
            self.client = _client(self.name, run)
        except ImportError as problem:
            raise ValueError(
                f"--report-to {self.name} needs a package that is not installed ({problem}). "
                "Install it with: pip install 'truing[trackers]'"
            ) from None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self.client is not None:
            getattr(self.client, "close" if self.name == "tensorboard" else "finish")()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step's metrics; what is undefined is left out."""
        metrics = {name: value for name, value in metrics.items() if value is not None}
        if self.name == "tensorboard":
            for name, value in metrics.items():
                self.client.add_scalar(name, value, step)
        elif self.client is not None:
            self.client.log(dict(metrics), step=step)


def _client(name: str, run: Run) -> Any:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(run.path / "tensorboard"))
    if name == "wandb":
        import wandb

        kept: dict[str, Any] = {"id": run.environment["hash"], "resume": "allow", "dir": str(run.path)}
        return wandb.init(project="truing", name=run.name, config=run.config, **kept)
    import trackio

    trackio.init(project="truing", name=run.name, config=run.config, resume="allow")
    return trackio
