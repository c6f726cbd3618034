"""Options of RLHF."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from truing.configs.common import Adapters, Common, Optim, alias, shown


@dataclass(kw_only=True)
class PPOTrain(Common, Optim, Adapters):
    """PPO against a preference model (2204.05862 §4.1, App B.1)."""

    policy: Annotated[str, alias("model", "model-name-or-path")]
    """Model to start from; its copy is the reference policy."""
    pm: Annotated[str, alias("reward-model", "reward-model-path")] = ""
    """Preference model that is the reward: a run or a folder."""
    reward: str = ""
    """In its place: your function MODULE:FUNCTION (dialogues → one number each), or http://HOST:PORT/PATH."""
    prompts: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files of prompts."""
    harmless_share: float | None = None
    """Share of each step's prompts that are of kind harmless (red-team); default: as they come in the files."""
    eval_prompts: list[str] = field(default_factory=list)
    """Held-out prompts on which snapshots are scored."""
    test_pm: list[str] = field(default_factory=list)
    """More preference models that score, never train."""
    eval_comparisons: list[str] = field(default_factory=list)
    """Held-out comparisons: how often the policy itself gives the chosen reply the higher mean log-probability."""
    refusal_prompts: list[str] = field(default_factory=list)
    """Harmless prompts on which refusals are counted at evaluations; benign-sensitive: the packaged ones."""
    steps: Annotated[int, alias("max-steps")] = 32
    """Batches of prompts."""
    prompts_per_step: int = 8
    """Prompts drawn per step."""
    samples_per_prompt: int = 4
    """Replies sampled for each."""
    ppo_epochs: Annotated[int, alias("num-ppo-epochs")] = 2
    """K: passes over each batch of samples."""
    minibatches: Annotated[int, alias("num-mini-batches")] = 1
    """Optimiser steps per pass."""
    max_new_tokens: Annotated[int, alias("response-length")] = 128
    """Tokens a reply may have."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""
    kl_coef: float = 0.001
    """λ of r = PM − λ·KL(π‖π0)."""
    clip: Annotated[float, alias("cliprange")] = 0.2
    """PPO clip ε."""
    advantage: Literal["gae", "rloo"] = "gae"
    """gae: by a value function; rloo: against the mean of the prompt's other replies, without a value function."""
    gamma: float = 1.0
    """Discount; the papers' objective needs 1."""
    gae_lambda: Annotated[float, alias("lam")] = 0.95
    """λ of generalised advantage estimation."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    value_clip: Annotated[float, alias("cliprange-value")] = 0.0
    """Keep new values within this of the old ones in the value loss; 0: do not."""
    value_learning_rate: float | None = None
    """Learning rate of the value model; default: the policy's."""
    temperature: float = 1.0
    """Sampling temperature in rollouts; only 1 keeps ratio and KL consistent."""
    top_p: float = 1.0
    """Nucleus in rollouts; only 1 is accepted."""
    length_neutral: bool = False
    """Take the line in reply length, fitted within prompts, out of each batch's scores: length alone earns nothing."""
    random_reward: bool = False
    """Control: rewards are PM scores shuffled within each batch, so that they say nothing about the replies."""
    eval_every: int = 0
    """Steps between evaluations on --eval-prompts; 0: at start and end."""
    learning_rate: Annotated[float, alias("lr")] = 1e-6
    """Peak learning rate of the policy."""


@dataclass(kw_only=True)
class Distill(Common, Optim):
    """Context distillation: a model learns to speak without a prompt as it does after one (2204.05862 App A.1)."""

    init: Annotated[str, alias("student", "model", "model-name-or-path")]
    """Model that learns: smollm2, a hub name, a folder, a run, a .gguf."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Rows of text, of questions and answers, of dialogues, or comparisons (their chosen replies)."""
    teacher: str | None = None
    """Model that reads the prompt, with the same tokenizer; default: the one that learns, as it was."""
    prompt: str = "hhh"
    """hhh (14 conversations in our own words), hhh-short (their first exchanges), or a text file."""
    text_share: float = 0.5
    """Share of plain text among the texts; the larger part is cut down to it."""
    max_length: int = 512
    """Tokens of a text; longer ones lose their end."""
    top_k: int = 50
    """Likeliest tokens of the teacher that are kept at each place; all else is one bucket."""
    teacher_cache: Path | None = None
    """Folder of what the teacher said, to share between students; default: in the run."""
    eval_share: float = 0.05
    """Share of texts held out."""
    epochs: Annotated[int, alias("num-train-epochs")] = 1
    """Passes over the data."""
    batch_size: Annotated[int, alias("per-device-train-batch-size")] = 32
    """Texts per optimiser step."""
    learning_rate: Annotated[float, alias("lr")] = 3e-5
    """Peak learning rate; the paper takes a twentieth of that of pretraining."""
    schedule: Literal["constant", "linear", "cosine", "halve"] = "linear"
    """Shape after warm-up; the paper's falls linearly to 0."""


