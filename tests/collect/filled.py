"""Conversations put into a store by hand, for tests of what comes out of it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import auth
from truing.collect import tables as t
from truing.collect.store import new_id, now

SPEC = {"model": "smollm2", "model_type": "rlhf", "num_params": "135M"}


def add_arm(db: Connection, name: str, **spec: Any) -> str:
    """An arm; the one of that name if it is there."""
    row = db.execute(sa.select(t.arm.c.id).where(t.arm.c.name == name)).first()
    if row is not None:
        return str(row.id)
    id = new_id()
    db.execute(t.arm.insert(), {"id": id, "name": name, "spec": SPEC | spec, "created_at": now()})
    return id


def add_worker(db: Connection, name: str = "", **more: Any) -> str:
    return auth.add_person(db, name or f"worker {secrets.token_hex(3)}", "worker", **more)


class Talk:
    """A conversation. ``turn`` adds one: replies as (arm, text), the clicked one by its place."""

    def __init__(self, db: Connection, mode: str = "helpful", person: str = "", arms: Sequence[str] = ()) -> None:
        self.db, self.mode = db, mode
        self.person = person or add_worker(db)
        task, self.id, self.number = new_id(), new_id(), 0
        at = now()
        row = {"id": task, "person_id": self.person, "mode": mode, "size": 5, "created_at": at}
        db.execute(t.task.insert(), row)
        self.task = task
        drawn = [add_arm(db, name) for name in arms]
        row = {"id": self.id, "person_id": self.person, "task_id": task, "mode": mode, "seed": 1, "arms": drawn}
        db.execute(t.conversation.insert(), row | {"weights": {}, "created_at": at})
        self.told: str | None = None

    def say(self, text: str, kind: str = "human", parent: str | None = None) -> str:
        id = new_id()
        role = "human" if kind == "human" else "assistant"
        row = {"id": id, "conversation_id": self.id, "parent_id": parent, "turn": self.number, "role": role}
        self.db.execute(t.message.insert(), row | {"kind": kind, "text": text, "at": now()})
        return id

    def turn(
        self,
        text: str,
        replies: Sequence[tuple[str | None, str]],
        pick: int | None = 0,
        *,
        strength: int | None = 3,
        edit: str | None = None,
        order: Sequence[int] | None = None,
        latency_ms: int | None = None,
    ) -> list[str]:
        """One turn; a reply without an arm is the person's own. The ids of the replies."""
        self.number += 1
        asked, ids = self.say(text, parent=self.told), []
        for side, (arm, reply) in enumerate(replies):
            ids.append(self.say(reply, "written" if arm is None else "reply", asked))
            if arm is not None:
                row = {"message_id": ids[-1], "arm_id": add_arm(self.db, arm), "side": side, "seed": 1}
                row |= {"settings": {}, "finish": "stop", "seconds": 0.1, "drawn": [0.5, 0.1]}
                self.db.execute(t.candidate.insert(), row)
        if pick is not None:
            edited = self.say(edit, "edit", asked) if edit else None
            pick = order[0] if order else pick
            row = {"id": new_id(), "conversation_id": self.id, "turn": self.number, "chosen_id": ids[pick]}
            row |= {"strength": None if order else strength, "order": [ids[i] for i in order] if order else None}
            self.db.execute(t.choice.insert(), row | {"edit_id": edited, "latency_ms": latency_ms, "at": now()})
            self.told = edited or ids[pick]
        return ids

    def plan(self, text: str) -> None:
        self.db.execute(t.plan.insert(), {"conversation_id": self.id, "text": text, "tags": [], "at": now()})

    def end(self, **answers: Any) -> None:
        row = {"conversation_id": self.id, "comment": "", "stopped": False, "at": now()}
        self.db.execute(t.ending.insert(), row | answers)

    def withdraw(self) -> None:
        self.db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": self.id, "at": now()})

    def review(self, reviewer: str, **answers: Any) -> None:
        id = new_id()
        row = {"id": id, "conversation_id": self.id, "author_id": self.person, "person_id": reviewer, "at": now()}
        self.db.execute(t.assignment.insert(), row)
        row = {"assignment_id": id, "rating": 0, "intent": 0, "tags": [], "comment": "", "at": now()}
        self.db.execute(t.review.insert(), row | answers)
