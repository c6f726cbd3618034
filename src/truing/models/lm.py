"""LM: a model, its tokenizer and the engine; texts and dialogues in, log-probabilities and samples out."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from truing.models import lora, tree
from truing.models.draw import Settings, Trace, check_settings, make_rows
from truing.models.engine import Engine
from truing.models.load import load_model, quiet, whole_folder
from truing.text import HUMAN, Format, encode, format_of, pieces, split_context
from truing.types import Dialogue, Sample

if TYPE_CHECKING:
    from truing.models.remote import AnyLM


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probability in nats of ``num_tokens`` tokens; ``boundary`` if a token spanned the join of the two parts."""

    logprob: float
    num_tokens: int
    boundary: bool = False


class LM:
    """A language model that reads dialogues in its own format: ``chat`` (its template) or ``hh`` (2204.05862 §2)."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "", format: Format | None = None) -> None:
        """Raises ValueError for ``format="chat"`` without a chat template, or a tokenizer larger than the model."""
        if format not in (None, "hh", "chat"):
            raise ValueError(f"format is {format!r}; expected hh or chat.")
        if format == "chat" and format_of(tokenizer) != "chat":
            raise ValueError(f"The tokenizer of {name or 'this model'!r} has no chat template; use format='hh'.")
        rows = tree.unwrap(model).get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ValueError(
                f"The tokenizer of {name or 'this model'!r} has {len(tokenizer)} tokens and the model knows {rows}: "
                "they do not belong together."
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.format: Format = format or format_of(tokenizer)
        self.engine = Engine(model, _eos_ids(model, tokenizer), tokenizer.pad_token_id or 0)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        format: Format | None = None,
    ) -> LM:
        """Any model name truing knows (`truing.models.load`). Raises UnknownModel or ValueError."""
        model, tokenizer = load_model(name, device=device, dtype=dtype)
        return cls(model, tokenizer, name=str(name), format=format)

    def with_model(self, model: Any) -> LM:
        """The same tokenizer, name and format with other weights of the same shape (a policy in training)."""
        return LM(model, self.tokenizer, name=self.name, format=self.format)

    def encode_prompt(self, prompt: Dialogue | str) -> list[int]:
        """Token ids to be continued: a dialogue in the model's format, text as it is (after a BOS, if there is one)."""
        if isinstance(prompt, Dialogue):
            return encode(prompt, self.tokenizer, self.format)
        return split_context(prompt, "", self.tokenizer)[0]

    def render(self, prompt: Dialogue | str) -> str:
        """A prompt as the text that the model reads (after a BOS, if there is one)."""
        return "".join(pieces(prompt, self.tokenizer, self.format)) if isinstance(prompt, Dialogue) else prompt

    def too_long(self, items: Sequence[Dialogue | str | tuple[str, str]]) -> tuple[int, str] | None:
        """The place of the first item that the model's window has no room for, and its size in words; None if all fit.

        Dialogues are prompts: they need room for one token of a reply. Others are scored as they are.
        """
        window = getattr(self.engine.config, "max_position_embeddings", None)
        if window is None:
            return None
        for i, item in enumerate(items):
            if isinstance(item, Dialogue):
                size = len(self.encode_prompt(item)) + 1
            else:
                context, continuation = ("", item) if isinstance(item, str) else item
                if len((context + continuation).encode()) + 2 <= window:
                    continue  # a token is a byte or more
                head, tail, _ = split_context(context, continuation, self.tokenizer)
                size = len(head) + len(tail)
            if size > window:
                room = ", and a reply needs room" if isinstance(item, Dialogue) else ""
                return i, f"{size - isinstance(item, Dialogue)} tokens; the model reads at most {window}{room}"
        return None

    def score(
        self, items: Sequence[str | tuple[str, str]], *, progress: Callable[[int, int], None] | None = None
    ) -> list[Scored]:
        """Log-probabilities in nats of texts, or of continuations given contexts, ``(context, continuation)``.

        A text's first token counts only after a BOS. ``progress`` is called with finished and all texts.
        Raises ValueError on a text longer than the model reads.
        """
        sequences, starts, flags = [], [], []
        for item in items:
            context, continuation = ("", item) if isinstance(item, str) else item
            head, tail, boundary = split_context(context, continuation, self.tokenizer)
            sequences.append(np.array(head + tail, dtype=np.int32))  # a list takes ten times the memory
            starts.append(max(1, len(head)))
            flags.append(boundary)
        full = [i for i, sequence in enumerate(sequences) if len(sequence) > starts[i]]
        found = self.engine.score([sequences[i] for i in full], [starts[i] for i in full], progress=progress)
        out = [Scored(0.0, 0, flag) for flag in flags]
        for i, logprobs in zip(full, found, strict=True):
            out[i] = Scored(float(logprobs.sum(dtype=np.float64)), len(logprobs), flags[i])
        return out

    def sample(
        self,
        prompts: Sequence[Dialogue | str],
        n: int = 1,
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
        stop_after: Sequence[str] = (),
        each: Sequence[Settings] | None = None,
        seed: int | Sequence[Sequence[int]] = 0,
        progress: Callable[[int, int], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
        trace: Trace | None = None,
    ) -> list[list[Sample]]:
        """``n`` replies to every dialogue, or continuations of every text.

        A reply to a dialogue also stops where the model writes the human's next turn; the space that HH text has
        before a reply is not part of ``Sample.text``. Text is cut before the first of ``stop`` and after the first of
        ``stop_after`` (vLLM calls that include_stop_str_in_output). ``each`` gives every prompt settings of its own;
        it, ``seed``, ``progress``, ``on_text`` and ``trace`` as in `Engine.sample`. Raises ValueError if a dialogue
        does not wait for a reply.
        """
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, Dialogue) and not prompt.is_prompt:
                raise ValueError(f"Dialogue {i} does not end in a human turn, so there is nothing to reply to.")
        talks = {isinstance(p, Dialogue) for p in prompts}
        if len(talks) > 1:
            raise ValueError("Sample dialogues and plain texts in calls of their own: they stop differently.")
        talk = talks == {True}
        if each is None:
            check_settings(n, max_tokens, temperature, top_p, top_k, stop, stop_after, self.tokenizer.decode)
            shared = Settings(max_tokens, temperature, top_p, top_k, tuple(stop), tuple(stop_after))
            each = [shared] * len(prompts)
        if talk:
            each = [dataclasses.replace(s, stops=(HUMAN, *(x for x in s.stops if x != HUMAN))) for s in each]
        spaced = talk and self.format == "hh"
        drawn = self.engine.sample(
            [self.encode_prompt(p) for p in prompts],
            n=n,
            each=each,
            decode=self.tokenizer.decode,
            seeds=seed,
            progress=progress,
            on_text=_unspaced(on_text) if on_text and spaced else on_text,
            trace=trace,
        )
        if not spaced:
            return drawn
        return [[dataclasses.replace(s, text=s.text.removeprefix(" ")) for s in samples] for samples in drawn]

    def seeds(self, prompts: Sequence[Dialogue | str], n: int, seed: int) -> list[list[int]]:
        """The seeds that ``sample`` gives to each of ``n`` replies to each prompt, for sampling a job in parts."""
        rows = make_rows([self.encode_prompt(p) for p in prompts], n, seed)
        return [[row.seed for row in rows[i : i + n]] for i in range(0, len(rows), n)]

    def label_logprobs(self, prompts: Sequence[Dialogue | str], labels: Sequence[str]) -> np.ndarray:
        """Log-probabilities in nats of every label after every prompt, float64 [N, L].

        Not renormalised: the exponentials of a row sum to the label mass. A label of several tokens is their sum.
        """
        heads, tails = [], []
        for prompt in prompts:
            if isinstance(prompt, Dialogue):
                head = self.encode_prompt(prompt)
                parts = [self.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
            else:
                splits = [split_context(prompt, label, self.tokenizer) for label in labels]
                head, parts = self.encode_prompt(prompt), [tail for _, tail, _ in splits]
            heads.append(np.array(head, dtype=np.int32))
            tails.append(parts)
        for label, part in zip(labels, tails[0] if tails else [], strict=False):
            if not part:
                raise ValueError(f"The label {label!r} has no tokens; a label needs at least one.")
        if all(len(part) == 1 for parts in tails for part in parts):
            found = self.engine.next_logprobs(heads, [[part[0] for part in parts] for parts in tails])
            return np.array(found, dtype=np.float64).reshape(len(prompts), len(labels))
        sequences = [
            np.append(head, np.int32(part)) for head, parts in zip(heads, tails, strict=True) for part in parts
        ]
        starts = [len(head) for head in heads for _ in labels]
        sums = [logprobs.sum(dtype=np.float64) for logprobs in self.engine.score(sequences, starts)]
        return np.array(sums).reshape(len(prompts), len(labels))

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder, whole or not at all, adapters merged; one of the same name is replaced."""
        with whole_folder(Path(folder)) as work, quiet():
            lora.merged(self.model).save_pretrained(work)
            self.tokenizer.save_pretrained(work)


def _unspaced(on_text: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """The same listener, spared the space that HH text has before a reply."""
    begun = set[tuple[int, int]]()

    def tell(prompt: int, reply: int, piece: str) -> None:
        if (prompt, reply) not in begun:
            begun.add((prompt, reply))
            piece = piece.removeprefix(" ")
        if piece:
            on_text(prompt, reply, piece)

    return tell


def show_prompt(lm: AnyLM, prompt: str | Dialogue, name: str = "First prompt") -> str:
    """Print a prompt as the model reads it, and its hash, on stderr; returns the hash (16 hex digits of sha256)."""
    text = lm.render(prompt)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    print(f"{name} (sha256 {digest}):\n{text}", file=sys.stderr)
    return digest


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids at which a reply ends: the tokenizer's EOS and those of the generation config."""
    listed = getattr(getattr(tree.unwrap(model), "generation_config", None), "eos_token_id", None)
    ids = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    return sorted({i for i in ids if i is not None})
