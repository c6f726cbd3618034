from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from truing.configs import PMPretrain, PMScaling, PMTrain
from truing.models import split, tree
from truing.models.draw import Trace
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel, end_of_context
from truing.models.lm import LM
from truing.train import pm_pairs
from truing.train.loop import rng
from truing.train.pm import PMTrainer, pm_loss, train_pm
from truing.train.pm_numbers import preference_numbers
from truing.train.pm_pairs import Kept, Trunk, batches, chunks, pack_sequences, tokenize
from truing.types import Comparison, Dialogue

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toy_lm(shape: str = "llama", layers: int = 2, positions: int = 1024) -> LM:
    model = new_model(shape, layers=layers, width=32, heads=2, max_positions=positions, seed=3)  # type: ignore[arg-type]
    return LM(model, byte_tokenizer(), name="toy")


def config(**options: Any) -> PMTrain:
    return PMTrain(**{"init": "toy", "data": [], **QUICK, **options})


def planted(n: int, seed: int = 0, prompts: int = 0, noise: float = 0.0) -> tuple[list[Comparison], np.ndarray]:
    """People who like good words; labels by Bradley-Terry with gaps divided by ``noise``. Also p(chosen is better)."""
    random = rng(seed, 11)
    good, bad = ["zip", "joy", "wow"], ["sad", "mud", "bah"]
    rows, best = [], []
    while len(rows) < n:
        replies, worth = [], []
        for _ in range(2):
            count = int(random.integers(0, 4))
            words = [good[i] for i in random.integers(0, 3, count)] + [bad[i] for i in random.integers(0, 3, 3 - count)]
            replies.append(" ".join(np.array(words)[random.permutation(3)]))
            worth.append(2.0 * count)
        if worth[0] == worth[1]:
            continue
        p = 1 / (1 + math.exp(-abs(worth[0] - worth[1]) / noise)) if noise else 1.0
        first = worth[0] > worth[1] if random.random() < p else worth[0] < worth[1]
        prompt = Dialogue().ask(f"q{int(random.integers(prompts)) if prompts else len(rows)}/{seed}?")
        kind = "helpful" if len(rows) % 3 else "harmless"
        rows.append(Comparison(prompt, *(replies if first else replies[::-1]), kind=kind, id=str(len(rows))))  # type: ignore[arg-type]
        best.append(p)
    return rows, np.array(best)


def trainer(rows: list[Comparison], held_out: list[Comparison] = [], lm: LM | None = None, **options: Any) -> PMTrainer:  # noqa: B006
    from truing.train.pm_setup import start

    c = config(**options)
    return PMTrainer(c, start(c, torch.device("cpu"), lm or toy_lm()), rows, held_out)


def gradients(t: PMTrainer, batch: np.ndarray) -> dict[str, torch.Tensor]:
    t.optimizer.zero_grad(set_to_none=True)
    t.backward(batch)
    return {n: p.grad.clone() for n, p in t.pm.named_parameters() if p.grad is not None}


# The loss and its gradient


def test_loss_against_numbers_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
    assert pm_loss(chosen, rejected).item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 2)
    assert pm_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == 2e4, "no overflow"


@pytest.mark.parametrize("shape", ["llama", "neox", "gpt2"])
def test_loss_at_the_start_is_ln_2(shape: str) -> None:
    rows, _ = planted(64)
    t = trainer(rows, lm=toy_lm(shape))
    assert t.backward(np.arange(64))[0] == pytest.approx(math.log(2), abs=0.02)


def test_packs_stay_small_on_a_cpu_unless_told_otherwise() -> None:
    """There attention pays for masked-out places too. Planted: one budget for every device."""
    rows, _ = planted(12, prompts=4)
    assert trainer(rows).budget == 512 and trainer(rows, tokens_per_pack=900).budget == 900
    assert tree.pack_budget("cuda") == 2048


