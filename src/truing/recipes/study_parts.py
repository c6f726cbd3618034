"""What the studies of RLHF share: their models as folders, and child runs that stop and resume with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.configs import Common, PMTrain, PPOTrain, Robustness, StudyPM, Tension
from truing.data.prompts import PromptRow
from truing.models.lm import LM
from truing.models.load import find_model, load_tokenizer
from truing.runs import Run
from truing.text import to_hh
from truing.train.pm_setup import check as check_pm
from truing.train.ppo_models import weights_hash
from truing.train.ppo_setup import check as check_ppo
from truing.types import Comparison


class Stopped(Exception):
    """--max-time ended a study in the middle; the message says where."""


def finished(run: Run, config: Common, name: str, train: Callable[[dict[str, Any]], Any]) -> Run:
    """A child run, done. ``train`` gets the options that all children share. Raises Stopped at --max-time."""
    left = None
    if config.max_time is not None:
        left = config.max_time - (time.monotonic() - run.opened) / 60
        if left <= 0:
            raise Stopped(f"Stopped before {name}; the same command goes on.")
    compute = run.compute(config)
    dtype = str(compute.dtype).removeprefix("torch.")
    machine = {"device": str(compute.device), "dtype": dtype, "threads": compute.threads}
    child = train({"out": run.path / name, "seed": config.seed, "max_time": left, **machine})
    assert isinstance(child, Run)
    if not child.done:
        raise Stopped(f"Stopped in {name}; the same command goes on.")
    return child


def names_of(models: Sequence[str], lms: Mapping[str, LM] | None) -> list[str]:
    """What the models are called in the study: names of those handed over, or the last parts of their paths."""
    names = list(lms) if lms else [Path(name).name for name in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The models are {', '.join(names) or 'none'}; expected one or more of different names.")
    return names


def check_models(models: Sequence[str]) -> None:
    """Raise for a model that is not there, or without a tokenizer: not when its turn comes, after hours of others."""
    for name in models:
        load_tokenizer(find_model(name))


def model_hashes(lms: Mapping[str, LM] | None) -> dict[str, str]:
    """What stands for models handed over in memory in a run's identity."""
    return {f"model {name}": str(weights_hash(lm.model)) for name, lm in (lms or {}).items()}


def folders(run: Run, models: Sequence[str], lms: Mapping[str, LM] | None) -> dict[str, str]:
    """Name → model as a folder or as it was given; those handed over in memory are saved in the run."""
    if not lms:
        return dict(zip(names_of(models, None), models, strict=True))
    for name, lm in lms.items():
        if not (run.path / "models" / name).exists():
            lm.save(run.path / "models" / name)
    return {name: str(run.path / "models" / name) for name in lms}


def check_parts(config: Robustness | Tension) -> None:
    """Refuse what a study's preference models or policies would refuse, before hours of training have passed.

    Raises ValueError.
    """
    for name in ("samples", "evaluations", "eval_prompts"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")
    check_pm(pm_config(config, ""))
    check_ppo(ppo_config(config, "", ""))


def pm_config(config: StudyPM, init: str, **options: Any) -> PMTrain:
    """How the study trains a preference model."""
    given: dict[str, Any] = {
        "init": init,
        "data": [],
        "learning_rate": config.pm_learning_rate,
        "head_learning_rate": config.pm_head_learning_rate,
        "batch_size": config.pm_batch_size,
        "epochs": config.pm_epochs,
        "max_length": config.max_length,
        "frozen_layers": config.frozen_layers,
    }
    return PMTrain(**given | options)


def ppo_config(config: Robustness | Tension, policy: str, pm: str, **options: Any) -> PPOTrain:
    """How the study trains a policy: steps and evaluations follow from its samples."""
    steps = max(1, config.samples // max(1, config.prompts_per_step * config.samples_per_prompt))
    same = ("prompts_per_step", "samples_per_prompt", "ppo_epochs", "minibatches", "max_new_tokens", "stop_after",
            "kl_coef", "learning_rate", "value_learning_rate", "warmup_samples", "frozen_layers")  # fmt: skip
    given: dict[str, Any] = {name: getattr(config, name) for name in same}
    given |= {"policy": policy, "pm": pm, "prompts": [], "steps": steps}
    given |= {"eval_every": max(1, steps // max(1, config.evaluations))}
    return PPOTrain(**given | options)


def prompts_of(comparisons: Sequence[Comparison], most: int | None = None) -> list[PromptRow]:
    """The distinct prompts of comparisons, in order, with their kinds; of many, ``most`` evenly spread ones."""
    rows: dict[str, PromptRow] = {}
    taken = set[str]()
    for i, c in enumerate(comparisons, 1):
        if (text := to_hh(c.prompt)) not in rows:
            name = c.id if c.id and c.id not in taken else f"{c.id or c.kind}:{i}"
            rows[text] = PromptRow(c.prompt, name, i, c.source or "comparisons", kind=c.kind)
            taken.add(name)
    found = list(rows.values())
    if most is None or len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]
