"""Rewards that are no preference model: the user's own Python function, or a server (``rlhf train --reward``).

A reward function takes dialogues that end in a reply and gives one number for each. ``--reward module:function`` is
imported from the working folder; ``--reward http://host:port/path`` is sent ``{"dialogues": [{"text", "messages"}]}``
and answers ``{"scores": [number, …]}``.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truing.models.client import Client, Refused, ServerError
from truing.models.heads import PreferenceModel
from truing.text import to_hh
from truing.train.ppo_models import weights_hash
from truing.types import Dialogue

RewardFn = Callable[[list[Dialogue]], Any]
"""Dialogues → one finite number each, in any form that numpy takes."""
ROWS = 32
"""Dialogues in one request to a reward server."""


def load_reward(name: str, option: str = "--reward") -> tuple[RewardFn, str]:
    """The reward function that ``--reward`` (or another ``option``) names, and what stands for it in a run's identity.

    Of a Python function that is the hash of the file it stands in; of a server only its address is known.
    Raises ValueError for what cannot be found or imported.
    """
    if name.startswith(("http://", "https://")):
        return RewardServer(name), f"server:{name}"
    return _python_reward(name, option)


def _python_reward(name: str, option: str) -> tuple[RewardFn, str]:
    where, _, what = name.partition(":")
    form = f"{option} is {name!r}; expected module:function of a file in {os.getcwd()}, or http://host:port/path."
    if where.endswith(".py"):
        raise ValueError(
            f"{form} Without the ending: {where.removesuffix('.py').replace(os.sep, '.')}:{what or 'score'}"
        )
    if not where or not what:
        raise ValueError(form)
    module = _imported(where, f"{option} {name}")
    found: Any = module
    for part in what.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f" Did you mean {where}:{near[0]}?" if near else ""
            raise ValueError(f"{option} {name}: {module.__file__ or where} has no {part!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{option} {name} is a {type(found).__name__}; expected a function of a list of dialogues.")
    files = {module.__file__, inspect.getsourcefile(inspect.unwrap(found)) if inspect.isroutine(found) else None}
    digest = hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in sorted(filter(None, files))))
    return found, f"function:{name} sha256:{digest.hexdigest()}"


def reward_identity(pm: PreferenceModel | None, reward_fn: RewardFn | None, name: str = "reward") -> dict[str, str]:
    """What stands for a reward handed over in memory in a run's identity, under ``name``; nothing if there is none.

    Of a preference model that is its weights; of a function its source text and the values it closes over, or its
    name where Python keeps no source (a built-in, the prompt of an interpreter).
    """
    if pm is not None:
        return {name: f"pm:{weights_hash(pm.backbone)}:{weights_hash(pm.head)}:{pm.reference_mean!r}"}
    if reward_fn is None:
        return {}
    plain = inspect.unwrap(reward_fn)
    try:
        text = inspect.getsource(plain if inspect.isroutine(plain) else type(plain))
    except (OSError, TypeError):
        text = f"{getattr(plain, '__module__', '')}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"
    held = [cell.cell_contents for cell in getattr(plain, "__closure__", None) or () if _is_plain(cell)]
    return {name: f"function sha256:{hashlib.sha256(repr((text, held)).encode()).hexdigest()}"}


def _is_plain(cell: Any) -> bool:
    """Whether a closed-over value is one whose text is the same in every process."""
    try:
        return isinstance(cell.cell_contents, str | int | float | bool | bytes | None)
    except ValueError:  # not filled yet
        return False


def _imported(module: str, given: str) -> Any:
    """A module of the working folder, or any other that Python finds; ``given`` is the option and its value."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and (module == missing.name or module.startswith(f"{missing.name}.")):
            there = sorted(path.stem for path in Path(here).glob("*.py"))
            near = difflib.get_close_matches(module, there, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Python files here: {', '.join(there[:8]) or 'none'}."
            raise ValueError(f"{given}: there is no module {module!r} in {here}.{hint}") from None
        raise ValueError(f"{given} cannot be imported: {told(missing)}") from missing
    except Exception as problem:
        raise ValueError(f"{given} cannot be imported: {told(problem)}") from problem


def told(problem: BaseException) -> str:
    """An exception of the user's code in one line: what it says, and the user's line that raised it."""
    said = f"{type(problem).__name__}: {problem}".rstrip(": ")
    if isinstance(problem, SyntaxError):
        return said
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if not f.filename.startswith("<frozen")]
    frames = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    mine = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)]
    if not frames:
        return said
    last = (mine or frames)[-1]
    return f"{said} ({last.filename}, line {last.lineno}, in {last.name}: {last.line})"


def ask(reward_fn: RewardFn, dialogues: list[Dialogue]) -> np.ndarray:
    """What a reward function says of dialogues, float64 [N].

    Raises ValueError if it raises (its line is named), or does not give one finite number per dialogue.
    """
    who = getattr(reward_fn, "__name__", None) or str(reward_fn)
    try:
        found = reward_fn(list(dialogues))
    except (ServerError, Refused):
        raise  # they say what is wrong themselves
    except (Exception, SystemExit) as problem:
        raise ValueError(f"The reward function {who} failed: {told(problem)}") from problem
    try:
        scores = np.asarray(found, dtype=float)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ValueError(
            f"The reward function {who} returned {str(found)[:80]}, which is no list of numbers ({problem}); expected "
            "one finite number per dialogue."
        ) from None
    if scores.shape != (len(dialogues),):
        raise ValueError(
            f"The reward function {who} returned shape {scores.shape} for {len(dialogues)} dialogues; expected one "
            "finite number per dialogue."
        )
    if (bad := np.flatnonzero(~np.isfinite(scores))).size:
        raise ValueError(
            f"The reward function {who} gave {scores[bad[0]]} to {len(bad)} of {len(dialogues)} dialogues; expected "
            f"one finite number per dialogue. The first such reply: {dialogues[bad[0]].last.text[:200]!r}"
        )
    return scores


class RewardServer:
    """A server that scores dialogues. Requests go side by side and again where that can help (`Client`)."""

    def __init__(self, url: str) -> None:
        self.client = Client(url)

    def __str__(self) -> str:
        return self.client.url

    def __call__(self, dialogues: Sequence[Dialogue]) -> np.ndarray:
        """Scores float64 [N]. Raises ValueError for an answer of another form, ConnectionError for none at all."""
        parts = [dialogues[i : i + ROWS] for i in range(0, len(dialogues), ROWS)]
        return np.concatenate(self.client.each(self._ask, parts)) if parts else np.empty(0)

    def _ask(self, dialogues: Sequence[Dialogue]) -> np.ndarray:
        rows = [{"text": to_hh(d), "messages": d.to_messages()} for d in dialogues]
        answer = self.client.ask("", {"dialogues": rows})
        scores = answer.get("scores")
        fits = isinstance(scores, list) and len(scores) == len(rows)
        if not fits or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in scores):  # type: ignore[union-attr]
            held = f"{len(scores)} scores" if isinstance(scores, list) else ", ".join(answer) or "nothing"
            raise Refused(
                f"The reward server {self} was asked about {len(rows)} dialogues and answered with {held}: "
                f'{str(answer)[:120]}. Expected {{"scores": [one number per dialogue]}}.'
            )
        return np.array(scores, dtype=float)
