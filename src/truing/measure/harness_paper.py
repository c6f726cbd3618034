"""The paper's own prompt formats as tasks of lm-eval: ``paper_FORMAT:FILE`` (2204.05862 §4.6.1, App B.7, App E).

Rows come from a local file (`truing.data.paper_formats`), so nothing is fetched; requests, numbers and the table of
the alignment tax are those of any other task.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truing.data.grade import grade_alias
from truing.data.paper_formats import FORMATS, Item, load_items, prompt
from truing.measure.harness_lm import Nats

PREFIX = "paper_"
REPLY_TOKENS = 32
"""Tokens that a reply to a TriviaQA question may have; it ends at a line's end."""


def is_paper_task(name: str) -> bool:
    """Whether a name of --tasks is one of ours."""
    return name.startswith(PREFIX) and ":" in name


def paper_task(name: str, chat: bool = False) -> Any:
    """lm-eval's task of ``paper_FORMAT:FILE``, named ``paper_FORMAT:STEM``; ``chat``: for a chat template.

    Raises ValueError for a format nobody knows, DataError for rows that are none of it.
    """
    from lm_eval.api.task import ConfigurableTask

    format, _, file = name.removeprefix(PREFIX).partition(":")
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, 1)
        hint = f" Did you mean {PREFIX}{near[0]}?" if near else ""
        known = ", ".join(PREFIX + f for f in FORMATS)
        raise ValueError(f"--tasks names {PREFIX}{format}.{hint} The paper's formats are {known}.")
    items = load_items(format, file)

    class PaperTask(ConfigurableTask):
        """Items of a file; examples are the previous items, so lm-eval is to draw none."""

        def download(self, dataset_kwargs: Any = None, **_: Any) -> None:
            self.dataset = {"test": Docs(_doc(item, i, chat) for i, item in enumerate(items))}

        def fewshot_docs(self) -> Any:
            return self.dataset["test"]

        def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> str:
            shots = self.config.num_fewshot or 0
            item = items[doc["place"]]
            return item.bare if chat and item.bare and not shots else prompt(format, items, doc["place"], shots)

        def check(self) -> None:
            """Raises ValueError where there are too few questions for the number of examples."""
            for doc in self.dataset["test"]:
                self.doc_to_text(doc)

        def fewshot_context(self, doc: Any, num_fewshot: int, **given: Any) -> Any:
            return super().fewshot_context(doc, 0, **given)

    stem = Path(file).name.split(".")[0]
    return PaperTask(config={"task": f"{PREFIX}{format}:{stem}", "test_split": "test", **_asked(format)})


class Docs(list[dict[str, Any]]):
    """Rows with the names of their fields, as lm-eval looks for them."""

    @property
    def features(self) -> dict[str, None]:
        """Fields of a row."""
        return dict.fromkeys(self[0])


def _doc(item: Item, place: int, chat: bool) -> dict[str, Any]:
    """A row of the task. In a chat the template stands before the answer, so its space goes."""
    choices = [c.lstrip() if chat else c for c in item.choices]
    target = choices[item.answer]
    return {"place": place, "id": item.id, "asked": item.asked, "choices": choices, "answer": item.answer,
            "target": target, "accepted": list(item.accepted)}  # fmt: skip


def _asked(format: str) -> dict[str, Any]:
    """What lm-eval's task config says of a format: kind of request, target, metrics."""
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    shared: dict[str, Any] = {"target_delimiter": "", "doc_to_text": "asked"}
    match FORMATS[format].kind:
        case "choice":
            names = ["acc", "acc_norm"] if format == "hellaswag" else ["acc"]
            return {**shared, **choice, "metric_list": [_metric(n) for n in names]}
        case "word":
            metrics = [_metric("acc"), _metric("perplexity", "perplexity", False)]
            return {**shared, "output_type": "loglikelihood", "doc_to_target": "target", "metric_list": metrics}
        case "reply":
            settings = {"until": ["\n"], "max_gen_toks": REPLY_TOKENS, "do_sample": False}
            kind = {"output_type": "generate_until", "doc_to_target": "target", "generation_kwargs": settings}
            return {**shared, **kind, "process_results": _graded, "metric_list": [_metric("exact_match")]}
        case _:
            names = ["acc", "logprob_gap"]
            losses = [_metric(n, per_token, False) for n in ("loss_good", "loss_bad")]
            return {**shared, **choice, "process_results": answer_pair, "metric_list": [*map(_metric, names), *losses]}


def _metric(name: str, aggregation: Any = "mean", higher: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}


def _graded(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": float(grade_alias(results[0], tuple(doc["accepted"])))}


def answer_pair(doc: dict[str, Any], results: Sequence[tuple[Nats, bool]]) -> dict[str, Any]:
    """Numbers of a good and a bad answer (App B.7), from the log-probabilities of both.

    ``logprob_gap``: mean log-probability per token of the good answer − of the bad one, in nats; ``acc``: whether it
    is above 0, a tie counting half; ``loss_good``, ``loss_bad``: (−log-probability, tokens), for ``per_token``.
    """
    (good, _), (bad, _) = results
    gap = good / good.tokens - bad / bad.tokens
    acc = 0.5 + 0.5 * math.copysign(1, gap) if gap else 0.5
    losses = {"loss_good": (-good, good.tokens), "loss_bad": (-bad, bad.tokens)}
    return {"acc": acc, "logprob_gap": float(gap), **losses}


def per_token(rows: Sequence[tuple[float, int]]) -> float:
    """Loss in nats per token over all answers together."""
    return float(sum(loss for loss, _ in rows) / sum(tokens for _, tokens in rows))
