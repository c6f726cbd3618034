"""Backup and restore, imports, erasures, one person's data: by the command line's functions."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filled import Talk, add_worker

from truing import configs
from truing.collect import migrate, store_verbs
from truing.collect import store as store_module
from truing.collect import tables as t
from truing.collect.backup import backup, check_backup
from truing.collect.backup import restore as read_backup
from truing.collect.erasing import TOMBSTONE, erase, trained_on
from truing.collect.exports import Wanted, make_export
from truing.collect.store import Refused, Store, lock_conversation, new_id, note, now, set_setting
from truing.data.comparisons import load_comparisons
from truing.data.files import DataError
from truing.runs import Run


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows but those that a backup leaves out or adds."""
    with store.read() as db:
        found = {
            table.name: sorted((tuple(row) for row in db.execute(sa.select(table))), key=repr)
            for table in t.person.metadata.sorted_tables
            if table.name != "login"
        }
    found["audit"] = [row for row in found["audit"] if not {"backup", "restore"} & set(map(str, row))]
    return found


def fill(store: Store, secret: str = "Übung 🎈") -> Talk:
    """One conversation with every kind of text in it."""
    with store.write() as db:
        person = add_worker(db, "Ada", password_hash="$argon2id$x")
        talk = Talk(db, "helpful", person)
        talk.turn(f"{secret} asked", [("one", f"{secret} A"), ("two", f"{secret} B")], 0, edit=f"{secret} better")
        talk.turn(f"{secret} again", [("one", f"{secret} C"), ("two", f"{secret} D")], 1)
        talk.plan(f"{secret} plan")
        talk.end(rating=2, comment=f"{secret} comment", description=f"{secret} description")
        reviewer = add_worker(db, "Rev")
        talk.review(reviewer, comment=f"{secret} review", tags=["Other"])
        row = {"id": new_id(), "conversation_id": talk.id, "person_id": person, "at": now()}
        db.execute(t.flag.insert(), row | {"why": f"{secret} flag"})
        db.execute(t.spot_check.insert(), row | {"verdict": "good", "comment": f"{secret} check"})
        for who, response in ((person, {"id": talk.id}), (reviewer, {"turns": [{"human": f"{secret} asked"}]})):
            once = {"person_id": who, "key": new_id(), "request": "r", "response": response, "at": now()}
            db.execute(t.once.insert(), once)
        once = {"person_id": person, "key": "other", "request": "r", "response": {"id": "another"}, "at": now()}
        db.execute(t.once.insert(), once)
        set_setting(db, "rules", {"task_size": 3}, person)
    return talk


# ---------------------------------------------------------------- backup


def test_a_backup_gives_back_every_row(store: Store, tmp_path: Path):
    talk = fill(store)
    with store.write() as db:
        token = {"token_hash": "h", "person_id": talk.person, "csrf": "c", "created_at": 1, "seen_at": 1}
        db.execute(t.login.insert(), token | {"expires_at": 2})
    before = everything(store)
    counts, digest = backup(store, tmp_path / "b.jsonl.gz")
    assert counts["message"] == 7 and len(digest) == 64
    assert oct((tmp_path / "b.jsonl.gz").stat().st_mode)[-3:] == "600"
    other = Store(str(tmp_path / "other.db"))
    read_backup(other, tmp_path / "b.jsonl.gz")
    assert everything(other) == before and migrate.revision(other) == migrate.newest()
    with other.read() as db:
        assert db.execute(sa.select(t.login)).all() == []
    with other.write() as db:  # serial numbers go on, and so does the conversation's lock
        set_setting(db, "rules", {"task_size": 4}, None)
        assert lock_conversation(db, talk.id).id == talk.id
    other.close()


def test_a_backup_restores_into_the_database_it_came_from(db: str, store: Store, tmp_path: Path):
    fill(store)
    before = everything(store)
    backup(store, tmp_path / "b.jsonl.gz")
    with pytest.raises(ValueError, match="is not empty"):
        read_backup(store, tmp_path / "b.jsonl.gz")
    migrate.downgrade(store, "base")
    migrate.upgrade(store)  # an empty store, as `truing serve` makes one
    read_backup(store, tmp_path / "b.jsonl.gz")
    assert everything(store) == before
    with store.write() as connection:
        set_setting(connection, "rules", {"task_size": 4}, None)
    serials = [row[0] for row in everything(store)["setting"]]
    assert len(set(serials)) == 2 and max(serials) == max(r[0] for r in before["setting"]) + 1


