"""Token sequences as prefix trees, packed without padding. Knows token ids only: no tokenizer, no task.

A `Pack` is one row of tokens in which every common beginning stands once. Positions are depths in the tree and a
token attends to its ancestors only, so an unmodified Hugging Face model computes for each token what it would
compute in its own sequence, and gradients flow through a shared beginning once. Models whose attention cannot be
told so (sliding windows, recurrent layers) read the same packs as padded rows: the same numbers, more work.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Ids = Sequence[int] | np.ndarray
CPU_PACK, PACK = 512, 2048
"""Tokens in a pack, by device. On a CPU attention computes the places that the mask hides, so shorter packs pay."""
PAD_ROWS_TOKENS = 8192
"""Tokens, pads included, in one padded batch of the path for models that cannot take trees."""


@dataclass
class Pack:
    """A forest of token sequences in one row of T tokens, parents before children (depth first).

    ``ids``, ``positions`` (depth) and ``ends`` are LongTensor[T]; the subtree of token i is ``i .. ends[i] - 1``.
    ``paths[m]`` holds the places in the row of every token of member m, which is sequence ``members[m]`` of the job.

    >>> p, = pack([[5, 6, 7], [5, 6, 8, 9], [5, 6]])
    >>> p.ids.tolist(), p.positions.tolist()
    ([5, 6, 8, 9, 7], [0, 1, 2, 3, 2])
    >>> p.members, [path.tolist() for path in p.paths]
    ([1, 0, 2], [[0, 1, 2, 3], [0, 1, 4], [0, 1]])
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    paths: list[Tensor]
    members: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def allowed(self) -> Tensor:
        """BoolTensor[T, T], made anew at each call: row i may attend to column j, its ancestor or itself."""
        place = torch.arange(len(self), device=self.ids.device)
        return (place[None, :] <= place[:, None]) & (place[:, None] < self.ends[None, :])

    def mask(self, dtype: torch.dtype = torch.float32, past: int = 0) -> Tensor:
        """Float [1, 1, T, past + T]: 0 where attention is allowed, ``finfo(dtype).min`` elsewhere.

        Every token may attend to the ``past`` tokens kept before the pack. Float, because eager attention adds a
        boolean mask as 0 and 1 and is silently wrong.
        """
        mask = torch.zeros(len(self), past + len(self), dtype=dtype, device=self.ids.device)
        mask[:, past:].masked_fill_(~self.allowed, torch.finfo(dtype).min)
        return mask[None, None]

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on another device."""
        paths = [path.to(device) for path in self.paths]
        return Pack(self.ids.to(device), self.positions.to(device), self.ends.to(device), paths, self.members)

    def predictions(self, starts: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Where the tokens ``sequence[start:]`` of every member are predicted, and what they are.

        ``starts`` belongs to the job (start of sequence i at ``starts[i]``, at least 1). Returns places LongTensor[N]
        of the tokens before, target ids LongTensor[N], and the number of targets of each member in order.
        """
        cuts = [starts[m] for m in self.members]
        if cuts and min(cuts) < 1:
            raise ValueError("A sequence's first token has nothing before it to be predicted from: starts begin at 1.")
        places = [path[cut - 1 : -1] for path, cut in zip(self.paths, cuts, strict=True)]
        wanted = [self.ids[path[cut:]] for path, cut in zip(self.paths, cuts, strict=True)]
        return torch.cat(places), torch.cat(wanted), [len(w) for w in wanted]


def pack(sequences: Sequence[Ids], budget: int = 2048) -> list[Pack]:
    """All of ``packs`` at once."""
    return list(packs(sequences, budget))


