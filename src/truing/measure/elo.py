"""``truing elo``: ratings of arms from comparisons, intervals over conversations or workers (2204.05862 App B.5)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing import stats
from truing.configs import EloConfig
from truing.data.files import DataError, Row, read_rows, write_rows
from truing.runs import Run

_EXPECTED = '{"a": arm, "b": arm, "winner": "a" or "b", "conversation": id[, "worker": id]}'


@dataclass(frozen=True, slots=True)
class Games:
    """Decided comparisons ``(a, b, winner)``, and the group each belongs to; ``by`` says what the groups are."""

    games: tuple[stats.Game, ...]
    clusters: tuple[Hashable, ...]
    by: str
    notes: tuple[str, ...] = ()


def read_games(rows: Iterable[Row], where: str | Path = "the rows") -> Games:
    """Games from rows ``{"a","b","winner","conversation"[,"worker"]}``.

    They are grouped by worker where every row names one, because one person's tastes recur in all their
    conversations; otherwise by conversation. Raises DataError naming the line and the field.
    """
    games: list[stats.Game] = []
    conversations: list[Hashable] = []
    workers: list[Hashable] = []
    for line, row in rows:
        a, b = _arm(row, "a", where, line), _arm(row, "b", where, line)
        if a == b:
            raise DataError(where, f"is {b!r}, the same arm as 'a'; leave such rows out", line=line, field="b")
        winner = row.get("winner")
        if winner not in ("a", "b"):
            problem = f"is {winner!r}; expected 'a' or 'b', the column and not the arm's name. Leave ties out"
            raise DataError(where, problem, line=line, field="winner")
        if row.get("conversation") in (None, ""):
            problem = f"is missing; expected rows {_EXPECTED}. Number the rows if each is a conversation of its own"
            raise DataError(where, problem, line=line, field="conversation")
        games.append((a, b, winner))
        conversations.append(str(row["conversation"]))
        workers.append(row.get("worker"))
    if not games:
        raise DataError(where, f"has no rows; expected {_EXPECTED}")
    named = [w for w in workers if w not in (None, "")]
    if len(named) == len(games) and len({str(w) for w in workers}) > 1:
        return Games(tuple(games), tuple(map(str, workers)), "worker")
    notes = []
    if named and len(named) < len(games):
        notes.append(
            f"{len(games) - len(named)} of {len(games)} rows name no worker, so intervals are by conversation; "
            "they take one person's conversations as independent."
        )
    elif named:
        notes.append("All rows come from one worker: intervals are by conversation and say nothing of other people.")
    return Games(tuple(games), tuple(conversations), "conversation", tuple(notes))


def _arm(row: dict[str, Any], key: str, where: str | Path, line: int) -> str:
    arm = row.get(key)
    if not isinstance(arm, str) or not arm:
        problem = f"is {arm!r}; expected the name of an arm, as in {_EXPECTED}"
        raise DataError(where, problem, line=line, field=key)
    return arm


def elo(config: EloConfig) -> Run | dict[str, Any]:
    """The verb: numbers ``elo/ARM``, the tables ``elo.csv`` (rating, standard error, games) and ``wins.csv``.

    With ``dry_run`` the file is read and counted and nothing is written. Raises DataError for malformed rows,
    ValueError for an unknown anchor.
    """
    found = read_games(read_rows(config.file), config.file)
    arms = list(dict.fromkeys(arm for a, b, _ in found.games for arm in (a, b)))
    if config.anchor is not None and config.anchor not in arms:
        raise ValueError(f"The anchor {config.anchor!r} is in no game; the arms are {', '.join(arms)}.")
    groups = f"{len(set(found.clusters)):,} {found.by}{'s' * (len(set(found.clusters)) > 1)}"
    if config.dry_run:
        return {"lines": [f"{len(found.games):,} games in {groups}.", *_expected(config, found)]}
    run = Run.open("elo", config, data_files=[config.file], slug=Path(config.file).stem)
    if run.done:
        return run
    result = stats.elo(found.games, found.clusters, config.anchor, seed=config.seed)
    write_rows(run.path / "elo.csv", elo_table(result))
    write_rows(run.path / "wins.csv", wins_table(found.games, arms))
    notes = [f"Intervals resample {groups}.", *found.notes]
    run.finish({f"elo/{arm}": rating for arm, rating in result.ratings.items()}, notes)
    return run


def _expected(config: EloConfig, found: Games) -> list[str]:
    """Time and memory, from a tenth of the resamples."""
    from truing.train.cost import timed

    _, all_else = timed(lambda: stats.elo(found.games, found.clusters, config.anchor, n_boot=2, seed=config.seed))
    _, tenth = timed(lambda: stats.elo(found.games, found.clusters, config.anchor, n_boot=202, seed=config.seed))
    tenth = replace(tenth, seconds=max(0.0, tenth.seconds - all_else.seconds))
    return (all_else + tenth * 10).lines()


def elo_table(result: stats.EloResult) -> list[dict[str, Any]]:
    """One row per arm, in order of appearance."""
    return [
        {"arm": arm, "elo": r.value, "low": r.low, "high": r.high, "se": result.se[arm], "games": r.n, "note": r.note}
        for arm, r in result.ratings.items()
    ]


def wins_table(games: Iterable[stats.Game], arms: list[str]) -> list[dict[str, Any]]:
    """One row per arm: how often it won against each other arm."""
    wins = {arm: dict.fromkeys(arms, 0) for arm in arms}
    for a, b, winner in games:
        winning, losing = (a, b) if winner == "a" else (b, a)
        wins[winning][losing] += 1
    return [{"winner": arm, **{f"over {other}": n for other, n in row.items()}} for arm, row in wins.items()]
