"""The k likeliest next tokens at every place of many texts, read after one beginning that is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from truing.models import tree
from truing.models.engine import HEAD_ROWS, Engine
from truing.models.memory import finish
from truing.models.tree import Ids, Pack

FLOOR = -60_000.0
"""Log-probability that stands for none: finite, and a float16."""


class After:
    """An engine that has read ``beginning`` and keeps its keys and values: texts after it cost their own tokens alone.

    A model that cannot read prefix trees reads the beginning again with each text.
    """

    def __init__(self, engine: Engine, beginning: Ids = ()) -> None:
        ids = np.asarray(beginning, dtype=np.int64)
        self.engine, self.kept, self.last = engine, ids[:-1], ids[-1:]  # the last token predicts a text's first one
        with engine._session():
            self.trunk = engine._trunk(self.kept, engine.budget) if engine.trees else []  # type: ignore[arg-type]

    def tops(self, texts: Sequence[Ids], starts: Sequence[int], k: int, vocab: int) -> list[tuple[np.ndarray, ...]]:
        """For each text the predictions of its tokens ``text[start:]``, each given the beginning and all before it.

        Returns per text ids int32 [T, k] of the likeliest tokens, likeliest first, and log-probabilities float32
        [T, k + 1] in nats, of them and, in the last column, of all else together (`FLOOR` if that is nothing).
        Only the first ``vocab`` ids count: rows that a model has beyond its tokenizer's take no part. A start of 0
        needs a beginning, or raises ValueError.
        """
        if any(start + len(self.last) < 1 for start in starts):
            raise ValueError("A text's first token has nothing before it to be predicted from: starts begin at 1.")
        engine, before = self.engine, self.last if self.trunk else np.concatenate([self.kept, self.last])
        read = [np.concatenate([before, np.asarray(text, dtype=np.int64)]) for text in texts]
        cuts = [start + len(before) - 1 for start in starts]
        out: list[tuple[np.ndarray, ...]] = [()] * len(texts)

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            for pack in tree.packs([read[i] for i in left], budget):
                states = self._states(pack.to(engine.inner.device))
                members = [left[m] for m in pack.members]
                places = [path[cuts[m] : -1] for m, path in zip(members, pack.paths, strict=True)]
                unique, inverse = torch.cat(places).unique(return_inverse=True)
                ids, logprobs = self._tops(states[unique.to(states.device)], weight, k, vocab)
                rows = np.split(inverse.numpy(), np.cumsum([len(place) for place in places])[:-1])
                for member, mine in zip(members, rows, strict=True):
                    out[member] = ids[mine], logprobs[mine]
                yield pack.members

        with engine._session() as weight:
            engine.budget = finish(len(read), some, engine.budget, "reading {} tokens at once")
        return out

    def _states(self, pack: Pack) -> Tensor:
        """Last hidden states [T, H] of a pack that stands after what is kept."""
        if self.trunk:
            return self.engine._run(pack, self.trunk)[0]
        self.engine.tokens_run += len(pack)
        return tree.hidden(self.engine.model, pack)

    def _tops(self, states: Tensor, weight: Tensor, k: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for at in range(0, len(states), HEAD_ROWS):
            logits = tree.logits(self.engine.model, states[at : at + HEAD_ROWS], weight)[:, :vocab]
            found.append([t.cpu().numpy() for t in top_and_rest(logits, k)])
        ids, logprobs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return ids.astype(np.int32), logprobs


def top_and_rest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids [N, k] of the largest of ``logits`` [N, V], and log-probabilities float32 [N, k + 1], all else last."""
    top, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return ids, shares(logits, ids, top)


def shares(logits: Tensor, ids: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Log-probabilities float32 [N, k + 1] of tokens ``ids`` [N, k] and of all others together, with gradient.

    The last column is a log-sum-exp over the others' logits, not log(1 − Σp), which is NaN where the k hold nearly
    all (2204.05862 App A.1); `FLOOR` where there are no others.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    inside = (logits.gather(-1, ids) if chosen is None else chosen) - total
    if ids.shape[-1] == logits.shape[-1]:
        rest = torch.full_like(total, FLOOR)
    else:
        rest = (logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True) - total).clamp(min=FLOOR)
    return torch.cat([inside, rest], -1)
