"""The texts of the pages: what we ship, and what the administrator made of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from truing.collect.store import setting

SHIPPED: dict[str, Any] = {"title": "truing"}


def words(db: Connection) -> dict[str, Any]:
    """Texts by name, as they hold now."""
    return SHIPPED | (setting(db, "words") or {})
