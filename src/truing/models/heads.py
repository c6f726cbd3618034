"""One head: a language model's body with one scalar per token. Preference model, value function and P(IK) are it.

They are saved as ``AutoModelForSequenceClassification`` folders (``num_labels=1``), so that other tools load them;
``truing.json`` beside the weights holds what such a folder cannot say.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from truing.models import lora, split, tree
from truing.models.lm import LM
from truing.models.load import find_model, load_tokenizer, model_file, quiet, whole_folder
from truing.models.memory import finish
from truing.models.tree import Pack
from truing.text import Format, encode, pieces
from truing.types import Dialogue

EOC = "<|end_of_context|>"
FACTS = "truing.json"
_SPARE = ("<empty_output>", "<|reserved_special_token_", "<|extra_", "<unused", "<extra_id_")
_NAMES = {"pm": "a preference model", "value": "a value function", "p_ik": "a P(IK) model"}


class ScalarModel(nn.Module):
    """A body and ``head`` (Linear H → 1, no bias, float32): one scalar for every token of a pack.

    ``backbone`` is a Hugging Face body without its vocabulary head. ``frozen_layers`` lower layers are not trained.
    """

    kind: ClassVar[str] = ""

    def __init__(
        self,
        backbone: Any,
        head: nn.Linear,
        tokenizer: Any,
        *,
        eoc_id: int | None = None,
        pad_id: int | None = None,
        format: Format = "hh",
        reference_mean: float = 0.0,
        frozen_layers: int = 0,
        base: str = "",
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.tokenizer = backbone, head.float(), tokenizer
        self.eoc_id, self.pad_id, self.format = eoc_id, pad_id, format
        self.reference_mean, self.frozen_layers, self.base = reference_mean, frozen_layers, base
        self.most_tokens = sys.maxsize  # less once memory has run out
        self.tokens_run, self.counting = 0, False  # by `read`; while counting nothing is read, and scalars are 0
        self.eval()

    @classmethod
    def new(cls, lm: LM, *, seed: int = 0, frozen_layers: int = 0, head_std: float | None = None) -> Self:
        """A fresh head on a copy of ``lm``'s body (the lower ``frozen_layers`` and the embeddings are shared).

        The head's weights are normal with deviation ``head_std``; by default small enough that scores begin near
        0.1, yet not zero: a zero head gives the body no gradient. Value functions begin with a head of zeros.
        """
        backbone = split.share_trunk(tree.body(lm.model), frozen_layers)
        tokenizer, eoc, pad = _special_tokens(lm.tokenizer, wants_eoc=cls.kind == "pm")
        _make_room(backbone, tokenizer, lm.tokenizer)
        width = backbone.config.hidden_size
        head = nn.Linear(width, 1, bias=False)
        std = 0.0 if cls.kind == "value" else 0.1 / math.sqrt(width + 1) if head_std is None else head_std
        weights = torch.empty(1, width).normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed)) * std
        head.weight.data.copy_(weights)
        return cls(
            backbone,
            head.to(backbone.device),
            tokenizer,
            eoc_id=eoc,
            pad_id=pad,
            format=lm.format,
            frozen_layers=frozen_layers,
            base=lm.name,
        )

    def values(self, pack: Pack, states: Tensor | None = None) -> Tensor:
        """One scalar per token of a pack, float32 [T], with gradients.

        ``states`` [T, H] are the frozen trunk's (`truing.models.split.trunk_states`), if they are at hand.
        """
        return self.project(split.top_hidden(self.backbone, pack, states, self.frozen_layers))

    def project(self, hidden: Tensor) -> Tensor:
        """The head on hidden states [N, H] → [N], in float32 whatever autocast says."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float()).squeeze(-1)

    def read(self, sequences: Sequence[Sequence[int]], *, budget: int = 0) -> np.ndarray:
        """The scalar at the last token of every sequence, float32 [N]; beginnings in common are read once.

        A sequence's number depends neither on its neighbours nor on their order.
        """
        out = np.zeros(len(sequences), np.float32)
        budget = tree.pack_budget(self.device, budget)
        if self.counting:
            self.tokens_run += sum(map(len, tree.packs(sequences, budget)))
            return out

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            for pack in tree.packs([sequences[i] for i in left], budget):
                hidden = split.top_hidden(self.backbone, pack.to(self.device), None, self.frozen_layers)
                last = torch.stack([path[-1] for path in pack.paths])
                out[[left[m] for m in pack.members]] = self.project(hidden[last.to(self.device)]).cpu().numpy()
                self.tokens_run += len(pack)
                yield pack.members

        with torch.no_grad(), tree.evaluating(self):
            fitted = finish(len(sequences), some, min(budget, self.most_tokens), "scoring {} tokens at once")
        self.most_tokens = fitted if fitted < min(budget, self.most_tokens) else self.most_tokens
        return out

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes: the head, and the body (or its adapters) above frozen layers."""
        body = split.top_parameters(self.backbone, self.frozen_layers)
        if lora.adapted(self.backbone):
            body = [(name, p) for name, p in body if "lora_" in name]
        return [(f"backbone.{name}", p) for name, p in body] + list(self.head.named_parameters("head"))

    @property
    def device(self) -> torch.device:
        """Where the body lies."""
        return next(self.backbone.parameters()).device

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder, whole or not at all; one of the same name is replaced.

        Adapters are merged into the weights. ``weights`` (name in the body → tensor) stand in for a body that lies
        in parts in several processes. Plain ``AutoModelForSequenceClassification`` scores text + end-of-context
        string, padded on the right, alike.
        """
        told = {k: v for k, v in self.backbone.config.to_dict().items() if k not in ("id2label", "label2id")}
        config = type(self.backbone.config).from_dict({**told, "num_labels": 1, "pad_token_id": self.pad_id})
        with torch.device("meta"):
            whole: Any = AutoModelForSequenceClassification.from_config(config)
        setattr(whole, whole.base_model_prefix, lora.merged(self.backbone))
        whole.score = self.head
        state = None
        if weights is not None:
            state = {f"{whole.base_model_prefix}.{name}": weight for name, weight in weights.items()}
            state |= {f"score.{name}": weight for name, weight in self.head.state_dict().items()}
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.padding_side = "right"
        if hasattr(tokenizer, "backend_tokenizer"):  # remembers the side of its last padded call, and saves that
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.pad_id)
        facts = {
            "kind": self.kind,
            "eoc": None if self.eoc_id is None else tokenizer.convert_ids_to_tokens(self.eoc_id),
            "format": self.format,
            "reference_mean": self.reference_mean,
            "frozen_layers": self.frozen_layers,
            "base": self.base,
        }
        with whole_folder(Path(folder)) as work, quiet():
            whole.save_pretrained(work, state_dict=state)
            tokenizer.save_pretrained(work)
            (work / FACTS).write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, name: str | Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load a saved folder, or the run that holds one (its ``model/``), in eval mode.

        Raises UnknownModel if nothing has that name, ValueError if it is not a model of this kind.
        """
        source = find_model(name)
        facts = _facts(source, name, cls.kind)
        try:
            with quiet():
                loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                    source, dtype=dtype, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"The model in {str(name)!r} could not be read: {_first_line(error)}") from error
        whole, info = loaded
        body, head = getattr(whole, whole.base_model_prefix), getattr(whole, "score", None)
        wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        if wrong or not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
            raise ValueError(
                f"{str(name)!r} is not {_NAMES[cls.kind]}: expected a body and one scalar head 'score' without bias"
                + (f"; missing or of another shape: {', '.join(sorted(wrong)[:3])}." if wrong else ".")
            )
        tokenizer = load_tokenizer(source)
        eoc = facts["eoc"] and tokenizer.convert_tokens_to_ids(facts["eoc"])
        pad = whole.config.pad_token_id
        _check_ids(name, cls.kind, eoc, tokenizer.eos_token_id, pad, whole.config.vocab_size)
        return cls(
            body.to(device),
            head.to(device),
            tokenizer,
            eoc_id=eoc,
            pad_id=pad,
            format=facts["format"],
            reference_mean=float(facts["reference_mean"]),
            frozen_layers=int(facts["frozen_layers"]),
            base=str(facts["base"]),
        )


class PreferenceModel(ScalarModel):
    """Scores the last reply of a dialogue, read at a token of its own after it (2204.05862 App A.2)."""

    kind = "pm"

    def pm_ids(self, dialogue: Dialogue, max_length: int = 1024) -> list[int]:
        """Prompt, reply and the end-of-context token; the beginning is cut (a BOS stays) if there are too many.

        No end-of-turn marker stands after the reply, so finished replies and capped ones look alike.
        Raises ValueError if the dialogue does not end in a reply.
        """
        if not len(dialogue) or dialogue.last.role != "assistant":
            raise ValueError("A preference model scores a reply: the dialogue must end in an assistant turn.")
        limit = min(max_length, getattr(self.backbone.config, "max_position_embeddings", None) or max_length)
        if limit < 3:
            raise ValueError(f"max_length is {max_length}; a reply and its end need at least 3 tokens.")
        ids = [*encode(dialogue, self.tokenizer, self.format), self.eoc_id]
        if len(ids) <= limit:
            return ids  # type: ignore[return-value]
        keep = 1 if ids[0] == self.tokenizer.bos_token_id else 0
        return ids[:keep] + ids[len(ids) - limit + keep :]  # type: ignore[return-value]

    def text(self, dialogue: Dialogue) -> str:
        """The dialogue as plain text with the end-of-context token's string: what other tools tokenize and score."""
        return "".join(pieces(dialogue, self.tokenizer, self.format)) + self.tokenizer.convert_ids_to_tokens(
            self.eoc_id
        )

    def score(
        self, dialogues: Sequence[Dialogue], *, centred: bool = True, max_length: int = 1024, budget: int = 0
    ) -> np.ndarray:
        """Scores float32 [N] of the last replies; the stored reference mean is taken off unless ``centred=False``.

        Only centred scores may be compared between preference models (2204.05862 App B.2).
        """
        scores = self.read([self.pm_ids(d, max_length) for d in dialogues], budget=budget)
        return scores - np.float32(self.reference_mean) if centred else scores


