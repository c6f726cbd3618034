"""What a distillation run leaves: losses before and after on the same texts, replies side by side, expected cost."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truing import stats
from truing.configs import Distill
from truing.data.comparisons import conversation_key
from truing.data.lessons import Lesson
from truing.models.compute import choose
from truing.models.lm import LM
from truing.runs import Run, atomic_write
from truing.stats import Interval
from truing.train.cost import Cost, spread, timed
from truing.train.cost_of import steps_of
from truing.train.teacher_cache import TeacherCache, beginning_of, with_prompt
from truing.types import Dialogue

START = "start.json"
"""Replies and held-out losses from before the first step."""
REPLY_TOKENS = 64


def begin(run: Run, trainer: Any, teacher: LM, asked: Sequence[Dialogue], prompt: str) -> None:
    """Keep what the end is compared with: the student's losses and replies, and the teacher's after the prompt."""
    found = {
        "losses": trainer.held_out_losses().tolist(),
        "before": replies(trainer.lm, asked),
        "prompted": replies(teacher, [with_prompt(d, prompt) for d in asked]),
    }
    atomic_write(run.path / START, json.dumps(found, ensure_ascii=False))


def replies(lm: LM, asked: Sequence[Dialogue]) -> list[str]:
    """The likeliest reply to each prompt."""
    drawn = lm.sample(asked, max_tokens=REPLY_TOKENS, temperature=0.0) if asked else []
    return [samples[0].text for samples in drawn]


def leave(
    run: Run, trainer: Any, asked: Sequence[Dialogue], held_out: Sequence[Lesson], notes: list[str], done: bool
) -> None:
    """Write samples and the summary."""
    start = json.loads((run.path / START).read_text())
    after = replies(trainer.lm, asked)
    rows = zip(asked, start["before"], start["prompted"], after, strict=True)
    run.write_samples({"prompt": d.last.text, "before": b, "with_prompt": p, "after": a} for d, b, p, a in rows)
    numbers = distill_numbers(trainer, np.array(start["losses"]), held_out)
    numbers["train_loss"] = _train_loss(run, trainer)
    if done:
        run.finish(numbers, notes)
    else:
        run.stop(numbers, [*notes, f"Stopped before step {trainer.num_steps}; the same command goes on."])


def distill_numbers(trainer: Any, start: np.ndarray, held_out: Sequence[Lesson]) -> dict[str, Any]:
    """Numbers on the held-out texts; intervals resample conversations, of which several texts may come."""
    sizes, seed = trainer.cache.sizes, trainer.config.seed
    held = sizes[trainer.num_train :].astype(float)
    numbers: dict[str, Any] = dict.fromkeys(("loss", "init_loss", "loss_removed"))
    if len(held):
        end, kinds = trainer.held_out_losses(), np.array([x.material for x in held_out])
        keys = np.array([conversation_key(x) for x in held_out])

        def per_token(losses: np.ndarray, keep: np.ndarray | slice = slice(None)) -> Interval:
            return stats.bootstrap(_ratio, [losses[keep], held[keep]], keys[keep], seed=seed, unit="nats per token")

        def removed(a: np.ndarray, b: np.ndarray) -> float | None:
            return 1 - float(a.sum() / b.sum()) if b.sum() > 0 else None

        numbers |= {"loss": per_token(end), "init_loss": per_token(start)}
        numbers["loss_removed"] = stats.bootstrap(removed, [end, start], keys, seed=seed, unit="share")
        several = sorted(set(kinds.tolist())) if len(set(kinds)) > 1 else ()
        numbers |= {f"loss/{kind}": per_token(end, kinds == kind) for kind in several}
    n, most = trainer.num_train, min(len(sizes), 256)
    tops = [np.exp(trainer.cache.rows(i)[1][:, :-1].astype(float)).sum(1) for i in spread(len(sizes), most)]
    numbers["teacher_mass"] = stats.bootstrap(
        _ratio, [np.array([t.sum() for t in tops]), np.array([float(len(t)) for t in tops])], seed=seed, unit="share"
    )
    numbers["train_tokens"] = Interval(float(sizes[:n].sum()), None, None, n, "tokens")
    return numbers


def _ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.sum() / b.sum())


def _train_loss(run: Run, trainer: Any) -> Interval | None:
    """Mean over the tokens of the last tenth of the steps."""
    logged = [row for row in run.metrics() if row.get("loss") is not None]
    last = logged[-max(1, len(logged) // 10) :]
    tokens = sum(row["tokens"] for row in last)
    if not tokens:
        return None
    return Interval(sum(r["loss"] * r["tokens"] for r in last) / tokens, None, None, tokens, "nats per token")


def expected(
    trainer_of: Callable[..., Any],
    texts_of: Callable[..., Any],
    config: Distill,
    rows: Sequence[Lesson],
    prompt: str,
    lm: LM | None,
    teacher: LM | None,
) -> list[str]:
    """Lines for ``rlhf distill --dry-run``: part of the reading and of the training, in memory and a scratch folder."""
    compute = choose(config.device, config.dtype, config.threads)
    student, loading = timed(lambda: lm or LM.load(config.init, device=compute.device, dtype=torch.float32))
    texts, held, notes = texts_of(config, rows, student, prompt)
    first = len(beginning_of(texts))
    taught, lengths = (np.array(x) for x in zip(*((len(t.plain) - t.start, len(t.plain)) for t in texts), strict=True))
    n = len(texts) - held
    few = [texts[i] for i in spread(len(texts), 2 * config.batch_size)]
    reader = teacher or LM.load(config.teacher or config.init, device=compute.device, dtype=compute.dtype)
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(Path(folder), few, config.top_k, len(student.tokenizer), {})
        _, reading = timed(lambda: cache.fill(reader), reader.engine)
        trainer = trainer_of(config, student, cache, len(few), autocast=compute.dtype)
        metrics, stepping = steps_of(lambda i: trainer.step(i % trainer.steps_per_epoch))
    tails = sum(len(t.prompted) - first for t in texts)
    part = sum(len(t.prompted) - first for t in few)
    read = Cost(first + tails, reading.seconds * (first + tails) / (first + part))
    trained = float(lengths[:n].sum()) * config.epochs
    learnt = Cost(trained, stepping.seconds / metrics["tokens"] * float(taught[:n].sum()) * config.epochs)
    looks = Cost(float(lengths[n:].sum()) * (2 + config.epochs), 0.0)
    looks = Cost(looks.tokens, learnt.seconds / max(1.0, trained) * looks.tokens / 3)
    bytes_ = int(taught.sum()) * (2 * config.top_k + 2 * (config.top_k + 1))
    cost = loading + read + learnt + looks
    return [
        *notes,
        f"The teacher reads a prompt of {first:,} tokens once, then {tails:,} tokens; what it says takes "
        f"{bytes_ / 2**20:,.1f} MiB on disk.",
        f"{math.ceil(n / config.batch_size) * config.epochs:,} steps over {int(taught[:n].sum()):,} taught tokens.",
        *cost.lines(compute),
    ]
