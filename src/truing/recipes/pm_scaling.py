"""The verb ``pm scaling``: sizes × amounts of data, and Acc = a + b ln P + c ln D (2204.05862 App A.3, Fig 7).

Every cell is a run of ``pm train`` of its own below this run's folder, so that a killed study goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing.configs import PMScaling, PMTrain
from truing.data import toy_hh
from truing.data.comparisons import comparison_to_row, conversation_key, load_comparisons, split_by_conversation
from truing.data.files import write_rows
from truing.data.provenance import HELD_OUT
from truing.models.family import by_size, byte_tokenizer, new_model, num_params, word_tokenizer
from truing.models.lm import LM
from truing.recipes.study_parts import check_models
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run, sweep
from truing.stats import Interval, mean_interval
from truing.stats.scaling import log_linear, scaling_fit
from truing.train.pm import train_pm
from truing.train.pm_numbers import correctness
from truing.train.pm_setup import check, data_hash, usable
from truing.types import Comparison

EVAL_SHARE = 0.2
TOY_PAIRS = 1000
"""Held-out comparisons of the toy world."""
PAPER = {"slope_params": 0.007, "slope_pairs": 0.015}
"""Of the paper's fit to helpful data, 13M to 52B parameters, with the natural logarithm."""


@dataclass(frozen=True)
class Cell:
    """One training: a size, how many comparisons, and its options."""

    size: str
    pairs: int
    config: PMTrain


def pm_scaling(
    config: PMScaling,
    *,
    comparisons: Sequence[Comparison] | None = None,
    eval_comparisons: Sequence[Comparison] | None = None,
) -> Run | dict[str, Any]:
    """Train the grid and fit it. The same call again goes on; comparisons in memory stand in for the files.

    Raises ValueError for sizes or amounts that mean nothing, or more pairs than there are.
    """
    notes: list[str] = []
    _check(config)
    rows, held_out = _data(config, comparisons, eval_comparisons, notes)
    toy = comparisons is None and not config.data
    if config.dry_run:
        return {"lines": _expected(config, rows, held_out, toy)}
    check_models([size for size in config.sizes if not _is_shape(size)])
    given = {"comparisons": comparisons, "eval_comparisons": eval_comparisons}
    hashes = {name: data_hash(some) for name, some in given.items() if some is not None}
    run = Run.open("pm scaling", config, data_files=[*config.data, *config.eval_data], data_hashes=hashes)
    if run.done:
        return run
    cells = _cells(config, run.path, rows, held_out, toy)
    runs: list[Run] = []
    for some in [cells] if config.workers > 1 else [[cell] for cell in cells]:
        left = None if config.max_time is None else config.max_time - (time.monotonic() - run.opened) / 60
        if left is not None and left <= 0:
            break
        found = sweep(_train, [dataclasses.replace(cell.config, max_time=left) for cell in some], config.workers)
        runs += found
        if not all(r.done for r in found):
            break
    done = [(cell, r) for cell, r in zip(cells, runs, strict=False) if r.done]
    if len(done) < len(cells):
        run.stop({}, [f"Stopped after {len(done)} of {len(cells)} cells; the same command goes on."])
        return run
    _leave(run, config, done, held_out, toy, notes)
    return run


def _check(config: PMScaling) -> None:
    """Refuse options that mean nothing before anything is made or trained."""
    for name in ("sizes", "pairs"):
        given = getattr(config, name)
        if not given or len(set(given)) < len(given) or any(n < 1 for n in config.pairs):
            raise ValueError(
                f"sizes are {config.sizes} and pairs {config.pairs}; expected at least one of each, none of them twice."
            )
    check(PMTrain(init="", data=[], **_options(config)))


def _options(config: PMScaling) -> dict[str, Any]:
    """How every cell is trained."""
    machine = ("seed", "device", "dtype", "threads")
    names = (*machine, "epochs", "batch_size", "learning_rate", "frozen_layers", "max_length")
    return {name: getattr(config, name) for name in names}


def _is_shape(size: str) -> bool:
    """Whether a size is made from scratch; else it names a model."""
    try:
        by_size(size)
    except ValueError:
        return False
    return True


def _train(config: PMTrain) -> Run:
    """One cell; a function of this file, so that a process of its own can find it."""
    run = train_pm(config)
    assert isinstance(run, Run)
    return run


