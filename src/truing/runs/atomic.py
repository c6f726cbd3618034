"""Files and folders written whole or not at all, and JSON that never holds NaN."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader, a kill or a full disk sees the old file or the new one, never a part.

    A device or a pipe (``/dev/stdout``) is written to, never replaced. Raises OSError that says what to do if the
    disk is full.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise explained(problem, path) from None


def append(path: Path, lines: str) -> None:
    """Add lines to a file that grows; ``read_rows`` leaves out a line that a kill or a full disk cuts short."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise explained(problem, path) from None


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to write into; it becomes ``path`` (replacing an older one) only when the block ends well."""
    path = Path(path)
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        _sync_folder(part)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as problem:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise explained(problem, path) from None


def explained(problem: BaseException, path: Path) -> BaseException:
    """A full disk in words for people; every other problem as it is."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            problem.errno,
            f"The disk is full: {path} was not written and what was there before is untouched. "
            "Free some space and run the same command again; it goes on where it stopped.",
        )
    return problem


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite(value: Any) -> Any:
    """A JSON number for floats, numpy and torch scalars; None for what is not finite."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_row(number: Any) -> dict[str, Any]:
    """One entry of a summary's ``numbers``: value, low, high, n, unit; from an Interval, its dict or a number."""
    if hasattr(number, "as_dict"):
        number = number.as_dict()
    row = dict(number) if isinstance(number, Mapping) else {"value": number}
    row = {"value": None, "low": None, "high": None, "n": None, "unit": "", **row}
    return {key: finite(value) for key, value in row.items()}


def as_json(value: Any) -> str:
    """Indented JSON with a final newline. Raises ValueError on NaN."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file up to one that cannot be read (a kill cut it short); none if it is missing."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():  # splitlines() would also cut at U+2028
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError:  # no JSON, or cut inside a character
            break
    return rows
