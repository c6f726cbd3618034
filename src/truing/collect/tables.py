"""What the feedback store keeps, as tables (hh.md §4.1, redteam.md §2.3, §7.2).

What a person said is a fact: it is added and never overwritten, and what corrects it is a row of its own. Facts hide or
fade only by further facts: a withdrawal hides a conversation from every reader and export, an erasure replaces its
text. ``person``, ``login`` and ``job`` hold state of the moment, not facts. Ids are random, so that nothing can be
read off them, neither an order nor a model. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)  # fmt: skip

from truing.collect.columns import metadata, moment, of, row_id, serial
from truing.collect.review_tables import assignment as assignment
from truing.collect.review_tables import decision as decision
from truing.collect.review_tables import leaving as leaving
from truing.collect.review_tables import review as review
from truing.collect.spot_tables import opinion as opinion
from truing.collect.survey_tables import demographics as demographics
from truing.collect.survey_tables import survey_offer as survey_offer
from truing.collect.survey_tables import wellbeing as wellbeing

# ---------------------------------------------------------------- people

person = Table(
    "person",
    metadata,
    row_id(),
    Column("name", String(80), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", String(200)),
    Column("source", String(40), nullable=False, default=""),
    Column("simulated", Boolean, nullable=False, default=False),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("modes", JSON, nullable=False),
    Column("quota", Integer),
    moment("created_at"),
    CheckConstraint("role IN ('worker', 'reviewer', 'researcher', 'admin')", name="role"),
)
"""``modes``: of helpful, redteam, rank, review those that a worker may do. ``quota``: conversations at most."""

login = Table(
    "login",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    of("person"),
    Column("csrf", String(64), nullable=False),
    moment("created_at"),
    moment("seen_at"),
    moment("expires_at"),
)

invitation = Table(
    "invitation",
    metadata,
    row_id(),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("source", String(40), nullable=False, default=""),
    Column("modes", JSON, nullable=False),
    Column("quota", Integer),
    Column("uses", Integer, nullable=False, default=1),
    of("person", null=True, index=False),
    Column("created_by", String(32), nullable=False),
    moment("created_at"),
    moment("expires_at"),
    Column("revoked_at", BigInteger),
)
"""With a person it is a link to set a new password; ``uses`` are those left."""

setting = Table(
    "setting",
    metadata,
    serial(),
    Column("key", String(60), nullable=False, index=True),
    Column("value", JSON, nullable=False),
    Column("version", String(64), nullable=False),
    Column("person_id", String(32)),
    moment(),
)
"""Words, tags and rules that the administrator edits; the last row of a key holds. ``version``: SHA-256 of it."""

consent = Table(
    "consent",
    metadata,
    row_id(),
    of("person"),
    Column("page", String(40), nullable=False),
    Column("version", String(64), nullable=False),
    moment(),
)

exclusion = Table("exclusion", metadata, serial(), of("person"), Column("tags", JSON, nullable=False), moment())
"""Tags of which a reviewer wants no transcripts; the last row of a person holds."""

pay = Table(
    "pay",
    metadata,
    row_id(),
    of("person"),
    of("task", null=True),
    Column("cents", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("why", String(200), nullable=False),
    Column("by", String(32)),
    moment(),
)

# ---------------------------------------------------------------- arms

arm = Table(
    "arm",
    metadata,
    row_id(),
    Column("name", String(80), nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("created_by", String(32)),
    moment("created_at"),
)
"""``spec``: see `truing.collect.arms.ArmSpec`. An arm's spec never changes: another spec is another arm."""

arm_weight = Table(
    "arm_weight",
    metadata,
    serial(),
    of("arm"),
    Column("mode", String(16), nullable=False),
    Column("weight", Float, nullable=False),
    Column("by", String(32)),
    moment(),
    CheckConstraint("weight >= 0", name="weight"),
)
"""The last row of an arm and mode holds; 0 retires it."""

# ---------------------------------------------------------------- conversations

task = Table(
    "task",
    metadata,
    row_id(),
    of("person"),
    Column("mode", String(16), nullable=False),
    Column("size", Integer, nullable=False),
    moment("created_at"),
)