def test_a_damaged_backup_fills_nothing(sqlite_store: Store, tmp_path: Path):
    fill(sqlite_store)
    file = tmp_path / "b.jsonl.gz"
    backup(sqlite_store, file)
    whole, text = file.read_bytes(), gzip.decompress(file.read_bytes())
    broken = {
        "cut": whole[: len(whole) // 2],
        "lines": gzip.compress(b"\n".join(text.split(b"\n")[:-3]) + b"\n"),
        "changed": gzip.compress(text.replace("Übung".encode(), b"Uebung", 1)),
        "no gzip": b"hello",
        "other": gzip.compress(b'{"a": 1}\n'),
    }
    for how, content in broken.items():
        file.write_bytes(content)
        other = Store(str(tmp_path / f"{how}.db"))
        with pytest.raises(ValueError, match="damaged|changed|no backup"):
            read_backup(other, file)
        assert migrate.revision(other) is None
    file.write_bytes(whole)
    assert check_backup(file)["revision"] == migrate.newest()


def test_a_backup_while_others_write_is_one_state(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(sqlite_store)
    real = migrate.newest

    def meanwhile() -> str:  # called when the backup has begun to read
        with sqlite_store.write() as db:
            add_worker(db, f"late {new_id()}")
        return real()

    from truing.collect import backup as module

    with sqlite_store.read() as db:
        lines = module._lines(db, counts := __import__("collections").Counter())
        first = next(lines)
        db.execute(sa.select(t.person)).all()
        meanwhile()
        rest = [json.loads(line) for line in lines]
    assert json.loads(first)["revision"] == real()
    assert counts["person"] == 2 == len([r for r in rest if r[0] == "person"])


def test_columns_are_restored_by_their_names(store: Store, tmp_path: Path):
    """A database has its columns in the order in which they were added, which need not be that of the code."""
    fill(store)
    before = everything(store)
    backup(store, tmp_path / "b.gz")
    lines = [json.loads(line) for line in gzip.open(tmp_path / "b.gz")][:-1]
    head, rows = lines[0], lines[1:]
    head["columns"] = {table: names[::-1] for table, names in head["columns"].items()}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [head, *([r[0], *r[:0:-1]] for r in rows)])
    end = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "rows": len(rows)}
    (tmp_path / "turned.gz").write_bytes(gzip.compress((text + json.dumps(end) + "\n").encode()))
    other = Store(str(tmp_path / "other.db"))
    read_backup(other, tmp_path / "turned.gz")
    assert everything(other) == before
    other.close()


def test_stores_and_backups_are_their_owners_alone(tmp_path: Path):
    store = Store(str(tmp_path / "new.db"))
    migrate.upgrade(store)
    with store.write() as db:
        add_worker(db, "Ada")
        assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}
    backup(store, tmp_path / "b.gz")
    assert oct((tmp_path / "b.gz").stat().st_mode & 0o777) == "0o600"
    store.close()


# ---------------------------------------------------------------- erasing


def run_on(folder: Path, verb: str, file: str | Path, out: str) -> Run:
    class Options:
        pass

    config = configs.PMTrain(init="m", data=[str(file)], out=folder / out)
    return Run.open(verb, config, data_files=[file])


def test_an_erasure_leaves_no_word_and_names_the_runs(store: Store, tmp_path: Path):
    talk = fill(store, "canary-7")
    with store.write() as db:
        kept = Talk(db, person=talk.person)
        kept.turn("kept", [("one", "x"), ("two", "y")])
        kept.end(rating=1)
    folder = tmp_path / "exports"
    options: dict[str, Any] = {"db": store.url, "target": str(folder)}
    made = store_verbs.export(configs.StoreExport(**options, to="hh"))["more"]["file"]
    plain = tmp_path / "unpacked.jsonl"
    plain.write_bytes(gzip.decompress(Path(made).read_bytes()))
    runs = tmp_path / "runs"
    first = run_on(runs, "pm train", made, "packed")
    unpacked = run_on(runs / "deeper", "pm train", plain, "unpacked")
    (tmp_path / "other.jsonl").write_text("{}")
    run_on(runs, "pm train", tmp_path / "other.jsonl", "other")
    first.finish({}, [])
    after = run_on(runs, "pm eval", tmp_path / "other.jsonl", "after")
    facts = json.loads((after.path / "environment.json").read_text())
    facts["options"]["pm"] = f"run:{first.environment['hash']}"
    (after.path / "environment.json").write_text(json.dumps(facts))
    done = store_verbs.erase(
        configs.StoreErase(db=store.url, conversations=[talk.id], why="they asked", runs=str(runs))
    )
    assert done["more"]["runs"] == [str(unpacked.path), str(first.path), str(after.path)]
    assert done["numbers"]["exports"]["value"] == 1
    dumped = repr(everything(store))
    assert "canary-7" not in dumped and TOMBSTONE in dumped and "kept" in dumped
    if store.file:
        for file in store.file.parent.glob(f"{store.file.name}*"):
            assert b"canary-7" not in file.read_bytes(), file
    with store.read() as db:
        assert db.execute(sa.select(t.erasure.c.why)).scalars().all() == ["they asked"]
        assert db.execute(sa.select(t.audit.c.target).where(t.audit.c.action == "erase")).scalars().all() == [talk.id]
        assert len(db.execute(sa.select(t.choice).where(t.choice.c.conversation_id == talk.id)).all()) == 2
        answers = db.execute(sa.select(t.once.c.key, t.once.c.response)).all()
    assert [r.response for r in answers if r.key == "other"] == [{"id": "another"}]
    with pytest.raises(Refused), store.write() as db:
        lock_conversation(db, talk.id)
    found = load_comparisons(make_export(store, Wanted("helpful"), tmp_path).path)
    assert [c.prompt.last.text for c in found] == ["kept"]


