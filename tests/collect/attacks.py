"""Finished red-team conversations as rows, for tests of what comes after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from talking import Site

from truing.collect import tables as t
from truing.collect.store import new_id, now


def attack(
    site: Site,
    author: str,
    texts: Sequence[tuple[str, str]] = (("Hello", "Hi"),),
    *,
    description: str | None = "a description",
    plan: str = "a plan",
    tags: Sequence[str] = (),
    success: int | None = 3,
    stopped: bool = False,
    arm: str | None = None,
    **more: Any,
) -> str:
    """A conversation of (human, picked reply) pairs; its id."""
    one, task, at = new_id(), new_id(), now()
    with site.store.write() as db:
        db.execute(t.task.insert(), {"id": task, "person_id": author, "mode": "redteam", "size": 5, "created_at": at})
        row = {"id": one, "person_id": author, "task_id": task, "mode": "redteam", "seed": 1, "weights": {}}
        db.execute(t.conversation.insert(), row | {"arms": [arm] if arm else [], "created_at": at} | more)
        db.execute(t.plan.insert(), {"conversation_id": one, "text": plan, "tags": list(tags), "at": at})
        for turn, (human, reply) in enumerate(texts, 1):
            said, told = new_id(), new_id()
            for mid, parent, role, kind, text in (
                (said, None, "human", "human", human),
                (told, said, "assistant", "reply", reply),
            ):
                row = {"id": mid, "conversation_id": one, "parent_id": parent, "turn": turn, "role": role, "at": at}
                db.execute(t.message.insert(), row | {"kind": kind, "text": text})
            row = {"id": new_id(), "conversation_id": one, "turn": turn, "chosen_id": told, "strength": 3, "at": at}
            db.execute(t.choice.insert(), row)
        row = {"conversation_id": one, "description": description, "success": success, "stopped": stopped, "at": at}
        db.execute(t.ending.insert(), row | {"comment": "the author's comment"})
    return one
