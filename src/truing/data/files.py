"""Rows in files: JSONL, JSON lists, CSV, Parquet, each also gzipped, and data sets of the Hugging Face hub.

A file that cannot be read ends in one message that names the file, the line, the field and what to do; a file is
written whole or not at all. The hub is asked only for names of the form ``owner/name[/folder][:split]`` that are
neither a file nor look like one.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Row = tuple[int, dict[str, Any]]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_HUB = re.compile(r"^[\w.-]+/[\w.-]+(?:/[\w./-]+)?(?::[\w\[\]:%-]+)?$")
_LISTS = ("answers", "choices", "tags", "arms", "keywords")
_DIALOGUES = ("prompt", "chosen", "rejected", "messages", "dialogue")

_PACKED = {b"PK\x03\x04": "zip", b"\xfd7zX": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


class DataError(ValueError):
    """Something is wrong with a file; the message names file, line and field, and says what to do.

    ``problem`` is the message without the file's name and line.
    """

    def __init__(self, file: object, problem: str, *, line: int | None = None, field: str | None = None):
        self.file, self.line, self.field = str(file), line, field
        self.problem = f"field {field!r}: {problem}" if field else problem
        where = f"{file}, line {line}" if line is not None else f"{file}"
        super().__init__(f"{where}: {self.problem}")


def read_rows(name: str | Path, on_bad: Callable[[DataError], None] | None = None) -> Iterator[Row]:
    """Rows of a file or hub data set as (line, fields); the line counts from 1 (rows in Parquet and JSON lists).

    A byte-order mark, Windows line ends and blank lines are fine. Raises DataError (with the line) on what is not a
    row, FileNotFoundError (with near names) if there is no such file. ``on_bad`` is told of later lines of JSONL that
    are no rows, in place of raising; a file whose first line is none is no JSONL at all.
    """
    if is_hub_name(name):
        yield from _hub_rows(str(name))
        return
    path = find_file(name)
    count = 0
    for count, row in enumerate(_file_rows(path, on_bad), 1):  # noqa: B007
        yield row
    if not count:
        raise DataError(name, "the file has no rows. It may be the wrong file, or what wrote it failed.")


def is_hub_name(name: str | Path) -> bool:
    """Whether ``name`` is meant as a hub data set: ``owner/name``, no such file, no file's suffix, no such folder."""
    text = str(name)
    if isinstance(name, Path) or not _HUB.match(text) or os.path.exists(text):
        return False
    return _suffix(Path(text)) == "" and not text.startswith((".", "/")) and not Path(text).parent.is_dir()


def find_file(name: str | Path) -> Path:
    """The path of an existing file. Raises FileNotFoundError with near names, DataError for a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if _suffix(p))
        what = f"It holds {', '.join(inside[:8])}" if inside else "It holds no data files"
        raise DataError(name, f"this is a folder; name a file. {what}.")
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else None
        names = sorted(p.name for p in folder.iterdir()) if folder else []
        near = difflib.get_close_matches(path.name, names, 3, 0.5)
        hint = f" Near it: {', '.join(near)}." if near else ""
        where = (
            f" in {'this folder' if str(folder) == '.' else folder}" if folder else f": {path.parent} is not a folder"
        )
        raise FileNotFoundError(f"{name}: there is no such file{where}.{hint} Hub data sets are named owner/name.")
    return path


def _suffix(path: Path) -> str:
    """The format's suffix, without ``.gz``; empty if it is not one we know."""
    name = path.name.lower().removesuffix(".gz")
    return next((s for s in SUFFIXES if name.endswith(s)), "")


