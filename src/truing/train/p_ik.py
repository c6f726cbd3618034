"""P(IK): a head that says, before any answer exists, how likely the model's own answer is right (2207.05221 §5).

The label of a question is the share of the model's sampled answers that are right; the loss is the cross-entropy of
that soft label, whose gradient is that of one row per answer. The scalar is read at the prompt's last token, where an
answer would begin. Labels come from the model as it was; head and body are then trained together on a copy.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing import stats
from truing.configs import PIKTrain
from truing.data.files import write_rows
from truing.data.quiz import question_prompt, split_questions
from truing.models.compute import autocast
from truing.models.heads import PIK
from truing.models.lm import LM
from truing.models.memory import fitting
from truing.models.tree import Pack, pack_budget
from truing.runs import Run
from truing.stats import Interval
from truing.train.loop import Stateful, Trainable, check_optim, clip, make_optimizer, param_groups, rng, set_lr, train
from truing.train.p_ik_numbers import NAMES, choose_threshold, measure_p_ik, rates_of, reliability_of
from truing.train.pm_pairs import Trunk, pack_sequences
from truing.types import Answers

VERB = "honesty pik"
SAMPLES = 50
"""Held-out questions shown in samples.jsonl."""
START_ROWS = 256
"""Training questions whose states tell the head where to begin."""


def p_ik_loss(logits: Tensor, rates: Tensor) -> Tensor:
    """Mean cross-entropy, nats, of shares of right answers ``rates`` [B] under σ(``logits`` [B]) (2207.05221 §5).

    >>> round(p_ik_loss(torch.zeros(2), torch.tensor([0.0, 0.7])).item(), 4)
    0.6931
    """
    return F.binary_cross_entropy_with_logits(logits, rates)


def check(config: PIKTrain) -> None:
    """Refuse options that mean nothing."""
    least = {"samples": 1, "epochs": 1, "batch_size": 1, "max_new_tokens": 1, "tokens_per_pack": 0, "frozen_layers": 0}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if not 0 <= config.eval_share < 1:
        raise ValueError(f"eval_share is {config.eval_share}; expected 0 or more and less than 1.")
    check_optim(config)


def train_p_ik(config: PIKTrain, answers: Sequence[Answers], lm: LM | None = None, *, run: Run | None = None) -> Run:
    """Train the head on some of the questions and measure it on the others; the same call again resumes.

    ``answers`` are the model's own, graded; ``lm`` stands in for a loaded ``config.init``, ``run`` for one opened by
    the caller. The run holds the model as ``model/``. Raises ValueError for options and answers that cannot be used.
    """
    check(config)
    if not answers:
        raise ValueError("There are no answered questions to learn from.")
    rates = rates_of(answers)
    digest = hashlib.sha256("\n".join(map(repr, answers)).encode()).hexdigest()
    run = run or Run.open(VERB, config, data_hashes={"answers": f"sha256:{digest}"}, slug=Path(config.init).name)
    if run.done:
        return run
    compute = run.compute(config)
    lm = lm or LM.load(config.init, device=compute.device, dtype=torch.float32)
    kept, held = split_questions([a.question for a in answers], config.eval_share, config.seed)
    model = PIK.new(lm, seed=config.seed, frozen_layers=config.frozen_layers)
    prompts = [lm.encode_prompt(question_prompt(answers[i].question, config.format)) for i in (*kept, *held)]
    trainer = PIKTrainer(config, model, prompts, rates[[*kept, *held]], len(kept), autocast=compute.dtype)
    ending = train(
        run,
        state=trainer.state,
        num_steps=trainer.num_steps,
        step_fn=trainer.step,
        eval_fn=trainer.evaluate if held else None,
        eval_every=trainer.steps_per_epoch,
        config=config,
    )
    model.save(run.path / "model")
    notes = _notes(answers, rates, kept, held)
    threshold = choose_threshold(rates[kept])
    numbers = _measured(run, trainer, [answers[i] for i in held], threshold, notes)
    if ending == "done":
        run.finish(numbers, notes)
    else:
        run.stop(numbers, [*notes, f"Stopped before step {trainer.num_steps}; the same command goes on."])
    return run


class PIKTrainer:
    """Model, optimiser and prompts with their labels: the first ``num_train`` are trained on, the rest held out."""

    def __init__(
        self,
        config: PIKTrain,
        model: PIK,
        prompts: Sequence[Sequence[int]],
        rates: np.ndarray,
        num_train: int,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.config, self.model, self.num_train, self.autocast = config, model, num_train, autocast
        self.budget = pack_budget(model.device, config.tokens_per_pack)  # less once memory has run out
        self.sequences = [np.asarray(p, dtype=np.int64) for p in prompts]
        self.rates = torch.tensor(rates, dtype=torch.float32)
        model.requires_grad_(False)
        for _, parameter in model.trainable_parameters():
            parameter.requires_grad_(True)
        self.steps_per_epoch = math.ceil(num_train / config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        say = _say if config.frozen_layers else lambda _: None
        self.trunk = Trunk(model.backbone, config.frozen_layers, self.sequences, self.budget, self.precision, say)
        self.begin_at_base_rate()
        head_rate = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
        self.optimizer = make_optimizer(
            [
                *param_groups(model.backbone, learning_rate=config.learning_rate, weight_decay=config.weight_decay),
                *param_groups(nn.ModuleDict({"head": model.head}), learning_rate=head_rate, weight_decay=0.0),
            ],
            config,
        )
        self.state: dict[str, Stateful] = {"model": Trainable(model), "optimizer": self.optimizer}
        self.order = functools.lru_cache(2)(lambda epoch: rng(config.seed, epoch).permutation(num_train))

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the run chose it; weights, head and loss stay float32."""
        return autocast(self.model.device, self.autocast)

    def packs(self, rows: Sequence[int]) -> list[Pack]:
        """Packs of some prompts, within the token budget."""
        return pack_sequences(self.sequences, list(rows), self.budget)

    @torch.no_grad()
    def begin_at_base_rate(self) -> None:
        """Move the head along the mean state so that the mean logit is that of the training questions' mean label.

        The head has no bias, and at small learning rates it would spend the pass on finding the base rate.
        """
        rows = np.unique(np.linspace(0, self.num_train - 1, min(self.num_train, START_ROWS)).astype(int))
        mean = torch.cat([self.trunk.last(pack).float() for pack in self.packs(rows.tolist())]).mean(0)
        share = (self.rates[: self.num_train].double().sum().item() + 0.5) / (self.num_train + 1)
        gap = math.log(share / (1 - share)) - float(self.model.project(mean[None]))
        self.model.head.weight += gap * mean / mean.dot(mean)

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the questions that follow from (seed, step)."""
        c = self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        batch = self.order(epoch)[place * c.batch_size : (place + 1) * c.batch_size].tolist()
        before = epoch * self.num_train + place * c.batch_size
        rate = set_lr(self.optimizer, before, c, c.epochs * self.num_train)

        def backward(budget: int) -> tuple[float, int]:
            self.budget = budget
            self.optimizer.zero_grad(set_to_none=True)  # also what was left when memory ran out
            return self.backward(batch)

        loss, tokens = fitting(backward, self.budget, "training with {} tokens in a pack")[0]
        norm = clip([p for group in self.optimizer.param_groups for p in group["params"]], c.max_grad_norm)
        self.optimizer.step()
        seen = before + len(batch)
        return {
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "samples": seen,
            "epoch": seen / self.num_train,
        }

    def backward(self, batch: Sequence[int]) -> tuple[float, int]:
        """Add the gradient of the batch's mean loss, pack by pack; returns loss and tokens computed."""
        loss, tokens = 0.0, 0
        for pack in self.packs(batch):
            logits = self.model.project(self.trunk.last(pack))
            share = p_ik_loss(logits, self.rates[pack.members].to(logits.device)) * (len(pack.members) / len(batch))
            share.backward()
            loss += share.item()
            tokens += len(pack)
        return loss, tokens

    @torch.no_grad()
    def held_out_logits(self) -> np.ndarray:
        """Logits float64 [N] of the held-out prompts, in order."""
        out = np.empty(len(self.sequences))
        for pack in self.packs(range(self.num_train, len(self.sequences))):
            out[pack.members] = self.model.project(self.trunk.last(pack)).double().cpu().numpy()
        return out[self.num_train :]

    def evaluate(self, steps_done: int) -> dict[str, float]:
        """Held-out loss and, where defined, AUROC."""
        rates, logits = self.rates[self.num_train :], self.held_out_logits()
        found = {"eval_loss": float(p_ik_loss(torch.from_numpy(logits), rates.double()))}
        known = (rates.numpy() > choose_threshold(self.rates[: self.num_train])).astype(float)
        area = stats.auroc(logits, known)
        return found if area is None else {**found, "eval_auroc": area}


