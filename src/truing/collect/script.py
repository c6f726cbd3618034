"""Arms whose replies stand in a file: for load tests, for annotators in training, and wherever no model is needed.

``script:FILE`` names a JSONL file. A row is ``{"reply": TEXT}`` with, optionally, ``"when"`` (the row is for messages
that contain this text, whatever the case), ``"seconds"`` (how long the reply takes) and ``"score"`` (what a scripted
preference model, ``pm=script:FILE``, says of it). Of the rows for a message the seed chooses one; rows without
``when`` are for the messages that no other row is for. Nothing here needs torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.data.files import DataError, read_rows
from truing.types import Dialogue, Sample


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a script."""

    reply: str
    when: str = ""
    seconds: float = 0.0
    score: float = 0.0


class Script:
    """Replies from a file. Raises ValueError for a file without usable rows, naming file, line and field."""

    def __init__(self, file: str | Path) -> None:
        self.name = str(file)
        self.lines = [_line(file, line, row) for line, row in read_rows(Path(file))]
        if not any(not line.when for line in self.lines):
            raise ValueError(f"{self.name} has no row without 'when', which answers all other messages.")
        self._scores = {line.reply: line.score for line in self.lines}

    def line(self, message: str, seed: int) -> Line:
        """The row that answers a message."""
        said = message.casefold()
        fitting = [line for line in self.lines if line.when and line.when.casefold() in said]
        fitting = fitting or [line for line in self.lines if not line.when]
        return fitting[seed % len(fitting)]

    def sample(
        self,
        prompts: Sequence[Dialogue],
        seeds: Sequence[Sequence[int]],
        on_text: Callable[[int, int, str], None] | None = None,
    ) -> list[list[Sample]]:
        """A reply for every seed of every prompt. All take their time side by side, told word by word."""
        chosen = [[self.line(p.last.text, s) for s in some] for p, some in zip(prompts, seeds, strict=True)]
        pieces: list[tuple[float, int, int, str]] = []
        for i, lines in enumerate(chosen):
            for j, line in enumerate(lines):
                words = line.reply.split(" ")
                for k, word in enumerate(words):
                    piece = word if k == 0 else f" {word}"
                    pieces.append((line.seconds * (k + 1) / len(words), i, j, piece))
        start = time.monotonic()
        for at, i, j, piece in sorted(pieces, key=lambda p: p[0]):
            if (wait := start + at - time.monotonic()) > 0:
                time.sleep(wait)
            if on_text:
                on_text(i, j, piece)
        return [
            [Sample(line.reply, (), None, "stop", s) for line, s in zip(lines, some, strict=True)]
            for lines, some in zip(chosen, seeds, strict=True)
        ]

    def score(self, dialogues: Sequence[Dialogue]) -> list[float]:
        """The scores that the file gives to the last replies; 0 to those that are not in it."""
        return [self._scores.get(d.last.text, 0.0) for d in dialogues]


def _line(file: str | Path, line: int, row: Mapping[str, Any]) -> Line:
    def wrong(field: str, expected: str) -> DataError:
        return DataError(file, f"it is {row.get(field)!r}; expected {expected}.", line=line, field=field)

    for name in ("reply", "when"):
        if not isinstance(row.get(name, "" if name == "when" else None), str):
            raise wrong(name, "text")
    numbers = {name: row.get(name, 0.0) for name in ("seconds", "score")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise wrong(name, "a number")
    if not 0 <= numbers["seconds"] <= 3600:
        raise wrong("seconds", "0 to 3600")
    return Line(row["reply"], row.get("when", ""), float(numbers["seconds"]), float(numbers["score"]))
