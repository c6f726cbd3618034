"""One step's replies as tensors: which tokens count, and where they stand in packed trees.

Replies are kept as the ids that were sampled, never re-tokenised. A reply's tokens end with its
stop, an end-of-sequence token or the token that completes a stop string; what a sampler drew after it is dropped
before anything is computed (row 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from truing.models.draw import Trace
from truing.models.lm import LM
from truing.models.tree import Pack, pack
from truing.text import HUMAN
from truing.types import Dialogue, Finish


@dataclass(frozen=True)
class Reply:
    """A sampled reply: kept token ids (the stop included), the sampler's log-probs of them, and the dialogue it ends.

    ``prompt`` is the place of its prompt among the prompts it was sampled with.
    """

    prompt: int
    prompt_ids: list[int]
    ids: list[int]
    sampler_logprobs: list[float]
    dialogue: Dialogue
    finish: Finish
    read: tuple[list[int], Tensor] | None = field(default=None, compare=False, repr=False)
    """What sampling has read of it, and the frozen trunk's states [T, H] of these ids (`draw.Trace`)."""

    def covers(self, ids: Sequence[int], needed: int) -> bool:
        """Whether the first ``needed`` of some ids are what sampling has read."""
        return self.read is not None and len(self.read[0]) >= needed and self.read[0][:needed] == list(ids[:needed])

    @property
    def kind(self) -> str:
        """``empty`` (no word in it), ``finished`` or ``capped`` (cut by the token limit): row 24's three."""
        if not any(c.isalnum() for c in self.dialogue.last.text):
            return "empty"
        return "finished" if self.finish == "stop" else "capped"


def kept(
    ids: Sequence[int], eos_ids: Sequence[int], stops: Sequence[str], decode: Callable[[list[int]], str]
) -> tuple[int, Finish]:
    """How many of the drawn tokens belong to the reply, and how it ended.

    Through the first end-of-sequence token or the token that completes a stop string, whichever comes first.
    """
    ids = list(ids)
    n, finish = len(ids), "length"
    for i, token in enumerate(ids):
        if token in eos_ids:
            n, finish = i + 1, "stop"
            break
    body = ids[: n - 1] if finish == "stop" else ids
    if any(stop in decode(body) for stop in stops):
        low, high = 1, len(body)  # the shortest beginning whose text holds a stop
        while low < high:
            middle = (low + high) // 2
            found = any(stop in decode(body[:middle]) for stop in stops)
            low, high = (low, middle) if found else (middle + 1, high)
        n, finish = low, "stop"
    return n, finish  # type: ignore[return-value]


def draw(
    lm: LM,
    prompts: Sequence[Dialogue],
    *,
    n: int,
    max_tokens: int,
    stop_after: Sequence[str] = (),
    seed: int | Sequence[Sequence[int]],
    trace: Trace | None = None,
) -> list[Reply]:
    """``n`` replies to each prompt, by plain sampling at temperature 1, in the order of the prompts.

    ``seed`` as in `LM.sample`. With a ``trace`` they keep what the frozen trunk computed of them.
    """
    eos, stops = list(lm.engine.eos_ids), [HUMAN, *stop_after]
    replies = []
    drawn = lm.sample(
        prompts, n=n, max_tokens=max_tokens, temperature=1.0, stop_after=stop_after, seed=seed, trace=trace
    )
    read = trace.found if trace else {}
    for i, (prompt, samples) in enumerate(zip(prompts, drawn, strict=True)):
        prompt_ids = list(lm.encode_prompt(prompt))
        for j, sample in enumerate(samples):
            n_kept, finish = kept(sample.token_ids, eos, stops, lm.tokenizer.decode)
            finish = "stop" if sample.finish == "stop" else finish
            ids, logprobs = list(sample.token_ids[:n_kept]), list((sample.logprobs or ())[:n_kept])
            replies.append(Reply(i, prompt_ids, ids, logprobs, prompt.reply(sample.text), finish, read.get((i, j))))
    return replies


