"""Context distillation: the verb ``rlhf distill`` (2204.05862 App A.1).

A teacher reads texts after a prompt, once, and what it holds likely at each place is kept on disk. The student reads
the same texts without the prompt and learns to say the same: per token the KL from teacher to student over the
teacher's likeliest tokens and one bucket for all else. Dropout is off: the model stays in eval mode throughout.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.configs import Distill
from truing.data.lessons import Lesson, held_last, load_lessons, mixed
from truing.data.prompts import hhh_prompt
from truing.models import tree
from truing.models.compute import autocast
from truing.models.lm import LM
from truing.models.memory import finish, fitting
from truing.models.tops import shares
from truing.models.tree import Pack, pack_budget
from truing.runs import Run
from truing.train.distill_numbers import START, begin, expected, leave
from truing.train.loop import Stateful, Trainable, check_optim, clip, make_optimizer, param_groups, rng, set_lr, train
from truing.train.pm_pairs import pack_sequences
from truing.train.progress import counting
from truing.train.teacher_cache import SHARD, TeacherCache, Text, texts_of

SHOWN = 8
"""Held-out prompts whose replies are shown."""


def distill_loss(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """KL(teacher ‖ student) float32 [N], nats per token, over the teacher's k tokens and one bucket for all else.

    ``logits`` [N, V] are the student's; ``ids`` [N, k] and ``logprobs`` [N, k + 1] the teacher's
    (`truing.models.tops`), whose rounding on disk is taken out by normalising again. With k = V it is the KL over the
    whole vocabulary.
    """
    target = logprobs.float().log_softmax(-1)
    return (target.exp() * (target - shares(logits, ids))).sum(-1)


def prompt_text(name: str) -> str:
    """The prompt that the teacher reads: ``hhh``, ``hhh-short``, or a text file's (an empty one: none)."""
    if name in ("hhh", "hhh-short"):
        return hhh_prompt(short=name == "hhh-short")
    if not Path(name).is_file():
        raise ValueError(f"--prompt is {name!r}: expected hhh, hhh-short or a text file, and there is no such file.")
    return Path(name).read_text(encoding="utf-8").rstrip("\n")


def distill(
    config: Distill, *, lessons: Sequence[Lesson] | None = None, lm: LM | None = None, teacher: LM | None = None
) -> Run | dict[str, Any]:
    """Distil a prompt into a model; the same call again resumes the run or returns it, whose ``model/`` it is.

    ``lessons`` stand in for the files the config names, ``lm`` and ``teacher`` for loaded models. Raises ValueError
    for options, data and pairs of models that cannot be used.
    """
    _check(config)
    prompt = prompt_text(config.prompt)
    rows = mixed(lessons if lessons is not None else load_lessons(config.data), config.text_share, config.seed)
    rows, held = held_last(rows, config.eval_share, config.seed)
    if config.dry_run:
        texts_of_rows = functools.partial(_texts, held=held)
        return {"lines": expected(DistillTrainer, texts_of_rows, config, rows, prompt, lm, teacher)}
    hashes = {"prompt": _sha(prompt)}
    hashes |= {} if lessons is None else {"lessons": _sha("\n".join(map(repr, rows)))}
    files = [] if lessons is not None else config.data
    run = Run.open("rlhf distill", config, data_files=files, data_hashes=hashes, slug=Path(config.init).name)
    if run.done:
        return run
    compute = run.compute(config)
    given = lm is not None
    lm = lm or LM.load(config.init, device=compute.device, dtype=torch.float32)
    texts, held, notes = _texts(config, rows, lm, prompt, held)
    said = run.environment["options"]
    facts = {"teacher": said.get("teacher") or said["init"], "format": lm.format, "prompt": _sha(prompt)}
    cache = TeacherCache(config.teacher_cache or run.path / "teacher", texts, config.top_k, len(lm.tokenizer), facts)
    trainer = DistillTrainer(config, lm, cache, len(texts) - held, autocast=compute.dtype)
    asked = [r.dialogue.prompt for r in rows[len(texts) - held :] if r.material == "dialogue"][:SHOWN]
    if cache.missing() or not (run.path / START).exists():
        if teacher is None:
            own = config.teacher is None and (given or compute.dtype == torch.float32)  # it has not learnt anything yet
            name = config.teacher or config.init
            teacher = lm if own else LM.load(name, device=compute.device, dtype=compute.dtype)
        _check_pair(lm, teacher, texts, config)
        if not cache.fill(teacher, _stopping(run, config)):
            run.stop({}, ["Stopped while the teacher was reading; the same command goes on."])
            return run
        begin(run, trainer, teacher, asked, prompt)
    teacher = None
    ending = train(
        run,
        state=trainer.state,
        num_steps=trainer.num_steps,
        step_fn=trainer.step,
        eval_fn=trainer.evaluate if held else None,
        eval_every=trainer.steps_per_epoch,
        config=config,
    )
    lm.save(run.path / "model")
    leave(run, trainer, asked, rows[len(texts) - held :], notes, ending == "done")
    return run


