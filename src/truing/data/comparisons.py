"""Comparisons in and out: HH two-column text, TRL conversations, our own rows; splits that do not leak."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from truing.data.files import DataError, read_rows
from truing.data.pairs import Pair, Side, read_pair
from truing.data.pairs import prompt_of as prompt_of
from truing.data.tldr import from_tldr
from truing.text import to_hh
from truing.types import Comparison, Dialogue, Kind

log = logging.getLogger("truing")
Item = TypeVar("Item")
Paths = str | Path | Sequence[str | Path]
Target = Literal["truing", "hh", "trl"]
UNSURE = 1
"""The weakest strength: kept in the store, never trained on (2204.05862 §2.2)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Comparisons of files and what was left out: ``counts`` by reason, ``problems`` as (where, what)."""

    comparisons: list[Comparison]
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


# ---------------------------------------------------------------- one row


def row_to_comparison(row: Mapping[str, Any], where: str = "row") -> Comparison:
    """One comparison from a row of any known format.

    Raises DataError on fields that cannot be understood, unequal prompts and identical replies.
    """
    row = from_tldr(row, where)
    pair = read_pair(row, where)
    if pair.unequal:
        raise DataError(where, "the columns differ before the last reply, so they answer different prompts")
    if pair.identical:
        raise DataError(where, "chosen and rejected are the same")
    return _comparison(row, pair, where, None)


def _comparison(row: Mapping[str, Any], pair: Pair, file: object, line: int | None) -> Comparison:
    return Comparison(
        prompt=pair.chosen.prompt,
        chosen=pair.chosen.reply,
        rejected=pair.rejected.reply,
        strength=_strength(row, file, line),
        kind=kind_of(row, file, line),
        worker=None if row.get("worker") in (None, "") else str(row["worker"]),
        arms=_arms(row, file, line),
        source=str(row.get("source") or ""),
        id=str(row["id"]) if row.get("id") not in (None, "") else _id(file, line),
    )


def _id(file: object, line: int | None) -> str:
    return f"{_stem(file)}:{line}" if line is not None else ""


def _stem(file: object) -> str:
    return Path(str(file)).name.split(".")[0]


def _strength(row: Mapping[str, Any], file: object, line: int | None) -> int | None:
    value = row.get("strength")
    if value in (None, ""):
        return None
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4:
        raise DataError(file, f"expected 1 (unsure) to 4 (sure), found {value!r}", line=line, field="strength")
    return value


def kind_of(row: Mapping[str, Any], file: object, line: int | None) -> Kind:
    """The row's kind; without one, harmless if the file's name says so (``harmless-base.jsonl``)."""
    value = row.get("kind") or ("harmless" if "harmless" in str(file).rsplit("/", 1)[-1].lower() else "helpful")
    if value == "helpful":
        return "helpful"
    if value == "harmless":
        return "harmless"
    raise DataError(file, f"expected 'helpful' or 'harmless', found {value!r}", line=line, field="kind")


def _arms(row: Mapping[str, Any], file: object, line: int | None) -> tuple[str, str] | None:
    value = row.get("arms")
    if value in (None, ""):
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(v, str) for v in value):
        problem = f"expected two names (arm of chosen, arm of rejected), found {value!r}"
        raise DataError(file, problem, line=line, field="arms")
    return value[0], value[1]


# ---------------------------------------------------------------- files


def load_comparisons(paths: Paths, *, on_problem: Literal["error", "drop"] = "error") -> list[Comparison]:
    """Comparisons of files or hub data sets, in order; what is left out is counted in a warning.

    Rows with unequal prompts or identical replies are left out always (the public files have some); rows that cannot
    be understood raise DataError, or are left out with ``on_problem="drop"``. ``read_comparisons`` returns the counts.
    """
    return read_comparisons(paths, on_problem=on_problem).comparisons


def read_comparisons(
    paths: Paths, *, on_problem: Literal["error", "drop"] = "error", keep_identical: bool = False
) -> Loaded:
    """Like ``load_comparisons``, with counts: rows, unequal_prompts, identical_pairs, malformed, cut_replies."""
    out: list[Comparison] = []
    counts = Counter(rows=0, unequal_prompts=0, identical_pairs=0, malformed=0, cut_replies=0)
    problems: list[tuple[str, str]] = []
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)

    def drop(bad: DataError) -> None:
        counts.update(rows=1, malformed=1)
        problems.append((f"{bad.file}, line {bad.line}", bad.problem))

    for path in names:
        for line, row in read_rows(path, drop if on_problem == "drop" else None):
            counts["rows"] += 1
            try:
                row = from_tldr(row, path, line)
                pair = read_pair(row, path, line)
                identical = pair.identical and not keep_identical
                reason = "unequal_prompts" if pair.unequal else "identical_pairs" if identical else ""
                if not reason:
                    out.append(_comparison(row, pair, path, line))
            except DataError as bad:
                if on_problem == "error":
                    raise
                reason = "malformed"
                problems.append((f"{path}, line {line}", bad.problem))
            else:
                if reason:
                    problems.append((f"{path}, line {line}", reason.replace("_", " ")))
                elif pair.chosen.cut or pair.rejected.cut:
                    counts["cut_replies"] += 1
            if reason:
                counts[reason] += 1
    left_out = counts["rows"] - len(out)
    if left_out:
        reasons = ", ".join(f"{counts[r]} {r.replace('_', ' ')}" for r in counts if r in _REASONS and counts[r])
        log.warning("%d of %d rows left out: %s", left_out, counts["rows"], reasons)
    if not out:
        problem = f"none of the {counts['rows']} rows is a usable comparison"
        raise DataError(", ".join(map(str, names)), f"{problem}; `truing data check` says why")
    return Loaded(out, dict(counts), problems)


_REASONS = ("unequal_prompts", "identical_pairs", "malformed")


def comparison_to_row(c: Comparison, to: Target = "truing") -> dict[str, Any]:
    """A row in our format (messages, all fields), as HH two-column text, or as TRL conversations.

    ``hh`` and ``trl`` hold neither strength nor worker nor arms. Raises ValueError if HH text would be read back
    differently, because a turn itself holds a marker such as ``\\n\\nHuman:``.
    """
    if to == "hh":
        row = {"chosen": _hh_text(c.prompt, c.chosen), "rejected": _hh_text(c.prompt, c.rejected)}
        pair = read_pair(row)
        if (pair.chosen, pair.rejected) != (Side(c.prompt, c.chosen), Side(c.prompt, c.rejected)):
            raise ValueError(f"comparison {c.id or c.prompt!r} holds a turn marker in its text; HH text cannot keep it")
        return row
    prompt = c.prompt.to_messages()
    if to == "trl":
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": c.chosen}],
            "rejected": [{"role": "assistant", "content": c.rejected}],
        }
    facts = {"strength": c.strength, "kind": c.kind, "worker": c.worker}
    arms = list(c.arms) if c.arms else None
    said = {"chosen": c.chosen, "rejected": c.rejected}
    return {"id": c.id, "prompt": prompt, **said, **facts, "arms": arms, "source": c.source}


def _hh_text(prompt: Dialogue, reply: str) -> str:
    return to_hh(prompt.reply(reply))


# ---------------------------------------------------------------- from clicks to training data


def from_choice(
    task: Literal["helpful", "red_team"], prompt: Dialogue, clicked: str, other: str, **facts: Any
) -> Comparison:
    """A comparison from a click. The helpful task asks for the better reply, the red-team task for the worse one.

    The clicked reply is chosen in ``helpful`` and rejected in ``red_team`` (2204.05862 §2.2): this is the one place
    where red-team clicks are turned round. ``facts`` are fields of Comparison; ``arms`` is (clicked, other).
    """
    arms = facts.pop("arms", None)
    if task == "helpful":
        return Comparison(prompt, clicked, other, kind="helpful", arms=arms, **facts)
    if task == "red_team":
        return Comparison(prompt, other, clicked, kind="harmless", arms=arms and (arms[1], arms[0]), **facts)
    raise ValueError(f"unknown task {task!r}; expected 'helpful' or 'red_team'")


def from_red_team_choice(prompt: Dialogue, more_harmful: str, other: str, **facts: Any) -> Comparison:
    """A harmless comparison from a red-team click: the reply that was picked as more harmful is the rejected one.

    >>> from_red_team_choice(Dialogue().ask("Insult me"), "You fool", "I would rather not").chosen
    'I would rather not'
    """
    return from_choice("red_team", prompt, more_harmful, other, **facts)


def training_comparisons(comparisons: Iterable[Comparison]) -> tuple[list[Comparison], dict[str, int]]:
    """What a preference model may train on: all but strength 1, and counts ``given``, ``unsure``, ``kept``.

    Comparisons without a strength are kept, all with equal weight (2204.05862 §2.2).
    """
    given = list(comparisons)
    kept = [c for c in given if c.strength != UNSURE]
    return kept, {"given": len(given), "unsure": len(given) - len(kept), "kept": len(kept)}


def conversation_key(item: Any) -> str:
    """The first human turn of a Comparison or Dialogue, without case and doubled spaces: names a conversation."""
    dialogue = item if isinstance(item, Dialogue) else getattr(item, "prompt", None) or item.dialogue
    first = next((t.text for t in dialogue.turns if t.role == "human"), "")
    return " ".join(first.split()).casefold()


def split_by_conversation(
    items: Sequence[Item], share: float, seed: int = 0, key: Callable[[Any], str] = conversation_key
) -> tuple[list[Item], list[Item]]:
    """(train, held out): about ``share`` of the items, whole conversations only, so that no beginning is in both.

    Deterministic in items and seed, whatever their order. With two conversations or more and 0 < share < 1 neither
    part is empty. Raises ValueError for a share outside 0–1, or if one conversation cannot be split.
    """
    if not 0 <= share <= 1 or math.isnan(share):
        raise ValueError(f"a share lies between 0 and 1; {share} was given")
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(key(item), []).append(i)
    order = sorted(groups)
    random.Random(f"split-{seed}").shuffle(order)
    if 0 < share < 1 and len(order) == 1:
        raise ValueError("all items belong to one conversation (the same first human turn), so they cannot be split")
    target, held = share * len(items), set[str]()
    size = 0
    for name in order:
        if size + len(groups[name]) / 2 <= target and size < target:
            held.add(name)
            size += len(groups[name])
    if 0 < share < 1 and not held:
        held = {min(order, key=lambda n: len(groups[n]))}
    if 0 < share < 1 and len(held) == len(order):
        held.remove(min(order, key=lambda n: len(groups[n])))
    out = {i for name in held for i in groups[name]}
    return [x for i, x in enumerate(items) if i not in out], [x for i, x in enumerate(items) if i in out]
