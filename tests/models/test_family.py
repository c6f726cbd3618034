"""Families made from scratch: sizes, shapes, seeds, bytes."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.data.toy_hh import WORDS, toy_corpus
from truing.models import family, load
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.text import ASSISTANT, HUMAN, encode, to_hh

SHAPES = ("llama", "neox", "gpt2")


def tiny(shape="llama", **kw):
    return family.new_model(shape, layers=2, width=32, heads=4, **kw)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_it_is_the_same_model(shape, tmp_path):
    """Catches config entries that do not survive saving (rotary share, positions) and a tokenizer rebuilt otherwise."""
    model, tokenizer = tiny(shape, seed=3), family.byte_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokens = load.load_model(tmp_path)
    text = "Grüße 12\n\n1. ok"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert tokens(text)["input_ids"] == ids[0].tolist()
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_seed_decides_and_nothing_else_is_touched(shape):
    """Catches initialising from the global stream, or leaving it moved."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (tiny(shape, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("shape", ["neox", "llama"])
def test_the_parameter_count_is_the_papers(shape):
    """Catches an MLP of another width: N = 12·layers·width²."""
    assert family.num_params(family.new_model(shape, layers=2, width=48, heads=4)) == 12 * 2 * 48**2
    assert (
        family.num_params(family.new_model("neox", layers=2, width=48, heads=4, attention_only=True)) == 4 * 2 * 48**2
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_only_means_no_mlp_even_after_training(shape):
    """Catches MLPs that are zero at first and learn later."""
    model = tiny(shape, attention_only=True)
    outputs = []
    for layer in family._layers(model):
        layer.mlp.register_forward_hook(lambda m, i, out: outputs.append(out))
    ids = torch.arange(20)[None]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(o.abs().max() == 0 for o in outputs)


def test_size_dial():
    """Catches a shape rule that leaves the papers' family: 1.57M at 2 layers, 805M at 16."""
    small, large = family.by_size("1.6M"), family.by_size("800M")
    assert (small.layers, small.width, small.num_params) == (2, 256, 1_572_864)
    assert (large.layers, large.width, large.heads, large.num_params) == (16, 2048, 32, 805_306_368)
    assert small.learning_rate > large.learning_rate and small.batch_tokens < large.batch_tokens
    sizes = [family.by_size(n).num_params for n in (2e4, "100k", "500k", "1M", "5M", "40M", "1B")]
    assert sizes == sorted(set(sizes))
    assert abs(family.by_size("1M").num_params / 1e6 - 1) < 0.2
    for wrong in ("big", "", "5", "1e3M2"):
        with pytest.raises(ValueError, match="no model size"):
            family.by_size(wrong)


@given(st.text())
def test_bytes_round_trip(text):
    """Catches normalisation, cleaning of spaces, or bytes in another order."""
    tokenizer = family.byte_tokenizer()
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert ids == [256, *text.encode("utf-8", "surrogatepass")]
    assert tokenizer.decode(ids[1:]) == text


def test_special_tokens_and_speed():
    """Catches one id with two offices, and a slow fixture: every test of the house makes these."""
    tokenizer = family.byte_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
    assert len(tokenizer) == family.BYTE_VOCAB and tokenizer.chat_template is None
    assert tokenizer("a<|eos|>")["input_ids"] == [256, 97, 257]
    walls = []
    for _ in range(3):
        start = time.process_time()
        tiny(), family.byte_tokenizer()
        walls.append(time.process_time() - start)
    assert min(walls) < 0.3


def test_impossible_shapes_say_so():
    with pytest.raises(ValueError, match="heads"):
        family.new_model(layers=2, width=30, heads=4)
    with pytest.raises(ValueError, match="expected llama"):
        family.new_model("bert", layers=2, width=32, heads=4)


def test_the_word_tokenizer_gives_the_toy_world_back():
    """Catches a space lost or added at a join, and markers or ends that are not one token of their own."""
    lm_ids = family.word_tokenizer(WORDS)
    for dialogue in toy_corpus(300, 0, told=0.2):
        ids = encode(dialogue, lm_ids)
        assert ids[0] == lm_ids.bos_token_id and lm_ids.unk_token_id not in ids
        assert lm_ids.decode(ids[1:]) == to_hh(dialogue)
        assert encode(dialogue.prompt, lm_ids) == ids[: len(encode(dialogue.prompt, lm_ids))]
    for mark in (HUMAN, ASSISTANT, family.EOS, family.PAD, family.END):
        assert len(lm_ids(mark, add_special_tokens=False)["input_ids"]) == 1
    ends = {lm_ids.bos_token_id, lm_ids.eos_token_id, lm_ids.pad_token_id, lm_ids.convert_tokens_to_ids(family.END)}
    assert len(ends) == 4 and lm_ids.convert_tokens_to_ids(family.END) != lm_ids.unk_token_id
    with pytest.raises(ValueError, match="neither one word"):
        family.word_tokenizer(["two words"])


def test_a_model_of_a_word_tokenizer_knows_its_ends(tmp_path):
    """Catches a config that names the byte tokenizer's ends, which are words here: replies would stop at them."""
    tokenizer = family.word_tokenizer(WORDS)
    LM(tiny(tokenizer=tokenizer), tokenizer).save(tmp_path)
    lm = LM.load(tmp_path)
    assert set(lm.engine.eos_ids) == {tokenizer.eos_token_id}
    pm = PreferenceModel.new(lm)
    assert len(pm.tokenizer) == len(tokenizer) and pm.eoc_id == tokenizer.convert_tokens_to_ids(family.END)
    text = "How do I bake bread?"
    assert lm.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
