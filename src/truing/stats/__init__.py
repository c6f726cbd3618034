"""Every interval, calibration measure and rating in the house; numpy and scipy only, no torch.

Rules for all: a number that is undefined has value None and a note, never NaN; intervals are 95% and, wherever rows
come in groups (turns of one conversation, samples of one question, attacks of one person), resample whole groups.
"""

from truing.stats.calibration import (
    Bin,
    Reliability,
    auroc,
    brier,
    brier_constant,
    calibration,
    ece,
    ece_null,
    pearson,
    probability_scores,
    reliability,
    rms_calibration_error,
    skill,
)
from truing.stats.intervals import Interval, bootstrap, difference_interval, mean_interval, se, share, wilson
from truing.stats.ratings import ELO_PER_NAT, EloResult, Game, elo, elo_to_win_rate, win_rate_to_elo

__all__ = [
    "ELO_PER_NAT",
    "Bin",
    "EloResult",
    "Game",
    "Interval",
    "Reliability",
    "auroc",
    "bootstrap",
    "brier",
    "brier_constant",
    "calibration",
    "difference_interval",
    "ece",
    "ece_null",
    "elo",
    "elo_to_win_rate",
    "mean_interval",
    "mean_interval",
    "pearson",
    "probability_scores",
    "reliability",
    "rms_calibration_error",
    "se",
    "share",
    "skill",
    "wilson",
    "win_rate_to_elo",
]
