"""What training a preference model checks and reads before it starts: options, comparisons, the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from truing.configs import PMTrain
from truing.data.comparisons import conversation_key, load_comparisons, split_by_conversation, training_comparisons
from truing.models.heads import FACTS, PreferenceModel
from truing.models.lm import LM
from truing.models.load import find_model
from truing.models.lora import adapt
from truing.models.split import layers, recompute_layers
from truing.models.tree import body, supports_trees
from truing.train.loop import check_adapters, check_optim
from truing.train.parallel import Group
from truing.train.pm_loss import check_losses, seen_in_all
from truing.train.pm_pairs import Pairs
from truing.types import Comparison


def check(config: PMTrain) -> None:
    """Refuse options that mean nothing."""
    least = {"epochs": 1, "batch_size": 1, "max_length": 2, "tokens_per_pack": 0, "frozen_layers": 0}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if not 0 <= config.eval_share < 1:
        raise ValueError(f"eval_share is {config.eval_share}; expected 0 (hold nothing out) or more, below 1.")
    check_losses(config)
    if config.weights and config.data and len(config.weights) != len(config.data):
        raise ValueError(f"There are {len(config.weights)} weights for {len(config.data)} files; give one for each.")
    check_optim(config)
    check_adapters(config)
    if config.parallel == "fsdp" and (config.frozen_layers or config.lora_rank):
        raise ValueError(
            "--parallel fsdp spreads all weights and their moments over the processes: it trains the whole model, "
            "without --frozen-layers and without --lora-rank. With those use --parallel ddp; they need less memory."
        )


def data_of(
    config: PMTrain,
    comparisons: Sequence[Comparison] | None,
    eval_comparisons: Sequence[Comparison] | None,
    notes: list[str],
) -> tuple[list[Comparison], list[Comparison], np.ndarray]:
    """Comparisons to train on and to hold out, and the part of the mixture each of the former is from, int [P].

    Those that were unsure are left out; ``notes`` hears of it. A part is one of ``config.data`` or, of comparisons in
    memory, one ``source``, in order of appearance; without ``config.weights`` there is one part. Raises ValueError
    for weights that do not fit.
    """
    parts = _parts(config, comparisons)
    of_row = {id(c): i for i, part in enumerate(parts) for c in part}
    rows = usable([c for part in parts for c in part], "", notes)
    if eval_comparisons is not None or config.eval_data:
        given = list(eval_comparisons) if eval_comparisons is not None else load_comparisons(config.eval_data)
        held_out = usable(given, "held-out ", notes)
        both = {conversation_key(c) for c in rows} & {conversation_key(c) for c in held_out}
        if both:
            shared = sum(conversation_key(c) in both for c in held_out)
            notes.append(
                f"{shared} of {len(held_out)} held-out comparisons begin like a training one (same first human turn): "
                "their accuracy is too favourable."
            )
    elif config.eval_share > 0 and len({conversation_key(c) for c in rows}) > 1:
        rows, held_out = split_by_conversation(rows, config.eval_share, config.seed)
    else:
        held_out = []
        notes.append("Nothing was held out, so accuracy and calibration are unknown: give --eval-data.")
    places = np.array([of_row[id(c)] for c in rows])
    if config.weights:
        notes.append(_mixture(config, parts, places))
    kinds = [f"{sum(c.kind == kind for c in rows):,} {kind}" for kind in sorted({c.kind for c in rows})]
    notes.append(f"Trained on {' and '.join(kinds)} comparisons, {len(held_out):,} held out.")
    if config.epochs > 1:
        notes.append(
            f"{config.epochs} passes over the data; the paper makes one, because preference models overfit and grow "
            "overconfident. Compare eval_ece and eval_loss after each pass."
        )
    return rows, held_out, places


def _parts(config: PMTrain, comparisons: Sequence[Comparison] | None) -> list[list[Comparison]]:
    """Comparisons of each part of the mixture."""
    if comparisons is None:
        files = [[name] for name in config.data] if config.weights else [config.data]
        return [load_comparisons(some) for some in files]
    if not config.weights:
        return [list(comparisons)]
    sources = list(dict.fromkeys(c.source for c in comparisons))
    if len(sources) != len(config.weights):
        raise ValueError(
            f"There are {len(config.weights)} weights for {len(sources)} sources ({', '.join(map(repr, sources))}); "
            "give one for each."
        )
    return [[c for c in comparisons if c.source == source] for source in sources]


def _mixture(config: PMTrain, parts: Sequence[Sequence[Comparison]], places: np.ndarray) -> str:
    """What a pass over the mixture holds. Raises ValueError if that is nothing."""
    counts = np.bincount(places, minlength=len(parts)).tolist()
    seen = [seen_in_all(n, weight) for n, weight in zip(counts, config.weights, strict=True)]
    if not sum(seen):
        raise ValueError(f"weights are {config.weights}, which leaves no comparison to train on. Raise one of them.")
    names = [Path(name).name for name in config.data] or [part[0].source for part in parts]
    mixed = [f"{k:,} of {name} ({n:,} rows)" for k, name, n in zip(seen, names, counts, strict=True)]
    return f"A pass is {sum(seen):,} comparisons: {', '.join(mixed)}."


def usable(rows: Sequence[Comparison], which: str, notes: list[str]) -> list[Comparison]:
    """What `train_pm` keeps of comparisons: none that is unsure, none of equal replies; ``notes`` hears of it.

    Raises ValueError where nobody is answered, and where none is left.
    """
    if not rows:
        raise ValueError(f"There are no {which}comparisons. Give at least one pair of replies to the same prompt.")
    kept, counts = training_comparisons(rows)
    kept = [c for c in kept if c.chosen != c.rejected]
    alone = [c.id or c.chosen[:40] for c in kept if not any(turn.role == "human" for turn in c.prompt.turns)]
    if alone:
        raise ValueError(
            f"{len(alone)} {which}comparisons have no human turn before the replies, the first is {alone[0]}: there is "
            "nothing to answer. Correct or remove these rows; `truing data check` lists them."
        )
    if not kept:
        raise ValueError(
            f"None of {len(rows)} {which}comparisons can be used: {counts['unsure']} have strength 1 (unsure), in "
            f"{counts['kept']} both replies are the same."
        )
    if len(kept) < len(rows):
        same = counts["kept"] - len(kept)
        notes.append(f"Left out: {counts['unsure']} unsure (strength 1) and {same} identical {which}comparisons.")
    return kept


def data_hash(rows: Sequence[Comparison]) -> str:
    """Names the content of comparisons handed over in memory."""
    return "sha256:" + hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def start(config: PMTrain, device: torch.device, lm: LM | None = None) -> PreferenceModel:
    """The model to train: ``config.init`` if that is a preference model, else a language model with a new head.

    Only the layers above ``config.frozen_layers`` (or adapters in them) and the head require gradients. Raises
    ValueError where the model cannot be split.
    """
    folder = None if lm is not None else find_model(config.init)
    if isinstance(folder, Path) and (folder / FACTS).is_file():
        pm = PreferenceModel.load(config.init, device=device, dtype=torch.float32)
        pm.frozen_layers = config.frozen_layers
    else:
        lm = lm or LM.load(config.init, device=device, dtype=torch.float32)
        pm = PreferenceModel.new(lm, seed=config.seed, frozen_layers=config.frozen_layers)
    if config.lora_rank:
        pm.backbone = adapt(pm.backbone, config.lora_rank, config.lora_alpha, config.frozen_layers, config.seed)
    if config.gradient_checkpointing:
        recompute_layers(pm.backbone, config.frozen_layers)
    pm.requires_grad_(False)
    for _, parameter in pm.trainable_parameters():
        parameter.requires_grad_(True)
    return pm


def spread(config: PMTrain, pm: PreferenceModel, group: Group) -> None:
    """Begin with the same weights in every process, or with a part of them in each.

    Raises ValueError for fsdp where the model cannot read trees: the processes' work would fall out of step.
    """
    if group.sharded and not supports_trees(pm.backbone):
        raise ValueError(
            f"--parallel fsdp needs a model that reads prefix trees, and {config.init!r} is read in padded rows. Use "
            "--parallel ddp."
        )
    group.align(p for p in pm.parameters() if p.requires_grad)
    group.shard(body(pm.backbone), layers(pm.backbone))


def check_lengths(config: PMTrain, pm: PreferenceModel, pairs: Pairs) -> None:
    """Raise ValueError if the model's window, not ``max_length``, would cut a dialogue."""
    window = getattr(pm.backbone.config, "max_position_embeddings", None)
    longest = max(map(len, pairs.sequences))
    if window is not None and config.max_length > window and longest >= window:
        raise ValueError(
            f"--max-length is {config.max_length}, but this model reads {window} tokens and some dialogue is longer. "
            f"Use --max-length {window}: longer dialogues then lose their beginning, never the reply."
        )
