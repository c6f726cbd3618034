"""The nouns every room of the house shares: frozen, light, and free of torch.

Roles are ``human`` and ``assistant`` (2204.05862 §2); a ``system`` turn may stand first and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "human", "assistant"]
Kind = Literal["helpful", "harmless"]
Finish = Literal["stop", "length", "filtered"]
"""How a reply ended: by itself or at a stop string, at the limit of its length, or by a server's content filter."""

_FROM_CHAT = {"user": "human", "human": "human", "assistant": "assistant", "system": "system"}
_TO_CHAT = {"human": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing somebody said.

    >>> Turn("human", "Hello").text
    'Hello'
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order; immutable, so that equal beginnings can be shared.

    >>> d = Dialogue().ask("2 + 2?").reply("4")
    >>> d.prompt == Dialogue().ask("2 + 2?"), d.last.text
    (True, '4')
    """

    turns: tuple[Turn, ...] = ()

    def ask(self, text: str) -> Dialogue:
        """This dialogue and one more human turn."""
        return Dialogue((*self.turns, Turn("human", text)))

    def reply(self, text: str) -> Dialogue:
        """This dialogue and one more assistant turn."""
        return Dialogue((*self.turns, Turn("assistant", text)))

    def __add__(self, other: Dialogue) -> Dialogue:
        return Dialogue(self.turns + other.turns)

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def last(self) -> Turn:
        """The last turn. Raises ValueError on an empty dialogue."""
        if not self.turns:
            raise ValueError("An empty dialogue has no last turn.")
        return self.turns[-1]

    @property
    def prompt(self) -> Dialogue:
        """Everything before the last assistant turn (the dialogue itself if a human spoke last)."""
        if self.turns and self.turns[-1].role == "assistant":
            return Dialogue(self.turns[:-1])
        return self

    @property
    def is_prompt(self) -> bool:
        """True if a human spoke last, so that an assistant may answer."""
        return bool(self.turns) and self.turns[-1].role == "human"

    def problems(self) -> list[str]:
        """What is wrong with the order of turns; empty if human and assistant alternate, the human first."""
        found = []
        turns = [t for i, t in enumerate(self.turns) if not (i == 0 and t.role == "system")]
        if not any(t.role == "human" for t in turns):
            found.append("no human turn")
        expected: Role = "human"
        for i, turn in enumerate(turns):
            if turn.role != expected:
                found.append(f"turn {i + 1} is {turn.role}, expected {expected}")
                break
            expected = "assistant" if turn.role == "human" else "human"
        return found

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]]) -> Dialogue:
        """From chat messages ``[{"role": "user", "content": "…"}]``; ValueError on an unknown role or non-text."""
        turns = []
        for i, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in _FROM_CHAT:
                raise ValueError(f"message {i + 1} has role {role!r}; expected user, assistant or system")
            if not isinstance(content, str):
                raise ValueError(f"message {i + 1} has content of type {type(content).__name__}; expected text")
            turns.append(Turn(_FROM_CHAT[role], content))  # type: ignore[arg-type]
        return cls(tuple(turns))

    def to_messages(self) -> list[dict[str, str]]:
        """Chat messages with the roles user, assistant, system."""
        return [{"role": _TO_CHAT[t.role], "content": t.text} for t in self.turns]


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn reply.

    ``token_ids`` are the drawn tokens, an end-of-sequence token included if one was drawn; ``logprobs`` are the
    model's own log-probabilities of them in nats, at temperature 1 and without truncation; ``text`` is cut before
    the stop. A server may give no ids (then there are none here) and no log-probabilities (then they are None).

    >>> Sample("Hi", (5, 2), (-0.5, -0.25), "stop", 0).logprob
    -0.75
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish: Finish
    seed: int

    @property
    def logprob(self) -> float | None:
        """Sum of ``logprobs``, in nats; None if they are not known."""
        return None if self.logprobs is None else sum(self.logprobs)

    @property
    def num_tokens(self) -> int | None:
        """Tokens drawn; None if nobody said."""
        return None if self.logprobs is None else len(self.logprobs)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which of two replies to one prompt somebody preferred (2204.05862 §2.2).

    ``strength`` runs from 1 (unsure; never exported for training) to 4; ``arms`` names the models that wrote the
    chosen and the rejected reply.

    >>> c = Comparison(Dialogue().ask("Hi"), chosen="Hello!", rejected="Go away.")
    >>> c.chosen_dialogue.last.text
    'Hello!'
    """

    prompt: Dialogue
    chosen: str
    rejected: str
    strength: int | None = None
    kind: Kind = "helpful"
    worker: str | None = None
    arms: tuple[str, str] | None = None
    source: str = ""
    id: str = ""

    @property
    def chosen_dialogue(self) -> Dialogue:
        """The prompt and the chosen reply."""
        return self.prompt.reply(self.chosen)

    @property
    def rejected_dialogue(self) -> Dialogue:
        """The prompt and the rejected reply."""
        return self.prompt.reply(self.rejected)


@dataclass(frozen=True, slots=True)
class Question:
    """Something with a checkable answer: ``answers`` are accepted aliases, or ``choices`` and the index ``answer``.

    >>> Question("Capital of France?", answers=("Paris",)).kind
    'exact'
    """

    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None
    kind: Literal["exact", "number", "choice", "code"] = "exact"
    task: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's samples for one question and whether each is right.

    >>> Answers(Question("1+1?", ("2",), kind="number"), ("2", "3"), (True, False)).rate
    0.5
    """

    question: Question
    samples: tuple[str, ...]
    correct: tuple[bool, ...]

    @property
    def rate(self) -> float | None:
        """Share of right samples; None without samples."""
        return sum(self.correct) / len(self.correct) if self.correct else None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One red-team conversation, in the released schema of 2209.07858 (its misspelt field is spelt right here).

    >>> Attempt(transcript="\\n\\nHuman: Hi\\n\\nAssistant: Hello", rating=0.0, model_type="plain lm").rating
    0.0
    """

    transcript: str
    rating: float | None = None
    task_description: str = ""
    task_description_harmlessness_score: float | None = None
    min_harmlessness_score_transcript: float | None = None
    model_type: str = ""
    num_params: str = ""
    red_team_member_id: int | str | None = None
    is_upworker: bool | None = None
    tags: tuple[str, ...] = ()
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
