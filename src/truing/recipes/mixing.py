"""Does one preference model learn two kinds of preference at once (2204.05862 §5.2)? The verb ``pm mixing``.

Three are trained: on dialogue comparisons, on comparisons of summaries, and on both; each is measured on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.configs import PMMixing
from truing.data.comparisons import conversation_key, load_comparisons, split_by_conversation
from truing.data.provenance import HELD_OUT
from truing.models.lm import LM
from truing.recipes.study_parts import Stopped, check_models, finished, folders, model_hashes, pm_config
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run
from truing.runs.atomic import read_rows
from truing.stats import Interval, difference_interval, mean_interval, se
from truing.train.pm import train_pm
from truing.train.pm_numbers import correctness
from truing.train.pm_setup import data_hash, usable
from truing.types import Comparison

TASKS = {"hh": "dialogues", "tldr": "summaries"}
BOTH = "both"


def tldr_mixing(
    config: PMMixing,
    *,
    hh: Sequence[Comparison] | None = None,
    tldr: Sequence[Comparison] | None = None,
    lm: LM | None = None,
) -> Run | dict[str, Any]:
    """The verb ``pm mixing``: child runs ``pm-hh``, ``pm-tldr``, ``pm-both``; numbers, a figure, a page.

    ``hh``, ``tldr`` and ``lm`` stand in for what the config names. Each task's held-out conversations are the same
    for all three models. The same call again resumes. Raises ValueError where a task cannot be split.
    """
    given = {"hh": hh, "tldr": tldr}
    files = {"hh": config.hh, "tldr": config.tldr}
    notes: list[str] = []
    parts = {}
    for task, rows in given.items():
        kept = usable(rows if rows is not None else load_comparisons(files[task]), f"{TASKS[task]} ", notes)
        parts[task] = split_by_conversation(kept, config.eval_share, config.seed)
    parts = apart(parts, notes)
    for task, part in parts.items():
        if not all(part):
            words = f"{len(part[0])} comparisons of {TASKS[task]} to train on and {len(part[1])} to measure on"
            raise ValueError(f"eval_share is {config.eval_share}, which leaves {words}.")
    if config.dry_run:
        train, held_out = ([c for part in parts.values() for c in part[side]] for side in (0, 1))
        found = train_pm(pm_config(config, config.init, dry_run=True), comparisons=train, eval_comparisons=held_out)
        assert isinstance(found, dict)
        return {"lines": ["The preference model on both (those on one take about as long together):", *found["lines"]]}
    if lm is None:
        check_models([config.init])
    hashes = {task: data_hash(rows) for task, rows in given.items() if rows is not None}
    hashes |= model_hashes({config.init: lm} if lm else None)
    read = [file for task, rows in given.items() if rows is None for file in files[task]]
    run = Run.open("pm mixing", config, data_files=read, data_hashes=hashes, slug=config.init.rsplit("/", 1)[-1])
    if run.done:
        return run
    init = folders(run, [], {"init": lm})["init"] if lm else config.init
    try:
        right = {name: _trained(run, config, init, name, parts) for name in (*TASKS, BOTH)}
    except Stopped as stop:
        run.stop({}, [str(stop)])
        return run
    numbers = numbers_of(right, {task: held for task, (_, held) in parts.items()}, config.seed)
    numbers |= {f"pairs/{t}": Interval(len(p[0]), None, None, len(p[0]), "pairs") for t, p in parts.items()}
    _tell(run, numbers)
    notes.append("Intervals resample held-out conversations; another run of training would add to them.")
    run.finish(numbers, notes)
    return run


Parts = dict[str, tuple[list[Comparison], list[Comparison]]]
"""Task → comparisons to train on, and to measure on."""


def apart(parts: Parts, notes: list[str]) -> Parts:
    """Without training comparisons whose conversation is held out of the other task; ``notes`` hears of them."""
    held = {conversation_key(c) for _, rows in parts.values() for c in rows}
    out = {task: ([c for c in train if conversation_key(c) not in held], rows) for task, (train, rows) in parts.items()}
    if left := sum(len(parts[task][0]) - len(out[task][0]) for task in parts):
        notes.append(f"{left} comparisons to train on begin like a held-out one of the other task and were left out.")
    return out


def _trained(run: Run, config: PMMixing, init: str, name: str, parts: Parts) -> dict[str, np.ndarray]:
    """Train on a task or both; whether each held-out comparison of each task is judged right, [P] by task."""
    train = [c for task, (rows, _) in parts.items() for c in rows if name in (task, BOTH)]
    held_out = [c for _, rows in parts.values() for c in rows]

    def learn(machine: dict[str, Any]) -> Any:
        return train_pm(pm_config(config, init, **machine), comparisons=train, eval_comparisons=held_out)

    child = finished(run, config, f"pm-{name}", learn)
    gaps = np.array([row["gap"] for row in read_rows(child.path / HELD_OUT)])
    cuts = np.cumsum([len(rows) for _, rows in parts.values()])[:-1]
    return dict(zip(parts, map(correctness, np.split(gaps, cuts)), strict=True))


def numbers_of(
    right: dict[str, dict[str, np.ndarray]], held_out: dict[str, list[Comparison]], seed: int = 0
) -> dict[str, Interval]:
    """Accuracy of every model on every task, and what mixing changes on the same comparisons, with its error."""
    numbers = {}
    for task, rows in held_out.items():
        keys = [conversation_key(c) for c in rows]
        for name, by_task in right.items():
            numbers[f"accuracy/{task}/{name}"] = mean_interval(by_task[task], keys, unit="share", seed=seed)
        single, both = right[task][task], right[BOTH][task]
        numbers[f"change/{task}"] = difference_interval(both, single, keys, unit="share", seed=seed)
        error = se(both - single, keys)
        note = "" if error is not None else "one conversation only"
        numbers[f"change_error/{task}"] = Interval(error, None, None, len(rows), "share", note)
    return numbers


def _tell(run: Run, numbers: dict[str, Interval]) -> None:
    """The figure and the page."""
    trained = {name: f"trained on {words}" for name, words in {**TASKS, BOTH: BOTH}.items()}
    bars = {
        f"measured on {words}": {trained[name]: numbers[f"accuracy/{task}/{name}"] for name in trained}
        for task, words in TASKS.items()
    }
    drawn = figures.bars_with_intervals(bars, ylabel="accuracy on held-out comparisons", reference=0.5, percent=True)
    figures.save(drawn, run.figures, "mixing")
    told = [
        f"On {words} the model of both is {_points(numbers[f'change/{task}'])} against the one trained on them alone."
        for task, words in TASKS.items()
    ]
    section = {
        "title": "One preference model for two tasks",
        "text": [
            "A preference model is trained on comparisons of dialogue replies, another on comparisons of summaries, a "
            "third on both together; all are measured on the same held-out comparisons (2204.05862 §5.2, where mixing "
            "cost neither task anything). A task that was not trained on shows what carries over.",
            " ".join(told),
        ],
        "figures": [{"file": "mixing.svg", "caption": "Accuracy with 95% intervals; the dashed line is chance."}],
        "numbers": {name: number.as_dict() for name, number in numbers.items() if name.startswith("change/")},
    }
    write_story(run.path, {"title": "Mixing dialogues and summaries", "sections": [section]})


def _points(change: Interval) -> str:
    ends = (
        "" if change.low is None or change.high is None else f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
    )
    return f"{100 * (change.value or 0):+.1f} points{ends}"
