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
from truing.data.prompts import PromptRow
from truing.runs import Run
from truing.runs.atomic import as_lines, atomic_write, read_rows
from truing.stats import Interval
from truing.text import to_hh
from truing.train.ppo_batch import Batch, Reply
from truing.train.ppo_math import distinct_bigrams, explained_variance, kl_estimates

KINDS = ("finished", "capped", "empty")


@dataclass
class Evaluation:
    """What one policy answered to the evaluation prompts, in a fixed order, and what the judges say of it.

    ``scores`` [N] are the training judge's; ``tests`` those of judges that never train; ``kl`` [N] is the exact
    KL(π‖π0) per reply and ``entropy`` [N] the sum over its tokens, both in nats. ``asked`` [N] are the kinds of the
    prompts, ``watched`` what `ppo_watch` saw.
    """

    replies: list[Reply]
    scores: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    tests: dict[str, np.ndarray] = field(default_factory=dict)
    asked: Sequence[str] = ()
    watched: dict[str, np.ndarray] = field(default_factory=dict)

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
        out["distinct_bigrams"] = mean_distinct(self.replies)
        out |= {f"score_{kind}": self.scores[rows].mean() for kind, rows in self.by_prompt_kind().items()}
        out |= by_kind(self.scores, self.kinds) | {f"score/{name}": x.mean() for name, x in self.tests.items()}
        return {f"eval_{name}": float(value) for name, value in out.items() if value is not None}

    def by_prompt_kind(self) -> dict[str, np.ndarray]:
        """Which replies [N] answer prompts of each kind; empty unless there are several kinds."""
        return rows_of(self.asked)


def rows_of(groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Name → which rows [N] are of that group, for each of several groups; empty if there is one."""
    names = sorted(set(groups))
    return {name: np.array([g == name for g in groups]) for name in names} if len(names) > 1 else {}


def mean_distinct(replies: Sequence[Reply]) -> float | None:
    """Mean share of distinct bigrams over the replies of two tokens or more; None if there is none."""
    found = [d for d in (distinct_bigrams(r.ids) for r in replies) if d is not None]
    return float(np.mean(found)) if found else None


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

    def distinct(rows: Evaluation) -> Interval:
        pairs = [(r.prompt, d) for r in rows.replies if (d := distinct_bigrams(r.ids)) is not None]
        return stats.mean_interval([d for _, d in pairs], [p for p, _ in pairs], unit="share", seed=seed)

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
        "distinct_bigrams": distinct(after),
        "distinct_bigrams/before": distinct(before),
    }
    for kind, rows in after.by_prompt_kind().items():
        of_kind = np.array(after.prompts)[rows]
        out[f"pm_score_gain/{kind}"] = gain(after.scores, before.scores, rows)
        for name, found in (("", after), ("/before", before)):
            score = stats.mean_interval(found.scores[rows], of_kind.tolist(), unit="PM units", seed=seed)
            out[f"pm_score/{kind}{name}"] = score
    return out | {f"pm_score_gain/{name}": gain(x, before.tests[name]) for name, x in after.tests.items()}


def per_token(sums: np.ndarray, lengths: np.ndarray, clusters: Sequence[int], seed: int = 0) -> Interval:
    """Mean per token of what is summed per reply, with its interval by cluster."""
    return stats.bootstrap(
        lambda s, n: float(s.sum() / n.sum()), [sums, lengths], clusters, unit="nats per token", seed=seed
    )


def alarm_text(gap: Gap) -> str:
    """What to say of a gap that is too large to be chance."""
    return (
        f"ALARM: the training judge gained {gap.value:.3g} more than {gap.name} (standard error {gap.se:.2g}): the "
        "policy may be learning the judge's mistakes. Trust the other judge, or stop earlier."
    )


def alarms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each test judge whose alarm rang at an evaluation, a note of the first one, from the logged rows."""
    first: dict[str, int] = {}
    for row in rows:
        for name in [key.removeprefix("eval_alarm/") for key, value in row.items() if "eval_alarm/" in key and value]:
            first.setdefault(name, int(row["step"]))
    return [f"The gap to {name} was first more than chance after step {step}." for name, step in first.items()]


def warnings(before: Evaluation, after: Evaluation) -> list[str]:
    """Notes for a reader who is about to be pleased."""
    notes = [alarm_text(gap) for gap in gaps(before, after) if gap.alarm]
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
        row |= {"kind": after.asked[i]} if after.asked else {}
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
    (centred), ``kl`` (nats), ``tokens``, ``ended``, the prompt's ``kind`` and ``score/NAME`` by each test judge.
    """
    found = []
    for i, reply in enumerate(rows.replies):
        row: dict[str, Any] = {"step": step, "samples": samples, "id": ids[reply.prompt]}
        row |= {"dialogue": reply.dialogue.to_messages(), "score": float(rows.scores[i]), "kl": float(rows.kl[i])}
        row |= {"tokens": len(reply.ids), "ended": reply.kind}
        row |= {"kind": rows.asked[i]} if rows.asked else {}
        found.append(row | {f"score/{name}": float(scores[i]) for name, scores in rows.tests.items()})
    path = run.path / EVALUATIONS
    before = [row for row in read_rows(path) if row["step"] < step]
    atomic_write(path, as_lines([*before, *found]))


def per_group(scores: np.ndarray, groups: Sequence[str], mark: str = "/") -> Mapping[str, float]:
    """Mean score by the file (or kind) a prompt came from; empty unless there are several."""
    return {f"score{mark}{name}": float(scores[rows].mean()) for name, rows in rows_of(groups).items()}


def describe(replies: Sequence[Reply], batch: Batch, rewards: Tensor, asked: Sequence[PromptRow]) -> dict[str, float]:
    """What is logged of a batch: per reply means; KL and its estimates are sums over a reply's tokens, in nats.

    ``asked`` are the prompts of the replies, one each.
    """
    scores = batch.scores.double().cpu().numpy()
    estimates = kl_estimates(batch.lp_old, batch.lp_ref, batch.mask)
    kl = float(batch.kl.sum(1).mean())
    lengths = batch.mask.sum(1).float()
    sampled = torch.cat([torch.tensor(r.sampler_logprobs) for r in replies]).to(batch.lp_old)
    gap = (sampled - batch.lp_old[batch.mask]).abs()
    optional = {"distinct_bigrams": mean_distinct(replies)}
    if batch.returns.numel():  # there is a value function
        optional["value"] = float(batch.values[batch.mask].mean())
        optional["value_explained_variance"] = explained_variance(batch.values, batch.returns, batch.mask)
    kinds = [row.kind for row in asked]
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
        **per_group(scores, [row.source for row in asked]),
        **per_group(scores, kinds, "_"),
        **({"share_harmless": kinds.count("harmless") / len(kinds)} if len(set(kinds)) > 1 else {}),
        "sampler_gap": float(gap.mean()),
        "sampler_gap_max": float(gap.max()),
        **{name: float(value) for name, value in optional.items() if value is not None},
    }
