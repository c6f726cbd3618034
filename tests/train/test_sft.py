"""Next-token training: the loss of packs is that of padded rows, ends are learned, a kill changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truing.configs import Finetune
from truing.data.documents import load_documents
from truing.data.files import DataError, write_rows
from truing.data.toy_hh import WORDS, toy_corpus
from truing.models import tree
from truing.models.family import new_model, word_tokenizer
from truing.models.lm import LM
from truing.runs import Run
from truing.text import encode
from truing.train import sft
from truing.train.loop import checkpoints
from truing.train.sft import LMTrainer, sequences_of, start, train_lm
from truing.types import Dialogue

TALK = Dialogue().ask("How do I bake bread?").reply("Take the flour.").ask("What do I need?").reply("Take the yeast.")


def toy_lm(seed: int = 0, positions: int = 128) -> LM:
    tokenizer = word_tokenizer(WORDS)
    model = new_model(layers=2, width=32, heads=2, max_positions=positions, seed=seed, tokenizer=tokenizer)
    return LM(model, tokenizer)


def config(out: Path | None = None, **options: Any) -> Finetune:
    small: dict[str, Any] = {"init": "toy", "data": [], "batch_tokens": 400, "learning_rate": 3e-3, "max_length": 128}
    return Finetune(out=out, device="cpu", dtype="float32", threads=1, **small | options)


@pytest.mark.parametrize("replies_only", [False, True])
def test_packs_give_the_loss_and_gradient_of_single_rows(replies_only: bool):
    """Against the model's own forward, document by document; catches a shared beginning that is learned once only."""
    documents = [TALK, TALK.prompt.reply("It takes the salt."), *toy_corpus(5, 0), TALK]
    trainer = LMTrainer(config(replies_only=replies_only), start(config(), "cpu", toy_lm()), documents)
    loss, read = trainer.backward(trainer.train_set, budget=90)
    assert read < trainer.lengths.sum(), "these documents begin alike, and packs share that"
    model, rows = toy_lm().model, sequences_of(documents, toy_lm(), 128, replies_only)
    total = torch.zeros(())
    for row in rows:
        logits = model(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
        total = total - logits[row.wanted - 1, row.ids[row.wanted]].sum()
    total = total / sum(len(r.wanted) for r in rows)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), trainer.lm.model.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6), name


def test_only_replies_and_their_ends_are_learned_when_asked():
    """§20 row 11 for finetuning: no token that a person wrote, and the token after each reply."""
    lm = toy_lm()
    (row,) = sequences_of([TALK], lm, 128, True)
    words = [lm.tokenizer.decode([t]) for t in row.ids[row.wanted]]
    assert words == [" Take", " the", " flour", ".", "\n\nHuman:", " Take", " the", " yeast", ".", "<|eos|>"]
    (whole,) = sequences_of([TALK], lm, 128, False)
    assert whole.wanted.tolist() == list(range(1, len(encode(TALK, lm.tokenizer)) + 1)) and whole.ends


def test_long_texts_are_cut_into_pieces_and_every_token_is_learned_once():
    lm, text = toy_lm(), " ".join(["You need the flour and the yeast."] * 9)
    whole = [*lm.tokenizer(text)["input_ids"], lm.tokenizer.eos_token_id]
    rows = sequences_of([text], lm, 20, False)
    assert [t for r in rows for t in r.ids[r.wanted]] == whole[1:]
    assert max(len(r.ids) for r in rows) == 20 and [r.ends for r in rows] == [False] * (len(rows) - 1) + [True]


def test_long_dialogues_lose_their_beginning_and_keep_the_reply():
    lm = toy_lm()
    (short,) = sequences_of([TALK], lm, 12, False)
    (whole,) = sequences_of([TALK], lm, 128, False)
    assert short.ids.tolist() == [lm.tokenizer.bos_token_id, *whole.ids[-11:]]
    assert short.wanted.tolist() == list(range(1, 12))
    (replies,) = sequences_of([TALK], lm, 12, True)
    assert lm.tokenizer.decode(replies.ids[replies.wanted]).endswith(" yeast.<|eos|>")


def test_every_document_is_in_one_batch_of_an_epoch():
    trainer = LMTrainer(config(batch_tokens=150), start(config(), "cpu", toy_lm()), toy_corpus(60, 1))
    for epoch in (0, 1):
        batches = trainer.epoch_batches(epoch)
        assert len(batches) == trainer.steps_per_epoch > 5 and all(len(b) for b in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(60))
    assert trainer.epoch_batches(0)[0].tolist() != trainer.epoch_batches(1)[0].tolist()


