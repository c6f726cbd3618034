"""Comparisons as token sequences: batches that keep a prompt's pairs together, packs, and a frozen trunk's states."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from truing.models import split, tree
from truing.models.draw import Trace
from truing.models.heads import PreferenceModel
from truing.models.memory import STATES_SHARE, free_memory
from truing.models.tree import Pack
from truing.runs import atomic_write
from truing.train.loop import rng
from truing.types import Comparison, Dialogue

Precision = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Pairs:
    """P comparisons over S distinct token sequences: ``chosen[p]`` and ``rejected[p]`` are indices of sequences.

    ``groups`` lists, for each prompt in order of appearance, the pairs that answer it.
    """

    sequences: list[np.ndarray]
    chosen: np.ndarray
    rejected: np.ndarray
    groups: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def tokens(self) -> int:
        """Tokens of all pairs read one reply at a time."""
        lengths = np.array([len(s) for s in self.sequences])
        return int(lengths[self.chosen].sum() + lengths[self.rejected].sum())


def tokenize(comparisons: Sequence[Comparison], ids_of: Callable[[Dialogue], Sequence[int]]) -> Pairs:
    """Token sequences of comparisons; a reply that stands in many pairs is tokenized and later scored once."""
    places: dict[Dialogue, int] = {}
    sequences: list[np.ndarray] = []

    def place(dialogue: Dialogue) -> int:
        if dialogue not in places:
            places[dialogue] = len(sequences)
            sequences.append(np.asarray(ids_of(dialogue), dtype=np.int64))
        return places[dialogue]

    groups: dict[Dialogue, list[int]] = {}
    for i, c in enumerate(comparisons):
        groups.setdefault(c.prompt, []).append(i)
    chosen = np.array([place(c.chosen_dialogue) for c in comparisons], dtype=np.int64)
    rejected = np.array([place(c.rejected_dialogue) for c in comparisons], dtype=np.int64)
    return Pairs(sequences, chosen, rejected, [np.array(g) for g in groups.values()])


def batches(pairs: Pairs, batch_size: int, seed: int, epoch: int, times: np.ndarray | None = None) -> list[np.ndarray]:
    """Pair indices of every batch of an epoch: prompts in an order that follows from (seed, epoch), each one's pairs
    side by side, cut every ``batch_size`` pairs.

    ``times`` [P] says how often each pair is seen; its second time stands elsewhere in the order.
    """
    groups = pairs.groups
    if times is not None:
        rounds = range(1, int(times.max(initial=0)) + 1)
        groups = [left for i in rounds for group in pairs.groups if len(left := group[times[group] >= i])]
    order = rng(seed, epoch).permutation(len(groups))
    line = np.concatenate([groups[g] for g in order])
    return [line[i : i + batch_size] for i in range(0, len(line), batch_size)]


def chunks(pairs: Pairs, batch: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut a batch into runs of pairs that each fit into one pack of ``budget`` tokens, both replies of a pair in it.

    A pair longer than the budget stands alone. The cut never changes the gradient, only the memory it takes.
    """
    out: list[list[int]] = [[]]
    held: list[int] = []
    size = 0
    for pair in batch.tolist():
        new = [s for s in dict.fromkeys((int(pairs.chosen[pair]), int(pairs.rejected[pair]))) if s not in held]
        grown = _grown(pairs, held, new)
        if out[-1] and size + grown > budget:
            out.append([])
            held, size = [], 0
            new = list(dict.fromkeys((int(pairs.chosen[pair]), int(pairs.rejected[pair]))))
            grown = _grown(pairs, held, new)
        out[-1].append(pair)
        held += new
        size += grown
    return [np.array(chunk) for chunk in out]