# After


def _measured(
    run: Run, trainer: PIKTrainer, held: Sequence[Answers], threshold: float, notes: list[str]
) -> dict[str, Interval]:
    """Numbers on the held-out questions, and the files that show them."""
    if not held:
        return {name: Interval(None, None, None, 0, "", "nothing was held out") for name in NAMES}
    if threshold != 0.5:
        notes.append(f"Too few questions have half of their answers right: known means more than {threshold:g} here.")
    p = 1 / (1 + np.exp(-trainer.held_out_logits()))
    write_rows(run.path / "reliability.csv", [b.as_dict() for b in reliability_of(p, held).bins])
    rows = [
        {"id": a.question.id, "task": a.question.task, "question": a.question.question, "p_ik": round(x, 6)}
        | {"share_right": a.rate, "num_answers": len(a.samples)}
        for x, a in zip(p.tolist(), held, strict=True)
    ]
    write_rows(run.path / "rows.jsonl", rows)
    run.write_samples(
        {**rows[i], "answers": _shown(held[i])}
        for i in sorted(np.argsort(p)[np.linspace(0, len(p) - 1, min(len(p), SAMPLES)).astype(int)].tolist())
    )
    return measure_p_ik(p, held, threshold=threshold, seed=trainer.config.seed)


def _shown(answers: Answers) -> str:
    """A question's answers in one line, each once, the right ones marked."""
    distinct = dict.fromkeys(zip(answers.samples, answers.correct, strict=True))
    return " · ".join(f"{text or '(nothing)'}{' ✓' if right else ''}" for text, right in distinct)


def _notes(answers: Sequence[Answers], rates: np.ndarray, kept: list[int], held: list[int]) -> list[str]:
    counts = sorted({len(a.samples) for a in answers})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    notes = [
        f"Trained on {len(kept):,} questions with {each} answers each, {len(held):,} held out; "
        f"{rates[kept].mean():.1%} of the answers to training questions are right"
        + (f", {rates[held].mean():.1%} of those to held-out ones." if held else ".")
    ]
    if rates[kept].min() == rates[kept].max():
        notes.append("All training questions have the same share of right answers: there is nothing to tell apart.")
    return notes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
