"""Every verb's options, once: the fields below are the command line, the YAML keys and the Python API.

Imports no torch, so that ``truing VERB --help`` is quick. A docstring under a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro


def shown(metavar: str) -> object:
    """What the help calls a positional argument."""
    return tyro.conf.arg(metavar=metavar)


def alias(*names: str) -> object:
    """Other names under which a flag is accepted (Hugging Face users' words)."""
    return tyro.conf.arg(aliases=[f"--{n}" for n in names])


@dataclass(kw_only=True)
class Common:
    """Options of every command."""

    out: Annotated[Path | None, alias("output-dir")] = None
    """The run folder itself; without it runs/<name>."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0, mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto measures a matrix product once and takes the faster."""
    threads: int = 0
    """CPU threads; 0 measures and chooses."""
    json: bool = False
    """Print the summary as JSON on stdout, everything else on stderr."""
    dry_run: bool = False
    """Print tokens, time and memory expected, then stop."""
    max_time: float | None = None
    """Stop cleanly after this many minutes with a report of what there is."""
    debug: bool = False
    """Show tracebacks."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also send metrics to a tracker."""


@dataclass(kw_only=True)
class Optim:
    """Shared by everything trained."""

    learning_rate: Annotated[float, alias("lr")] = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "halve"] = "constant"
    """Shape after warm-up; halve: the rate halves every --halve-every samples (2204.05862 App B.1)."""
    warmup_samples: int = 0
    """Linear warm-up over this many samples."""
    halve_every: int = 100_000
    """Samples after which schedule 'halve' halves the rate."""
    weight_decay: float = 0.0
    """AdamW weight decay (none on biases, norms, heads and embeddings)."""
    adam_beta1: float = 0.9
    """AdamW β1."""
    adam_beta2: float = 0.95
    """AdamW β2."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    save_every: Annotated[int, alias("save-steps")] = 0
    """Steps between checkpoints; 0: about one every two minutes."""
    tokens_per_pack: int = 0
    """Token budget of one forward pass; 0: 512 on a CPU, 2048 elsewhere."""
    resume_from_checkpoint: str | None = None
    """Accepted for Hugging Face users; the same command resumes by itself."""


@dataclass(kw_only=True)
class Adapters:
    """Shared by preference models and policies: what of the body is trained."""

    frozen_layers: int = 0
    """Lower layers that stay frozen: computed once per text, and once for all models of a PPO run that share them."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of the weights above the frozen layers (peft); 0: the weights."""
    lora_alpha: int | None = None
    """Adapters are scaled by alpha / rank; default: twice the rank."""


@dataclass(kw_only=True)
class PMTrain(Common, Optim, Adapters):
    """Train a preference model on comparisons (2204.05862 §3, App A.2)."""

    init: Annotated[str, alias("model", "model-name-or-path")]
    """Model to start from: smollm2, a hub name, a folder, a run, a .gguf."""
    data: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files or hub names of comparisons."""
    eval_data: list[str] = field(default_factory=list)
    """Held-out comparisons; without it a share of --data, split by conversation, is held out."""
    eval_share: float = 0.1
    """Share of conversations held out when --eval-data is not given."""
    epochs: Annotated[int, alias("num-train-epochs")] = 1
    """Passes over the data; the paper trains one."""
    batch_size: Annotated[int, alias("per-device-train-batch-size")] = 32
    """Pairs per optimiser step."""
    max_length: int = 1024
    """Tokens a dialogue may have; longer ones lose their beginning, never the reply."""
    head_learning_rate: float | None = None
    """Learning rate of the scalar head; default: the same as the body."""
    gradient_checkpointing: bool = False
    """Keep each layer's input only and compute the rest again in the backward pass: less memory, a third slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: the whole model in every process, or its weights and moments sharded over them (FSDP2)."""


@dataclass(kw_only=True)
class PMEval(Common):
    """Accuracy and calibration of a preference model on comparisons (2204.05862 §3.2-3.3)."""

    pm: Annotated[tyro.conf.Positional[str], shown("PM")]
    """Preference model: a run or a folder."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Comparisons."""
    max_length: int = 1024
    """Tokens a dialogue may have."""


