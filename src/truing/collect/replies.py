"""Models in memory that answer for arms: many requests in one call, best-of-k, prompts cut to the model's window.

Knows no database and no people. Torch is imported when the first model is opened that needs it, never by a script's
or a server's arm without a preference model.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from truing.collect import turns
from truing.collect.arms import SCRIPT, ArmSpec
from truing.collect.script import Script
from truing.text import ASSISTANT, HUMAN, to_hh
from truing.types import Dialogue, Sample, Turn

LEAST_TALK = 64
"""Tokens of conversation that an arm's prompt must leave room for."""
LETTERS_A_TOKEN = 3.0
"""Fewer than models need on average, for servers that do not say how long a prompt is."""


class CannotLoad(ValueError):
    """An arm's model could not be loaded, or its server not be reached; the text says why, for the administrator."""


@dataclass(eq=False)
class Ask:
    """Replies wanted from one arm: ``seeds``, one for each sample to be drawn, of which ``wanted`` are kept.

    ``tell(reply, piece)`` hears text as it comes (only where the arm can stream). The lower part is the answer:
    ``shown`` are the kept replies, best first, as (place among the samples, rank), or ``error`` says why there is none.
    """

    spec: ArmSpec
    exchanges: Sequence[turns.Exchange]
    seeds: Sequence[int]
    wanted: int = 1
    tell: Callable[[int, str], None] | None = None
    samples: list[Sample] = field(default_factory=list)
    scores: list[float] | None = None
    shown: list[tuple[int, int]] = field(default_factory=list)
    truncated: bool = False
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def lane(self) -> str:
        """What computes it: asks of one lane are answered one batch after another, lanes side by side.

        All models in this process's memory are one lane, so that there is never more than one thread in torch.
        """
        if self.spec.remote:
            return self.spec.model.partition("#")[0]
        return self.spec.model if self.spec.scripted else "models"

    @property
    def key(self) -> Hashable:
        """Asks of one lane and one key are drawn in one call."""
        s = self.spec
        if s.remote:  # one call of a server's model has one setting
            return s.model, s.format, s.max_tokens, s.temperature, s.top_p, len(self.seeds)
        return s.model, s.format


class Models:
    """Models and preference models, each loaded once. ``device``, ``dtype`` and ``threads`` as in `compute.choose`."""

    def __init__(self, device: str = "auto", dtype: str = "auto", threads: int = 0) -> None:
        self._how = (device, dtype, threads)
        self._compute: Any = None
        self._loaded: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()
        self._torch = threading.Lock()  # one thread in torch at a time

    def open(self, spec: ArmSpec) -> Any:
        """The arm's model (and its preference model), loaded if they are not yet: a Script, a RemoteLM or an LM.

        Raises ValueError (UnknownModel among them) where there is none, or it cannot do what the spec asks.
        """
        if spec.pm:
            self._pm(spec.pm)
        name = ("lm", spec.model, spec.format if not (spec.remote or spec.scripted) else "")
        if name not in self._loaded:
            with self._lock:
                if name not in self._loaded:
                    self._loaded[name] = self._open(spec)
        model = self._loaded[name]
        window = _window(spec, model)
        if spec.prompt and window is not None:
            size = _size(spec, model, Dialogue((Turn("system", spec.prompt_text), Turn("human", "Hello"))))
            if size + LEAST_TALK > window - _reserve(spec, window):
                raise ValueError(
                    f"Its prompt has about {size:.0f} tokens and {spec.model} reads at most {window}, with "
                    f"{_reserve(spec, window)} for the reply: there is no room for a conversation."
                )
        return model

    def answer(self, asks: Sequence[Ask]) -> None:
        """Fill in the answers of asks of one key. Where one call for all fails, each is tried alone."""
        try:
            self._answer(asks)
        except Exception as error:
            if len(asks) == 1:
                asks[0].error = error
                return
            for ask in asks:
                ask.tell = None  # its pieces may have been told
                self.answer([ask])

    def _answer(self, asks: Sequence[Ask]) -> None:
        start = time.monotonic()
        try:
            for ask in asks:
                model = self.open(ask.spec)
        except (ValueError, OSError) as error:
            raise CannotLoad(str(error)[:500]) from error
        prompts = [self._prompt(model, ask) for ask in asks]
        listeners = [ask.tell for ask in asks]

        def hear(i: int, j: int, piece: str) -> None:
            if (tell := listeners[i]) is not None:
                tell(j, piece)

        on_text = hear if any(listeners) else None
        if isinstance(model, Script):
            drawn = model.sample([p for p in prompts if isinstance(p, Dialogue)], [ask.seeds for ask in asks], on_text)
        elif asks[0].spec.remote:
            drawn = self._from_server(model, asks, prompts)
        else:
            with self._torch:
                drawn = _from_lm(model, asks, prompts, on_text)
        for ask, samples in zip(asks, drawn, strict=True):
            ask.samples = samples
            ask.scores = self._scores(ask)
            ask.shown = best(samples, ask.scores, ask.wanted)
            ask.seconds = time.monotonic() - start

    def _prompt(self, model: Any, ask: Ask) -> Dialogue | str:
        """What the model reads, its oldest turns left out if there are too many."""
        whole = turns.dialogue(ask.exchanges, ask.spec.prompt_text)
        window = _window(ask.spec, model)
        if window is None:
            kept = whole
        else:
            room = window - _reserve(ask.spec, window)
            kept, ask.truncated = turns.shorten(whole, lambda d: _size(ask.spec, model, d) <= room)
        return to_hh(kept) if ask.spec.remote and ask.spec.format == "raw" else kept

    def _from_server(self, model: Any, asks: Sequence[Ask], prompts: Sequence[Dialogue | str]) -> list[list[Sample]]:
        spec = asks[0].spec
        found: list[list[Sample]] = model.sample(
            prompts,
            n=len(asks[0].seeds),
            max_tokens=spec.max_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            stop=[HUMAN, ASSISTANT] if spec.format == "raw" else [],
            seed=[list(ask.seeds) for ask in asks],
        )
        return found

    def _scores(self, ask: Ask) -> list[float] | None:
        if not ask.spec.pm:
            return None
        pm = self._pm(ask.spec.pm)
        talk = turns.dialogue(ask.exchanges)
        said = [talk.reply(turns.neutral(s.text)) for s in ask.samples]
        if isinstance(pm, Script):
            return pm.score(said)
        with self._torch:
            return [float(x) for x in pm.score(said)]

    def _open(self, spec: ArmSpec) -> Any:
        if spec.scripted:
            return Script(spec.model.removeprefix(SCRIPT))
        if spec.remote:
            from truing.models.remote import RemoteLM

            _reach(spec.model)
            return RemoteLM(spec.model)
        from truing.models.lm import LM

        with self._torch:
            how = self._where()
            other = self._loaded.get(("lm", spec.model, "raw" if spec.format == "chat" else "chat"))
            lm = other or LM.load(spec.model, device=how.device, dtype=how.dtype)
            return LM(lm.model, lm.tokenizer, name=lm.name, format="hh" if spec.format == "raw" else None)

    def _pm(self, name: str) -> Any:
        if ("pm", name) not in self._loaded:
            with self._lock:
                if ("pm", name) not in self._loaded:
                    self._loaded["pm", name] = self._load_pm(name)
        return self._loaded["pm", name]

    def _load_pm(self, name: str) -> Any:
        if name.startswith(SCRIPT):
            return Script(name.removeprefix(SCRIPT))
        from truing.models.heads import PreferenceModel

        with self._torch:
            how = self._where()
            return PreferenceModel.load(name, device=how.device, dtype=how.dtype)

    def _where(self) -> Any:
        from truing.models.compute import choose

        if self._compute is None:
            self._compute = choose(*self._how)
        return self._compute


