"""``truing code``: pass@k of Python functions that a model writes, each run in a sandbox (2204.05862 §5.3, App B.8)."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Code
from truing.data import sandbox
from truing.data.code_tasks import CodeTask, Context, code_prompt, load_tasks, program, stops, task_to_row
from truing.data.easy_functions import easy_tasks
from truing.data.files import write_rows
from truing.data.sandbox import Limits, run_many
from truing.measure.code_numbers import Setting, Tally, family_rows, grid_of, grid_rows, numbers_of
from truing.measure.labels import in_chunks
from truing.measure.serving import equal_replies, open_in_run, server_notes
from truing.models.compute import choose
from truing.models.lm import LM, show_prompt
from truing.models.load import find_model, is_remote
from truing.models.remote import AnyLM, savings
from truing.runs import Run
from truing.stats import Interval
from truing.train.cost import Cost, sampling, timed
from truing.types import Sample

KEPT = "completions-{}.jsonl"
"""Every completion of one model and how its program ended."""
CHUNK = 256
"""About so many completions between two savings."""
BEFORE, AFTER = "before", "after"
SAMPLES = 50
Job = tuple[int, int]
"""Places of a setting and of a problem."""


@dataclass(frozen=True)
class Plan:
    """What is asked: problems, settings, samples of each; ``fixed`` is the setting that is the same for all models."""

    tasks: tuple[CodeTask, ...]
    settings: tuple[Setting, ...]
    samples: int
    fixed: Setting
    context: Context = "none"
    max_new_tokens: int = 256
    cpu_seconds: float = 3.0
    seed: int = 0

    @property
    def jobs(self) -> list[Job]:
        """Setting by setting, all problems."""
        return [(s, t) for s in range(len(self.settings)) for t in range(len(self.tasks))]

    def drawn(self, setting: int) -> int:
        """Samples at a setting: at temperature 0 they are all alike, and one is drawn."""
        return self.samples if self.settings[setting][0] else 1

    @property
    def limits(self) -> Limits:
        """What one program may use."""
        return Limits(cpu_seconds=self.cpu_seconds, wall_seconds=5 * self.cpu_seconds)

    def prompts(self) -> list[str]:
        """What the model goes on from, problem by problem."""
        return [code_prompt(task, self.context) for task in self.tasks]


def plan_of(config: Code) -> Plan:
    """The plan of a command. Raises ValueError for options that mean nothing, DataError for problems that are none."""
    if config.samples < 1 or config.max_new_tokens < 1 or not config.cpu_seconds > 0:
        given = f"samples {config.samples}, max_new_tokens {config.max_new_tokens}, cpu_seconds {config.cpu_seconds}"
        raise ValueError(f"{given}; expected 1 or more of each, and more than 0 seconds.")
    if not config.ks or min(config.ks) < 1:
        raise ValueError(f"--ks are {config.ks}; expected one or more numbers of samples, each 1 or more.")
    if min(config.ks) > config.samples:
        raise ValueError(f"pass@{min(config.ks)} needs as many samples; --samples is {config.samples}.")
    settings = grid_of(config.temperatures, config.top_ps)
    fixed = _fixed(config.fixed, settings)
    tasks = load_tasks(config.problems) if config.problems else easy_tasks()
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"--limit is {config.limit}; expected 1 problem or more.")
    some = tuple(tasks[i * len(tasks) // n] for n in [min(config.limit or len(tasks), len(tasks))] for i in range(n))
    return Plan(
        some,
        tuple(settings),
        config.samples,
        fixed,
        config.context,
        config.max_new_tokens,
        config.cpu_seconds,
        config.seed,
    )


def _fixed(given: Setting | None, settings: Sequence[Setting]) -> Setting:
    """The setting given, else the one nearest to 0.8 and 0.95, which is customary."""
    if given is None:
        return min(settings, key=lambda s: (abs(s[0] - 0.8), abs(s[1] - 0.95)))
    wanted = (given[0], given[1] if given[0] else 1.0)
    if wanted not in settings:
        raise ValueError(f"--fixed {given[0]} {given[1]} is not in the grid of --temperatures and --top-ps.")
    return wanted


def answer(lm: AnyLM, plan: Plan) -> Callable[[Sequence[Job], int], list[dict[str, Any]]]:
    """A function that draws and runs the completions of some jobs: rows with the texts and how their programs ended.

    A completion follows from its prompt, the seed, the setting and the problem, not from what is drawn beside it.
    """
    prompts, known = plan.prompts(), dict[str, str]()

    def work(jobs: Sequence[Job], _: int) -> list[dict[str, Any]]:
        drawn = [found for s, group in itertools.groupby(jobs, lambda j: j[0]) for found in draw(s, [*group])]
        texts = [[sample.text for sample in some] for some in drawn]
        whole = [[program(plan.tasks[t], text) for text in some] for (_, t), some in zip(jobs, texts, strict=True)]
        new = list(dict.fromkeys(p for some in whole for p in some if p not in known))
        known.update(zip(new, (o.status for o in run_many(new, plan.limits)), strict=True))
        return [
            {
                "id": plan.tasks[t].task_id,
                "temperature": plan.settings[s][0],
                "top_p": plan.settings[s][1],
                "samples": texts[i],
                "finish": [sample.finish for sample in drawn[i]],
                "status": [known[p] for p in whole[i]],
            }
            for i, (s, t) in enumerate(jobs)
        ]

    def draw(s: int, jobs: Sequence[Job]) -> list[list[Sample]]:
        return _drawn(lm, plan, prompts, s, [t for _, t in jobs], plan.drawn(s), plan.max_new_tokens)

    return work


def _drawn(
    lm: AnyLM, plan: Plan, prompts: Sequence[str], s: int, places: Sequence[int], n: int, most: int
) -> list[list[Sample]]:
    seeds = [np.random.default_rng([plan.seed, 5, s, t]).integers(2**31, size=n).tolist() for t in places]
    temperature, top_p = plan.settings[s]
    return lm.sample(
        [prompts[t] for t in places],
        n,
        max_tokens=most,
        temperature=temperature,
        top_p=top_p,
        stop=stops(plan.context),
        seed=seeds,
    )


def tally(plan: Plan, rows: Sequence[dict[str, Any]]) -> Tally:
    """How many completions were right, from the rows of all jobs in order."""
    right = np.array([sum(status == "ok" for status in row["status"]) for row in rows])
    shape = (len(plan.settings), len(plan.tasks))
    return Tally(plan.settings, tuple(map(plan.drawn, range(len(plan.settings)))), right.reshape(shape))


def measure_code(lm: AnyLM, plan: Plan) -> Tally:
    """All completions of a model drawn and run, without a run folder. Raises NoSandbox where there is none."""
    check_room(lm, plan)
    return tally(plan, answer(lm, plan)(plan.jobs, 0))


def check_room(lm: AnyLM, plan: Plan) -> None:
    """Raises ValueError if the model's window has no room for the longest prompt and a token of an answer."""
    window = getattr(lm.engine.config, "max_position_embeddings", None) if isinstance(lm, LM) else None
    if window is None:
        return
    longest = max(len(lm.encode_prompt(prompt)) for prompt in plan.prompts())  # type: ignore[union-attr]
    if longest + 1 > window:
        shorter = "" if plan.context == "none" else " Take --context hhh-short or none."
        raise ValueError(f"The longest prompt has {longest} tokens and {lm.name} reads {window}.{shorter}")