def test_ends_are_learned_and_replies_come_to_an_end(tmp_path: Path):
    """Catches an EOS that is left out of the documents, or out of what is learned."""
    run = train_lm(config(tmp_path / "r", epochs=3, batch_tokens=800), dialogues=toy_corpus(700, 0), lm=toy_lm())
    assert isinstance(run, Run) and run.done
    numbers = run.summary()["numbers"]
    assert numbers["loss"]["value"] < 2.0 < numbers["init_loss"]["value"]
    assert numbers["loss"]["low"] < numbers["loss"]["value"] < numbers["loss"]["high"]
    assert numbers["end_probability"]["value"] > 0.3
    lm = LM.load(run.path)
    replies = lm.sample([Dialogue().ask("How do I bake bread?")], 20, max_tokens=60)[0]
    assert np.mean([r.finish == "stop" for r in replies]) > 0.7


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path):
    def go(name: str) -> Run:
        return train_lm(config(tmp_path / name, save_every=3, epochs=2), dialogues=toy_corpus(120, 0), lm=toy_lm())

    whole = go("whole")
    code = f"""
import os, signal, sys, torch; from pathlib import Path
torch.set_num_threads(1); sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_sft as t
step = t.LMTrainer.step
def dying(self, i):
    if i == 8: os.kill(os.getpid(), signal.SIGKILL)
    return step(self, i)
t.LMTrainer.step = dying
config = t.config(Path({str(tmp_path / "cut")!r}), save_every=3, epochs=2)
t.train_lm(config, dialogues=t.toy_corpus(120, 0), lm=t.toy_lm())
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert checkpoints(Run.load(tmp_path / "cut"))[-1].name == "checkpoint-6"
    cut = go("cut")
    weights = [LM.load(run.path).model.state_dict() for run in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    told = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()] for run in (whole, cut)]
    assert told[0] == told[1] and len(told[0]) > 12


@pytest.mark.parametrize("options", [{"frozen_layers": 1}, {"lora_rank": 4}, {"frozen_layers": 1, "lora_rank": 4}])
def test_what_is_frozen_stays_and_the_given_model_is_not_touched(options: dict[str, int], tmp_path: Path):
    lm = toy_lm()
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    run = train_lm(config(tmp_path / "r", **options), dialogues=toy_corpus(40, 0), lm=lm)
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())
    changed = {k for k, v in LM.load(run.path).model.state_dict().items() if not torch.equal(v, before[k])}
    above = ("layers.1.", "model.norm.") if "frozen_layers" in options else ("layers.",)
    assert changed and all(any(name in k for name in above) for k in changed)


def test_a_model_from_scratch_takes_its_rate_from_its_size(tmp_path: Path):
    write_rows(tmp_path / "t.jsonl", [{"text": f"def f{i}(x): return x + {i}"} for i in range(30)])
    c = config(tmp_path / "r", init="", size="20k", data=[str(tmp_path / "t.jsonl")], learning_rate=0.0)
    run = train_lm(c)
    assert run.metrics()[1]["lr"] == sft.by_size("20k").learning_rate
    assert LM.load(run.path).tokenizer("a")["input_ids"] == [256, 97]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "", "size": ""}, "neither was given"),
        ({"init": "x", "size": "1M"}, "both were given"),
        ({"init": "", "size": "big"}, "no model size"),
        ({"init": "", "size": "1M", "frozen_layers": 1}, "nothing worth freezing"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"eval_share": 1.0}, "eval_share is 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        train_lm(config(**options))


def test_rows_of_every_kind_are_read(tmp_path: Path):
    messages = TALK.to_messages()
    rows = [
        {"text": "def f(): pass"},
        {"text": "\n\nHuman: Hi\n\nAssistant: Hello"},
        {"messages": messages},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    ]
    write_rows(tmp_path / "d.jsonl", rows)
    hi = Dialogue().ask("Hi").reply("Hello")
    assert load_documents(tmp_path / "d.jsonl") == ["def f(): pass", hi, TALK, hi, hi]
    for bad, said in (({"txt": "a"}, "txt"), ({"text": " "}, "empty"), ({"prompt": "Hi"}, "needs one of"),
                      ({"messages": messages[:1]}, "no assistant turn")):  # fmt: skip
        write_rows(tmp_path / "bad.jsonl", [bad])
        with pytest.raises(DataError, match=said):
            load_documents(tmp_path / "bad.jsonl")


def test_a_pack_budget_changes_no_loss():
    trainer = LMTrainer(config(), start(config(), "cpu", toy_lm()), toy_corpus(20, 0))
    losses = [trainer.backward(trainer.train_set, budget)[0] for budget in (40, 4000)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(tree.pack([r.ids for r in trainer.train_set], 40)) > 5


@pytest.mark.parametrize("seed", range(4))
def test_no_conversation_is_both_learned_and_held_out(seed: int):
    """§20 row 27 for finetuning. Planted: rows held out at random; held-out data that is not compared with the data."""
    random = np.random.default_rng(seed)
    talks = [Dialogue().ask(f"Question {q}?").reply(f"Reply {i}.") for i, q in enumerate(random.integers(0, 15, 80))]
    train, held = sft._data(config(eval_share=0.2, seed=seed), talks, None, [])
    asked = [{d.turns[0].text for d in part} for part in (train, held)]
    assert len(train) + len(held) == 80 and all(asked) and not asked[0] & asked[1]
    notes: list[str] = []
    shared = [TALK, talks[0].prompt.reply("Another reply."), talks[1].reply("Go on.")]
    assert sft._data(config(), talks, shared, notes)[1] == shared
    count = len({talks[0].turns[0].text, talks[1].turns[0].text})
    assert notes == [f"{count} held-out documents begin like training ones: their loss is too favourable."]
