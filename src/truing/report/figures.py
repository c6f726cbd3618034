"""One function per kind of figure: each takes numbers and returns a matplotlib Figure; only ``save`` writes files.

Knows nothing about runs or models. A number with an interval is a ``stats.Interval``, its dict, or a plain number.
Colours are told apart by people with any colour vision (Okabe and Ito 2008). The ink, the grid and the paper have
one colour each, which ``report/page.py`` exchanges for the colours of the reader's light or dark page.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
MARKS = "osD^vPX*"
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "truing",
}
Draw = TypeVar("Draw", bound=Callable[..., Figure])


def _styled(draw: Draw) -> Draw:
    @functools.wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside  # type: ignore[return-value]


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write ``name.svg`` and ``name.png`` into ``folder``; the same figure gives the same bytes every time."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[0], format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], format="png", dpi=144, metadata={"Software": None})
    return paths


def _one(width: float = 6.0, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def bounds(number: Any) -> tuple[Any, Any, Any]:
    """Value, low and high of an Interval, its dict, a plain number, or None."""
    if isinstance(number, Mapping):
        return number.get("value"), number.get("low"), number.get("high")
    if hasattr(number, "value"):
        return number.value, number.low, number.high
    return number, None, None


def _error(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def words(name: str) -> str:
    """A metric's name as a label: ``reply_tokens`` → ``reply tokens``."""
    return re.sub(r"[_/]+", " ", name).strip()


def _legend(figure: Figure, axes: Axes, fewest: int = 2) -> None:
    """A legend above the axes, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) >= fewest:
        columns = min(len(labels), max(1, 66 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


@_styled
def learning_curve(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], *, x: str = "step") -> Figure:
    """Small multiples, one per key, of ``metrics.jsonl`` rows against ``x``; rows without the key are left out.

    From 30 points on, a centred running mean over a tenth of them is drawn over the points.
    """
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(2.7 * columns + 0.6, 2.1 * lines + 0.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, key in zip(panels, keys, strict=False):
        points = [(r[x], r[key]) for r in rows if isinstance(r.get(key), int | float) and r.get(x) is not None]
        xs, ys = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
        window = max(1, len(points) // 10)
        if window > 2:
            panel.plot(xs, ys, ".", ms=2.5, color=COLOURS[5], alpha=0.7)
            mean = np.convolve(ys, np.ones(window) / window, "valid")
            middle = xs[(window - 1) // 2 :][: len(mean)]
            panel.plot(middle, mean, color=COLOURS[0])
        else:
            panel.plot(xs, ys, marker="o", ms=3, color=COLOURS[0])
        panel.set_title(words(key), fontsize=9.5)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(labelsize=8)
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    figure.supxlabel(words(x), fontsize=9)
    return figure


def _bin(row: Any) -> tuple[float, float, Any, Any, float]:
    """Confidence, accuracy, low, high and n of a ``stats.Bin`` or of a dict with its names."""
    if not isinstance(row, Mapping):
        return row.mean_confidence, row.accuracy, row.interval.low, row.interval.high, row.n
    return row["mean_confidence"], row["accuracy"], row.get("accuracy_low"), row.get("accuracy_high"), row["n"]


@_styled
def reliability_diagram(series: Mapping[str, Sequence[Any]] | Sequence[Any], *, title: str = "") -> Figure:
    """Accuracy against confidence per bin, over the share of answers in each bin.

    A series is a list of ``stats.Bin``, or of dicts with mean_confidence, accuracy, n and, if known, accuracy_low and
    accuracy_high. Bars of uncertainty are 95% intervals.
    """
    named = series if isinstance(series, Mapping) else {"model": series}
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot([0, 1], [0, 1], "--", color=INK, lw=1, alpha=0.6, label="perfectly calibrated")
    for i, (label, bins) in enumerate(named.items()):
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        rows = [_bin(b) for b in bins]
        for x, y, down, up, _ in rows:
            top.errorbar(x, y, yerr=_error(y, down, up), fmt=mark, ms=6, capsize=2.5, color=colour)
        top.plot([], [], mark, color=colour, label=label)
        counts = np.array([r[4] for r in rows], float)
        middles = np.array([r[0] for r in rows], float) + (i - (len(named) - 1) / 2) * 0.012
        low.bar(middles, counts / max(1.0, counts.sum()), width=0.012, color=colour)
    top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share right")
    top.set_title(title)
    _legend(figure, top)
    low.set(xlabel="confidence", ylabel="share of\nanswers")
    for axis in (top.xaxis, top.yaxis, low.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    low.yaxis.set_major_locator(MaxNLocator(3))
    return figure


@_styled
def reward_vs_sqrt_kl(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    ylabel: str = "PM score",
    line: bool = True,
    bounds: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Score against √KL (2204.05862 §4.3): rows with ``kl`` (nats) or ``sqrt_kl``, ``score`` and, if known, low, high.

    With ``line`` each series of three or more points gets its least-squares line; ``bounds`` are slopes of dashed
    lines through the origin.
    """
    figure, axes = _one()
    for i, (label, rows) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        xs = np.array([r["sqrt_kl"] if "sqrt_kl" in r else math.sqrt(max(0.0, r["kl"])) for r in rows], float)
        ys = np.array([r["score"] for r in rows], float)
        for x, y, row in zip(xs, ys, rows, strict=True):
            axes.errorbar(x, y, yerr=_error(y, row.get("low"), row.get("high")), color=colour, capsize=2, lw=1)
        axes.plot(xs, ys, MARKS[i % len(MARKS)], ms=5, color=colour, label=words(label))
        if line and len(xs) > 2 and np.ptp(xs) > 0:
            slope, start = np.polyfit(xs, ys, 1)
            ends = np.array([xs.min(), xs.max()])
            axes.plot(ends, start + slope * ends, color=colour, lw=1.2, alpha=0.7)
    right = axes.get_xlim()[1]
    for i, (label, slope) in enumerate(bounds.items()):
        axes.plot([0, right], [0, slope * right], "--", color=INK, lw=1.2, alpha=0.9 / (i + 1), label=words(label))
    axes.set(xlabel="√KL(policy ‖ start), √nats", ylabel=ylabel)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    _legend(figure, axes)
    return figure