def test_erased_words_are_not_left_in_free_pages(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch):
    """Also where SQLite does not wipe what it frees, as many builds do not."""
    prepare = store_module._prepare

    def careless(connection: Any, record: Any) -> None:
        prepare(connection, record)
        connection.execute("PRAGMA secure_delete=OFF")

    monkeypatch.setattr(store_module, "_prepare", careless)
    store = Store(sqlite_store.url)
    with store.write() as db:
        talk = Talk(db)
        talk.turn("canary " * 3000, [("one", "canary " * 3000), ("two", "b")])
    assert store.file is not None
    files = list(store.file.parent.glob(f"{store.file.name}*"))
    assert any(b"canary" in file.read_bytes() for file in files)
    erase(store, [talk.id], by="Grace", why="they asked")
    assert not [file for file in files if b"canary" in file.read_bytes()]
    store.close()


def test_an_erasure_says_if_words_may_be_left_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody who reads keeps what they see; that ends with them, and the next erasure packs."""
    monkeypatch.setattr("truing.collect.store.BUSY_SECONDS", 0.2)
    store = Store(str(tmp_path / "truing.db"))
    migrate.upgrade(store)
    talk = fill(store, "canary-10")
    options: Any = configs.StoreErase(db=store.url, conversations=[talk.id], why="x", runs=str(tmp_path))
    with store.read() as db:
        db.execute(sa.select(t.message)).all()
        assert "free pages" in str(store_verbs.erase(options)["lines"])
    assert "free pages" not in str(store_verbs.erase(options)["lines"])
    store.close()
    assert b"canary-10" not in b"".join(path.read_bytes() for path in tmp_path.glob("truing.db*"))


def test_erasing_says_what_is_wrong(store: Store):
    options: dict[str, Any] = {"db": store.url, "conversations": ["none"]}
    with pytest.raises(ValueError, match="reason with --why"):
        store_verbs.erase(configs.StoreErase(**options))
    with pytest.raises(ValueError, match="no conversation 'none'"):
        store_verbs.erase(configs.StoreErase(**options, why="x"))
    with pytest.raises(ValueError, match="Name the conversations"):
        store_verbs.erase(configs.StoreErase(db=store.url, why="x"))


def test_one_persons_data_and_its_erasure(store: Store, tmp_path: Path):
    talk = fill(store, "canary-8")
    with store.write() as db:
        note(db, None, "sign-in failed", talk.person, address="192.0.2.7")
        note(db, None, "sign-in failed", new_id(), address="192.0.2.8")
        other = Talk(db, person=add_worker(db, "Bob"))
        other.turn("not hers", [("one", "x"), ("two", "y")])
    file = tmp_path / "ada.json"
    store_verbs.person(configs.StorePerson(db=store.url, name="ada", export=str(file)))
    text = file.read_text()
    data = json.loads(text)
    assert data["person"]["name"] == "Ada" and len(data["message"]) == 7 and len(data["choice"]) == 2
    assert "192.0.2.7" in text and "192.0.2.8" not in text
    assert "canary-8 plan" in text and "argon2" not in text and "not hers" not in text and "weights" not in text
    with pytest.raises(ValueError, match="--export FILE or --erase"):
        store_verbs.person(configs.StorePerson(db=store.url, name="Ada"))
    with pytest.raises(ValueError, match="no person 'Eve'"):
        store_verbs.person(configs.StorePerson(db=store.url, name="Eve", erase=True, why="x"))
    store_verbs.person(configs.StorePerson(db=store.url, name="Ada", erase=True, why="asked", runs=str(tmp_path)))
    dumped = repr(everything(store))
    assert "192.0.2.7" not in dumped and "192.0.2.8" in dumped
    assert "canary-8" not in dumped and "'Ada'" not in dumped and "argon2" not in dumped and "not hers" in dumped
    with pytest.raises(ValueError, match="no person 'Ada'"):
        store_verbs.person(configs.StorePerson(db=store.url, name="Ada", export=str(file)))


def test_a_reviewers_data_names_nobody_else(sqlite_store: Store, tmp_path: Path):
    talk = fill(sqlite_store)
    store_verbs.person(configs.StorePerson(db=sqlite_store.url, name="Rev", export=str(tmp_path / "rev.json")))
    text = (tmp_path / "rev.json").read_text()
    assert len(json.loads(text)["assignment"]) == 1 and "leaving" in json.loads(text) and talk.person not in text


def test_the_last_administrator_stays(sqlite_store: Store):
    with sqlite_store.write() as db:
        person = add_worker(db, "Root")
        db.execute(t.person.update().where(t.person.c.id == person).values(role="admin"))
    with pytest.raises(ValueError, match="last administrator"):
        store_verbs.person(configs.StorePerson(db=sqlite_store.url, name="Root", erase=True, why="x"))


def test_runs_that_cannot_be_read_are_passed_over(tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "environment.json").write_text("{")
    assert trained_on({"a" * 64}, tmp_path) == ([], [])
    assert trained_on(set(), tmp_path / "missing") == ([], [])


# ---------------------------------------------------------------- imports


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


def test_what_comes_in_goes_out_again(db: str, tmp_path: Path):
    rows = [
        {"prompt": CHAT, "chosen": "Because.", "rejected": "No.", "kind": "helpful", "strength": 4, "worker": "ann"},
        {"prompt": CHAT, "chosen": "I will not.", "rejected": "Sure!", "kind": "harmless", "worker": "ann"},
        {"prompt": CHAT, "chosen": "x", "rejected": "y", "kind": "helpful", "strength": 1, "arms": ["rlhf", "base"]},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = store_verbs.import_(configs.StoreImport(db=db, file=str(file)))
    assert {k: v["value"] for k, v in done["numbers"].items()} == {"comparisons": 3, "people": 2}
    store = Store(db)
    for kind, want in (("helpful", ("Because.", "No.", 4)), ("harmless", ("I will not.", "Sure!", None))):
        found = load_comparisons(make_export(store, Wanted(kind), tmp_path).path)  # type: ignore[arg-type]
        assert [(c.chosen, c.rejected, c.strength) for c in found] == [want]
        assert found[0].prompt.to_messages() == CHAT and found[0].kind == kind
    with store.read() as connection:
        people = connection.execute(sa.select(t.person)).all()
    assert {p.name for p in people} == {"file ann", "file unknown"} and all(p.disabled for p in people)
    with pytest.raises(ValueError, match="imported before"):
        store_verbs.import_(configs.StoreImport(db=db, file=str(file)))
    store_verbs.import_(configs.StoreImport(db=db, file=str(file), again=True))
    store.close()


def test_another_tools_export_and_a_new_store(tmp_path: Path):
    result = {"from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "right"}}
    data = {"prompt": "q", "answer1": "a", "answer2": "b"}
    rows = [{"id": 1, "data": data, "annotations": [{"completed_by": 5, "result": [result]}]}]
    file = tmp_path / "ls.json"
    file.write_text(json.dumps(rows))
    options: dict[str, Any] = {"db": str(tmp_path / "new.db"), "file": str(file), "task": "red_team"}
    assert store_verbs.import_(configs.StoreImport(**options, dry_run=True))["lines"] == [
        f"{file} (label-studio): 1 comparisons"
    ]
    assert not (tmp_path / "new.db").exists()
    store_verbs.import_(configs.StoreImport(**options))
    found = load_comparisons(make_export(Store(options["db"]), Wanted("harmless"), tmp_path).path)
    assert [(c.chosen, c.rejected) for c in found] == [("a", "b")]  # b was picked as the more harmful one


def test_what_comes_in_is_not_laid_to_somebody_of_that_name(sqlite_store: Store, tmp_path: Path):
    with sqlite_store.write() as db:
        ann = add_worker(db, "file ann", password_hash="$argon2id$x")
    (tmp_path / "x.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "worker": "ann"}\n')
    store_verbs.import_(configs.StoreImport(db=sqlite_store.url, file=str(tmp_path / "x.jsonl")))
    with sqlite_store.read() as db:
        (owner,) = db.execute(sa.select(t.conversation.c.person_id)).scalars()
        assert owner != ann and len(db.execute(sa.select(t.person)).all()) == 2


def test_nothing_is_half_imported(sqlite_store: Store, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": 3}\n')
    with pytest.raises(DataError):
        store_verbs.import_(configs.StoreImport(db=sqlite_store.url, file=str(tmp_path / "x.jsonl")))
    assert everything(sqlite_store)["person"] == []


def test_a_store_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no store"):
        store_verbs.backup(configs.StoreBackup(db=str(tmp_path / "none.db"), target=str(tmp_path / "b")))
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ValueError, match="make no run"):
        store_verbs.backup(configs.StoreBackup(target="b", out=tmp_path / "run"))
