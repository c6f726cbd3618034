"""truing's engine as a model of lm-evaluation-harness (the package ``lm_eval``), whose tasks then run on it unchanged.

lm-eval knows the tasks: prompts, few-shot examples, where context and continuation are split, metrics. The engine
gets all requests of a job sorted, so that whatever they begin with in common is read once. In float32 answers equal
those of lm-eval's own Hugging Face model (``HFLM``) within rounding. lm-eval has no entry point for plug-ins, so
``harness_class`` must be called before lm-eval can find the model by its name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from truing.models.draw import Settings, make_rows
from truing.models.lm import LM
from truing.models.tree import Ids

NAME = "truing"
"""Under this name lm-eval knows the model: ``simple_evaluate(model="truing", model_args="pretrained=smollm2")``."""

Rows = list[dict[str, Any]]
Work = Callable[[Sequence[Any], int], Rows]
Keep = Callable[[str, Sequence[Any], Work], Rows]
"""(kind of request, all items, work on some of them) → one row per item; a run keeps rows and resumes here."""


class Scoring(NamedTuple):
    """Token ids int32 of context and continuation, and where the continuation begins (at least 1)."""

    ids: np.ndarray
    start: int


class Drawing(NamedTuple):
    """How a reply is drawn, after which prompt, from which seed."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    until: tuple[str, ...]
    ids: list[int]
    seed: int


class Nats(float):
    """A log-probability in nats that knows of how many tokens it is."""

    tokens: int

    def __new__(cls, value: float, tokens: int) -> Nats:
        """``value`` over ``tokens`` tokens."""
        self = super().__new__(cls, value)
        self.tokens = tokens
        return self


def at_once(kind: str, items: Sequence[Any], work: Work) -> Rows:
    """All items in one piece, kept nowhere."""
    return work(items, 0)


