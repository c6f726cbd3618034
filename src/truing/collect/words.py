"""The texts of the pages: what we ship, and what the administrator made of it (setting ``words``)."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from truing.collect.store import setting
from truing.collect.texts import admin, redteam, review, shell, talk

SHIPPED: dict[str, Any] = shell.ENGLISH | talk.ENGLISH | redteam.ENGLISH | review.ENGLISH | admin.ENGLISH
"""Texts by name; a name begins with its page. A room adds its file of `truing.collect.texts` here by ``|``."""

LANGUAGES: dict[str, dict[str, Any]] = {
    "en": {},
    "de": shell.GERMAN | talk.GERMAN | redteam.GERMAN | review.GERMAN | admin.GERMAN,
}
"""What stands instead of the English text where ``words["language"]`` is another language."""


def words(db: Connection) -> dict[str, Any]:
    """Texts by name, as they hold now: the administrator's, else those of the language, else English."""
    edited = setting(db, "words") or {}
    return SHIPPED | LANGUAGES.get(edited.get("language", "en"), {}) | edited
