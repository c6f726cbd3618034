"""Options that every comparison takes, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environment import ROOT
from floor import Machine
from side import Outcome, Side, run_side
from truing.runs.facts import surroundings, without_home


@dataclass(frozen=True)
class Verdict:
    """One comparison's end: the largest difference of results, and the ratio or why there is none."""

    difference: float
    tolerance: float
    unit: str
    ratio: float | None
    target: float | None
    note: str = ""

    def __str__(self) -> str:
        head = f"largest difference {self.difference:.2g} {self.unit} (at most {self.tolerance:g} allowed)"
        if self.ratio is None:
            return f"{head}\nNO RATIO: {self.note}"
        met = "" if self.target is None else f"; target {self.target:g}: {_met(self.ratio, self.target)}"
        return f"{head}\nratio {self.ratio:.2f}{met}" + (f" ({self.note})" if self.note else "")


def _met(value: float, target: float) -> str:
    return "met" if value >= target else "MISSED"


def parser(description: str, rows: Sequence[str], repeats: int = 3) -> argparse.ArgumentParser:
    """A parser with the options that all comparisons share; ``rows`` are the names of what can be compared."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    out.add_argument("row", choices=rows, help="what to compare")
    out.add_argument("--model", default="smollm2", help="any model of Llama shape that truing can name")
    out.add_argument("--threads", type=int, default=0, help="for both sides; 0: what measures fastest")
    out.add_argument("--repeats", type=int, default=repeats, help="runs of each side, whose median counts")
    out.add_argument("--tolerance", type=float, default=1e-3, help="nats by which results may differ")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, default=ROOT / "results", help="folder for bench_NAME.json")
    return out


def measure_peak(python: str | Path, threads: int, dtype: str = "float32") -> tuple[Machine, Outcome]:
    """This machine's best, and all that was measured for it. ``dtype`` auto: the one truing chooses here."""
    outcome = run_side(Side("peak", python, "peak.py", {"dtype": dtype}), threads)
    found = outcome["results"]
    return Machine(found["flops"], found["bandwidth"], found["threads"], found["dtype"]), outcome


def best_of(first: Machine, last: Machine) -> Machine:
    """The better of what was measured before and after, so that a busy moment lowers no floor."""
    return Machine(max(first.flops, last.flops), max(first.bandwidth, last.bandwidth), first.threads, first.dtype)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns aligned, numbers to the right; floats with four digits, None as nothing."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row, values in zip([list(columns), *cells], [list(columns), *rows], strict=True):
        numbers = [isinstance(v, int | float) for v in values]
        print("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}" if _num(value) else value
    )


def _num(value: Any) -> bool:
    return isinstance(value, int | float)


def machine_line(machine: Machine) -> str:
    return (
        f"measured in this run: matrix products {machine.flops / 1e9:.0f} GFLOP/s, memory "
        f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.threads} thread{'s' * (machine.threads != 1)}, {machine.dtype}"
    )


def above_floor(seconds: float, floors: dict[str, Any]) -> str:
    """truing's time as a multiple of the higher floor."""
    least = max(floors["compute_seconds"], floors["memory_seconds"])
    return f"truing takes {seconds / least:.2f} times the floor ({least:.3g} s)"


def write(name: str, options: argparse.Namespace, machine: Machine, found: dict[str, Any], verdict: Verdict) -> Path:
    """Writes ``bench_NAME.json``: all that was measured, options, versions and hardware, without the results."""
    given = {k: v for k, v in vars(options).items() if k != "out"} | {"model": without_home(str(options.model))}
    for outcomes in found["outcomes"].values():
        for outcome in outcomes:
            outcome.pop("results", None)
    whole = {
        "bench": name,
        "date": time.strftime("%Y-%m-%d"),
        "options": given,
        "machine": asdict(machine),
        "verdict": {k: v if v != math.inf else None for k, v in asdict(verdict).items()},
        **found,
        **surroundings(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"bench_{name}.json"
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
