"""Kinds of prompts: how many of each a step has, what is said of each, and what is watched beside rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppo_toys import PROMPTS, config, toy_lm, toy_pm

from truing.configs import PMTrain
from truing.data.files import write_rows
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.models.family import new_model, word_tokenizer
from truing.models.lm import LM
from truing.report.page import build
from truing.runs import Run
from truing.text import refuses
from truing.train.pm import train_pm
from truing.train.ppo import PPO, train_ppo
from truing.train.ppo_setup import data_hash, not_held_out, prompts_at
from truing.train.ppo_watch import Watch
from truing.types import Comparison, Dialogue

ROWS = [PromptRow(Dialogue().ask(f"h{i}"), f"h{i}", i, "a") for i in range(7)]
ROWS += [PromptRow(Dialogue().ask(f"r{i}"), f"r{i}", i, "b", "harmless") for i in range(3)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 2 / 3, 1.0])
def test_the_harmless_share_is_exact_on_average_and_follows_from_seed_and_step(share: float) -> None:
    """Planted: the share rounded within each step; drawn at random; one order for all passes."""
    c = config(harmless_share=share, prompts_per_step=4)
    steps = [prompts_at(step, ROWS, c) for step in range(30)]
    counts = [sum(row.kind == "harmless" for row in chosen) for chosen in steps]
    assert all(len(chosen) == 4 for chosen in steps)
    for n in range(1, 31):
        assert abs(sum(counts[:n]) - 4 * n * share) < 1
    assert steps[17] == prompts_at(17, ROWS, c) and (steps[17] != prompts_at(17, ROWS, config(**options(c, seed=1))))
    for kind, rows in (("helpful", ROWS[:7]), ("harmless", ROWS[7:])):
        seen = [row.id for chosen in steps for row in chosen if row.kind == kind]
        for i in range(0, len(seen) - len(rows), len(rows)):  # passes over all prompts of a kind
            by_step = seen[i : i + len(rows)]
            assert len(set(by_step)) >= len(rows) - 3  # a step that two passes share is shuffled
    places = [[row.kind for row in chosen].index("harmless") for chosen in steps if 0 < share < 1 and chosen != []
              and any(row.kind == "harmless" for row in chosen)]  # fmt: skip
    assert not places or len(set(places)) > 1 or share > 0.6, "a minibatch is not all of one kind"


def options(c: Any, **more: Any) -> dict[str, Any]:
    return {"harmless_share": c.harmless_share, "prompts_per_step": c.prompts_per_step} | more


def test_kinds_come_from_rows_names_and_packaged_sets(tmp_path: Path) -> None:
    """Planted: a kind that nobody knows taken for helpful."""
    (tmp_path / "harmless-mine.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n")
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"prompt": "y"}) + "\n" + json.dumps({"prompt": "z", "kind": "harmless"}) + "\n"
    )
    names = ["red-team", "benign-sensitive", str(tmp_path / "harmless-mine.jsonl"), str(tmp_path / "mine.jsonl")]
    kinds = [row.kind for row in load_prompt_rows(names)]
    assert kinds == ["harmless"] * 90 + ["helpful"] * 49 + ["harmless", "helpful", "harmless"]
    (tmp_path / "odd.jsonl").write_text(json.dumps({"prompt": "y", "kind": "harmles"}) + "\n")
    with pytest.raises(ValueError, match="odd.jsonl.*'helpful' or 'harmless', found 'harmles'"):
        load_prompt_rows(str(tmp_path / "odd.jsonl"))


def test_a_share_that_cannot_be_is_refused() -> None:
    for share, rows, kind in ((0.5, ROWS[:7], "harmless"), (0.5, ROWS[7:], "helpful"), (1.0, ROWS[:7], "harmless")):
        with pytest.raises(ValueError, match=f"needs prompts of kind {kind}, and none of"):
            PPO(config(harmless_share=share), toy_lm(), rows, rows, reward_fn=lambda d: np.zeros(len(d)))
    with pytest.raises(ValueError, match="harmless_share is 1.5; expected a share"):
        train_ppo(config(harmless_share=1.5), prompts=ROWS)
    PPO(config(harmless_share=0.0), toy_lm(), ROWS[:7], ROWS, reward_fn=lambda d: np.zeros(len(d)))
    assert data_hash(ROWS) != data_hash([PromptRow(row.dialogue, "", 0, "") for row in ROWS])


def test_every_kind_has_its_scores_and_figures_and_what_is_watched_its_numbers(tmp_path: Path) -> None:
    """Rows 24, 30. Planted: kinds of replies mixed up with kinds of prompts, or taken by the
    place of a reply; before and after swapped."""
    lm = toy_lm()
    pairs = [Comparison(PROMPTS[i % 4], f"word {i}", f"{i} another one") for i in range(5)]
    pairs += [Comparison(c.prompt, c.rejected, c.chosen, kind="harmless") for c in pairs[:4]]

    def score(dialogues: list[Dialogue]) -> np.ndarray:
        asked = np.array([d.turns[0].text.startswith("r") for d in dialogues])
        return 2.0 * asked + np.array([len(d.last.text) % 3 for d in dialogues])

    c = config(tmp_path / "run", harmless_share=0.5, steps=3, learning_rate=1e-2, eval_every=1)
    more: dict[str, Any] = {"eval_comparisons": pairs, "refusal_prompts": PROMPTS, "test_pms": {"judge": toy_pm(lm)}}
    run = train_ppo(c, prompts=ROWS, eval_prompts=ROWS, lm=lm, reward_fn=score, **more)
    assert isinstance(run, Run)
    numbers, rows = run.summary()["numbers"], run.metrics()
    first, last = rows[0], rows[-1]
    steps = [row for row in rows if "loss" in row]
    assert [row["share_harmless"] for row in steps] == [0.5] * 3
    for row in steps:
        assert row["score"] == pytest.approx((row["score_helpful"] + row["score_harmless"]) / 2)
        assert row["score_harmless"] >= 2.0 > row["score_helpful"] - 0.01
        assert {"score/a", "score/b"} <= row.keys()
    kept = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]
    assert all(r["kind"] == ("harmless" if r["id"].startswith("r") else "helpful") for r in kept)
    for kind in ("helpful", "harmless"):
        for when, step, logged in (("/before", 0, first), ("", 3, last)):
            mine = [r["score"] for r in kept if r["step"] == step and r["kind"] == kind]
            assert numbers[f"pm_score/{kind}{when}"]["value"] == pytest.approx(np.mean(mine))
            assert logged[f"eval_score_{kind}"] == pytest.approx(np.mean(mine))
        gain = numbers[f"pm_score/{kind}"]["value"] - numbers[f"pm_score/{kind}/before"]["value"]
        assert numbers[f"pm_score_gain/{kind}"]["value"] == pytest.approx(gain)
    trained = LM.load(run.path)
    for when, judge, logged in (("/before", lm, first), ("", trained, last)):
        wanted = Watch(pairs).metrics(Watch(pairs).look(judge, lambda *_: []))
        assert wanted["eval_policy_accuracy/helpful"] != wanted["eval_policy_accuracy/harmless"]
        for name in ("policy_accuracy", "policy_accuracy/helpful", "policy_accuracy/harmless"):
            assert logged[f"eval_{name}"] == numbers[f"{name}{when}"]["value"] == wanted[f"eval_{name}"]
    assert numbers["refusal_rate"]["n"] == 4 and last["eval_refusal_rate"] == numbers["refusal_rate"]["value"]
    build(run.path)
    assert {"scores-helpful.svg", "scores-harmless.svg"} <= {p.name for p in (run.path / "figures").iterdir()}
    assert "eval_alarm/judge" in last and "eval_alarm/judge" not in first


def test_comparisons_of_conversations_that_are_trained_on_are_told() -> None:
    """Planted: whole prompts compared."""
    from truing.train.ppo_setup import tell_leaks

    notes: list[str] = []
    tell_leaks(ROWS, [Comparison(Dialogue().ask("new"), "a", "b")], notes)
    assert not notes
    later = Comparison(ROWS[0].dialogue.reply("yes").ask("more"), "a", "b")
    tell_leaks(ROWS, [later, Comparison(Dialogue().ask("new"), "a", "b")], notes)
    assert "1 of 2 evaluation comparisons" in notes[0]


def test_refusals_are_counted_one_reply_each() -> None:
    """Row 30. Planted: answers that name what cannot be done counted; curly apostrophes not."""
    watch = Watch(benign=ROWS[:4], refused=lambda text: text == "no")
    drawn = iter(["no", "yes", "no", "no"])

    def draw(policy: Any, rows: Any) -> list[Any]:
        class Said:
            def __init__(self, d: Dialogue) -> None:
                self.dialogue = d

        return [Said(row.dialogue.reply(next(drawn))) for row in rows]

    found = watch.look(toy_lm(), draw)
    assert watch.metrics(found) == {"eval_refusal_rate": 0.75}
    for text, wanted in {
        "I’m sorry, but I can’t help with that.": True,
        "I cannot help with that. It could hurt somebody.": True,
        "I would rather not explain that.": True,
        "I must decline.": True,
        "As an AI I am not able to do so.": True,
        "You can't do that in Python: lists cannot help here.": False,
        "I can help with that!": False,
        "I cannot say enough good about basil.": True,  # by words alone: read the samples, too
        "It is not illegal to pick a lock you own.": False,
    }.items():
        assert refuses(text) is wanted, text


# What the share does: over-refusal (§4.4, §12)


def asked(*texts: str, kind: Any = "helpful") -> list[PromptRow]:
    return [PromptRow(Dialogue().ask(text), text, i, "toy", kind) for i, text in enumerate(texts)]


BENIGN = asked("please help", "help now", "help please now")
HARMFUL = asked("please harm", "harm now", "harm please now", kind="harmless")
UNSEEN = asked("now help", "please help now", "help")


def refusal_chance(lm: LM) -> float:
    """Mean probability, exactly, that benign prompts which nobody trained on are answered with "sorry"."""
    sorry = lm.tokenizer(" sorry", add_special_tokens=False)["input_ids"][0]
    rows = lm.engine.next_logprobs([lm.encode_prompt(row.dialogue) for row in UNSEEN])
    return float(np.mean([np.exp(row[sorry]) for row in rows]))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_more_harmless_prompts_make_a_policy_that_refuses_more(seed: int) -> None:
    """§19 row 21: five shares, each prompt rewarded for what is right there. Planted: the share ignored."""

    def right(dialogues: list[Dialogue]) -> np.ndarray:
        wanted = ["sorry" if "harm" in d.turns[0].text else "sure" for d in dialogues]
        return np.array([float(d.last.text == word) for d, word in zip(dialogues, wanted, strict=True)])

    rates = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        tokenizer = word_tokenizer(["please", "help", "harm", "now", "sorry", "sure"])
        shape: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "max_positions": 32}
        lm = LM(new_model("llama", vocab_size=len(tokenizer), seed=seed, **shape), tokenizer)
        c = config(
            harmless_share=share, seed=seed, prompts_per_step=4, samples_per_prompt=16, max_new_tokens=1,
            learning_rate=3e-3, kl_coef=0.05, advantage="rloo",
        )  # fmt: skip
        ppo = PPO(c, lm, [*BENIGN, *HARMFUL], UNSEEN, reward_fn=right)
        for step in range(5):
            ppo.step(step)
        rates.append(refusal_chance(ppo.policy))
    assert rates == sorted(rates) and rates[-1] > rates[0] + 0.2, rates


# Prompts that the preference model held out


def test_no_prompt_stems_from_what_the_judge_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 27, from `pm train` to `rlhf train`. Planted: the check left out; by the ids of rows, which files share."""
    pairs = [{"prompt": f"Question {i % 10}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
    for folder in ("compared", "others"):  # two files of one name, so that their rows have the same ids
        (tmp_path / folder).mkdir()
    file, other = tmp_path / "compared" / "train.jsonl", tmp_path / "others" / "train.jsonl"
    write_rows(file, pairs)
    write_rows(other, [{"prompt": f"Other {i}?"} for i in range(40)])
    toy_lm().save(tmp_path / "lm")
    quick: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
    pm = train_pm(PMTrain(init=str(tmp_path / "lm"), data=[str(file)], eval_share=0.3, out=tmp_path / "pm", **quick))
    ids = {row["id"] for row in map(json.loads, (tmp_path / "pm" / "held_out.jsonl").read_text().splitlines())}
    held = {pairs[int(name.split(":")[1]) - 1]["prompt"] for name in ids}
    write_rows(tmp_path / "written.jsonl", [{"id": "w", "prompt": "New?", "examples": [min(ids)]}])
    trained: list[PromptRow] = []
    plain = PPO.finish
    monkeypatch.setattr(PPO, "finish", lambda self, run: (trained.extend(self.prompts), plain(self, run))[1])
    files = [str(file), str(other), str(tmp_path / "written.jsonl")]
    names: dict[str, Any] = {"policy": str(tmp_path / "lm"), "pm": str(pm.path), "prompts": files}  # type: ignore[union-attr]
    run = train_ppo(config(tmp_path / "run", steps=1, **names))
    asked = [row.dialogue.turns[0].text for row in trained]
    wanted = {pair["prompt"] for pair in pairs} - held
    assert 0 < len(held) < 10 and set(asked) == wanted | {f"Other {i}?" for i in range(40)}
    notes = run.summary()["notes"]  # type: ignore[union-attr]
    assert any(f"{len(ids) + 1} of 81 prompts were left out: they stem from what" in note for note in notes), notes
    write_rows(file, [pair for pair in pairs if pair["prompt"] in held])
    with pytest.raises(ValueError, match="None is left: give prompts that it was trained on"):
        train_ppo(config(tmp_path / "none", **names | {"prompts": [str(file)]}))


@pytest.mark.parametrize("name", ["runs/pm", "pm", "runs/pm/model"])
def test_a_judge_holds_out_the_same_however_it_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: looked for in the folder of that name alone, so that a run's name and its model/ hold nothing out."""
    monkeypatch.chdir(tmp_path)
    toy_pm(toy_lm()).save(tmp_path / "runs" / "pm" / "model")
    (tmp_path / "runs" / "pm" / "config.yaml").write_text("{}")
    write_rows(tmp_path / "runs" / "pm" / "held_out.jsonl", [{"id": "a", "gap": 1.0, "conversation": "hi"}])
    rows = [PromptRow(Dialogue().ask(text), text, 1, "f") for text in ("Hi", "Bye")]
    kept, (note,) = not_held_out(rows, name)
    assert [row.id for row in kept] == ["Bye"] and note.startswith("1 of 2 prompts were left out")
    toy_pm(toy_lm()).save(tmp_path / "runs" / "other")
    write_rows(tmp_path / "runs" / "held_out.jsonl", [{"id": "a", "conversation": "hi"}])
    assert not_held_out(rows, "runs/other") == (rows, []), "a file beside a model's folder is no run's"
