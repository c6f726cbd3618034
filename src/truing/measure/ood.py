"""``truing pm ood``: can prompts of another kind be told from a model's activations alone (2204.05862 §5.4, App B.9)?

A Gaussian is fitted to the activations of prompts that belong (helpful ones, say), layer by layer; prompts far from
it are outliers. With a few outliers at hand one linear layer is trained on the same activations (outlier exposure).
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing.configs import PMOOD
from truing.data.comparisons import conversation_key
from truing.data.files import write_rows
from truing.data.prompts import PACKAGED, PromptRow, load_prompt_rows
from truing.models.compute import choose
from truing.models.states import StateReader
from truing.runs import Run, atomic_write
from truing.stats import Interval
from truing.stats.outliers import Gaussian, Judged, auroc_draws, disjoint, expose, interval_of
from truing.text import to_hh
from truing.train.cost import reading, timed
from truing.train.progress import counting

CHUNK = 256
"""Prompts read between two savings."""
POOL = 0.5
"""At most this share of the outside prompts may be shown as outliers; the others judge."""
SHOWN = 20
ZERO, PLAIN = "zero-shot", "plain Mahalanobis"


@dataclass(frozen=True)
class Split:
    """Who is fitted on and who judges: places of inside and outside prompts; no place is in two roles."""

    fitted: np.ndarray
    judged: np.ndarray
    pool: np.ndarray
    outside: np.ndarray


def make_split(num_inside: int, num_outside: int, fit_share: float, pool: int, rng: np.random.Generator) -> Split:
    """A random split; ``pool`` outside prompts may be shown as outliers. Raises ValueError where a role stays empty."""
    inside, outside = rng.permutation(num_inside), rng.permutation(num_outside)
    cut = round(fit_share * num_inside)
    if cut < 2 or num_inside - cut < 2 or num_outside - pool < 2:
        raise ValueError(
            f"{num_inside} prompts inside and {num_outside} outside are too few: after fitting on {cut} and keeping "
            f"{pool} as possible outliers, two of each kind at least must be left to judge."
        )
    split = Split(inside[:cut], inside[cut:], outside[:pool], outside[pool:])
    disjoint(fitted=split.fitted.tolist(), judged=split.judged.tolist())
    disjoint(shown=split.pool.tolist(), judged=split.outside.tolist())
    return split


@dataclass
class Layer:
    """What one layer tells: AUROC with intervals by method, score rows by method, and mean distances."""

    auroc: dict[str, Interval]
    gain: dict[str, Interval]
    spread: dict[str, float | None]
    distances: dict[str, float]
    first: dict[str, np.ndarray]


def judge_layer(inside: np.ndarray, outside: np.ndarray, splits: Sequence[Split], config: PMOOD) -> Layer:
    """All methods on the states [N, d] and [K, d] of one layer; intervals resample prompts.

    ``auroc`` is a mean over the splits, with exposure over the draws (draw i uses split i modulo their number);
    ``gain`` that of exposure minus zero-shot on the same rows; ``spread`` the deviation over splits or draws.
    """
    found: dict[str, list[Judged]] = {}
    told: dict[str, list[float]] = {"fitted": [], "held_out": [], "outside": [], "shrinkage": []}

    def judge(name: str, split: Split, score: Callable[[np.ndarray], np.ndarray]) -> None:
        judged = Judged(split.judged, score(inside[split.judged]), split.outside, score(outside[split.outside]))
        found.setdefault(name, []).append(judged)

    for split in splits:
        gaussian = Gaussian.fit(inside[split.fitted], config.shrinkage)
        told["fitted"].append(gaussian.fitted_distance)
        told["held_out"].append(gaussian.refuse_fitted(inside[split.judged]))
        told["outside"].append(float(gaussian.full(outside[split.outside]).mean()))
        told["shrinkage"].append(gaussian.shrinkage)
        judge(ZERO, split, gaussian.relative)
        judge(PLAIN, split, gaussian.full)
    for count in config.exposed:
        for draw in range(config.draws):
            split = splits[draw % len(splits)]
            shown = np.random.default_rng([config.seed, count, draw]).choice(split.pool, count, replace=False)
            disjoint(shown=shown.tolist(), judged=split.outside.tolist())
            layer = expose(inside[split.fitted], outside[shown], len(split.fitted) // count)
            judge(exposure(count), split, layer.score)
    return _layer(found, {name: float(np.mean(values)) for name, values in told.items()}, config)


def exposure(count: int) -> str:
    """The name of a series: with so many outliers shown."""
    return f"{count} outlier{'s' if count > 1 else ''} shown"


def _layer(found: dict[str, list[Judged]], distances: dict[str, float], config: PMOOD) -> Layer:
    """Intervals over prompts, from what every method said in its splits or draws."""
    layer = Layer({}, {}, {}, distances, {})
    for name, parts in found.items():
        roles = ([part.inside_ids for part in parts], [part.outside_ids for part in parts])
        n = sum(len(np.unique(np.concatenate(ids))) for ids in roles)  # prompts, however many splits they judged in
        value, draws = auroc_draws(parts, seed=config.seed)
        layer.auroc[name] = interval_of(value, draws, n)
        each = [auroc_draws([part], n_boot=1)[0] for part in parts]
        layer.spread[name] = float(np.std(each, ddof=1)) if len(each) > 1 else None
        layer.first[name] = np.concatenate([parts[0].inside, parts[0].outside])
        if name not in (ZERO, PLAIN):
            without, beside = auroc_draws([found[ZERO][i % config.splits] for i in range(len(parts))], seed=config.seed)
            layer.gain[name] = interval_of(value - without, draws - beside, n)
    return layer


# ---------------------------------------------------------------- the verb


def ood(config: PMOOD, *, reader: StateReader | None = None) -> Run | dict[str, Any]:
    """The verb ``pm ood``: AUROC by layer in ``layers.csv``, drawn on the page; scores at --layer in ``rows.jsonl``.

    ``reader`` stands in for a loaded ``config.model``. The same call again goes on with the activations that are
    kept. Raises ValueError for options out of range and for too few prompts.
    """
    _check(config)
    inside, outside, notes = prompts_of(config)
    splits = _splits(config, len(inside), len(outside))
    if config.dry_run:
        return {"lines": _expected(config, [*inside, *outside], reader)}
    files = [f for f in (config.inside, config.outside) if f not in PACKAGED or Path(f).exists()]
    run = Run.open("pm ood", config, data_files=files, slug=Path(config.model).name)
    if run.done:
        return run
    compute = run.compute(config)
    reader = reader or StateReader.load(config.model, device=compute.device, dtype=compute.dtype)
    chosen = (reader.num_layers + 1) // 2 if config.layer is None else config.layer
    if not 1 <= chosen <= reader.num_layers:
        raise ValueError(f"layer is {chosen}; this model has layers 1 to {reader.num_layers}.")
    states = _kept_states(run, config, reader, [row.dialogue for row in [*inside, *outside]])
    if states is None:
        run.stop({}, ["Stopped before all prompts were read; the same command goes on."])
        return run
    tell = counting("Layers")
    layers: list[Layer] = []
    for layer in states:
        layers.append(judge_layer(layer[: len(inside)], layer[len(inside) :], splits, config))
        tell(len(layers), len(states))
    _write(run, config, layers, chosen, splits[0], inside, outside)
    run.finish(
        _numbers(layers[chosen - 1], states.shape[2], len(inside), len(outside)),
        _notes(config, layers, chosen, splits[0], states.shape[2], notes),
    )
    for part in run.path.glob("states-*.npy"):
        part.unlink()
    return run


def _check(config: PMOOD) -> None:
    for name in ("splits", "draws", "max_length"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")
    if not 0 < config.fit_share < 1:
        raise ValueError(f"fit_share is {config.fit_share}; expected a share between 0 and 1.")
    if any(count < 1 for count in config.exposed) or len(set(config.exposed)) < len(config.exposed):
        raise ValueError(f"exposed is {config.exposed}; expected different numbers of outliers, 1 or more each.")
    if config.shrinkage is not None and not 0 <= config.shrinkage <= 1:
        raise ValueError(f"shrinkage is {config.shrinkage}; expected 0 (none) to 1 (the diagonal alone).")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"limit is {config.limit}; expected 1 or more.")


def prompts_of(config: PMOOD) -> tuple[list[PromptRow], list[PromptRow], list[str]]:
    """Prompts inside and outside, one of each conversation, none of a conversation that stands in both; and notes.

    Raises DataError where none are left.
    """
    notes = []
    kinds = []
    for name in (config.inside, config.outside):
        rows = load_prompt_rows(name)
        first = {conversation_key(row.dialogue): row for row in reversed(rows)}
        kept = [row for row in rows if first[conversation_key(row.dialogue)] is row]
        if len(kept) < len(rows):
            notes.append(f"{len(rows) - len(kept)} prompts of {name} begin like an earlier one and were left out.")
        kinds.append(kept)
    both = {conversation_key(row.dialogue) for row in kinds[0]} & {conversation_key(row.dialogue) for row in kinds[1]}
    if both:
        kinds = [[row for row in rows if conversation_key(row.dialogue) not in both] for rows in kinds]
        notes.append(f"{len(both)} conversations stand in both files and were left out of both.")
    inside, outside = (rows[: config.limit] for rows in kinds)
    return inside, outside, notes


def _splits(config: PMOOD, inside: int, outside: int) -> list[Split]:
    most = max(config.exposed, default=0)
    pool = max(most, min(int(POOL * outside), most * config.draws))
    if most and (pool > POOL * outside or most > config.fit_share * inside):
        raise ValueError(
            f"{most} outliers cannot be shown of {outside} prompts outside, at most half of which may be, beside "
            f"{round(config.fit_share * inside)} prompts inside. Give more prompts, or fewer in --exposed."
        )
    return [
        make_split(inside, outside, config.fit_share, pool, np.random.default_rng([config.seed, s]))
        for s in range(config.splits)
    ]


def _kept_states(run: Run, config: PMOOD, reader: StateReader, prompts: Sequence[Any]) -> np.ndarray | None:
    """States float32 [layers, N, d], from the chunks that the run keeps where they are there; None if time ran out."""
    tell, parts = counting("Prompts"), []
    for start in range(0, len(prompts), CHUNK):
        path = run.path / f"states-{start:07}.npy"
        if not path.exists():
            if config.max_time is not None and time.monotonic() - run.opened > 60 * config.max_time:
                return None
            content = io.BytesIO()
            np.save(content, reader.read([reader.ids(p, config.max_length) for p in prompts[start : start + CHUNK]]))
            atomic_write(path, content.getvalue())
        parts.append(np.load(path))
        tell(min(start + CHUNK, len(prompts)), len(prompts))
    return np.concatenate(parts, 1)


def _expected(config: PMOOD, rows: Sequence[PromptRow], reader: StateReader | None) -> list[str]:
    """What it would take: tokens counted, time and memory measured on a part, and one layer judged."""
    compute = choose(config.device, config.dtype, config.threads)

    def load() -> StateReader:
        return reader or StateReader.load(config.model, device=compute.device, dtype=compute.dtype)

    found, loading = timed(load)
    ids = [found.ids(row.dialogue, config.max_length) for row in rows]
    cost = reading(found, lambda start, stop: found.read(ids[start:stop]), len(ids), CHUNK)
    return [f"{len(ids):,} prompts.", *(loading + cost).lines(compute)]


def _write(
    run: Run,
    config: PMOOD,
    layers: Sequence[Layer],
    chosen: int,
    split: Split,
    inside: Sequence[PromptRow],
    outside: Sequence[PromptRow],
) -> None:
    """``layers.csv``, ``rows.jsonl`` and ``samples.jsonl``: the judged prompts of the first split at one layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["layer", "series", "auroc", "low", "high", "n", "deviation", "held_out_distance", "fitted_distance"]
    )
    for number, layer in enumerate(layers, 1):
        for name, x in layer.auroc.items():
            told = [layer.spread[name], layer.distances["held_out"], layer.distances["fitted"]]
            writer.writerow([number, name, x.value, x.low, x.high, x.n, *told])
    atomic_write(run.path / "layers.csv", text.getvalue())
    judged = [*((row, "inside") for row in (inside[i] for i in split.judged)),
              *((row, "outside") for row in (outside[i] for i in split.outside))]  # fmt: skip
    scores = layers[chosen - 1].first
    table = [
        {"id": row.id, "kind": kind, **{name: float(scores[name][i]) for name in scores}}
        for i, (row, kind) in enumerate(judged)
    ]
    write_rows(run.path / "rows.jsonl", table)
    order = np.argsort(-scores[ZERO])
    shown = [*order[:SHOWN], *order[-SHOWN:]]
    run.write_samples(
        {"prompt": to_hh(judged[i][0].dialogue), "kind": judged[i][1], "distance": round(float(scores[ZERO][i]), 2)}
        for i in dict.fromkeys(int(i) for i in shown)
    )


