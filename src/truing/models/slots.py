"""Where sampling keeps keys and values: rows of one batch in a preallocated cache. Knows no draws and no text."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from truing.models import tree
from truing.models.split import Watch

if TYPE_CHECKING:
    from truing.models.engine import Engine

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer, each [1, heads, tokens, head width]."""


class TrunkLayer(DynamicLayer):
    """Keys and values of a trunk, seen but never changed; ``new`` are those of the tokens read after it."""

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.past = past

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values aside; attention sees the trunk's and them."""
        self.new = (key_states, value_states)
        if self.past is None:
            return self.new
        keys, values = (torch.cat([old, new], 2) for old, new in zip(self.past, self.new, strict=True))
        return keys, values


class SlotLayer(DynamicLayer):
    """A preallocated cache [slots, heads, places, head width]; row r writes at place ``slots.lengths[r]``."""

    def __init__(self, slots: Slots, like: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.slots = weakref.proxy(slots)  # in a circle the cache would stay until Python happens to look for circles
        # zeros, not empty: what a mask hides must still be finite
        self.stored = [t.new_zeros(slots.size, t.shape[1], slots.places, t.shape[3]) for t in like]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write each row's token at its place; attention sees all places up to the longest row's."""
        at, end = self.slots.lengths, self.slots.longest + 1
        rows = torch.arange(len(at), device=at.device)
        for stored, new in zip(self.stored, (key_states, value_states), strict=True):
            stored[rows, :, at] = new[:, :, 0]
        return self.stored[0][: len(at), :, :end], self.stored[1][: len(at), :, :end]


class Slots:
    """Rows being decoded together, each with its own length, in a preallocated cache."""

    def __init__(
        self,
        engine: Engine,
        size: int,
        places: int,
        trunk: KeyValues,
        budget: int,
        watch: Watch | None = None,
    ) -> None:
        self.engine, self.size, self.places, self.trunk, self.budget = engine, size, places, trunk, budget
        self.watch = watch
        self.lower: dict[tuple[int, ...], Tensor] = {}
        """Under watch: the lower layers' states [T, H] of the prompts admitted last."""
        self.above = watch.take()[0] if watch and trunk else None
        self.layers: list[SlotLayer] = []
        self.lengths = torch.empty(0, dtype=torch.long, device=engine.inner.device)
        self.longest = 0
        self.known: dict[tuple[int, ...], tuple[Tensor, KeyValues]] = {}

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Append rows; each distinct prompt is read once. Returns the state after each prompt [rows, H]."""
        fresh = [p for p in dict.fromkeys(prompts) if p not in self.known]
        past = self.trunk[0][0].shape[2] if self.trunk else 0
        for pack in tree.packs([p[past:] for p in fresh], self.budget):
            states, read = self.engine._run(pack, self.trunk)
            lower = self.watch.take()[0] if self.watch else None
            for member, path in zip(pack.members, pack.paths, strict=True):
                path = path.to(states.device)
                self.known[fresh[member]] = states[path[-1]], [(k[:, :, path], v[:, :, path]) for k, v in read]
                if lower is not None:
                    whole = [lower[path]] if self.above is None else [self.above, lower[path]]
                    self.lower[fresh[member]] = torch.cat(whole)
        for prompt in dict.fromkeys(prompts):
            first = len(self.lengths)
            copies = prompts.count(prompt)
            self._write(first, first + copies, past, self.known[prompt][1])
            self.lengths = torch.cat([self.lengths, self.lengths.new_full((copies,), len(prompt))])
        out = torch.stack([self.known[prompt][0] for prompt in prompts])
        self.known = {prompts[-1]: self.known[prompts[-1]]}  # more replies to it may wait; to the others none
        self.lower = {prompt: states for prompt, states in self.lower.items() if prompt in prompts}
        return out

    def _write(self, first: int, last: int, past: int, read: KeyValues) -> None:
        if not self.layers:
            self.layers = [SlotLayer(self, pair) for pair in read]
        for i, (layer, pair) in enumerate(zip(self.layers, read, strict=True)):
            for kept, new, trunk in zip(layer.stored, pair, self.trunk[i] if past else pair, strict=True):
                if past:
                    kept[first:last, :, :past] = trunk
                kept[first:last, :, past : past + new.shape[2]] = new

    def keep(self, order: list[int]) -> None:
        """Row j becomes what row ``order[j]`` was; only rows that change place are copied."""
        moved = [j for j, i in enumerate(order) if i != j]
        longest = int(self.lengths.max())
        for layer in self.layers if moved else []:
            for kept in layer.stored:
                used = kept[:, :, :longest]
                used[moved] = used[[order[j] for j in moved]]
        self.lengths = self.lengths[torch.tensor(order, dtype=torch.long, device=self.lengths.device)]

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token on every row; the state after it [rows, H]."""
        self.longest = int(self.lengths.max())
        dtype, places = self.engine._mask_dtype, torch.arange(self.longest + 1, device=tokens.device)
        hidden = places[None, :] > self.lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=tokens.device).masked_fill_(hidden, torch.finfo(dtype).min)
        out = self.engine._body(tokens[:, None], self.lengths[:, None], mask[:, None, None], self.layers)
        self.lengths = self.lengths + 1
        return out[:, 0]

    def below(self, prompts: Sequence[tuple[int, ...]] = ()) -> Sequence[Tensor]:
        """Under watch: the lower layers' states [tokens, H] of prompts just admitted, else of each row's last token."""
        if self.watch is None:
            return ()
        return [self.lower[prompt] for prompt in prompts] if prompts else list(self.watch.take())


class Reread:
    """The same interface for models that cannot take trees: right-padded rows, read again at every step."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.engine, self.size, self.rows = engine, size, list[list[int]]()
        tree.explain_fallback(engine.config.model_type)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Append rows; the state after each prompt [rows, H]."""
        self.rows += [list(p) for p in prompts]
        return self._last(self.rows[-len(prompts) :])

    def keep(self, order: list[int]) -> None:
        """Row j becomes what row ``order[j]`` was."""
        self.rows = [self.rows[i] for i in order]

    def step(self, tokens: Tensor) -> Tensor:
        """Add one more token to every row and read it again; the state after it [rows, H]."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._last(self.rows)

    def below(self, prompts: Sequence[tuple[int, ...]] = ()) -> Sequence[Tensor]:
        """Nothing: padded rows are not watched."""
        return ()

    def _last(self, rows: list[list[int]]) -> Tensor:
        device, pad = self.engine.inner.device, self.engine.pad
        ids = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=pad).to(device)
        lengths = torch.tensor([len(r) for r in rows], device=device)
        real = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
        self.engine.tokens_run += ids.numel()
        states = tree.body(self.engine.model)(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state
        return states[torch.arange(len(rows), device=device), lengths - 1]
