"""Score and sample many token sequences with one Hugging Face model. Knows token ids only.

Sequences that begin alike are read once: jobs are cut into packs (`truing.models.tree`), and a trunk common to the
whole job is kept as keys and values that every pack attends to. Sampling reads each distinct prompt once and decodes
in one batch of slots with a preallocated cache; finished rows leave, waiting ones enter. In float32 a request's text
depends on its prompt, its seed and the settings, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from truing.models import tree
from truing.models.draw import Ends, Row, check_settings, draw, fill_holes, groups, make_rows, noise_shape
from truing.models.tree import Pack
from truing.types import Sample

Ids = Sequence[int]
KeyValues = list[tuple[Tensor, Tensor]]  # per layer, each [1, heads, tokens, head width]

TRUNK = 32
"""A common beginning of at least this many tokens is kept as keys and values."""
HEAD_ROWS = 256
"""Rows of logits in memory at a time while scoring."""


class Engine:
    """One model, ready to score and sample. ``tokens_run`` counts the tokens that were read by it.

    ``budget``: tokens in one pack; ``max_batch``: rows decoded together; ``cache_bytes``: size of their cache.
    Log-probabilities are in nats and float32, from a head computed in float32.
    """

    def __init__(
        self,
        model: Any,
        eos_ids: Iterable[int] | int = (),
        pad: int = 0,
        *,
        budget: int = 2048,
        max_batch: int = 256,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.model, self.pad = model, pad
        self.eos_ids = frozenset([eos_ids] if isinstance(eos_ids, int) else eos_ids)
        self.budget, self.max_batch, self.cache_bytes = budget, max_batch, cache_bytes
        self.trees = tree.supports_trees(model)
        self.inner = tree.unwrap(model)
        self.config = self.inner.config
        self.tokens_run = 0

    def score(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities float32 of the tokens ``sequence[start:]``, each given all before it (start ≥ 1)."""
        return [logprobs for logprobs, _ in self._score(sequences, starts, sequences)]

    def score_greedy(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As ``score``, and with each the flags bool of its tokens: is it the likeliest of all V?

        The last token of a sequence (of two at least) is predicted and not read: sequences that differ in it alone
        are read once, and a sequence may be one token longer than the model's window.
        """
        return self._score(sequences, starts, [sequence[:-1] for sequence in sequences], greedy=True)

    def _score(
        self, sequences: Sequence[Ids], starts: Sequence[int], read: Sequence[Ids], greedy: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        self._check(read)
        if len(starts) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(starts)} starts; each sequence needs one.")
        for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            if not 1 <= start <= len(sequence):
                raise ValueError(f"Sequence {i} of {len(sequence)} tokens has start {start}; expected 1 to its length.")
        out = [(np.empty(0, np.float32), np.empty(0, bool))] * len(sequences)
        with self._session() as weight:
            for pack, states, past in self._read(read, min(starts, default=1) - 1):
                tails = [sequences[m][starts[m] :] for m in pack.members]
                cuts = [starts[m] - 1 - past for m in pack.members]
                places = [path[a : a + len(tail)] for path, a, tail in zip(pack.paths, cuts, tails, strict=True)]
                targets = torch.tensor([i for tail in tails for i in tail], dtype=torch.long, device=states.device)
                found = self._logprobs(states, torch.cat(places), targets, weight, greedy)
                parts = [t.cpu().split([len(tail) for tail in tails]) for t in found]
                for member, logprobs, likeliest in zip(pack.members, *parts, strict=True):
                    out[member] = logprobs.numpy(), likeliest.numpy()
        return out

    def next_logprobs(self, sequences: Sequence[Ids], token_ids: Sequence[Ids] | None = None) -> list[np.ndarray]:
        """Log-probabilities float32 of the token after each sequence: of ``token_ids[i]``, or of all V (None)."""
        self._check(sequences)
        if token_ids is not None and len(token_ids) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(token_ids)} lists of token ids.")
        out: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
        with self._session() as weight:
            for pack, states, _ in self._read(sequences, min(map(len, sequences), default=1) - 1):
                ends = torch.stack([path[-1] for path in pack.paths])
                for at in range(0, len(ends), HEAD_ROWS):
                    rows = tree.logits(self.model, states[ends[at : at + HEAD_ROWS]], weight).log_softmax(-1).cpu()
                    for member, row in zip(pack.members[at : at + HEAD_ROWS], rows, strict=True):
                        chosen = row if token_ids is None else row[torch.tensor(token_ids[member], dtype=torch.long)]
                        out[member] = chosen.clone().numpy()
        return out

    def sample(
        self,
        prompts: Sequence[Ids],
        *,
        n: int = 1,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stops: Sequence[str] = (),
        stops_after: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        seeds: int | Sequence[Sequence[int]] = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """``n`` replies to each prompt.

        A reply ends at an eos id or where its text completes a stop string (finish ``stop``; text is cut before one of
        ``stops``, after one of ``stops_after``; ``token_ids`` keep it), or after ``max_tokens``, or at the end of the
        model's window (``length``). ``temperature`` 0 takes the likeliest token. ``top_k`` keeps the k likeliest tokens
        (ties too; 0: all), then ``top_p`` the fewest of these whose probability reaches p. Log-probabilities are at
        temperature 1, untruncated.

        ``seeds``: one per reply, or one number for the call, from which every reply gets its own (`Sample.seed`;
        the first reply to a prompt keeps the number itself, equal prompts count on). A reply asked for again with
        its prompt and ``[[Sample.seed]]`` is drawn the same. ``progress`` is called with finished and all replies.
        Raises ValueError on settings out of range and on prompts that are empty or fill the model's window.
        """
        check_settings(n, max_tokens, temperature, top_p, top_k, stops, stops_after, decode)
        self._check(prompts)
        rows = make_rows(prompts, n, seeds)
        window = self._window()
        for row in rows:
            row.limit = max_tokens if window is None else min(max_tokens, window - len(row.prompt))
            if row.limit < 1 and max_tokens > 0:
                raise ValueError(
                    f"Prompt {row.request} has {len(row.prompt)} tokens and the model reads at most {window}: no room "
                    "for a reply. Shorten the prompt."
                )
        ends = Ends(self.eos_ids, stops, decode, stops_after)
        settings = (temperature, top_p, top_k)
        if max_tokens:
            with self._session() as weight:
                done = 0
                for group in groups(rows):
                    self._decode(group, ends, settings, weight, progress, done, len(rows))
                    done += len(group)
        out: list[list[Sample]] = [[] for _ in prompts]
        for row in sorted(rows, key=lambda r: (r.request, r.index)):
            out[row.request].append(ends.sample(row))
        return out

    def _decode(
        self, waiting: list[Row], ends: Ends, settings: Any, weight: Tensor, tell: Any, done: int, total: int
    ) -> None:
        """Draw all replies of one group of rows; they enter the batch in order and leave it when they end."""
        rows: list[Row] = []
        batch: _Slots | _Reread = self._slots(waiting) if self.trees else _Reread(self)
        logits = torch.empty(0)
        while rows or waiting:
            free = batch.size - len(rows)
            if waiting and (free * 4 >= batch.size):
                new, waiting = waiting[:free], waiting[free:]
                entered = tree.logits(self.model, batch.admit([row.prompt for row in new]), weight)
                logits, rows = torch.cat([logits, entered]) if rows else entered, rows + new
            size = sum(noise_shape(logits.shape[-1]))
            noise = torch.from_numpy(np.stack([row.noise(size) for row in rows])).to(logits.device)
            tokens, logprobs = draw(logits, noise, *settings)
            alive = [not ends.take(*taken) for taken in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True)]
            if not all(alive):
                done += alive.count(False)
                if tell is not None:
                    tell(done, total)
                order = fill_holes(alive)
                batch.keep(order)
                rows = [rows[i] for i in order]
                tokens = tokens[torch.tensor(order, dtype=torch.long, device=tokens.device)]
            if rows:
                logits = tree.logits(self.model, batch.step(tokens), weight)

    def _slots(self, rows: Sequence[Row]) -> _Slots:
        config, longest = self.config, max(len(row.prompt) + row.limit for row in rows)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row_bytes = 2 * config.num_hidden_layers * heads * width * longest * self.inner.dtype.itemsize
        size = max(1, min(self.max_batch, len(rows), self.cache_bytes // row_bytes))
        return _Slots(self, size, longest, self._trunk([row.prompt for row in rows]))

    def _trunk(self, sequences: Sequence[Ids], limit: int | None = None) -> KeyValues:
        """Keys and values of the beginning common to all sequences; [] if it is too short to be worth it."""
        if not self.trees or not sequences or len(set(map(tuple, sequences))) < 2:
            return []
        first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
        common = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
        common = min(common, min(map(len, sequences)) - 1, *([] if limit is None else [limit]))
        if common < TRUNK:
            return []
        (pack,) = tree.pack([first[:common]], budget=common)
        return self._run(pack, [])[1]

    def _read(self, sequences: Sequence[Ids], trunk_limit: int) -> Iterator[tuple[Pack, Tensor, int]]:
        """Packs of the job, last hidden states [T, H], and how many common tokens stand before each pack."""
        packs = tree.pack(sequences, self.budget)
        trunk = self._trunk(sequences, trunk_limit) if len(packs) > 1 else []
        past = trunk[0][0].shape[2] if trunk else 0
        if past:
            packs = tree.pack([sequence[past:] for sequence in sequences], self.budget)
        for pack in packs:
            pack = pack.to(self.inner.device)
            if past:
                yield pack, self._run(pack, trunk)[0], past
            else:
                self.tokens_run += len(pack)
                yield pack, tree.hidden(self.model, pack), 0

    def _run(self, pack: Pack, trunk: KeyValues) -> tuple[Tensor, KeyValues]:
        """Last hidden states [T, H] of a pack that stands after a trunk, and the pack's own keys and values."""
        pack = pack.to(self.inner.device)
        layers = [_TrunkLayer(trunk[i] if trunk else None) for i in range(self.config.num_hidden_layers)]
        past = trunk[0][0].shape[2] if trunk else 0
        states = self._body(pack.ids[None], pack.positions[None] + past, pack.mask(self._mask_dtype, past), layers)[0]
        return states, [layer.new for layer in layers]

    def _body(self, ids: Tensor, positions: Tensor, mask: Tensor, layers: Sequence[DynamicLayer]) -> Tensor:
        self.tokens_run += ids.numel()
        cache = Cache(layers=list(layers))
        inner = tree.body(self.model)
        return inner(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _logprobs(
        self, states: Tensor, places: Tensor, targets: Tensor, weight: Tensor, greedy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] of targets after places, and if ``greedy`` whether each is the likeliest token there.

        A place asked for often passes the head once.
        """
        unique, inverse = places.unique(return_inverse=True)
        out, likeliest = (torch.zeros(len(targets), dtype=d, device=states.device) for d in (torch.float32, torch.bool))
        for at in range(0, len(unique), HEAD_ROWS):
            chosen = (inverse >= at) & (inverse < at + HEAD_ROWS)
            logits = tree.logits(self.model, states[unique[at : at + HEAD_ROWS]], weight)
            row = inverse[chosen] - at
            out[chosen] = logits[row, targets[chosen]] - logits.logsumexp(-1)[row]
            if greedy:
                likeliest[chosen] = logits.argmax(-1)[row] == targets[chosen]
        return out, likeliest

    @contextmanager
    def _session(self) -> Iterator[Tensor]:
        """No gradients, no dropout, one precision; gives the head's weight in float32."""
        with torch.no_grad(), tree.evaluating(self.model), tree.precision(tree.body(self.model)) as self._mask_dtype:
            yield tree.unwrap(self.model).get_output_embeddings().weight.float()

    def _window(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    def _check(self, sequences: Sequence[Ids]) -> None:
        window = self._window()
        for i, sequence in enumerate(sequences):
            if len(sequence) == 0:
                raise ValueError(f"Sequence {i} has no tokens; give at least one (a BOS token will do).")
            if window is not None and len(sequence) > window:
                raise ValueError(
                    f"Sequence {i} has {len(sequence)} tokens; the model reads at most {window}. Shorten it."
                )


class _TrunkLayer(DynamicLayer):
    """Keys and values of a trunk, seen but never changed; ``new`` are those of the tokens read after it."""

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.past = past

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.new = (key_states, value_states)
        if self.past is None:
            return self.new
        keys, values = (torch.cat([old, new], 2) for old, new in zip(self.past, self.new, strict=True))
        return keys, values


class _SlotLayer(DynamicLayer):
    """A preallocated cache [slots, heads, places, head width]; row r writes at place ``slots.lengths[r]``."""

    def __init__(self, slots: _Slots, like: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.slots = slots
        # zeros, not empty: what a mask hides must still be finite
        self.stored = [t.new_zeros(slots.size, t.shape[1], slots.places, t.shape[3]) for t in like]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        at, end = self.slots.lengths, self.slots.longest + 1
        rows = torch.arange(len(at), device=at.device)
        for stored, new in zip(self.stored, (key_states, value_states), strict=True):
            stored[rows, :, at] = new[:, :, 0]
        return self.stored[0][: len(at), :, :end], self.stored[1][: len(at), :, :end]


class _Slots:
    """Rows being decoded together, each with its own length, in a preallocated cache."""

    def __init__(self, engine: Engine, size: int, places: int, trunk: KeyValues) -> None:
        self.engine, self.size, self.places, self.trunk = engine, size, places, trunk
        self.layers: list[_SlotLayer] = []
        self.lengths = torch.empty(0, dtype=torch.long, device=engine.inner.device)
        self.longest = 0
        self.known: dict[tuple[int, ...], tuple[Tensor, KeyValues]] = {}

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Append rows; each distinct prompt is read once. Returns the state after each prompt [rows, H]."""
        fresh = [p for p in dict.fromkeys(prompts) if p not in self.known]
        past = self.trunk[0][0].shape[2] if self.trunk else 0
        for pack in tree.pack([p[past:] for p in fresh], self.engine.budget):
            states, read = self.engine._run(pack, self.trunk)
            for member, path in zip(pack.members, pack.paths, strict=True):
                path = path.to(states.device)
                self.known[fresh[member]] = states[path[-1]], [(k[:, :, path], v[:, :, path]) for k, v in read]
        for prompt in dict.fromkeys(prompts):
            first = len(self.lengths)
            copies = prompts.count(prompt)
            self._write(first, first + copies, past, self.known[prompt][1])
            self.lengths = torch.cat([self.lengths, self.lengths.new_full((copies,), len(prompt))])
        out = torch.stack([self.known[prompt][0] for prompt in prompts])
        self.known = {prompts[-1]: self.known[prompts[-1]]}  # more replies to it may wait; to the others none
        return out

    def _write(self, first: int, last: int, past: int, read: KeyValues) -> None:
        if not self.layers:
            self.layers = [_SlotLayer(self, pair) for pair in read]
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


class _Reread:
    """The same interface for models that cannot take trees: right-padded rows, read again at every step."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.size, self.rows = engine, engine.max_batch, list[list[int]]()
        tree.explain_fallback(engine.config.model_type)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        self.rows += [list(p) for p in prompts]
        return self._last(self.rows[-len(prompts) :])

    def keep(self, order: list[int]) -> None:
        self.rows = [self.rows[i] for i in order]

    def step(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._last(self.rows)

    def _last(self, rows: list[list[int]]) -> Tensor:
        device, pad = self.engine.inner.device, self.engine.pad
        ids = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=pad).to(device)
        lengths = torch.tensor([len(r) for r in rows], device=device)
        real = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
        self.engine.tokens_run += ids.numel()
        states = tree.body(self.engine.model)(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state
        return states[torch.arange(len(rows), device=device), lengths - 1]
