"""RemoteLM: a model behind an OpenAI-compatible server, named ``http://host:port/v1#model``; used as an LM is.

Texts go to /completions, dialogues as messages to /chat/completions: the server renders those. Log-probabilities are
the server's, nothing is estimated: where a server does not give what is asked for, a ValueError says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from truing.models import wire
from truing.models.client import KEYS, Client, Refused, at_once
from truing.models.draw import check_settings, make_rows
from truing.models.lm import LM, Scored
from truing.models.load import is_remote
from truing.models.reading import Reader, check_joins
from truing.text import HUMAN, Format, cut_at_stop
from truing.types import Dialogue, Sample

_MOST_STOPS = 4  # more are refused by some servers; texts are cut here in any case
_SURELY = -10.0


class RemoteLM:
    """A server's model with the methods of `LM` that sampling and scoring use.

    ``name`` is ``http://host:port/v1#model`` (or https). Limits as in `Client`; nothing is sent before it is needed.
    Raises ValueError for a name that is none, or that holds a password.
    """

    format: Format = "chat"

    def __init__(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        requests_per_minute: float | None = None,
        timeout: float | None = None,
    ) -> None:
        url, self.model = _parts(name)
        self.name = name
        self.client = Client(url, concurrency=concurrency, requests_per_minute=requests_per_minute, timeout=timeout)
        self.reader = Reader(self.client, self.model)
        self._gives_n = True  # until the server shows otherwise

    def render(self, prompt: Dialogue | str) -> str:
        """What is sent: a text as it is, a dialogue as messages, one a line (the server knows their template)."""
        if isinstance(prompt, str):
            return prompt
        return "\n".join(json.dumps(message, ensure_ascii=False) for message in prompt.to_messages())

    def too_long(self, items: Sequence[Dialogue | str | tuple[str, str]]) -> tuple[int, str] | None:
        """None: how long a prompt may be is known to the server, which refuses what is longer."""
        return None

    def seeds(self, prompts: Sequence[Dialogue | str], n: int, seed: int) -> list[list[int]]:
        """The seeds (31 bits) of ``n`` replies to each prompt, for sampling a job in parts.

        They differ between prompts, because a server draws the same random numbers wherever it gets the same seed.
        """
        texts = [self.render(p).encode() for p in prompts]
        rows = make_rows(texts, n, seed)
        own = [_mixed(row.seed, texts[row.request]) for row in rows]
        return [own[i : i + n] for i in range(0, len(own), n)]

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
        seed: int | Sequence[Sequence[int]] = 0,
        progress: Callable[[int, int], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
    ) -> list[list[Sample]]:
        """``n`` replies to every dialogue, or continuations of every text; as `LM.sample`, with these differences.

        A sample has no token ids; its log-probabilities are those the server lists (an end of sequence often is not
        among them), None if it lists none. All replies that came with one request carry that request's seed; a server
        that refuses ``n``, or gives fewer or one reply ``n`` times, is asked for each reply alone. ``on_text`` gets
        every reply in one piece. Raises ValueError for ``top_k``, which the protocol does not have.
        """
        check_settings(n, max_tokens, temperature, top_p, top_k, stop, stop_after, decode=str)
        if top_k:
            raise ValueError(f"top_k is {top_k}, and servers may leave it out without saying so. Use top_p.")
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, Dialogue) and not prompt.is_prompt:
                raise ValueError(f"Dialogue {i} does not end in a human turn, so there is nothing to reply to.")
        seeds = self.seeds(prompts, n, seed) if isinstance(seed, int) else seed
        if len(seeds) != len(prompts) or any(len(some) != n for some in seeds):
            raise ValueError(f"seeds must be one number, or {n} numbers for each of the {len(prompts)} prompts.")
        if max_tokens == 0:
            return [[Sample("", (), (), "length", s) for s in some] for some in seeds]
        settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}

        def draw(job: tuple[int, list[int]]) -> list[Sample]:
            i, places = job
            return self._draw(prompts[i], len(places), seeds[i][places[0]], settings, stop, stop_after)

        def asked_alone(i: int) -> bool:
            return self.reader.has_asked(prompts[i], self._body(prompts[i], 1, seeds[i][0], settings, stop)[0])

        out: list[list[Sample]] = [[] for _ in prompts]
        jobs = [(i, list(range(n))) for i in range(len(prompts))]
        self._gives_n = self._gives_n and not (n > 1 and any(map(asked_alone, range(len(prompts)))))
        finished = 0

        def tell(samples: list[Sample]) -> None:
            nonlocal finished
            finished += len(samples)
            if progress:
                progress(finished, n * len(prompts))

        while jobs:
            jobs = jobs if self._gives_n else [(i, [place]) for i, places in jobs for place in places]
            left = []
            for (i, places), samples in zip(jobs, self.client.each(draw, jobs, tell), strict=True):
                out[i] += samples
                left += [(i, [place]) for place in places[len(samples) :]]
            self._gives_n, jobs = self._gives_n and not left, left
        if on_text:
            for i, samples in enumerate(out):
                for j, sample in enumerate(samples):
                    on_text(i, j, sample.text)
        return out

    def score(self, items: Sequence[str | tuple[str, str]]) -> list[Scored]:
        """Log-probabilities in nats of texts, or of continuations given contexts, ``(context, continuation)``.

        A text's first token counts only after a BOS. By ``echo``, by ``prompt_logprobs``, or (continuations of one
        token only) from the likeliest next tokens: what the server gives. Raises ValueError where it gives none of
        these.

        Where a token spans the join, the two parts are tokenised apart (``boundary``); where the server does not do
        that, the row's log-probability is NaN, its ``num_tokens`` 0 and ``boundary`` set.
        """
        return self.reader.score(items)

    def label_logprobs(self, prompts: Sequence[Dialogue | str], labels: Sequence[str]) -> np.ndarray:
        """Log-probabilities in nats of every label after every prompt, float64 [N, L]; not renormalised.

        After a dialogue labels are read off the likeliest first tokens of a reply, or as the beginning of a reply if
        the server gives ``prompt_logprobs`` in chats. Raises ValueError where both fail, or where a token spans the
        join of a text and a label and the server does not tokenise them apart.
        """
        for label in labels:
            if not label:
                raise ValueError(f"The label {label!r} has no tokens; a label needs at least one.")
        texts = [(prompt, label) for prompt in prompts if isinstance(prompt, str) for label in labels]
        scores = self.score(texts)
        check_joins(self.name, self.client, texts, scores)
        dialogues = [p for p in prompts if isinstance(p, Dialogue)]
        scored, talks = iter(scores), iter(self.client.each(lambda d: self.reader.reply_labels(d, labels), dialogues))
        rows = [[next(scored).logprob for _ in labels] if isinstance(p, str) else next(talks) for p in prompts]
        return np.array(rows, dtype=np.float64).reshape(len(prompts), len(labels))

    @staticmethod
    def _body(
        prompt: Dialogue | str, n: int, seed: int, settings: Mapping[str, Any], stop: Sequence[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """What is asked for, and all strings before which a reply's text ends."""
        talk = isinstance(prompt, Dialogue)
        stops = [*([HUMAN] if talk else []), *(s for s in stop if s != HUMAN or not talk)]
        body = {**settings, "seed": seed}
        body |= {"n": n} if n > 1 else {}
        body |= {"stop": stops[:_MOST_STOPS]} if stops else {}
        return body, stops

    def _draw(
        self,
        prompt: Dialogue | str,
        n: int,
        seed: int,
        settings: Mapping[str, Any],
        stop: Sequence[str],
        stop_after: Sequence[str],
    ) -> list[Sample]:
        """Up to ``n`` samples of one request, fewer where the server gives fewer or only repeats itself."""
        body, stops = self._body(prompt, n, seed, settings, stop)
        try:
            answer = self.reader.ask(prompt, body)
        except Refused:  # llama.cpp gives no more at once than it has slots
            if n == 1:
                raise
            return self._draw(prompt, 1, seed, settings, stop, stop_after)
        samples = [_sample(choice, stops, stop_after, seed) for choice in wire.choices_of(answer)[:n]]
        once = samples[0].logprob
        if len({s.text for s in samples}) == 1 and settings["temperature"] and (once is None or once < _SURELY):
            # by chance? Less often than once in e^10 (unknown without log-probabilities, where asking again is safe):
            return samples[:1]  # this server gives all n the same noise
        return samples


