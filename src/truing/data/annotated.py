"""Choices between two texts that people made in Label Studio, Argilla or Potato, as comparisons.

Formats: Label Studio's JSON and JSON-MIN (also CSV) exports of a ``Pairwise`` tag; Argilla's records (``to_json``,
``to_datasets``, version 1's ``FeedbackDataset``) with a label or a ranking question over the fields; Potato's rows of
a ``pairwise`` scheme beside their items. Ties, cancelled, discarded and unanswered rows are counted and left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from truing.data.comparisons import from_choice
from truing.data.files import DataError, read_rows
from truing.data.pairs import prompt_of
from truing.types import Comparison, Dialogue

Tool = Literal["label-studio", "argilla", "potato"]
Task = Literal["helpful", "red_team"]
PROMPTS = ("prompt", "question", "instruction", "query", "input", "context", "messages", "chat", "dialogue")
_TIES = ("tie", "both", "equal", "same", "neither", "nopreference", "noneofthem", "draw")
_FIRST = ("left", "a", "1", "first")
_ENDS = re.compile(
    r"^(?P<stem>.*?)(?:[-_ ]?(?P<end>1|2|[Ll]eft|[Rr]ight|[Ff]irst|[Ss]econd)"
    r"|(?:(?<![^-_ ])|(?<=[a-z])(?=[AB]))(?P<letter>[abAB]))$"  # a letter stands alone, or is a capital: not "data"
)


class Vote(NamedTuple):
    """What one person answered: a field, a side or a ranking of fields (value → rank), and who."""

    value: Any
    worker: str


@dataclass
class Annotated:
    """Comparisons of a file, and what was left out by reason."""

    tool: Tool
    comparisons: list[Comparison] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def tool_of(row: Mapping[str, Any]) -> Tool | None:
    """Which tool wrote a row; None if it is none that we know."""
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        return "label-studio"
    if "annotation_id" in row and "annotator" in row:
        return "label-studio"
    if isinstance(row.get("fields"), Mapping) and "responses" in row:
        return "argilla"
    if any(name.endswith(".responses") for name in row) or _version_1(row):
        return "argilla"
    if "instance_id_to_label_to_value" in row or ("instance_id" in row and ("user_id" in row or "user" in row)):
        return "potato"
    return None


def _version_1(row: Mapping[str, Any]) -> list[str]:
    """Questions of a FeedbackDataset's row: a list of answers, with a suggestion beside it."""
    return [n for n in row if f"{n}-suggestion" in row and isinstance(row[n], list)]


def read_annotated(
    path: str | Path, *, items: str | Path | None = None, task: Task = "helpful", prompt: str = ""
) -> Annotated:
    """The comparisons of an export.

    ``task``: people picked the better text, or (``red_team``) the more harmful one. ``prompt`` names the field with
    the prompt (text, HH text or messages), where it is none of ``PROMPTS``. ``items`` is the file with Potato's items,
    which its answers only number. Raises DataError naming file, line and field.
    """
    known = {str(row.get("id", row.get("instance_id"))): row for _, row in read_rows(items)} if items else {}
    found: Annotated | None = None
    for line, row in read_rows(path):
        tool = tool_of(row)
        if tool is None:
            problem = f"rows with the fields {', '.join(row)} are no export of Label Studio, Argilla or Potato"
            raise DataError(path, problem, line=line)
        found = found or Annotated(tool)
        for fields, votes in _READERS[tool](row, known, found.counts):
            _read(found, fields, votes, task, prompt, path, line)
    assert found is not None  # read_rows raises for an empty file
    return found


def _read(
    found: Annotated, fields: Mapping[str, Any], votes: list[Vote], task: Task, prompt: str, file: object, line: int
) -> None:
    """The comparisons of one item, whose texts are ``fields``."""
    if not votes:
        found.counts["unanswered"] += 1
        return
    asked = _prompt(fields, prompt, file, line)
    for vote in votes:
        ranks = _ranks(vote.value, fields, file, line)
        if ranks is None or len(set(ranks.values())) < 2:
            found.counts["ties"] += 1
            continue
        for picked, other in combinations(sorted(ranks, key=lambda name: ranks[name]), 2):
            texts = [fields[picked], fields[other]]
            if ranks[picked] == ranks[other] or texts[0] == texts[1]:
                found.counts["ties" if texts[0] != texts[1] else "identical"] += 1
                continue
            facts: dict[str, Any] = {
                "worker": vote.worker or None,
                "source": found.tool,
                "id": f"{Path(str(file)).stem}:{line}",
            }
            found.comparisons.append(from_choice(task, asked, *texts, **facts))