def _numbers(layer: Layer, size: int, inside: int, outside: int) -> dict[str, Interval]:
    def plain(value: float, unit: str, n: int) -> Interval:
        return Interval(value, None, None, n, unit)

    numbers = {"auroc": layer.auroc[ZERO], "auroc/mahalanobis": layer.auroc[PLAIN]}
    for name, gain in layer.gain.items():
        count = name.split()[0]
        numbers |= {f"auroc/exposed/{count}": layer.auroc[name], f"gain/exposed/{count}": gain}
    both = inside + outside
    told = layer.distances
    numbers |= {
        f"distance/{name}": plain(told[name], "squared deviations", both) for name in ("fitted", "held_out", "outside")
    }
    numbers["dimensions"] = plain(size, "dimensions", both)
    numbers["shrinkage"] = plain(told["shrinkage"], "share", both)
    return numbers | {"inside": plain(inside, "prompts", inside), "outside": plain(outside, "prompts", outside)}


def _notes(
    config: PMOOD, layers: Sequence[Layer], chosen: int, split: Split, size: int, notes: Sequence[str]
) -> list[str]:
    def at(layer: Layer) -> float:
        return layer.auroc[ZERO].value or 0.0

    best = max(range(len(layers)), key=lambda i: at(layers[i])) + 1
    layer, fitted = layers[chosen - 1], len(split.fitted)
    out = [
        *notes,
        f"Numbers are of layer {chosen} of {len(layers)}"
        + (", the middle one, chosen beforehand" if config.layer is None else "")
        + f"; the best without outliers is layer {best} with {at(layers[best - 1]):.3f}, picked by these very rows.",
    ]
    if layer.distances["shrinkage"]:
        out.append(
            f"{fitted} prompts for {size} dimensions: the covariance is shrunk towards its diagonal by "
            f"{layer.distances['shrinkage']:.3f} at that layer."
        )
    elif fitted <= size:
        out.append(
            f"{fitted} prompts for {size} dimensions and no shrinkage: the covariance has no inverse, and what lies "
            f"outside of its span is not seen. Held-out prompts of the same kind lie at "
            f"{layer.distances['held_out']:.0f}, fitted ones at {layer.distances['fitted']:.0f}."
        )
    return out
