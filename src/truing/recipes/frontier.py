"""Reward against √KL (2204.05862 §4.3): the verb ``rlhf frontier``.

Takes runs of ``rlhf train`` with the replies of their evaluations. Their starts answer the same prompts again, many
times; from those replies come the bound, best of n, and what a claimed gain must be compared with.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Frontier
from truing.measure.frontier import (
    SMALL_KL,
    Course,
    best_of,
    bound,
    by_prompt,
    check_baselines,
    course,
    expected_best,
    kl_best_of,
    sigma_within,
    within_variance,
)
from truing.measure.labels import in_chunks
from truing.measure.matched import matched_gain
from truing.models.compute import choose
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run
from truing.runs.atomic import as_json, read_rows
from truing.stats import Interval
from truing.train.cost import sampling, timed
from truing.train.ppo_batch import draw
from truing.train.ppo_eval import EVALUATIONS
from truing.train.ppo_reward import ask, load_reward
from truing.types import Dialogue

Judge = Callable[[list[Dialogue]], Any]
CHUNK = 512
"""Replies of a start between two savings."""


@dataclass(frozen=True)
class Policy:
    """A run of ``rlhf train``: its options, and every reply of its evaluations."""

    name: str
    config: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def prompts(self) -> dict[str, Dialogue]:
        """Prompts of the evaluations by id, in order."""
        return {row["id"]: Dialogue.from_messages(row["dialogue"]).prompt for row in self.rows}

    @property
    def last(self) -> list[dict[str, Any]]:
        """Replies of the last evaluation."""
        return [row for row in self.rows if row["step"] == self.rows[-1]["step"]]

    @property
    def start(self) -> tuple[Any, ...]:
        """What decides the replies of the start and their scores."""
        reply = (self.config["max_new_tokens"], tuple(self.config["stop_after"]))
        return (self.config["policy"], judge_name(self.config), *reply, *self.prompts)


def judge_name(config: Mapping[str, Any]) -> str:
    """The preference model or the reward function that a policy was trained against."""
    return str(config.get("reward") or config["pm"])


def frontier(config: Frontier) -> Run | dict[str, Any]:
    """The verb: numbers, figures and a page. The same call again resumes the run or returns it.

    Raises ValueError for runs that hold no evaluations, or more --best-of than --samples.
    """
    policies = read_policies(config.runs)
    n = config.samples or max([2, *config.best_of])
    if n < 2 or not config.best_of or min(config.best_of) < 1 or n < max(config.best_of):
        raise ValueError(
            f"--samples is {n} and --best-of {config.best_of}; expected 2 samples or more, and as many as the largest "
            "--best-of, which counts from 1."
        )
    starts = list({p.start: p for p in policies}.values())
    if config.dry_run:
        return {"lines": _expected(config, starts, n)}
    run = Run.open("rlhf frontier", config, data_hashes=_known(policies), slug=policies[0].name)
    if run.done:
        return run
    compute = run.compute(config)
    drawn = {}
    for i, policy in enumerate(starts):
        items = list(policy.prompts.values())
        work = _drawing(policy, n, config.seed, compute)
        label, size = f"Replies of the start ({Path(str(policy.config['policy'])).name})", max(1, CHUNK // n)
        kept = f"start-{i}.jsonl"
        rows = in_chunks(run, kept, items, work, label=label, max_time=config.max_time, size=size)
        if len(rows) < len(items):
            run.stop({}, [f"Stopped after {len(rows)} of {len(items)} prompts; the same command goes on."])
            return run
        drawn[policy.start] = rows
    found = [study(p, drawn[p.start], config.best_of, config.seed) for p in policies]
    numbers = {f"{name}/{f.policy.name}": x for f in found for name, x in f.numbers.items()}
    tell(run, found)
    run.finish(numbers, notes_of(found))
    return run


def read_policies(names: Sequence[str]) -> list[Policy]:
    """Runs of ``rlhf train``, by name. Raises ValueError for another kind of run, or one without evaluations."""
    out: list[Policy] = []
    for name in names:
        run = Run.load(name)
        rows = read_rows(run.path / EVALUATIONS)
        if run.verb != "rlhf train" or len({row["step"] for row in rows}) < 2:
            raise ValueError(
                f"{name} is a run of '{run.verb}' with {len({row['step'] for row in rows})} evaluations; expected one "
                "of 'rlhf train' with two or more (--eval-every)."
            )
        taken = any(run.name == p.name for p in out)
        out.append(Policy(f"{run.path.resolve().parent.name}-{run.name}" if taken else run.name, run.config, rows))
    if not out:
        raise ValueError("No runs were given; expected one or more runs of 'rlhf train'.")
    return out


def _known(policies: Sequence[Policy]) -> dict[str, str]:
    """What stands for the policies in the run's identity: a run may go on, and a reward function may be rewritten."""
    known = {f"rows {p.name}": hashlib.sha256(as_json(p.rows).encode()).hexdigest() for p in policies}
    rewards = {str(p.config["reward"]) for p in policies if p.config.get("reward")}
    return known | {f"reward {name}": load_reward(name)[1] for name in rewards}