class DistillTrainer:
    """Student, optimiser and the teacher's cache: the first ``num_train`` texts are trained on, the rest held out."""

    def __init__(
        self, config: Distill, lm: LM, cache: TeacherCache, num_train: int, *, autocast: torch.dtype | None = None
    ) -> None:
        self.config, self.lm, self.cache, self.num_train, self.autocast = config, lm, cache, num_train, autocast
        self.device = lm.engine.inner.device
        self.budget = pack_budget(self.device, config.tokens_per_pack)  # less once memory has run out
        self.sequences = [t.plain.astype(np.int64) for t in cache.texts]
        lm.model.requires_grad_(True)
        self.steps_per_epoch = math.ceil(num_train / config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        self.optimizer = make_optimizer(param_groups(lm.model, **rates), config)
        self.state: dict[str, Stateful] = {"model": Trainable(lm.model), "optimizer": self.optimizer}
        self.order = functools.lru_cache(2)(lambda epoch: rng(config.seed, epoch).permutation(num_train))

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the run chose it; weights, head and loss stay float32."""
        return autocast(self.device, self.autocast)

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step on the texts that follow from (seed, step)."""
        c = self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        batch = self.order(epoch)[place * c.batch_size : (place + 1) * c.batch_size].tolist()
        before = epoch * self.num_train + place * c.batch_size
        rate = set_lr(self.optimizer, before, c, c.epochs * self.num_train)

        def backward(budget: int) -> float:
            self.optimizer.zero_grad(set_to_none=True)  # also what was left when memory ran out
            return self.backward(batch, budget)

        loss, self.budget = fitting(backward, self.budget, "training with {} tokens in a pack")
        norm = clip(self.state["model"].parameters.values(), c.max_grad_norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        seen = before + len(batch)
        tokens = int(self.cache.sizes[batch].sum())
        return {"loss": loss, "lr": rate, "grad_norm": norm, "tokens": tokens, "samples": seen} | {
            "epoch": seen / self.num_train
        }

    def backward(self, batch: Sequence[int], budget: int | None = None) -> float:
        """Add the gradient of the mean loss over all tokens of a batch, pack by pack; returns that loss."""
        total, loss = int(self.cache.sizes[list(batch)].sum()), 0.0
        for pack in pack_sequences(self.sequences, list(batch), budget or self.budget):
            part = self.token_losses(pack)[0].sum() / total
            part.backward()
            loss += part.item()
        return loss

    def token_losses(self, pack: Pack) -> tuple[Tensor, list[int]]:
        """Losses [N] of all taught tokens of a pack, member by member, with gradient; how many each member has."""
        pack = pack.to(self.device)
        texts = self.cache.texts
        places, _, sizes = pack.predictions([t.start for t in texts])
        rows = [self.cache.rows(m) for m in pack.members]
        ids, logprobs = (torch.from_numpy(np.concatenate(c)).to(self.device) for c in zip(*rows, strict=True))
        with self.precision():
            hidden = tree.hidden(self.lm.model, pack)
        unique, inverse = places.unique(return_inverse=True)
        logits = tree.logits(self.lm.model, hidden[unique])[:, : self.cache.vocab]
        return distill_loss(logits[inverse], ids, logprobs), sizes

    @torch.no_grad()
    def held_out_losses(self) -> np.ndarray:
        """Summed losses float64 [N], nats, of the held-out texts."""
        out = np.zeros(len(self.sequences))
        held = list(range(self.num_train, len(self.sequences)))

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            members = [held[i] for i in left]
            place = {member: i for i, member in enumerate(members)}
            for pack in pack_sequences(self.sequences, members, budget):
                losses, sizes = self.token_losses(pack)
                for member, part in zip(pack.members, losses.double().cpu().split(sizes), strict=True):
                    out[member] = float(part.sum())
                yield [place[member] for member in pack.members]

        self.budget = finish(len(held), some, self.budget, "reading {} tokens at once")
        return out[self.num_train :]

    def evaluate(self, steps_done: int) -> dict[str, float]:
        """Held-out loss, nats per token."""
        return {"eval_loss": float(self.held_out_losses().sum() / self.cache.sizes[self.num_train :].sum())}


# Before


def _check(config: Distill) -> None:
    least = {"max_length": 2, "top_k": 1, "epochs": 1, "batch_size": 1, "tokens_per_pack": 0}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} is {getattr(config, name)}; expected {bound} or more.")
    if not 0 <= config.eval_share < 1:
        raise ValueError(f"eval_share is {config.eval_share}; expected 0 (hold nothing out) or more, below 1.")
    check_optim(config)


def _texts(
    config: Distill, rows: Sequence[Lesson], lm: LM, prompt: str, held: int
) -> tuple[list[Text], int, list[str]]:
    """Texts as ids, the last ``held`` of them held out; how many those are; notes."""
    texts = texts_of(rows, lm, prompt, config.max_length)
    if len(texts) < len(rows):
        raise ValueError(
            f"{len(rows) - len(texts)} of {len(rows)} texts have no token to learn from within --max-length "
            f"{config.max_length}. Leave empty rows out, or give a larger --max-length."
        )
    plain = sum(row.material == "text" for row in rows)
    cut = sum(len(t.plain) == config.max_length for t in texts)
    notes = [f"{len(texts) - held:,} texts to train on, {held:,} held out; {plain / len(rows):.0%} are plain text."]
    notes += ["Nothing was held out, so the loss on new text is unknown."] if not held else []
    notes += [f"{cut:,} texts were cut after {config.max_length} tokens."] if cut else []
    return texts, held, notes


def _check_pair(lm: LM, teacher: LM, texts: Sequence[Text], config: Distill) -> None:
    if lm.tokenizer.get_vocab() != teacher.tokenizer.get_vocab() or lm.format != teacher.format:
        raise ValueError(
            f"{config.init!r} and its teacher {config.teacher!r} have different tokenizers or dialogue formats: what "
            "the teacher holds likely means nothing to the student. Use two models of one family."
        )
    for name, model, longest in (
        ("teacher", teacher, max(len(t.prompted) for t in texts)),
        ("student", lm, max(len(t.plain) for t in texts)),
    ):
        window = getattr(model.engine.config, "max_position_embeddings", None)
        if window is not None and longest > window:
            raise ValueError(
                f"The {name} reads {window} tokens and the longest text has {longest}, prompt included. Give a smaller "
                "--max-length, or a shorter --prompt (hhh-short, or a file of your own)."
            )


def _stopping(run: Run, config: Distill) -> Callable[[int, int], bool]:
    """Says how far the teacher is, and whether --max-time is over."""
    tell = counting(f"Teacher, {SHARD} texts each")

    def stop(done: int, of: int) -> bool:
        tell(done, of)
        return config.max_time is not None and time.monotonic() - run.opened > 60 * config.max_time

    return stop


def _sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
