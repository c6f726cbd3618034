"""Options of measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from truing.configs.common import Common, Optim, alias, shown


@dataclass(kw_only=True)
class EloConfig(Common):
    """Elo with intervals from comparisons (2204.05862 App B.5)."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows {"a","b","winner","conversation"[,"worker"]}."""
    anchor: str | None = None
    """Arm whose Elo is 0; default: the first in the file."""


@dataclass(kw_only=True)
class Writers(Common):
    """How often models' replies are preferred to human writers' (2204.05862 §6.1)."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows {"prompt","ranking":[best, …, worst][,"worker"]}, or {"prompt","a","b","winner"[,"worker"]}."""
    reference: str = "writer"
    """Arm that the others are compared with."""


@dataclass(kw_only=True)
class Choices(Common):
    """Calibration on multiple choice (2207.05221 §3)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows {"question","choices","answer"}."""
    shots: int = 0
    """Solved questions shown first (taken from the file, never the question itself)."""
    format: Literal["raw", "chat"] = "raw"
    """raw: the paper's bytes; chat: through the model's template."""


@dataclass(kw_only=True)
class PTrue(Common):
    """P(True) (2207.05221 §4)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows {"question","answers"}."""
    samples: int = 5
    """Answers brainstormed and judged per question."""
    shots: int = 0
    """Solved examples from the file, shown first: with answers, then with the model's brainstorms and their grades."""
    worked: bool = False
    """Judge after the paper's six worked examples (App A.5) instead of examples from the file."""
    max_new_tokens: int = 16
    """Tokens an answer may have."""
    format: Literal["raw", "chat"] = "raw"
    """raw: the paper's bytes; chat: through the model's template."""


@dataclass(kw_only=True)
class PIKTrain(Common, Optim):
    """P(IK): does the model know that it knows (2207.05221 §5)."""

    init: Annotated[str, alias("model", "model-name-or-path")]
    """Language model that answers and gets the head."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Rows {"question","answers"[,"task"]}."""
    samples: int = 8
    """Answers sampled per question for its label."""
    epochs: Annotated[int, alias("num-train-epochs")] = 1
    """Passes over the data."""
    eval_share: float = 0.3
    """Share of questions held out."""
    batch_size: int = 32
    """Questions per optimiser step."""
    max_new_tokens: int = 16
    """Tokens an answer may have."""
    frozen_layers: int = 0
    """Lower layers that are kept frozen."""
    head_learning_rate: float | None = None
    """Learning rate of the scalar head; default: the same as the body."""
    format: Literal["raw", "chat"] = "raw"
    """raw: the paper's bytes; chat: through the model's template."""


@dataclass(kw_only=True)
class Eval(Common):
    """lm-eval's tasks on any model; with two models the differences, question by question."""

    models: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """A model, or two: the second is compared with the first."""
    tasks: list[str]
    """Names of tasks, groups and tags (also with * and ?), or task files; several by spaces or commas."""
    before: str | None = None
    """The model to compare with."""
    after: str | None = None
    """The model that is compared with --before; the same as naming it without a flag."""
    num_fewshot: list[int] = field(default_factory=list)
    """Solved examples shown first; several numbers (0 5) ask everything with each; default: each task's own."""
    limit: int | None = None
    """Only the first questions of each task."""
    include_path: str | None = None
    """A folder with more tasks (YAML files)."""
    apply_chat_template: bool = False
    """Ask through the model's chat template."""


@dataclass(kw_only=True)
class Code(Common):
    """pass@k of Python functions that a model writes, run in a sandbox (2204.05862 §5.3, App B.8)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model."""
    before: str | None = None
    """Another model to compare with, problem by problem, on the same grid of settings."""
    problems: str | None = None
    """Rows {"task_id","prompt","entry_point","test"} as HumanEval's; default: our 193 generated easy functions."""
    limit: int | None = None
    """Only so many problems, spread over all."""
    samples: int = 20
    """Completions of each problem at each setting; at temperature 0, where all are alike, one."""
    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 25, 50, 75, 100])
    """Numbers of tries; those above --samples are left out."""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.4, 0.6, 0.8, 1.0])
    """Temperatures of the grid; the best of its settings is taken for each model and k."""
    top_ps: Annotated[list[float], alias("top-p")] = field(default_factory=lambda: [0.95, 1.0])
    """Top-p of the grid."""
    fixed: tuple[float, float] | None = None
    """Temperature and top-p reported for all models and k alike; default: the setting nearest to 0.8 and 0.95."""
    context: Literal["none", "hhh", "hhh-short"] = "none"
    """What stands before each problem: nothing, or the HHH prompt and a request, which the paper found to help."""
    max_new_tokens: int = 256
    """Tokens a completion may have."""
    cpu_seconds: float = 3.0
    """CPU time one program may take (five times as long by the clock)."""


@dataclass(kw_only=True)
class Bias(Common):
    """Gendered occupations, sentiment by group and ambiguous questions (2204.05862 §4.6.2, App B.10)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model."""
    before: str | None = None
    """The model to compare with, such as the one that RLHF began with."""
    parts: list[Literal["gender", "sentiment", "questions"]] = field(
        default_factory=lambda: ["gender", "sentiment", "questions"]
    )
    """Which of the three probes."""
    sentiment: str = "vader"
    """Scorer of texts: vader, or a Hugging Face classifier's folder or name."""
    samples: int = 4
    """Ways in which each sentence is finished."""
    max_new_tokens: int = 24
    """Tokens that the end of a sentence may have."""
    questions: str | None = None
    """Ambiguous questions in BBQ's format (JSONL); default: the packaged set."""