def load_judge(config: Mapping[str, Any], compute: Any) -> Judge:
    """The preference model (centred) or the reward function that a policy was trained against."""
    if config.get("reward"):
        return functools.partial(ask, load_reward(str(config["reward"]))[0])
    return PreferenceModel.load(config["pm"], device=compute.device, dtype=compute.dtype).score


def _drawing(policy: Policy, n: int, seed: int, compute: Any) -> Callable[[Sequence[Dialogue], int], Any]:
    """A function that answers some of the prompts n times and scores the replies; models are loaded when needed."""
    loaded: list[Any] = []
    prompts = list(policy.prompts.values())

    def work(some: Sequence[Dialogue], place: int) -> list[dict[str, Any]]:
        if not loaded:
            lm = LM.load(policy.config["policy"], device=compute.device, dtype=compute.dtype)
            loaded.extend([lm, load_judge(policy.config, compute), lm.seeds(prompts, n, seed)])
        lm, judge, seeds = loaded
        how = {"max_tokens": policy.config["max_new_tokens"], "stop_after": policy.config["stop_after"]}
        replies = draw(lm, some, n=n, seed=seeds[place : place + len(some)], **how)
        scores = np.asarray(judge([r.dialogue for r in replies]), dtype=float).reshape(-1, n).tolist()
        tokens = np.array([len(r.ids) for r in replies]).reshape(-1, n).tolist()
        texts = [r.dialogue.last.text for r in replies]
        return [
            {"scores": s, "tokens": t, "distinct": len(set(texts[i * n : (i + 1) * n]))}
            for i, (s, t) in enumerate(zip(scores, tokens, strict=True))
        ]

    return work


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Study:
    """What one policy's way says: numbers by name, its course, best of n as points, and the table of baselines."""

    policy: Policy
    numbers: dict[str, Any]
    course: Course
    best: list[dict[str, Any]]
    baselines: dict[str, Any]
    distinct: float


def study(policy: Policy, start: Sequence[Mapping[str, Any]], wanted: Sequence[int], seed: int = 0) -> Study:
    """Numbers of one policy; ``start`` holds ``scores``, ``tokens`` and ``distinct`` of each prompt, in order."""
    scores = [row["scores"] for row in start]
    score, kl = by_prompt(policy.rows, "score"), by_prompt(policy.rows, "kl")
    samples = sorted({row["samples"] for row in policy.rows})
    way = course(samples[1:], score[1:] - score[0], kl[1:], within_variance(scores), seed=seed)
    gains = {n: best_of(scores, n, seed=seed) for n in wanted}
    best: list[dict[str, Any]] = [
        {"n": n, "kl": kl_best_of(n), "score": gain.value, "low": gain.low, "high": gain.high, "gain": gain}
        for n, gain in gains.items()
    ]
    sigma = sigma_within(scores, seed=seed)
    nearest = min([n for n in wanted if n > 1] or wanted, key=lambda n: abs(kl_best_of(n) - way.points[-1]["kl"]))
    baselines = {"best_of": nearest, **compared(policy, score, start, nearest, seed)}
    last = way.points[-1]
    numbers: dict[str, Any] = {
        "sigma_w": sigma,
        "kl": stats.mean_interval(kl[-1], unit="nats per reply", seed=seed),
        "slope": way.slope,
        "r2": {"value": way.r2, "n": len(way.early), "unit": "share"},
        "slope_of_bound": _per(way.slope, bound(sigma.value or 0.0, 1.0)),
        "share_of_bound": way.ratio,
        "above_bound": {"value": len(way.above), "n": len(way.points), "unit": "evaluations"},
        "gain": Interval(last["score"], last["low"], last["high"], score.shape[1], "PM units"),
        "over_best_of": baselines["over_best_of"],
        "length_matched": baselines["length_matched"],
        **{f"best_of/{b['n']}": b["gain"] for b in best},
    }
    distinct = float(np.mean([row["distinct"] / len(row["scores"]) for row in start]))
    return Study(policy, numbers, way, best, baselines, distinct)


