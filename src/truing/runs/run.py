"""Run: one folder per experiment, named by what went into it; the same command again resumes or returns it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from truing.runs.atomic import as_json, as_lines, atomic_write, explained, finite, number_row, read_rows
from truing.runs.facts import (
    ROOT,
    config_dict,
    digest_of,
    hash_data,
    identity_of,
    refuse_infinite,
    refuse_passwords,
    surroundings,
    versions,
    without_home,
)

if TYPE_CHECKING:
    from truing.models.compute import Compute

_BARE: dict[Path, list[Path]] = {}  # runs that this process began, and the folders it made for them
_LOCKS: dict[Path, tuple[int, int]] = {}  # folder -> (pid, file descriptor)


class Run:
    """One experiment's folder. Made by :meth:`open` (to compute) or :meth:`load` (to read)."""

    def __init__(self, path: Path, verb: str, environment: dict[str, Any]) -> None:
        self.path = path
        self.verb = verb
        self.environment = environment
        self.opened = time.monotonic()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {'done' if self.done else 'unfinished'})"

    @classmethod
    def open(
        cls,
        verb: str,
        config: Any,
        *,
        data_files: Iterable[str | Path] = (),
        data_hashes: Mapping[str, str] | None = None,
        slug: str = "",
    ) -> Run:
        """The run of this verb, config (a dataclass) and data: a new folder, or the one that is there.

        ``data_hashes`` names the content of data handed over in memory. Raises ValueError if the folder holds another
        run or files that are no run's, or if another live process works on it.
        """
        if (seed := getattr(config, "seed", 0)) < 0:
            raise ValueError(f"--seed is {seed}; expected 0 or a positive number.")
        refuse_passwords(config)
        refuse_infinite(config)
        data = {**hash_data(data_files), **(data_hashes or {})}
        identity = identity_of(config, data)
        digest = digest_of(verb, identity)
        out = getattr(config, "out", None)
        path = Path(out) if out else ROOT / _name(verb, slug, digest)
        _refuse_foreign(path, verb, identity)
        bare = not path.exists() or not any(path.iterdir())
        made = [folder for folder in (path, path.parent) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "summary.json").exists():
            _lock(path)
            if bare:
                _BARE[path.absolute()] = made
            _sweep_up(path)
        if not (path / "environment.json").exists():
            data = {without_home(name): value for name, value in data.items()}
            facts = {"verb": verb, "hash": digest[:16], "options": identity, "data": data, **surroundings()}
            atomic_write(path / "environment.json", as_json(facts))
        if not (path / "config.yaml").exists():
            text = yaml.safe_dump(config_dict(config), sort_keys=False, allow_unicode=True)
            atomic_write(path / "config.yaml", text)
        run = cls(path, verb, _environment(path))
        run._say_if_versions_differ()
        return run

    @classmethod
    def load(cls, name: str | Path, root: str | Path = ROOT) -> Run:
        """A run by its folder, its name, or a beginning of its name that no other run under ``root`` shares.

        Raises FileNotFoundError naming the runs there are, ValueError if the beginning is ambiguous.
        """
        path = Path(name)
        if not (path / "environment.json").is_file():
            there = sorted(p.parent for p in Path(root).glob("*/environment.json"))
            exact = [p for p in there if p.name == str(name)]
            found = exact or [p for p in there if p.name.startswith(str(name))]
            if not found:
                names = ", ".join(p.name for p in there[:20]) or "none"
                raise FileNotFoundError(f"No run is called {name}. Runs in {root}: {names}.")
            if len(found) > 1:
                raise ValueError(f"{name} may be any of {', '.join(p.name for p in found)}. Give more of the name.")
            path = found[0]
        environment = _environment(path)
        return cls(path, environment["verb"], environment)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def done(self) -> bool:
        """True once :meth:`finish` has written ``summary.json``."""
        return (self.path / "summary.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """The options in ``config.yaml``."""
        return yaml.safe_load((self.path / "config.yaml").read_text()) or {}

    @property
    def figures(self) -> Path:
        """The folder for figures, made when first asked for."""
        (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures"

    def compute(self, config: Any) -> Compute:
        """Device, dtype and threads: measured and chosen once per run, then reused on every resume."""
        from truing.models.compute import choose

        chosen = self.environment.get("compute")
        if chosen:
            return choose(chosen["device"], chosen["dtype"], chosen["threads"])
        compute = choose(config.device, config.dtype, config.threads)
        dtype = str(compute.dtype).removeprefix("torch.")
        facts = {"device": str(compute.device), "dtype": dtype, "threads": compute.threads}
        self.remember("compute", {**facts, "measured": compute.measured})
        return compute

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Put facts into ``environment.json`` under a name; those of that name before are replaced."""
        self.environment[name] = dict(facts)
        atomic_write(self.path / "environment.json", as_json(self.environment))

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl``; what is not finite becomes null."""
        line = json.dumps({"step": step, **{k: finite(v) for k, v in metrics.items()}}, allow_nan=False)
        try:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(line + "\n")
        except OSError as problem:
            raise explained(problem, self.path / "metrics.jsonl") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line that a kill cut short is left out."""
        return read_rows(self.path / "metrics.jsonl")

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics and samples of later steps than ``step``, so that a resumed run doubles none."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).exists():
                kept = [row for row in read_rows(self.path / name) if row.get("step", 0) <= step]
                atomic_write(self.path / name, as_lines(kept))

    def samples(self) -> list[dict[str, Any]]:
        """The lines of ``samples.jsonl``."""
        return read_rows(self.path / "samples.jsonl")

    def write_samples(self, rows: Iterable[Mapping[str, Any]], step: int | None = None) -> None:
        """Write ``samples.jsonl``; with ``step``, rows of earlier steps stay and those of this one are replaced."""
        new = [{**({} if step is None else {"step": step}), **row} for row in rows]
        old = [] if step is None else [r for r in read_rows(self.path / "samples.jsonl") if r.get("step", -1) < step]
        atomic_write(self.path / "samples.jsonl", as_lines([*old, *new]))

    def finish(self, numbers: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """Write ``summary.json``: the run is done. Numbers are Intervals, their dicts, plain numbers or None.

        Checkpoints go: they are what an unfinished run goes on from.
        """
        atomic_write(self.path / "summary.json", as_json(self._summary(numbers, notes)))
        for checkpoint in self.path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        for name in ("partial.json", "lock"):
            (self.path / name).unlink(missing_ok=True)
        self.close()

    def stop(self, numbers: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """Write ``partial.json``, a summary of what there is; the run stays unfinished and resumable."""
        atomic_write(self.path / "partial.json", as_json(self._summary(numbers, notes)))
        self.close()

    def summary(self) -> dict[str, Any]:
        """``summary.json``, or ``partial.json`` of a run that was stopped. Raises ValueError if there is neither."""
        for name in ("summary.json", "partial.json"):
            if (self.path / name).exists():
                return json.loads((self.path / name).read_text())
        raise ValueError(f"The run {self.path} has no summary yet. Run its command again to finish it.")

    def close(self) -> None:
        """Let other processes open this run."""
        pid, handle = _LOCKS.pop(self.path.resolve(), (0, -1))
        if pid == os.getpid():
            os.close(handle)

    def _summary(self, numbers: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
        rows, notes = {}, list(notes)
        for name, given in numbers.items():
            rows[name] = number_row(given)
            note = getattr(given, "note", "")
            if note:
                notes.append(f"{name}: {note}")
        return {"verb": self.verb, "run": str(self.path), "numbers": rows, "notes": notes}

    def _say_if_versions_differ(self) -> None:
        then, now = self.environment.get("versions", {}), versions()
        changed = [f"{k} {then[k]} → {now.get(k)}" for k in then if then[k] != now.get(k)]
        if changed and not self.done:
            print(f"This run began under other versions ({', '.join(changed)}): numbers may differ.", file=sys.stderr)


def sweep(fn: Callable[[Any], Run], configs: Sequence[Any], workers: int = 1) -> list[Run]:
    """Run ``fn`` on every config, in order or in ``workers`` processes; finished runs are reused.

    ``fn`` must be importable when ``workers`` > 1. The first error stops the sweep; the same call goes on later.
    """
    if workers <= 1:
        return [fn(config) for config in configs]
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with, initargs=(os.getpid(),)) as pool:
        others = multiprocessing.active_children()
        waiting = [pool.submit(_path_of, fn, config) for config in configs]
        try:
            for future in as_completed(waiting):
                future.result()  # the first error ends the sweep, whichever run has it
            return [Run.load(future.result()) for future in waiting]
        except BaseException:
            for worker in set(multiprocessing.active_children()) - set(others):
                worker.terminate()  # else the interpreter waits for their work to end
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with(parent: int) -> None:
    """End this worker when the process that started it is gone, killed or not, so that it frees its runs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _path_of(fn: Callable[[Any], Run], config: Any) -> Path:
    return fn(config).path


def _name(verb: str, slug: str, digest: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", slug).strip("-.")[:40]
    return "-".join(part for part in (verb.replace(" ", "-"), slug, digest[:8]) if part)


def remove_bare() -> None:
    """Remove the runs that this process began and that hold no work: an unknown model must not leave a run behind."""
    for path, made in reversed(_BARE.items()):  # a study's runs before the study's own
        with contextlib.suppress(OSError):
            names = {p.name for p in path.iterdir()}
            if names <= {"config.yaml", "environment.json", "lock"}:
                if held := _LOCKS.pop(path.resolve(), None):
                    os.close(held[1])
                for name in names:
                    (path / name).unlink()
                for folder in made:
                    folder.rmdir()
    _BARE.clear()


def _environment(path: Path) -> dict[str, Any]:
    try:
        environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
        environment["verb"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path / 'environment.json'} is damaged ({problem}): this folder is no run.") from None
    return environment


def _refuse_foreign(path: Path, verb: str, identity: dict[str, Any]) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a run needs a folder of its own. Give another --out.")
    if not (path / "environment.json").exists():
        every = sorted(p.name for p in path.iterdir()) if path.exists() else []
        there = [name for name in every if not name.startswith(".") and name != "lock"]
        if there:
            some = ", ".join(there[:5]) + (" …" if len(there) > 5 else "")
            raise ValueError(f"{path} holds {some} but is no run's folder. Give another --out, new or empty.")
        return
    held = _environment(path)
    if held["verb"] != verb:
        raise ValueError(f"{path} holds a run of '{held['verb']}', not of '{verb}'. Give another --out.")
    old = held.get("options", {})
    nothing = object()
    keys = sorted({*old, *identity})
    differing = [key for key in keys if old.get(key, nothing) != json.loads(json.dumps(identity)).get(key, nothing)]
    if differing:
        shown = "; ".join(f"{k}: {old.get(k, 'absent')!r} there, {identity.get(k, 'absent')!r} now" for k in differing)
        raise ValueError(f"{path} holds a run of another config ({shown}). Give another --out or remove that folder.")


def _lock(path: Path) -> None:
    """Hold the folder until this process ends; the kernel frees what a killed process held."""
    held = _LOCKS.get(path.resolve())
    if held and held[0] == os.getpid():
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise ValueError(
            f"{path} is being worked on by {owner}. Wait for it, stop it, or give another --out."
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _LOCKS[path.resolve()] = (os.getpid(), handle)


def _sweep_up(path: Path) -> None:
    """Remove what killed processes left half-written; put back a folder caught between two renames."""
    for part in path.glob(".*.tmp-*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    for old in path.glob(".*.old-*"):
        whole = path / old.name[1:].rsplit(".old-", 1)[0]
        shutil.rmtree(old) if whole.exists() else os.replace(old, whole)
