"""KeptAnswers: a server's answers in a file, so that a job which ends early asks for none of them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ANSWERS = "answers-so-far.jsonl"
"""Where a run keeps a server's answers until their rows are kept."""


class KeptAnswers:
    """Answers by what was asked, one a line; of the request only its hash is kept. Threads may share it.

    Who has made rows of the answers may remove the file at any time. A line that a kill cut short is left out.
    """

    def __init__(self, file: Path) -> None:
        self._file: Path | None = file
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        data = file.read_bytes() if file.exists() else b""
        for line in data.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._found[row["key"]] = dict(row["answer"])
        if data and not data.endswith(b"\n"):
            self._append("\n")

    def get(self, *asked: Any) -> dict[str, Any] | None:
        """The answer that the file held to this when it was opened; None if it held none."""
        return self._found.get(_key(asked))

    def add(self, answer: Mapping[str, Any], *asked: Any) -> None:
        """Keep an answer. Raises OSError if the disk is full."""
        self._append(json.dumps({"key": _key(asked), "answer": answer}) + "\n")

    def forget(self) -> None:
        """Remove all and keep no more: they lack what is needed, which those to come may not."""
        with self._lock:
            self._found, file, self._file = {}, self._file, None
            if file:
                file.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        with self._lock:
            if self._file:
                with open(self._file, "a", encoding="utf-8") as file:
                    file.write(line)


def _key(asked: tuple[Any, ...]) -> str:
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).hexdigest()