def compared(policy: Policy, score: Any, start: Sequence[Mapping[str, Any]], n: int, seed: int) -> dict[str, Interval]:
    """The last evaluation against its start, best of n of the start, and replies of the start of like length."""
    last, ids = policy.last, list(policy.prompts)
    best = [expected_best(row["scores"], n) for row in start]
    pairs = [zip(row["scores"], row["tokens"], strict=True) for row in start]
    flat = [(s, t, id) for id, pair in zip(ids, pairs, strict=True) for s, t in pair]
    after = [(row["score"], row["tokens"], row["id"]) for row in last]
    return {
        "over_start": stats.difference_interval(score[-1], score[0], unit="PM units", seed=seed),
        "over_best_of": stats.difference_interval(score[-1], best, unit="PM units", seed=seed),
        "length_matched": matched_gain(*zip(*after, strict=True), *zip(*flat, strict=True), unit="PM units", seed=seed),
    }


def _per(x: Interval, by: float) -> Interval:
    if x.value is None or by <= 0:
        return Interval(None, None, None, x.n, "share", x.note or "σ_w is 0")
    low, high = (None if end is None else end / by for end in (x.low, x.high))
    return Interval(x.value / by, low, high, x.n, "share", x.note)


def notes_of(found: Sequence[Study]) -> list[str]:
    """Alarms, and what a reader must know."""
    notes = []
    for f in found:
        if f.course.above:
            at = ", ".join(f"{p['kl']:.2g}" for p in f.course.above)
            notes.append(
                f"ALARM: {f.policy.name} gains more than the bound allows at a KL of {at} nats (95% interval): its KL, "
                "its scores or its start are measured wrongly."
            )
        if f.distinct < 0.9:
            notes.append(
                f"{1 - f.distinct:.0%} of the start's replies ({f.policy.name}) repeat another to the same prompt: the "
                "KL of best of n is at most the one shown."
            )
    return notes


# ---------------------------------------------------------------- the page


def tell(run: Run, found: Sequence[Study]) -> None:
    """Draw the figures and write the page's story. Raises ValueError if a gain lacks one of its baselines."""
    check_baselines({f.policy.name: f.baselines for f in found})
    series: dict[str, list[dict[str, Any]]] = {f.policy.name: f.course.points for f in found}
    starts = {f.policy.start: f for f in reversed(found)}
    alone = len(starts) == 1
    for f in starts.values():
        series["best of n" if alone else f"best of n ({f.policy.name})"] = f.best
    bounds = {
        "bound" if alone else f"bound ({f.policy.name})": float(bound(f.numbers["sigma_w"].value, 1.0))
        for f in starts.values()
    }
    figure = figures.reward_vs_sqrt_kl(series, ylabel="gain over the start, PM units", line=False, bounds=bounds)
    figures.save(figure, run.figures, "frontier")
    slopes = {
        f.policy.name: {"line": f.numbers["slope"], "bound": float(bound(f.numbers["sigma_w"].value, 1.0))}
        for f in found
    }
    figures.save(figures.bars_with_intervals(slopes, ylabel="slope, PM units per √nat"), run.figures, "slopes")
    write_story(run.path, {"title": "Reward against √KL", "sections": [*_sections(found)]})


