"""From-scratch families: one shape rule, one size dial, a byte and a word tokenizer; nothing is downloaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from truing.text import ASSISTANT, HUMAN

Shape = Literal["llama", "neox", "gpt2"]
BOS, EOS, PAD, END, UNKNOWN = "<|bos|>", "<|eos|>", "<|pad|>", "<|end_of_context|>", "<|unknown|>"
BYTE_VOCAB = 259
"""256 bytes (id = byte value), then BOS 256, EOS 257, PAD 258."""


@dataclass(frozen=True, slots=True)
class Size:
    """What one size dial stands for.

    ``num_params`` is 12·layers·width², the non-embedding count of 2001.08361 §2.1; ``batch_tokens`` are tokens per
    optimiser step. Learning rate and batch follow the trend of 2005.14165 Table 2.1 and are starting points, not
    measurements.
    """

    layers: int
    width: int
    heads: int
    learning_rate: float
    batch_tokens: int
    num_params: int


def by_size(size: str | float) -> Size:
    """The shape nearest to a size such as ``"1M"``, ``"5M"``, ``"800M"`` or ``1.6e6`` (non-embedding parameters).

    From 1.5M up, width = 128·layers (the family of 2205.10487: 196,608·layers³ parameters); below, narrower models of
    at least two layers. Heads are 64 wide from width 128 on, else 16. Raises ValueError for what is no size.
    """
    wanted = _number(size)
    if wanted >= 1.5e6:
        layers = min(range(2, 65), key=lambda n: abs(math.log(196_608 * n**3 / wanted)))
        width = 128 * layers
    else:
        layers = min(range(2, 9), key=lambda n: abs(math.log(12 * 64**2 * n**3 / wanted)))
        width = max(16, 16 * round(math.sqrt(wanted / (12 * layers)) / 16))
    num_params = 12 * layers * width**2
    return Size(
        layers=layers,
        width=width,
        heads=width // 64 if width >= 128 and width % 64 == 0 else width // 16,
        learning_rate=min(6e-3, 0.4 / width),
        batch_tokens=2 ** round(math.log2(2**19 * math.sqrt(num_params / 125e6))),
        num_params=num_params,
    )


def _number(size: str | float) -> float:
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmb]?)\s*", str(size), re.IGNORECASE)
    try:
        value = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2].lower()] if found else 0.0
    except ValueError:
        value = 0.0
    if not 1e3 <= value <= 1e12:
        raise ValueError(f"{size!r} is no model size; expected a number of parameters such as 1M, 5M or 800M.")
    return value


def new_model(
    shape: Shape = "llama",
    *,
    layers: int,
    width: int,
    heads: int,
    vocab_size: int = BYTE_VOCAB,
    max_positions: int = 1024,
    seed: int = 0,
    attention_only: bool = False,
    tokenizer: Any = None,
) -> Any:
    """A freshly initialised causal language model (float32, eval mode, no dropout); the same seed, the same weights.

    ``neox`` has exactly 12·layers·width² non-embedding matrix entries, ``llama`` the same up to rounding of its MLP
    width. The vocabulary and the ids of BOS, EOS and PAD are those of ``tokenizer``, if one is given; else, with a
    vocabulary of at least ``BYTE_VOCAB``, the config names the byte tokenizer's.
    ``attention_only`` fixes the MLPs' output at zero (see `freeze_mlps`). Raises ValueError for impossible shapes.
    """
    if shape not in ("llama", "neox", "gpt2"):
        raise ValueError(f"shape is {shape!r}; expected llama, neox or gpt2.")
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} over {heads} heads gives no even head size; choose heads that do.")
    from transformers import AutoModelForCausalLM

    ids = (256, 257, 258) if vocab_size >= BYTE_VOCAB else (None, None, None)
    if tokenizer is not None:
        vocab_size, ids = len(tokenizer), (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    special: dict[str, Any] = dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids, strict=True))
    config = _config(shape, layers, width, heads, vocab_size, max_positions, special)
    config.attention_only = attention_only
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if attention_only:
        freeze_mlps(model)
    return model.eval()


def _config(
    shape: str, layers: int, width: int, heads: int, vocab: int, positions: int, special: dict[str, Any]
) -> Any:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if shape == "gpt2":
        quiet: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(
            vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads, **(quiet | special)
        )
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **special,
    }
    if shape == "neox":
        rope["partial_rotary_factor"] = 1.0
        return GPTNeoXConfig(intermediate_size=4 * width, rope_parameters=rope, tie_word_embeddings=False, **common)
    mlp = 8 * max(1, round(width / 3))  # three matrices of 8/3·width: as many parameters as two of 4·width
    return LlamaConfig(intermediate_size=mlp, rope_parameters=rope, tie_word_embeddings=False, **common)


def freeze_mlps(model: Any) -> None:
    """Fix every MLP's output at zero: its parameters stop training, its last matrix and bias become zero.

    ``requires_grad`` is not saved with a model: call this again after loading one whose config says
    ``attention_only``. Raises ValueError if a layer has no MLP known here.
    """
    for layer in _layers(model):
        last = next(
            (getattr(layer.mlp, n) for n in ("down_proj", "dense_4h_to_h", "c_proj") if hasattr(layer.mlp, n)), None
        )
        if last is None:
            raise ValueError(f"No known MLP in a layer of type {type(layer).__name__}.")
        layer.mlp.requires_grad_(False)
        for parameter in last.parameters():
            parameter.data.zero_()


def num_params(model: Any) -> int:
    """Non-embedding parameters: entries of the layers' matrices (12·layers·width² for the papers' shape).

    Norms and biases are left out; in attention-only models the MLPs are too.
    """
    skip = "mlp" if getattr(model.config, "attention_only", False) else "\0"
    return sum(
        p.numel() for layer in _layers(model) for n, p in layer.named_parameters() if p.ndim == 2 and skip not in n
    )


def _layers(model: Any) -> Any:
    body = model.base_model
    return body.h if hasattr(body, "h") else body.layers


def byte_tokenizer() -> Any:
    """A tokenizer over bytes, built in memory: id = byte value, BOS (added by itself), EOS and PAD after them.

    It has no chat template, so dialogues are HH text. Models over it load and save like any Hugging Face model.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: byte for byte, letter in enumerate(_byte_letters())} | {BOS: 256, EOS: 257, PAD: 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in (BOS, EOS, PAD)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words for small worlds: one token for a word and the space before it, one for each mark.

    ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` are a token each; BOS (added by itself), EOS, PAD, end-of-context and
    unknown come last. Texts of known words separated by single spaces, marks without one, decode to themselves; a word
    is known after a space only. Raises ValueError for what is neither one word nor one mark.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if wrong := [word for word in words if not re.fullmatch(r"\w+|[^\w\s]", word)]:
        raise ValueError(f"{wrong[0]!r} is neither one word nor one punctuation mark.")
    plain = [f" {word}" if word[0].isalnum() else word for word in dict.fromkeys(words)]
    special = (BOS, EOS, PAD, END, UNKNOWN)
    vocab = {token: i for i, token in enumerate((*plain, HUMAN, ASSISTANT, *special))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    parts = Regex(rf"{HUMAN}|{ASSISTANT}| ?\w+|[^\w\s]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(parts, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _byte_letters() -> list[str]:
    """The printable letter byte-level tokenizers write for each byte: itself, or one from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]
