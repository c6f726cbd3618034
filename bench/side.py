"""Both sides of a comparison as processes on the same job: alternated, timed, their results compared.

A side is a script that `clock.run` drives, in the Python of its environment. Loading the model is not timed, every
process warms up first, and every repeat is a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from environment import WORK

HERE = Path(__file__).resolve().parent
Outcome = dict[str, Any]
"""``seconds`` and ``cpu_seconds`` by part, ``results``, ``peak_mib``, ``versions``."""


class ResultsDiffer(ValueError):
    """The two sides did not compute the same thing, so their times must not be compared."""


@dataclass(frozen=True)
class Side:
    """A script of this folder, the Python that runs it, and its job (plain JSON)."""

    name: str
    python: str | Path
    script: str | Path
    job: dict[str, Any]


def run_side(side: Side, threads: int) -> Outcome:
    """One run in a process of its own. Raises RuntimeError with the end of its stderr if it fails.

    ``threads`` 0 leaves the choice to the script.
    """
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job-", dir=WORK) as folder:
        job, out = Path(folder, "job.json"), Path(folder, "out.json")
        job.write_text(json.dumps({**side.job, "threads": threads}), encoding="utf-8")
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": _python_path(side)}
        process = subprocess.run(
            [str(side.python), str(HERE / side.script), str(job), str(out)],
            env={**os.environ, **limits, **quiet},
            capture_output=True,
            text=True,
        )
        if process.returncode or not out.is_file():
            raise RuntimeError(f"{side.name} failed with exit code {process.returncode}:\n{process.stderr[-3000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def _python_path(side: Side) -> str:
    """Our side sees what this process sees; a peer sees its own environment alone."""
    return os.environ.get("PYTHONPATH", "") if str(side.python) == sys.executable else ""


def pick_batch(peer: Side, sizes: Sequence[int], threads: int) -> tuple[int, dict[str, float]]:
    """The peer's fastest batch size on its own trial, and the seconds of each; nothing is tried if there is one."""
    if len(sizes) == 1:
        return sizes[0], {}
    outcome = run_side(replace(peer, job={**peer.job, "try_batch_sizes": list(sizes)}), threads)
    tried = {part.removeprefix("batch "): seconds for part, seconds in outcome["seconds"].items()}
    shown = ", ".join(f"{size}: {seconds:.2f} s" for size, seconds in tried.items())
    print(f"  {peer.name} by batch size: {shown}", file=sys.stderr, flush=True)
    return min(sizes, key=lambda size: tried[str(size)]), tried


def alternate(sides: Sequence[Side], threads: int, repeats: int) -> dict[str, list[Outcome]]:
    """Every side ``repeats`` times, in turn; the order is turned round each time. Outcomes by side's name."""
    found: dict[str, list[Outcome]] = {side.name: [] for side in sides}
    for i in range(repeats):
        for side in sides if i % 2 == 0 else reversed(sides):
            found[side.name].append(run_side(side, threads))
            spent = ", ".join(f"{part} {s:.2f} s" for part, s in found[side.name][-1]["seconds"].items())
            print(f"  {i + 1} of {repeats}: {side.name}: {spent}", file=sys.stderr, flush=True)
    return found


def median(outcomes: Iterable[Outcome], part: str, clock: str = "seconds") -> float:
    """Median of one part's time over the repeats."""
    return statistics.median(outcome[clock][part] for outcome in outcomes)


def spread(outcomes: Iterable[Outcome], part: str) -> tuple[float, float]:
    """Least and most wall seconds of one part."""
    seconds = [outcome["seconds"][part] for outcome in outcomes]
    return min(seconds), max(seconds)


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest absolute difference; infinite if lengths differ, nothing is there, or a number is not finite."""
    if len(ours) != len(theirs) or not ours or not all(map(math.isfinite, [*ours, *theirs])):
        return math.inf
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def ratio(theirs: float, ours: float, difference: float, tolerance: float) -> float:
    """How many times as long the other side takes. Raises ResultsDiffer unless ``difference <= tolerance``."""
    if not difference <= tolerance:
        raise ResultsDiffer(
            f"no ratio: the two sides' results differ by {difference:.3g}, and at most {tolerance:.3g} was allowed"
        )
    return theirs / ours


def scaled(seconds: dict[int, float], size: int, steadiness: float = 0.15) -> float:
    """Seconds for ``size`` items from those of two smaller sizes, at the lower of their times per item.

    Raises ValueError if the time per item is not the same for both within ``steadiness``: then it must not be scaled.
    """
    each = {n: s / n for n, s in seconds.items()}
    if len(each) < 2 or max(each.values()) > (1 + steadiness) * min(each.values()):
        shown = ", ".join(f"{s:.3g} s at {n}" for n, s in each.items())
        raise ValueError(f"the time per item is not constant ({shown}), so it cannot be scaled to {size}")
    return size * min(each.values())
