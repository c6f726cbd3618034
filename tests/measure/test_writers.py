"""Models against human writers: win rates from rankings, and intervals that know of prompts and of people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import Writers
from truing.data.files import DataError
from truing.measure.writers import Ranking, band, games_of, read_rankings, win_rate, writers
from truing.stats import share, win_rate_to_elo
from truing.stats.crossed import crossed_interval


def ranked(*arms: str, prompt: str = "p", worker: str = "") -> Ranking:
    return Ranking(arms, prompt, worker)


def test_a_three_way_ranking_is_three_games():
    rows = [{"prompt": 1, "ranking": ["hh", "writer", "helpful"], "worker": "w"}]
    (found,) = read_rankings(enumerate(rows, 1))
    assert [game for game, _ in games_of([found])] == [
        ("hh", "writer", "a"),
        ("hh", "helpful", "a"),
        ("writer", "helpful", "a"),
    ]
    assert win_rate([found], "writer", "hh").value == 0 and win_rate([found], "writer", "helpful").value == 1


def test_a_choice_between_two_is_a_ranking_of_two():
    rows: list[dict[str, Any]] = [{"prompt": "x", "a": "hh", "b": "writer", "winner": w} for w in "ab"]
    assert [r.arms for r in read_rankings(enumerate(rows, 1))] == [("hh", "writer"), ("writer", "hh")]


def test_only_rankings_of_both_count():
    some = [ranked("a", "b"), ranked("b", "a", "c"), ranked("a", "c"), ranked("c", "a")]
    assert win_rate(some, "a", "b").n == 2 and win_rate(some, "a", "c").value == pytest.approx(2 / 3)
    nobody = win_rate(some, "a", "nobody")
    assert nobody.value is None and nobody.note


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ranking": ["a", "b"]}, "line 1.*'prompt'.*missing"),
        ({"prompt": 1, "ranking": ["a"]}, "line 1.*'ranking'.*two names"),
        ({"prompt": 1, "ranking": ["a", "b", "a"]}, "line 1.*names an arm twice"),
        ({"prompt": 1, "a": "x", "b": "y", "winner": "x"}, "line 1.*'winner'.*'a' or 'b'"),
    ],
)
def test_rows_that_are_no_rankings_are_named(row: dict[str, Any], said: str):
    with pytest.raises(DataError, match=said):
        read_rankings([(1, row)])


# ---------------------------------------------------------------- intervals


def test_rows_that_are_all_their_own_have_the_usual_interval():
    x = (np.random.default_rng(0).random(400) < 0.56).astype(float)
    found, usual = crossed_interval(x, range(400), range(400)), share(int(x.sum()), 400)
    assert found.value == usual.value
    assert found.low == pytest.approx(usual.low, abs=0.005) and found.high == pytest.approx(usual.high, abs=0.005)


def test_two_way_variance_is_that_of_its_parts():
    """Against the formula written out: Σ over prompts + Σ over workers − Σ over both, of squared sums of residuals."""
    random = np.random.default_rng(1)
    prompts, workers = random.integers(0, 20, 300), random.integers(0, 15, 300)
    x = 0.5 * random.normal(size=20)[prompts] + 0.5 * random.normal(size=15)[workers] + random.normal(size=300)
    r = x - x.mean()

    def part(codes: np.ndarray) -> float:
        sums = np.array([r[codes == c].sum() for c in np.unique(codes)])
        return len(sums) / (len(sums) - 1) * (sums**2).sum() / 300**2

    wanted = part(prompts) + part(workers) - part(prompts * 100 + workers)
    found = crossed_interval(x, prompts.tolist(), workers.tolist(), unit="")
    assert found.high is not None and found.low is not None
    assert ((found.high - found.low) / 2 / 2.144787) ** 2 == pytest.approx(wanted, rel=1e-4), "t with 14 degrees"


def test_the_interval_holds_the_truth_where_people_and_prompts_differ():
    """Catches intervals by row or by one kind of group alone: they hold the truth far too seldom."""
    random = np.random.default_rng(2)
    hits = {"crossed": 0, "prompts": 0, "rows": 0}
    times = 150
    for _ in range(times):
        prompts, workers = np.repeat(np.arange(40), 5), np.tile(np.arange(10), 20)
        taste = random.normal(0, 0.15, 10)[workers] + random.normal(0, 0.1, 40)[prompts]
        wins = (random.random(200) < np.clip(0.55 + taste, 0, 1)).astype(float)
        for name, groups in (
            ("crossed", (prompts, workers)),
            ("prompts", (prompts, None)),
            ("rows", (range(200), None)),
        ):
            found = crossed_interval(wins, *groups)  # type: ignore[arg-type]
            hits[name] += bool(found.low <= 0.55 <= found.high)  # type: ignore[operator]
    assert hits["crossed"] / times > 0.9
    assert hits["rows"] / times < 0.85 and hits["prompts"] / times < 0.85


def test_what_cannot_be_known_is_said():
    assert crossed_interval([], []).note and crossed_interval([1.0, 0.0], ["p", "p"]).low is None
    sure = crossed_interval([1.0] * 40, list(range(40)), ["w"] * 20 + ["v"] * 20)
    assert sure.value == 1 and sure.high == 1 and sure.low is not None and sure.low < 0.5, "two people only"


# ---------------------------------------------------------------- the verb


def rows_of(n: int, p: float, workers: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """The HH model is preferred to writers with probability p, the helpful-only one comes anywhere."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        order = ["hh", "writer"] if random.random() < p else ["writer", "hh"]
        order.insert(random.integers(3), "helpful")
        rows.append({"prompt": f"p{i % (n // 2)}", "ranking": order, "worker": f"w{random.integers(workers)}"})
    return rows


def test_win_rates_and_elo_agree(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(600, 0.57)))
    summary = writers(Writers(file=str(path), out=tmp_path / "run")).summary()  # type: ignore[union-attr]
    numbers = summary["numbers"]
    hh = numbers["win_rate/hh/writer"]
    assert hh["low"] < 0.57 < hh["high"] and hh["low"] < hh["value"] < hh["high"] and hh["n"] == 600
    assert numbers["elo/writer"]["value"] == 0
    assert numbers["elo/hh"]["value"] == pytest.approx(win_rate_to_elo(hh["value"]), abs=15)
    assert sum(numbers[f"first/{arm}"]["value"] for arm in ("hh", "writer", "helpful")) == pytest.approx(1)
    assert numbers["rankings"]["value"] == 600 and numbers["prompts"]["value"] == 300
    assert "clustered by prompt and by worker" in " ".join(summary["notes"])


def test_the_band_narrows_to_the_final_interval():
    rankings = read_rankings(enumerate(rows_of(300, 0.57), 1))
    rows = band(rankings, ["hh"], "writer")
    widths = [r["high"] - r["low"] for r in rows]
    assert rows[-1]["rankings"] == 300 and rows[-1]["win_rate"] == win_rate(rankings, "hh", "writer").value
    assert widths[-1] < 0.6 * widths[0]