def _data(
    config: PMScaling,
    given: Sequence[Comparison] | None,
    given_eval: Sequence[Comparison] | None,
    notes: list[str],
) -> tuple[list[Comparison], list[Comparison]]:
    """Training comparisons, in an order of which every amount is a beginning, and held-out ones.

    None that a cell would leave out (unsure ones): what was asked for is trained on, and all cells judge all rows.
    """
    kinds = ("helpful", "harmless") if config.kind == "both" else (config.kind,)
    if given is None and not config.data:
        most = max(config.pairs)
        return _toy(kinds, most, config.seed, "train"), _toy(kinds, TOY_PAIRS, config.seed, "test")
    rows = usable(given if given is not None else load_comparisons(config.data), "", notes)
    rows = [c for c in rows if c.kind in kinds]
    if given_eval is not None or config.eval_data:
        held_out = list(given_eval) if given_eval is not None else load_comparisons(config.eval_data)
        held_out = [c for c in usable(held_out, "held-out ", notes) if c.kind in kinds]
    else:
        rows, held_out = split_by_conversation(rows, EVAL_SHARE, config.seed)
    if max(config.pairs) > len(rows) or not held_out:
        raise ValueError(
            f"--pairs asks for {max(config.pairs):,} comparisons; there are {len(rows):,} to train on and "
            f"{len(held_out):,} held out ({' and '.join(kinds)}). Ask for fewer, or give more data."
        )
    random.Random(f"scaling-{config.seed}").shuffle(rows)
    return rows, held_out


def _toy(kinds: Sequence[Any], n: int, seed: int, split: Any) -> list[Comparison]:
    """The toy world's comparisons, kinds by turns."""
    parts = [toy_hh.toy_comparisons(math.ceil(n / len(kinds)), seed, kind, split) for kind in kinds]
    return [c for some in zip(*parts, strict=True) for c in some][:n]


def _cells(
    config: PMScaling, folder: Path, rows: Sequence[Comparison], held_out: Sequence[Comparison], toy: bool
) -> list[Cell]:
    """The grid, with its models made and its data written below ``folder``."""
    for n in config.pairs:
        _write(folder / "data" / f"{n}.jsonl", rows[:n])
    _write(folder / "data" / "held_out.jsonl", held_out)
    names, shapes = {}, dict[Any, str]()
    for size in config.sizes:
        lm = _scratch(config, size, toy)
        names[size] = size if lm is None else str(folder / "models" / size)
        same = shapes.setdefault(size if lm is None else num_params(lm.model), size)
        if same != size:
            raise ValueError(f"Sizes {same} and {size} make the same model; take them further apart.")
        if lm is not None and not Path(names[size]).exists():
            lm.save(names[size])
    return [
        Cell(
            size,
            n,
            PMTrain(
                init=names[size],
                data=[str(folder / "data" / f"{n}.jsonl")],
                eval_data=[str(folder / "data" / "held_out.jsonl")],
                out=folder / "cells" / f"{Path(size).name}-{n}",
                **_options(config),
            ),
        )
        for size in config.sizes
        for n in config.pairs
    ]


def _write(path: Path, rows: Sequence[Comparison]) -> None:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_rows(path, [comparison_to_row(c) for c in rows])


def _scratch(config: PMScaling, size: str, toy: bool) -> LM | None:
    """A new model of a size, over the toy world's words or bytes; None for the name of a model."""
    if not _is_shape(size):
        return None
    shape = by_size(size)
    tokenizer = word_tokenizer(toy_hh.WORDS) if toy else byte_tokenizer()
    model = new_model(
        "llama",
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        vocab_size=len(tokenizer),
        max_positions=config.max_length,
        seed=config.seed,
    )
    return LM(model, tokenizer, name=size)


def _expected(config: PMScaling, rows: Sequence[Comparison], held_out: Sequence[Comparison], toy: bool) -> list[str]:
    """What each size would take on the most data; the other amounts add in proportion."""
    most = max(config.pairs)
    out = [
        f"{len(config.sizes) * len(config.pairs)} cells; {sum(config.pairs) / most:.2f} times the largest of each size."
    ]
    for size in config.sizes:
        lm = _scratch(config, size, toy)
        one = PMTrain(init=size, data=[], dry_run=True, **_options(config))
        found = train_pm(one, comparisons=rows[:most], eval_comparisons=held_out, lm=lm)
        out += [f"{size}, {most:,} comparisons: {line}" for line in found["lines"]]  # type: ignore[index]
    return out


# What there is at the end


