"""Dumps of question sites and forums as posts: ``Posts.xml``, its JSON lines on the hub, pushshift's JSON lines.

Answers may stand millions of posts after their question, so posts go to a table on disk and come back by thread.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, Self
from xml.etree import ElementTree

from truing.data.files import DataError, find_file, is_hub_name, read_rows

DELETED = ("", "[deleted]", "[removed]")
MOST_TURNS = 7
"""Posts of a thread that a prompt shows: the first, and the last ones before the replies."""
MOST_VOTES = 10**15
"""A score beyond this is no number of votes; the table on disk could not hold it."""
DEEPEST = 200
"""Posts above one another that are looked at; no dump should hold a circle, but one might."""
_PACKED = {b"7z\xbc\xaf": "7z", b"PK\x03\x04": "zip", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCKS = ("p", "div", "pre", "ul", "ol", "blockquote", "table", "tr", "h1", "h2", "h3", "h4", "hr")
_MARKUP = re.compile(r"</?(p|pre|code|a|em|strong|br|hr|img|li|ul|ol|blockquote|h\d|div|sup|sub|i|b)\b[^<>]*>", re.I)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a row that holds its whole question: votes, or a score that was made of them already."""

    text: str
    votes: int
    accepted: bool
    score: int | None
    id: str


class Posts:
    """Posts on disk, in a table that goes when it is closed: put in any order, handed out thread by thread."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="truing-posts-")
        self._table = sqlite3.connect(Path(self._folder.name) / "posts.db", isolation_level=None)
        self._table.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;"
            "CREATE TABLE posts (id TEXT PRIMARY KEY, parent TEXT, votes INT, text TEXT, best TEXT) WITHOUT ROWID;"
        )
        self._table.execute("BEGIN")
        return self

    def __exit__(self, *problem: object) -> None:
        self._table.close()
        self._folder.cleanup()

    def put(self, id: str, parent: str, votes: int, text: str, best: str = "") -> None:
        """A post; a later one of the same id is left out. ``best`` is the id of the answer that was accepted."""
        row = (id, parent, votes, text.encode(errors="replace").decode(), best)
        self._table.execute("INSERT OR IGNORE INTO posts VALUES (?, ?, ?, ?, ?)", row)

    def threads(self) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
        """The id of every post that was answered twice or more, and (id, votes, text) of its answers."""
        self._table.execute("COMMIT")
        self._table.execute("CREATE INDEX by_parent ON posts (parent, id)")
        rows = self._table.execute("SELECT parent, id, votes, text FROM posts WHERE parent != '' ORDER BY parent, id")
        for parent, replies in itertools.groupby(rows, key=lambda row: row[0]):
            some = [row[1:] for row in replies]
            if len(some) > 1:
                yield parent, some

    def chain(self, id: str) -> list[str]:
        """The texts of a post and those above it, oldest first, as far as they are there and were not deleted."""
        texts: list[str] = []
        query = "SELECT parent, text FROM posts WHERE id = ?"
        while len(texts) < DEEPEST and (row := self._table.execute(query, (id,)).fetchone()):
            if row[1].strip() in DELETED:
                break
            texts.append(row[1])
            id = row[0]
        first = texts[-1:] if len(texts) > MOST_TURNS else []
        return [*first, *texts[: MOST_TURNS - len(first)][::-1]]

    def accepted(self, id: str) -> str:
        """The id of the answer that a post's author accepted, or nothing."""
        row = self._table.execute("SELECT best FROM posts WHERE id = ?", (id,)).fetchone()
        return row[0] if row else ""


# ---------------------------------------------------------------- Stack Exchange


def is_xml(file: str) -> bool:
    """Whether a dump is XML (else JSON lines, Parquet or a hub data set)."""
    if is_hub_name(file):
        return False
    with opened(file) as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<")


