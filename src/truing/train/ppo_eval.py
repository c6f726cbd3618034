"""Is the policy better, and by whose measure? Scores before and after, held-out judges, and what to be wary of.

Scores are compared only as differences on the same prompts under the same judge, so that shifting a judge by a
constant changes nothing, and with intervals by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing import stats
from truing.configs import PPOTrain
from truing.models.lm import LM
from truing.runs import Run
from truing.runs.atomic import as_lines, atomic_write, read_rows
from truing.stats import Interval
from truing.text import encode, to_hh
from truing.train.ppo_batch import Batch, Reply
from truing.train.ppo_math import distinct_bigrams, explained_variance, kl_estimates
from truing.types import Comparison

KINDS = ("finished", "capped", "empty")


@dataclass
class Evaluation:
    """What one policy answered to the evaluation prompts, in a fixed order, and what the judges say of it.

    ``scores`` [N] are the training judge's; ``tests`` those of judges that never train; ``kl`` [N] is the exact
    KL(π‖π0) per reply and ``entropy`` [N] the sum over its tokens, both in nats.
    """

    replies: list[Reply]
    scores: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    tests: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def prompts(self) -> list[int]:
        """Cluster of each reply: its prompt."""
        return [r.prompt for r in self.replies]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each reply, the stop included."""
        return np.array([len(r.ids) for r in self.replies], dtype=float)

    @property
    def kinds(self) -> np.ndarray:
        """``finished``, ``capped`` or ``empty`` for each reply."""
        return np.array([r.kind for r in self.replies])

    def metrics(self) -> dict[str, float]:
        """What is logged of it, under ``eval_…``."""
        out = {"score": self.scores.mean(), "kl": self.kl.mean(), "reply_tokens": self.lengths.mean()}
        out["eos_rate"] = np.mean([r.finish == "stop" for r in self.replies])
        out["entropy"] = self.entropy.sum() / self.lengths.sum()
        out["sqrt_kl"] = np.sqrt(max(out["kl"], 0.0))
        out |= by_kind(self.scores, self.kinds) | {f"score/{name}": x.mean() for name, x in self.tests.items()}
        return {f"eval_{name}": float(value) for name, value in out.items()}


