"""Activations as numpy: the states of prompts' last tokens after every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from truing.models import split, tree
from truing.models.heads import FACTS, PreferenceModel, ScalarModel
from truing.models.lm import LM
from truing.models.load import find_model
from truing.models.memory import finish
from truing.text import encode
from truing.types import Dialogue


class StateReader:
    """Reads activations of a language model or of a preference model's body. ``tokens_run`` counts tokens read.

    While ``counting``, tokens are counted and not read: the states are zeros.
    """

    def __init__(self, model: LM | ScalarModel) -> None:
        self.model: Any = model.model if isinstance(model, LM) else model.backbone
        self.tokenizer, self.format = model.tokenizer, model.format
        self.budget = tree.pack_budget(next(self.model.parameters()).device)  # less once memory has run out
        self.tokens_run, self.counting = 0, False

    @classmethod
    def load(cls, name: str, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> StateReader:
        """Any model name truing knows, preference models too. Raises UnknownModel or ValueError."""
        folder = find_model(name)
        if isinstance(folder, Path) and (folder / FACTS).is_file():
            return cls(PreferenceModel.load(name, device=device, dtype=dtype))
        return cls(LM.load(name, device=device, dtype=dtype))

    @property
    def num_layers(self) -> int:
        """Layers of the model; states are read after each."""
        return split.num_layers(self.model)

    def ids(self, prompt: Dialogue, max_length: int = 1024) -> list[int]:
        """Token ids of a prompt that waits for a reply; one that is too long loses its beginning, not its BOS."""
        window = getattr(tree.unwrap(self.model).config, "max_position_embeddings", None) or max_length
        limit, ids = min(max_length, window), encode(prompt, self.tokenizer, self.format)
        if len(ids) <= limit:
            return ids
        keep = 1 if ids[0] == self.tokenizer.bos_token_id else 0
        return ids[:keep] + ids[len(ids) - limit + keep :]

    def read(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """States of every sequence's last token after each layer, float32 [layers, N, H], before the final norm.

        A sequence's states depend neither on its neighbours nor on their order.
        """
        config = tree.unwrap(self.model).config
        out = np.zeros((self.num_layers, len(sequences), config.hidden_size), np.float32)
        trees = tree.supports_trees(self.model)
        if self.counting:
            self.tokens_run += sum(map(len, self._packs(sequences, self.budget, trees)))
            return out

        def some(left: list[int], budget: int) -> Iterator[list[int]]:
            for pack in self._packs([sequences[i] for i in left], budget, trees):
                pack = pack.to(next(self.model.parameters()).device)
                ends = torch.stack([path[-1] for path in pack.paths])
                with _watching(split.layers(self.model), ends) as seen:
                    tree.run_body(tree.body(self.model), pack, trees=trees)
                out[:, [left[m] for m in pack.members]] = torch.stack(seen).float().cpu().numpy()
                self.tokens_run += len(pack)
                yield pack.members

        with torch.no_grad(), tree.evaluating(tree.body(self.model)):
            self.budget = finish(len(sequences), some, self.budget, "reading {} tokens at once")
        return out

    def _packs(self, sequences: Sequence[Sequence[int]], budget: int, trees: bool) -> Iterator[tree.Pack]:
        """Packs; for a model that reads no trees, of one sequence each, whose places are then those of its row."""
        if trees:
            yield from tree.packs(sequences, budget)
            return
        tree.explain_fallback(tree.unwrap(self.model).config.model_type)
        for i, sequence in enumerate(sequences):
            for pack in tree.packs([sequence], budget):
                pack.members = [i]
                yield pack


class _watching:
    """While open, what each layer gives at some places of the one row that is read: a list of [places, H]."""

    def __init__(self, layers: nn.ModuleList, places: Tensor) -> None:
        self.layers, self.places = layers, places

    def __enter__(self) -> list[Tensor]:
        self.seen: list[Tensor] = []
        self.hooks = [layer.register_forward_hook(self._see) for layer in self.layers]
        return self.seen

    def __exit__(self, *problem: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, layer: nn.Module, given: Any, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        self.seen.append(states[0, self.places])
