"""``truing store backup | restore | import | export | erase | person``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from truing.collect import migrate
from truing.collect.backup import backup as write_backup
from truing.collect.backup import check_backup
from truing.collect.backup import restore as read_backup
from truing.collect.erasing import Erased, erase_person, find_person, person_data
from truing.collect.erasing import erase as erase_texts
from truing.collect.exports import Wanted, make_export, record_export
from truing.collect.imports import import_file, left_out, read_any
from truing.collect.store import Conflict, Refused, Store
from truing.configs import StoreBackup, StoreCommon, StoreErase, StoreExport, StoreImport, StorePerson, StoreRestore
from truing.data.files import write_bytes

Result = dict[str, Any]
BY = "command line"


def backup(config: StoreBackup) -> Result:
    """Copy a store into one file while it is in use."""
    _no_run(config)
    with _open(config.db) as store:
        target = Path(config.target)
        if not target.absolute().parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist. Make it first.")
        if config.dry_run:
            return {"lines": [f"Would copy {store.shown} to {target}."]}
        counts, digest = write_backup(store, target)
        lines = [f"{store.shown} → {target} ({target.stat().st_size / 2**20:.1f} MiB)", f"sha256 {digest}"]
        return {"numbers": _numbers(counts), "lines": lines, "more": {"sha256": digest, "file": str(target)}}


def restore(config: StoreRestore) -> Result:
    """Fill an empty store from a backup."""
    _no_run(config)
    file = Path(config.file)
    with contextlib.closing(Store(config.db)) as store:
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file}.")
        if config.dry_run:
            return {
                "lines": [f"{file} is whole, of revision {check_backup(file)['revision']}. Would fill {store.shown}."]
            }
        return {"numbers": _numbers(read_backup(store, file)), "lines": [f"{file} → {store.shown}"]}


def import_(config: StoreImport) -> Result:
    """Comparisons of a file into a store."""
    _no_run(config)
    if config.dry_run:
        source, found, counts = read_any(config.file, items=config.items, task=config.task, prompt=config.prompt_field)
        said = left_out(counts.items())
        return {
            "lines": [f"{config.file} ({source}): {len(found)} comparisons" + (f"; left out: {said}" if said else "")]
        }
    with contextlib.closing(Store(config.db)) as store:
        migrate.upgrade(store)
        done = _refusals(
            import_file,
            store,
            config.file,
            items=config.items,
            task=config.task,
            prompt=config.prompt_field,
            again=config.again,
        )
        return {"numbers": _numbers(done.counts), "lines": [f"{config.file} ({done.source}) → {store.shown}"]}


def export(config: StoreExport) -> Result:
    """A file of comparisons, games, rankings or attempts."""
    _no_run(config)
    folder = Path(config.target)
    with _open(config.db) as store:
        wanted = Wanted(
            config.kind,
            config.to,
            config.part,
            config.test_share,
            config.seed,
            config.arms,
            config.unfinished,
            config.people,
        )
        if config.dry_run:
            return {"lines": [f"Would write {folder / wanted.name} from {store.shown}."]}
        folder.mkdir(parents=True, exist_ok=True)
        made = make_export(store, wanted, folder)
        try:
            with store.write() as db:
                _refusals(record_export, db, None, made)
        except BaseException:
            made.path.unlink()
            raise
        notes = [wanted.notice] if wanted.notice else []
        lines = [f"{made.path}", f"sha256 {made.sha256}"]
        return {"numbers": _numbers(made.counts), "notes": notes, "lines": lines, "more": {"file": str(made.path)}}


def erase(config: StoreErase) -> Result:
    """Replace what was said in conversations by a tombstone."""
    _no_run(config)
    if not config.conversations:
        raise ValueError("Name the conversations to erase, by their ids; `truing store person` erases a person's all.")
    if not config.why.strip():
        raise ValueError("Give the reason with --why: it goes into the log, for good.")
    with _open(config.db) as store:
        if config.dry_run:
            return {"lines": [f"Would erase {len(config.conversations)} conversations of {store.shown}."]}
        return _told(_refusals(erase_texts, store, config.conversations, by=BY, why=config.why, runs=Path(config.runs)))


def person(config: StorePerson) -> Result:
    """Everything that is kept about one person: into a file, or erased."""
    _no_run(config)
    if bool(config.export) == config.erase:
        raise ValueError("Say what is to be done: --export FILE or --erase.")
    with _open(config.db) as store:
        with store.read() as db:
            row = find_person(db, config.name)
            data = person_data(db, row.id) if config.export else {}
        if config.dry_run:
            return {"lines": [f"Would {'write what is kept about' if config.export else 'erase'} {row.name}."]}
        if config.export:
            write_bytes(Path(config.export), (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
            rows = {name: len(found) for name, found in data.items() if isinstance(found, list)}
            return {"numbers": _numbers(rows), "lines": [f"{row.name} → {config.export}"]}
        if not config.why.strip():
            raise ValueError("Give the reason with --why: it goes into the log, for good.")
        return _told(_refusals(erase_person, store, row.id, by=BY, why=config.why, runs=Path(config.runs)))


def _told(done: Erased) -> Result:
    lines = [f"Erased the words of {done.conversations} conversations.", "Backups made before still hold them."]
    if not done.packed:
        lines.append("Others used the database, so words may be left in its free pages: stop the app and erase again.")
    lines += [f"The export {sha256} ({kind}) holds them: delete every copy." for kind, sha256 in done.files]
    lines += [f"{path} was trained on such a file." for path in done.runs]
    lines += [f"{path} used what those runs made." for path in done.after]
    if done.files and not done.runs:
        lines.append("No run in the folder of --runs was trained on those files.")
    numbers = {"conversations": done.conversations, "exports": len(done.files), "runs": len(done.runs)}
    more = {"runs": [str(p) for p in (*done.runs, *done.after)], "exports": [sha for _, sha in done.files]}
    return {"numbers": _numbers(numbers | {"runs_after": len(done.after)}), "lines": lines, "more": more}


def _no_run(config: StoreCommon) -> None:
    if config.out is not None:
        raise ValueError("The store's verbs make no run: leave --out away.")


@contextlib.contextmanager
def _open(db: str) -> Iterator[Store]:
    """A store that is there, at this code's revision; closed at the end."""
    with contextlib.closing(Store(db)) as store:
        _check(store)
        yield store


def _check(store: Store) -> None:
    """Raise FileNotFoundError if there is no such store, ValueError if it is at another revision."""
    if store.file is not None and not store.file.exists():
        raise FileNotFoundError(f"There is no store {store.file}. Name it with --db; `truing serve` makes one.")
    try:
        migrate.check(store)
    except sa.exc.OperationalError as problem:
        raise ValueError(f"The store {store.shown} cannot be opened: {str(problem.orig).strip()}") from None


def _refusals(act: Any, *args: Any, **options: Any) -> Any:
    """Call ``act``; what the store refuses is a clear error here."""
    try:
        return act(*args, **options)
    except (Refused, Conflict) as problem:
        raise ValueError(str(problem)) from None


def _numbers(counts: Mapping[str, int]) -> dict[str, Any]:
    return {k: {"value": n, "low": None, "high": None, "n": n, "unit": "rows"} for k, n in counts.items()}
