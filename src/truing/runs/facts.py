"""What a run is (its options and data) and what surrounds it (versions, hardware, commit)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("runs")
"""Where runs lie that were given no folder."""
OUTPUT_ONLY = (  # what changes no number: the last two only how the same sums are computed
    "out", "json", "debug", "report_to", "max_time", "dry_run", "save_every", "resume_from_checkpoint",
    "gradient_checkpointing", "parallel",
)  # fmt: skip
_TEXTS = ("stop", "stop_after", "system")
"""Options that hold text, never a name."""
_PACKAGES = ("truing", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy", "lm_eval")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Config values as JSON and YAML know them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def config_dict(config: Any) -> dict[str, Any]:
    """A config's options without those that only concern output, so that two equal experiments are equal."""
    return {k: v for k, v in _plain(config).items() if k not in OUTPUT_ONLY}


def refuse_passwords(config: Any) -> None:
    """Raise ValueError, without quoting it, for an option that is a web address with a user or a password in it."""
    for key, value in config_dict(config).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and key not in _TEXTS and re.match(r"(?i)https?://[^/#?]*@", text):
                raise ValueError(
                    f"--{key.replace('_', '-')} is an address with a user or a password in it, which the run would "
                    "keep. Leave it out; an API key belongs into the environment variable TRUING_API_KEY."
                )


def refuse_infinite(config: Any) -> None:
    """Raise ValueError for an option that is not a number, or an infinite one: no run can keep it."""
    for key, value in config_dict(config).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{key.replace('_', '-')} is {number}; expected a finite number.")


def without_home(text: str) -> str:
    """A path with the user's home folder written ``~``."""
    home = str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def hash_data(data_files: Iterable[str | Path]) -> dict[str, str]:
    """sha256 of each file; a name that is no local file (a hub data set) stands for itself."""
    hashes = {}
    for name in map(str, data_files):
        path = Path(name).expanduser()
        hashes[name] = f"sha256:{_sha256(path)}" if path.is_file() else f"name:{name}"
    return hashes


def _weights(folder: Path) -> str:
    """sha256 over the weights and the config of a model's folder; "" if it holds none."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("config.json")])
    return hashlib.sha256("".join(map(_sha256, files)).encode()).hexdigest() if len(files) > 1 else ""


def _folder_identity(name: str) -> str | None:
    """What a folder holds: a finished run its hash, another run or a model its weights; None if it is neither."""
    for path in (Path(name).expanduser(), ROOT / name) if name else ():
        if (path / "environment.json").is_file() and (path / "summary.json").is_file():
            return f"run:{json.loads((path / 'environment.json').read_text())['hash']}"
        found = _weights(path / "model") or _weights(path)
        if found:
            return f"model:{found}"
    return None


def identity_of(config: Any, data: Mapping[str, str]) -> dict[str, Any]:
    """What makes a run this run: data files and models stand for their content, finished runs for their hash."""
    used = set()

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(v) for v in value]
        if not isinstance(value, str):
            return value
        if value in data:
            used.add(value)
            return data[value]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _folder_identity(value) or without_home(value)
        return without_home(value)

    named = {key: value if key in _TEXTS else name(value) for key, value in config_dict(config).items()}
    given = sorted(data[key] for key in data if key not in used)
    return {**named, **({"data given": given} if given else {})}


def digest_of(verb: str, identity: Mapping[str, Any]) -> str:
    """sha256 of a verb and an identity, in hex."""
    return hashlib.sha256(json.dumps([verb, identity], sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def surroundings() -> dict[str, Any]:
    """Versions, hardware and commit, as ``environment.json`` keeps them."""
    return {"versions": versions(), "hardware": _hardware(), "git": _git()}


def _hardware() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = names[0] if names else model
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"system": platform.system(), "cpu": model, "cores": cores, "memory_gib": memory}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name(0)
    return facts


def _git() -> dict[str, Any] | None:
    """Commit of the code, and whether it was changed since; None if it is not in a repository."""

    def ask(*words: str) -> str | None:
        here = Path(__file__).resolve()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=True
            )
            return answer.stdout.strip()
        return None

    commit = ask("rev-parse", "HEAD") if ask("ls-files", "--error-unmatch", Path(__file__).name) else None
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))} if commit else None
