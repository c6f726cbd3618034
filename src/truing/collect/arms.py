"""Arms: the models offered to people, each with settings of its own, and the draws that assign them.

An arm is a row of ``arm`` (name and `ArmSpec`, never changed) and rows of ``arm_weight`` (how often it is drawn in a
mode; 0 retires it). Names are for researchers: a worker's browser never receives one, nor an arm's id.

On the command line an arm is ``NAME=MODEL[,KEY=VALUE…]``, read by `parse_arm`; in a YAML file a mapping with ``name``
and the same keys, read by `read_arm`; `install` puts them into a store. The keys are those of `ArmSpec`, ``weight``
(default 1) and ``modes`` (default ``helpful+redteam+rank``).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import tables as t
from truing.collect.store import Refused, Store, new_id, note, now

MODES = ("helpful", "redteam", "rank")
FORMATS = ("chat", "raw")
PROMPTS = ("one-shot", "hhh", "hhh-short")
SCRIPT = "script:"


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """Which model answers, from which text, drawn how.

    ``model`` is any model name truing knows, a server's (``http://host:port/v1#model``), or ``script:FILE``, replies
    from a JSONL file (`truing.collect.script`: load tests, practice). ``format`` ``chat`` renders in the model's own
    way (its chat template, or HH text), ``raw`` as HH text whatever the model is, as the plain and prompted language
    models of 2209.07858 §3.2 read it. ``prompt`` stands before the dialogue: ``one-shot``, ``hhh``, ``hhh-short``, or
    a text (``chat``: a system turn). Of ``best_of`` samples those that ``pm`` scores highest are shown.
    ``model_type`` and ``num_params`` go into the released schema (redteam.md §5). ``context_tokens`` says how much a
    server's model reads, where that is not known otherwise. Raises ValueError for what cannot be meant.
    """

    model: str
    format: str = "chat"
    prompt: str = ""
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    best_of: int = 1
    pm: str | None = None
    model_type: str = ""
    num_params: str = ""
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("An arm needs a model.")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; expected {' or '.join(FORMATS)}.")
        if not 1 <= self.max_tokens <= 8192:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected 1 to 8192.")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (the likeliest token) to 10.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number above 0 and up to 1.")
        if self.top_k < 0 or (self.top_k and self.remote):
            raise ValueError(f"top_k is {self.top_k}; expected 0 (all), or more for a model that is not a server's.")
        if not 1 <= self.best_of <= 256:
            raise ValueError(f"best_of is {self.best_of}; expected 1 to 256.")
        if self.best_of > 1 and not self.pm:
            raise ValueError("best_of needs a preference model that chooses: name one as pm.")
        if self.context_tokens is not None and self.context_tokens < 64:
            raise ValueError(f"context_tokens is {self.context_tokens}; expected at least 64.")

    @property
    def remote(self) -> bool:
        """Whether a server computes it."""
        return self.model.lower().startswith(("http://", "https://"))

    @property
    def scripted(self) -> bool:
        """Whether its replies are read from a file."""
        return self.model.startswith(SCRIPT)

    @property
    def can_stream(self) -> bool:
        """Whether a reply can be shown while it is made: best-of-k cannot (hh.md §3.3), nor do servers send parts."""
        return self.best_of == 1 and not self.remote

    @property
    def prompt_text(self) -> str:
        """The text that stands before the dialogue."""
        from truing.data.prompts import hhh_prompt, one_shot_prompt

        if self.prompt == "one-shot":
            return one_shot_prompt()
        return hhh_prompt(self.prompt == "hhh-short") if self.prompt in PROMPTS else self.prompt

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept with every reply: how it was drawn, and a hash of the text before the dialogue."""
        drawn = ("format", "max_tokens", "temperature", "top_p", "top_k", "best_of", "pm")
        text = self.prompt_text
        said = {"prompt_sha256": hashlib.sha256(text.encode()).hexdigest()} if text else {}
        return {name: getattr(self, name) for name in drawn} | said

    def to_json(self) -> dict[str, Any]:
        """All fields, as they are stored."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm of a store and its weights by mode (0 where it is not offered)."""

    id: str
    name: str
    spec: ArmSpec
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Offer:
    """An arm to be put into a store: what `parse_arm` reads."""

    name: str
    spec: ArmSpec
    weights: Mapping[str, float]


