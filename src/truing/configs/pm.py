"""Options of preference models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from truing.configs.common import Adapters, Common, Optim, alias, shown
from truing.configs.studies import StudyPM


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
    weights: list[float] = field(default_factory=list)
    """One for each of --data: how often its rows are seen in a pass. 0.5: a half, drawn anew each pass; 2: twice."""
    harmless_weight: float = 1.0
    """λ of L = L_helpful + λ·L_harmless: weight of a harmless comparison's loss (2204.05862 §5.1.2)."""
    strength_weights: list[float] = field(default_factory=list)
    """Weights of the loss at strength 2, 3 and 4; default: all equal, as in the paper."""
    margin: list[float] = field(default_factory=list)
    """Score gap, in PM units, that chosen should lead by: one for all pairs, or three for strength 2, 3 and 4."""
    binarised: bool = False
    """For pretraining: each reply is labelled good or bad by itself, −log σ(chosen) − log σ(−rejected)."""
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
class PMPretrain(PMTrain):
    """Pretrain a preference model on comparisons made of votes (2204.05862 App A.2; Askell et al. 2021 §4)."""

    binarised: bool = True
    """Each reply is labelled good or bad by itself, −log σ(chosen) − log σ(−rejected), which transferred better;
    --no-binarised ranks pairs, log(1 + exp(rejected − chosen))."""
    lm_learning_rate: float | None = None
    """Learning rate that the language model was pretrained with; --learning-rate is then 0.1 of it, as in the paper."""


@dataclass(kw_only=True)
class PMMixing(Common, StudyPM):
    """Dialogues and summaries in one preference model: what mixing costs either (2204.05862 §5.2)."""

    init: Annotated[str, alias("model", "model-name-or-path")]
    """Model to start from."""
    hh: list[str]
    """Comparisons of dialogue replies."""
    tldr: list[str]
    """Comparisons of summaries: summarize-from-feedback's rows, or any known format."""


@dataclass(kw_only=True)
class PMOOD(Common):
    """Out-of-distribution prompts from activations, by layer (2204.05862 §5.4)."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model or preference model whose activations are read."""
    inside: str
    """Prompts that belong: a file, or helpful."""
    outside: str
    """Prompts of another kind: a file, or red-team."""
    layer: int | None = None
    """Layer whose numbers stand in the summary; default: the middle one. All are in layers.csv."""
    fit_share: float = 0.5
    """Share of the inside prompts that the Gaussian and the linear layer are fitted on."""
    splits: int = 3
    """Random splits into fitted and judged prompts."""
    exposed: list[int] = field(default_factory=lambda: [1, 10])
    """Numbers of outliers that a linear layer is shown."""
    draws: int = 5
    """Random draws of these outliers."""
    shrinkage: float | None = None
    """Shrink the covariance towards its diagonal, 0 to 1; default: Ledoit and Wolf's where prompts are few, else 0."""
    limit: int | None = None
    """Only the first prompts of each file."""
    max_length: int = 1024
    """Tokens a prompt may have; longer ones lose their beginning."""


@dataclass(kw_only=True)
class PMEval(Common):
    """Accuracy and calibration of a preference model on comparisons (2204.05862 §3.2-3.3)."""

    pm: Annotated[tyro.conf.Positional[str], shown("PM")]
    """Preference model: a run or a folder."""
    files: Annotated[tyro.conf.Positional[list[str]], shown("FILE…")]
    """Comparisons; of several files each is a source of its own."""
    max_length: int = 1024
    """Tokens a dialogue may have."""


@dataclass(kw_only=True)
class PMProbe(Common):
    """Probe a preference model: HHH pairs, gender, replies labelled harmful (2204.05862 §3.4)."""

    pm: Annotated[tyro.conf.Positional[str], shown("PM")]
    """Preference model: a run or a folder."""
    probes: list[Literal["hhh", "gender"]] = field(default_factory=lambda: ["hhh", "gender"])
    """Which of the packaged probes."""
    hhh: list[str] = field(default_factory=list)
    """Pairs in place of the packaged ones: comparisons, or BIG-bench's hhh_alignment/NAME/task.json."""
    labelled: str | None = None
    """Also dialogues whose first reply is labelled safe or unsafe: rows with dialogue and label."""
    max_length: int = 1024
    """Tokens a dialogue may have."""


@dataclass(kw_only=True)
class PMScaling(Common):
    """Preference models of several sizes on several amounts of data, and the log-linear fit (2204.05862 App A.3)."""

    data: Annotated[list[str], alias("train-file")] = field(default_factory=list)
    """Comparisons; without it those of the packaged toy world."""
    eval_data: list[str] = field(default_factory=list)
    """Held-out comparisons; without it a fifth of the conversations of --data."""
    sizes: list[str] = field(default_factory=lambda: ["5K", "20K", "100K"])
    """Sizes made from scratch, such as 100K or 1M (parameters outside embeddings), or models by name."""
    pairs: list[int] = field(default_factory=lambda: [75, 150, 300, 600])
    """Amounts of data; smaller ones are parts of larger ones."""
    kind: Literal["helpful", "harmless", "both"] = "helpful"
    """Comparisons that are used; the paper's fit is of helpful ones."""
    epochs: int = 1
    """Passes over the data."""
    batch_size: int = 8
    """Pairs per optimiser step."""
    learning_rate: Annotated[float, alias("lr")] = 3e-3
    """Peak learning rate, of all sizes; small models from scratch want a high one."""
    frozen_layers: int = 0
    """Lower layers that stay frozen (of named models)."""
    max_length: int = 512
    """Tokens a dialogue may have."""
    workers: int = 1
    """Cells trained at once, in processes of their own."""
