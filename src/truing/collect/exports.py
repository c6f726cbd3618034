"""Files out of the store: comparisons (ours, TRL, HH), games for Elo, rankings, attempts of the red team.

Nothing withdrawn or erased leaves, conversations that were stopped or left are kept out unless asked for, and
whoever reads a file cannot tell who is who: people, conversations and rows have ids drawn anew for each file, in an
order that means nothing, without times. Which conversations left in which file is kept, for erasures have to name it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import random
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from truing.collect import pairs
from truing.collect import tables as t
from truing.collect.store import Conflict, Store, new_id, note, now, readable
from truing.collect.stories import Story, stories
from truing.data.attempts import attempt_to_row
from truing.data.comparisons import Target, comparison_to_row
from truing.data.files import stream_rows
from truing.text import to_hh
from truing.types import Attempt

Kind = Literal["helpful", "harmless", "games", "rankings", "attempts"]
MODES: dict[str, tuple[str, ...]] = {
    "helpful": ("helpful", "rank"),
    "harmless": ("redteam",),
    "games": ("helpful", "rank"),
    "rankings": ("rank",),
    "attempts": ("redteam",),
}
"""The modes whose conversations a kind of export is made of. Helpful and harmless pairs never share a file."""
HARMLESS = (
    "For preference models only: 'chosen' is the less harmful of two replies that a red teamer drew out, "
    "no reply to imitate. Do not finetune a language model on it."
)
INTERNAL = (
    "Internal: red-team transcripts that were not checked for personal data. Not for release, and no model is to "
    "be finetuned on the replies."
)
NOTICES = {"harmless": HARMLESS, "attempts": INTERNAL}


@dataclass(frozen=True)
class Wanted:
    """What is to be exported.

    ``part``: whole conversations are dealt out by a hash of their first message and ``seed``, so that no beginning is
    in both parts, however much is added later. ``arms``: name them (for researchers). ``unfinished``: also what was
    stopped or left, labelled so.
    """

    kind: Kind
    to: Target = "truing"
    part: Literal["all", "train", "test"] = "all"
    test_share: float = 0.05
    seed: int = 0
    arms: bool = False
    unfinished: bool = False
    people: Literal["real", "simulated", "all"] = "real"

    def __post_init__(self) -> None:
        if self.kind not in MODES:
            raise ValueError(f"There is no export {self.kind!r}; expected {', '.join(MODES)}.")
        if self.to != "truing" and self.kind not in ("helpful", "harmless"):
            raise ValueError(f"Only comparisons have the form {self.to!r}; {self.kind} have one form.")
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"The share of the test part is {self.test_share}; expected 0 to 1.")

    @property
    def name(self) -> str:
        """The file's name: what reads it takes "harmless" for the kind where no column says it."""
        part = "" if self.part == "all" else f"-{self.part}"
        shape = "" if self.to == "truing" else f"-{self.to}"
        suffix = ".jsonl.gz" if self.to == "hh" else ".jsonl"
        kind = {"attempts": "internal-attempts", "harmless": "harmless-pairs-for-preference-models-only"}
        return f"{kind.get(self.kind, self.kind)}{shape}{part}{suffix}"

    @property
    def notice(self) -> str:
        """The warning that goes with the file."""
        return NOTICES.get(self.kind, "")


@dataclass
class Made:
    """An export that lies in a file. ``counts``: rows, and what was left out by reason."""

    path: Path
    wanted: Wanted
    sha256: str
    plain_sha256: str
    counts: Counter[str]
    conversations: list[str]


@dataclass
class _Masks:
    """Names that mean nothing outside of one file."""

    people: dict[str, str] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)

    def person(self, id: str) -> str:
        return self.people.setdefault(id, f"w{secrets.token_hex(6)}")


def make_export(store: Store, wanted: Wanted, folder: Path) -> Made:
    """Write an export into a folder, from one state of the store. Raises DataError if there is nothing to write.

    It counts as made only once `record_export` has noted it: hand no file out before.
    """
    counts: Counter[str] = Counter()
    used: dict[str, None] = {}
    path = folder / wanted.name
    with store.read() as db:
        count = stream_rows(path, _rows(db, wanted, counts, used))
    counts["rows"], counts["conversations"] = count, len(used)
    content = path.read_bytes()
    plain = gzip.decompress(content) if path.suffix == ".gz" else content
    hashes = [hashlib.sha256(x).hexdigest() for x in (content, plain)]
    return Made(path, wanted, hashes[0], hashes[1], counts, list(used))


def record_export(db: Connection, person: str | None, made: Made) -> str:
    """Note that a file leaves, with whom it holds; its id.

    Raises Conflict if a conversation in it was withdrawn or erased since it was written: it must not leave, then.
    """
    export = new_id()
    row = {"id": export, "person_id": person, "kind": made.wanted.kind, "rows": made.counts["rows"]}
    db.execute(t.export.insert(), row | {"sha256": made.sha256, "at": now()})
    for bunch in _bunches(made.conversations):
        db.execute(t.exported.insert(), [{"export_id": export, "conversation_id": id} for id in bunch])
    # Only now: the rows above wait for an erasure that is under way, and one that comes after finds them.
    for bunch in _bunches(made.conversations):
        query = sa.select(sa.func.count()).select_from(t.conversation).where(t.conversation.c.id.in_(bunch), readable())
        if db.execute(query).scalar_one() != len(bunch):
            raise Conflict("A conversation in this export was withdrawn a moment ago. Export again, without it.")
    hashes = {"sha256": made.sha256, "plain_sha256": made.plain_sha256}
    note(db, person, "export", export, **asdict(made.wanted), **hashes, counts=dict(made.counts))
    return export


