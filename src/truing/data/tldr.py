"""Comparisons of summaries, as "Learning to summarize from human feedback" released them, as dialogues.

2204.05862 §5.2: the article is shown in a human turn that asks for a summary, the summary is the assistant's turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing.data.files import DataError

FIELDS = ("info", "summaries", "choice")


def is_tldr(row: Mapping[str, Any]) -> bool:
    """Whether a row holds two summaries of one post and which was chosen."""
    return all(name in row for name in FIELDS)


def from_tldr(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> dict[str, Any]:
    """A row of our own form from one of summarize-from-feedback; other rows come back as they are.

    ``info`` has ``post`` (with ``title`` and ``subreddit``) or ``article``, ``summaries`` two objects with ``text``
    (and ``policy``), ``choice`` is 0 or 1. Raises DataError naming the field.
    """
    if not is_tldr(row):
        return dict(row)
    texts = _summaries(row, file, line)
    choice = row["choice"]
    if isinstance(choice, bool) or choice not in (0, 1):
        raise DataError(file, f"expected 0 or 1, found {choice!r}", line=line, field="choice")
    info = row["info"] if isinstance(row["info"], Mapping) else {}
    choice = int(choice)  # 1.0, from tables that know no whole numbers
    policies = [str(s.get("policy") or "") for s in row["summaries"]]
    name = str(info.get("id") or "")
    return {
        "prompt": [{"role": "user", "content": request(info, file, line)}],
        "chosen": texts[choice],
        "rejected": texts[1 - choice],
        "kind": "helpful",
        "worker": row.get("worker"),
        "arms": [policies[choice], policies[1 - choice]] if all(policies) else None,
        "source": "tldr" if info.get("post") else "news",
        "id": f"{name}:{line}" if name and line is not None else name,
    }


def request(info: Mapping[str, Any], file: object = "row", line: int | None = None) -> str:
    """The human turn that asks for a summary of a post or an article.

    >>> request({"post": "I overslept.", "title": "Late again", "subreddit": "tifu"})
    'Please summarise this post of r/tifu in a few sentences.\\n\\nLate again\\n\\nI overslept.'
    """
    post, article = info.get("post"), info.get("article")
    if isinstance(post, str) and post.strip():
        where = f" of r/{info['subreddit']}" if info.get("subreddit") else ""
        parts = [f"Please summarise this post{where} in a few sentences.", str(info.get("title") or ""), post.strip()]
        return "\n\n".join(part for part in parts if part)
    if isinstance(article, str) and article.strip():
        return f"Please summarise this article in a few sentences.\n\n{article.strip()}"
    raise DataError(file, f"expected 'post' or 'article' with text; it has {', '.join(info)}", line=line, field="info")


def _summaries(row: Mapping[str, Any], file: object, line: int | None) -> list[str]:
    given = row["summaries"]
    texts = [s.get("text") for s in given if isinstance(s, Mapping)] if isinstance(given, list) else []
    if len(texts) != 2 or not all(isinstance(t, str) for t in texts):
        problem = f"expected two objects with 'text', found {given!r:.80}"
        raise DataError(file, problem, line=line, field="summaries")
    return [str(t).strip() for t in texts]