def put_stack_exchange(file: str, posts: Posts, site: str) -> None:
    """Questions and answers of a site's ``Posts.xml`` (the data dumps); ids are made the site's own.

    Raises DataError for XML that breaks off, that holds no posts, or a post without what it needs.
    """
    there = False
    for row in elements(file, "row"):
        kind = row.get("PostTypeId")
        there = there or kind is not None
        if kind not in ("1", "2"):  # a wiki page, a moderator's note
            continue
        id, parent, body = f"{site}/{_needed(file, row, 'Id')}", "", html_text(row.get("Body") or "")
        if kind == "1":
            body = f"{row.get('Title') or ''}\n\n{body}".strip()
        else:
            parent = f"{site}/{_needed(file, row, 'ParentId')}"
        best = f"{site}/{row.get('AcceptedAnswerId')}" if row.get("AcceptedAnswerId") else ""
        posts.put(id, parent, int(_needed(file, row, "Score", r"-?\d{1,15}")), body, best)
    if not there:
        raise DataError(file, "no posts; expected a Stack Exchange Posts.xml: <posts><row PostTypeId=… Body=…/>…")


def _needed(file: str, row: ElementTree.Element, name: str, form: str = r"\d+") -> str:
    value = row.get(name)
    if value is None or not re.fullmatch(form, value):
        found = "missing" if value is None else f"is {value!r}; expected a whole number"
        raise DataError(file, f"{found} in the row with Id {row.get('Id', 'none')}", field=name)
    return value


def stack_exchange_rows(file: str) -> Iterator[tuple[str, list[Answer]]]:
    """Questions with their answers from rows such as the hub's ``stack-exchange-preferences``.

    Rows are ``{"question", "answers": [{"text", "pm_score", "selected"}]}``, with ``score`` (or ``upvotes``) in place
    of ``pm_score`` and ``accepted`` of ``selected``; or ``{"question", "response_j", "response_k"}``, the better
    first. Raises DataError naming line and field.
    """
    for line, row in read_rows(file):
        question = html_text(_text(file, row, "question", line))
        if title := row.get("title"):
            question = f"{title}\n\n{question}"
        if "response_j" in row:
            both = [html_text(_text(file, row, name, line)) for name in ("response_j", "response_k")]
            answers = [Answer(t, 0, False, s, f"{line}.{s}") for t, s in zip(both, (1, 0), strict=True)]
        else:
            given = row.get("answers")
            if not isinstance(given, list) or not all(isinstance(a, Mapping) for a in given):
                raise DataError(file, f"expected a list of answers, found {given!r:.60}", line=line, field="answers")
            answers = [_answer(file, a, line, i) for i, a in enumerate(given, 1)]
        yield question, answers


def _answer(file: str, row: Mapping[str, Any], line: int, place: int) -> Answer:
    name = next((n for n in ("pm_score", "score", "upvotes", "votes") if row.get(n) is not None), "score")
    number = _whole(file, row, name, line)
    accepted = bool(row.get("selected") or row.get("accepted") or row.get("is_accepted"))
    id = str(row.get("answer_id") or row.get("id") or f"{line}.{place}")
    return Answer(
        html_text(_text(file, row, "text", line)), number, accepted, number if name == "pm_score" else None, id
    )


def _text(file: str, row: Mapping[str, Any], name: str, line: int) -> str:
    if not isinstance(row.get(name), str):
        found = (
            f"expected text, found {row[name]!r:.60}" if name in row else f"missing; found {', '.join(row) or 'none'}"
        )
        raise DataError(file, found, line=line, field=name)
    return row[name].strip()


