"""Next-token training of a language model on texts and dialogues: the verb ``rlhf finetune``.

Makes base models from scratch, and finetunes others (2204.05862 §5.3: code models before RLHF). Documents that begin
alike share that beginning within a pack, and the loss is what padded rows would give: the mean over all tokens to be
predicted. A document ends in EOS, which is learned; a piece of a long text does not. Dropout is off.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from truing import stats
from truing.configs import Finetune
from truing.data.comparisons import split_by_conversation
from truing.data.documents import Document, document_key, load_documents
from truing.models import split, tree
from truing.models.compute import autocast, choose
from truing.models.family import by_size, byte_tokenizer, new_model
from truing.models.lm import LM
from truing.models.lora import adapt
from truing.models.memory import finish, fitting
from truing.models.tree import Pack, gather_logprobs, pack_budget
from truing.runs import Run
from truing.stats import Interval
from truing.text import encode, split_context
from truing.train.cost import Cost, timed
from truing.train.cost_of import steps_of
from truing.train.loop import (
    Stateful,
    Trainable,
    check_adapters,
    check_optim,
    clip,
    make_optimizer,
    param_groups,
    rng,
    set_lr,
    train,
)
from truing.types import Dialogue

VERB = "rlhf finetune"
NEW_POSITIONS = 1024
"""Tokens that a model made from scratch reads, at least."""


@dataclass(frozen=True)
class Row:
    """Token ids of one document or piece, int64 [T]; ``wanted`` are the places of the tokens to be predicted (≥ 1).

    ``ends`` says whether the last of them ends a document; ``document`` is its place in the data.
    """

    ids: np.ndarray
    wanted: np.ndarray
    ends: bool
    document: int


def train_lm(
    config: Finetune,
    *,
    dialogues: Sequence[Dialogue] | None = None,
    texts: Sequence[str] | None = None,
    eval_documents: Sequence[Document] | None = None,
    lm: LM | None = None,
) -> Run | dict[str, Any]:
    """Train a language model; the verb ``rlhf finetune``. The same call again resumes the run or returns it.

    ``dialogues`` and ``texts`` stand in for the files the config names, ``eval_documents`` for the held-out ones,
    ``lm`` for a loaded or new model, of which a copy is trained. The run holds the model as a Hugging Face folder
    ``model/``. With ``dry_run`` returns what it would cost. Raises ValueError for options and data that cannot be used.
    """
    check(config, lm)
    notes: list[str] = []
    given: list[Document] | None = None
    if dialogues is not None or texts is not None:
        given = [*(dialogues or ()), *(texts or ())]
    documents, held_out = _data(config, given, eval_documents, notes)
    if config.dry_run:
        return {"lines": [*notes, *_cost(config, documents, held_out, lm)]}
    memory = {"documents": given, "eval_documents": eval_documents}
    hashes = {name: _hash(rows) for name, rows in memory.items() if rows is not None}
    files = [*([] if given is not None else config.data), *([] if eval_documents is not None else config.eval_data)]
    slug = Path(config.init).name or config.size or "lm"
    run = Run.open(VERB, config, data_files=files, data_hashes=hashes, slug=slug)
    if run.done:
        return run
    compute = run.compute(config)
    trainer = LMTrainer(config, start(config, compute.device, lm), documents, held_out, autocast=compute.dtype)
    for note in (*notes, f"{len(documents):,} documents, {trainer.num_targets:,} tokens to learn in an epoch."):
        print(note, file=sys.stderr, flush=True)
    ending = train(
        run,
        state=trainer.state,
        num_steps=trainer.num_steps,
        step_fn=trainer.step,
        eval_fn=trainer.evaluate if held_out else None,
        eval_every=trainer.steps_per_epoch,
        config=trainer.config,
    )
    trainer.lm.save(run.path / "model")
    numbers = _numbers(run, trainer)
    if ending == "done":
        run.finish(numbers, notes)
    else:
        run.stop(numbers, [*notes, f"Stopped before step {trainer.num_steps}; the same command goes on."])
    return run


def check(config: Finetune, lm: LM | None = None) -> None:
    """Refuse options that mean nothing. Raises ValueError."""
    for name, bound in {
        "epochs": 1,
        "batch_tokens": 1,
        "max_length": 2,
        "tokens_per_pack": 0,
        "frozen_layers": 0,
    }.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if not 0 <= config.eval_share < 1:
        raise ValueError(f"eval_share is {config.eval_share}; expected 0 (hold nothing out) or more, below 1.")
    if lm is None and bool(config.init) == bool(config.size):
        both = "both were given" if config.init else "neither was given"
        raise ValueError(f"Give either --init (a model) or --size (a new one, such as 1M); {both}.")
    if config.size:
        by_size(config.size)
    if config.size and (config.frozen_layers or config.lora_rank):
        raise ValueError("A model from scratch has nothing worth freezing: leave --frozen-layers and --lora-rank out.")
    check_optim(config)
    check_adapters(config)


def start(config: Finetune, device: Any, lm: LM | None = None) -> LM:
    """A copy of the model to start from, of which what the config trains requires gradients; or a new model."""
    if config.size and lm is None:
        size = by_size(config.size)
        positions = max(config.max_length, NEW_POSITIONS)
        model = new_model(
            layers=size.layers, width=size.width, heads=size.heads, max_positions=positions, seed=config.seed
        )
        return LM(model.to(device), byte_tokenizer(), name=config.size)
    lm = lm or LM.load(config.init, device=device, dtype=torch.float32)
    if not 0 <= config.frozen_layers < split.num_layers(lm.model):
        most = split.num_layers(lm.model) - 1
        raise ValueError(f"frozen_layers is {config.frozen_layers}; this model trains a layer at {most} or less.")
    twin = split.share_trunk(lm.model, config.frozen_layers, copies=not config.lora_rank)
    if config.lora_rank:
        twin = adapt(twin, config.lora_rank, config.lora_alpha, config.frozen_layers, config.seed)
    return lm.with_model(twin.to(device).eval())


def _data(
    config: Finetune, given: list[Document] | None, held_out: Sequence[Document] | None, notes: list[str]
) -> tuple[list[Document], list[Document]]:
    documents = load_documents(config.data) if given is None else given
    if not documents:
        raise ValueError("There are no documents to learn from.")
    if held_out is not None or config.eval_data:
        held = list(held_out) if held_out is not None else load_documents(config.eval_data)
        shared = {document_key(d) for d in documents} & {document_key(d) for d in held}
        if shared:
            notes.append(f"{len(shared)} held-out documents begin like training ones: their loss is too favourable.")
        return documents, held
    if config.eval_share > 0 and len({document_key(d) for d in documents}) > 1:
        return split_by_conversation(documents, config.eval_share, config.seed, key=document_key)
    notes.append("Nothing was held out, so the loss on new text is unknown: give --eval-data.")
    return documents, []


def _hash(rows: Sequence[Document]) -> str:
    return "sha256:" + hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


# ---------------------------------------------------------------- documents as tokens


def sequences_of(documents: Sequence[Document], lm: LM, max_length: int, replies_only: bool) -> list[Row]:
    """Token ids of documents and what of them is to be learned, every document ended by the model's EOS.

    Texts longer than ``max_length`` are cut into pieces; dialogues lose their beginning (a BOS stays). With
    ``replies_only`` texts are still learned whole. Raises ValueError if the model has no EOS.
    """
    eos = lm.tokenizer.eos_token_id
    if eos is None:
        raise ValueError(f"{lm.name or 'The model'}'s tokenizer has no EOS token, so ends cannot be learned.")
    limit = min(max_length, getattr(lm.engine.config, "max_position_embeddings", None) or max_length)
    out: list[Row] = []
    for i, document in enumerate(documents):
        if isinstance(document, str):
            ids = np.array([*split_context(document, "", lm.tokenizer)[0], eos], dtype=np.int64)
            pieces = [ids[at : at + limit] for at in range(0, len(ids), limit - 1) if len(ids) - at > 1]
            out += [Row(p, np.arange(1, len(p)), j + 1 == len(pieces), i) for j, p in enumerate(pieces)]
        else:
            ids, wanted = _dialogue_ids(document, lm, eos, replies_only)
            cut = max(0, len(ids) - limit)
            if cut:
                keep = int(ids[0] == lm.tokenizer.bos_token_id)
                ids = np.concatenate([ids[:keep], ids[cut + keep :]])
                wanted = wanted[wanted > cut] - cut
            out.append(Row(ids, wanted, document.last.role == "assistant", i))
    return [s for s in out if len(s.wanted)]


def _dialogue_ids(dialogue: Dialogue, lm: LM, eos: int, replies_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a dialogue and the places to be learned: all but the first, or of replies and the token that ends each."""
    ends = [eos] if dialogue.last.role == "assistant" else []
    ids = np.array([*encode(dialogue, lm.tokenizer, lm.format), *ends], dtype=np.int64)
    if not replies_only:
        return ids, np.arange(1, len(ids))
    wanted: list[int] = []
    for i, turn in enumerate(dialogue.turns):
        if turn.role == "assistant" and i:
            prompt, whole = (encode(Dialogue(dialogue.turns[:n]), lm.tokenizer, lm.format) for n in (i, i + 1))
            wanted += range(len(prompt), min(len(whole) + 1, len(ids)))
    return ids, np.array(wanted, dtype=np.int64)