def _file_rows(path: Path, on_bad: Callable[[DataError], None] | None) -> Iterator[Row]:
    with open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if not start:
            raise DataError(path, "the file is empty. What wrote it may have failed.")
        if start == b"PAR1" or _suffix(path) == ".parquet":
            yield from _parquet_rows(path)
            return
        if path.name.lower().endswith(".gz") and start[:2] != b"\x1f\x8b":
            raise DataError(path, "the name ends in .gz, but this is not a gzip file. Rename it or compress it.")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(path, "this is UTF-16 text; save it as UTF-8.")
        if kind := next((name for magic, name in _PACKED.items() if start.startswith(magic)), ""):
            raise DataError(path, f"this is a {kind} archive; unpack it first, or use gzip.")
        file = gzip.GzipFile(fileobj=raw) if start[:2] == b"\x1f\x8b" else raw
        lines = _lines(path, file)  # type: ignore[arg-type]
        yield from _csv_rows(path, lines) if _suffix(path) == ".csv" else _json_rows(path, lines, on_bad)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; says where a broken gzip or a byte that is no UTF-8 stands."""
    number = 0
    try:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as bad:
                problem = f"byte {bad.start + 1} (0x{raw[bad.start]:02x}) is not UTF-8. Save the file as UTF-8."
                raise DataError(path, problem, line=number) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as broken:
        problem = f"the gzip data break off or are damaged after this line ({broken}). Copy or download it again."
        raise DataError(path, problem, line=number) from None


def _json_rows(
    path: Path, lines: Iterator[tuple[int, str]], on_bad: Callable[[DataError], None] | None
) -> Iterator[Row]:
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        if first and (line.lstrip().startswith("[") or (_suffix(path) == ".json" and not _is_object(line))):
            rest = line + "".join(text for _, text in lines)
            yield from _array_rows(path, rest, number)
            return
        try:
            row = _object(path, line, number)
        except DataError as bad:
            if first or on_bad is None:
                raise
            on_bad(bad)
            continue
        first = False
        yield number, row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(path: Path, line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as bad:
        shown = line.strip()[:60]
        hint = "" if line.lstrip().startswith("{") else f" Files may be {', '.join(SUFFIXES)}, each also with .gz."
        raise DataError(
            path, f"not valid JSON ({bad.msg} at column {bad.colno}): {shown!r}.{hint}", line=number
        ) from None
    except RecursionError:
        raise DataError(path, "JSON nested too deeply to be a row of data", line=number) from None
    if not isinstance(value, dict):
        raise DataError(path, f"expected an object {{…}}, found {_a(value)}", line=number)
    return value


def _array_rows(path: Path, text: str, first: int) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as bad:
        problem = f"not valid JSON ({bad.msg} at column {bad.colno})"
        raise DataError(path, problem, line=first + bad.lineno - 1) from None
    except RecursionError:
        raise DataError(path, "JSON nested too deeply to be rows of data", line=first) from None
    if isinstance(rows, dict):
        lists = [k for k, v in rows.items() if isinstance(v, list)]
        if len(lists) != 1:
            yield first, rows
            return
        rows = rows[lists[0]]
    if not isinstance(rows, list):
        raise DataError(path, f"expected a list of objects, found {_a(rows)}", line=first)
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(path, f"item {i} of the list should be an object {{…}}, it is {_a(row)}", line=i)
        yield i, row


def _csv_rows(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader((text for _, text in lines), strict=True)
    header: list[str] | None = None
    try:
        before = 0
        for cells in reader:
            number, before = before + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = [c.strip() for c in cells]
                if len(set(header)) != len(header):
                    raise DataError(path, f"two columns have the same name: {', '.join(header)}", line=number)
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header names {len(header)} columns ({', '.join(header)})"
                raise DataError(path, problem + ". Quote cells that hold commas.", line=number)
            row = {k: _cell(k, v) for k, v in zip(header, cells, strict=True)}
            if "choices" in row and str(row.get("answer")).isdigit():  # an index, not the text of an option
                row["answer"] = int(row["answer"])
            yield number, row
    except csv.Error as bad:
        raise DataError(path, f"not valid CSV ({bad})", line=reader.line_num) from None


def _cell(name: str, text: str) -> Any:
    """A CSV cell; lists and messages are JSON inside it."""
    if text.startswith("[") and name in (*_LISTS, *_DIALOGUES):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            if name in _LISTS or all(isinstance(v, dict) and "role" in v for v in value):
                return value
    return text


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as bad:
        raise DataError(path, f"not a readable Parquet file ({bad})") from None


def _hub_rows(name: str) -> Iterator[Row]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(name, "hub data sets need the package datasets: pip install datasets") from None
    name, _, split = name.partition(":")
    owner, short, *folder = name.split("/")
    options = {"data_dir": "/".join(folder)} if folder else {}
    try:
        data = datasets.load_dataset(f"{owner}/{short}", split=split or "train", **options)
    except Exception as bad:  # the hub's errors have no common class
        first = (str(bad).strip().splitlines() or [type(bad).__name__])[0]
        hint = "It is no file here either; check the name, or the network and `hf auth login`."
        raise DataError(name, f"the hub data set could not be read ({first}). {hint}") from None
    for number, row in enumerate(data, 1):
        yield number, dict(row)


def _a(value: object) -> str:
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


# ---------------------------------------------------------------- writing


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows by suffix (.jsonl, .json, .csv, .parquet; .gz for all but Parquet) and return how many.

    The file appears whole or not at all; equal rows give equal bytes. Raises DataError on an unknown suffix, no
    rows, or rows that the format cannot hold, OSError on a full disk.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not suffix or (suffix == ".parquet" and path.name.endswith(".gz")):
        raise DataError(path, f"unknown kind of file; name it {', '.join(SUFFIXES)}, or .jsonl.gz")
    found = [dict(row) for row in rows]
    if not found:
        raise DataError(path, "there are no rows to write, so no file was made")
    content = _CONTENT[suffix](path, found)
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    write_bytes(path, content)
    return len(found)


def stream_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """As ``write_rows``, for more rows than memory holds: one at a time, to .jsonl or .jsonl.gz only."""
    path = Path(path)
    if not path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        raise DataError(path, "so many rows are written one by one; name it .jsonl or .jsonl.gz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist. Make it first.")
    part, count = path.with_name(f".{path.name}.tmp-{os.getpid()}"), 0
    try:
        with open(part, "wb") as raw:
            packed = path.name.lower().endswith(".gz")
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else raw
            for count, row in enumerate(rows, 1):  # noqa: B007
                file.write(f"{_json_line(dict(row))}\n".encode())
            if packed:
                file.close()
            raw.flush()
            os.fsync(raw.fileno())
        if not count:
            raise DataError(path, "there are no rows to write, so no file was made")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def write_bytes(path: Path, content: bytes) -> None:
    """A temporary file beside ``path``, flushed to the disk, then renamed."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist. Make it first.")
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for row in rows for k in row))