def code(config: Code) -> Run | dict[str, Any]:
    """The verb ``code``: pass@k at the best and at a fixed setting, with ``before`` also differences; tables, rows.

    The same call again goes on where it was stopped. With ``dry_run`` returns what it would take. Raises NoSandbox
    where programs cannot be run safely, ValueError for options that mean nothing, DataError for a file's rows.
    """
    plan = plan_of(config)
    names = {**({BEFORE: config.before} if config.before else {}), AFTER: config.model}
    for name in names.values():
        if not is_remote(name):
            find_model(name)  # a mistyped name must not be found out after the other model's hours
    if config.dry_run:
        return {"lines": _expected(config, plan, list(names.values()))}
    if problem := sandbox.why_not():
        raise sandbox.NoSandbox(f"Programs that a model writes run only in a sandbox, and there is none: {problem}")
    digest = hashlib.sha256(json.dumps([task_to_row(task) for task in plan.tasks]).encode()).hexdigest()
    stem = Path(config.problems).name.split(".")[0] if config.problems else "easy"
    run = Run.open("code", config, data_hashes={"problems": digest}, slug=f"{Path(config.model).name}-{stem}")
    if run.done:
        return run
    compute, rows = run.compute(config), dict[str, list[dict[str, Any]]]()
    for arm, name in names.items():
        lm = open_in_run(run, dataclasses.replace(config, model=name), compute)
        check_room(lm, plan)
        show_prompt(lm, plan.prompts()[0])
        rows[arm] = in_chunks(
            run,
            KEPT.format(arm),
            plan.jobs,
            answer(lm, plan),
            label=f"Problems tried by {Path(name).name}",
            max_time=config.max_time,
            **savings(name, max(1, CHUNK // plan.samples)),
        )
        del lm
        if len(rows[arm]) < len(plan.jobs):
            left = f"Stopped after {len(rows[arm])} of {len(plan.jobs)} problems at all settings, of {name}"
            run.stop({}, [f"{left}; the same command goes on.", *server_notes(run)])
            return run
    _finish(run, config, plan, names, rows)
    return run


def _finish(run: Run, config: Code, plan: Plan, names: dict[str, str], rows: dict[str, list[dict[str, Any]]]) -> None:
    tallies = {arm: tally(plan, found) for arm, found in rows.items()}
    ks = [k for k in dict.fromkeys(config.ks) if k <= plan.samples]
    clusters, seed = [task.cluster for task in plan.tasks], config.seed
    numbers = numbers_of(tallies[AFTER], tallies.get(BEFORE), ks, plan.fixed, clusters, seed)
    numbers |= _shares(plan, tallies, rows, clusters, seed)
    families = [task.family for task in plan.tasks]
    write_rows(run.path / "grid.csv", grid_rows(tallies, ks))
    if all(families):
        table = family_rows(tallies, families, plan.fixed)
        write_rows(run.path / "families.csv", table)
        numbers["families_solved"] = stats.share(sum(r[f"solved_{AFTER}"] > 0 for r in table), len(table))
    place = plan.settings.index(plan.fixed)
    columns = {f"pass@{k}/fixed": tallies[AFTER].at(k)[place].tolist() for k in ks}
    tasks = enumerate(plan.tasks)
    kept = [{"id": t.task_id, "cluster": t.cluster} | {c: v[i] for c, v in columns.items()} for i, t in tasks]
    write_rows(run.path / "rows.jsonl", kept)
    run.write_samples(_shown(plan, rows))
    replies = (row["samples"] for found in rows.values() for row in found if row["temperature"])
    notes = [*_notes(config, plan, tallies, ks, names), *equal_replies(run, replies), *server_notes(run)]
    run.finish(numbers, notes)


def _shares(
    plan: Plan, tallies: dict[str, Tally], rows: dict[str, list[dict[str, Any]]], clusters: list[str], seed: int
) -> dict[str, Interval]:
    """How the programs of the last model ended, over all settings."""
    flat = [(row["id"], s, f) for row in rows[AFTER] for s, f in zip(row["status"], row["finish"], strict=True)]
    of = dict(zip((t.task_id for t in plan.tasks), clusters, strict=True))
    keys = [of[name] for name, _, _ in flat]
    any_right = (tallies[AFTER].right > 0).any(0)
    timed_out, ended = [s == "timeout" for _, s, _ in flat], [f == "stop" for _, _, f in flat]
    return {
        "solved": stats.mean_interval(any_right, clusters, unit="share", seed=seed),
        "timeouts": stats.mean_interval(timed_out, keys, unit="share", seed=seed),
        "finished": stats.mean_interval(ended, keys, unit="share", seed=seed),
    }


def _notes(
    config: Code, plan: Plan, tallies: dict[str, Tally], ks: Sequence[int], names: dict[str, str]
) -> Iterator[str]:
    if BEFORE in names:
        yield f"before is {names[BEFORE]}; the others are {names[AFTER]}; difference is the second − the first."
    for arm, one in tallies.items():
        said = ", ".join(f"pass@{k} {_said(one.best(k))}" for k in ks)
        yield f"Best of {len(plan.settings)} settings{f' ({arm})' if len(tallies) > 1 else ''}: {said}."
    yield f"The best are chosen on the same problems, which makes them a little high; fixed is {_said(plan.fixed)}."
    if left := [k for k in config.ks if k > plan.samples]:
        yield f"Left out: {', '.join(f'pass@{k}' for k in left)}, which need as many samples; drawn: {plan.samples}."
    solved = [t for t in plan.tasks if t.canonical_solution]
    ends = run_many([program(t, t.solution) for t in solved], plan.limits)
    if wrong := [t.task_id for t, end in zip(solved, ends, strict=True) if not end.ok]:
        some = ", ".join(wrong[:10]) + (", …" if len(wrong) > 10 else "")
        yield f"{len(wrong)} problems fail their own solution here (they count all the same): {some}."


def _said(setting: Setting) -> str:
    return f"temperature {setting[0]:g}, top-p {setting[1]:g}" if setting[0] else "temperature 0"


def _shown(plan: Plan, rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first completion of problems spread over all, at the fixed setting."""
    first = plan.settings.index(plan.fixed) * len(plan.tasks)
    places = np.linspace(0, len(plan.tasks) - 1, min(len(plan.tasks), SAMPLES)).astype(int).tolist()
    words = {BEFORE: "before", AFTER: "after"} if BEFORE in rows else {AFTER: "reply"}
    return [
        {"id": plan.tasks[i].task_id, "prompt": plan.tasks[i].prompt}
        | {word: rows[arm][first + i]["samples"][0] for arm, word in words.items()}
        | {f"status_{arm}": rows[arm][first + i]["status"][0] for arm in words}
        for i in places
    ]


def _expected(config: Code, plan: Plan, names: Sequence[str]) -> list[str]:
    """What it would take: completions counted, time and memory measured on a part."""
    each = sum(map(plan.drawn, range(len(plan.settings))))
    count = each * len(plan.tasks) * len(names)
    lines = [
        f"{len(plan.tasks):,} problems, {len(plan.settings)} settings, {count:,} completions, at most "
        f"{count * plan.max_new_tokens:,} tokens."
    ]
    cost = Cost()
    if problem := sandbox.why_not():
        lines.append(f"It would be refused here: {problem}")
    else:
        tries = [program(task, task.solution) for task in plan.tasks[:8]]
        cost += timed(lambda: run_many(tries, plan.limits))[1] * (count / len(tries))
    if any(map(is_remote, names)):
        return [*lines, "The time is the server's."]
    compute, prompts = choose(config.device, config.dtype, config.threads), plan.prompts()
    s = plan.settings.index(plan.fixed)
    for name in names:
        lm, loading = timed(lambda name=name: LM.load(name, device=compute.device, dtype=compute.dtype))  # type: ignore[misc]
        check_room(lm, plan)

        def draw(places: Sequence[int], n: int, most: int, lm: LM = lm) -> list[list[Sample]]:
            return _drawn(lm, plan, prompts, s, places, n, most)

        sizes = [len(lm.encode_prompt(prompt)) for prompt in prompts]
        one = sampling(lm.engine, draw, sizes, plan.drawn(s), plan.max_new_tokens, max(1, CHUNK // plan.samples))
        cost += loading + one * (each / plan.drawn(s))
    return [*lines, *cost.lines(compute)]
