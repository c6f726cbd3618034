"""GGUF files of Llama shape → Hugging Face folders: config, weights and the right tokenizer, read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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