def _sections(found: Sequence[Study]) -> list[dict[str, Any]]:
    def cell(x: Any) -> Any:
        return x.as_dict() if isinstance(x, Interval) else x

    names = {"over_start": "over its start", "over_best_of": "over best of n", "length_matched": "at like length"}
    gains = [[f.policy.name, f.baselines["best_of"], *(cell(f.baselines[c]) for c in names)] for f in found]
    rows = [[b["n"], round(b["kl"], 3), cell(b["gain"])] for b in found[0].best]
    kept = ("slope", "slope_of_bound", "share_of_bound", "kl")
    lines = [[f.policy.name, *(cell(f.numbers[k]) for k in kept)] for f in found]
    columns = ["policy", "slope", "share of the bound's", "last gain / bound", "KL"]
    return [
        {
            "title": "1. What a KL buys",
            "text": "Each point is an evaluation of a policy in training: how much its score has risen since the "
            "start, against the square root of its KL from the start. The dashed line is the most that any policy "
            "near the start can gain, σ_w·√(2·KL), where σ_w is the spread of the start's own scores within a prompt. "
            "Best of n chooses among n replies of the start and trains nothing; n grows from left to right.",
            "figures": [{"file": "frontier.svg", "caption": "Gain against √KL, with 95% intervals by prompt."}],
            "notes": [
                f"Up to {SMALL_KL} nats a point surely above the line is an error of measurement, and an alarm. Far "
                "from the start a score with a long upper tail may pass the line honestly."
            ],
        },
        {
            "title": "2. How straight, and how steep",
            "text": "The line goes through the origin and is fitted to the early half: points up to half of the "
            "largest √KL. A slope below the bound's says that training also moves what earns nothing.",
            "figures": [{"file": "slopes.svg", "caption": "Slopes on the early half, beside the bound's."}],
            "tables": [{"caption": "Lines", "columns": columns, "rows": lines}],
        },
        {
            "title": "3. Compared with what?",
            "text": "A gain counts only beside its baselines: the start, the best of n replies of the start at about "
            "the same KL, and replies of the start of like length.",
            "tables": [
                {"caption": "Gains, PM units", "columns": ["policy", "n", *names.values()], "rows": gains},
                {"caption": f"Best of n ({found[0].policy.name})", "columns": ["n", "KL, nats", "gain"], "rows": rows},
            ],
        },
    ]  # fmt: skip


def _expected(config: Frontier, starts: Sequence[Policy], n: int) -> list[str]:
    """What it would take: replies counted, drawing and judging measured on a part."""
    compute = choose(config.device, config.dtype, config.threads)
    count = sum(len(p.prompts) for p in starts)
    policy, prompts = starts[0], list(starts[0].prompts.values())
    lm, cost = timed(lambda: LM.load(policy.config["policy"], device=compute.device, dtype=compute.dtype))
    judge, loading = timed(lambda: load_judge(policy.config, compute))
    most, stop = policy.config["max_new_tokens"], policy.config["stop_after"]
    drawn: list[Dialogue] = []

    def some(places: Sequence[int], each: int, longest: int) -> Any:
        found = lm.sample([prompts[i] for i in places], each, max_tokens=longest, stop_after=stop, seed=config.seed)
        drawn[:] = [prompts[i].reply(s.text) for i, samples in zip(places, found, strict=True) for s in samples]
        return found

    sizes = [len(lm.encode_prompt(p)) for p in prompts]
    drawing = sampling(lm.engine, some, sizes, n, most, max(1, CHUNK // n))
    _, judging = timed(lambda: judge(drawn), judge if hasattr(judge, "tokens_run") else None)
    whole = (drawing + judging * (len(prompts) * n / len(drawn))) * (count / len(prompts))
    lines = (cost + loading + whole).lines(compute)
    return [f"{len(starts)} starts, {count:,} prompts, {count * n:,} replies of at most {most} tokens.", *lines]
