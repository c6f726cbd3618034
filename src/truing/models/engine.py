"""Score and sample many token sequences with one Hugging Face model. Knows token ids only.

Sequences that begin alike are read once: jobs are cut into packs (`truing.models.tree`), and a trunk common to the
whole job is kept as keys and values that every pack attends to. Sampling reads each distinct prompt once and decodes
in one batch of slots with a preallocated cache; finished rows leave, waiting ones enter. In float32 a request's text
depends on its prompt, its seed and the settings, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from truing.models import tree
from truing.models.draw import Ends, Row, Settings, check_settings, draw, fill_holes, groups, make_rows, noise_shape
from truing.models.slots import KeyValues, Reread, Slots, TrunkLayer
from truing.models.tree import Pack
from truing.types import Sample

Ids = Sequence[int]

TRUNK = 32
"""A common beginning of at least this many tokens is kept as keys and values."""
HEAD_ROWS = 256
"""Rows of logits in memory at a time while scoring."""


class Engine:
    """One model, ready to score and sample. ``tokens_run`` counts the tokens that were read by it.

    ``budget``: tokens in one pack (0: what suits the device); ``max_batch``: rows decoded together; ``cache_bytes``:
    size of their cache.
    Log-probabilities are in nats and float32, from a head computed in float32.
    """

    def __init__(
        self,
        model: Any,
        eos_ids: Iterable[int] | int = (),
        pad: int = 0,
        *,
        budget: int = 0,
        max_batch: int = 256,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.model, self.pad = model, pad
        self.eos_ids = frozenset([eos_ids] if isinstance(eos_ids, int) else eos_ids)
        self.trees = tree.supports_trees(model)
        self.inner = tree.unwrap(model)
        self.budget = tree.pack_budget(self.inner.device, budget)
        self.max_batch, self.cache_bytes = max_batch, cache_bytes
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
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stops: Sequence[str] = (),
        stops_after: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        each: Sequence[Settings] | None = None,
        seeds: int | Sequence[Sequence[int]] = 0,
        progress: Callable[[int, int], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
    ) -> list[list[Sample]]:
        """``n`` replies to each prompt. ``each`` gives every prompt settings of its own, in place of the call's.

        A reply ends at an eos id or where its text completes a stop string (finish ``stop``; text is cut before one of
        ``stops``, after one of ``stops_after``; ``token_ids`` keep it), or after ``max_tokens``, or at the end of the
        model's window (``length``). ``temperature`` 0 takes the likeliest token. ``top_k`` keeps the k likeliest tokens
        (ties too; 0: all), then ``top_p`` the fewest of these whose probability reaches p. Log-probabilities are at
        temperature 1, untruncated.

        ``seeds``: one per reply, or one number for the call, from which every reply gets its own (`Sample.seed`;
        the first reply to a prompt keeps the number itself, equal prompts count on). A reply asked for again with
        its prompt and ``[[Sample.seed]]`` is drawn the same. ``progress`` is called with finished and all replies,
        ``on_text`` with prompt, reply and new text as it comes (the pieces of a reply make its text).
        Raises ValueError on settings out of range and on prompts that are empty or fill the model's window.
        """
        if each is None:
            shared = Settings(max_tokens, temperature, top_p, top_k, tuple(stops), tuple(stops_after))
            check_settings(n, max_tokens, temperature, top_p, top_k, stops, stops_after, decode)
            each = [shared] * len(prompts)
        self._check(prompts)
        rows = make_rows(prompts, n, seeds)
        ends = self._settle(rows, n, len(prompts), each, decode)
        job = _Job(each, ends, progress, on_text, len(rows), sum(row.limit == 0 for row in rows))
        with self._session() as weight:
            for group in groups([row for row in rows if row.limit]):
                self._decode(group, job, weight)
        out: list[list[Sample]] = [[] for _ in prompts]
        for row in sorted(rows, key=lambda r: (r.request, r.index)):
            out[row.request].append(ends[row.request].sample(row))
        return out

    def _settle(self, rows: list[Row], n: int, prompts: int, each: Sequence[Settings], decode: Any) -> list[Ends]:
        """Give every row its limit; what ends a reply to each prompt. Raises ValueError as ``sample`` says."""
        if len(each) != prompts:
            raise ValueError(f"{prompts} prompts but {len(each)} settings; each prompt needs its own.")
        ends: dict[tuple[tuple[str, ...], tuple[str, ...]], Ends] = {}
        for s in dict.fromkeys(each):
            check_settings(n, s.max_tokens, *s.drawing, s.stops, s.stops_after, decode)
            if (s.stops, s.stops_after) not in ends:
                ends[s.stops, s.stops_after] = Ends(self.eos_ids, s.stops, decode, s.stops_after)
        window = self._window()
        for row in rows:
            s = each[row.request]
            row.limit = s.max_tokens if window is None else min(s.max_tokens, window - len(row.prompt))
            if row.limit < 1 and s.max_tokens > 0:
                raise ValueError(
                    f"Prompt {row.request} has {len(row.prompt)} tokens and the model reads at most {window}: no room "
                    "for a reply. Shorten the prompt."
                )
        return [ends[s.stops, s.stops_after] for s in each]

    def _decode(self, waiting: list[Row], job: _Job, weight: Tensor) -> None:
        """Draw all replies of one group of rows; they enter the batch in order and leave it when they end."""
        rows: list[Row] = []
        batch: Slots | Reread = self._slots(waiting) if self.trees else Reread(self)
        logits = torch.empty(0)
        while rows or waiting:
            free = batch.size - len(rows)
            if waiting and (free * 4 >= batch.size):
                new, waiting = waiting[:free], waiting[free:]
                entered = tree.logits(self.model, batch.admit([row.prompt for row in new]), weight)
                logits, rows = torch.cat([logits, entered]) if rows else entered, rows + new
            tokens, logprobs = job.draw(rows, logits)
            alive = job.take(rows, tokens.tolist(), logprobs.tolist())
            if not all(alive):
                order = fill_holes(alive)
                batch.keep(order)
                rows = [rows[i] for i in order]
                tokens = tokens[torch.tensor(order, dtype=torch.long, device=tokens.device)]
            if rows:
                logits = tree.logits(self.model, batch.step(tokens), weight)

    def _slots(self, rows: Sequence[Row]) -> Slots:
        config, longest = self.config, max(len(row.prompt) + row.limit for row in rows)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row_bytes = 2 * config.num_hidden_layers * heads * width * longest * self.inner.dtype.itemsize
        size = max(1, min(self.max_batch, len(rows), self.cache_bytes // row_bytes))
        return Slots(self, size, longest, self._trunk([row.prompt for row in rows]))

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
        layers = [TrunkLayer(trunk[i] if trunk else None) for i in range(self.config.num_hidden_layers)]
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


@dataclass
class _Job:
    """One call of ``sample``: what its prompts ask for, who hears of it, and how many of its replies are over."""

    each: Sequence[Settings]
    ends: Sequence[Ends]
    progress: Callable[[int, int], None] | None
    on_text: Callable[[int, int, str], None] | None
    total: int
    done: int

    def draw(self, rows: Sequence[Row], logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of every row, drawn with its prompt's settings, and its log-probability."""
        size = sum(noise_shape(logits.shape[-1]))
        noise = torch.from_numpy(np.stack([row.noise(size) for row in rows])).to(logits.device)
        ways = [self.each[row.request].drawing for row in rows]
        if len(set(ways)) == 1:
            return draw(logits, noise, *ways[0])
        tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        logprobs = torch.empty(len(rows), device=logits.device)
        for way in dict.fromkeys(ways):
            places = torch.tensor([i for i, other in enumerate(ways) if other == way], device=logits.device)
            tokens[places], logprobs[places] = draw(logits[places], noise[places], *way)
        return tokens, logprobs

    def take(self, rows: Sequence[Row], tokens: Sequence[int], logprobs: Sequence[float]) -> list[bool]:
        """Add the drawn tokens to their rows and tell of them; which rows go on."""
        alive = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            ends = self.ends[row.request]
            over = ends.take(row, token, logprob)
            alive.append(not over)
            if self.on_text is not None and (piece := ends.news(row, over)):
                self.on_text(row.request, row.index, piece)
        self.done += alive.count(False)
        if self.progress is not None and not all(alive):
            self.progress(self.done, self.total)
        return alive