def test_packed_gradient_equals_one_pair_at_a_time_and_one_batch() -> None:
    rows, _ = planted(12, prompts=4)
    t = trainer(rows, tokens_per_pack=10**6)
    batch = np.arange(12)
    assert len(chunks(t.pairs, batch, 10**6)) == 1 and len(chunks(t.pairs, batch, 60)) > 3
    whole = gradients(t, batch)
    t.budget = 60
    parts = gradients(t, batch)
    t.optimizer.zero_grad(set_to_none=True)
    ids = [[torch.tensor(t.pm.pm_ids(d))[None] for d in (c.chosen_dialogue, c.rejected_dialogue)] for c in rows]
    alone = [[t.pm.head(t.pm.backbone(input_ids=i).last_hidden_state[0, -1]) for i in pair] for pair in ids]
    torch.stack([nn.functional.softplus(b - a) for a, b in alone]).mean().backward()
    for name, p in t.pm.named_parameters():
        scale = p.grad.abs().max()  # type: ignore[union-attr]
        assert (whole[name] - p.grad).abs().max() <= 1e-4 * scale, name
        assert (parts[name] - p.grad).abs().max() <= 1e-4 * scale, name


def test_a_long_prompt_loses_its_beginning_never_the_reply() -> None:
    long = Dialogue().ask("x" * 2000)
    t = trainer([Comparison(long, "fine", "awful")], max_length=300)
    chosen, rejected = (t.pairs.sequences[i] for i in (t.pairs.chosen[0], t.pairs.rejected[0]))
    assert len(chosen) == len(rejected) == 300 and chosen[0] == 256 and chosen[-1] == t.pm.eoc_id
    assert bytes(chosen[-6:-1].tolist()) == b" fine" and bytes(rejected[-7:-1].tolist()) == b" awful"
    _, gaps, _ = t.backward(np.array([0]))
    assert gaps[0] != 0 and any(p.grad is not None and p.grad.abs().sum() > 0 for p in t.pm.backbone.parameters())


# Batches, packs, trunk


