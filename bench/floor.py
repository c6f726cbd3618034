"""The least that a job must cost: floating-point operations of distinct tokens, and bytes that must be read.

Counts are for Llama-shaped models; a multiplication and an addition are two operations. Norms, rotations and softmax
are left out, so the floor is below what any program can reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Ids = Sequence[int]


@dataclass(frozen=True)
class Shape:
    """What a config says about the cost of a token. ``width`` is heads × head width; ``item`` bytes per number."""

    layers: int
    hidden: int
    width: int
    kv_width: int
    inner: int
    vocabulary: int
    item: int = 4

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a Hugging Face config. Raises ValueError for another kind of model."""
        if config.get("model_type") != "llama":
            raise ValueError(f"the floor is known for models of type llama, not {config.get('model_type')}")
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"] * head,
            config["num_key_value_heads"] * head,
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer."""
        return self.hidden * (2 * self.width + 2 * self.kv_width + 3 * self.inner)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all layers and of the head: what one pass over the model reads at least."""
        return self.item * (self.layers * self.layer_weights + self.hidden * self.vocabulary)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return self.item * 2 * self.layers * self.kv_width

    def flops(self, tokens: int, keys: int, heads: int) -> int:
        """Of ``tokens`` read, which see ``keys`` tokens in all (themselves included), and ``heads`` predictions."""
        linear = 2 * self.layers * self.layer_weights * tokens
        attention = 4 * self.layers * self.width * keys
        return linear + attention + 2 * self.hidden * self.vocabulary * heads


@dataclass(frozen=True)
class Work:
    """Tokens that must be read, the sum of their depths (1-based), and the places where a token is predicted."""

    tokens: int
    keys: int
    heads: int


@dataclass(frozen=True)
class Machine:
    """What this machine does at best: matrix products in FLOP/s, memory in bytes/s, at ``threads`` threads."""

    flops: float
    bandwidth: float
    threads: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Floor:
    """Seconds below which a job cannot be done on this machine, by arithmetic and by memory."""

    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)


def scoring_work(sequences: Sequence[Ids], starts: Sequence[int]) -> Work:
    """What scoring the tokens ``sequence[start:]`` takes if every common beginning is read once.

    The last token of a sequence is predicted, never read.

    >>> scoring_work([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7]], [2, 2, 2])
    Work(tokens=3, keys=6, heads=2)
    """
    read = sorted({tuple(sequence[:-1]) for sequence in sequences})
    tokens = keys = 0
    before: tuple[int, ...] = ()
    for row in read:
        known = _common(before, row)
        tokens += len(row) - known
        keys += _sum_to(len(row)) - _sum_to(known)
        before = row
    heads = {
        hash(tuple(sequence[:place]))
        for sequence, start in zip(sequences, starts, strict=True)
        for place in range(start, len(sequence))
    }
    return Work(tokens, keys, len(heads))


def plain_work(sequences: Sequence[Ids], starts: Sequence[int]) -> Work:
    """What reading every sequence by itself takes, last tokens included, with the head at the scored places only."""
    return Work(
        sum(map(len, sequences)),
        sum(_sum_to(len(s)) for s in sequences),
        sum(len(s) - start for s, start in zip(sequences, starts, strict=True)),
    )


def sampling_work(prompts: Sequence[Ids], lengths: Sequence[Sequence[int]]) -> Work:
    """What drawing replies of these lengths takes if every distinct prompt is read once.

    A reply's last token is drawn, never read; its first is predicted from the prompt's last token.
    """
    body = scoring_work([[*p, -1] for p in prompts], [len(p) for p in prompts])
    tokens, keys, heads = body.tokens, body.keys, 0
    for prompt, replies in zip(prompts, lengths, strict=True):
        heads += sum(replies) - len(replies) + 1
        for length in replies:
            tokens += length - 1
            keys += _sum_to(len(prompt) + length - 1) - _sum_to(len(prompt))
    return Work(tokens, keys, heads)


def training_flops(shape: Shape, sequences: Sequence[Ids], frozen: int = 0) -> int:
    """Operations of one step of training on sequences whose common beginnings are read once, the head left out.

    Twice a forward pass more for the gradients, in the layers that are trained.
    """
    work = scoring_work([[*s, -1] for s in sequences], [len(s) for s in sequences])
    whole = shape.flops(work.tokens, work.keys, 0)
    return whole + 2 * whole * (shape.layers - frozen) // shape.layers


def sampling_bytes(shape: Shape, prompts: Sequence[Ids], lengths: Sequence[Sequence[int]]) -> int:
    """Bytes that drawing must read: the weights once a step for all replies together, and the kept keys and values.

    A prompt's are read once a step for all its living replies, a reply's own at each of its steps.
    """
    steps = max((length for replies in lengths for length in replies), default=0)
    tokens = 0
    for prompt, replies in zip(prompts, lengths, strict=True):
        tokens += len(prompt) * (max(replies) - 1) + sum(_sum_to(length - 1) for length in replies)
    return steps * shape.weight_bytes + shape.kv_bytes * tokens


def floor(shape: Shape, work: Work, num_bytes: int, machine: Machine) -> Floor:
    """The floor in seconds of a job on a machine."""
    return Floor(shape.flops(work.tokens, work.keys, work.heads) / machine.flops, num_bytes / machine.bandwidth)


def _common(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _sum_to(n: int) -> int:
    """1 + 2 + … + n."""
    return n * (n + 1) // 2
