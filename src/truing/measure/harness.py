"""``truing eval``: tasks of lm-evaluation-harness on any model, and what changed between two (2204.05862 §4.6).

lm-eval makes the prompts and grades; the engine answers (`truing.measure.harness_lm`). Intervals are ours: they
resample questions, and differences of two models are taken question by question.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.configs import Eval
from truing.data.files import write_rows
from truing.measure.harness_lm import Keep, Rows, Work, harness_class, what_is_missing
from truing.measure.harness_numbers import measured, numbers_of, question_rows, shown_samples, task_table
from truing.measure.harness_paper import is_paper_task, paper_task
from truing.measure.harness_tax import gaps_closed, named, task_means, tax_table
from truing.measure.labels import expected_tokens, in_chunks
from truing.models.compute import choose
from truing.models.lm import LM
from truing.models.load import find_model, load_tokenizer
from truing.runs import Run
from truing.train.cost import Cost, reading, replying, timed

FEWSHOT_SEED = 1234
"""lm-eval's own seed of few-shot examples; --seed is added, so that 0 gives the prompts of published numbers."""
KEPT = "answers-{}-{}.jsonl"
"""Answers to the requests of one kind, by model and number of examples; gone when the run is done."""
CHUNK = {"generate_until": 128}
SCORED = 512
"""Requests between two savings: replies above, log-probabilities here."""


class OutOfTime(Exception):
    """``max_time`` is over; what was answered is kept."""


def evaluate(config: Eval) -> Run | dict[str, Any]:
    """The verb ``eval``: numbers ``METRIC/TASK``, with two models also ``/before`` and ``/difference``; rows.

    With several numbers of examples every name goes on with ``/K-shot``. The same call again resumes it. With
    ``dry_run`` returns what would be asked. Raises ValueError where lm-eval is missing, for tasks it does not know or
    cannot load, and for options that mean nothing.
    """
    names = models_of(config)
    shots = _shots(config)
    built, tasks = load_tasks(config.tasks, config.include_path, config.apply_chat_template)
    fixed = [name for name, task in tasks.items() if task.get_config("num_fewshot") == 0]
    _set_shots(tasks, fixed, max(shots, key=lambda k: k or 0))
    for task in tasks.values():
        if hasattr(task, "check"):
            task.check()
    if config.dry_run:
        return {"lines": _expected(config, names, built, tasks, fixed)}
    _check_models(names, config.apply_chat_template)
    run = Run.open(
        "eval",
        config,
        data_hashes={f"task {name}": content_hash(task, config.limit) for name, task in tasks.items()},
        slug=f"{Path(names[-1]).name}-{'-'.join(tasks)}",
    )
    if run.done:
        return run
    try:
        compute = run.compute(config)
        results = [
            _ask(config, compute, name, built, tasks, fixed, _keeper(run, i, config)) for i, name in enumerate(names)
        ]
    except OutOfTime as stopped:
        run.stop({}, [f"{stopped} The same command goes on."])
        return run
    _finish(run, config, names, built, tasks, results, _refused(fixed, shots))
    return run


def _finish(
    run: Run,
    config: Eval,
    names: Sequence[str],
    built: Sequence[Any],
    tasks: Mapping[str, Any],
    results: Sequence[Mapping[int | None, Any]],
    notes: list[str],
) -> None:
    """Numbers, tables, rows and samples of all results, by model and number of examples."""
    shots = list(results[0])
    marks = [(k, {"shots": k} if len(shots) > 1 else {}) for k in shots]
    found = [{k: measured(result, tasks, built) for k, result in by.items()} for by in results]
    numbers = numbers_of([named(by) for by in found], config.seed)
    numbers |= task_means(found, list(tasks), config.seed) | gaps_closed(found, list(tasks), config.seed)
    if len(found) == 2:
        write_rows(run.path / "before_after.csv", tax_table(numbers, len(shots) > 1))
        notes.append(f"before is {names[0]}; the others are {names[1]}; difference is the second − the first.")
    last = results[-1]
    write_rows(run.path / "tasks.csv", [row for k in shots for row in task_table(last[k], tasks)])
    write_rows(run.path / "rows.jsonl", [r | extra for k, extra in marks for r in question_rows(last[k])])
    run.write_samples([r | extra for k, extra in marks for r in shown_samples([by[k] for by in results])])
    if config.limit is not None:
        notes.append(f"Only the first {config.limit} questions of each task were asked.")
    run.finish(numbers, [f"Prompts and grading by lm-eval {importlib.metadata.version('lm_eval')}.", *notes])
    for kept in run.path.glob(KEPT.format("*", "*")):
        kept.unlink()