# ---------------------------------------------------------------- which texts, and which of them was meant


def _prompt(fields: Mapping[str, Any], name: str, file: object, line: int) -> Dialogue:
    name = name or next((n for n in PROMPTS if fields.get(n)), "")
    if not fields.get(name):
        have = ", ".join(map(str, fields)) or "none"
        problem = f"there is no prompt: the texts are called {have}. Name the field with --prompt-field"
        raise DataError(file, problem, line=line, field=name or "prompt")
    try:
        dialogue = prompt_of(fields[name])
    except ValueError as bad:
        raise DataError(file, str(bad), line=line, field=name) from None
    if not dialogue.is_prompt:
        raise DataError(file, "the prompt does not end with a human message", line=line, field=name)
    return dialogue


def _sides(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two fields that were compared: names that differ in a last 1 and 2, a and b, left and right."""
    found: dict[tuple[str, int], str] = {}
    for name, value in fields.items():
        match = _ENDS.match(str(name))
        if match and isinstance(value, str):
            found.setdefault((match["stem"].rstrip("-_ ").lower(), _side(match)), name)
    pairs = [(found[stem, 0], found[stem, 1]) for stem, side in found if side == 0 and (stem, 1) in found]
    return pairs[0] if len(pairs) == 1 else None


def _side(match: re.Match[str]) -> int:
    return 0 if (match["end"] or match["letter"]).lower() in _FIRST else 1


def _ranks(value: Any, fields: Mapping[str, Any], file: object, line: int) -> dict[str, float] | None:
    """Field → rank (1 is what was picked) of an answer; None for a tie."""
    if isinstance(value, list) and value and all(isinstance(v, Mapping) and "rank" in v for v in value):
        return {_named(str(v["value"]), fields, file, line): float(v["rank"]) for v in value}
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and "scale_value" in value:
        scale = float(value["scale_value"])
        return _ranks("tie" if scale == 0 else "left" if scale < 0 else "right", fields, file, line)
    if isinstance(value, Mapping):
        if not (keys := [k for k in ("selected", "selection", "choices") if k in value]):
            raise DataError(file, f"an answer has the fields {', '.join(map(str, value))}; none is a choice", line=line)
        return _ranks(value[keys[0]], fields, file, line)
    text = str(value).strip()
    if re.sub(r"[^a-z]", "", text.lower()) in _TIES:
        return None
    picked = _named(text, fields, file, line)
    sides = _sides(fields)
    if sides is None or picked not in sides:
        raise DataError(file, f"it is not clear which two texts were compared: {', '.join(fields)}", line=line)
    return {name: 1.0 if name == picked else 2.0 for name in sides}


def _named(text: str, fields: Mapping[str, Any], file: object, line: int) -> str:
    """The field that an answer means: by its name, or by its side."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    for name in fields:
        if name == text or re.sub(r"[^a-z0-9]", "", str(name).lower()) == plain:
            return name
    sides = _sides(fields)
    end = _ENDS.match(text.strip())
    if sides and end:
        return sides[_side(end)]
    raise DataError(file, f"the answer {text[:40]!r} is none of the texts {', '.join(map(str, fields))}", line=line)


# ---------------------------------------------------------------- the tools

Item = tuple[Mapping[str, Any], list[Vote]]


def _label_studio(row: Mapping[str, Any], _: Mapping[str, Any], counts: Counter[str]) -> Iterator[Item]:
    if "annotations" not in row:  # JSON-MIN: one answer a row, beside the texts
        own = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
        values = {k: v for k, v in row.items() if k not in own}
        answers = [k for k, v in values.items() if _is_side(v)]
        fields = {k: v for k, v in values.items() if k not in answers}
        yield fields, [Vote(values[k], str(row["annotator"] or "")) for k in answers[:1]]
        return
    votes = []
    for annotation in row["annotations"]:
        if annotation.get("was_cancelled"):
            counts["cancelled"] += 1
            continue
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, Mapping) else who
        results = [r for r in annotation.get("result", ()) if r.get("type") in ("pairwise", "choices")]
        votes += [Vote(r["value"], "" if who is None else str(who)) for r in results[:1]]
    yield row["data"], votes