def test_batches_keep_prompts_together_and_follow_from_seed_and_epoch() -> None:
    rows, _ = planted(50, prompts=9)
    pairs = tokenize(rows, toy_ids)
    first = batches(pairs, 16, 0, 0)
    assert [len(b) for b in first] == [16, 16, 16, 2] and sorted(np.concatenate(first)) == list(range(50))
    line = [rows[i].prompt for i in np.concatenate(first)]
    changes = sum(a != b for a, b in zip(line, line[1:], strict=False))
    assert changes == len({c.prompt for c in rows}) - 1, "pairs of a prompt stand side by side"
    again, other = batches(pairs, 16, 0, 0), batches(pairs, 16, 0, 1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def toy_ids(dialogue: Dialogue) -> list[int]:
    return list("|".join(t.text for t in dialogue.turns).encode()) + [300]


def test_a_reply_in_many_pairs_is_read_once_and_packs_keep_to_the_budget() -> None:
    ask = Dialogue().ask("a long enough prompt")
    replies = [f"reply {i}" for i in range(5)]
    rows = [Comparison(ask, a, b) for a in replies for b in replies if a < b]
    pairs = tokenize(rows, toy_ids)
    assert len(pairs) == 10 and len(pairs.sequences) == 5
    (pack,) = pack_sequences(pairs.sequences, range(5))
    assert len(pack) == len("a long enough prompt|reply ") + 5 * 2, "prompt and common beginning once"
    many, _ = planted(60, prompts=12)
    pairs = tokenize(many, toy_ids)
    found = chunks(pairs, np.arange(60), 50)
    assert np.concatenate(found).tolist() == list(range(60)), "no pair lost, none twice"
    for chunk in found:
        members = list({*pairs.chosen[chunk].tolist(), *pairs.rejected[chunk].tolist()})
        (pack,) = pack_sequences(pairs.sequences, members)
        assert len(pack) <= 50 and sorted(pack.members) == sorted(members)


def test_frozen_states_are_those_of_the_model_and_train_the_top_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = planted(16, prompts=5)
    said: list[str] = []
    lm = toy_lm(layers=3)
    t = trainer(rows, lm=lm, frozen_layers=2, tokens_per_pack=80, batch_size=16)
    for chunk in chunks(t.pairs, np.arange(16), 80):
        members = list(dict.fromkeys([*t.pairs.chosen[chunk], *t.pairs.rejected[chunk]]))
        (pack,) = pack_sequences(t.pairs.sequences, members)
        assert (t.trunk.states(pack) - t.trunk.compute(pack)).abs().max() < 1e-5  # type: ignore[operator]
    kept = gradients(t, np.arange(16))
    assert kept and all("layers.2" in n or n in ("backbone.norm.weight", "head.weight") for n in kept)
    monkeypatch.setattr(pm_pairs, "free_memory", lambda: 1000)
    t.trunk = Trunk(t.pm.backbone, 2, t.pairs.sequences, 80, say=said.append)
    assert not t.trunk.kept and "do not fit" in said[0]
    for name, gradient in gradients(t, np.arange(16)).items():
        assert torch.allclose(gradient, kept[name], atol=1e-5), name
    before = {n: p.clone() for n, p in t.pm.named_parameters()}
    t.step(0)
    changed = {n for n, p in t.pm.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(kept)
    assert t.state["model"].state_dict().keys() == set(kept), "the trunk stays out of checkpoints"


# Training


def test_it_overfits_32_pairs() -> None:
    rows = [Comparison(Dialogue().ask(f"q{i}"), f"{i * 7919 % 97}", f"{i * 104729 % 89}!") for i in range(32)]
    rows = [c if i % 2 else Comparison(c.prompt, c.rejected, c.chosen) for i, c in enumerate(rows)]
    t = trainer(rows, learning_rate=3e-3, epochs=150, tokens_per_pack=256)
    found = (t.step(step) for step in range(150))
    assert any(row["accuracy"] == 1.0 and row["loss"] < 0.2 for row in found)


def test_a_planted_preference_is_learned_to_95_percent_of_the_bayes_rate(tmp_path: Path) -> None:
    rows, _ = planted(600, noise=1.5)
    test, best = planted(300, seed=1, noise=1.5)
    options = {"learning_rate": 3e-3, "schedule": "linear", "epochs": 2, "batch_size": 30, "tokens_per_pack": 512}
    run = train_pm(config(out=tmp_path / "pm", **options), comparisons=rows, eval_comparisons=test, lm=toy_lm())
    numbers = run.summary()["numbers"]
    accuracy, bayes = numbers["accuracy"]["value"], best.mean()
    assert 0.8 < bayes < 0.97, "labels are noisy"
    assert accuracy >= 0.95 * bayes
    assert numbers["init_loss"]["value"] == pytest.approx(math.log(2), abs=0.03)
    assert numbers["loss"]["value"] < 0.6 and numbers["train_loss"]["value"] < 0.6
    assert numbers["accuracy/helpful"]["n"] + numbers["accuracy/harmless"]["n"] == numbers["accuracy"]["n"] == 300
    saved = PreferenceModel.load(run.path)
    replies = [d for c in test for d in (c.chosen_dialogue, c.rejected_dialogue)]
    zero = numbers["reference_mean"]["value"]
    assert saved.reference_mean == zero and abs(zero) > 0.01, "scores are centred on the held-out replies"
    assert saved.score(replies, centred=False).mean() == pytest.approx(zero, abs=1e-3)
    assert saved.score(replies).mean() == pytest.approx(0, abs=1e-3)
    gaps = saved.score([c.chosen_dialogue for c in test]) - saved.score([c.rejected_dialogue for c in test])
    assert np.mean(gaps > 0) == pytest.approx(accuracy, abs=0.004), "the saved model is the evaluated one"
    epochs = [row["step"] for row in run.metrics() if "eval_ece" in row]
    assert epochs == [0, 20, 40] and any("2 passes" in note for note in run.summary()["notes"])


def small(out: Path, kill_at: int = 0, **options: Any) -> Any:
    """A run that kills its process after optimiser step ``kill_at``."""
    rows, _ = planted(40, prompts=9)
    real = torch.optim.AdamW.step
    count = [0]

    def step(self: Any, *given: Any) -> Any:
        result = real(self, *given)
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    given: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 2, "save_every": 3, **options}
    try:
        return train_pm(config(out=out, **given), comparisons=rows, lm=toy_lm())
    finally:
        torch.optim.AdamW.step = real  # type: ignore[method-assign]


def weights(run: Any) -> str:
    return hashlib.sha256((run.path / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("frozen", [0, 1])
def test_killed_and_resumed_ends_with_the_weights_and_numbers_of_an_uninterrupted_run(
    tmp_path: Path, frozen: int
) -> None:
    whole = small(tmp_path / "whole", frozen_layers=frozen)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            small(tmp_path / "cut", kill_at=5, frozen_layers=frozen)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "cut" / "summary.json").exists()
    cut = small(tmp_path / "cut", frozen_layers=frozen)
    assert weights(cut) == weights(whole)
    assert cut.summary()["numbers"] == whole.summary()["numbers"]
    assert [r["step"] for r in cut.metrics()] == [r["step"] for r in whole.metrics()]
    assert small(tmp_path / "cut", kill_at=1, frozen_layers=frozen).done, "a finished run is returned"


def test_bfloat16_runs_under_autocast_and_keeps_float32_weights(tmp_path: Path) -> None:
    run = small(tmp_path / "low", dtype="bfloat16", frozen_layers=1, epochs=1)
    same = small(tmp_path / "full", frozen_layers=1, epochs=1)
    assert next(PreferenceModel.load(run.path).parameters()).dtype == torch.float32
    low, full = (r.summary()["numbers"]["init_loss"]["value"] for r in (run, same))
    assert low != full and low == pytest.approx(full, abs=0.01)


def test_going_on_from_a_preference_model_keeps_its_head_and_token(tmp_path: Path) -> None:
    first = small(tmp_path / "first")
    rows, _ = planted(8, seed=5)
    c = config(init=str(first.path), out=tmp_path / "second", learning_rate=1e-9, eval_share=0.0)
    second = train_pm(c, comparisons=rows)
    a, b = PreferenceModel.load(first.path), PreferenceModel.load(second.path)
    assert torch.allclose(a.head.weight, b.head.weight, atol=1e-6) and a.eoc_id == b.eoc_id
    numbers, notes = second.summary()["numbers"], second.summary()["notes"]
    assert numbers["accuracy"]["value"] is None and any("Nothing was held out" in note for note in notes)


def test_max_time_leaves_a_model_and_a_partial_summary(tmp_path: Path) -> None:
    run = small(tmp_path / "r", max_time=0.0)
    assert not run.done and run.summary()["numbers"]["accuracy"]["value"] is not None
    assert any("Stopped after step 0 of 10" in note for note in run.summary()["notes"])
    assert (run.path / "model" / "config.json").exists()
    assert small(tmp_path / "r").done and not (run.path / "partial.json").exists()


# Options and data


def test_defaults_are_the_papers_one_pass() -> None:
    """Row 31: of preference models of people's comparisons, of other data, and of every size of a scaling study."""
    for options in (PMTrain, PMPretrain, PMScaling):
        assert {f.name: f.default for f in dataclasses.fields(options)}["epochs"] == 1
    assert (config().epochs, config().max_length) == (1, 1024)


def test_dry_run_says_tokens_time_and_memory_and_makes_no_run(tmp_path: Path) -> None:
    rows, _ = planted(40, prompts=4)
    found = train_pm(config(dry_run=True, frozen_layers=1), comparisons=rows, lm=toy_lm())
    said = " ".join(found["lines"])  # type: ignore[index]
    assert all(word in said for word in ("tokens", "seconds on cpu", "GiB", "frozen states", "steps"))
    assert not (tmp_path / "runs").exists()


def test_unsure_and_identical_pairs_are_left_out_and_counted() -> None:
    rows, _ = planted(20)
    rows[3] = Comparison(rows[3].prompt, "a", "b", strength=1)
    rows[4] = Comparison(rows[4].prompt, "same", "same")
    run = train_pm(config(batch_size=4), comparisons=rows, lm=toy_lm())
    numbers, notes = run.summary()["numbers"], " ".join(run.summary()["notes"])
    assert numbers["train_pairs"]["value"] + numbers["accuracy"]["n"] == 18
    assert "1 unsure (strength 1) and 1 identical" in notes


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "There are no comparisons"),
        ([Comparison(Dialogue().ask("q"), "a", "b", strength=1)] * 2, {}, "None of 2 .* 2 have strength 1"),
        ([Comparison(Dialogue().ask("x" * 600), "a", "b")], {"max_length": 1024}, "this model reads 256 tokens"),
        ([Comparison(Dialogue().ask("q"), "a", "b")], {"frozen_layers": 3}, "Cannot freeze 3 layers"),
        ([Comparison(Dialogue().ask("q"), "a", "b")], {"epochs": 0}, "epochs is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_trained_is_said(rows: list[Comparison], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_pm(config(**options), comparisons=rows, lm=toy_lm(positions=256))


def test_held_out_conversations_that_were_trained_on_are_noted() -> None:
    rows, _ = planted(12)
    run = train_pm(config(), comparisons=rows, eval_comparisons=rows[:3], lm=toy_lm())
    assert any("3 of 3 held-out comparisons begin like a training one" in note for note in run.summary()["notes"])


def test_it_reads_files_and_writes_what_the_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = planted(30)
    lm = toy_lm()
    lm.model.save_pretrained("lm")
    lm.tokenizer.save_pretrained("lm")
    lines = [{"prompt": c.prompt.turns[0].text, "chosen": c.chosen, "rejected": c.rejected} for c in rows]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    run = train_pm(config(init="lm", data=["c.jsonl"], eval_share=0.3))
    assert run.path.name.startswith("pm-train-lm-") and (run.path / "reliability.csv").exists()
    first = json.loads((run.path / "samples.jsonl").read_text().splitlines()[0])
    assert {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"} <= first.keys()
    said = capsys.readouterr().err
    assert "Held-out accuracy" in said and "helpful" in said and "(n = " in said


# Numbers


def test_numbers_of_score_gaps_by_hand() -> None:
    ask = [Dialogue().ask(str(i)) for i in range(4)]
    rows = [Comparison(ask[0], "longer", "short"), Comparison(ask[1], "a", "bb", kind="harmless")]
    rows += [Comparison(ask[2], "same", "size", kind="harmless"), Comparison(ask[3], "x", "yy")]
    numbers = preference_numbers(np.array([2.0, -1.0, 0.0, 800.0]), rows)

    def value(name: str) -> float:
        found = numbers[name].value
        assert found is not None
        return found

    assert value("accuracy") == 0.625 and (value("accuracy/helpful"), value("accuracy/harmless")) == (1.0, 0.25)
    assert value("longer_wins") == 0.25 and value("shorter_wins") == 0.5
    sigmoid = [1 / (1 + math.exp(-g)) for g in (2.0, -1.0, 0.0)] + [1.0]
    assert value("brier") == pytest.approx(np.mean([(1 - p) ** 2 for p in sigmoid]))
    assert value("loss") == pytest.approx(np.mean([-math.log(p) for p in sigmoid]))
    assert numbers["accuracy/harmless"].n == 2 and numbers["ece_null_95"].low is None


def test_what_a_trunk_has_read_is_not_read_again_and_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the states handed on ignored; those of another model, or of another depth, taken."""
    rows, _ = planted(16, prompts=5)
    pm, kept = PreferenceModel.new(toy_lm(layers=3), frozen_layers=2), Kept()
    t = PMTrainer(config(frozen_layers=2, tokens_per_pack=80, batch_size=16), pm, rows, kept=kept)
    (pack,) = pack_sequences(t.pairs.sequences, [2, 0])
    wanted = t.trunk.compute(pack)
    monkeypatch.setattr(Trunk, "compute", lambda self, pack: pytest.fail("read a second time"))
    again = Trunk(t.pm.backbone, 2, t.pairs.sequences[:3], 80, kept=kept)
    assert (again.states(pack) - wanted).abs().max() < 1e-5  # type: ignore[operator]
    model = new_model("llama", layers=3, width=32, heads=2, max_positions=1024, seed=5)
    other = PreferenceModel.new(LM(model, byte_tokenizer()), frozen_layers=2)
    for model, k in ((other.backbone, 2), (t.pm.backbone, 1)):
        with pytest.raises(ValueError, match="read by another trunk"):
            Trunk(model, k, t.pairs.sequences, 80, kept=kept)
    assert not Trunk(other.backbone, 0, t.pairs.sequences, 80, kept=kept).kept


def test_what_sampling_has_read_no_trunk_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the states of another reply, those of a reply without its end of context, a file that loses some."""
    sizes = {"layers": 3, "width": 32, "heads": 2, "vocab_size": 300}
    lm = LM(new_model("llama", **sizes), byte_tokenizer())  # type: ignore[arg-type]
    pm, kept = PreferenceModel.new(lm, frozen_layers=2), Kept()
    assert pm.eoc_id == end_of_context(lm) < 300
    asks = [Dialogue().ask(text) for text in ("one", "one two", "three")]
    for seed in (3, 4):
        trace = Trace(2, (end_of_context(lm),))
        lm.sample(asks[seed - 3 :], 3, max_tokens=6, seed=seed, trace=trace)
        assert len(trace.found) == 3 * len(asks[seed - 3 :])
        kept.learn(trace, lm.model)
    kept.save(tmp_path / "states")
    kept = Kept.load(tmp_path / "states", lm.model, 2)
    assert len(kept.states) == 15 and (tmp_path / "states").stat().st_size < 15 * 30 * 32 * 4
    sequences = [np.frombuffer(name, dtype=np.int64) for name in kept.states]
    assert all(s[-1] == pm.eoc_id for s in sequences)
    (pack,) = pack_sequences(sequences, range(15))
    wanted = split.trunk_states(pm.backbone, pack, 2)
    monkeypatch.setattr(Trunk, "compute", lambda self, pack: pytest.fail("read a second time"))
    trunk = Trunk(pm.backbone, 2, sequences, 80, kept=kept)
    assert (trunk.states(pack) - wanted).abs().max() < 1e-5  # type: ignore[operator]
    kept.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "states").read_bytes()
    assert not Kept.load(tmp_path / "states", lm.model, 1).states, "states of another depth are none of this trunk's"


def test_running_out_of_memory_changes_neither_gradients_nor_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: the gradients of the packs that fitted are kept and added again."""
    wanted = small(tmp_path / "whole")
    capsys.readouterr()
    plain, sizes = PMTrainer.scores, []

    def scores(self: PMTrainer, pack: Any) -> torch.Tensor:
        sizes.append(len(pack))
        if len(pack) > 200 and len(sizes) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return plain(self, pack)

    monkeypatch.setattr(PMTrainer, "scores", scores)
    found = small(tmp_path / "tight")
    said = capsys.readouterr().err
    assert max(sizes) > 200 and "going on with" in said and max(sizes[-5:]) <= 200
    assert "training with" in said or "scoring" in said
    for one, two in zip(wanted.metrics(), found.metrics(), strict=True):
        for name in one.keys() - {"seconds", "tokens"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), name


def test_other_errors_of_a_step_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def scores(self: PMTrainer, pack: Any) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PMTrainer, "scores", scores)
    with pytest.raises(RuntimeError, match="shapes"):
        small(tmp_path / "r")
    assert len(calls) == 1