def by_kind(scores: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """Mean score of finished, capped and empty replies, each where there are any."""
    return {f"score_{kind}": float(scores[kinds == kind].mean()) for kind in KINDS if (kinds == kind).any()}


@dataclass(frozen=True)
class Gap:
    """How much more the training judge gained than a test judge since the start; ``alarm`` at more than 2 SE."""

    name: str
    value: float
    se: float | None

    @property
    def alarm(self) -> bool:
        """True if the gap is too large to be chance."""
        return self.se is not None and self.value > 2 * self.se and self.value > 0


def gaps(before: Evaluation, after: Evaluation) -> list[Gap]:
    """Gap of every test judge: mean over replies of (training gain − test gain), SE by prompt."""
    gained = after.scores - before.scores
    out = []
    for name, scores in after.tests.items():
        gap = gained - (scores - before.tests[name])
        out.append(Gap(name, float(gap.mean()), stats.se(gap, after.prompts)))
    return out


def stopped_numbers(rows: Sequence[Mapping[str, Any]], config: PPOTrain) -> tuple[dict[str, Interval], list[str]]:
    """Numbers and a note for a run that was stopped, from its logged rows: those of the last step's batch."""
    last: Mapping[str, Any] = next((row for row in reversed(rows) if "kl" in row), {})
    units = {"kl": "nats per reply", "entropy": "nats per token", "reply_tokens": "tokens", "eos_rate": "share"}
    n = config.prompts_per_step * config.samples_per_prompt
    found = {name: Interval(last.get(name), None, None, n, unit) for name, unit in units.items()}
    step = last.get("step", 0)
    return found, [f"Stopped at step {step} of {config.steps}; these are numbers of that step's batch."]


def numbers(before: Evaluation, after: Evaluation, seed: int = 0) -> dict[str, Interval]:
    """The headline numbers: gain of the policy over its start at the same prompts and seeds, KL, entropy, length, stop.

    ``pm_score_gain/finished`` is the gain where both replies ended within the limit: a gain that vanishes there is a
    gain in ending within the limit.
    """

    def mean(values: Any, unit: str, rows: Evaluation = after) -> Interval:
        return stats.mean_interval(values, rows.prompts, unit=unit, seed=seed)

    def gain(a: np.ndarray, b: np.ndarray, keep: np.ndarray | slice = slice(None)) -> Interval:
        clusters = np.array(after.prompts)[keep]
        return stats.difference_interval(a[keep], b[keep], clusters, unit="PM units", seed=seed)

    def stopped(rows: Evaluation) -> list[float]:
        return [float(r.finish == "stop") for r in rows.replies]

    both = (after.kinds == "finished") & (before.kinds == "finished")
    out = {
        "pm_score_gain": gain(after.scores, before.scores),
        "kl": mean(after.kl, "nats per reply"),
        "entropy": per_token(after.entropy, after.lengths, after.prompts, seed),
        "reply_tokens": mean(after.lengths, "tokens"),
        "eos_rate": mean(stopped(after), "share"),
        "pm_score_gain/finished": gain(after.scores, before.scores, both),
        "entropy/before": per_token(before.entropy, before.lengths, before.prompts, seed),
        "reply_tokens/before": mean(before.lengths, "tokens", before),
        "eos_rate/before": mean(stopped(before), "share", before),
    }
    return out | {f"pm_score_gain/{name}": gain(x, before.tests[name]) for name, x in after.tests.items()}


def per_token(sums: np.ndarray, lengths: np.ndarray, clusters: Sequence[int], seed: int = 0) -> Interval:
    """Mean per token of what is summed per reply, with its interval by cluster."""
    return stats.bootstrap(
        lambda s, n: float(s.sum() / n.sum()), [sums, lengths], clusters, unit="nats per token", seed=seed
    )


def warnings(before: Evaluation, after: Evaluation) -> list[str]:
    """Notes for a reader who is about to be pleased."""
    notes = [
        f"ALARM: the training judge gained {gap.value:.3g} more than {gap.name} (standard error {gap.se:.2g}): the "
        "policy may be learning the judge's mistakes. Trust the other judge, or stop earlier."
        for gap in gaps(before, after)
        if gap.alarm
    ]
    if [r.ids for r in before.replies] == [r.ids for r in after.replies] and np.array_equal(
        before.scores, after.scores
    ):
        notes.append(
            "Not one evaluation reply changed: every gain is 0. Take more --steps or a higher --learning-rate."
        )
    means = by_kind(after.scores, after.kinds)
    if "score_empty" in means and means["score_empty"] >= max(means.values()):
        notes.append(
            f"Empty replies ({(after.kinds == 'empty').sum()} of {len(after.replies)}) score highest "
            f"({means['score_empty']:.3g}): this judge rewards saying nothing."
        )
    return notes


def sample_rows(before: Evaluation, after: Evaluation, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for ``samples.jsonl``: each prompt's replies before and after, side by side."""
    rows = []
    for i, (old, new) in enumerate(zip(before.replies, after.replies, strict=True)):
        row: dict[str, Any] = {"id": ids[new.prompt], "prompt": to_hh(new.dialogue.prompt)}
        for name, reply, rows_of in (("before", old, before), ("after", new, after)):
            row |= {name: reply.dialogue.last.text, f"score_{name}": round(float(rows_of.scores[i]), 4)}
            row |= {f"tokens_{name}": len(reply.ids), f"ended_{name}": reply.kind}
        rows.append(row | {"kl": round(float(after.kl[i]), 4)})
    return rows


EVALUATIONS = "evaluations.jsonl"
"""Every reply of every evaluation of a run, for the studies that follow a policy through training."""


def keep(run: Run, samples: int, step: int, rows: Evaluation, ids: Sequence[str]) -> None:
    """Add one evaluation to ``evaluations.jsonl``; rows of this step and of later ones, which a kill left, go.

    A row holds ``step``, ``samples`` (seen by then), the prompt's ``id``, the ``dialogue`` as messages, ``score``
    (centred), ``kl`` (nats), ``tokens``, ``ended`` and ``score/NAME`` by each test judge.
    """
    found = []
    for i, reply in enumerate(rows.replies):
        row: dict[str, Any] = {"step": step, "samples": samples, "id": ids[reply.prompt]}
        row |= {"dialogue": reply.dialogue.to_messages(), "score": float(rows.scores[i]), "kl": float(rows.kl[i])}
        row |= {"tokens": len(reply.ids), "ended": reply.kind}
        found.append(row | {f"score/{name}": float(scores[i]) for name, scores in rows.tests.items()})
    path = run.path / EVALUATIONS
    before = [row for row in read_rows(path) if row["step"] < step]
    atomic_write(path, as_lines([*before, *found]))


def policy_accuracy(lm: LM, comparisons: Sequence[Comparison]) -> Interval:
    """Share of comparisons whose chosen reply the policy gives the higher mean log-probability per token.

    A tie counts half (2204.05862 App B.3; it stays below the preference model's own accuracy). Clusters: prompts.
    """
    sequences, starts = [], []
    for c in comparisons:
        prompt = list(lm.encode_prompt(c.prompt))
        for dialogue in (c.chosen_dialogue, c.rejected_dialogue):
            whole = encode(dialogue, lm.tokenizer, lm.format)
            sequences.append(whole if len(whole) > len(prompt) else [*whole, *lm.engine.eos_ids][: len(prompt) + 1])
            starts.append(len(prompt))
    means = np.array([x.mean() for x in lm.engine.score(sequences, starts)], dtype=float).reshape(-1, 2)
    right = (np.sign(means[:, 0] - means[:, 1]) + 1) / 2
    return stats.mean_interval(right, [to_hh(c.prompt) for c in comparisons], unit="share")


def per_group(scores: np.ndarray, groups: Sequence[str]) -> Mapping[str, float]:
    """Mean score by the file (or kind) a prompt came from; empty unless there are several."""
    names = sorted(set(groups))
    if len(names) < 2:
        return {}
    return {f"score/{name}": float(scores[[g == name for g in groups]].mean()) for name in names}


def describe(replies: Sequence[Reply], batch: Batch, rewards: Tensor, sources: Sequence[str]) -> dict[str, float]:
    """What is logged of a batch: per reply means; KL and its estimates are sums over a reply's tokens, in nats."""
    scores = batch.scores.double().cpu().numpy()
    estimates = kl_estimates(batch.lp_old, batch.lp_ref, batch.mask)
    kl = float(batch.kl.sum(1).mean())
    lengths = batch.mask.sum(1).float()
    repeats = [d for d in (distinct_bigrams(r.ids) for r in replies) if d is not None]
    sampled = torch.cat([torch.tensor(r.sampler_logprobs) for r in replies]).to(batch.lp_old)
    gap = (sampled - batch.lp_old[batch.mask]).abs()
    explained = explained_variance(batch.values, batch.returns, batch.mask)
    optional = {"value_explained_variance": explained, "distinct_bigrams": np.mean(repeats) if repeats else None}
    return {
        "score": float(scores.mean()),
        "score_sd": float(scores.std()),
        "reward": float(rewards.sum(1).mean()),
        "kl": kl,
        "sqrt_kl": max(kl, 0.0) ** 0.5,
        **{f"kl_{name}": float(x.mean()) for name, x in estimates._asdict().items()},
        "entropy": float(batch.entropy.sum() / lengths.sum()),
        "reply_tokens": float(lengths.mean()),
        "eos_rate": float(np.mean([r.finish == "stop" for r in replies])),
        **{f"share_{kind}": float(np.mean([r.kind == kind for r in replies])) for kind in ("capped", "empty")},
        **by_kind(scores, np.array([r.kind for r in replies])),
        **per_group(scores, sources),
        "value": float(batch.values[batch.mask].mean()),
        "sampler_gap": float(gap.mean()),
        "sampler_gap_max": float(gap.max()),
        **{name: float(value) for name, value in optional.items() if value is not None},
    }
