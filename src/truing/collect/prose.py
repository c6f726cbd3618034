"""Texts that an administrator writes, as blocks for a page: a little Markdown and no markup of any other kind.

Blank lines divide blocks. ``# Heading``, ``- points``, ``> warning`` and paragraphs; nothing else is special, and the
template escapes it all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """``kind`` is heading, points, warning or paragraph; ``lines`` are its points, else one text."""

    kind: str
    lines: tuple[str, ...]


_MARKS = (("heading", "# "), ("points", "- "), ("warning", "> "))


def visible(text: str) -> str:
    """A text in which characters that turn the direction of all that follows are made visible.

    >>> visible("\\u202egnp.exe") == "\\ufffdgnp.exe"
    True
    """
    return re.sub("[\u202d\u202e]", "\ufffd", text)


def blocks(text: str) -> list[Block]:
    """The blocks of a text.

    >>> blocks("# Hello\\n\\n- one\\n- two")
    [Block(kind='heading', lines=('Hello',)), Block(kind='points', lines=('one', 'two'))]
    """
    found = []
    for part in re.split(r"\n\s*\n", text.strip()):
        kind, mark = next(((kind, mark) for kind, mark in _MARKS if part.startswith(mark)), ("paragraph", ""))
        lines: list[str] = []
        for line in filter(None, (line.strip() for line in part.splitlines())):
            if lines and not (kind == "points" and line.startswith(mark)):
                lines[-1] += " " + (line if kind == "points" else line.removeprefix(mark))
            else:
                lines.append(line.removeprefix(mark))
        if lines:
            found.append(Block(kind, tuple(lines)))
    return found
