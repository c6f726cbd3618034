"""``truing data check`` and ``truing data convert``."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from truing.configs import DataCheck, DataConvert
from truing.data.annotated import read_annotated, tool_of
from truing.data.attempts import MISSPELT, SPELT, attempt_to_row, read_attempts, write_attempts
from truing.data.check import check_file, kind_of_row
from truing.data.comparisons import Target, comparison_to_row, read_comparisons
from truing.data.files import DataError, is_hub_name, read_rows, write_rows
from truing.data.prompts import load_prompt_rows
from truing.data.questions import load_questions, question_to_row
from truing.data.tldr import FIELDS
from truing.types import Comparison

_SHOWN = 20
_READ = {
    "comparisons": {"prompt", *FIELDS, *(f.name for f in fields(Comparison))}
    - {"id"},  # `_lost` names those that hh and trl lack
    "prompts": {"prompt"},
    "questions": {"answer", "answers", "answerKey", "label", "choices", "subject"},
    "attempts": {SPELT, MISSPELT},
}
"""Fields that are read by other names than they are written by."""


def check(config: DataCheck) -> dict[str, Any]:
    """What is in a file and what is wrong with it; ``check_file`` returns the same as a ``CheckReport``.

    The result has ``failed`` and ``code``: 3 if ``strict`` and anything is wrong, 1 if rows cannot be understood.
    """
    return check_file(config.file, strict=config.strict).as_result()


def convert(config: DataConvert) -> dict[str, Any]:
    """Write a file's rows to ``target`` in another format; whole or not at all.

    Comparisons go to any of the three forms, prompts to ours or TRL's, questions and attempts to ours. Nothing is
    lost in silence: rows that cannot be converted are an error unless ``on_problem="drop"``, and fields that the new
    form cannot hold are named in a note. Raises DataError, and refuses to write over its input.
    """
    target = Path(config.target)
    if not is_hub_name(config.file) and target.exists() and os.path.samefile(config.file, target):
        raise DataError(target, "this is the file that is read; give another name to write to")
    line, first = next(iter(read_rows(config.file)))
    kind = "choices of another tool" if tool_of(first) else kind_of_row(first)
    writers = {"comparisons": _comparisons, "prompts": _prompts, "questions": _questions, "attempts": _attempts}
    writers["choices of another tool"] = _annotated
    if kind not in writers:
        problem = f"rows with the fields {', '.join(first)} are no comparisons, prompts, questions or attempts"
        raise DataError(config.file, problem, line=line)
    if config.compat and kind != "attempts":
        raise DataError(config.file, f"--compat {config.compat} is for red-team attempts; these are {kind}")
    if config.dry_run:
        return {"lines": [f"Would write {kind} of {config.file} to {target} as {config.to}."]}
    read, written, notes = writers[kind](config, target)
    if kind in _READ and (unknown := _unknown_fields(config.file, kind, target)):
        notes.append(f"Fields that the new rows do not have: {', '.join(unknown)}.")
    unit = {"low": None, "high": None, "n": read, "unit": "rows"}
    numbers = {"rows_read": {"value": read, **unit}, "rows_written": {"value": written, **unit}}
    return {"numbers": numbers, "notes": notes, "lines": [f"{kind}: {config.file} → {target}"]}


Done = tuple[int, int, list[str]]


def _unknown_fields(file: str, kind: str, target: Path) -> list[str]:
    """Fields of the rows read that are none of ours and none of the rows written, in order."""
    found = dict.fromkeys(name for _, row in read_rows(file, lambda bad: None) for name in row)
    written = {name for _, row in read_rows(target) for name in row}
    return [name for name in found if name not in written | _READ[kind]]


def _comparisons(config: DataConvert, target: Path) -> Done:
    loaded = read_comparisons(config.file, on_problem="drop", keep_identical=True)
    notes = []
    if loaded.problems and config.on_problem == "error":
        shown = "\n".join(f"  {where}: {what}" for where, what in loaded.problems[:_SHOWN])
        more = f"\n  and {len(loaded.problems) - _SHOWN} more" if len(loaded.problems) > _SHOWN else ""
        problem = f"{len(loaded.problems)} of {loaded.counts['rows']} rows cannot be converted. Nothing was written;"
        raise DataError(config.file, f"{problem} --on-problem drop leaves them out.\n{shown}{more}")
    if loaded.problems:
        reasons = [f"{loaded.counts[r]} {r.replace('_', ' ')}" for r in ("unequal_prompts", "malformed")]
        notes.append(f"{len(loaded.problems)} rows left out: {', '.join(reasons)}.")
    if cut := loaded.counts["cut_replies"]:
        notes.append(f"In {cut} rows a human turn after the last reply was cut off.")
    if lost := _lost(loaded.comparisons, config.to):
        notes.append(f"The form {config.to!r} has no place for {', '.join(lost)}; these fields were not written.")
    written = write_rows(target, [comparison_to_row(c, config.to) for c in loaded.comparisons])
    return loaded.counts["rows"], written, notes


def _annotated(config: DataConvert, target: Path) -> Done:
    """Choices between two texts made in Label Studio, Argilla or Potato."""
    found = read_annotated(config.file)
    if not found.comparisons:
        raise DataError(config.file, f"no choice between two texts is in this export of {found.tool}")
    left = ", ".join(f"{n} {reason}" for reason, n in found.counts.items())
    notes = [f"Left out: {left}."] if left else []
    if lost := _lost(found.comparisons, config.to):
        notes.append(f"The form {config.to!r} has no place for {', '.join(lost)}; these fields were not written.")
    written = write_rows(target, [comparison_to_row(c, config.to) for c in found.comparisons])
    return written + sum(found.counts.values()), written, notes


def _lost(comparisons: list[Any], to: Target) -> list[str]:
    if to == "truing":
        return []
    names = [f for f in ("strength", "worker", "arms", "source") if any(getattr(c, f) for c in comparisons)]
    return names + (["kind"] if any(c.kind == "harmless" for c in comparisons) else [])


def _prompts(config: DataConvert, target: Path) -> Done:
    rows = load_prompt_rows(config.file)
    if config.to == "hh":
        from truing.text import to_hh

        written = write_rows(target, [{"id": r.id, "prompt": to_hh(r.dialogue)} for r in rows])
    else:
        written = write_rows(target, [{"id": r.id, "prompt": r.dialogue.to_messages()} for r in rows])
    return len(rows), written, []


def _questions(config: DataConvert, target: Path) -> Done:
    _only_ours(config, "questions")
    questions = load_questions(config.file)
    return len(questions), write_rows(target, [question_to_row(q) for q in questions]), []


def _attempts(config: DataConvert, target: Path) -> Done:
    _only_ours(config, "red-team attempts")
    attempts = read_attempts(config.file)
    if config.compat:
        return len(attempts), write_attempts(target, attempts, compat=True), []
    return len(attempts), write_rows(target, [attempt_to_row(a) for a in attempts]), []


def _only_ours(config: DataConvert, what: str) -> None:
    if config.to != "truing":
        raise DataError(config.file, f"{what} have one form only; leave out --to {config.to}")
