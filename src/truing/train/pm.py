"""Preference models from comparisons (2204.05862 §3, App A.2): the verb ``pm train``.

A reply is read with its whole dialogue and scored at an end-of-context token; the loss of a pair is
log(1 + exp(r_rejected − r_chosen)), weighted as the options say (`pm_loss`). Pairs that answer one prompt stand in
one batch, so that the prompt is computed once and a reply that stands in many pairs is scored once. Dropout is off: the
model stays in eval mode throughout.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from truing.configs import PMPretrain, PMTrain
from truing.data.comparisons import conversation_key
from truing.data.files import write_rows
from truing.data.provenance import HELD_OUT
from truing.models.compute import autocast
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.memory import finish, fitting
from truing.models.tree import Pack, pack_budget
from truing.runs import Run
from truing.stats import Interval, ece
from truing.text import to_hh
from truing.train.cost_of import pm_cost
from truing.train.loop import Stateful, Trainable, clip, make_optimizer, param_groups, set_lr, train
from truing.train.parallel import ALONE, Group, compute_of, group_for, open_run, processes
from truing.train.pm_loss import loss_weights, margins, pair_losses, tensor_of, times_seen
from truing.train.pm_loss import pm_loss as pm_loss
from truing.train.pm_numbers import confidence, correctness, kinds_line, losses, preference_numbers, reliability_of
from truing.train.pm_pairs import Kept, Pairs, Trunk, batches, chunks, pack_sequences, shares, tokenize
from truing.train.pm_setup import check, check_lengths, data_hash, data_of, spread, start
from truing.types import Comparison

SAMPLES = 50
"""Held-out comparisons whose scores are written to samples.jsonl."""
REFERENCE_REPLIES = 4000
"""At most this many replies set the reference mean (2204.05862 App B.2: several thousand)."""


def train_pm(
    config: PMTrain,
    *,
    comparisons: Sequence[Comparison] | None = None,
    eval_comparisons: Sequence[Comparison] | None = None,
    lm: LM | None = None,
    kept: Kept | None = None,
) -> Run | dict[str, Any]:
    """Train a preference model; the verb ``pm train``. The same call again resumes the run or returns it.

    ``comparisons`` and ``eval_comparisons`` stand in for the files the config names, ``lm`` for a loaded
    ``config.init``; ``kept`` hands on what its frozen layers have read before (`pm_pairs.Trunk`). The run holds
    the model as a Hugging Face folder ``model/``. With ``dry_run`` returns what it would cost. In the processes that
    torchrun started the first one writes the run; all return it. Raises ValueError for options and data that cannot
    be used.
    """
    check(config)
    notes: list[str] = []
    train_set, held_out, parts = data_of(config, comparisons, eval_comparisons, notes)
    if config.dry_run:
        group_for(ALONE)  # several would measure one another
        return {"lines": [*notes, *pm_cost(PMTrainer, config, (train_set, held_out, parts), lm, REFERENCE_REPLIES)]}
    given = {"comparisons": comparisons, "eval_comparisons": eval_comparisons}
    hashes = {name: data_hash(rows) for name, rows in given.items() if rows is not None}
    files = [] if comparisons is not None else [*config.data]
    files += [] if eval_comparisons is not None else [*config.eval_data]
    with processes(config.parallel) as group:
        verb = "pm pretrain" if isinstance(config, PMPretrain) else "pm train"
        run = open_run(group, verb, config, data_files=files, data_hashes=hashes, slug=Path(config.init).name)
        if group.same(run.done):
            return run
        for note in (*notes, f"{len(train_set):,} comparisons to train on, {len(held_out):,} held out: {config.init}."):
            _say(note)
        compute = compute_of(group, run, config)
        pm = start(config, compute.device, lm)
        of_rows: dict[str, Any] = {"parts": parts, "autocast": compute.dtype}
        trainer = PMTrainer(config, pm, train_set, held_out, **of_rows, kept=kept, group=group)
        ending = train(
            run,
            state=trainer.state,
            num_steps=trainer.num_steps,
            step_fn=trainer.step,
            eval_fn=trainer.evaluate if held_out else None,
            eval_every=trainer.steps_per_epoch,
            config=config,
            group=group,
        )
        _leave(run, trainer, ending == "done", notes)
        group.gather(None)  # the run is whole when any process returns
    return run


class PMTrainer:
    """Model, optimiser and pairs; ``step`` takes one optimiser step, ``evaluate`` scores the held-out pairs."""

    def __init__(
        self,
        config: PMTrain,
        pm: PreferenceModel,
        train_set: Sequence[Comparison],
        held_out: Sequence[Comparison] = (),
        *,
        parts: np.ndarray | None = None,
        autocast: torch.dtype | None = None,
        kept: Kept | None = None,
        group: Group = ALONE,
    ) -> None:
        self.config, self.pm, self.autocast, self.group = config, pm, autocast, group
        self.budget = pack_budget(pm.device, config.tokens_per_pack)  # less once memory has run out
        self.train_set, self.held_out = list(train_set), list(held_out)
        self.pairs = tokenize([*self.train_set, *self.held_out], lambda d: pm.pm_ids(d, config.max_length))
        check_lengths(config, pm, self.pairs)
        self.weights, self.margins = loss_weights(self.train_set, config), margins(self.train_set, config)
        self.parts = np.zeros(len(self.train_set), dtype=np.int64) if parts is None else parts
        self.per_epoch = int(self.times(0).sum())
        self.steps_per_epoch = math.ceil(self.per_epoch / config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        say = _say if config.frozen_layers else lambda _: None
        k, shared = config.frozen_layers, group.size
        self.trunk = Trunk(pm.backbone, k, self.pairs.sequences, self.budget, self.precision, say, kept, shared)
        spread(config, pm, group)
        head_rate = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
        self.optimizer = make_optimizer(
            [
                *param_groups(pm.backbone, learning_rate=config.learning_rate, weight_decay=config.weight_decay),
                *param_groups(nn.ModuleDict({"head": pm.head}), learning_rate=head_rate, weight_decay=0.0),
            ],
            config,
        )
        self.state: dict[str, Stateful] = {"model": Trainable(pm), "optimizer": self.optimizer}
        self.epoch_batches = functools.lru_cache(2)(
            lambda epoch: batches(self._train_pairs(), config.batch_size, config.seed, epoch, self.times(epoch))
        )
        self.gaps: tuple[int, np.ndarray] | None = None

    def _train_pairs(self) -> Pairs:
        """The pairs that are trained on: the first ones; the held-out pairs follow them."""
        n = len(self.train_set)
        groups = [g[g < n] for g in self.pairs.groups]
        return Pairs(
            self.pairs.sequences, self.pairs.chosen[:n], self.pairs.rejected[:n], [g for g in groups if len(g)]
        )

    def times(self, epoch: int) -> np.ndarray:
        """How often each training pair is seen in an epoch, int [P]."""
        return times_seen(self.parts, self.config.weights, self.config.seed, epoch)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the run chose it; weights, head and loss stay float32."""
        return autocast(self.pm.device, self.autocast)

    def scores(self, pack: Pack) -> Tensor:
        """Raw scores [members] at the end-of-context tokens of a pack, with gradient, float32."""
        return self.pm.project(self.trunk.last(pack))

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the batch that follows from (seed, step)."""
        c = self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        batch = self.epoch_batches(epoch)[place]
        before = epoch * self.per_epoch + place * c.batch_size
        rate = set_lr(self.optimizer, before, c, c.epochs * self.per_epoch)

        def backward(budget: int) -> tuple[float, np.ndarray, int]:
            self.optimizer.zero_grad(set_to_none=True)  # also what was left when memory ran out
            return self.backward(batch, budget)

        (loss, gaps, tokens), self.budget = fitting(
            backward, self.budget, "training with {} tokens in a pack", retry=self.group.size == 1
        )
        norm = clip(self.trained(), c.max_grad_norm, self.group)
        self.optimizer.step()
        return {
            "loss": loss,
            "accuracy": float(correctness(gaps).mean()),
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "samples": before + len(batch),
            "epoch": (before + len(batch)) / self.per_epoch,
        }

    def trained(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, batch: np.ndarray, budget: int | None = None) -> tuple[float, np.ndarray, int]:
        """Add the gradient of the batch's mean loss, pack by pack; returns loss, score gaps and tokens computed.

        Every process of the group takes a share of the batch's pairs; what is returned is of all of them.
        """
        share = shares(self.pairs, batch, self.group.size)[self.group.rank]
        loss, tokens, gaps = 0.0, 0, [np.empty(0)]
        packs = chunks(self.pairs, share, budget or self.budget) if len(share) else []
        idle = self.group.most(len(packs)) - len(packs) if self.group.sharded else 0
        for chunk in packs:
            part, gap, size = self._backward(chunk, len(chunk) / len(batch))
            loss += part
            tokens += size
            gaps.append(gap)
        for _ in range(idle):  # sharded weights come together pack by pack: every process must read as many
            self._backward(batch[:1], 0.0)
        self.group.sum_gradients(self.trained())
        found = self.group.gather((loss, np.concatenate(gaps), tokens))
        return sum(f[0] for f in found), np.concatenate([f[1] for f in found]), sum(f[2] for f in found)

    def _backward(self, chunk: np.ndarray, weight: float) -> tuple[float, np.ndarray, int]:
        """Add the gradient of ``weight`` times the mean weighted loss of pairs that fit one pack."""
        members = list(dict.fromkeys([*self.pairs.chosen[chunk], *self.pairs.rejected[chunk]]))
        (pack,) = pack_sequences(self.pairs.sequences, members)
        scores = self.scores(pack)
        where = {member: i for i, member in enumerate(pack.members)}
        chosen = scores[[where[s] for s in self.pairs.chosen[chunk]]]
        rejected = scores[[where[s] for s in self.pairs.rejected[chunk]]]
        margin, counts = (tensor_of(x[chunk], chosen) for x in (self.margins, self.weights))
        loss = (pair_losses(chosen, rejected, margin, self.config.binarised) * counts).mean() * weight
        loss.backward()
        return loss.item(), (chosen - rejected).detach().double().cpu().numpy(), len(pack)

    @torch.no_grad()
    def score_all(self, sequences: Sequence[int]) -> dict[int, float]:
        """Raw scores of some of the sequences; each process of the group reads its share of the packs."""
        found: dict[int, float] = {}
        wanted = list(dict.fromkeys(sequences))
        if self.group.size > 1:
            for pack in self.group.deal(pack_sequences(self.pairs.sequences, wanted, self.budget)):
                found.update(zip(pack.members, self.scores(pack).double().tolist(), strict=True))
            return {member: score for part in self.group.gather(found) for member, score in part.items()}

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            members = [wanted[i] for i in left]
            place = {member: i for i, member in enumerate(members)}
            for pack in pack_sequences(self.pairs.sequences, members, budget):
                found.update(zip(pack.members, self.scores(pack).double().tolist(), strict=True))
                yield [place[member] for member in pack.members]

        self.budget = finish(len(wanted), some, self.budget, "scoring {} tokens at once")
        return found

    def held_out_gaps(self) -> np.ndarray:
        """Score gaps (chosen − rejected) of the held-out pairs."""
        n = len(self.train_set)
        chosen, rejected = self.pairs.chosen[n:].tolist(), self.pairs.rejected[n:].tolist()
        scores = self.score_all([*chosen, *rejected])
        return np.array([scores[a] - scores[b] for a, b in zip(chosen, rejected, strict=True)])

    def evaluate(self, steps_done: int) -> dict[str, float]:
        """Held-out accuracy (each kind's too), loss and ECE."""
        gaps = self.held_out_gaps()
        self.gaps = (steps_done, gaps)
        right, kinds = correctness(gaps), np.array([c.kind for c in self.held_out])
        found = {"eval_accuracy": float(right.mean()), "eval_loss": float(losses(gaps).mean())}
        found["eval_ece"] = ece(confidence(gaps), right) or 0.0
        return found | {f"eval_accuracy/{kind}": float(right[kinds == kind].mean()) for kind in sorted({*kinds})}

    def reference_mean(self) -> float:
        """Mean raw score of the held-out replies (of the training replies without them): the zero of all scores."""
        n = len(self.train_set) if self.held_out else 0
        replies = np.unique(np.concatenate([self.pairs.chosen[n:], self.pairs.rejected[n:]]))
        spread = np.linspace(0, len(replies) - 1, min(len(replies), REFERENCE_REPLIES)).astype(int)
        return float(np.mean(list(self.score_all(replies[spread].tolist()).values())))


# After


def _leave(run: Run, trainer: PMTrainer, done: bool, notes: list[str]) -> None:
    """Save the model, measure it on the held-out pairs, write samples and summary.

    All processes of the group measure; the first one writes.
    """
    group, pm = trainer.group, trainer.pm
    rows = group.same(run.metrics())
    steps = max((row["step"] for row in rows), default=0)
    pm.reference_mean = trainer.reference_mean()
    weights = group.whole(Trainable(pm.backbone).state_dict()) if group.sharded else None
    if group.leads:
        pm.save(run.path / "model", weights)
    numbers = _training_numbers(rows, trainer)
    if trainer.held_out:
        known = trainer.gaps is not None and trainer.gaps[0] == steps
        gaps = trainer.gaps[1] if known and trainer.gaps else trainer.held_out_gaps()
        numbers = {**preference_numbers(gaps, trainer.held_out, seed=trainer.config.seed), **numbers}
        _say(kinds_line(numbers))
        if group.leads:
            rows_of = [b.as_dict() for b in reliability_of(gaps, trainer.held_out).bins]
            write_rows(run.path / "reliability.csv", rows_of)
            each = zip(trainer.held_out, gaps.tolist(), strict=True)
            found = [{"id": c.id, "gap": gap, "conversation": conversation_key(c)} for c, gap in each]
            write_rows(run.path / HELD_OUT, found)
        run.write_samples(_samples(trainer))
    else:
        numbers = dict.fromkeys(("accuracy", "ece", "ece_null_95", "brier"), None) | numbers
    if group.size > 1:
        notes.append(f"The last steps were taken by {group.size} processes ({trainer.config.parallel}).")
    if done:
        run.finish(numbers, notes)
    else:
        run.stop(numbers, [*notes, f"Stopped after step {steps} of {trainer.num_steps}; the same command goes on."])


def _training_numbers(rows: list[dict[str, Any]], trainer: PMTrainer) -> dict[str, Any]:
    """Loss before and after: on held-out pairs at the start, on training pairs over the last tenth of the steps."""
    logged = [row for row in rows if "loss" in row]
    first = [row for row in rows if row["step"] == 0 and row.get("eval_loss") is not None]
    last = logged[-max(1, len(logged) // 10) :]
    n, held = sum(_size(row, trainer) for row in last), len(trainer.held_out)

    def mean(name: str, unit: str) -> Interval | None:
        if not last:
            return None
        total = sum(row[name] * _size(row, trainer) for row in last)
        return Interval(total / n, None, None, n, unit)

    passes = [(row["step"] / trainer.steps_per_epoch, row["eval_ece"]) for row in rows if "eval_ece" in row]
    ended = [(int(e), x) for e, x in passes if trainer.config.epochs > 1 and e > 0 and e % 1 == 0]
    harmless = np.array([c.kind == "harmless" for c in trainer.train_set])
    share = float(trainer.times(0)[harmless].sum()) / trainer.per_epoch
    return {
        "harmless_share": Interval(share, None, None, trainer.per_epoch, "share"),
        "harmless_weight": Interval(trainer.config.harmless_weight, None, None, trainer.per_epoch, "factor"),
        **{f"ece/pass_{e}": Interval(x, None, None, held, "probability") for e, x in ended},
        "init_loss": Interval(first[0]["eval_loss"], None, None, held, "nats") if first else None,
        "init_accuracy": Interval(first[0]["eval_accuracy"], None, None, held, "share") if first else None,
        "train_loss": mean("loss", "nats"),
        "train_accuracy": mean("accuracy", "share"),
        "train_pairs": Interval(len(trainer.train_set), None, None, len(trainer.train_set), "pairs"),
        "reference_mean": Interval(trainer.pm.reference_mean, None, None, len(trainer.pairs.sequences), "PM units"),
    }


def _size(row: dict[str, Any], trainer: PMTrainer) -> int:
    place = (row["step"] - 1) % trainer.steps_per_epoch
    return min(trainer.config.batch_size, trainer.per_epoch - place * trainer.config.batch_size)


def _samples(trainer: PMTrainer) -> list[dict[str, Any]]:
    """Held-out comparisons with their centred scores."""
    n, zero = len(trainer.train_set), trainer.pm.reference_mean
    some = list(enumerate(trainer.held_out[:SAMPLES], n))
    scores = trainer.score_all([int(s) for i, _ in some for s in (trainer.pairs.chosen[i], trainer.pairs.rejected[i])])
    return [
        {
            "id": c.id,
            "kind": c.kind,
            "prompt": to_hh(c.prompt),
            "chosen": c.chosen,
            "rejected": c.rejected,
            "score_chosen": round(scores[int(trainer.pairs.chosen[i])] - zero, 4),
            "score_rejected": round(scores[int(trainer.pairs.rejected[i])] - zero, 4),
        }
        for i, c in some
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
