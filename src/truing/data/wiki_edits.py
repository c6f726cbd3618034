"""Reverted edits in Wikipedia's revision dumps: what somebody wrote, and what was put back in its place.

A revision that has an earlier revision's text (the same sha1) reverts all between them; so does, for the edit just
before it, one whose comment says so. A revert that was itself reverted says nothing and is left out.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from truing.data.dumps import elements, is_xml
from truing.data.files import DataError, read_rows

WINDOW = 15
"""Revisions back in which an equal text is looked for."""
MOST_CHARACTERS = 3000
"""A passage longer than this on either side makes no pair."""
BEFORE = 1000
"""Characters of the article shown before the passage."""
_SAYS_SO = re.compile(
    r"^\W*(?:/\*.*?\*/)?\W*(?:revert(?:ed|ing)?|undid revision|undo|rv[vt]?|rollback|rolled back)\b", re.I
)


@dataclass(frozen=True, slots=True)
class Passage:
    """The same place of an article after its revert (``good``) and before it (``bad``); ``before`` comes first."""

    title: str
    before: str
    good: str
    bad: str
    id: str


@dataclass(slots=True)
class _Revision:
    sha1: str
    text: str
    id: str
    undone: bool = False
    pair: Passage | None = None


def reverts(file: str, counts: Counter[str]) -> Iterator[Passage]:
    """Every revert of a revision dump (XML, also .gz and .bz2) or of JSON lines, streamed article by article.

    JSON rows are ``{"title", "id", "text", "comment"}`` and may have ``sha1``; an article's revisions stand together,
    oldest first. ``counts`` hears of threads (articles), pairs that were undone and unreadable ones. Raises DataError
    for files that are no such dump.
    """
    title, recent = "", deque[_Revision]()
    for page, id, sha1, comment, text in _from_xml(file) if is_xml(file) else _from_rows(file):
        if page != title:
            yield from (found for r in recent if (found := _settled(r, counts)))
            title, recent = page, deque[_Revision]()
            counts["threads"] += 1
        new = _Revision(sha1, text, id)
        _judge(new, recent, comment, title, counts)
        recent.append(new)
        if len(recent) > WINDOW and (found := _settled(recent.popleft(), counts)):
            yield found
    yield from (found for r in recent if (found := _settled(r, counts)))


def _judge(new: _Revision, recent: deque[_Revision], comment: str, title: str, counts: Counter[str]) -> None:
    """Mark what a new revision undoes, and make its pair with the last of it."""
    if not recent or new.sha1 == recent[-1].sha1:  # the first, or nothing changed
        return
    back = next((i for i in range(1, len(recent)) if recent[-1 - i].sha1 == new.sha1), 0)
    if not back and not _SAYS_SO.match(comment):
        return
    for revision in list(recent)[-(back or 1) :]:
        revision.undone = True
    new.pair = passage(title, new.text, recent[-1].text, new.id)
    counts["unreadable"] += new.pair is None


def _settled(revision: _Revision, counts: Counter[str]) -> Passage | None:
    """A revision's pair, once nothing can undo it any more."""
    if revision.pair is not None and revision.undone:
        counts["undone"] += 1
        return None
    return revision.pair


def passage(title: str, good: str, bad: str, id: str = "") -> Passage | None:
    """Where two versions differ, whole lines with one line around them; None if that is longer than a passage.

    >>> found = passage("Tea", "Tea.\\nIt is a drink.\\nEnd.", "Tea.\\nIt is bad!!!\\nEnd.")
    >>> found.good, found.bad
    ('It is a drink.\\nEnd.', 'It is bad!!!\\nEnd.')
    """
    a, b = good.splitlines(), bad.splitlines()
    shortest = min(len(a), len(b))
    start = next((i for i in range(shortest) if a[i] != b[i]), shortest)
    end = next((i for i in range(shortest - start) if a[-1 - i] != b[-1 - i]), shortest - start)
    after = 1 if end else 0
    one, two = ("\n".join(x[start : len(x) - end + after]).strip() for x in (a, b))
    if not one or one == two or max(len(one), len(two)) > MOST_CHARACTERS:
        return None
    before = "\n".join(a[:start])[-BEFORE:]
    return Passage(title, before, one, two or "(blank)", id)


Row = tuple[str, str, str, str, str]


def _from_xml(file: str) -> Iterator[Row]:
    """(title, id, sha1, comment, text) of every revision of an article; talk and other pages are left out."""
    pages = False
    title, namespace = "", "0"
    for element in elements(file, "title", "ns", "revision"):
        kind = _name(element)
        pages = True
        if kind == "title":
            title, namespace = element.text or "", "0"
        elif kind == "ns":
            namespace = element.text or "0"
        elif namespace == "0":
            parts = {_name(child): child.text or "" for child in element}
            if "id" not in parts:
                raise DataError(file, f"missing in a revision of {title!r}", field="id")
            if any("deleted" in child.attrib for child in element if _name(child) == "text"):
                continue  # nobody can see it any more
            text = parts.get("text", "")
            yield title, parts["id"], parts.get("sha1") or _sha1(text), parts.get("comment", ""), text
    if not pages:
        raise DataError(file, "no pages; expected a revision dump: <mediawiki><page><title>…<revision>…<text>…")


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _from_rows(file: str) -> Iterator[Row]:
    for line, row in read_rows(file):
        title, text = (_field(file, row, name, line) for name in ("title", "text"))
        id = str(row.get("id") or row.get("rev_id") or line)
        yield title, id, str(row.get("sha1") or _sha1(text)), str(row.get("comment") or ""), text


def _field(file: str, row: Mapping[str, Any], name: str, line: int) -> str:
    if not isinstance(row.get(name), str):
        problem = f"expected text, found {row[name]!r:.60}" if name in row else f"missing; it has {', '.join(row)}"
        raise DataError(file, problem, line=line, field=name)
    return row[name]


def _sha1(text: str) -> str:
    """Any name of the text will do: a dump gives sha1 for all revisions or for none."""
    return base64.b32encode(hashlib.sha1(text.encode(errors="replace"), usedforsecurity=False).digest()).decode()