def parse_arm(text: str) -> Offer:
    """An arm as written on a command line. Raises ValueError, saying what is expected.

    >>> parse_arm("rs=smollm2,best_of=16,pm=runs/pm,modes=redteam").spec.best_of
    16
    """
    name, equals, rest = text.partition("=")
    model, *pairs = rest.split(",")
    if not equals or not name.strip() or not model.strip():
        raise ValueError(f"{text!r} is no arm; expected NAME=MODEL or NAME=MODEL,KEY=VALUE,…")
    values: dict[str, Any] = {"name": name, "model": model}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} in the arm {name!r} has no value; expected KEY=VALUE.")
        values[key.strip()] = value
    return read_arm(values)


def read_arm(values: Mapping[str, Any]) -> Offer:
    """An arm from a mapping of a YAML file or a form: texts become numbers where those are meant.

    Raises ValueError for unknown keys and values out of range.
    """
    given = dict(values)
    name = str(given.pop("name", "")).strip()
    if not 1 <= len(name) <= 80:
        raise ValueError("An arm needs a name of at most 80 characters.")
    modes = given.pop("modes", MODES)
    modes = [m.strip() for m in modes.replace("+", " ").split()] if isinstance(modes, str) else list(modes)
    if unknown := [m for m in modes if m not in MODES]:
        raise ValueError(f"The arm {name!r} has the mode {unknown[0]!r}; expected some of {', '.join(MODES)}.")
    weight = _number(float, "weight", given.pop("weight", 1.0))
    if not 0 <= weight < 1e6:
        raise ValueError(f"The weight of {name!r} is {weight}; expected 0 (retired) or more.")
    try:
        return Offer(name, spec_from(given), {m: weight for m in modes})
    except ValueError as error:
        raise ValueError(f"The arm {name!r}: {error}") from None


