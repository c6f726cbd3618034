"""Figures: every kind draws, shows what it was given, and the same numbers give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from truing.report import figures
from truing.stats import Interval, reliability

SOME, NONE = Interval(0.4, 0.3, 0.5, 50), Interval(None, None, None, 0, note="nothing")
BINS = reliability([0.1, 0.2, 0.7, 0.9] * 10, [0, 0, 1, 1] * 10, bins=4).bins
DICT_BINS = [{"mean_confidence": 0.2, "accuracy": 0.3, "n": 5, "accuracy_low": 0.1, "accuracy_high": 0.5}]
CALLS: dict[str, Any] = {
    "curve": lambda: figures.learning_curve([{"step": i, "loss": 1 / (i + 1)} for i in range(40)], ["loss"]),
    "reliability": lambda: figures.reliability_diagram({"before": BINS, "after": DICT_BINS}),
    "kl": lambda: figures.reward_vs_sqrt_kl({"pm": [{"kl": k, "score": k, "low": 0, "high": 9} for k in range(4)]}),
    "lines": lambda: figures.lines(
        {"a": [(0, SOME), (1, NONE)], "b": [(0, 0.1), (1, 0.2)]}, xlabel="x", ylabel="y", reference=0.5, percent=True
    ),
    "elo": lambda: figures.elo_ladder({"base": 0, "rlhf": Interval(50.0, 20.0, 90.0, 9), "sure": NONE}),
    "bars": lambda: figures.bars_with_intervals({"all": {"a": SOME, "b": NONE}, "rest": {"a": 0.2}}, reference=0.5),
    "heat": lambda: figures.matrix_heatmap(["x"], ["y", "z"], [[0.5, None]], [[3, 0]]),
    "histograms": lambda: figures.histogram_pair([0.0, 1.0, 2.0], [1.0, 2.0, 2.0]),
    "lengths": lambda: figures.length_matched([{"label": "1–5", "a": SOME, "b": NONE, "n_a": 4, "n_b": 0}]),
}


def texts(figure: Figure) -> str:
    """Every word on a figure."""
    figure.draw_without_rendering()
    return " | ".join(t.get_text() for t in figure.findobj(lambda o: hasattr(o, "get_text")))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CALLS)
def test_every_figure_is_drawn_and_the_same_twice(name: str, tmp_path: Path):
    first = [p.read_bytes() for p in figures.save(CALLS[name](), tmp_path / "a", name)]
    again = [p.read_bytes() for p in figures.save(CALLS[name](), tmp_path / "b", name)]
    assert first == again
    assert first[0].startswith(b"<?xml") and b"<dc:date>" not in first[0]
    assert first[1].startswith(b"\x89PNG")


def test_undefined_numbers_are_said_and_not_drawn():
    assert "undefined" in texts(CALLS["elo"]())
    assert "–" in texts(CALLS["heat"]())
    bars = CALLS["bars"]().axes[0].patches
    assert len(bars) == 2  # a of "all", a of "rest"; b of "all" is undefined


def test_lines_have_bands_where_intervals_are_known():
    axes = figures.lines({"a": [(0, SOME), (2, Interval(0.5, 0.4, 0.6, 9))]}, xlabel="x", ylabel="y").axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.4, 0.5]
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.3, 0.6)


def test_the_ladder_is_in_order_of_strength():
    axes = figures.elo_ladder({"low": -20, "high": 80, "middle": 10}).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["low", "middle", "high"]
    assert "+80" in texts(figures.elo_ladder({"a": 80}))


def test_reliability_shows_the_bins_it_was_given():
    top = figures.reliability_diagram(DICT_BINS).axes[0]
    drawn = [line for line in top.lines if list(line.get_xdata()) == [0.2]]
    assert any(list(line.get_ydata()) == [0.3] for line in drawn)
    assert any(list(line.get_ydata()) == [0.1] for line in drawn), "the lower end of the interval"


def test_curves_leave_out_rows_without_the_number():
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "other": 2}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.5}]
    line = figures.learning_curve(rows, ["loss"]).axes[0].lines[0]
    assert list(line.get_xdata()) == [0, 3] and list(line.get_ydata()) == [1.0, 0.5]


def test_labels_do_not_overlap_on_a_long_ladder():
    figure = figures.elo_ladder({f"an arm with a rather long name {i}": i * 10 for i in range(8)})
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert all(a.y1 <= b.y0 for a, b in zip(boxes, boxes[1:], strict=False))
    assert min(b.x0 for b in boxes) >= 0
