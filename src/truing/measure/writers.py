"""``truing writers``: how often models' replies are preferred to human writers' (2204.05862 §6.1).

People rank the replies of several arms to one prompt, or choose between two. Rankings of one prompt share its
difficulty and those of one person share a taste, so that intervals are clustered by both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing import stats
from truing.configs import Writers
from truing.data.files import DataError, Row, read_rows, write_rows
from truing.runs import Run
from truing.stats import Interval
from truing.stats.crossed import crossed_interval

EXPECTED = '{"prompt": id, "ranking": [best arm, …, worst arm][, "worker": id]}, or {"prompt", "a", "b", "winner"}'
BAND = "winrates.csv"
POINTS = 12
"""Places of the band over the number of rankings."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Arms from best to worst, as one person (unnamed: "") ranked them for one prompt.

    >>> Ranking(("hh", "writer"), "p1").beats("hh", "writer")
    True
    """

    arms: tuple[str, ...]
    prompt: str
    worker: str = ""

    def beats(self, a: str, b: str) -> bool | None:
        """Whether ``a`` stands before ``b``; None if one of them was not ranked."""
        return self.arms.index(a) < self.arms.index(b) if a in self.arms and b in self.arms else None


def read_rankings(rows: Iterable[Row], where: str | Path = "the rows") -> list[Ranking]:
    """Rankings from rows; a choice between two is a ranking of two. Raises DataError naming line and field."""
    out = []
    for line, row in rows:
        if row.get("prompt") in (None, ""):
            raise DataError(where, f"is missing; expected rows {EXPECTED}", line=line, field="prompt")
        worker = row.get("worker")
        out.append(Ranking(_arms(row, where, line), str(row["prompt"]), "" if worker is None else str(worker)))
    if not out:
        raise DataError(where, f"has no rows; expected {EXPECTED}")
    return out


def _arms(row: dict[str, Any], where: str | Path, line: int) -> tuple[str, ...]:
    field = "ranking" if "ranking" in row else "winner"
    arms: Any = row.get("ranking", [row.get("a"), row.get("b")])
    if field == "winner":
        if row.get("winner") not in ("a", "b"):
            problem = f"is {row.get('winner')!r}; expected 'a' or 'b', or a ranking: {EXPECTED}"
            raise DataError(where, problem, line=line, field=field)
        arms = arms if row["winner"] == "a" else arms[::-1]
    if not isinstance(arms, list) or len(arms) < 2 or not all(isinstance(a, str) and a for a in arms):
        raise DataError(where, f"is {arms!r}; expected two names of arms or more, best first", line=line, field=field)
    if len(set(arms)) < len(arms):
        raise DataError(where, f"names an arm twice: {', '.join(arms)}", line=line, field=field)
    return tuple(arms)


def win_rate(rankings: Sequence[Ranking], a: str, b: str) -> Interval:
    """Share of the rankings of both in which ``a`` stands before ``b``, clustered by prompt and by worker.

    Where not every ranking names its worker, by prompt alone.
    """
    both = [r for r in rankings if r.beats(a, b) is not None]
    wins = [float(bool(r.beats(a, b))) for r in both]
    workers = [r.worker for r in both] if all(r.worker for r in both) else None
    return crossed_interval(wins, [r.prompt for r in both], workers)


def games_of(rankings: Sequence[Ranking]) -> list[tuple[stats.Game, str]]:
    """Every pair of a ranking as a game, and its prompt."""
    return [((a, b, "a"), r.prompt) for r in rankings for a, b in itertools.combinations(r.arms, 2)]


def writers(config: Writers) -> Run | dict[str, Any]:
    """The verb: numbers ``win_rate/ARM/OTHER``, ``first/ARM`` and ``elo/ARM``; the band over rankings in a table.

    Raises DataError for malformed rows, ValueError for a reference that nobody ranked.
    """
    rankings = read_rankings(read_rows(config.file), config.file)
    arms = list(dict.fromkeys(arm for r in rankings for arm in r.arms))
    if config.reference not in arms:
        raise ValueError(
            f"The reference {config.reference!r} is in no ranking; the arms are {', '.join(arms)}. Name one of them "
            "with --reference."
        )
    others = [arm for arm in arms if arm != config.reference]
    if config.dry_run:
        return {"lines": [f"{len(rankings):,} rankings of {', '.join(arms)}; some seconds."]}
    run = Run.open("writers", config, data_files=[config.file], slug=Path(config.file).stem)
    if run.done:
        return run
    pairs = [*((arm, config.reference) for arm in others), *itertools.combinations(others, 2)]
    numbers = {f"win_rate/{a}/{b}": win_rate(rankings, a, b) for a, b in pairs}
    workers = [r.worker for r in rankings] if all(r.worker for r in rankings) else None
    prompts = [r.prompt for r in rankings]
    for arm in arms if any(len(r.arms) > 2 for r in rankings) else ():
        ranked = [i for i, r in enumerate(rankings) if arm in r.arms and len(r.arms) > 2]
        some = None if workers is None else [workers[i] for i in ranked]
        best = [float(rankings[i].arms[0] == arm) for i in ranked]
        numbers[f"first/{arm}"] = crossed_interval(best, [prompts[i] for i in ranked], some)
    games, of_prompt = zip(*games_of(rankings), strict=True)
    elo = stats.elo(list(games), list(of_prompt), config.reference, seed=config.seed)
    numbers |= {f"elo/{arm}": rating for arm, rating in elo.ratings.items()}
    counted = {"rankings": len(rankings), "prompts": len({*prompts})}
    counted |= {"workers": len({*workers})} if workers else {}
    write_rows(run.path / BAND, band(rankings, others, config.reference))
    run.finish(numbers | {k: Interval(v, None, None, v, k) for k, v in counted.items()}, _notes(rankings, workers))
    return run


def band(rankings: Sequence[Ranking], arms: Sequence[str], reference: str) -> list[dict[str, Any]]:
    """Win rate of each arm over the reference after the first n rankings, for some n: how sure it has become."""
    sizes = sorted({round(len(rankings) * i / POINTS) for i in range(2, POINTS + 1)} - {0, 1})
    rows = []
    for arm in arms:
        for n in sizes or [len(rankings)]:
            found = win_rate(rankings[:n], arm, reference)
            rows.append({"arm": arm, "rankings": n, "win_rate": found.value, "low": found.low, "high": found.high})
    return rows


def _notes(rankings: Sequence[Ranking], workers: Sequence[str] | None) -> list[str]:
    if workers is None:
        return ["Not every ranking names its worker: intervals are clustered by prompt alone."]
    notes = ["Intervals of shares are clustered by prompt and by worker, those of Elo resample prompts."]
    busiest = max(workers.count(w) for w in {*workers}) / len(rankings)
    if len({*workers}) < 10 or busiest > 0.5:
        notes.append(
            f"{len({*workers})} workers, the busiest with {busiest:.0%} of the rankings: few tastes are known."
        )
    return notes
