"""The command line: ``truing [GROUP] VERB``, a table of verbs and what happens around one call.

Knows no verb's options (they are the dataclasses of ``configs``) and imports a verb's code only when it is called,
so that ``truing --help`` answers at once. Exit codes: 0 done, 1 a clear error, 2 wrong usage, 3 a check failed,
130 interrupted and resumable.

A verb is a function ``fn(config) -> Run | dict | None``. A Run is printed from its ``summary.json`` (and, for the
verbs in ``ROWS``, its ``rows.jsonl``). A dict has the keys ``numbers`` and ``notes``, and may have ``lines`` (said
to people before the numbers), ``table`` (columns and rows), ``more`` (further keys of the JSON summary), ``failed``
(True: exit 3) and ``code`` (another exit code); with ``--out`` it becomes a run.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import json
import os
import shlex
import signal
import sys
import typing
from typing import Any, NamedTuple

from truing.options import Usage, fields_from_file, join_repeated, required, take_config


class Verb(NamedTuple):
    """Where a verb lives: module:function, the name of its dataclass in ``configs``, and one line for the help."""

    function: str
    config: str
    about: str


VERBS: dict[str, Verb] = {
    "demo": Verb("truing.recipes.demo:demo", "Demo", "the whole loop on the packaged model, to one report"),
    "chat": Verb("truing.collect.terminal:chat", "Chat", "talk with a model, beside a preference model's scores"),
    "serve": Verb("truing.collect.serve:serve", "Serve", "the web app in which people talk with models and choose"),
    "sample": Verb("truing.measure.score:sample", "Sampling", "replies to prompts; best of n by a preference model"),
    "score": Verb("truing.measure.score:score", "Scoring", "log-probabilities, or a preference model's scores"),
    "data check": Verb("truing.data.verbs:check", "DataCheck", "what is in a file and what is wrong with it"),
    "data convert": Verb("truing.data.verbs:convert", "DataConvert", "between formats"),
    "data pairs": Verb("truing.data.pmp:pairs", "DataPairs", "comparisons from dumps of the web, by votes and reverts"),
    "pm pretrain": Verb("truing.train.pm_pretrain:pretrain_pm", "PMPretrain", "first on comparisons made of votes"),
    "pm train": Verb("truing.train.pm:train_pm", "PMTrain", "train a preference model on comparisons"),
    "pm eval": Verb("truing.measure.preference:pm_eval", "PMEval", "its accuracy and calibration on comparisons"),
    "pm probe": Verb("truing.recipes.pm_probe:pm_probe", "PMProbe", "HHH pairs, the gender probe, labelled replies"),
    "pm scaling": Verb("truing.recipes.pm_scaling:pm_scaling", "PMScaling", "sizes by amounts of data, and the fit"),
    "pm mixing": Verb("truing.recipes.mixing:tldr_mixing", "PMMixing", "dialogues and summaries in one model"),
    "pm ood": Verb("truing.measure.ood:ood", "PMOOD", "are prompts of another kind seen from activations, by layer"),
    "rlhf finetune": Verb("truing.train.sft:train_lm", "Finetune", "a language model on texts or dialogues"),
    "rlhf distill": Verb("truing.train.distill:distill", "Distill", "teach a model to speak as it does after a prompt"),
    "rlhf prompts": Verb("truing.measure.model_prompts:write_prompts", "WritePrompts", "prompts that a model writes"),
    "rlhf train": Verb("truing.train.ppo:train_ppo", "PPOTrain", "PPO against a preference model"),
    "rlhf frontier": Verb("truing.recipes.frontier:frontier", "Frontier", "reward against √KL, its bound, best of n"),
    "rlhf robustness": Verb("truing.recipes.robustness:robustness", "Robustness", "train-PMs against test-PMs"),
    "rlhf tension": Verb("truing.recipes.tension:tension", "Tension", "helpful against harmless: mixes and weights"),
    "rlhf code": Verb("truing.recipes.code_rlhf:code_study", "CodeStudy", "what RLHF does to a code model's pass@k"),
    "store backup": Verb("truing.collect.store_verbs:backup", "StoreBackup", "the feedback store in one file"),
    "store restore": Verb("truing.collect.store_verbs:restore", "StoreRestore", "a store from such a file"),
    "store import": Verb("truing.collect.store_verbs:import_", "StoreImport", "comparisons made with other tools"),
    "store export": Verb("truing.collect.store_verbs:export", "StoreExport", "comparisons, games, rankings, attempts"),
    "store erase": Verb("truing.collect.store_verbs:erase", "StoreErase", "replace what was said by a tombstone"),
    "store person": Verb(
        "truing.collect.store_verbs:person", "StorePerson", "what is kept of a person: a file, or erase"
    ),
    "elo": Verb("truing.measure.elo:elo", "EloConfig", "Elo with intervals from comparisons"),
    "writers": Verb("truing.measure.writers:writers", "Writers", "models against human writers, from rankings"),
    "honesty choices": Verb("truing.measure.choices:choices", "Choices", "calibration on multiple choice"),
    "honesty ptrue": Verb("truing.measure.p_true:p_true", "PTrue", "does a model know which answers are true"),
    "honesty pik": Verb("truing.measure.p_ik:p_ik", "PIKTrain", "does a model know what it knows"),
    "eval": Verb("truing.measure.harness:evaluate", "Eval", "tasks of lm-eval; two models: what changed"),
    "bias": Verb("truing.measure.bias:bias", "Bias", "gender, race, religion: what a model does with them"),
    "code": Verb("truing.measure.code:code", "Code", "pass@k of functions that a model writes, run in a sandbox"),
    "recipe": Verb("truing.recipes.hh_rlhf:recipe", "Recipe", "a paper from top to bottom, on one page"),
    "runs": Verb("truing.report.machine:runs", "Runs", "what runs there are"),
    "report": Verb("truing.report.compare:report", "ReportConfig", "rebuild pages; one page for several runs"),
    "compare": Verb("truing.report.compare:compare", "Compare", "differences of two runs' numbers with intervals"),
    "doctor": Verb("truing.report.machine:doctor", "Doctor", "versions, device, memory, sandbox, cached model"),
}
GROUPS = {
    "data": "files of comparisons, prompts and questions",
    "pm": "preference models",
    "rlhf": "reinforcement learning from human feedback",
    "honesty": "calibration and self-knowledge",
    "store": "the feedback store",
}
ROWS = ("score", "sample")  # print their rows.jsonl, one line per input row
NO_RUN = ("chat", "serve", "doctor", "runs", "report", "compare", "data check", "data convert", "data pairs")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a script's background: stay interruptible
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return dispatch(argv)
    except KeyboardInterrupt:
        if not _follows():
            again = shlex.join(["truing", *argv])
            _say(f"Interrupted. What had been saved is kept; the same command goes on:\n  {again}")
        return 130
    except Usage as wrong:
        _say(f"truing: {wrong}")
        return 2
    except Exception as problem:
        _remove_bare()
        if debug:
            raise
        who = f"truing, process {os.environ['RANK']}" if _follows() else "truing"
        _say(f"{who}: {explain(problem)}")
        return 1


def _remove_bare() -> None:
    if runs := sys.modules.get("truing.runs"):
        runs.remove_bare()


def explain(problem: Exception) -> str:
    """One message for people: what happened and what to do."""
    if isinstance(problem, BrokenPipeError):
        return "whoever read the output stopped reading, so the rest was not printed. The same command prints it again."
    no_room = "No space left" in str(problem)  # safetensors and torch raise errors of their own
    if no_room or (isinstance(problem, OSError) and problem.errno == errno.ENOSPC):
        name = getattr(problem, "filename", None)
        where = f" while writing {name}" if name else ""
        return f"the disk is full{where}. Nothing is half-written: make room and give the same command again."
    if isinstance(problem, PermissionError):
        return f"no permission for {problem.filename}. Change its owner or mode, or choose another --out."
    if isinstance(problem, FileNotFoundError) and problem.filename and len(problem.args) > 1:
        return f"there is no file {problem.filename}. Paths are relative to {os.getcwd()}."
    if isinstance(problem, IsADirectoryError) and problem.filename:
        return f"{problem.filename} is a folder; a file is needed here."
    if isinstance(problem, ModuleNotFoundError) and not (problem.name or "truing").startswith("truing"):
        return f"this needs the package {problem.name!r}, which is not installed: pip install {problem.name}."
    if isinstance(problem, UnicodeEncodeError):
        shown = problem.object[problem.start : problem.end][:20]
        return (
            f"whoever reads the output takes {problem.encoding}, which has no {shown!r}. Set PYTHONIOENCODING=utf-8 "
            "and give the same command again; rows of a run also lie in its rows.jsonl."
        )
    if isinstance(problem, UnicodeDecodeError):
        return f"the input is not UTF-8 text ({getattr(problem, 'reason', problem)}). Convert the file to UTF-8."
    text = " ".join(str(a) for a in problem.args) if isinstance(problem, ValueError) else str(problem)
    if isinstance(problem, (ValueError, OSError)) and text.strip():
        return text.strip()
    first = (text.strip().splitlines() or ["no message"])[0]
    return (
        f"unexpected {type(problem).__name__}: {first}\nGive the same command with --debug to see where it comes from."
    )


# ---------------------------------------------------------------- which verb


def dispatch(argv: list[str]) -> int:
    """Find the verb, read its options, call it, print what it found."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0 if argv else 2
    if argv[0] == "--version":
        from truing import __version__

        print(f"truing {__version__}")
        return 0
    name, rest = find_verb(argv)
    if name in GROUPS:
        print(help_text(name), file=sys.stdout if rest else sys.stderr)
        return 0 if rest else 2
    verb = VERBS[name]
    config = read_options(name, verb, rest)
    return call(name, verb, config)