conversation = Table(
    "conversation",
    metadata,
    row_id(),
    of("person"),
    of("task"),
    Column("mode", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("arms", JSON, nullable=False),
    Column("weights", JSON, nullable=False),
    moment("created_at"),
    UniqueConstraint("id", "person_id"),
    CheckConstraint("mode IN ('helpful', 'redteam', 'rank')", name="mode"),
)
"""``arms``: ids of those drawn for the whole conversation (red team: one), empty where each turn draws its own.
``weights``: id → weight at the draw, so that it can be replayed from ``seed``."""
IMPORTED = 0
"""The ``seed`` of conversations that were made elsewhere: nothing of them was drawn here."""

message = Table(
    "message",
    metadata,
    row_id(),
    of("conversation"),
    of("message", name="parent_id", null=True, index=False),
    Column("turn", Integer, nullable=False),
    Column("role", String(12), nullable=False),
    Column("kind", String(12), nullable=False),
    Column("text", Text, nullable=False),
    moment(),
    CheckConstraint("kind IN ('human', 'reply', 'edit', 'written')", name="kind"),
)
"""Turns with parents. A turn is a human message and the replies to it; ``turn`` counts from 1. ``edit``: a person's
better version of a reply; ``written``: a reply that a person wrote (hh.md §14)."""

candidate = Table(
    "candidate",
    metadata,
    Column("message_id", String(32), ForeignKey("message.id"), primary_key=True),
    of("arm"),
    Column("side", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("logprob", Float),
    Column("num_tokens", Integer),
    Column("finish", String(12), nullable=False),
    Column("pm_score", Float),
    Column("rank", Integer, nullable=False, default=1),
    Column("drawn", JSON),
    Column("seconds", Float, nullable=False),
    Column("same", Boolean, nullable=False, default=False),
    Column("truncated", Boolean, nullable=False, default=False),
)
"""How a shown reply came about. ``side`` 0 is A. ``drawn``: scores of all k samples of a best-of-k arm, in order of
drawing; ``rank`` 1 is the best. ``same``: both candidates of the turn are equal. ``truncated``: the context was too
long for the model and the oldest turns were left out."""

job = Table(
    "job",
    metadata,
    row_id(),
    of("conversation"),
    Column("turn", Integer, nullable=False),
    Column("round", Integer, nullable=False, default=0),
    Column("arms", JSON, nullable=False),
    Column("weights", JSON, nullable=False),
    Column("state", String(12), nullable=False, index=True),
    Column("owner", String(64)),
    Column("lease_until", BigInteger),
    Column("tries", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("created_at", BigInteger, nullable=False, index=True),
    Column("done_at", BigInteger),
    Column("show_at", BigInteger),
    UniqueConstraint("conversation_id", "turn"),
    CheckConstraint("state IN ('waiting', 'running', 'done', 'failed')", name="state"),
)
"""Replies to be drawn for a turn by ``arms`` (an id for each reply), drawn with ``weights``. ``round``: how often the
person asked again after a failure. ``show_at``: no reader sees the replies earlier (the common delay)."""

choice = Table(
    "choice",
    metadata,
    row_id(),
    of("conversation"),
    Column("turn", Integer, nullable=False),
    of("message", name="chosen_id", index=False),
    Column("strength", Integer),
    Column("order", JSON),
    of("message", name="edit_id", null=True, index=False),
    Column("latency_ms", Integer),
    moment(),
    UniqueConstraint("conversation_id", "turn"),
    CheckConstraint("strength BETWEEN 1 AND 4", name="strength"),
)
"""The clicked reply of a turn (red team: the **more harmful** one; the flip is made once, at export). Strength 1 is
unsure. ``order``: message ids from best to worst in ranking mode. ``edit_id``: the person's version, with which the
conversation went on."""

plan = Table(
    "plan",
    metadata,
    Column("conversation_id", String(32), ForeignKey("conversation.id"), primary_key=True),
    Column("text", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    moment(),
)
"""What a red teamer wrote before the chat; locked. ``tags``: what it is about, if they said so, for reviewers who do
not want to read about it."""

ending = Table(
    "ending",
    metadata,
    Column("conversation_id", String(32), ForeignKey("conversation.id"), primary_key=True),
    Column("description", Text),
    Column("comment", Text, nullable=False, default=""),
    Column("rating", Integer),
    Column("success", Integer),
    Column("harmfulness", Integer),
    Column("actionability", Integer),
    Column("stopped", Boolean, nullable=False, default=False),
    moment(),
    *(CheckConstraint(f"{x} BETWEEN 0 AND 4", name=x) for x in ("rating", "success", "harmfulness", "actionability")),
)
"""How a conversation ended. Ratings are stored 0 to 4, though screens show 1 to 5. ``stopped``: the person left by
"stop now", and owes no answers."""

flag = Table(
    "flag",
    metadata,
    row_id(),
    of("conversation"),
    of("person"),
    of("message", null=True, index=False),
    Column("why", Text, nullable=False),
    moment(),
)

withdrawal = Table("withdrawal", metadata, row_id(), of("conversation"), Column("by", String(32)), moment())
"""Hides a conversation from every reader and export from now on."""

erasure = Table(
    "erasure",
    metadata,
    row_id(),
    of("conversation"),
    Column("by", String(80), nullable=False),
    Column("why", Text, nullable=False),
    moment(),
)

spot_check = Table(
    "spot_check",
    metadata,
    row_id(),
    of("conversation"),
    of("person"),
    Column("verdict", String(16), nullable=False),
    Column("comment", Text, nullable=False, default=""),
    moment(),
)

# ---------------------------------------------------------------- the machine's own

once = Table(
    "once",
    metadata,
    Column("person_id", String(32), primary_key=True),
    Column("key", String(80), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("response", JSON, nullable=False),
    moment(),
)
"""Answers to writes already done, by the browser's idempotency key. ``request``: SHA-256 of route and body."""

audit = Table(
    "audit",
    metadata,
    serial(),
    Column("person_id", String(32)),
    Column("action", String(40), nullable=False),
    Column("target", String(80), nullable=False, default=""),
    Column("details", JSON, nullable=False),
    moment(),
)

export = Table(
    "export",
    metadata,
    row_id(),
    Column("person_id", String(32)),
    Column("kind", String(24), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    moment(),
)
exported = Table(
    "exported",
    metadata,
    Column("export_id", String(32), ForeignKey("export.id"), primary_key=True),
    Column("conversation_id", String(32), ForeignKey("conversation.id"), primary_key=True),
)
"""Which conversations left in which file: what an erasure has to name."""

Index("ix_message_conversation_turn", message.c.conversation_id, message.c.turn)
Index("ix_audit_at", audit.c.at)