class ValueModel(ScalarModel):
    """The value function of PPO: its head begins at zero, so that the first values are 0."""

    kind = "value"


class PIK(ScalarModel):
    """P(IK): the chance that the model's own answer will be right, read at a prompt's last token (2207.05221 §5)."""

    kind = "p_ik"

    def probability(self, prompts: Sequence[Sequence[int]], *, budget: int = 0) -> np.ndarray:
        """σ of the scalar at the last token of every prompt's ids, float32 [N]."""
        return 1 / (1 + np.exp(-self.read(prompts, budget=budget).astype(np.float64))).astype(np.float32)


def end_of_context(lm: LM) -> int:
    """The id at which a new preference model on this language model reads scores; it may lie past the embeddings."""
    _, eoc, _ = _special_tokens(lm.tokenizer, wants_eoc=True)
    assert eoc is not None
    return eoc


def _special_tokens(tokenizer: Any, *, wants_eoc: bool) -> tuple[Any, int | None, int]:
    """A copy of the tokenizer with the ids of end-of-context (if wanted) and padding, both unlike EOS and BOS.

    Unused special tokens that the tokenizer owns are taken first; else tokens are added.
    """
    tokenizer = copy.deepcopy(tokenizer)
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    owned = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    template = str(tokenizer.chat_template or "")

    def choose(wanted: str) -> str:
        free = [s for s in owned if s.startswith(_SPARE) and s not in taken and s not in template]
        name = wanted if wanted in owned else free[0] if free else wanted
        if name not in owned:
            tokenizer.add_tokens([name], special_tokens=True)
        taken.add(name)
        return name

    pad = tokenizer.pad_token if tokenizer.pad_token not in {None, *taken} else None
    taken.add(pad)
    eoc = choose(EOC) if wants_eoc else None
    tokenizer.pad_token = pad or choose("<|pad|>")
    eoc_id = None if eoc is None else tokenizer.convert_tokens_to_ids(eoc)
    return tokenizer, eoc_id, tokenizer.pad_token_id


