"""What every side's script shares: read a job, time named parts, write the outcome. Standard library only."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Job = dict[str, Any]
_PACKAGES = ("torch", "transformers", "lm_eval", "trl", "accelerate", "truing", "numpy")


class Clock:
    """Wall and CPU seconds (all threads) of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - wall
        self.cpu_seconds[name] = time.process_time() - cpu


def peak_mib() -> float:
    """The most memory this process has held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def run(work: Callable[[Job, Clock], Any]) -> None:
    """The main function of a side's script, called as ``script JOB OUT``: ``work(job, clock)`` gives the results."""
    job, clock = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Clock()
    results = work(job, clock)
    outcome = {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "results": results,
        "peak_mib": round(peak_mib(), 1),
        "versions": versions(),
    }
    Path(sys.argv[2]).write_text(json.dumps(outcome), encoding="utf-8")