def _bunches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + 500] for i in range(0, len(ids), 500))


# ---------------------------------------------------------------- rows


def _rows(db: Connection, wanted: Wanted, counts: Counter[str], used: dict[str, None]) -> Iterator[dict[str, Any]]:
    arms = {row.id: row for row in db.execute(sa.select(t.arm))}
    masks = _Masks(members=_members(db))
    for story in stories(db, MODES[wanted.kind], wanted.people):
        if wanted.kind == "attempts" and story.row.seed == t.IMPORTED:
            counts["imported"] += 1  # comparisons, which nobody rated as attacks
        elif not wanted.unfinished and story.status != "done":
            counts[story.status] += 1
        elif in_part(story.first_words, wanted):
            for row in _rows_of(story, arms, wanted, masks, counts):
                used[story.row.id] = None
                yield row


def in_part(first_words: str, wanted: Wanted) -> bool:
    """Whether a conversation that begins with these words belongs to the part that is wanted."""
    if wanted.part == "all":
        return True
    key = " ".join(first_words.split()).casefold()
    place = int(hashlib.sha256(f"{wanted.seed}\n{key}".encode()).hexdigest()[:12], 16) / 16**12
    return (place < wanted.test_share) == (wanted.part == "test")


def _rows_of(
    story: Story, arms: Mapping[str, Any], wanted: Wanted, masks: _Masks, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    names = {id: row.name for id, row in arms.items()}
    worker, conversation = masks.person(story.row.person_id), secrets.token_hex(8)
    if wanted.kind == "attempts":
        if story.choices:
            yield _attempt(story, arms, masks)
    elif wanted.kind == "rankings":
        for turn, ranking in pairs.rankings(story, names):
            if len(set(ranking)) == len(ranking):
                yield {"prompt": f"{conversation}-{turn}", "ranking": ranking, "worker": worker}
            else:
                counts["arm_ranked_twice"] += 1
    else:
        for judged in pairs.comparisons(story, names, counts):
            if wanted.kind == "games":
                if judged.purpose == "elo":
                    yield _game(judged, conversation, worker)
                else:
                    counts["one_arm"] += 1
            elif (row := _comparison(story, judged, wanted, conversation, worker)) is None:
                counts["turn_markers"] += 1
            else:
                yield row


def _comparison(
    story: Story, judged: pairs.Judged, wanted: Wanted, conversation: str, worker: str
) -> dict[str, Any] | None:
    """A row of the wanted form; None if HH text could not be read back."""
    c = judged.comparison
    try:
        row = comparison_to_row(c, wanted.to)
    except ValueError:
        return None
    if wanted.to == "hh":
        return row
    if wanted.to == "truing":
        source = "simulated" if story.row.simulated else "people"
        row |= {"id": secrets.token_hex(8), "worker": worker, "source": source}
        row |= {"arms": row["arms"] if wanted.arms else None, "mode": story.row.mode, "conversation": conversation}
        row |= {"turn": judged.turn, "edited": judged.edited, "purpose": judged.purpose, "status": story.status}
    return row | ({"use": HARMLESS} if c.kind == "harmless" else {})


def _game(judged: pairs.Judged, conversation: str, worker: str) -> dict[str, Any]:
    """A game for ``truing elo``; which arm is a means nothing."""
    assert judged.comparison.arms is not None
    won, lost = judged.comparison.arms
    first = secrets.randbits(1)
    sides = {"a": won, "b": lost, "winner": "a"} if first else {"a": lost, "b": won, "winner": "b"}
    return sides | {"conversation": conversation, "worker": worker}


def _attempt(story: Story, arms: Mapping[str, Any], masks: _Masks) -> dict[str, Any]:
    """A row of the released schema (redteam.md §7.2), marked as internal.

    The final description, else the plan. Tags are all mentions by reviewers, as in the released file. The harmlessness
    scores are null: they are those of a preference model, and none is asked here.
    """
    ending, arm = story.ending, arms.get(next(iter(story.row.arms), ""))
    spec = arm.spec if arm is not None else {}
    described = (ending.description if ending is not None else None) or (story.plan.text if story.plan else "")
    attempt = Attempt(
        transcript=to_hh(story.dialogue()),
        rating=None if ending is None else ending.success,
        task_description=described,
        model_type=spec.get("model_type", ""),
        num_params=spec.get("num_params", ""),
        red_team_member_id=masks.members[story.row.person_id],
        is_upworker=story.row.source.casefold() == "upwork" if story.row.source else None,
        tags=tuple(tag for review in story.reviews for tag in review.tags),
        id=secrets.token_hex(8),
        extra={
            "internal": True,
            "status": story.status,
            "simulated": bool(story.row.simulated),
            "reviews": [
                {"reviewer": masks.person(r.person_id), "rating": r.rating, "intent": r.intent, "tags": r.tags}
                for r in story.reviews
            ],
        },
    )
    return attempt_to_row(attempt)


def _members(db: Connection) -> dict[str, int]:
    """A number for every person, as the released schema has one: dealt out anew, in no order."""
    ids = list(db.execute(sa.select(t.person.c.id)).scalars())
    random.SystemRandom().shuffle(ids)
    return {id: number for number, id in enumerate(ids)}


# ---------------------------------------------------------------- tables for spreadsheets


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file in which no text is taken for a formula: one that begins like one gets an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([safe_cell(value) for value in row] for row in rows)
    return text.getvalue()


def safe_cell(value: Any) -> Any:
    """A CSV cell: spreadsheets compute what begins with = + - @, a tab or a line end.

    >>> safe_cell("=1+1"), safe_cell(-5)
    ("'=1+1", -5)
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(tuple("=+-@\t\r\n")) else value
