"""What is in a file and what is wrong with it: the counts behind ``truing data check``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.data.attempts import row_to_attempt
from truing.data.comparisons import row_to_comparison
from truing.data.files import DataError, read_rows
from truing.data.pairs import format_of_row, read_pair
from truing.data.prompts import row_to_prompt
from truing.data.questions import row_to_question
from truing.data.tldr import from_tldr, is_tldr

_TEXT = {
    "hh": "HH two-column text",
    "trl": "TRL conversations",
    "truing": "a prompt and two replies",
    "summaries": "two summaries and a choice",
}
_COUNTS = ("unequal_prompts", "empty_replies", "identical_pairs", "bad_turns", "duplicates", "usable")


@dataclass
class CheckReport:
    """What ``check_file`` found: ``numbers`` are counts of rows, ``problems`` one (line, text) each.

    ``failed`` is True if ``strict`` was asked for and anything is wrong; ``exit_code`` is then 3, without ``strict``
    1 if rows cannot be understood, else 0.
    """

    file: str
    format: str
    numbers: dict[str, int]
    problems: list[tuple[int, str]]
    notes: list[str] = field(default_factory=list)
    strict: bool = False

    @property
    def failed(self) -> bool:
        """Whether a strict check fails."""
        return self.strict and bool(self.problems)

    @property
    def exit_code(self) -> int:
        """0, 1 (rows that cannot be understood) or 3 (strict, and anything is wrong)."""
        return 3 if self.failed else 1 if self.numbers.get("malformed") else 0

    @property
    def lines(self) -> list[str]:
        """The report as text: the format, then one line per problem with its line number."""
        return [f"{self.file}: {self.format}", *(f"line {line}: {text}" for line, text in self.problems)]

    def as_result(self) -> dict[str, Any]:
        """The form that the command line prints: numbers as in ``summary.json``, lines, notes, exit code."""
        n = self.numbers["rows"]
        numbers = {k: {"value": v, "low": None, "high": None, "n": n, "unit": "rows"} for k, v in self.numbers.items()}
        problems = [{"line": line, "problem": text} for line, text in self.problems]
        more = {"format": self.format, "problems": problems}
        result = {"numbers": numbers, "notes": self.notes, "lines": self.lines, "more": more}
        return result | {"failed": self.failed, "code": self.exit_code}


def kind_of_row(row: Mapping[str, Any]) -> str:
    """What a row is by its fields; empty if it is nothing we know."""
    if "chosen" in row or "rejected" in row or is_tldr(row):
        return "comparisons"
    kinds = {
        "games": ("a", "b", "winner"),
        "questions": ("question",),
        "attempts": ("transcript",),
        "context and continuation": ("context", "continuation"),
        "prompts": ("prompt",),
        "dialogues": ("dialogue",),
        "messages": ("messages",),
        "text": ("text",),
    }
    return next((kind for kind, fields in kinds.items() if all(f in row for f in fields)), "")


def check_file(name: str | Path, *, strict: bool = False) -> CheckReport:
    """Count and name what is wrong with the rows of a file or hub data set.

    Comparisons: ``rows, unequal_prompts`` (the columns differ before the last reply)``, empty_replies`` (either reply
    is blank)``, identical_pairs, bad_turns`` (in either column roles do not alternate from the human on)``,
    duplicates`` (equal to an earlier row, ids aside)``, usable`` = rows − unequal − identical (− malformed).
    Other formats: ``rows, empty`` (or ``bad_turns``)``, duplicates, usable``. ``malformed`` is there if rows cannot
    be understood.
    Raises DataError if the file itself cannot be read, or if its first row is nothing we know.
    """
    kind, report = "", CheckReport(str(name), "", {}, [], strict=strict)
    counts: Counter[str] = Counter()
    seen: dict[str, int] = {}
    tally = _Tally()

    def malformed(bad: DataError) -> None:
        counts.update(rows=1, malformed=1)
        report.problems.append((bad.line or 0, bad.problem))

    for line, row in read_rows(name, malformed):
        if not kind:
            kind = _first_kind(name, line, row)
            form = "summaries" if is_tldr(row) else format_of_row(row)
            report.format = f"{kind} ({_TEXT[form]})" if kind == "comparisons" else kind
        counts["rows"] += 1
        try:
            found = _PROBLEMS.get(kind, _texts)(row, name, line, tally)
        except DataError as bad:
            counts["malformed"] += 1
            report.problems.append((line, bad.problem))
            continue
        first = seen.setdefault(_content(row), line)
        if first != line:
            found.append(("duplicates", f"equal to line {first}"))
        counts.update({reason for reason, _ in found})
        counts["unusable"] += any(r in ("unequal_prompts", "identical_pairs", "empty") for r, _ in found)
        report.problems += [(line, text) for _, text in found]
    counts["usable"] = counts["rows"] - counts["malformed"] - counts["unusable"]
    names: tuple[str, ...] = _COUNTS if kind == "comparisons" else ("empty", "duplicates", "usable")
    if kind in ("prompts", "dialogues", "messages"):
        names = ("bad_turns", "duplicates", "usable")
    names = ("malformed", *names) if counts["malformed"] else names
    report.numbers = {n: counts[n] for n in ["rows", *names]}
    report.notes = tally.notes()
    return report


def _first_kind(name: str | Path, line: int, row: Mapping[str, Any]) -> str:
    kind = kind_of_row(row)
    if kind:
        return kind
    raise DataError(
        name,
        f"no known kind of row; it has the fields {', '.join(row) or 'none'}. Known are: chosen and rejected "
        "(comparisons), prompt, question with answers or choices, a, b and winner (games), transcript (red-team "
        "attempts), dialogue, messages, text, context and continuation.",
        line=line,
    )


def _content(row: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True, default=str)


class _Tally:
    """Side facts worth a note: which reply is longer, kinds, strengths."""

    def __init__(self) -> None:
        self.pairs = self.longer = self.shorter = 0
        self.kinds: Counter[str] = Counter()
        self.strengths: Counter[str] = Counter()

    def notes(self) -> list[str]:
        out = []
        if self.pairs:
            out.append(
                f"Baselines on {self.pairs} usable rows: the shorter reply is chosen in {self.shorter / self.pairs:.1%}"
                f", the longer in {self.longer / self.pairs:.1%} (characters of the last reply)."
            )
        if len(self.kinds) > 1:
            out.append("Kinds: " + ", ".join(f"{k} {n}" for k, n in sorted(self.kinds.items())) + ".")
        if unsure := self.strengths["1"]:
            out.append(f"{unsure} rows have strength 1 (unsure) and are left out of training.")
        return out


Found = list[tuple[str, str]]


def _comparison(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    row = from_tldr(row, name, line)
    pair = read_pair(row, name, line)
    found: Found = []
    if pair.unequal:
        found.append(("unequal_prompts", "the columns differ before the last reply"))
    if pair.identical:
        found.append(("identical_pairs", "chosen and rejected are the same"))
    blank = [s for s, side in (("chosen", pair.chosen), ("rejected", pair.rejected)) if not side.reply.strip()]
    if blank:
        found.append(("empty_replies", f"the reply in {' and '.join(blank)} is blank"))
    if pair.bad_turns:
        found.append(("bad_turns", f"roles do not alternate: {'; '.join(pair.bad_turns)}"))
    cut = [s for s, side in (("chosen", pair.chosen), ("rejected", pair.rejected)) if side.cut]
    if cut:
        found.append(("cut_replies", f"a human turn follows the last reply in {' and '.join(cut)}; it is cut off"))
    if not pair.unequal and not pair.identical:
        comparison = row_to_comparison(row, str(name))
        tally.pairs += 1
        tally.longer += len(comparison.chosen) > len(comparison.rejected)
        tally.shorter += len(comparison.chosen) < len(comparison.rejected)
        tally.kinds[comparison.kind] += 1
        tally.strengths[str(comparison.strength)] += 1
    return found


def _prompts(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    wrong = row_to_prompt(row, name, line).problems()
    return [("bad_turns", f"roles do not alternate: {'; '.join(wrong)}")] if wrong else []


def _questions(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    row_to_question(row, name, line)
    return []


def _attempts(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    attempt = row_to_attempt(row, name, line)
    return [] if attempt.transcript.strip() else [("empty", "the transcript is blank")]


def _games(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    for side in ("a", "b"):
        if not isinstance(row.get(side), str) or not row[side].strip():
            problem = f"expected an arm's name, found {row.get(side)!r}"
            raise DataError(name, problem, line=line, field=side)
    if row.get("winner") not in ("a", "b"):
        raise DataError(name, f"expected 'a' or 'b', found {row.get('winner')!r}", line=line, field="winner")
    return []


def _texts(row: Mapping[str, Any], name: object, line: int, tally: _Tally) -> Found:
    fields = ("context", "continuation") if "continuation" in row or "context" in row else ("text",)
    for each in fields:
        if not isinstance(row.get(each), str):
            problem = "missing" if each not in row else f"expected text, found {row[each]!r}"
            raise DataError(name, problem, line=line, field=each)
    return [] if str(row[fields[-1]]).strip() else [("empty", f"{fields[-1]} is blank")]


_PROBLEMS: dict[str, Callable[[Mapping[str, Any], object, int, _Tally], Found]] = {
    "comparisons": _comparison,
    "prompts": _prompts,
    "questions": _questions,
    "attempts": _attempts,
    "games": _games,
    "dialogues": _prompts,
    "messages": _prompts,
}
