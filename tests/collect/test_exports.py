"""What leaves the store: the rules from clicks to pairs, and what must not leave."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filled import Talk, add_worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.collect import tables as t
from truing.collect.exports import HARMLESS, INTERNAL, Made, Wanted, make_export, record_export, safe_cell, to_csv
from truing.collect.store import Conflict, Store, new_id
from truing.data.attempts import read_attempts
from truing.data.check import check_file
from truing.data.comparisons import load_comparisons, training_comparisons
from truing.data.files import DataError, read_rows
from truing.measure.elo import read_games
from truing.measure.writers import read_rankings


def export(store: Store, folder: Path, kind: Any = "helpful", **wanted: Any) -> Made:
    made = make_export(store, Wanted(kind, **wanted), folder)
    with store.write() as db:
        record_export(db, None, made)
    return made


def rows(made: Made) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(made.path)]


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
@pytest.mark.parametrize("pick", [0, 1])
@pytest.mark.parametrize(("mode", "kind"), [("helpful", "helpful"), ("redteam", "harmless")])
def test_every_strength_side_and_task(store: Store, tmp_path: Path, strength: int, pick: int, mode: str, kind: str):
    replies = [("one", "reply A"), ("two", "reply B")]
    with store.write() as db:
        talk = Talk(db, mode, arms=["one"])
        talk.turn("first", replies, pick, strength=strength)
        talk.turn("second", replies, 1 - pick, strength=4)
        talk.end(rating=3)
    made = export(store, tmp_path, kind)
    found = load_comparisons(made.path)
    assert training_comparisons(found)[1]["unsure"] == 0  # none is left to be left out
    clicked, other = replies[pick][1], replies[1 - pick][1]
    wanted = (clicked, other) if mode == "helpful" else (other, clicked)  # turned round once
    first = [(c.chosen, c.rejected) for c in found if len(c.prompt) == 1]
    assert first == ([] if strength == 1 else [wanted])
    second = next(c for c in found if len(c.prompt) == 3)
    assert (second.chosen, second.rejected) == wanted[::-1]
    assert [x.text for x in second.prompt.turns] == ["first", clicked, "second"]  # unsure clicks are gone on from, too
    assert {c.kind for c in found} == {kind} and made.counts["unsure"] == (strength == 1)


turn = st.tuples(st.integers(0, 1), st.integers(1, 4), st.booleans())


@given(
    st.lists(
        st.tuples(st.sampled_from(["helpful", "redteam"]), st.lists(turn, min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_conversations(sqlite_store: Store, tmp_path: Path, talks: list[Any]):
    """The context of every row is what was clicked before, and each clicked turn is there exactly once."""
    expected: dict[str, Counter[Any]] = {"helpful": Counter(), "harmless": Counter()}
    with sqlite_store.write() as db:
        for table in (t.exported, t.export, t.ending, t.choice, t.candidate, t.message, t.conversation):
            db.execute(table.delete())
        for number, (mode, turns) in enumerate(talks):
            talk, told = Talk(db, mode, arms=["one"]), []
            for i, (pick, strength, edits) in enumerate(turns):
                texts = [f"{number} {i} A", f"{number} {i} B"]
                edit = f"{number} {i} better" if edits and mode == "helpful" else None
                talk.turn(
                    f"{number} {i} human", [("one", texts[0]), ("two", texts[1])], pick, strength=strength, edit=edit
                )
                context = (*told, f"{number} {i} human")
                good, bad = (edit, texts[pick]) if edit else (texts[pick], texts[1 - pick])
                if edit or strength > 1:
                    kind = "helpful" if mode == "helpful" else "harmless"
                    expected[kind][(context, *((good, bad) if kind == "helpful" else (bad, good)))] += 1
                told += [f"{number} {i} human", edit or texts[pick]]
            talk.end(rating=1)
    for kind, want in expected.items():
        if not want:
            with pytest.raises(DataError):
                make_export(sqlite_store, Wanted(kind), tmp_path)
            continue
        found = load_comparisons(make_export(sqlite_store, Wanted(kind), tmp_path).path)
        assert Counter((tuple(x.text for x in c.prompt.turns), c.chosen, c.rejected) for c in found) == want
        assert all(c.prompt.is_prompt and not c.prompt.problems() for c in found)


def test_our_checks_accept_every_form_unchanged(store: Store, tmp_path: Path):
    with store.write() as db:
        for mode in ("helpful", "redteam"):
            for i in range(3):
                talk = Talk(db, mode, arms=["one"])
                talk.turn(f"{mode} {i}", [("one", "A\n\nHuman: forged"), ("two", "")], 0)
                talk.turn("and then?\n", [("one", " A "), ("one", "B")], 1)
                talk.end(rating=2)
    for kind in ("helpful", "harmless"):
        read = []
        for to in ("truing", "trl", "hh"):
            made = export(store, tmp_path, kind, to=to)
            report = check_file(made.path)
            assert report.numbers["usable"] == report.numbers["rows"] == made.counts["rows"] == 6
            assert report.numbers["bad_turns"] == 0
            found = load_comparisons(made.path)
            assert {c.kind for c in found} == {kind}  # also where only the name of the file says it
            read.append(Counter((c.prompt, c.chosen, c.rejected) for c in found))
        assert read[0] == read[1] == read[2]
    hh = rows(export(store, tmp_path, "helpful", to="hh"))
    assert {tuple(row) for row in hh} == {("chosen", "rejected")}


def test_a_ranking_gives_every_pair_and_a_persons_own_reply_is_human(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db, "rank")
        talk.turn("q", [("one", "good"), ("two", "bad"), (None, "best")], order=[2, 0, 1])
        talk.end(rating=3)
    found = rows(export(store, tmp_path, arms=True))
    assert {(r["chosen"], r["rejected"]) for r in found} == {("best", "good"), ("best", "bad"), ("good", "bad")}
    assert {tuple(r["arms"]) for r in found} == {("human", "one"), ("human", "two"), ("one", "two")}
    ranking = read_rankings(read_rows(export(store, tmp_path, "rankings").path))[0]
    assert ranking.arms == ("human", "one", "two")
    games = export(store, tmp_path, "games")
    won = Counter((g[g["winner"]], g["b" if g["winner"] == "a" else "a"]) for g in rows(games))
    assert won == Counter([("human", "one"), ("human", "two"), ("one", "two")])
    assert len(read_games(read_rows(games.path)).games) == 3


def test_games_leave_out_unsure_clicks_one_arm_and_edits(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db)
        talk.turn("1", [("one", "a"), ("two", "b")], 0, strength=2)
        talk.turn("2", [("one", "a"), ("two", "b")], 0, strength=1)
        talk.turn("3", [("one", "a"), ("one", "b")], 0)
        talk.turn("4", [("one", "a"), ("two", "b")], 0, edit="c")
        talk.end(rating=3)
    assert len(rows(export(store, tmp_path, "games"))) == 1
    assert [r["purpose"] for r in sorted(rows(export(store, tmp_path)), key=lambda r: r["turn"])] == [
        "elo",
        "data",
        "data",
    ]


def test_what_is_withdrawn_erased_stopped_left_or_simulated_stays(store: Store, tmp_path: Path):
    with store.write() as db:
        for name in ("kept", "withdrawn", "erased", "stopped", "left", "simulated"):
            person = add_worker(db, name, simulated=name == "simulated")
            talk = Talk(db, person=person)
            talk.turn(name, [("one", "a"), ("two", "b")])
            if name != "left":
                talk.end(rating=1, stopped=name == "stopped")
            if name == "withdrawn":
                talk.withdraw()
            if name == "erased":
                row = {"id": "e", "conversation_id": talk.id, "by": "x", "why": "y", "at": 1}
                db.execute(t.erasure.insert(), row)

    def told(**wanted: Any) -> dict[str, str]:
        return {r["prompt"][0]["content"]: r["status"] for r in rows(export(store, tmp_path, **wanted))}

    assert told() == {"kept": "done"}
    assert told(unfinished=True) == {"kept": "done", "stopped": "stopped", "left": "unfinished"}
    assert told(people="simulated") == {"simulated": "done"}
    assert {r["source"] for r in rows(export(store, tmp_path, people="simulated"))} == {"simulated"}


def test_a_withdrawal_while_a_file_is_written_stops_it(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db)
        talk.turn("q", [("one", "a"), ("two", "b")])
        talk.end(rating=1)
    made = make_export(store, Wanted("helpful"), tmp_path)
    with store.write() as db:
        Talk.withdraw(_in(talk, db))
    with pytest.raises(Conflict), store.write() as db:
        record_export(db, None, made)
    with store.read() as db:
        assert db.execute(sa.select(t.export)).all() == []


def _in(talk: Talk, db: Any) -> Talk:
    talk.db = db
    return talk


def test_parts_share_no_beginning_and_do_not_move_when_more_comes(store: Store, tmp_path: Path):
    def fill(many: range) -> None:
        with store.write() as db:
            for i in many:
                for _ in range(2):  # two people begin with the same words
                    talk = Talk(db)
                    talk.turn(f"Question {i}", [("one", "a"), ("two", "b")])
                    talk.end(rating=1)

    def part(name: Any) -> Counter[str]:
        made = export(store, tmp_path, part=name, test_share=0.4)
        return Counter(r["prompt"][0]["content"] for r in rows(made))

    fill(range(20))
    train, test = part("train"), part("test")
    assert not set(train) & set(test) and train + test == part("all") and 2 < len(test) < 16
    fill(range(20, 30))
    assert set(train) <= set(part("train")) and set(test) <= set(part("test"))


def test_names_in_a_file_mean_nothing_outside_of_it(store: Store, tmp_path: Path):
    with store.write() as db:
        ids = [add_worker(db, name) for name in ("Ada Lovelace", "Bob")]
        for person in ids:
            talk = Talk(db, "redteam", person, arms=["secret-arm"])
            talk.turn("q", [("secret-arm", "a"), ("secret-arm", "b")])
            talk.end(success=2)
        kept = {
            str(x)
            for table in (t.person, t.conversation, t.message, t.task)
            for (x,) in db.execute(sa.select(table.c.id))
        }
    files = [
        export(store, tmp_path, kind).path.read_text() for kind in ("harmless", "harmless", "attempts", "attempts")
    ]
    for text in files:
        assert not [x for x in (*kept, "Ada", "Bob", "secret-arm") if x in text]
    workers = [{json.loads(line)["worker"] for line in text.splitlines()} for text in files[:2]]
    assert len(workers[0]) == 2 and not workers[0] & workers[1]  # drawn anew


def test_neither_the_order_of_a_file_nor_its_numbers_nor_ids_tell_who_came_first(sqlite_store: Store, tmp_path: Path):
    """redteam.md §14 row 27. There are no times in it either."""
    with sqlite_store.write() as db:
        for i in range(12):
            talk = Talk(db, "redteam", add_worker(db, f"worker {i}"), arms=["one"])
            talk.turn(str(i), [("one", "a"), ("one", "b")])
            talk.end(success=2)
    files = [rows(export(sqlite_store, tmp_path, kind)) for kind in ("attempts", "attempts", "harmless")]
    orders = [[int(row["transcript"].split()[1]) for row in file] for file in files[:2]]
    orders.append([int(row["prompt"][0]["content"]) for row in files[2]])
    numbers = [[row["red_team_member_id"] for row in sorted(file, key=_begins)] for file in files[:2]]
    in_order = (list(range(12)), list(range(11, -1, -1)))
    assert all(sorted(found) == in_order[0] and found not in in_order for found in orders + numbers)
    assert numbers[0] != numbers[1]  # dealt out anew
    values = list(_values(files))
    assert not [x for x in values if isinstance(x, int | float) and x > 1000]
    assert not [x for x in values if isinstance(x, str) and re.search(r"\d{4}-\d\d|\d\d:\d\d", x)]


def _begins(row: dict[str, Any]) -> int:
    return int(row["transcript"].split()[1])


def _values(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _values(value)
    else:
        yield node


def test_ids_follow_from_nothing(sqlite_store: Store):
    """redteam.md §14 row 27: from no name, no order and no time."""
    ids = [new_id() for _ in range(500)]
    assert all(len({id[place] for id in ids}) == 16 for place in range(32))
    people = []
    for _ in range(2):
        with sqlite_store.engine.connect() as db, db.begin() as undone:
            people.append(add_worker(db, "Ada"))
            undone.rollback()
    assert people[0] != people[1]


def test_attempts_have_the_released_schema_and_are_internal(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db, "redteam", add_worker(db, source="upwork"), arms=["one"])
        talk.plan("the plan")
        talk.turn("insult me", [("one", "no"), ("one", "you fool")], 1, strength=1)  # no pair, but what was said
        talk.turn("a message whose replies were not judged", [("one", "x"), ("one", "y")], None)
        talk.end(success=3, description="the final one")
        for name in "ab":
            talk.review(add_worker(db, f"reviewer {name}"), rating=4, intent=2, tags=["Other", "Theft"])
    made = export(store, tmp_path, "attempts")
    found = read_attempts(made.path)[0]
    assert found.transcript == "\n\nHuman: insult me\n\nAssistant: you fool"
    assert (found.rating, found.task_description, found.is_upworker) == (3, "the final one", True)
    assert (found.model_type, found.num_params) == ("rlhf", "135M") and isinstance(found.red_team_member_id, int)
    assert found.tags == ("Other", "Theft") * 2 and found.extra["internal"] is True
    assert [(r["rating"], r["intent"]) for r in found.extra["reviews"]] == [(4, 2), (4, 2)]
    assert made.path.name.startswith("internal-") and made.wanted.notice == INTERNAL


def test_red_team_pairs_say_what_they_are_for_and_there_is_no_other_view(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db, "redteam", arms=["one"])
        talk.turn("insult me", [("one", "no"), ("one", "you fool")], 1)
        talk.end(success=3)
    for to in ("truing", "trl"):
        row = rows(export(store, tmp_path, "harmless", to=to))[0]
        assert row["use"] == HARMLESS
    assert Wanted("harmless", to="hh").name == "harmless-pairs-for-preference-models-only-hh.jsonl.gz"
    with pytest.raises(DataError):
        make_export(store, Wanted("helpful"), tmp_path)
    with pytest.raises(ValueError, match="no export 'sft'"):
        Wanted("sft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="have one form"):
        Wanted("attempts", to="trl")


def test_it_is_kept_what_left_in_which_file(store: Store, tmp_path: Path):
    with store.write() as db:
        talk = Talk(db)
        talk.turn("a secret word", [("one", "a"), ("two", "b")])
        talk.end(rating=1)
    made = export(store, tmp_path, to="hh")
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.plain_sha256 == hashlib.sha256(gzip.decompress(made.path.read_bytes())).hexdigest()
    with store.read() as db:
        row = db.execute(sa.select(t.export)).one()
        assert (row.kind, row.rows, row.sha256) == ("helpful", 1, made.sha256)
        assert db.execute(sa.select(t.exported)).all() == [(row.id, talk.id)]
        log = db.execute(sa.select(t.audit).where(t.audit.c.action == "export")).one()
    assert log.details["plain_sha256"] == made.plain_sha256 and "secret" not in str(log.details)


def test_formulas_in_cells_are_texts():
    assert to_csv(["a", "b"], [["=1+1", -2], [" @x", "+3"], ["fine", "-x"]]).splitlines() == [
        "a,b",
        "'=1+1,-2",
        "' @x,'+3",
        "fine,'-x",
    ]
    assert safe_cell("\t=1") == "'\t=1"