def packs(sequences: Sequence[Ids], budget: int = 2048) -> Iterator[Pack]:
    """Pack token sequences into rows of at most ``budget`` tokens, common beginnings shared inside a row.

    Each is made when it is asked for, so that a long job's packs never stand in memory together. Duplicates and proper
    prefixes cost nothing. Rows are filled greedily over the sorted sequences; a new row repeats the beginning it
    needs, so that after a long common beginning a row takes half a budget more, and a sequence longer than the budget
    makes a longer row. Deterministic; every sequence is a member of exactly one pack. Raises ValueError on an empty
    sequence.
    """
    rows = [np.asarray(s, dtype=np.int64) for s in sequences]
    for i, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"Sequence {i} has no tokens; every sequence needs at least one (a BOS token will do).")
    # these bytes sort as the ids would, in four bytes each
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">u4").tobytes())
    builder = _Builder()
    for i in reversed(order):  # descending: a proper prefix follows a branch it lies on, wherever the budget cuts
        shared = builder.shared(rows[i])
        fresh = len(rows[i]) - shared
        if builder.members and fresh and builder.size + fresh > max(budget, shared + budget // 2):
            yield builder.finish()
            builder = _Builder()
        builder.add(i, rows[i])
    if builder.members:
        yield builder.finish()


def pack_budget(device: torch.device | str, wanted: int = 0) -> int:
    """Tokens in a pack: what is wanted, or if that is 0 what suits the device."""
    return wanted or (CPU_PACK if torch.device(device).type == "cpu" else PACK)


class _Builder:
    """One pack in the making. Sequences arrive in descending order, so the last branch shares the most."""

    def __init__(self) -> None:
        nothing = np.empty(0, np.int64)
        self.size, self.row, self.branch = 0, nothing, nothing  # branch: the places of row's tokens
        self.ids, self.depths, self.paths = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        self.closed: list[tuple[np.ndarray, int]] = []  # places whose subtree ends there
        self.members: list[int] = []

    def shared(self, row: np.ndarray) -> int:
        n = min(len(row), len(self.row))
        differs = row[:n] != self.row[:n]
        return int(differs.argmax()) if differs.any() else n

    def add(self, member: int, row: np.ndarray) -> None:
        known = self.shared(row)
        if known < len(row):
            self.closed.append((self.branch[known:], self.size))
            fresh = np.arange(self.size, self.size + len(row) - known)
            self.ids.append(row[known:])
            self.depths.append(np.arange(known, len(row)))
            self.row, self.branch = row, np.concatenate([self.branch[:known], fresh])
            self.size += len(fresh)
        self.paths.append(self.branch[: len(row)])  # of a duplicate or prefix: the branch it lies on
        self.members.append(member)

    def finish(self) -> Pack:
        ends = np.full(self.size, self.size)
        for places, end in self.closed:
            ends[places] = end
        ids, depths = np.concatenate(self.ids), np.concatenate(self.depths)
        paths = [torch.from_numpy(path.copy()) for path in self.paths]
        return Pack(torch.from_numpy(ids), torch.from_numpy(depths), torch.from_numpy(ends), paths, self.members)


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside an adapter wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body(model: Any) -> nn.Module:
    """The model without its language-model head; its output's ``last_hidden_state`` is normed and ready for one."""
    return unwrap(model).base_model


def supports_trees(model: Any) -> bool:
    """Whether attention in this model takes our masks and positions, decided from its class and config.

    False for sliding-window or chunked attention, recurrent layers, biases by distance (ALiBi), encoder-decoders and
    attention kernels without dense masks.
    """
    inner, config = body(model), unwrap(model).config
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)
    return (
        "position_ids" in inspect.signature(inner.forward).parameters
        and config._attn_implementation in ("eager", "sdpa")
        and set(layer_types) == {"full_attention"}
        and not sliding
        and not getattr(inner, "_is_stateful", False)
        and not getattr(config, "alibi", False)
        and not getattr(config, "is_encoder_decoder", False)
        and "local" not in getattr(config, "attention_layers", [])
    )


