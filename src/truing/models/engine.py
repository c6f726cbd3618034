"""Score and sample many token sequences with one Hugging Face model. Knows token ids only.

Sequences that begin alike are read once: jobs are cut into packs (`truing.models.tree`), and a trunk common to the
whole job is kept as keys and values that every pack attends to. Sampling reads each distinct prompt once and decodes
in one batch of slots with a preallocated cache; finished rows leave, waiting ones enter. In float32 a request's text
depends on its prompt, its seed and the settings, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from truing.models import tree
from truing.models.decode import decode
from truing.models.draw import Ends, Job, Row, Settings, Trace, check_settings, groups, make_rows
from truing.models.memory import LEAST_TOKENS, finish, fitting, free_memory
from truing.models.slots import KeyValues, Reread, Slots, TrunkLayer
from truing.models.split import Watch
from truing.models.tree import Ids, Pack
from truing.types import Sample

Progress = Callable[[int, int], None]

TRUNK = 32
"""A common beginning of at least this many tokens is kept as keys and values."""
HEAD_ROWS = 256
"""Rows of logits in memory at a time while scoring."""
CACHE_SHARE = 4
"""The cache of sampling takes at most one part in this many of the memory that is free; prompts take as much again."""


class Engine:
    """One model, ready to score and sample. ``tokens_run`` counts the tokens that were read by it.

    While ``counting``, tokens are counted and not read: log-probabilities are 0 and replies empty.

    ``budget``: tokens in one pack (0: what suits the device); ``max_batch``: rows decoded together; ``cache_bytes``:
    most that their cache takes.
    Where memory runs out, budget or batch are halved, which is said on stderr, and what is left is done with less.
    Token ids are lists or integer arrays (int32 arrays take a tenth of a list's memory). Memory does not grow with the
    job but for ids and results. Log-probabilities are in nats and float32, from a head computed in float32.
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
        self.tokens_run, self.counting = 0, False

    def score(
        self, sequences: Sequence[Ids], starts: Sequence[int], *, progress: Progress | None = None
    ) -> list[np.ndarray]:
        """Log-probabilities float32 of the tokens ``sequence[start:]``, each given all before it (start ≥ 1).

        ``progress`` is called with finished and all sequences.
        """
        return [logprobs for logprobs, _ in self._score(sequences, starts, sequences, progress=progress)]

    def score_greedy(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As ``score``, and with each the flags bool of its tokens: is it the likeliest of all V?

        The last token of a sequence (of two at least) is predicted and not read: sequences that differ in it alone
        are read once, and a sequence may be one token longer than the model's window.
        """
        return self._score(sequences, starts, [sequence[:-1] for sequence in sequences], greedy=True)

    def _score(
        self,
        sequences: Sequence[Ids],
        starts: Sequence[int],
        read: Sequence[Ids],
        greedy: bool = False,
        progress: Progress | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        self._check(read)
        if len(starts) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(starts)} starts; each sequence needs one.")
        for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            if not 1 <= start <= len(sequence):
                raise ValueError(f"Sequence {i} of {len(sequence)} tokens has start {start}; expected 1 to its length.")
        sizes = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
        out = [(np.zeros(size, np.float32), np.zeros(size, bool)) for size in sizes]

        def use(pack: Pack, states: Tensor, past: int) -> None:
            tails = [np.asarray(sequences[m][starts[m] :], dtype=np.int64) for m in pack.members]
            cuts = [starts[m] - 1 - past for m in pack.members]
            places = [path[a : a + len(tail)] for path, a, tail in zip(pack.paths, cuts, tails, strict=True)]
            targets = torch.from_numpy(np.concatenate(tails)).to(states.device)
            found = self._logprobs(states, torch.cat(places), targets, weight, greedy)
            parts = [t.cpu().split([len(tail) for tail in tails]) for t in found]
            for member, logprobs, likeliest in zip(pack.members, *parts, strict=True):
                out[member] = logprobs.numpy(), likeliest.numpy()

        with self._session() as weight:
            self._over(read, min(starts, default=1) - 1, use, progress)
        return out

    def next_logprobs(self, sequences: Sequence[Ids], token_ids: Sequence[Ids] | None = None) -> list[np.ndarray]:
        """Log-probabilities float32 of the token after each sequence: of ``token_ids[i]``, or of all V (None)."""
        self._check(sequences)
        if token_ids is not None and len(token_ids) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(token_ids)} lists of token ids.")
        counted = [len(ids) for ids in token_ids or ()] or [self.config.vocab_size] * len(sequences)
        out: list[np.ndarray] = [np.zeros(size if self.counting else 0, np.float32) for size in counted]

        def use(pack: Pack, states: Tensor, past: int) -> None:
            ends = torch.stack([path[-1] for path in pack.paths])
            for at in range(0, len(ends), HEAD_ROWS):
                rows = tree.logits(self.model, states[ends[at : at + HEAD_ROWS]], weight).log_softmax(-1).cpu()
                for member, row in zip(pack.members[at : at + HEAD_ROWS], rows, strict=True):
                    chosen = row if token_ids is None else row[torch.tensor(token_ids[member], dtype=torch.long)]
                    out[member] = chosen.clone().numpy()

        with self._session() as weight:
            self._over(sequences, min(map(len, sequences), default=1) - 1, use)
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
        trace: Trace | None = None,
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
        ``on_text`` with prompt, reply and new text as it comes (the pieces of a reply make its text). ``trace`` is
        filled with what the lower layers computed, for those who train on the replies.
        Raises ValueError on settings out of range and on prompts that are empty or fill the model's window.
        """
        if each is None:
            shared = Settings(max_tokens, temperature, top_p, top_k, tuple(stops), tuple(stops_after))
            check_settings(n, max_tokens, temperature, top_p, top_k, stops, stops_after, decode)
            each = [shared] * len(prompts)
        self._check(prompts)
        rows = make_rows(prompts, n, seeds)
        ends = self._settle(rows, n, len(prompts), each, decode)
        if self.counting:
            self._count([*{row.prompt: None for row in rows if row.limit}])
            for row in rows:
                row.limit = 0
        width = self.config.hidden_size * self.inner.dtype.itemsize
        if trace and not (self.trees and trace.fits(rows, width, free_memory(self.inner.device))):
            trace = None
        if trace:
            trace.window = self._window()
        job = Job(each, ends, progress, on_text, len(rows), sum(row.limit == 0 for row in rows), trace)
        with self._session() as weight:
            for group in groups([row for row in rows if row.limit]):
                self._decode_all(group, job, weight)
        out: list[list[Sample]] = [[] for _ in prompts]
        for row in sorted(rows, key=lambda r: (r.request, r.index)):
            if trace:
                trace.keep(row, self.eos_ids)
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

    def _decode_all(self, group: Sequence[Row], job: Job, weight: Tensor) -> None:
        """Draw all replies of one group; what does not fit into memory is drawn anew, the same, in half the batch."""
        head = partial(tree.logits, self.model, weight=weight)
        more = 1 + len(job.trace.then) if job.trace else 0
        wanted = self.rows_at_once(len(group), max(len(row.prompt) + row.limit for row in group) + more)

        def attempt(size: int) -> None:
            left = [row.anew() for row in group if not row.over]
            budget = self.budget if size == wanted else max(LEAST_TOKENS, self.budget * size // wanted)
            if not self.trees:
                return decode(left, Reread(self, size), job, head)
            with Watch(self.model, job.trace.layers) if job.trace else nullcontext() as watch:
                decode(left, self._slots(left, size, budget, more, watch), job, head)

        _, size = fitting(attempt, wanted, "sampling {} replies side by side", least=1)
        if size < wanted:
            self.max_batch = size

    def rows_at_once(self, rows: int, longest: int) -> int:
        """How many of so many replies are decoded together, the longest with its prompt of so many tokens."""
        most = min(self.max_batch, rows)
        if not self.trees:
            return most
        free = free_memory(self.inner.device)
        room = self.cache_bytes if free is None else min(self.cache_bytes, free // CACHE_SHARE)
        return max(1, min(most, room // self.row_bytes(longest)))

    def row_bytes(self, longest: int) -> int:
        """Bytes of keys and values of one row of the cache, with room for so many tokens."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * longest * self.inner.dtype.itemsize

    def _slots(self, rows: Sequence[Row], size: int, budget: int, more: int, watch: Watch | None) -> Slots:
        prompts = [row.prompt for row in rows]
        trunk = self._trunk(prompts[0][: self._common(prompts)], budget)
        return Slots(self, size, max(len(row.prompt) + row.limit for row in rows) + more, trunk, budget, watch)

    def _common(self, sequences: Sequence[Ids], limit: int | None = None) -> int:
        """Tokens common to the beginnings of all sequences; 0 if they are too few to be worth keeping."""
        if not self.trees or not sequences:
            return 0
        first, common, alike = np.asarray(sequences[0]), len(sequences[0]), True
        for sequence in sequences:
            differs = np.asarray(sequence[:common]) != first[: min(common, len(sequence))]
            common = int(differs.argmax()) if differs.any() else len(differs)
            if common < TRUNK:
                return 0
            alike = alike and common == len(first) == len(sequence)
        common = min(common, min(map(len, sequences)) - 1, *([] if limit is None else [limit]))
        return common if common >= TRUNK and not alike else 0

    def _trunk(self, ids: Ids, budget: int) -> KeyValues:
        """Keys and values of a common beginning, read in pieces of at most ``budget`` tokens; [] if it is empty."""
        trunk: KeyValues = []
        for at in range(0, len(ids), budget):
            (piece,) = tree.packs([ids[at : at + budget]], budget)
            new = self._run(piece, trunk)[1]
            if not trunk:
                trunk = new
                continue
            trunk = [
                (torch.cat([k, more_k], 2), torch.cat([v, more_v], 2))
                for (k, v), (more_k, more_v) in zip(trunk, new, strict=True)
            ]
        return trunk

    def _over(
        self,
        sequences: Sequence[Ids],
        trunk_limit: int,
        use: Callable[[Pack, Tensor, int], None],
        progress: Progress | None = None,
    ) -> None:
        """Hand every pack of the job to ``use(pack, states, past)``: last hidden states [T, H] of tokens that stand
        after ``past`` common ones. Where memory runs out, what is left is packed anew with half of the tokens.
        """
        if self.counting:
            return self._count(sequences, trunk_limit)
        done = 0

        def read(left: list[int], budget: int) -> Iterator[list[int]]:
            nonlocal done
            for pack, states, past in self._read([sequences[i] for i in left], trunk_limit, budget):
                places, pack.members = pack.members, [left[m] for m in pack.members]
                use(pack, states, past)
                done += len(places)
                if progress is not None:
                    progress(done, len(sequences))
                yield places

        self.budget = finish(len(sequences), read, self.budget, "reading {} tokens at once")

    def _plan(self, sequences: Sequence[Ids], trunk_limit: int | None, budget: int) -> tuple[int, Iterator[Pack]]:
        """How many tokens are read first, for all, and the packs of what follows them, made one at a time."""
        past = self._common(sequences, trunk_limit)
        packs = tree.packs([sequence[past:] for sequence in sequences] if past else sequences, budget)
        first = list(islice(packs, 2))
        if past and len(first) == 1 and past + len(first[0]) <= budget:  # one pack holds it all
            past, first = 0, tree.pack(sequences, budget)
        return past, chain(first, packs)

    def _count(self, sequences: Sequence[Ids], trunk_limit: int | None = None) -> None:
        past, packs = self._plan(sequences, trunk_limit, self.budget)
        self.tokens_run += past + sum(map(len, packs))

    def _read(self, sequences: Sequence[Ids], trunk_limit: int, budget: int) -> Iterator[tuple[Pack, Tensor, int]]:
        """Packs of the job, one at a time, last hidden states [T, H], and how many common tokens stand before each."""
        past, packs = self._plan(sequences, trunk_limit, budget)
        trunk = self._trunk(sequences[0][:past], budget) if past else []
        for pack in packs:
            pack = pack.to(self.inner.device)
            if past:
                yield pack, self._run(pack, trunk)[0], past
            else:
                states = tree.hidden(self.model, pack)
                self.tokens_run += len(pack)
                yield pack, states, 0

    def _run(self, pack: Pack, trunk: KeyValues) -> tuple[Tensor, KeyValues]:
        """Last hidden states [T, H] of a pack that stands after a trunk, and the pack's own keys and values."""
        pack = pack.to(self.inner.device)
        layers = [TrunkLayer(trunk[i] if trunk else None) for i in range(self.config.num_hidden_layers)]
        past = trunk[0][0].shape[2] if trunk else 0
        states = self._body(pack.ids[None], pack.positions[None] + past, pack.mask(self._mask_dtype, past), layers)[0]
        return states, [layer.new for layer in layers]

    def _body(self, ids: Tensor, positions: Tensor, mask: Tensor, layers: Sequence[DynamicLayer]) -> Tensor:
        cache = Cache(layers=list(layers))
        inner = tree.body(self.model)
        states = inner(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        self.tokens_run += ids.numel()  # not what memory ran out for
        return states

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