AnyLM = LM | RemoteLM


def open_lm(name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> AnyLM:
    """A language model by any name truing knows, a server's included (which has a device and a dtype of its own)."""
    return RemoteLM(str(name)) if is_remote(name) else LM.load(name, device=device, dtype=dtype)


def savings(name: str, most: int) -> dict[str, Any]:
    """How a job's rows are kept (`truing.measure.labels.in_chunks`): few at a time for a server, which may die.

    None of its answers is thrown away when the job goes on with another concurrency: they cost time and money.
    """
    return {"size": min(most, 4 * at_once()), "aligned": False} if is_remote(name) else {"size": most}


def _parts(name: str) -> tuple[str, str]:
    """Address and model of a name. Raises ValueError for what is none, or would write a password into runs."""
    url, _, model = name.partition("#")
    try:
        parts = urlsplit(url)
        wrong = not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if not wrong and (parts.username is not None or parts.password is not None or parts.query):
        raise ValueError(
            f"The name of a server's model holds a user, a password or a query, which runs would keep. Leave it out of "
            f"the name; an API key belongs into the environment variable {KEYS[0]}."
        )
    if wrong or not is_remote(name) or not model.strip():
        raise ValueError(
            f"{name!r} names no server's model; expected http://host:port/v1#model, the model as the server calls it."
        )
    return url, model


def _mixed(seed: int, prompt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} ".encode() + prompt, digest_size=4).digest(), "little") >> 1


def _sample(choice: Mapping[str, Any], stops: Sequence[str], stop_after: Sequence[str], seed: int) -> Sample:
    """A choice as a Sample, cut at the stop strings whether or not the server did."""
    tokens = wire.drawn_tokens(choice)
    text, cut = cut_at_stop(wire.text_of(choice), stops, stop_after)
    if cut and tokens is not None:
        kept = wire.kept_tokens(tokens, stops, stop_after)
        tokens = None if kept is None else tokens[:kept]
    logprobs = None if tokens is None else tuple(value for _, value in tokens)
    return Sample(text, (), logprobs, "stop" if cut else wire.finish_of(choice), seed)
