"""What the teacher of context distillation said, on disk: texts as token ids, and its likeliest tokens at each place.

Shards are safetensors files, each written whole or not at all, so that a killed job goes on with the next one. A place
takes 2·k bytes of ids (4·k beyond 65,536 tokens) and 2·(k + 1) of log-probabilities: 202 bytes for the top 50.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from truing.data.lessons import Lesson
from truing.models.lm import LM
from truing.models.tops import After
from truing.runs import atomic_write
from truing.text import encode
from truing.types import Dialogue, Turn

SHARD = 128
"""Texts in one file."""
FACTS = "cache.json"
MOST_IN_SHORT = 1 << 16


@dataclass(frozen=True)
class Text:
    """One lesson as int32 ids: what the student reads, and from where on it is taught; what the teacher reads.

    ``prompted[-(len(plain) - start):]`` is ``plain[start:]``: the same tokens, predicted after the prompt and without
    it.
    """

    plain: np.ndarray
    prompted: np.ndarray
    start: int


def with_prompt(dialogue: Dialogue, prompt: str) -> Dialogue:
    """The dialogue after a prompt, which stands before its own system turn if it has one."""
    if not prompt:
        return dialogue
    own = dialogue.turns and dialogue.turns[0].role == "system"
    words = f"{prompt}\n\n{dialogue.turns[0].text}" if own else prompt
    return Dialogue((Turn("system", words), *(dialogue.turns[1:] if own else dialogue.turns)))


def texts_of(lessons: Sequence[Lesson], lm: LM, prompt: str, max_length: int) -> list[Text]:
    """Lessons as token ids, cut after ``max_length`` tokens; those without a token to learn from are left out.

    The two readings are laid over one another from their ends, so that a model's own way of opening a dialogue (a BOS,
    a template's default system turn) cannot shift them.
    """
    out = []
    for lesson in lessons:
        plain, prompted = (
            np.array(encode(d, lm.tokenizer, lm.format), dtype=np.int32)
            for d in (lesson.dialogue, with_prompt(lesson.dialogue, prompt))
        )
        start = max(1, len(plain) - _same_end(plain, prompted))
        over = max(0, len(plain) - max_length)
        plain, prompted = plain[: len(plain) - over], prompted[: len(prompted) - over]
        if len(plain) > start:
            out.append(Text(plain, prompted, start))
    return out


def _same_end(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = a[len(a) - n :][::-1] != b[len(b) - n :][::-1]
    return int(differs.argmax()) if differs.any() else n


def beginning_of(texts: Sequence[Text]) -> np.ndarray:
    """The tokens with which every prompted text begins, before the first that is taught."""
    most = min(len(t.prompted) - (len(t.plain) - t.start) for t in texts)
    first = texts[0].prompted[:most]
    for text in texts:
        differs = text.prompted[: len(first)] != first
        first = first[: int(differs.argmax())] if differs.any() else first
    return first


class TeacherCache:
    """A folder of shards that belongs to one teacher, one prompt and these texts, in this order.

    Raises ValueError if the folder holds another's.
    """

    def __init__(self, folder: Path, texts: Sequence[Text], k: int, vocab: int, facts: Mapping[str, Any]) -> None:
        self.folder, self.texts, self.k, self.vocab = folder, texts, min(k, vocab), vocab
        digest = hashlib.sha256()
        for text in texts:
            digest.update(
                np.array([len(text.prompted), text.start], dtype=np.int32).tobytes() + text.prompted.tobytes()
            )
        self.facts = {**facts, "top_k": self.k, "texts": len(texts), "tokens": digest.hexdigest()[:16]}
        self.sizes = np.array([len(t.plain) - t.start for t in texts])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FACTS
        if path.exists() and (held := json.loads(path.read_text())) != self.facts:
            odd = ", ".join(k for k in self.facts if held.get(k) != self.facts[k])
            raise ValueError(
                f"{folder} holds what another teacher said, or said of other texts ({odd} differ). Give another "
                "--teacher-cache, or remove that folder."
            )
        atomic_write(path, json.dumps(self.facts, indent=1) + "\n")
        self._shard = functools.lru_cache(64)(lambda i: safe_open(self._path(i), framework="np"))

    @property
    def shards(self) -> int:
        """How many files it has when it is whole."""
        return -(-len(self.texts) // SHARD)

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [i for i in range(self.shards) if not self._path(i).exists()]

    def fill(self, teacher: LM, stop: Callable[[int, int], bool] = lambda done, of: False) -> bool:
        """Let the teacher read what is missing; ``stop`` is asked after each shard. Whether the cache is whole.

        The beginning that all prompted texts share is read once for the whole job.
        """
        missing = self.missing()
        if not missing:
            return True
        beginning = beginning_of(self.texts)
        after = After(teacher.engine, beginning)
        for done, shard in enumerate(missing, 1):
            some = self.texts[shard * SHARD : (shard + 1) * SHARD]
            tails = [t.prompted[len(beginning) :] for t in some]
            starts = [len(tail) - (len(t.plain) - t.start) for tail, t in zip(tails, some, strict=True)]
            self._write(shard, some, after.tops(tails, starts, self.k, self.vocab))
            if stop(done, len(missing)) and done < len(missing):
                return False
        return True

    def _write(self, shard: int, texts: Sequence[Text], tops: Sequence[tuple[np.ndarray, ...]]) -> None:
        ids = np.concatenate([ids for ids, _ in tops])
        columns = {
            "tokens": np.concatenate([t.plain for t in texts]),
            "ids": ids.astype(np.uint16 if self.vocab <= MOST_IN_SHORT else np.int32),
            "logprobs": np.concatenate([logprobs for _, logprobs in tops]).astype(np.float16),
        }
        atomic_write(self._path(shard), save(columns))

    def rows(self, text: int) -> tuple[np.ndarray, np.ndarray]:
        """Of one text: ids int64 [T, k], log-probabilities float32 [T, k + 1] of them and of all else."""
        shard, place = divmod(text, SHARD)
        first = int(self.sizes[shard * SHARD : shard * SHARD + place].sum())
        found = [self._shard(shard).get_slice(n)[first : first + int(self.sizes[text])] for n in ("ids", "logprobs")]
        return found[0].astype(np.int64), found[1].astype(np.float32)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05}.safetensors"