def _shots(config: Eval) -> list[int | None]:
    """The numbers of examples asked with; [None] leaves every task its own. Raises ValueError, also on --limit."""
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"--limit is {config.limit}; expected at least 1 question of each task.")
    if any(k < 0 for k in config.num_fewshot):
        raise ValueError(f"--num-fewshot is {min(config.num_fewshot)}; expected 0 or more examples.")
    return list(dict.fromkeys(config.num_fewshot)) or [None]


def models_of(config: Eval) -> list[str]:
    """One model, or the one before and the one after. Raises ValueError for any other number of them."""
    names = [n for n in [config.before, *config.models, config.after] if n is not None]
    if len(names) not in (1, 2) or (config.after is not None and config.before is None):
        given = ", ".join(names) or "none"
        raise ValueError(f"Name one model, or two of which the second is compared with the first; given: {given}.")
    return names


def _check_models(names: Sequence[str], chat: bool) -> None:
    """A mistyped second name must not be found out after the first model's hours."""
    for name in names:
        if not load_tokenizer(find_model(name)).chat_template and chat:
            raise ValueError(f"The tokenizer of {name!r} has no chat template; leave --apply-chat-template out.")


def load_tasks(
    names: Sequence[str], include_path: str | None = None, chat: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """lm-eval's tasks and groups of these names (commas and * allowed), and all single tasks by name.

    A name such as ``paper_arc:FILE`` is a task of ours over a local file (`truing.measure.harness_paper`); ``chat``
    prepares it for a chat template. Raises ValueError for a name that lm-eval does not know, with the nearest ones,
    and for a task that cannot be loaded or would run code that a model wrote.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as problem:
        raise what_is_missing(problem) from None
    wanted = [name.strip() for given in names for name in given.split(",") if name.strip()]
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"--include-path is {include_path}; expected a folder with task files (YAML).")
    ours = [paper_task(name, chat) for name in wanted if is_paper_task(name)]
    wanted = [name for name in wanted if not is_paper_task(name)]
    # reading lm-eval's own thousands of task files takes a while, so the user's folder is looked at first
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not all(_matches(manager, name) for name in wanted):
        manager = TaskManager(include_path=include_path)
    found: dict[str, Any] = {task.config.task: task for task in ours}
    if len(found) < len(ours):
        raise ValueError("--tasks names two files of one format and one name; rename one of them.")
    for name in wanted:
        specs = _matches(manager, name)
        if not specs:
            near = difflib.get_close_matches(name, manager.all_tasks, 3, 0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"lm-eval has no task {name!r}.{hint} `lm-eval ls tasks` lists all of them.")
        for spec in specs:
            found |= _load(manager, spec)
    if not found:
        raise ValueError("--tasks names no task.")
    groups = [thing for thing in found.values() if hasattr(thing, "get_all_tasks")]
    inside = {t.task_name for g in groups for t in g.get_all_tasks()} | {
        s.name for g in groups for s in g.get_all_groups()
    }
    built = [thing for name, thing in found.items() if name not in inside]
    theirs: dict[str, Any] = manager.load([t for t in built if t not in ours])["tasks"] if wanted else {}
    tasks = {task.config.task: task for task in ours} | theirs
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"The task {name} runs code that the model writes, which truing does only in a sandbox.")
    return built, tasks


def _matches(manager: Any, name: str) -> list[str]:
    return manager.match_tasks([name]) or ([name] if Path(name).suffix == ".yaml" and Path(name).is_file() else [])


def _load(manager: Any, spec: str) -> dict[str, Any]:
    try:
        loaded = manager.load([spec])
    except Exception as problem:  # a task is code of others that fetches data: anything may go wrong
        said = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
        raise ValueError(
            f"lm-eval could not load the task {spec}: {said}. Its data set comes from the hub unless it is in the "
            "cache or the task names local files (HF_HUB_OFFLINE=1 forbids fetching)."
        ) from problem
    return {**loaded["groups"], **loaded["tasks"]}


def _set_shots(tasks: Mapping[str, Any], fixed: Sequence[str], shots: int | None) -> None:
    """Set the number of examples as lm-eval does, so that a dry run counts them; ``fixed`` are tasks that refuse it."""
    for name, task in tasks.items():
        if shots is not None and name not in fixed:
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)


def _refused(fixed: Sequence[str], shots: Sequence[int | None]) -> list[str]:
    if not fixed or not any(shots):
        return []
    return [f"Asked without examples whatever --num-fewshot says, because the task fixes it: {', '.join(fixed)}."]


def _expected(
    config: Eval, names: Sequence[str], built: Sequence[Any], tasks: Mapping[str, Any], fixed: Sequence[str]
) -> list[str]:
    """What it would take: requests and tokens counted, time and memory measured on a part of each kind."""
    lines = []
    for k in _shots(config):
        _set_shots(tasks, fixed, k)
        lines += [_counted(name, task, config.limit) for name, task in tasks.items()]
    _check_models(names, config.apply_chat_template)
    compute, cost, measuring = choose(config.device, config.dtype, config.threads), Cost(), Cost()

    def keep(lm: LM, shots: int | None) -> Keep:
        engine = lm.engine

        def answer(kind: str, items: Sequence[Any], work: Work) -> Rows:
            nonlocal cost, measuring
            guess = replying if kind == "generate_until" else reading
            found, took = timed(
                lambda: guess(engine, lambda a, b: work(items[a:b], a), len(items), CHUNK.get(kind, SCORED))
            )
            cost, measuring = cost + found, measuring + took
            engine.counting = True  # rows of the right form, for lm-eval to grade
            try:
                return work(items, 0)
            finally:
                engine.counting = False

        return answer

    for name in names:
        _, whole = timed(lambda name=name: _ask(config, compute, name, built, tasks, fixed, keep))  # type: ignore[misc]
        cost += whole
    return [*lines, *(cost + measuring * -1).lines(compute)]


def _counted(name: str, task: Any, limit: int | None) -> str:
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=limit)
    texts = ["".join(a for a in request.args if isinstance(a, str)) for request in task.instances]
    questions = len({request.doc_id for request in task.instances})
    shown = f" after {k} examples" if (k := task.get_config("num_fewshot")) else ""
    return (
        f"{name}: {questions:,} questions{shown}, {len(texts):,} requests, about {expected_tokens(texts):,} tokens to "
        "read."
    )


def content_hash(task: Any, limit: int | None = None) -> str:
    """sha256 of a task's configuration, questions, and the examples that it may show."""
    shown = task.fewshot_docs() if task.get_config("num_fewshot") else None
    whole = [task.dump_config(), list(itertools.islice(task.eval_docs, limit)), list(shown or [])]
    text = json.dumps(whole, sort_keys=True, default=lambda thing: type(thing).__name__)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _ask(
    config: Eval,
    compute: Any,
    name: str,
    built: Sequence[Any],
    tasks: Mapping[str, Any],
    fixed: Sequence[str],
    keep: Callable[[LM, int | None], Keep],
) -> dict[int | None, Any]:
    """lm-eval's results for one model by number of examples, its requests answered and kept by what ``keep`` makes."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm = LM.load(name, device=compute.device, dtype=compute.dtype)
    found = {}
    for shots in _shots(config):
        _set_shots(tasks, fixed, shots)
        found[shots] = simple_evaluate(
            harness_class()(lm, seed=config.seed, keep=keep(lm, shots)),
            tasks=list(built),
            task_manager=TaskManager(include_defaults=False),  # the tasks are loaded: it need not look for any
            limit=config.limit,
            bootstrap_iters=0,
            apply_chat_template=config.apply_chat_template,
            fewshot_random_seed=FEWSHOT_SEED + config.seed,
        )
    return found


def _keeper(run: Run, place: int, config: Eval) -> Callable[[LM, int | None], Keep]:
    several = len(_shots(config)) > 1

    def keep(kind: str, items: Sequence[Any], work: Work, shots: int | None) -> Rows:
        words = "Replies" if kind == "generate_until" else "Requests"
        label = (f"{words} of model {place + 1}" if place else words) + (f", {shots} examples" if several else "")
        size = CHUNK.get(kind, SCORED)
        file = KEPT.format(kind, f"{place + 1}-{shots}" if several else place + 1)
        rows = in_chunks(run, file, items, work, label=label, max_time=config.max_time, size=size)
        if len(rows) < len(items):
            raise OutOfTime(f"Stopped after {len(rows)} of {len(items)} requests ({kind}, model {place + 1}).")
        return rows

    return lambda _, shots: functools.partial(keep, shots=shots)