@dataclass(kw_only=True)
class Finetune(Common, Optim, Adapters):
    """Train a language model on texts or dialogues, token by token; or make one from scratch."""

    init: Annotated[str, alias("model", "model-name-or-path")] = ""
    """Model to start from; or --size."""
    size: str = ""
    """Start from scratch: parameters of a new model over bytes, such as 1M."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files or hub names of texts, dialogues or comparisons (their chosen replies)."""
    eval_data: list[str] = field(default_factory=list)
    """Held-out documents; without it a share of --data is held out."""
    eval_share: float = 0.05
    """Share of documents held out (dialogues by conversation) when --eval-data is not given."""
    epochs: Annotated[int, alias("num-train-epochs")] = 1
    """Passes over the data."""
    batch_tokens: int = 4096
    """Tokens per optimiser step, about; whole documents."""
    max_length: int = 1024
    """Longer texts are cut into pieces of so many tokens; longer dialogues lose their beginning."""
    replies_only: bool = False
    """Learn the assistant's turns and their ends only, not what people write."""
    learning_rate: Annotated[float, alias("lr")] = 0.0
    """Peak learning rate; 0: 1e-5, or from scratch what the size takes (0.4 / width, at most 6e-3)."""


@dataclass(kw_only=True)
class WritePrompts(Common):
    """New prompts, written by a model after ten that people wrote (2204.05862 §4.1)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Any model name truing knows, also http://host:port/v1#model for one on a server; a base model will do."""
    examples: Annotated[list[str], alias("prompts")] = field(default_factory=lambda: ["helpful"])
    """Files of prompts, or packaged sets: helpful, red-team, benign-sensitive."""
    exclude: list[str] = field(default_factory=list)
    """Held-out files of prompts or comparisons: nothing like any human turn in them is written."""
    n: int = 200
    """Prompts to write."""
    shots: int = 10
    """Examples shown in each call, all of one kind."""
    calls_per_prompt: int = 10
    """Give up after this many calls for each prompt asked for."""
    likeness: float = 0.5
    """Leave out a prompt that has this share of its word trigrams in common with another."""
    min_words: int = 3
    """Words a prompt has at least."""
    max_words: int = 60
    """Words a prompt has at most."""
    max_new_tokens: Annotated[int, alias("max-tokens")] = 96
    """Tokens of a call; a prompt that is not over by then is left out."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 0.95
    """Nucleus."""


@dataclass(kw_only=True)
class CodeStudy(Common):
    """Code models and natural-language RLHF: pass@k before and after (2204.05862 §5.3)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model that is finetuned on Python first."""
    data: list[str] = field(default_factory=list)
    """Files of Python texts to finetune on; default: half of our easy functions, solved."""
    problems: str | None = None
    """Problems in HumanEval's format to measure on; default: the other half."""
    pm: Annotated[str, alias("reward-model")] = ""
    """Preference model that is the reward: a run or a folder."""
    reward: str = ""
    """In its place: your function MODULE:FUNCTION, or http://HOST:PORT/PATH."""
    prompts: list[str] = field(default_factory=lambda: ["helpful"])
    """Files of natural-language prompts for PPO, or packaged sets."""
    finetune_epochs: int = 2
    """Passes over the Python texts."""
    finetune_learning_rate: float = 1e-5
    """Learning rate of finetuning."""
    learning_rate: Annotated[float, alias("lr")] = 1e-6
    """Learning rate of PPO."""
    steps: int = 32
    """PPO steps."""
    prompts_per_step: int = 8
    """Prompts drawn per step."""
    samples_per_prompt: int = 4
    """Replies sampled for each."""
    max_new_tokens: int = 64
    """Tokens a reply may have."""
    kl_coef: float = 0.001
    """λ of r = PM − λ·KL(π‖π0)."""
    samples: int = 20
    """Completions of each problem at each setting."""
    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 25, 50, 75, 100])
    """Numbers of tries; those above --samples are left out."""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.4, 0.6, 0.8, 1.0])
    """Temperatures of the grid."""
    top_ps: Annotated[list[float], alias("top-p")] = field(default_factory=lambda: [0.95, 1.0])
    """Top-p of the grid."""
    max_code_tokens: int = 96
    """Tokens a completion may have."""