class EngineLM:
    """What lm-eval asks of a model, answered by an `LM`. Mixed into lm-eval's ``TemplateLM`` by ``harness_class``."""

    def __init__(
        self,
        pretrained: LM | str,
        *,
        device: Any = None,
        seed: int = 0,
        keep: Keep = at_once,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        """``pretrained``: an LM, or any model name truing knows; ``seed`` is for sampling tasks.

        Batch sizes are what lm-eval hands to every model; the engine packs by tokens and needs none.
        """
        super().__init__()
        self.lm = pretrained if isinstance(pretrained, LM) else LM.load(pretrained, device=device or "cpu")
        self.tokenizer, self.seed, self.keep = self.lm.tokenizer, seed, keep
        if self.prefix_token_id is None:
            raise ValueError(
                f"The tokenizer of {self.lm.name!r} has neither BOS nor EOS, so no text can begin a context."
            )

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: BOS, or EOS where there is none."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def max_length(self) -> int:
        """Tokens the model reads, found where lm-eval looks."""
        from lm_eval.models.utils import resolve_max_length

        return resolve_max_length(self.lm.engine.config, self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval files what was made with this tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text in the tokenizer's template; without the system turn where the template takes none."""
        from jinja2 import TemplateError

        def render(messages: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return render(chat_history)
        except TemplateError:
            return render([message for message in chat_history if message["role"] != "system"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; by default with what the tokenizer adds, unless the text begins with a BOS already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """As lm-eval does it, in a tenth of the memory: it holds the ids of all requests of a job at once."""
        head, tail = super()._encode_pair(context, continuation)  # type: ignore[misc]
        return np.array(head, dtype=np.int32), np.array(tail, dtype=np.int32)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, Ids, Ids]], **_: Any) -> Any:
        """(log-probability in nats, is every token the likeliest) of each (texts, context ids, continuation ids)."""
        found = self._scored("loglikelihood", [(context, continuation) for _, context, continuation in requests])
        sizes = (len(continuation) for _, _, continuation in requests)
        return [(Nats(logprob, size), best) for (logprob, best), size in zip(found, sizes, strict=True)]

    def _scored(self, kind: str, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        window, items = self.max_length, list[Scoring]()
        for context, continuation in pairs:
            if not 0 < len(continuation) <= window:
                raise ValueError(
                    f"A continuation has {len(continuation)} tokens; {self.lm.name!r} can score 1 to {window} of them."
                )
            ids = np.concatenate([context, continuation]).astype(np.int32)
            ids = ids[-(window + 1) :]  # the last token is predicted, not read
            items.append(Scoring(ids, len(ids) - len(continuation)))

        def work(some: Sequence[Scoring], place: int) -> Rows:
            found = self.lm.engine.score_greedy([s.ids for s in some], [s.start for s in some])
            return [{"logprob": float(lp.sum(dtype="float64")), "greedy": bool(best.all())} for lp, best in found]

        return [(row["logprob"], row["greedy"]) for row in self._in_order(kind, items, work)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows that overlap in one token of context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        owners, pairs = list[int](), list[tuple[Ids, Ids]]()
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs += (made := list(map(make_disjoint_window, windows)))
            owners += [i] * len(made)
        sums = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._scored("loglikelihood_rolling", pairs), strict=True):
            sums[i] += logprob
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A reply to each (context, settings), cut before the first of its stop strings."""
        from lm_eval.models.utils import postprocess_generated_text

        prompts = [self._drawing(*request.args) for request in requests]
        seeds = [row.seed for row in make_rows([p.ids for p in prompts], 1, self.seed)]
        items = [p._replace(seed=seed) for p, seed in zip(prompts, seeds, strict=True)]

        def work(some: Sequence[Drawing], place: int) -> Rows:
            drawn = self.lm.engine.sample(
                [d.ids for d in some],
                each=[
                    Settings(d.max_tokens, d.temperature, d.top_p, d.top_k, tuple(filter(None, d.until))) for d in some
                ],
                decode=self.tokenizer.decode,
                seeds=[[d.seed] for d in some],
            )
            texts = [self.tokenizer.decode(sample.token_ids, skip_special_tokens=True) for (sample,) in drawn]
            return [
                {"text": postprocess_generated_text(text, list(d.until), None)}
                for text, d in zip(texts, some, strict=True)
            ]

        return [row["text"] for row in self._in_order("generate_until", items, work)]

    def _drawing(self, context: str, settings: dict[str, Any]) -> Drawing:
        """A request's settings as lm-eval reads them. Raises ValueError for those the engine does not know."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        given: dict[str, Any] = dict(normalize_gen_kwargs(settings, 256))
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        until, max_tokens = handle_stop_sequences(given.pop("until"), eos=eos), given.pop("max_gen_toks")
        sampled, temperature = given.pop("do_sample"), float(given.pop("temperature", 0.0))
        top_p, top_k = float(given.pop("top_p", 1.0)), int(given.pop("top_k", 0))
        if given:
            raise ValueError(
                f"A task asks for replies with {', '.join(given)}; truing knows until, max_gen_toks, do_sample, "
                "temperature, top_p and top_k."
            )
        room = self.max_length - max_tokens
        if room < 1:
            raise ValueError(
                f"A task asks for replies of up to {max_tokens} tokens; {self.lm.name!r} reads {self.max_length}, "
                "which leaves no room for a prompt. Choose a model with a longer window, or another task."
            )
        ids = self.tok_encode(context)[-room:]
        return Drawing(max_tokens, temperature if sampled else 0.0, top_p, top_k, tuple(until), ids, 0)

    def _in_order(self, kind: str, items: Sequence[Any], work: Work) -> Rows:
        """A row for each item, in the items' order; the work is done in sorted order and kept by the run."""
        order = sorted(range(len(items)), key=lambda i: _place(items[i]))
        texts = (json.dumps(item, default=np.ndarray.tolist) for item in items)
        keys = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts]

        def keyed(places: Sequence[int], place: int) -> Rows:
            rows = work([items[i] for i in places], place)
            return [{"key": keys[i], **row} for i, row in zip(places, rows, strict=True)]

        rows: Rows = [{}] * len(items)
        for i, row in zip(order, self.keep(kind, order, keyed), strict=True):
            if row["key"] != keys[i]:
                raise ValueError(
                    "The tasks' requests changed since this run began. Remove its folder or give another --out."
                )
            rows[i] = row
        return rows


def _place(item: Any) -> Any:
    """What requests are sorted by: their token ids first."""
    return (item.ids.astype(">u4").tobytes(), item.start) if isinstance(item, Scoring) else item


def what_is_missing(problem: ModuleNotFoundError) -> Exception:
    """What to say about an import that failed: how to install lm-eval, or the problem itself if it is another's."""
    if (problem.name or "").partition(".")[0] != "lm_eval":
        return problem
    return ValueError("lm-eval is not installed, and `truing eval` runs its tasks: pip install 'truing[eval]'.")


@functools.cache
def harness_class() -> Any:
    """The class that lm-eval knows as ``truing``, registered at the first call. Raises ValueError without lm-eval."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ModuleNotFoundError as problem:
        raise what_is_missing(problem) from None

    @register_model(NAME)
    class TruingLM(EngineLM, TemplateLM):
        """`EngineLM` with lm-eval's own tokenisation of pairs and its ``loglikelihood``."""

    return TruingLM