def find_verb(argv: list[str]) -> tuple[str, list[str]]:
    """The verb's full name and the arguments left; a group alone is returned for its help."""
    word = argv[0]
    if word in VERBS:
        return word, argv[1:]
    if word in GROUPS:
        if len(argv) == 1 or argv[1] in ("-h", "--help"):
            return word, argv[1:]
        name = f"{word} {argv[1]}"
        if name in VERBS:
            return name, argv[2:]
        inside = [v.split()[1] for v in VERBS if v.startswith(f"{word} ")]
        near = difflib.get_close_matches(argv[1], inside, 1)
        elsewhere = near or [v for v in VERBS if v.split()[-1] == argv[1]]
        raise Usage(_no_verb(name, [f"{word} {n}" for n in near] or elsewhere, f"truing {word} --help"))
    raise Usage(_no_verb(word, _near_verbs(word), "truing --help"))


def _near_verbs(word: str) -> list[str]:
    whole = difflib.get_close_matches(word, [*VERBS, *GROUPS], 2)
    last = difflib.get_close_matches(word, [v.split()[-1] for v in VERBS], 1, 0.75)
    return list(dict.fromkeys([*whole, *(v for v in VERBS if v.split()[-1] in last)]))[:3]


def _no_verb(name: str, near: list[str], help_command: str) -> str:
    hint = f" Did you mean {' or '.join(f'`truing {n}`' for n in near)}?" if near else ""
    return f"there is no command `truing {name}`.{hint} `{help_command}` lists what there is."