# ---------------------------------------------------------------- training


class LMTrainer:
    """Model, optimiser and documents; ``step`` takes one optimiser step, ``evaluate`` reads the held-out documents."""

    def __init__(
        self,
        config: Finetune,
        lm: LM,
        documents: Sequence[Document],
        held_out: Sequence[Document] = (),
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        rate = config.learning_rate or (by_size(config.size).learning_rate if config.size else 1e-5)
        self.config, self.lm, self.autocast = dataclasses.replace(config, learning_rate=rate), lm, autocast
        tokens = functools.partial(sequences_of, lm=lm, max_length=config.max_length, replies_only=config.replies_only)
        self.train_set, self.held_out = tokens(documents), tokens(held_out)
        if not self.train_set:
            raise ValueError("None of the documents has a token to learn.")
        self.lengths = np.array([len(s.ids) for s in self.train_set])
        self.num_targets = sum(len(s.wanted) for s in self.train_set)
        self.budget = pack_budget(lm.model.device, config.tokens_per_pack)  # less once memory has run out
        self.steps_per_epoch = max(1, int(self.lengths.sum()) // max(config.batch_tokens, int(self.lengths.max())))
        self.num_steps = self.steps_per_epoch * config.epochs
        groups = param_groups(lm.model, learning_rate=rate, weight_decay=config.weight_decay)
        self.optimizer = make_optimizer(groups, self.config)
        self.state: dict[str, Stateful] = {"model": Trainable(lm.model), "optimizer": self.optimizer}
        self.epoch_batches = functools.lru_cache(2)(self._batches)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Indices of the sequences of every batch: all of them once, in an order that follows from (seed, epoch)."""
        order = rng(self.config.seed, epoch).permutation(len(self.train_set))
        middle = np.cumsum(self.lengths[order]) - self.lengths[order] / 2
        which = (middle / self.lengths.sum() * self.steps_per_epoch).astype(int)
        return [order[which == i] for i in range(self.steps_per_epoch)]

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the run chose it; weights, logits and loss stay float32."""
        return autocast(self.lm.model.device, self.autocast)

    def logprobs(self, pack: Pack, rows: Sequence[Row]) -> list[Tensor]:
        """Log-probabilities in nats, one tensor a member in the pack's order, of the tokens its row wants; ``rows`` are
        what members index.
        """
        pack = pack.to(self.lm.model.device)
        wanted = [torch.as_tensor(rows[m].wanted, device=pack.ids.device) for m in pack.members]
        with self.precision():
            hidden = split.top_hidden(self.lm.model, pack, None, self.config.frozen_layers)
        places = torch.cat([path[w - 1] for path, w in zip(pack.paths, wanted, strict=True)])
        targets = torch.cat([pack.ids[path[w]] for path, w in zip(pack.paths, wanted, strict=True)])
        found = gather_logprobs(tree.logits(self.lm.model, hidden[places]), targets)
        return list(found.split([len(w) for w in wanted]))

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the batch that follows from (seed, step)."""
        c = self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        batches = self.epoch_batches(epoch)
        before = epoch * len(self.train_set) + sum(map(len, batches[:place]))
        rate = set_lr(self.optimizer, before, c, c.epochs * len(self.train_set))
        rows = [self.train_set[i] for i in batches[place]]

        def backward(budget: int) -> tuple[float, int]:
            self.optimizer.zero_grad(set_to_none=True)  # also what was left when memory ran out
            return self.backward(rows, budget)

        (loss, tokens), self.budget = fitting(backward, self.budget, "training with {} tokens in a pack")
        norm = clip(self._trained(), c.max_grad_norm)
        self.optimizer.step()
        samples = before + len(rows)
        return {"loss": loss, "lr": rate, "grad_norm": norm, "tokens": tokens, "samples": samples,
                "epoch": samples / len(self.train_set)}  # fmt: skip

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, rows: Sequence[Row], budget: int) -> tuple[float, int]:
        """Add the gradient of the mean loss over all wanted tokens, pack by pack; returns that loss and tokens read."""
        targets, loss, tokens = sum(len(r.wanted) for r in rows), 0.0, 0
        for pack in tree.packs([r.ids for r in rows], budget):
            part = -torch.cat(self.logprobs(pack, rows)).sum() / targets
            part.backward()
            loss, tokens = loss + part.item(), tokens + len(pack)
        return loss, tokens

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-probabilities in nats of each row's wanted tokens, float64."""
        out: list[np.ndarray] = [np.empty(0)] * len(rows)

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            part = [rows[i] for i in left]
            for pack in tree.packs([r.ids for r in part], budget):
                for member, found in zip(pack.members, self.logprobs(pack, part), strict=True):
                    out[left[member]] = found.double().cpu().numpy()
                yield pack.members

        self.budget = finish(len(rows), some, self.budget, "reading {} tokens at once")
        return out

    def evaluate(self, steps_done: int) -> dict[str, float]:
        """Loss per token on the held-out documents, nats."""
        return {"eval_loss": -float(np.concatenate(self.read(self.held_out)).mean())}


def _numbers(run: Run, trainer: LMTrainer) -> dict[str, Any]:
    rows, c = run.metrics(), trainer.config
    logged = [row for row in rows if "loss" in row]
    last = [row["loss"] for row in logged[-max(1, len(logged) // 10) :]]
    first = next((row["eval_loss"] for row in rows if row["step"] == 0 and "eval_loss" in row), None)
    read = trainer.read(trainer.held_out)
    where = [s.document for s in trainer.held_out]
    sums, counts = np.array([-x.sum() for x in read]), np.array([float(len(x)) for x in read])
    tokens = "nats per token"
    loss = stats.bootstrap(lambda s, n: float(s.sum() / n.sum()), [sums, counts], where, seed=c.seed, unit=tokens)
    ended = [i for i, s in enumerate(trainer.held_out) if s.ends]
    ends = stats.mean_interval(
        np.exp([read[i][-1] for i in ended]), [where[i] for i in ended], unit="probability", seed=c.seed
    )
    seen = sum(row["tokens"] for row in logged)
    return {
        "loss": loss if read else None,
        "init_loss": Interval(first, None, None, int(counts.sum()), tokens) if first is not None else None,
        "train_loss": Interval(float(np.mean(last)), None, None, len(last), tokens) if last else None,
        "end_probability": ends if ended else None,
        "documents": Interval(len({s.document for s in trainer.train_set}), None, None, len(logged), "documents"),
        "tokens": Interval(seen, None, None, len(logged), "tokens"),
    }  # fmt: skip


def _cost(config: Finetune, documents: list[Document], held_out: list[Document], lm: LM | None) -> list[str]:
    """Lines for ``--dry-run``: two steps of a trainer that is thrown away, and part of an evaluation."""
    compute = choose(config.device, config.dtype, config.threads)
    trainer, loading = timed(
        lambda: LMTrainer(config, start(config, compute.device, lm), documents, held_out, autocast=compute.dtype)
    )
    metrics, stepping = steps_of(lambda i: trainer.step(i % trainer.steps_per_epoch))
    tokens = int(trainer.lengths.sum()) * config.epochs
    cost = loading + Cost(tokens, stepping.seconds / metrics["tokens"] * tokens)
    if trainer.held_out:
        few = trainer.held_out[: max(1, len(trainer.held_out) // 20)]
        _, look = timed(lambda: trainer.read(few))
        part, whole = (sum(len(s.ids) for s in rows) for rows in (few, trainer.held_out))
        cost += Cost(whole * (config.epochs + 2), look.seconds / part * whole * (config.epochs + 2))
    every = sum(p.numel() for p in trainer.lm.model.parameters())
    trained = sum(p.numel() for p in trainer._trained())
    return [
        f"{len(documents):,} documents to train on, {len(held_out):,} held out.",
        f"{trainer.num_steps:,} steps over {tokens:,} tokens; {every:,} weights, {trained:,} of them trained.",
        *cost.lines(compute),
    ]