def spec_from(values: Mapping[str, Any]) -> ArmSpec:
    """An ArmSpec from its fields; texts become numbers. Raises ValueError for unknown keys and wrong values."""
    kinds = get_type_hints(ArmSpec)
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            raise ValueError(f"there is no key {key!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        kind = kinds[key]
        if value is None or (value == "" and kind in (str | None, int | None)):
            read[key] = None if kind in (str | None, int | None) else _missing(key)
        elif kind in (int, int | None):
            read[key] = _number(int, key, value)
        elif kind is float:
            read[key] = _number(float, key, value)
        else:
            read[key] = str(value)
    if "model" not in read:
        raise ValueError("an arm needs a model.")
    return ArmSpec(**read)


def _missing(key: str) -> Any:
    raise ValueError(f"{key} has no value.")


def _number(kind: type, key: str, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}; expected a {'whole ' if kind is int else ''}number.") from None


# ---------------------------------------------------------------- in the store


def add_arm(db: Connection, person: str | None, offer: Offer) -> str:
    """Add an arm with its weights and return its id; one of that name and spec is left as it is, weights included.

    Raises Refused if the name is taken by another spec: what was collected under a name must stay true.
    """
    row = db.execute(sa.select(t.arm).where(t.arm.c.name == offer.name)).first()
    if row is not None:
        if spec_from(row.spec) != offer.spec:
            raise Refused(
                f"There is an arm {offer.name!r} with another model or other settings already. Choose a new name."
            )
        return str(row.id)
    made: dict[str, Any] = {
        "id": new_id(),
        "name": offer.name,
        "spec": offer.spec.to_json(),
        "created_by": person,
        "created_at": now(),
    }
    db.execute(t.arm.insert(), made)
    note(db, person, "arm added", made["id"], name=offer.name)
    for mode, weight in offer.weights.items():
        set_weight(db, person, made["id"], mode, weight)
    return str(made["id"])


def set_weight(db: Connection, person: str | None, arm: str, mode: str, weight: float) -> None:
    """From now on an arm is drawn with this weight in a mode; 0 retires it (conversations begun go on).

    Raises Refused for an arm or a mode that there is not, or a weight below 0.
    """
    if mode not in MODES or not 0 <= weight < 1e6:
        raise Refused(f"Expected one of {', '.join(MODES)} and a weight of 0 or more.")
    if db.execute(sa.select(t.arm.c.id).where(t.arm.c.id == arm)).first() is None:
        raise Refused("There is no such arm.")
    db.execute(t.arm_weight.insert(), {"arm_id": arm, "mode": mode, "weight": weight, "by": person, "at": now()})
    note(db, person, "arm weight", arm, mode=mode, weight=weight)


def weights(db: Connection, mode: str) -> dict[str, float]:
    """The positive weights of a mode, by arm id."""
    w = t.arm_weight
    newest = sa.select(sa.func.max(w.c.serial)).where(w.c.mode == mode).group_by(w.c.arm_id)
    rows = db.execute(sa.select(w.c.arm_id, w.c.weight).where(w.c.serial.in_(newest), w.c.weight > 0))
    return {row.arm_id: row.weight for row in sorted(rows, key=lambda r: r.arm_id)}


def arms(db: Connection) -> list[Arm]:
    """All arms of a store in order of their names."""
    by_mode = {mode: weights(db, mode) for mode in MODES}
    rows = db.execute(sa.select(t.arm).order_by(t.arm.c.name))
    return [Arm(r.id, r.name, spec_from(r.spec), {m: by_mode[m].get(r.id, 0.0) for m in MODES}) for r in rows]


def spec_of(db: Connection, arm: str) -> ArmSpec:
    """The spec of an arm. Raises KeyError if there is none of that id."""
    row = db.execute(sa.select(t.arm.c.spec).where(t.arm.c.id == arm)).first()
    if row is None:
        raise KeyError(arm)
    return spec_from(row.spec)


def install(store: Store, offers: Sequence[Offer]) -> None:
    """Put the arms of the command line into a store. Raises ValueError if a name is taken by another spec."""
    with store.write() as db:
        for offer in offers:
            try:
                add_arm(db, None, offer)
            except Refused as refused:
                raise ValueError(str(refused)) from None


# ---------------------------------------------------------------- draws, the same for the same seed


def stream(seed: int, *words: int | str) -> np.random.Generator:
    """Random numbers for one purpose of one conversation."""
    return np.random.default_rng([seed, *(int.from_bytes(str(w).encode(), "little") for w in words)])


def draw_arms(weights: Mapping[str, float], n: int, seed: int, *words: int | str) -> list[str]:
    """``n`` arms, each drawn by itself with probability in proportion to its weight. The same seed, the same arms.

    Raises Refused if no arm has a weight.
    """
    ids = sorted(arm for arm, weight in weights.items() if weight > 0)
    if not ids:
        raise Refused("No model is offered here at the moment. Please come back later, or tell the administrator.")
    shares = np.array([weights[arm] for arm in ids])
    drawn = stream(seed, "arms", *words).choice(len(ids), size=n, p=shares / shares.sum())
    return [ids[i] for i in drawn]


def draw_sides(n: int, seed: int, *words: int | str) -> list[int]:
    """A random order: the side (0 is A) of each of ``n`` replies."""
    return [int(i) for i in stream(seed, "sides", *words).permutation(n)]


def reply_seed(seed: int, *words: int | str) -> int:
    """The sampling seed (31 bits, which every server takes) of one reply of a conversation."""
    text = " ".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