def _json_line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        line = json.dumps(row)
    return line


def _as_jsonl(path: Path, rows: list[dict[str, Any]]) -> bytes:
    return "".join(_json_line(row) + "\n" for row in rows).encode()


def _as_json(path: Path, rows: list[dict[str, Any]]) -> bytes:
    return ("[" + ",\n ".join(_json_line(row) for row in rows) + "]\n").encode()


def _as_csv(path: Path, rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = _columns(rows)
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(c) for c in columns]
        writer.writerow([json.dumps(c, ensure_ascii=False) if isinstance(c, (list, tuple, dict)) else c for c in cells])
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError:
        raise DataError(
            path, "a text holds half of a surrogate pair, which CSV cannot. Write .jsonl instead."
        ) from None


def _as_parquet(path: Path, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = _columns(rows)
    try:
        table = pyarrow.Table.from_pylist([{c: row.get(c) for c in columns} for row in rows])
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer)
    except (pyarrow.ArrowException, UnicodeError) as bad:
        raise DataError(path, f"Parquet columns hold one type each ({bad}). Write .jsonl instead.") from None
    return buffer.getvalue()


_CONTENT = {".jsonl": _as_jsonl, ".ndjson": _as_jsonl, ".json": _as_json, ".csv": _as_csv, ".parquet": _as_parquet}
