"""Reader: log-probabilities of a server's model, of prompts and of what may come next, and what to say without them.

Nothing is estimated: what a server does not give is an error, or (a row's join, see `Reader.score`) not a number.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from truing.models import wire
from truing.models.client import Client, Refused
from truing.models.lm import Scored
from truing.types import Dialogue

ONE_TOKEN = {"max_tokens": 1, "temperature": 1.0}
"""For reading a prompt. At temperature 1 all servers mean the same by a log-probability."""
WAYS = ("echo", "prompt_logprobs", "next token")
UNKNOWN = Scored(math.nan, 0, True)
"""A continuation that shares a token with its context, on a server that does not tokenise them apart."""


class Reader:
    """Asks a server about one model, and for log-probabilities in the ways that it turns out to know."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self._way = ""  # of WAYS, the first that works
        self._top = 20  # likeliest tokens that are asked for
        self._ids_of: dict[tuple[str, bool], Future[list[int] | None]] = {}  # the texts of one call of `score`
        self._lock = threading.Lock()
        self._tops_hold_labels = self._takes_logprobs = True  # until the server shows otherwise

    def ask(self, prompt: Dialogue | str, body: Mapping[str, Any], top: int = 0) -> dict[str, Any]:
        """Ask for a reply with its log-probabilities and the ``top`` likeliest tokens; without, if that is refused."""
        path, plain, more = self._request(prompt, body, top)
        if self._takes_logprobs or top:
            try:
                return self.client.ask(path, {**plain, **more})
            except Refused as no:
                if top or "logprob" not in str(no).lower():
                    raise
                self._takes_logprobs = False
        return self.client.ask(path, plain)

    def has_asked(self, prompt: Dialogue | str, body: Mapping[str, Any]) -> bool:
        """Whether an earlier process of this job has had an answer to it."""
        path, plain, more = self._request(prompt, body, 0)
        return any(self.client.keeps(path, asked) for asked in ({**plain, **more}, plain))

    def _request(
        self, prompt: Dialogue | str, body: Mapping[str, Any], top: int
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Path and body of a request, and what asks for log-probabilities there."""
        talk = isinstance(prompt, Dialogue)
        asked = {"messages": prompt.to_messages()} if isinstance(prompt, Dialogue) else {"prompt": prompt}
        more = {"logprobs": True, **({"top_logprobs": top} if top else {})} if talk else {"logprobs": top or 1}
        return "/chat/completions" if talk else "/completions", {"model": self.model, **asked, **body}, more

    def score(self, items: Sequence[str | tuple[str, str]]) -> list[Scored]:
        """As `LM.score`, in the first of WAYS that the server answers. Raises ValueError where it answers none.

        Where a token spans the join, the server is asked to tokenise the two parts apart (``boundary``); one that does
        not know how gives NaN for the row.
        """
        pairs = [("", item) if isinstance(item, str) else item for item in items]
        wanted = list(dict.fromkeys(pair for pair in pairs if pair[1]))
        self._ids_of.clear()
        if wanted and not self._way:
            self._way = self._first_way(wanted[0])
        tops: dict[str, dict[str, float] | None] = {}
        if self._way == "next token":
            contexts = list(dict.fromkeys(context for context, _ in wanted if context))
            tops = dict(zip(contexts, self.client.each(self.likeliest, contexts), strict=True))
            scores = [_of_one_token(tops.get(context), continuation) for context, continuation in wanted]
        else:
            scores = self.client.each(self._read, wanted)
        found = {("", ""): Scored(0.0, 0)}
        for pair, scored in zip(wanted, scores, strict=True):
            if scored is None:
                raise self._lacks(self._what(pair, tops.get(pair[0])))
            found[pair] = scored
        return [found.get(pair, Scored(0.0, 0)) for pair in pairs]

    def likeliest(self, prompt: Dialogue | str) -> dict[str, float] | None:
        """The likeliest next tokens after a prompt: 20, or 5 from servers that give no more."""
        while True:
            asked = self._top
            try:
                return wire.likeliest(wire.choices_of(self.ask(prompt, ONE_TOKEN, asked))[0])
            except Refused as no:
                if asked == 5 or "logprob" not in str(no).lower():
                    raise
                self._top = 5

    def reply_labels(self, dialogue: Dialogue, labels: Sequence[str]) -> list[float]:
        """Log-probabilities of labels with which a reply may begin. Raises ValueError where the server lacks one."""
        top: dict[str, float] = {}
        if self._tops_hold_labels:
            top = self.likeliest(dialogue) or {}
            if all(label in top for label in labels):
                return [top[label] for label in labels]
            self._tops_hold_labels = any(label in top for label in labels)
        out = []
        for label in labels:
            opened = {
                "model": self.model,
                "messages": [*dialogue.to_messages(), {"role": "assistant", "content": label}],
                "add_generation_prompt": False,
                "continue_final_message": True,
                "prompt_logprobs": 0,
            }
            try:
                tokens = wire.prompt_tokens(self.client.ask("/chat/completions", opened | ONE_TOKEN))
            except Refused:
                tokens = None
            place = wire.ends_with(tokens, label) if tokens else None
            if not tokens or not place:
                begins = f"log-probabilities of a reply that begins with {_listed(labels)} to {_shown(dialogue)}"
                top = top or self.likeliest(dialogue) or {}
                lost = [label for label in labels if label not in top]
                raise self._lacks(f"{begins}{_not_among(lost, top)}")
            out.append(float(sum(value or 0.0 for _, value in tokens[place:])))
        return out

    def _first_way(self, pair: tuple[str, str]) -> str:
        """Which of WAYS this server answers. Raises what it says against all of them, or that it lacks them."""
        refusals = []
        top: dict[str, float] | None = None
        for way in WAYS if pair[0] else WAYS[:2]:
            self._way = way
            try:
                if way == "next token":
                    top = self.likeliest(pair[0])
                    found = _of_one_token(top, pair[1])
                else:
                    found = self._read(pair)
                if found is not None:
                    return way
            except Refused as no:
                refusals.append(no)
            finally:
                self._way = ""
        if len(refusals) == len(WAYS if pair[0] else WAYS[:2]):
            raise refusals[0]
        raise self._lacks(self._what(pair, top))

    def _read(self, pair: tuple[str, str]) -> Scored | None:
        """A continuation's score from the log-probabilities of a prompt; None if the answer does not hold them."""
        tokens = self._prompt_tokens("".join(pair))
        if tokens is None:
            return None
        try:
            start = wire.start_of(tokens, *pair)
        except wire.Spans:
            return self._apart(pair)
        if start is None:  # then the context's tokens are those that it has alone
            head = [token for token, _ in self._prompt_tokens(pair[0]) or ()]
            start = len(head)
            if not head or head != [token for token, _ in tokens[:start]]:
                return self._apart(pair)
        first = 1 if tokens[0][1] is None else 0  # a server that hides its BOS scores the first token that it shows
        return _sum(tokens[max(first, start) :])

    def _apart(self, pair: tuple[str, str]) -> Scored:
        """A continuation's score with its tokens and its context's made apart; UNKNOWN where the server cannot."""
        try:
            parts = [self._ids(text, special) for text, special in zip(pair, (True, False), strict=True)]
            if not all(parts):
                return UNKNOWN
            ids = [i for part in parts for i in part or ()]
            tokens = self._prompt_tokens(ids)
        except Refused:
            return UNKNOWN
        start = len(parts[0] or ())
        tail = "".join(token for token, _ in tokens[start:]) if tokens else ""
        if not tokens or len(tokens) != len(ids) or (tail != pair[1] and wire.BROKEN not in tail):
            return UNKNOWN  # a second BOS, say
        counted = _sum(tokens[start:])
        return Scored(counted.logprob, counted.num_tokens, True)

    def _ids(self, text: str, special: bool) -> list[int] | None:
        """The ids of a text's tokens, with a BOS or without; None from servers that do not tell."""
        with self._lock:  # labels of one context are read side by side, and ask for it once
            asked_before = (text, special) in self._ids_of
            found = self._ids_of.setdefault((text, special), Future())
        if not asked_before:
            asked = {"prompt": text, "return_token_ids": True, "add_special_tokens": special}
            try:
                answer = self.client.ask("/completions", {"model": self.model, **asked, **ONE_TOKEN})
                found.set_result(wire.prompt_ids(answer))
            except BaseException as problem:
                found.set_exception(problem)
        return found.result()

    def _prompt_tokens(self, prompt: str | list[int]) -> list[wire.Token] | None:
        """A prompt's tokens by the way that this server knows; None if the answer does not hold them."""
        body = {"model": self.model, "prompt": prompt, **ONE_TOKEN}
        if self._way == "echo":
            answer = self.client.ask("/completions", {**body, "echo": True, "logprobs": 1})
            return wire.echoed(answer, prompt) if isinstance(prompt, str) else wire.echoed_ids(answer, len(prompt))
        return wire.prompt_tokens(self.client.ask("/completions", {**body, "prompt_logprobs": 0}))

    def _what(self, pair: tuple[str, str], top: Mapping[str, float] | None) -> str:
        """What is missing for a score, in words."""
        prompt = "log-probabilities of a prompt (echo with logprobs, or prompt_logprobs, on /completions)"
        if not pair[0]:
            return f"{prompt}, which {pair[1][:30]!r} needs"
        missing = f"none of {pair[1][:30]!r} among the likeliest next tokens after {_shown(pair[0])}"
        return f"{prompt}, and {missing}{f' (it lists {_listed(list(top)[:5])}, …)' if top else ''}"

    def _lacks(self, what: str) -> ValueError:
        if self.client.kept:
            self.client.kept.forget()
        return ValueError(
            f"The server {self.client.url} answers, but gives no {what}; this cannot be scored without. vLLM gives "
            "them; llama.cpp lists only tokens that it draws, and `transformers serve` none. Serve it with vLLM, or "
            "name its folder or .gguf file instead of a server."
        )


def check_joins(server: str, client: Client, pairs: Sequence[tuple[str, str]], scores: Sequence[Scored]) -> None:
    """Raise ValueError, naming it, for a label whose log-probability a server could not tell (`UNKNOWN`)."""
    for (context, label), scored in zip(pairs, scores, strict=True):
        if math.isnan(scored.logprob) and scored.boundary:
            if client.kept:
                client.kept.forget()  # another server at that address may tell it
            raise ValueError(
                f"The model of {server} has a token that spans the join of {_shown(context)} and the label {label!r}, "
                "and the server does not tokenise the two apart (vLLM does, by return_token_ids), so the label's own "
                "log-probability cannot be told. Name the model's folder or .gguf file instead of a server."
            )


def _sum(tokens: Sequence[wire.Token]) -> Scored:
    return Scored(float(np.sum(np.array([value for _, value in tokens], dtype=np.float64))), len(tokens))


def _of_one_token(top: Mapping[str, float] | None, continuation: str) -> Scored | None:
    return Scored(top[continuation], 1) if top and continuation in top else None


def _not_among(labels: Sequence[str], top: Mapping[str, float]) -> str:
    """Which labels are missing in a list of the likeliest tokens; "" if there is no list or all are in it."""
    if not top or not labels:
        return ""
    are = "is" if len(labels) == 1 else "are"
    return (
        f": {_listed(labels)} {are} not among the {len(top)} likeliest first tokens that it lists "
        f"({_listed(list(top)[:5])}, …), nor does it read a reply's beginning as a prompt. Solved examples (--shots) "
        "may bring labels among them"
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words))


def _shown(prompt: Dialogue | str) -> str:
    """The end of a prompt, so that its row can be found."""
    text = prompt if isinstance(prompt, str) else prompt.last.text
    return json.dumps(text if len(text) <= 100 else f"…{text[-99:]}", ensure_ascii=False)
