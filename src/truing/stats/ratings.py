"""Elo by maximum likelihood of the Bradley-Terry model, intervals over conversations (2204.05862 §2.4, App B.5)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from truing.stats.intervals import Array, Interval, codes_of, resampled_sums

ELO_PER_NAT = 400 / math.log(10)
"""Elo points per unit of log-odds, 173.7."""
Game = tuple[str, str, str]


def win_rate_to_elo(p: float) -> float | None:
    """Elo difference at which the better arm wins the share ``p`` of games; None at 0 and 1, where it is unbounded.

    >>> round(win_rate_to_elo(0.57))
    49
    """
    if not 0 <= p <= 1:
        raise ValueError(f"A win rate of {p} was given; expected a share from 0 to 1.")
    return ELO_PER_NAT * math.log(p / (1 - p)) if 0 < p < 1 else None


def elo_to_win_rate(difference: float) -> float:
    """Share of games won by an arm that stands ``difference`` Elo above its opponent.

    The paper's Eq 2.1 prints no minus sign; read literally it would turn every ranking round.
    """
    return float(_sigmoid(np.asarray(difference / ELO_PER_NAT)))


@dataclass(frozen=True, slots=True)
class EloResult:
    """Elo of every arm in order of appearance, the anchor at 0.

    ``ratings`` carry bootstrap intervals (``n`` counts the arm's games); ``se`` are standard errors of the difference
    to the anchor from the likelihood, in Elo, which take games as independent (None where the rating is undefined).
    """

    ratings: dict[str, Interval]
    se: dict[str, float | None]
    anchor: str

    @property
    def notes(self) -> list[str]:
        """One sentence for each rating or bound that is undefined."""
        return [f"elo/{arm}: {r.note}" for arm, r in self.ratings.items() if r.note and arm != self.anchor]


@dataclass(slots=True)
class _Fit:
    ratings: Array = field(repr=False)
    """Nats [boots, arms]; ±inf where unbounded, NaN where nothing connects the arm with the anchor."""
    information: Array = field(repr=False)
    """[boots, arms, arms]; rows of the anchor and of undefined arms are those of the identity."""


def elo(
    games: Sequence[Game],
    clusters: Sequence[Hashable] | None = None,
    anchor: str | None = None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> EloResult:
    """Elo from games ``(a, b, winner)`` with winner ``"a"`` or ``"b"``.

    ``clusters`` gives each game's conversation or worker; intervals resample whole clusters, because turns of one
    conversation are not independent. ``anchor`` (default: the first arm) is 0. A rating is undefined (None, with a
    note) where the likelihood has no finite maximum: arms that won all or lost all, arms not connected to the anchor.
    Raises ValueError for an unknown winner, an arm compared with itself, or an anchor that played no game.
    """
    arms = _arms(games)
    if not games:
        raise ValueError("There are no games to rate.")
    anchor = anchor if anchor is not None else next(iter(arms))
    if anchor not in arms:
        raise ValueError(f"The anchor {anchor!r} is in no game; the arms are {', '.join(arms)}.")
    pairs = [(arms[a], arms[b]) if w == "a" else (arms[b], arms[a]) for a, b, w in games]
    wins = np.zeros((1, len(arms), len(arms)))
    np.add.at(wins[0], tuple(np.array(pairs).T), 1)
    codes, count = codes_of(clusters, len(games))
    fit = _fit(wins, arms[anchor])
    boots = _resampled_ratings(pairs, codes, count, len(arms), arms[anchor], n_boot, seed) if count > 1 else None
    errors = np.sqrt(np.diagonal(np.linalg.inv(fit.information[0])))
    ratings: dict[str, Interval] = {}
    se: dict[str, float | None] = {}
    for arm, i in arms.items():
        n = int((wins[0, i] + wins[0, :, i]).sum())
        value = float(fit.ratings[0, i])
        se[arm] = float(errors[i] * ELO_PER_NAT) if arm != anchor and math.isfinite(value) else None
        if arm == anchor:
            ratings[arm] = Interval(0.0, None, None, n, "Elo", "the anchor is 0 by definition")
        elif not math.isfinite(value):
            ratings[arm] = Interval(None, None, None, n, "Elo", _why(wins[0], i, value, anchor))
        elif boots is None:
            ratings[arm] = Interval(value * ELO_PER_NAT, None, None, n, "Elo", "one cluster only: no interval")
        else:
            ratings[arm] = _interval(value, boots[:, i], n)
    return EloResult(ratings, se, anchor)


def _arms(games: Sequence[Game]) -> dict[str, int]:
    arms: dict[str, int] = {}
    for i, (a, b, winner) in enumerate(games):
        if winner not in ("a", "b"):
            raise ValueError(f"Game {i + 1} has winner {winner!r}; expected 'a' or 'b'.")
        if a == b:
            raise ValueError(f"Game {i + 1} compares {a!r} with itself; leave such games out.")
        for arm in (a, b):
            arms.setdefault(arm, len(arms))
    return arms


def _why(wins: Array, i: int, value: float, anchor: str) -> str:
    if math.isnan(value):
        return f"no chain of wins or losses connects it with {anchor}, so their difference is unknown"
    if not wins[:, i].sum():
        return "won all its games, so its Elo is unbounded above"
    if not wins[i].sum():
        return "lost all its games, so its Elo is unbounded below"
    direction = "above" if value > 0 else "below"
    verb = "never lost to" if value > 0 else "never won against"
    return f"it and the arms around it {verb} the arms around {anchor}, so its Elo is unbounded {direction}"


def _interval(value: float, boots: Array, n: int) -> Interval:
    known = np.sort(boots[~np.isnan(boots)])
    if len(known) <= len(boots) / 2:
        return Interval(value * ELO_PER_NAT, None, None, n, "Elo", "not identified in most resamples: no interval")
    low, high = (float(known[round(q * (len(known) - 1))]) * ELO_PER_NAT for q in (0.025, 0.975))
    unbounded = [side for side, x in (("low", low), ("high", high)) if math.isinf(x)]
    note = f"the interval has no finite {' and no finite '.join(unbounded)} end" if unbounded else ""
    low_end, high_end = (None if math.isinf(x) else x for x in (low, high))
    return Interval(value * ELO_PER_NAT, low_end, high_end, n, "Elo", note)


def _resampled_ratings(
    pairs: list[tuple[int, int]], codes: Array, clusters: int, arms: int, anchor: int, n_boot: int, seed: int
) -> Array:
    """Ratings [n_boot, arms] in nats over clusters drawn with replacement."""
    kinds, kind = np.unique(np.array(pairs), axis=0, return_inverse=True)
    table = np.zeros((clusters, len(kinds)))
    np.add.at(table, (codes, kind.ravel()), 1)
    drawn = resampled_sums(table, n_boot, seed)
    out = np.empty((n_boot, arms))
    for start in range(0, n_boot, 500):
        part = drawn[start : start + 500]
        wins = np.zeros((len(part), arms, arms))
        wins[:, kinds[:, 0], kinds[:, 1]] = part
        out[start : start + 500] = _fit(wins, anchor).ratings
    return out


def _fit(wins: Array, anchor: int) -> _Fit:
    """Newton's method on many tables of wins [boots, winner, loser] at once.

    Arms that reach the anchor and are reached by it through wins have a finite maximum; games with the others do not
    move it, since their likelihood tends to 1 as the others go to infinity.
    """
    m = wins.shape[-1]
    reach = (wins > 0) | np.eye(m, dtype=bool)
    for _ in range(max(1, (m - 1).bit_length())):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    above, below = reach[:, :, anchor], reach[:, anchor, :]
    finite = above & below
    inside = wins * (finite[:, :, None] & finite[:, None, :])
    ratings = np.zeros(wins.shape[:2])
    free = finite.copy()
    free[:, anchor] = False
    for _ in range(200):
        gradient, information = _derivatives(inside, ratings, free)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        ratings += step / np.maximum(1.0, largest)  # at most one nat at a time: plain Newton overshoots from afar
        if largest.max() < 1e-9:
            break
    information = _derivatives(inside, ratings, free)[1]
    ratings[above & ~below] = np.inf
    ratings[below & ~above] = -np.inf
    ratings[~above & ~below] = np.nan
    return _Fit(ratings, information)


def _derivatives(wins: Array, ratings: Array, free: Array) -> tuple[Array, Array]:
    """Gradient [boots, arms] of the log-likelihood and information [boots, arms, arms] over the free arms."""
    games = wins + wins.swapaxes(1, 2)
    p = _sigmoid(ratings[:, :, None] - ratings[:, None, :])
    gradient = (wins - games * p).sum(2) * free
    weight = games * p * (1 - p)
    eye = np.eye(wins.shape[-1])
    information = eye * weight.sum(2)[..., None] - weight
    both = free[:, :, None] & free[:, None, :]
    return gradient, np.where(both, information, eye * ~free[:, :, None])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))