def _leave(
    run: Run,
    config: PMScaling,
    done: Sequence[tuple[Cell, Run]],
    held_out: Sequence[Comparison],
    toy: bool,
    notes: list[str],
) -> None:
    """Accuracies, the fit, figures and the page."""
    keys = [conversation_key(c) for c in held_out]
    sizes = {cell.size: _params(r) for cell, r in done}
    correct = np.array([correctness(_gaps(r)) for _, r in done])
    found = {
        (cell.size, cell.pairs): mean_interval(right, keys, unit="share", seed=config.seed)
        for (cell, _), right in zip(done, correct, strict=True)
    }
    params, pairs = [sizes[cell.size] for cell, _ in done], [cell.pairs for cell, _ in done]
    fit = scaling_fit(correct, params, pairs, keys, seed=config.seed)
    numbers: dict[str, Interval] = {f"accuracy/{Path(s).name}-{n}": x for (s, n), x in found.items()} | fit
    numbers |= {f"params/{Path(s).name}": Interval(p, None, None, 1, "parameters") for s, p in sizes.items()}
    if toy:
        bound = toy_hh.bayes_rate(held_out)
        numbers["bayes_rate"] = Interval(bound, None, None, len(held_out), "share")
        notes.append(f"Simulated people who err: no model can expect more than {bound:.1%} on these comparisons.")
    _draw(run, config, found, sizes)
    write_story(run.path, _story(config, found, sizes, fit, toy))
    run.finish(numbers, notes)


def _gaps(run: Run) -> np.ndarray:
    return np.array([json.loads(line)["gap"] for line in (run.path / HELD_OUT).read_text().splitlines()])


def _params(run: Run) -> int:
    return num_params(LM.load(run.config["init"]).model)


def _draw(run: Run, config: PMScaling, found: Mapping[tuple[str, int], Interval], sizes: Mapping[str, int]) -> None:
    by_data = {f"{Path(s).name} ({sizes[s]:,})": [(n, found[s, n]) for n in config.pairs] for s in config.sizes}
    axes: dict[str, Any] = {"ylabel": "held-out accuracy", "reference": 0.5, "log_x": True, "percent": True}
    figures.save(figures.lines(by_data, xlabel="comparisons", **axes), run.figures, "by_data")
    by_size_ = {f"{n:,} comparisons": [(sizes[s], found[s, n]) for s in config.sizes] for n in config.pairs}
    drawn = figures.lines(by_size_, xlabel="parameters outside embeddings", **axes)
    figures.save(drawn, run.figures, "by_params")


def _story(
    config: PMScaling,
    found: Mapping[tuple[str, int], Interval],
    sizes: Mapping[str, int],
    fit: Mapping[str, Interval],
    toy: bool,
) -> dict[str, Any]:
    names = [Path(s).name for s in config.sizes]
    cells = [(sizes[s], n, found[s, n].value or 0.0) for s, n in found]
    line = log_linear(*zip(*cells, strict=True))
    said = (
        ""
        if line is None
        else f" Here Acc = {line[0]:.3f} {line[1]:+.4f} ln P {line[2]:+.4f} ln D, R² = {line[3]:.2f}."
    )
    world = "the packaged toy world" if toy else ", ".join(Path(f).name for f in config.data) or "memory"
    slopes = [
        [label, fit[key].as_dict(), PAPER[key]]
        for key, label in (("slope_params", "per e-fold of parameters"), ("slope_pairs", "per e-fold of comparisons"))
    ]
    return {
        "title": "Preference models by size and data",
        "subtitle": f"{len(names)} sizes × {len(config.pairs)} amounts of {config.kind} comparisons of {world}.",
        "sections": [
            {
                "title": "Accuracy",
                "text": "Each point is a preference model trained once and judged on the same held-out comparisons.",
                "figures": [
                    {"file": "by_data.svg", "caption": "Against the comparisons trained on; bands: 95% intervals."},
                    {"file": "by_params.svg", "caption": "Against the parameters outside embeddings."},
                ],
                "tables": [
                    {
                        "caption": "Held-out accuracy.",
                        "columns": ["comparisons", *names],
                        "rows": [[n, *(found[s, n].as_dict() for s in config.sizes)] for n in config.pairs],
                    }
                ],
            },
            {
                "title": "The log-linear fit",
                "text": "The paper finds Acc = 0.72 + 0.007 ln(P / 10¹¹) + 0.015 ln(D / 80,000) for helpful data, from "
                f"13 million to 52 billion parameters.{said} Slopes depend on the data and on how far models are from "
                "what the data allow; they are comparable in sign, not in size.",
                "numbers": {"r2": fit["r2"].as_dict(), "fitted": fit["fitted"].as_dict()},
                "tables": [
                    {"caption": "Gain of accuracy.", "columns": ["", "here", "paper"], "rows": slopes},
                ],
                "notes": ["Intervals resample held-out conversations and cells: one training a cell is one draw."],
            },
        ],
    }