def help_text(group: str = "") -> str:
    """What `truing --help` and `truing GROUP --help` print."""
    shown = {n: v for n, v in VERBS.items() if not group or n.startswith(f"{group} ")}
    width = max(len(n) for n in shown)
    head = "helpful, honest, harmless, and measured" if not group else GROUPS[group]
    lines = [f"truing {group}".rstrip() + f": {head}", "", "usage: truing COMMAND [options]", ""]
    lines += [f"  truing {n:<{width}}  {v.about}" for n, v in shown.items()]
    lines += [
        "",
        "`truing COMMAND --help` lists the options of one command.",
        "Every command takes --out DIR, --seed N, --device, --dtype, --threads, --json, --dry-run, --max-time MINUTES,",
        "--config FILE.yaml (options from a file; those on the command line win) and --debug.",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------- its options


def read_options(name: str, verb: Verb, argv: list[str]) -> Any:
    """The verb's dataclass, filled from ``--config`` and then from the command line."""
    import tyro

    cls = getattr(importlib.import_module("truing.configs"), verb.config)
    argv, path = take_config(argv)
    argv = join_repeated(argv, cls)
    default: dict[str, Any] = {}
    if path is not None:
        given = fields_from_file(cls, path)
        default = {"default": cls(**dict.fromkeys(required(cls), tyro.MISSING) | given)}
    return tyro.cli(cls, args=argv, prog=f"truing {name}", **default)


# ---------------------------------------------------------------- the call and what is printed


def call(name: str, verb: Verb, config: Any) -> int:
    """Call the verb with stdout kept for results, make the page, print rows, summary or table."""
    module, function = verb.function.split(":")
    fn = getattr(importlib.import_module(module), function)
    quiet = config.json or not (name == "chat" or config.dry_run)
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        result = fn(config)
        if result is None or _follows():
            return 0
        run = None if isinstance(result, dict) else result
        if run is not None:
            summary, result = run.summary(), {}
            _build(run)
        else:
            summary = as_summary(name, result, config.dry_run and config.json)
            if config.out is not None and name in NO_RUN and not config.dry_run:
                run = _keep(name, config, summary)
    _print(name, config, summary, result, run)
    if run is not None and not run.done:
        _say("Stopped before the end; the same command goes on from there.")
    return int(result.get("code", 3 if result.get("failed") else 0))


def as_summary(name: str, result: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
    """A dict result in the form of ``summary.json``."""
    from truing.runs.atomic import number_row

    numbers = {k: number_row(v) for k, v in result.get("numbers", {}).items()}
    notes = [*result.get("notes", ()), *(result.get("lines", ()) if dry_run else ())]
    return {"verb": name, "run": None, "numbers": numbers, "notes": notes} | result.get("more", {})


def _build(run: Any) -> None:
    from truing.report.page import build

    build(run.path)


def _keep(name: str, config: Any, summary: dict[str, Any]) -> Any:
    """Make a run of a result that has none, because --out asks for it."""
    from truing.runs import Run

    files = [str(f) for f in [getattr(config, "file", None)] if f]
    run = Run.open(name, config, data_files=files)
    run.finish(summary["numbers"], summary["notes"])
    summary["run"] = str(run.path)
    _build(run)
    return run


def _print(name: str, config: Any, summary: dict[str, Any], result: dict[str, Any], run: Any) -> None:
    if config.json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
        return
    if name in ROWS and run is not None:
        if run.done:  # else the rows are not whole
            with open(run.path / "rows.jsonl", encoding="utf-8") as rows:
                for line in rows:
                    sys.stdout.write(line)
            sys.stdout.flush()
        _say("\n".join([*summary["notes"], f"{'Rows and page' if run.done else 'Page'}: {run.path}"]))
        return
    for line in result.get("lines", ()):
        print(line)
    if "table" in result:
        _table(result["table"]["columns"], result["table"]["rows"])
    elif summary["numbers"]:
        from truing.report.numbers import number_cells

        cells = [number_cells(k, v) for k, v in summary["numbers"].items()]
        _table(("number", "value", "95% interval", "n", "unit"), cells)
    for note in summary["notes"]:
        print(f"Note: {note}")
    if run is not None:
        print(f"Run:  {run.path}\nPage: {run.path / 'report.html'}")
    sys.stdout.flush()


def _table(columns: typing.Sequence[str], rows: typing.Sequence[typing.Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = i and all(str(r[i])[:1] in "0123456789-–" for r in rows if r[i])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def _follows() -> bool:
    """Whether this is one of torchrun's processes, but not the first, which speaks for all."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