def best(samples: Sequence[Sample], scores: Sequence[float] | None, wanted: int) -> list[tuple[int, int]]:
    """Which samples are shown: (place, rank from 1), the ``wanted`` best; without scores the first, all of rank 1.

    Replies of one text are one reply as long as there are others; empty ones come last.

    >>> some = [Sample(x, (), None, "stop", 0) for x in ("b", "a", "b", "")]
    >>> best(some, [1.0, 2.0, 1.0, 9.0], 2)
    [(1, 1), (0, 2)]
    """
    if scores is None:
        return [(i, 1) for i in range(wanted)]
    order = sorted(range(len(samples)), key=lambda i: (not samples[i].text.strip(), -scores[i], i))
    firsts: dict[str, int] = {}
    for i in order:
        firsts.setdefault(samples[i].text, i)
    again = [i for i in order if firsts[samples[i].text] != i]
    return [(place, rank) for rank, place in enumerate([*firsts.values(), *again][:wanted], 1)]


def _reach(name: str) -> None:
    """Raise ValueError unless something listens where a server's model is said to be."""
    try:
        url = urlsplit(name)
        port = url.port or (443 if url.scheme.lower() == "https" else 80)
        socket.create_connection((url.hostname or "", port), timeout=5.0).close()
    except (ValueError, OSError) as error:
        raise ValueError(f"No server answers at {name.partition('#')[0]} ({type(error).__name__}).") from None


def _window(spec: ArmSpec, model: Any) -> int | None:
    """How many tokens a model reads; None if nobody knows, or nothing is too long for it."""
    if spec.scripted or spec.remote:
        return None if spec.scripted else spec.context_tokens
    found: int | None = getattr(model.engine.config, "max_position_embeddings", None)
    return found


def _size(spec: ArmSpec, model: Any, prompt: Dialogue) -> float:
    """Tokens of a prompt; for a server's model more than it is likely to be."""
    return len(to_hh(prompt)) / LETTERS_A_TOKEN if spec.remote else len(model.encode_prompt(prompt))


def _reserve(spec: ArmSpec, window: int) -> int:
    """Tokens of a window that are kept for the reply."""
    return min(spec.max_tokens, window // 2)


def _from_lm(
    lm: Any,
    asks: Sequence[Ask],
    prompts: Sequence[Dialogue | str],
    on_text: Callable[[int, int, str], None] | None,
) -> list[list[Sample]]:
    """One call of the engine for all samples of all asks, each with its settings and its seed."""
    from truing.models.draw import Settings

    flat = [(i, j, seed) for i, ask in enumerate(asks) for j, seed in enumerate(ask.seeds)]
    each = [_settings(ask.spec, Settings) for ask in asks]
    drawn = lm.sample(
        [prompts[i] for i, _, _ in flat],
        each=[each[i] for i, _, _ in flat],
        seed=[[seed] for _, _, seed in flat],
        on_text=(lambda at, _, piece: on_text(flat[at][0], flat[at][1], piece)) if on_text else None,
    )
    out: list[list[Sample]] = [[] for _ in asks]
    for (i, _, _), (sample,) in zip(flat, drawn, strict=True):
        out[i].append(sample)
    return out


def _settings(spec: ArmSpec, make: Any) -> Any:
    """The engine's settings. Raw text also ends where the model writes another turn or conversation."""
    from truing.data.prompts import RULE

    stops = (ASSISTANT, *([RULE] if RULE in spec.prompt_text else [])) if spec.format == "raw" else ()
    return make(spec.max_tokens, spec.temperature, spec.top_p, spec.top_k, stops)
