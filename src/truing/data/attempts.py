"""Red-team attempts in the released schema of 2209.07858, read with its quirks and written with or without them.

The released file is one gzipped JSON array named ``.jsonl``; it spells ``task_descripton_harmlessness_score``, holds
sizes as text (``52B``) and ``tags`` as null where nobody tagged. Inside, the field is spelt right and tags are a tuple.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from truing.data.comparisons import Paths
from truing.data.files import DataError, read_rows, write_bytes, write_rows
from truing.types import Attempt

MISSPELT = "task_descripton_harmlessness_score"
SPELT = "task_description_harmlessness_score"
FIELDS = (
    "transcript",
    "min_harmlessness_score_transcript",
    "num_params",
    "model_type",
    "rating",
    "task_description",
    SPELT,
    "red_team_member_id",
    "is_upworker",
    "tags",
)
"""The released fields in the file's order, spelt right."""


def read_attempts(paths: Paths) -> list[Attempt]:
    """Attempts of files or hub data sets, JSON lines or one array, either spelling; other columns go to ``extra``.

    Raises DataError naming file, line and field on a row without a transcript or with a value that cannot be read.
    """
    out = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for line, row in read_rows(path):
            out.append(row_to_attempt(row, path, line))
    return out


def row_to_attempt(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> Attempt:
    """One attempt from a row of the released schema; an ``id`` column is kept, else the id is the line."""
    transcript = row.get("transcript")
    if not isinstance(transcript, str):
        problem = "missing" if "transcript" not in row else f"expected text, found {transcript!r}"
        raise DataError(file, f"{problem}; the row has the fields {', '.join(row)}", line=line, field="transcript")
    known = {*FIELDS, MISSPELT, "id"}
    score = SPELT if row.get(SPELT) not in (None, "") else MISSPELT
    rating = _number(row, "rating", file, line)
    if rating is not None and not 0 <= rating <= 4:
        raise DataError(file, f"expected 0 to 4, found {row['rating']!r}", line=line, field="rating")
    member = row.get("red_team_member_id")
    if (isinstance(member, float) and member.is_integer()) or (isinstance(member, str) and member.isdigit()):
        member = int(member)  # CSV and data frames with gaps change the type
    return Attempt(
        transcript=transcript,
        rating=rating,
        task_description=str(row.get("task_description") or ""),
        task_description_harmlessness_score=_number(row, score, file, line),
        min_harmlessness_score_transcript=_number(row, "min_harmlessness_score_transcript", file, line),
        model_type=str(row.get("model_type") or ""),
        num_params=str(row.get("num_params") or ""),
        red_team_member_id=None if member == "" else member,
        is_upworker=_flag(row, "is_upworker", file, line),
        tags=_tags(row, file, line),
        id=str(row["id"]) if row.get("id") not in (None, "") else str(line or ""),
        extra={k: v for k, v in row.items() if k not in known},
    )


def _number(row: Mapping[str, Any], name: str, file: object, line: int | None) -> float | None:
    value = row.get(name)
    if value is None or value == "" or value != value:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise DataError(file, f"expected a number, found {value!r}", line=line, field=name) from None


def _flag(row: Mapping[str, Any], name: str, file: object, line: int | None) -> bool | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    if value in (True, False):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise DataError(file, f"expected true or false, found {value!r}", line=line, field=name)


def _tags(row: Mapping[str, Any], file: object, line: int | None) -> tuple[str, ...]:
    value = row.get("tags")
    if value is None or value == "":
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise DataError(file, f"expected a list of texts or null, found {value!r}", line=line, field="tags")
    return tuple(value)


def attempt_to_row(attempt: Attempt, compat: bool = False) -> dict[str, Any]:
    """A row in the released order. ``compat`` misspells the field, writes null for no tags and leaves out the id."""
    row: dict[str, Any] = {name: getattr(attempt, name) for name in FIELDS}
    row["tags"] = list(attempt.tags)
    if compat:
        row = {MISSPELT if k == SPELT else k: v for k, v in row.items()}
        row["tags"] = list(attempt.tags) or None
        return row | dict(attempt.extra)
    return {"id": attempt.id, **row, **attempt.extra}


def write_attempts(path: str | Path, attempts: Iterable[Attempt], compat: bool = False) -> int:
    """Write attempts and return how many: rows by suffix, or with ``compat`` the released file's form.

    ``compat`` is one JSON array, whatever the suffix, gzipped if the name ends in ``.gz``. Atomic.
    """
    rows = [attempt_to_row(a, compat) for a in attempts]
    if not compat:
        return write_rows(path, rows)
    if not rows:
        raise DataError(path, "there are no attempts to write, so no file was made")
    content = json.dumps(rows).encode()
    path = Path(path)
    write_bytes(path, gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content)
    return len(rows)