@dataclass(kw_only=True)
class PPOTrain(Common, Optim, Adapters):
    """PPO against a preference model (2204.05862 §4.1, App B.1)."""

    policy: Annotated[str, alias("model", "model-name-or-path")]
    """Model to start from; its copy is the reference policy."""
    pm: Annotated[str, alias("reward-model", "reward-model-path")]
    """Preference model: a run or a folder."""
    prompts: Annotated[list[str], alias("train-file", "dataset-name")]
    """Files of prompts."""
    eval_prompts: list[str] = field(default_factory=list)
    """Held-out prompts on which snapshots are scored."""
    test_pm: list[str] = field(default_factory=list)
    """More preference models that score, never train."""
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
    gamma: float = 1.0
    """Discount; the papers' objective needs 1."""
    gae_lambda: Annotated[float, alias("lam")] = 0.95
    """λ of generalised advantage estimation."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
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
class Sampling(Common):
    """Sample replies from a model."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Any model name truing knows, also http://host:port/v1#model for one on a server."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows with 'prompt' (text or messages)."""
    n: int = 1
    """Replies per prompt."""
    pm: str | None = None
    """Score replies with this preference model."""
    best: bool = False
    """Keep only the reply the preference model likes best."""
    max_new_tokens: Annotated[int, alias("max-tokens")] = 128
    """Tokens a reply may have."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    stop: list[str] = field(default_factory=list)
    """More stop strings; a reply's text ends before the first of them."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""


@dataclass(kw_only=True)
class Scoring(Common):
    """Score texts with a language model (nats) or dialogues with a preference model."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model or preference model."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows: text; context and continuation; prompt, chosen and rejected; or dialogue."""
    raw: bool = False
    """Preference model: scores as the head gives them, not centred."""
    max_length: int = 1024
    """Preference model: tokens a dialogue may have."""


@dataclass(kw_only=True)
class Chat(Common):
    """Talk with a model in the terminal."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")] = "smollm2"
    """Any model name truing knows, also http://host:port/v1#model for one on a server."""
    pm: str | None = None
    """Show this preference model's score of every reply."""
    best_of: int = 1
    """Sample this many replies and show the one the preference model likes best."""
    system: str = ""
    """System turn."""
    max_new_tokens: int = 256
    """Tokens a reply may have."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""
    temperature: float = 0.7
    """Sampling temperature."""


@dataclass(kw_only=True)
class EloConfig(Common):
    """Elo with intervals from comparisons (2204.05862 App B.5)."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows {"a","b","winner","conversation"[,"worker"]}."""
    anchor: str | None = None
    """Arm whose Elo is 0; default: the first in the file."""


@dataclass(kw_only=True)
class DataCheck(Common):
    """What is in a file and what is wrong with it."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Any known format."""
    strict: bool = False
    """Exit with 3 if anything is wrong."""


@dataclass(kw_only=True)
class DataConvert(Common):
    """Between formats; writes the file TARGET."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Any known format."""
    target: Annotated[tyro.conf.Positional[str], shown("TARGET")]
    """File to write: .jsonl, .json, .csv (each also .gz) or .parquet."""
    to: Literal["truing", "hh", "trl"] = "truing"
    """Columns: ours, HH two-column text, TRL conversational."""
    on_problem: Literal["error", "drop"] = "error"
    """Rows that cannot be converted: stop and name them, or leave them out and say how many."""
    compat: Literal["", "2022"] = ""
    """Red-team attempts: 2022 writes the released file's form, misspelt field and all."""


@dataclass(kw_only=True)
class Doctor(Common):
    """Versions, device, threads, dtype, memory, sandbox, cached model."""


@dataclass(kw_only=True)
class Runs(Common):
    """What runs there are."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")] = "runs"
    """Folder to look in."""


@dataclass(kw_only=True)
class ReportConfig(Common):
    """Rebuild or combine pages."""

    runs: Annotated[tyro.conf.Positional[list[str]], shown("RUN…")]
    """Run folders."""


@dataclass(kw_only=True)
class Compare(Common):
    """Paired differences of two runs' numbers with intervals."""

    a: Annotated[tyro.conf.Positional[str], shown("RUN")]
    """Run."""
    b: Annotated[tyro.conf.Positional[str], shown("RUN")]
    """Run."""


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
    num_fewshot: int | None = None
    """Solved examples shown first; default: each task's own number."""
    limit: int | None = None
    """Only the first questions of each task."""
    include_path: str | None = None
    """A folder with more tasks (YAML files)."""
    apply_chat_template: bool = False
    """Ask through the model's chat template."""


@dataclass(kw_only=True)
class Demo(Common):
    """The whole loop on the packaged model: simulated people, PM, RLHF, round two, red team, honesty, one report."""

    fast: bool = False
    """At most five minutes: every stage and figure, no claims."""
    model: str = "smollm2"
    """Model to start from."""
