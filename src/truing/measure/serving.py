"""A run whose model may stand behind a server: what is kept of the server, and what the summary says of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from truing.models.kept import ANSWERS, KeptAnswers
from truing.models.remote import AnyLM, RemoteLM, open_lm
from truing.runs import Run

SERVER = "server"
"""The key of environment.json under which a server's facts lie."""
_MOST_NAMES = 20


def open_in_run(run: Run, config: Any, compute: Any) -> AnyLM:
    """The language model of a run's config.

    A server's keeps each answer in the run until its row is kept, is asked nothing more once ``max_time`` is over, and
    what it says of its model goes into ``environment.json``: no file tells what stood behind an address.
    """
    lm = open_lm(config.model, device=compute.device, dtype=compute.dtype)
    if isinstance(lm, RemoteLM):
        lm.client.kept = KeptAnswers(run.path / ANSWERS)
        lm.client.until = None if config.max_time is None else run.opened + 60 * config.max_time
        _remember(run, lm)
    return lm


def server_notes(run: Run, temperature: float = 1.0, top_p: float = 1.0) -> list[str]:
    """What a reader of the numbers must know of the server; nothing of a model that is here.

    ``temperature`` and ``top_p`` are those with which log-probabilities were drawn that the run keeps.
    """
    server = run.environment.get(SERVER)
    if not server:
        return []
    notes = []
    for what, names in (("models", server["answered"]["model"]), ("builds", server["answered"]["system_fingerprint"])):
        if len(names) > 1:
            notes.append(f"The answers came from {len(names)} {what} of the server: {', '.join(names)}.")
    if server["was"]:
        notes.append("The server said other things of its model when this run began: see environment.json.")
    if (temperature, top_p) != (1.0, 1.0):
        notes.append(
            f"Log-probabilities are the server's, at temperature {temperature:g} and top_p {top_p:g}: some servers "
            "give the model's own, others those after the temperature and the cut. At 1 and 1 they are the same."
        )
    return notes


def equal_replies(run: Run, replies: Iterable[Sequence[str]]) -> list[str]:
    """A note if a server gave all replies to each prompt alike, though they were asked for with other seeds."""
    groups = [list(some) for some in replies]
    alike = all(len(some) > 1 and len(set(some)) == 1 for some in groups)
    if SERVER not in run.environment or not alike or len(groups) < 2 or sum(map(len, groups)) < 4:
        return []  # too few to tell: one easy question may have one answer
    return [
        "All replies to one prompt are equal, for every prompt: the server probably takes the likeliest tokens "
        "whatever temperature is asked for (`transformers serve` samples only models whose generation_config.json says "
        '"do_sample": true).'
    ]


def _remember(run: Run, lm: RemoteLM) -> None:
    """Write the server's facts now, and again whenever its answers name another model or build."""
    before = run.environment.get(SERVER) or {}
    listed, was = lm.client.about(lm.model), before.get("was")
    if before.get("listed") and listed and _lasting(before["listed"]) != _lasting(listed):
        was = was or before["listed"]
        print(f"{lm.client.url} says other things of {lm.model} than when this run began.", file=sys.stderr)
    for name, known in before.get("answered", {}).items():
        lm.client.called[name].update(known)

    def write() -> None:
        answered = {name: sorted(found)[:_MOST_NAMES] for name, found in lm.client.called.items()}
        facts = {"url": lm.client.url, "model": lm.model, "listed": listed or before.get("listed"), "was": was}
        run.remember(SERVER, {**facts, "answered": answered})

    lm.client.on_new_name = write
    write()


def _lasting(listed: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in listed.items() if k != "created"}  # some servers give the time at which they are asked