def _make_room(backbone: Any, tokenizer: Any, before: Any) -> None:
    """Larger embeddings for added tokens; their rows begin as EOS's (rows already there are left alone).

    A module of its own: transformers' resizing changes in place what a shared trunk shares.
    """
    old = backbone.get_input_embeddings()
    rows, width = old.weight.shape
    if len(tokenizer) <= rows:
        return
    like = before.eos_token_id if before.eos_token_id is not None else 0
    added = old.weight.data[like].expand(len(tokenizer) - rows, width)
    new = nn.Embedding.from_pretrained(
        torch.cat([old.weight.data, added]), freeze=not old.weight.requires_grad, padding_idx=old.padding_idx
    )
    backbone.set_input_embeddings(new)
    backbone.config.vocab_size = len(tokenizer)


def _facts(source: str | Path, name: object, kind: str) -> dict[str, Any]:
    expected = f"expected {_NAMES[kind]} saved by truing"
    path = model_file(source, FACTS, name)
    if path is None:
        raise ValueError(f"{str(name)!r} is not one of truing's scalar models (it has no {FACTS}); {expected}.")
    try:
        facts = json.loads(path.read_text())
        found = facts["kind"]
        missing = {"eoc", "format", "reference_mean", "frozen_layers", "base"} - facts.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({type(error).__name__}); {expected}.") from error
    if found != kind:
        raise ValueError(f"{str(name)!r} is {_NAMES.get(found, repr(found))}; {expected}.")
    if missing:
        raise ValueError(f"{str(path)!r} lacks {', '.join(sorted(missing))}; {expected}.")
    return facts


def _check_ids(name: object, kind: str, eoc: int | None, eos: int | None, pad: int | None, vocab: int) -> None:
    """Three ids that differ, all inside the vocabulary."""
    if kind == "pm" and eoc is None:
        raise ValueError(f"{str(name)!r} has no end-of-context token in its tokenizer: the folder is incomplete.")
    ids = [i for i in (eoc, eos, pad) if i is not None]
    if pad is None or len(set(ids)) < len(ids) or max(ids) >= vocab:
        raise ValueError(
            f"{str(name)!r} has end-of-context {eoc}, EOS {eos} and padding {pad} in a vocabulary of {vocab}; "
            "expected three different ids inside it. The tokenizer does not belong to the weights."
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