def _is_side(value: Any) -> bool:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    value = value.get("selected") if isinstance(value, Mapping) else value
    return isinstance(value, str) and value.strip().lower() in ("left", "right", *_TIES)


def _argilla(row: Mapping[str, Any], _: Mapping[str, Any], counts: Counter[str]) -> Iterator[Item]:
    fields = row["fields"] if isinstance(row.get("fields"), Mapping) else row
    votes = []
    for value, who, status in _argilla_answers(row):
        if status in ("discarded", "draft"):
            counts[status] += 1
        elif _is_choice(value):
            votes.append(Vote(value, "" if who is None else str(who)))
    fields = {k: v for k, v in fields.items() if isinstance(v, str) or k in PROMPTS}
    yield fields, votes


def _is_choice(value: Any) -> bool:
    """A label or a ranking; ratings and comments are other questions."""
    return (isinstance(value, str) and len(value) <= 60) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and "rank" in v for v in value)
    )


def _argilla_answers(row: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(value, who, status) of the first question that was answered, by each person."""
    responses = row.get("responses")
    if isinstance(responses, Mapping):  # records.to_json
        question = next((q for q in responses if responses[q] and _is_choice(responses[q][0].get("value"))), None)
        for answer in responses.get(question, ()) if question else ():
            yield answer.get("value"), answer.get("user_id"), answer.get("status")
    elif isinstance(responses, list):  # version 1's records
        for answer in responses:
            values = [v.get("value") for v in (answer.get("values") or {}).values()]
            yield next((v for v in values if _is_choice(v)), None), answer.get("user_id"), answer.get("status")
    else:
        for name in [n.removesuffix(".responses") for n in row if n.endswith(".responses")]:  # to_datasets
            values = row[f"{name}.responses"] or []
            if values and _is_choice(values[0]):
                who = row.get(f"{name}.responses.users") or [None] * len(values)
                status = row.get(f"{name}.responses.status") or [None] * len(values)
                yield from zip(values, who, status, strict=False)
                return
        for name in _version_1(row):
            if row[name] and _is_choice(row[name][0].get("value")):
                yield from ((a.get("value"), a.get("user_id"), a.get("status")) for a in row[name])
                return


def _potato(row: Mapping[str, Any], known: Mapping[str, Any], counts: Counter[str]) -> Iterator[Item]:
    if "instance_id_to_label_to_value" in row:  # user_state.json: all answers of one person
        for id, answers in row["instance_id_to_label_to_value"].items():
            yield _potato_item(known.get(str(id), {})), _potato_votes(answers, row.get("user_id"))
        return
    who = row.get("user_id", row.get("user"))
    answers = next(
        (row[k] for k in ("annotations", "label_annotations", "labels") if isinstance(row.get(k), Mapping)), None
    )
    if answers is None:  # CSV and Parquet: a column for each answer
        ends = ("selection", "scale_value", "A", "B", "tie")
        flat = {k: v for k, v in row.items() if v not in (None, "") and re.split(r":::|\.", k)[-1] in ends}
        answers = {k: {re.split(r":::|\.", k)[-1]: v} for k, v in flat.items()}
    yield _potato_item({**known.get(str(row["instance_id"]), {}), **row}), _potato_votes(answers, who)


def _potato_votes(answers: Any, who: Any) -> list[Vote]:
    """The answer of the first scheme that has one: {"selection": "A"}, {"scale_value": -2}, {"A": true}."""
    for value in answers.values() if isinstance(answers, Mapping) else ():
        value = value.get("labels", value) if isinstance(value, Mapping) else value
        if isinstance(value, Mapping) and not {"selection", "scale_value"} & set(value):
            value = next((k for k, v in value.items() if v and str(v).lower() != "false"), None)
        if value not in (None, ""):
            return [Vote(value, "" if who is None else str(who))]
    return []


def _potato_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item's texts; those in a list are called left and right, as the page shows them."""
    fields = {k: v for k, v in item.items() if k in PROMPTS or isinstance(v, str)}
    for name in ("responses", "text", "texts", "candidates", "items"):
        value = item.get(name)
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
            return {k: v for k, v in fields.items() if k not in ("left", "right")} | dict(
                zip(("left", "right"), value, strict=True)
            )
    return fields


_READERS = {"label-studio": _label_studio, "argilla": _argilla, "potato": _potato}
