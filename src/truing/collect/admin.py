"""What administrators do to people, the ledger and the texts of the pages. All of it is added, logged, reversible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import acts, auth
from truing.collect import tables as t
from truing.collect.store import Refused, lock_conversation, new_id, note, now, readable, set_setting, setting
from truing.collect.web import ROLES, Person
from truing.collect.words import LANGUAGES, SHIPPED

VERDICTS = ("good", "doubtful", "bad")
RULES = {
    "task_size": 5,
    "suggested_turns": 4,
    "break_every": 20,
    "wellbeing_every": 10,
    "demographics_after": 1,
    "reviewers": 3,
}
"""The numbers of the setting ``rules``, as they are until somebody changes them."""
PAID = ("helpful", "rank", "redteam", "review")


# ---------------------------------------------------------------- people


def change_person(
    db: Connection, by: Person, person: str, role: str, modes: Sequence[str], quota: int | None, disabled: bool
) -> None:
    """Give a person another role, modes or quota, or close the door. Who loses something is signed out.

    Raises Refused for what cannot be, and rather than leave the place without an administrator.
    """
    row = db.execute(sa.select(t.person).where(t.person.c.id == person).with_for_update()).first()
    if row is None:
        raise Refused("There is no such person.")
    if role not in ROLES or any(mode not in auth.MODES for mode in modes):
        raise Refused("There is no such role or mode.")
    if quota is not None and not 0 <= quota <= 1_000_000:
        raise Refused("A quota is 0 or more conversations.")
    if row.role == "admin" and not row.disabled and (role != "admin" or disabled):
        others = sa.select(t.person.c.id).where(t.person.c.role == "admin", ~t.person.c.disabled).with_for_update()
        if len(db.execute(others).all()) < 2:
            raise Refused("This is the last administrator. Make somebody else one first.")
    values = {"role": role, "modes": list(dict.fromkeys(modes)), "quota": quota, "disabled": disabled}
    changed = {k: v for k, v in values.items() if getattr(row, k) != v}
    if not changed:
        return
    db.execute(t.person.update().where(t.person.c.id == person).values(**changed))
    if disabled or "role" in changed:
        auth.end_sessions(db, person)
    note(db, by.id, "person", person, **changed)


def people(db: Connection) -> list[dict[str, Any]]:
    """Everybody, by name: what they may do, what they have done, when they were last here."""
    c, l = t.conversation.c, t.login.c  # noqa: E741
    done = sa.select(
        c.person_id, sa.func.count().label("begun"), sa.func.count(t.ending.c.conversation_id).label("ended")
    )
    done = done.select_from(t.conversation.outerjoin(t.ending)).group_by(c.person_id)
    counts = {row.person_id: row for row in db.execute(done)}
    seen = dict(db.execute(sa.select(l.person_id, sa.func.max(l.seen_at)).group_by(l.person_id)).tuples().all())
    cents = _balances(db)
    out = []
    for row in db.execute(sa.select(t.person).order_by(sa.func.lower(t.person.c.name))).mappings():
        count = counts.get(row["id"])
        facts = {"begun": count.begun if count else 0, "ended": count.ended if count else 0}
        out.append({**row, **facts, "seen_at": seen.get(row["id"]), "paid": cents.get(row["id"], {})})
    return out


def invitations(db: Connection) -> list[dict[str, Any]]:
    """Links that were given out, the newest first. Their tokens are in no table."""
    i = t.invitation.c
    query = sa.select(t.invitation, t.person.c.name.label("for_name")).outerjoin(t.person, t.person.c.id == i.person_id)
    at = now()
    return [
        {**row, "open": row["uses"] > 0 and row["revoked_at"] is None and row["expires_at"] > at}
        for row in db.execute(query.order_by(i.created_at.desc()).limit(200)).mappings()
    ]


# ---------------------------------------------------------------- the pay ledger


def add_pay(db: Connection, by: Person, person: str, cents: int, currency: str, why: str) -> str:
    """Add a row to the ledger: a bonus, a payment made (negative), a correction. Rows never change."""
    currency, why = currency.strip().upper(), " ".join(why.split())
    if not (len(currency) == 3 and currency.isalpha() and currency.isascii()):
        raise Refused("A currency has three letters, such as USD.")
    if not why or len(why) > 200:
        raise Refused("Say what it is for, in at most 200 characters.")
    if not -100_000_000 <= cents <= 100_000_000 or cents == 0:
        raise Refused("That is no sum of money.")
    if db.execute(sa.select(t.person.c.id).where(t.person.c.id == person)).first() is None:
        raise Refused("There is no such person.")
    row = {"id": new_id(), "person_id": person, "task_id": None, "cents": cents, "currency": currency, "why": why}
    db.execute(t.pay.insert(), row | {"by": by.id, "at": now()})
    note(db, by.id, "pay", person, cents=cents, currency=currency)
    return str(row["id"])


def ledger(db: Connection) -> list[dict[str, Any]]:
    """All rows of the ledger with names, the newest first."""
    p = t.pay.c
    query = sa.select(t.pay, t.person.c.name, t.person.c.source).join(t.person, t.person.c.id == p.person_id)
    return [dict(row) for row in db.execute(query.order_by(p.at.desc(), p.id)).mappings()]


def _balances(db: Connection) -> dict[str, dict[str, int]]:
    """Cents by person and currency."""
    p, found = t.pay.c, {}  # type: ignore[var-annotated]
    query = sa.select(p.person_id, p.currency, sa.func.sum(p.cents)).group_by(p.person_id, p.currency)
    for person, currency, cents in db.execute(query):
        found.setdefault(person, {})[currency] = int(cents)
    return found


# ---------------------------------------------------------------- spot checks


def queue(db: Connection, limit: int = 50) -> list[dict[str, Any]]:
    """Conversations to look at: flagged ones first, then of each person the newest that nobody has looked at.

    Of a person of whom fewer were looked at, one comes earlier, so that new people are read soon.
    """
    c, s = t.conversation.c, t.spot_check.c
    looked = sa.select(sa.func.count()).select_from(
        t.spot_check.join(t.conversation.alias("k"), sa.literal_column("k.id") == s.conversation_id)
    )
    looked = looked.where(sa.literal_column("k.person_id") == c.person_id)
    flags = sa.select(sa.func.count()).where(t.flag.c.conversation_id == c.id).scalar_subquery()
    turns = sa.select(sa.func.count()).where(t.choice.c.conversation_id == c.id).scalar_subquery()
    query = (
        sa.select(
            c.id,
            c.mode,
            c.created_at,
            t.person.c.name,
            flags.label("flags"),
            turns.label("turns"),
            looked.scalar_subquery().label("looked"),
        )
        .join(t.person, t.person.c.id == c.person_id)
        .where(readable(), ~sa.exists().where(s.conversation_id == c.id), ~t.person.c.simulated, turns > 0)
        .where(c.seed != t.IMPORTED)
        .order_by(sa.desc("flags"), "looked", c.created_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in db.execute(query).mappings()]


def check(db: Connection, by: Person, conversation: str, verdict: str, comment: str, picks: Mapping[int, str]) -> None:
    """A verdict on a conversation, with what one would have chosen oneself (turn → message id).

    Raises Refused for a withdrawn conversation, one's own, an unknown verdict, or a pick that was not shown.
    """
    row = lock_conversation(db, conversation)
    if verdict not in VERDICTS or len(comment) > 2000:
        raise Refused("Choose a verdict; a comment has at most 2000 characters.")
    if row.person_id == by.id:
        raise Refused("This is your own conversation.")
    m = t.message.c
    for turn, message in picks.items():
        shown = sa.select(m.id).where(
            m.conversation_id == conversation, m.turn == turn, m.kind.in_(("reply", "written"))
        )
        if message not in set(db.execute(shown).scalars()):
            raise Refused("That reply was not shown there.")
        where = sa.and_(
            t.opinion.c.conversation_id == conversation, t.opinion.c.turn == turn, t.opinion.c.person_id == by.id
        )
        if db.execute(sa.select(t.opinion.c.id).where(where)).first() is None:  # the first opinion was blind
            told = {"id": new_id(), "conversation_id": conversation, "turn": turn, "person_id": by.id}
            db.execute(t.opinion.insert(), told | {"chosen_id": message, "at": now()})
    said = {"id": new_id(), "conversation_id": conversation, "person_id": by.id, "verdict": verdict, "comment": comment}
    db.execute(t.spot_check.insert(), said | {"at": now()})
    note(db, by.id, "spot check", conversation, verdict=verdict)


def withdraw(db: Connection, by: Person, conversation: str) -> None:
    """Hide a conversation from every reader and export, for good. It stays paid; one that is open ends."""
    lock_conversation(db, conversation)
    if acts.is_open(db, conversation):
        acts.stop(db, conversation)
    db.execute(t.withdrawal.insert(), {"id": new_id(), "conversation_id": conversation, "by": by.id, "at": now()})
    note(db, by.id, "withdraw", conversation)


# ---------------------------------------------------------------- texts, tags, rules, pay


def set_word(db: Connection, by: Person, key: str, value: str | None) -> None:
    """Another text for the pages; None goes back to what we ship. Raises Refused for an unknown one."""
    if key not in SHIPPED:
        raise Refused(f"There is no text {key[:60]!r}.")
    if key == "language" and value is not None and value not in LANGUAGES:
        raise Refused(f"There is no language {value[:20]!r}; there are {', '.join(LANGUAGES)}.")
    if value is not None and not (value.strip() and len(value) <= 20_000):
        raise Refused("A text has 1 to 20000 characters.")
    if value is not None and isinstance(SHIPPED[key], str):
        missing = [part for part in _slots(SHIPPED[key]) if part not in value]
        if missing:
            raise Refused(f"The text must hold {', '.join(missing)}: numbers and names are put there.")
        if (parts := SHIPPED[key].count("|") + 1) != value.count("|") + 1 and parts > 1:
            raise Refused(f"The text has {parts} parts, with | between them.")
    _edit_alone(db)
    edited = {k: v for k, v in (setting(db, "words") or {}).items() if k != key}
    if value is not None:
        edited[key] = value.replace("\r\n", "\n").strip()
    set_setting(db, "words", edited, by.id)


def _edit_alone(db: Connection) -> None:
    """Settings are read, changed and written whole: two administrators come one after the other."""
    if db.dialect.name == "postgresql":
        db.execute(sa.text("LOCK TABLE setting IN SHARE ROW EXCLUSIVE MODE"))


def _slots(text: str) -> list[str]:
    return sorted(set(re.findall(r"\{[a-z_]+\}", text)))


def set_tags(db: Connection, by: Person, lines: str) -> None:
    """The tags of reviews, one a line."""
    tags = [" ".join(line.split()) for line in lines.splitlines() if line.strip()]
    if not 1 <= len(tags) <= 100 or len(set(tags)) != len(tags) or any(len(tag) > 100 for tag in tags):
        raise Refused("There are 1 to 100 tags of at most 100 characters, each once.")
    set_setting(db, "tags", tags, by.id)


def set_rules(db: Connection, by: Person, given: Mapping[str, int]) -> None:
    """The numbers of the rules; those not given stay as they are."""
    for name, value in given.items():
        if name not in RULES or not 1 <= value <= 1000:
            raise Refused(f"{name[:40]} is a number from 1 to 1000.")
    _edit_alone(db)
    set_setting(db, "rules", (setting(db, "rules") or {}) | dict(given), by.id)


def set_rate(db: Connection, by: Person, mode: str, how: str, cents: int, currency: str) -> None:
    """What a mode is paid (`truing.collect.pay`): by ``task`` or ``time`` (an hour), or ``none``."""
    if mode not in PAID or how not in ("task", "time", "none"):
        raise Refused("Choose a mode, and whether it is paid by the task or by the time.")
    _edit_alone(db)
    rates = {k: v for k, v in (setting(db, "pay") or {}).items() if k != mode}
    if how != "none":
        currency = currency.strip().upper()
        if not (0 <= cents <= 10_000_000 and len(currency) == 3 and currency.isalpha() and currency.isascii()):
            raise Refused("That is no sum of money, or no currency of three letters.")
        rates[mode] = {"by": how, "cents": cents, "currency": currency}
    set_setting(db, "pay", rates, by.id)


def history(db: Connection, key: str, limit: int = 20) -> list[dict[str, Any]]:
    """Earlier versions of a setting, the newest first: when, by whom, its hash."""
    s = t.setting.c
    query = sa.select(s.serial, s.version, s.at, t.person.c.name).outerjoin(t.person, t.person.c.id == s.person_id)
    return [dict(r) for r in db.execute(query.where(s.key == key).order_by(s.serial.desc()).limit(limit)).mappings()]


def audit(db: Connection, before: int | None = None, action: str = "", limit: int = 100) -> list[dict[str, Any]]:
    """Lines of the log, the newest first."""
    a = t.audit.c
    query = sa.select(t.audit, t.person.c.name).outerjoin(t.person, t.person.c.id == a.person_id)
    if before is not None:
        query = query.where(a.serial < before)
    if action:
        query = query.where(a.action == action)
    return [dict(row) for row in db.execute(query.order_by(a.serial.desc()).limit(limit)).mappings()]
