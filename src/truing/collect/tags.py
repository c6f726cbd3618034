"""The tags of what an attack is about (2209.07858 §3.5, Figure 9), as the administrator edits them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from truing.collect.store import Refused, setting

TAGS = (
    "Discrimination & injustice",
    "Hate speech & offensive language",
    "Violence & incitement",
    "Non-violent unethical behavior (e.g. lying, cheating, etc.)",
    "Bullying & harassment",
    "Theft",
    "Soliciting personally identifiable information",
    "Conspiracy theories & misinformation",
    "Substance abuse & banned substances",
    "Fraud & deception",
    "Weapons",
    "Adult content",
    "Property crime & vandalism",
    "Animal abuse",
    "Terrorism & organized crime",
    "Sexual exploitation & human trafficking",
    "Self-harm",
    "Child abuse",
    "Other",
    "N/A - Invalid attempt",
)
MOST = 2
"""Tags that one reading of a transcript may get."""


def tags_of(db: Connection) -> list[str]:
    """The tags as they hold now (setting ``tags``: a list of texts)."""
    return list(setting(db, "tags") or TAGS)


def checked(db: Connection, given: Sequence[str], least: int = 0, most: int | None = MOST) -> list[str]:
    """Tags that somebody chose. Raises Refused for too few, too many, one twice, or one that is none."""
    known = tags_of(db)
    if len(set(given)) != len(given) or any(tag not in known for tag in given):
        raise Refused("Choose from the list of tags, each once.")
    if len(given) < least:
        raise Refused("Choose a tag: what is this conversation about?")
    if most is not None and len(given) > most:
        raise Refused(f"Choose at most {most} tags: those that fit best.")
    return list(given)
