"""What is asked to find bias (2204.05862 §4.6.2, App B.10): gendered sentences, sentences about groups, questions
whose answer nobody can know. Lists and texts are our own words; questions may also come from a file in BBQ's format.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from truing.data.files import DataError, read_rows

UNKNOWN = "unknown"
"""The group of an answer that names nobody."""


class Sentence(NamedTuple):
    """The beginning of a sentence about a group, and the request to finish it."""

    kind: str
    group: str
    ask: str
    start: str


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A question that its text does not answer; ``groups`` are those of its ``answers``, one of them ``unknown``."""

    id: str
    category: str
    negative: bool
    context: str
    question: str
    answers: tuple[str, ...]
    groups: tuple[str, ...]


def sentences() -> list[Sentence]:
    """Ten beginnings for each of six races and six religions."""
    lists = _packaged("sentences.json")
    return [
        Sentence(kind, group, lists["ask"].format(start=start), start)
        for kind, groups in lists["groups"].items()
        for group in groups
        for start in (s.format(group=group) for s in lists["starts"])
    ]


def ambiguous_questions() -> list[Ambiguous]:
    """Our own set in BBQ's manner: 144 questions, each pair of people in both orders, asked for bad and for good."""
    lists = _packaged("ambiguous.json")
    out: list[Ambiguous] = []
    for q in lists["questions"]:
        for pair, turned in itertools.product(lists["groups"][q["category"]], (False, True)):
            (a, group_a), (b, group_b) = pair[::-1] if turned else pair
            context = q["context"].format(a=a, b=b)
            context = context[0].upper() + context[1:]
            for asked in ("negative", "other"):
                n = len(out)
                answers = [(a, group_a), (b, group_b), (lists["unknown"][n // 2 % 3], UNKNOWN)]
                shift = n // 2 % 3  # both questions on one text offer the same answers in the same order
                answers = [(x[0].upper() + x[1:], g) for x, g in answers[shift:] + answers[:shift]]
                texts, groups = zip(*answers, strict=True)
                out.append(Ambiguous(str(n), q["category"], asked == "negative", context, q[asked], texts, groups))
    return out


def load_ambiguous(path: str | Path) -> tuple[list[Ambiguous], int]:
    """The ambiguous questions of a file in BBQ's format, and how many others (whose text answers them) it has.

    Raises DataError naming file, line and field; also where a file has no ambiguous question.
    """
    out, others = list[Ambiguous](), 0
    for line, row in read_rows(path):
        if row.get("context_condition", "ambig") == "ambig":
            out.append(_from_bbq(row, path, line))
        else:
            others += 1
    if not out:
        raise DataError(path, "has no question with context_condition 'ambig'", field="context_condition")
    return out, others


def _from_bbq(row: Mapping[str, Any], file: object, line: int) -> Ambiguous:
    for name in ("context", "question", "ans0", "ans1", "ans2"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(file, f"expected text, found {row.get(name)!r}", line=line, field=name)
    polarity = row.get("question_polarity")
    if polarity not in ("neg", "nonneg"):
        raise DataError(file, f"expected neg or nonneg, found {polarity!r}", line=line, field="question_polarity")
    info = row.get("answer_info")
    try:
        groups = tuple(str(info[f"ans{i}"][-1]) for i in range(3))  # type: ignore[index]
    except (TypeError, KeyError, IndexError):
        problem = f'expected {{"ans0": [name, group], …}} for all three answers, found {info!r}'
        raise DataError(file, problem, line=line, field="answer_info") from None
    if groups.count(UNKNOWN) != 1:
        problem = f"expected the group {UNKNOWN!r} at one answer of three, found {', '.join(groups)}"
        raise DataError(file, problem, line=line, field="answer_info")
    return Ambiguous(
        str(row.get("example_id", line)),
        str(row.get("category", "")),
        polarity == "neg",
        row["context"].strip(),
        row["question"].strip(),
        tuple(row[f"ans{i}"].strip() for i in range(3)),
        groups,
    )


def _packaged(name: str) -> dict[str, Any]:
    return json.loads((files("truing.data") / "prompts" / name).read_text("utf-8"))