@functools.cache
def explain_fallback(kind: str) -> None:
    """Say once per kind of model, on stderr, that it is read in padded rows."""
    why = "its attention cannot read prefix trees; using padded batches (same numbers, slower)"
    print(f"{kind}: {why}.", file=sys.stderr)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off inside; every submodule's own train/eval mode is restored afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def precision(module: nn.Module) -> Iterator[torch.dtype]:
    """The dtype that masks must have; autocast is on inside if the parameters are of several dtypes."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} or {torch.float32}
    if len(dtypes) == 1:
        yield dtypes.pop()
        return
    device, low = next(module.parameters()).device.type, min(dtypes, key=lambda d: d.itemsize)
    with torch.autocast(device, dtype=low):
        yield torch.float32


def run_body(inner: nn.Module, pack: Pack, states: Tensor | None = None, trees: bool = True) -> Tensor:
    """Run a Hugging Face body over a pack, from its ids or from ``states`` [T, H]; returns [T, H].

    ``trees=False`` reads the paths as padded rows instead.
    """
    with precision(inner) as dtype:
        if not trees:
            return _run_padded(inner, pack, states)
        given = {"input_ids": pack.ids[None]} if states is None else {"inputs_embeds": states[None]}
        mask, positions = pack.mask(dtype), pack.positions[None]
        return inner(**given, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state[0]


def _run_padded(inner: nn.Module, pack: Pack, states: Tensor | None) -> Tensor:
    """Every path in its own right-padded row; each place of the pack is read from the first path through it."""
    source = pack.ids if states is None else states
    order = sorted(range(len(pack.paths)), key=lambda m: -len(pack.paths[m]))
    seen = torch.zeros(len(pack), dtype=torch.bool, device=source.device)
    places, found = [], []
    while order:
        batch = [order.pop(0)]
        longest = len(pack.paths[batch[0]])
        while order and (len(batch) + 1) * longest <= PAD_ROWS_TOKENS:
            batch.append(order.pop(0))
        paths = [pack.paths[m] for m in batch if not seen[pack.paths[m][-1]]]  # else it lies inside a longer path
        if not paths:
            continue
        real = nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in paths], batch_first=True)
        rows = nn.utils.rnn.pad_sequence([source[p] for p in paths], batch_first=True)
        given = {"input_ids": rows} if states is None else {"inputs_embeds": rows}
        out = inner(**given, attention_mask=real, use_cache=False).last_hidden_state
        for b, path in enumerate(paths):
            new = ~seen[path]
            seen[path] = True
            places.append(path[new])
            found.append(out[b, : len(path)][new])
    return torch.cat(found)[torch.argsort(torch.cat(places))]


def hidden(model: Any, pack: Pack) -> Tensor:
    """Last hidden states [T, H] after the final norm, with gradients, for every token of the pack."""
    trees = supports_trees(model)
    if not trees:
        explain_fallback(unwrap(model).config.model_type)
    return run_body(body(model), pack, trees=trees)


def forward(model: Any, pack: Pack, *, positions_wanted: Tensor | None = None) -> Tensor:
    """Logits float32 [N, V] after the tokens at places ``positions_wanted`` (LongTensor[N]; None: every token).

    The head runs on the wanted rows only.
    """
    states = hidden(model, pack)
    return logits(model, states if positions_wanted is None else states[positions_wanted])


def logits(model: Any, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
    """The vocabulary head on rows [N, H] -> [N, V], always in float32, whatever autocast says.

    ``weight`` [V, H] stands in for the head's own weight (a float32 copy kept by the caller saves the cast).
    """
    inner = unwrap(model)
    head, config = inner.get_output_embeddings(), inner.config
    weight = head.weight if weight is None else weight
    bias = getattr(head, "bias", None)
    with torch.autocast(hidden.device.type, enabled=False):
        out = F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
        if scale := getattr(config, "logit_scale", None):  # Cohere
            out = out * scale
        if scale := getattr(config, "logits_scaling", None):  # Granite
            out = out / scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            out = torch.tanh(out / cap) * cap
    return out


def gather_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities in nats, float32 [N], of ``targets`` [N] under ``logits`` [N, V]."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