@_styled
def lines(
    series: Mapping[str, Sequence[tuple[float, Any]]],
    *,
    xlabel: str,
    ylabel: str,
    reference: float | None = None,
    log_x: bool = False,
    percent: bool = False,
) -> Figure:
    """Series of (x, number) as lines with 95% bands where intervals are known; undefined numbers break a line."""
    figure, axes = _one()
    for i, (label, points) in enumerate(series.items()):
        rows = np.array([(x, *bounds(number)) for x, number in points], float).reshape(-1, 4)
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        axes.plot(rows[:, 0], rows[:, 1], marker=mark, ms=4, color=colour, label=words(label))
        axes.fill_between(rows[:, 0], rows[:, 2], rows[:, 3], color=colour, alpha=0.15, lw=0)
    if reference is not None:
        axes.axhline(reference, color=INK, lw=1, ls="--", alpha=0.6)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
    if not log_x and all(float(x).is_integer() for points in series.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # no layer 1.5
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, axes)
    return figure


@_styled
def elo_ladder(ratings: Mapping[str, Any], *, xlabel: str = "Elo (95% interval)") -> Figure:
    """Arms as points on one scale, best at the top; an arm without a rating (it never lost) is listed as such."""
    known = sorted((k for k in ratings if bounds(ratings[k])[0] is not None), key=lambda k: bounds(ratings[k])[0])
    names = [k for k in ratings if k not in known] + known
    figure, axes = _one(6.0, 0.9 + 0.42 * len(names))
    for i, name in enumerate(names):
        value, low, high = bounds(ratings[name])
        if value is None:
            axes.annotate("  undefined", (0, i), xycoords=("axes fraction", "data"), va="center", fontsize=9)
            continue
        axes.errorbar(
            value, i, xerr=_error(value, low, high), fmt="o", ms=7, capsize=3, color=COLOURS[0], markeredgecolor=PAPER
        )
        axes.annotate(f"{value:+.0f}", (value, i), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(-0.6, len(names) - 0.2), xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    return figure


@_styled
def bars_with_intervals(
    groups: Mapping[str, Any],
    *,
    ylabel: str = "",
    title: str = "",
    reference: float | None = None,
    percent: bool = False,
) -> Figure:
    """Horizontal bars: ``{name: number}``, or ``{group: {series: number}}`` with one colour per series.

    ``reference`` draws a dashed line (chance, a ceiling). An undefined number leaves its place empty.
    """
    nested = {g: dict(v) if _is_group(v) else {"": v} for g, v in groups.items()}
    series = list(dict.fromkeys(s for v in nested.values() for s in v))
    figure, axes = _one(6.2, 0.9 + (0.22 + 0.26 * len(series)) * len(nested))
    height = 0.78 / len(series)
    for i, label in enumerate(series):
        for j, group in enumerate(nested):
            value, low, high = bounds(nested[group].get(label))
            if value is None:
                continue
            y = j + (i - (len(series) - 1) / 2) * height
            axes.barh(y, value, height * 0.9, color=COLOURS[i % len(COLOURS)], label=label if j == 0 else None)
            error = _error(value, low, high)
            if error:
                axes.errorbar(value, y, xerr=error, fmt="none", ecolor=INK, capsize=2.5, lw=1.2)
    if reference is not None:
        axes.axvline(reference, color=INK, ls="--", lw=1)
    axes.set_yticks(range(len(nested)), [words(g) for g in nested])
    axes.set(xlabel=ylabel, ylim=(len(nested) - 0.45, -0.55))
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, axes)
    return figure


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and "value" not in value