def _whole(file: str, row: Mapping[str, Any], name: str, line: int) -> int:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_VOTES:  # so not NaN
        if value == int(value):
            return int(value)
    found = f"expected a whole number of votes, found {value!r:.60}" if name in row else "missing"
    raise DataError(file, found, line=line, field=name)


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.verbatim += tag == "pre"
        self.parts.append("\n\n" if tag in _BLOCKS else "\n" if tag == "br" else "\n- " if tag == "li" else "")

    def handle_endtag(self, tag: str) -> None:
        self.verbatim -= tag == "pre" and self.verbatim > 0
        self.parts.append("\n\n" if tag in _BLOCKS else "")

    def handle_data(self, data: str) -> None:
        self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def html_text(text: str) -> str:
    """Words of a post's HTML, paragraphs apart and code as it stands; text without markup stays.

    >>> html_text("<p>Use <code>a &lt; b</code>.</p><ul><li>one</li></ul>"), html_text("a < b, b > c")
    ('Use a < b.\\n\\n- one', 'a < b, b > c')
    """
    if not _MARKUP.search(text):
        return text.strip()
    reader = _Html()
    reader.feed(text)
    reader.close()
    return re.sub(r"\n{2,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(reader.parts))).strip()


# ---------------------------------------------------------------- Reddit


def put_reddit(file: str, posts: Posts) -> int:
    """Submissions and comments of pushshift's JSON lines; returns how many deleted ones were met.

    A submission has ``id``, ``title`` and ``selftext``, a comment ``id``, ``body``, ``parent_id`` (``t3_…`` or
    ``t1_…``) and ``score``. Raises DataError naming line and field.
    """
    deleted = 0
    for line, row in read_rows(file):
        if "parent_id" in row:
            text, parent, kind = unescape(_text(file, row, "body", line)), str(row["parent_id"]), "t1"
        elif "title" in row:
            body = str(row.get("selftext") or "").strip()
            whole = f"{row['title']}\n\n{body if body not in DELETED else ''}".strip()
            text, parent, kind = unescape(whole), "", "t3"
        else:
            problem = f"no submission (title, selftext) and no comment (body, parent_id); it has {', '.join(row)}"
            raise DataError(file, problem, line=line)
        if row.get("id") in (None, ""):
            raise DataError(file, "missing", line=line, field="id")
        gone = text in DELETED
        deleted += gone
        votes = 0 if kind == "t3" else _whole(file, row, "score", line)
        posts.put(f"{kind}_{row['id']}", "" if gone else parent, votes, text)
    return deleted


# ---------------------------------------------------------------- XML


@contextmanager
def opened(file: str | Path) -> Iterator[IO[bytes]]:
    """A dump's bytes, unpacked if it is gzip or bzip2. Raises DataError for other archives and empty files."""
    path = find_file(file)
    with open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if not start:
            raise DataError(file, "the file is empty. What wrote it may have failed.")
        if kind := next((name for magic, name in _PACKED.items() if start.startswith(magic)), ""):
            raise DataError(file, f"this is a {kind} archive; unpack it first, or use gzip or bzip2.")
        packed: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
        try:
            yield packed[start[:2]](raw) if start[:2] in packed else raw  # type: ignore[misc]
        except (EOFError, zlib.error, OSError) as broken:
            if isinstance(broken, OSError) and broken.errno is not None:  # the disk's; those of bzip2 have no number
                raise
            problem = f"the packed data break off or are damaged ({broken}). Copy or download it again."
            raise DataError(file, problem) from None


def elements(file: str, *names: str) -> Iterator[ElementTree.Element]:
    """Elements of these names (without a namespace) as they end, each freed afterwards.

    Raises DataError with the line where the XML is not well formed.
    """
    with opened(file) as stream:
        try:
            parents: list[ElementTree.Element] = []
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                if event == "start":
                    parents.append(element)
                    continue
                parents.pop()
                if element.tag.rpartition("}")[2] in names:
                    yield element
                    element.clear()
                    if parents:  # else the emptied elements would pile up
                        parents[-1].remove(element)
        except ElementTree.ParseError as bad:
            problem = f"not well-formed XML ({str(bad).split(':')[0]}). The dump may be cut short: copy it again."
            raise DataError(file, problem, line=bad.position[0]) from None