def shares(pairs: Pairs, batch: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut a batch into ``count`` runs of pairs of about as many tokens, one for each process; some may be empty."""
    if count == 1:
        return [batch]
    held: list[int] = []
    grown = []
    for pair in batch.tolist():
        new = [s for s in dict.fromkeys((int(pairs.chosen[pair]), int(pairs.rejected[pair]))) if s not in held]
        grown.append(_grown(pairs, held, new))
        held += new
    middle = np.cumsum(grown) - np.array(grown) / 2
    owner = np.minimum(middle * count / max(1, sum(grown)), count - 1).astype(int)
    return [batch[owner == rank] for rank in range(count)]


def _grown(pairs: Pairs, held: Sequence[int], new: Sequence[int]) -> int:
    """Tokens that sequences ``new`` add to a prefix tree of the sequences ``held``."""
    there = [pairs.sequences[s] for s in held]
    grown = 0
    for s in new:
        row = pairs.sequences[s]
        grown += len(row) - max((_shared(row, other) for other in there), default=0)
        there.append(row)
    return grown


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def pack_sequences(sequences: Sequence[np.ndarray], members: Sequence[int], budget: int | None = None) -> list[Pack]:
    """Packs of some of the sequences; their ``members`` are indices into ``sequences``. One pack without a budget."""
    rows = [sequences[m] for m in members]
    packs = tree.pack(rows, budget=budget or sum(map(len, rows)))  # type: ignore[arg-type]
    for pack in packs:
        pack.members = [members[m] for m in pack.members]
    return packs


@dataclass
class Kept:
    """What a frozen trunk has read: a sequence's int64 ids as bytes → states of its pack, places of its tokens there.

    Belongs to the trunk that filled it first: another one is refused.
    """

    states: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict)
    model: Any = None
    k: int = 0

    def owned_by(self, model: Any, k: int) -> Self:
        """Itself, for a trunk with the same lower ``k`` layers. Raises ValueError for any other."""
        if self.model is None:
            self.model, self.k = model, k
        elif self.k != k or not split.same_trunk(self.model, model, k):
            raise ValueError("These states were read by another trunk: its lower layers are not this model's.")
        return self

    def learn(self, trace: Trace, model: Any) -> None:
        """Add what ``model`` has read while it sampled: replies of one prompt as one pack, their prompt once."""
        self.owned_by(model, trace.layers)
        by_prompt: dict[int, list[tuple[list[int], Tensor]]] = {}
        for (prompt, _), read in trace.found.items():
            by_prompt.setdefault(prompt, []).append(read)
        for reads in by_prompt.values():
            (pack,) = tree.pack([ids for ids, _ in reads], budget=sum(len(ids) for ids, _ in reads))
            states = torch.empty(len(pack), reads[0][1].shape[1], dtype=reads[0][1].dtype)
            for member, path in zip(pack.members, pack.paths, strict=True):
                ids, found = reads[member]
                states[path] = found.cpu()
                self.states.setdefault(np.array(ids, dtype=np.int64).tobytes(), (states, path))

    def save(self, path: Path) -> None:
        """Write everything to one file, whole or not at all."""
        tensors = list({id(states): states for states, _ in self.states.values()}.values())
        starts = dict(zip(map(id, tensors), np.cumsum([0, *map(len, tensors)]).tolist(), strict=False))
        ids = [np.frombuffer(name, dtype=np.int64) for name in self.states]
        places = [places + starts[id(states)] for states, places in self.states.values()]
        table = {
            "states": torch.cat(tensors) if tensors else torch.empty(0, 0),
            "ids": torch.from_numpy(np.concatenate([*ids, np.empty(0, dtype=np.int64)])),
            "places": torch.cat([*places, torch.empty(0, dtype=torch.long)]),
            "lengths": torch.tensor([len(some) for some in ids], dtype=torch.long),
            "k": torch.tensor(self.k),
        }
        atomic_write(path, safetensors.torch.save(table))

    @classmethod
    def load(cls, path: Path, model: Any, k: int) -> Self:
        """What ``save`` wrote, if it was of a trunk of ``k`` layers, those of ``model``; else nothing."""
        table = safetensors.torch.load_file(path)
        if int(table["k"]) != k:
            return cls()
        kept = cls().owned_by(model, k)
        sizes = table["lengths"].tolist()
        for ids, places in zip(table["ids"].split(sizes), table["places"].split(sizes), strict=True):
            kept.states[ids.numpy().tobytes()] = table["states"], places
        return kept


class Trunk:
    """States of all sequences after the frozen lower ``k`` layers: computed once, handed out pack by pack.

    They are kept in memory in the dtype they were computed in. Where they would take more than half of the memory
    that is free they are computed at every use instead; ``say`` is told either way. k = 0: nothing is frozen.
    ``kept`` holds what an earlier trunk of the same lower layers has read, and is added to. One of several
    ``sharers`` of the work keeps what it meets, when it meets it.
    """

    def __init__(
        self,
        model: Any,
        k: int,
        sequences: Sequence[np.ndarray],
        budget: int,
        precision: Precision = contextlib.nullcontext,
        say: Callable[[str], None] = lambda _: None,
        kept: Kept | None = None,
        sharers: int = 1,
    ) -> None:
        self.model, self.k, self.precision, self.keeps = model, k, precision, False
        self.names = [s.astype(np.int64).tobytes() for s in sequences]
        self.kept = ({} if kept is None else kept.owned_by(model, k).states) if k else {}
        new = [i for i, name in enumerate(self.names) if name not in self.kept]
        if k == 0 or not new:
            return
        packs = pack_sequences(sequences, new, budget)
        tokens = sum(map(len, packs))
        cost, free = tokens * split.unwrap(model).config.hidden_size * 4, free_memory()
        size = f"states of {tokens:,} tokens after {k} frozen layers ({cost / 2**20:,.0f} MiB)"
        if free is not None and cost * sharers > STATES_SHARE * free:
            say(f"The {size} do not fit into half of the free memory: they are computed at every step instead.")
            return
        say(f"The {size} are computed once and kept in memory.")
        self.keeps = True
        device = next(model.parameters()).device
        for pack in packs if sharers == 1 else ():
            self.states(pack.to(device))

    def compute(self, pack: Pack) -> Tensor | None:
        """States [T, H] of a pack from its ids, without gradient; None for k = 0."""
        with self.precision():
            return split.trunk_states(self.model, pack, self.k)

    def states(self, pack: Pack) -> Tensor | None:
        """States [T, H] of a pack whose members are sequences; None for k = 0."""
        known = [self.kept.get(self.names[member]) for member in pack.members]
        if known[0] is None or None in known:
            found = self.compute(pack)
            if self.keeps and found is not None:
                states = found.cpu()
                for member, path in zip(pack.members, pack.paths, strict=True):
                    self.kept[self.names[member]] = (states, path.cpu())
            return found
        out = torch.empty(len(pack), known[0][0].shape[1], dtype=known[0][0].dtype)
        for (states, places), path in zip(filter(None, known), pack.paths, strict=True):
            out[path.cpu()] = states[places]
        return out.to(pack.ids.device)

    def last(self, pack: Pack) -> Tensor:
        """Last hidden states [members, H] at the end of each member of a pack, with gradient."""
        pack = pack.to(next(self.model.parameters()).device)
        states = self.states(pack)
        with self.precision():
            hidden = split.top_hidden(self.model, pack, states, self.k)
        return hidden[torch.stack([path[-1] for path in pack.paths])]


def score_above(
    pm: PreferenceModel, dialogues: Sequence[Dialogue], kept: Kept, budget: int, precision: Precision
) -> np.ndarray:
    """Centred scores [N] of last replies; ``kept`` holds what the frozen layers have read, and is added to."""
    sequences = [np.array(pm.pm_ids(d), dtype=np.int64) for d in dialogues]
    trunk = Trunk(pm.backbone, pm.frozen_layers, sequences, budget, precision, kept=kept)
    out = np.empty(len(sequences))
    with torch.no_grad():
        for pack in pack_sequences(sequences, range(len(sequences)), budget):
            out[pack.members] = pm.project(trunk.last(pack)).double().cpu().numpy()
    return out - pm.reference_mean
