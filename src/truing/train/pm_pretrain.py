"""Preference model pretraining: the verb ``pm pretrain``, between language model and people's comparisons.

2204.05862 App A.2 gives learning rates as multiples of the language model's own, which it does not name: 0.1 of it
here, 0.01 for the comparisons of people that follow (``pm train``). Comparisons come from ``data pairs``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from truing.configs import PMPretrain
from truing.models.lm import LM
from truing.runs import Run
from truing.train.pm import train_pm
from truing.types import Comparison

PRETRAIN, FINETUNE = 0.1, 0.01
"""Learning rates of the two phases, over the language model's."""


def pretrain_pm(
    config: PMPretrain,
    *,
    comparisons: Sequence[Comparison] | None = None,
    eval_comparisons: Sequence[Comparison] | None = None,
    lm: LM | None = None,
) -> Run | dict[str, Any]:
    """Train a preference model on comparisons made of votes; `train_pm` with this phase's defaults.

    ``pm train --init`` takes the run and goes on with its body and head. Raises ValueError as `train_pm` does, and
    for two learning rates that contradict each other.
    """
    given: dict[str, Any] = {"comparisons": comparisons, "eval_comparisons": eval_comparisons, "lm": lm}
    return train_pm(with_learning_rate(config), **given)


def with_learning_rate(config: PMPretrain) -> PMPretrain:
    """The config with ``learning_rate`` a tenth of ``lm_learning_rate``, if that is given."""
    if config.lm_learning_rate is None:
        return config
    if not config.lm_learning_rate > 0:
        raise ValueError(f"lm_learning_rate is {config.lm_learning_rate}; expected a number above 0.")
    default = next(f.default for f in dataclasses.fields(PMPretrain) if f.name == "learning_rate")
    derived = PRETRAIN * config.lm_learning_rate
    if config.learning_rate not in (default, derived):
        raise ValueError(
            f"learning_rate is {config.learning_rate}, and lm_learning_rate {config.lm_learning_rate} makes it "
            f"{derived:g}. Give one of them."
        )
    return dataclasses.replace(config, learning_rate=derived)