@dataclass
class Part:
    """One packed tree of some replies of the batch.

    The n reply tokens in it are predicted from places ``places`` [n], stand in cells ``cells`` [n] of the batch's
    rectangle (row · width + t) and are ``targets`` [n]. The end-of-context tokens of m preference-model paths stand
    at ``ends`` [m] and belong to rows ``rows`` [m]. ``states`` [T, H] are the frozen trunk's, if there is one.
    """

    pack: Pack
    places: Tensor
    cells: Tensor
    targets: Tensor
    ends: Tensor
    rows: Tensor
    states: Tensor | None = None
    budget: int = 0
    """Tokens that its pack was allowed."""


def pack_replies(
    replies: Sequence[Reply],
    rows: Sequence[int],
    width: int,
    *,
    pm_paths: Sequence[Sequence[int]] | None = None,
    budget: int,
    device: torch.device | str = "cpu",
) -> list[Part]:
    """Pack the replies numbered ``rows`` (and their preference-model paths, if given) into trees.

    Equal beginnings stand once: the prompt of n replies, and a reply whose sampled tokens are the ones its text has.
    Replies of which sampling has kept all that is needed stand in packs of their own, which have their ``states``.
    """
    known = [r for r in rows if _is_known(replies[r], None if pm_paths is None else pm_paths[r])]
    rest = sorted(set(rows) - set(known))
    return [
        part
        for some in (known, rest)
        if some
        for part in _pack(replies, some, width, pm_paths, budget, device, known=some is known)
    ]


def _is_known(reply: Reply, path: Sequence[int] | None) -> bool:
    """Whether sampling has read every token whose state is needed: of the reply itself its last one is not."""
    whole = reply.prompt_ids + reply.ids
    return reply.covers(whole, len(whole) - 1) and (path is None or reply.covers(path, len(path)))


def _pack(
    replies: Sequence[Reply],
    rows: Sequence[int],
    width: int,
    pm_paths: Sequence[Sequence[int]] | None,
    budget: int,
    device: torch.device | str,
    known: bool,
) -> list[Part]:
    sequences = [replies[r].prompt_ids + replies[r].ids for r in rows]
    starts = [len(replies[r].prompt_ids) for r in rows]
    count = len(sequences)
    if pm_paths is not None:
        sequences += [list(pm_paths[r]) for r in rows]
        starts += [len(pm_paths[r]) for r in rows]  # nothing of these is predicted
    parts = []
    for packed in pack(sequences, budget):
        places, targets, lengths = packed.predictions(starts)
        offsets = [rows[m % count] * width + torch.arange(n) for m, n in zip(packed.members, lengths, strict=True)]
        scored = [(p[-1], rows[m - count]) for m, p in zip(packed.members, packed.paths, strict=True) if m >= count]
        ends, owners = (torch.tensor([int(pair[i]) for pair in scored], dtype=torch.long) for i in (0, 1))
        tensors = (t.to(device) for t in (places, torch.cat(offsets), targets, ends, owners))
        put, cells, wanted, last, whose = tensors
        part = Part(packed.to(device), put, cells, wanted, last, whose, budget=budget)
        if known:
            part.states = _states(packed, [replies[rows[m % count]] for m in packed.members]).to(device)
        parts.append(part)
    return parts


def _states(packed: Pack, owners: Sequence[Reply]) -> Tensor:
    """The trunk's states [T, H] of a pack whose members sampling has read; 0 at last tokens that nobody needs."""
    reads = [reply.read for reply in owners if reply.read]
    out = reads[0][1].new_zeros(len(packed), reads[0][1].shape[1])
    for path, (ids, states) in zip(packed.paths, reads, strict=True):
        have = min(len(path), len(ids))
        if have == len(path) and int(packed.ids[path[-1]]) != ids[have - 1]:
            have -= 1  # sampling went on with another token than this path's last
        out[path[:have].to(out.device)] = states[:have]
    return out


def mask_of(replies: Sequence[Reply], device: torch.device | str = "cpu") -> Tensor:
    """BoolTensor [N, L]: True on kept reply tokens; L is the longest reply's length."""
    lengths = torch.tensor([len(r.ids) for r in replies])
    return (torch.arange(int(lengths.max()))[None] < lengths[:, None]).to(device)


@dataclass
class Batch:
    """A step's numbers: [N] per reply, [N, L] per reply token (0 off the mask), all float32."""

    scores: Tensor
    mask: Tensor
    lp_old: Tensor
    lp_ref: Tensor
    kl: Tensor
    entropy: Tensor
    values: Tensor
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))