@_styled
def matrix_heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    n: Sequence[Sequence[int]] | None = None,
    *,
    label: str = "",
    low: float | None = None,
    high: float | None = None,
    form: str = ".2f",
) -> Figure:
    """A value per cell with its n beneath; an undefined cell (None) stays empty with a dash."""
    grid = np.array([[math.nan if v is None else v for v in row] for row in values], float)
    names = max(map(len, rows), default=0)
    figure, axes = _one(2.6 + 0.08 * names + 1.0 * len(columns), max(2.6, 1.1 + 0.62 * len(rows)))
    known = grid[np.isfinite(grid)]
    low = low if low is not None else float(known.min(initial=0.0))
    high = high if high is not None else float(known.max(initial=low + 1e-9))
    image = axes.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            value = grid[i, j]
            known_cell = bool(np.isfinite(value))
            dark = known_cell and (value - low) / max(1e-9, high - low) < 0.5
            text = format(value, form) if known_cell else "–"
            if n is not None:
                text += f"\nn = {n[i][j]}"
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=8.5,
                color=INK if not known_cell else "#fdfdfd" if dark else "#101214",
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 12 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=label)
    return figure


@_styled
def histogram_pair(
    a: ArrayLike, b: ArrayLike, labels: tuple[str, str] = ("before", "after"), *, xlabel: str = ""
) -> Figure:
    """Two distributions over the same bins, as shares, with their means."""
    figure, axes = _one()
    both = np.concatenate([np.asarray(a, float), np.asarray(b, float)])
    edges = np.histogram_bin_edges(both, bins=min(30, max(5, int(math.sqrt(len(both)))))).tolist()
    for values, label, colour in zip((a, b), labels, COLOURS, strict=False):
        x = np.asarray(values, float)
        if not len(x):
            continue
        share = np.full(len(x), 1 / len(x))
        mean = f"{label} (mean {x.mean():.3g}, n = {len(x)})"
        axes.hist(x, edges, weights=share, color=colour, alpha=0.35)
        axes.hist(x, edges, weights=share, color=colour, histtype="step", lw=1.6, label=mean)
        axes.axvline(x.mean(), color=colour, ls="--", lw=1.2)
    axes.set(xlabel=xlabel, ylabel="share")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, axes, fewest=1)
    return figure


@_styled
def length_matched(
    bins: Sequence[Mapping[str, Any]], labels: tuple[str, str] = ("before", "after"), *, ylabel: str = ""
) -> Figure:
    """Two arms compared among replies of like length.

    Each bin is {"label": "10–20 words", "a": number, "b": number, "n_a": int, "n_b": int}.
    """
    figure, axes = _one()
    for i, key in enumerate(("a", "b")):
        axes.plot([], [], MARKS[i], color=COLOURS[i], label=labels[i])
        for j, row in enumerate(bins):
            value, low, high = bounds(row.get(key))
            if value is not None:
                x = j + (i - 0.5) * 0.24
                axes.errorbar(x, value, yerr=_error(value, low, high), fmt=MARKS[i], ms=6, capsize=3, color=COLOURS[i])
    ticks = [f"{r['label']}\nn = {r.get('n_a', '–')}, {r.get('n_b', '–')}" for r in bins]
    axes.set_xticks(range(len(bins)), ticks)
    axes.set(xlim=(-0.5, len(bins) - 0.5), ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    _legend(figure, axes)
    return figure
