"""Every command on tiny models: what it reads, prints and leaves, as docs/cli.md and docs/metrics.md say."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing import cli
from truing.data import sandbox
from truing.data.code_tasks import task_to_row
from truing.data.easy_functions import easy_tasks
from truing.measure import score as scoring
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM

SCRIPT = Path(sys.executable).parent / "truing"
METRICS = Path(__file__).parents[1] / "docs" / "metrics.md"
QUICK = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
Call = Callable[..., tuple[int, str, str]]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def comparisons(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Replies that say yes are preferred to those that say no."""
    ask = "\n\nHuman: Is {} even?\n\nAssistant:"
    return [
        {"id": f"c{i}", "prompt": ask.format(i + 1000 * seed), "chosen": f" yes {i}", "rejected": f" no {i} no"}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``lm`` (two layers, bytes) and ``pm`` (the same with a head)."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = family.byte_tokenizer()
    size = {"layers": 2, "width": 32, "heads": 2, "max_positions": 512, "seed": 0}
    family.new_model("llama", vocab_size=len(tokenizer), **size).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    PreferenceModel.new(LM.load(str(root / "lm")), seed=0).save(root / "pm")
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], here: Path) -> Call:
    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return (code, *capsys.readouterr())

    return run


def parsed(answer: tuple[int, str, str]) -> list[dict[str, Any]]:
    assert answer[0] == 0, answer[2]
    return [json.loads(line) for line in answer[1].splitlines()]


# ---------------------------------------------------------------- docs/metrics.md


def documented(verb: str, kind: str) -> dict[str, bool]:
    """Names in one table of docs/metrics.md, as patterns; True: always there."""
    text = METRICS.read_text(encoding="utf-8")
    section = re.search(rf"^## {verb}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, f"docs/metrics.md has no section '{verb}'"
    if same := re.search(r"^Numbers and log are those of `([a-z ]+)`", section[1].strip()):
        return documented(same[1], kind)
    table = re.search(rf"^### {kind}\n(.*?)(?=^### |\Z)", section[1], re.M | re.S)
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| (.*) \|$", table[1] if table else "", re.M)
    return {re.sub(r"\b[A-Z]{2,}\b", ".+", re.escape(name)): "*(only" not in about for name, about in rows}


def check_names(verb: str, kind: str, found: set[str]) -> None:
    known = documented(verb, kind)
    unknown = [name for name in sorted(found) if not any(re.fullmatch(p, name) for p in known)]
    assert unknown == [], f"`{verb}` gives these and docs/metrics.md does not define them"
    missing = [p for p, always in known.items() if always and not any(re.fullmatch(p, name) for name in found)]
    assert missing == [], f"docs/metrics.md defines these for `{verb}`, which does not give them"


def check_run(path: Path, verb: str) -> dict[str, Any]:
    """A finished run's files, and its numbers against the docs. Returns the numbers."""
    summary = json.loads((path / "summary.json").read_text())
    assert summary["verb"] == verb and set(summary) == {"verb", "run", "numbers", "notes"}
    for name, number in summary["numbers"].items():
        assert set(number) == {"value", "low", "high", "n", "unit"}, name
        if number["low"] is not None:
            assert number["low"] - 1e-9 <= number["value"] <= number["high"] + 1e-9, name
    assert {"config.yaml", "environment.json", "report.html"} <= {p.name for p in path.iterdir()}
    check_names(verb, "Numbers", set(summary["numbers"]))
    if (path / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        check_names(verb, "Logged", {name for row in rows for name in row})
    return summary["numbers"]


STORE = {verb for verb in cli.VERBS if verb == "serve" or verb.startswith("store ")}
"""They work on a feedback store: docs/store.md and tests/collect/test_serve.py and test_store_verbs.py."""


def test_every_section_of_the_metrics_page_is_a_command():
    sections = re.findall(r"^## (.+)$", METRICS.read_text(encoding="utf-8"), re.M)
    assert set(sections) <= set(cli.VERBS)
    assert set(cli.VERBS) - set(sections) - STORE == {"report", "compare"}, "these give no numbers of their own"


def test_a_name_that_nobody_defined_is_found(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError, match="does not define"):
        check_names("elo", "Numbers", {"elo/base", "new"})
    with pytest.raises(AssertionError, match="does not give"):
        check_names("runs", "Numbers", {"runs"})


# ---------------------------------------------------------------- score and sample


def test_score_texts_in_order_under_their_ids(call: Call, here: Path, models: Path):
    rows = [{"id": "b", "text": "hello"}, {"text": "a longer text"}, {"id": 7, "text": "hello"}]
    (here / "t.jsonl").write_text(lines(rows))
    found = parsed(call("score", models / "lm", "t.jsonl", *QUICK))
    assert [r["id"] for r in found] == ["b", 2, 7]
    assert found[0]["logprob"] == pytest.approx(found[2]["logprob"]) and found[0]["logprob"] < 0
    assert all(set(r) == {"id", "logprob", "num_tokens"} for r in found)
    assert found[1]["num_tokens"] - found[0]["num_tokens"] == len("a longer text") - len("hello")
    code, out, _ = call("score", models / "lm", "t.jsonl", *QUICK, "--json")
    numbers = json.loads(out)["numbers"]
    assert code == 0 and numbers["rows"]["value"] == 3
    assert numbers["logprob"]["value"] == pytest.approx(sum(r["logprob"] for r in found) / 3)
    check_run(Path(json.loads(out)["run"]), "score")


def test_only_the_continuation_counts(call: Call, here: Path, models: Path):
    rows = [{"context": "2 + 2 =", "continuation": " 4"}, {"context": "2 + 2 =", "continuation": " four"}]
    (here / "t.jsonl").write_text(lines(rows))
    found = parsed(call("score", models / "lm", "t.jsonl", *QUICK))
    assert [r["num_tokens"] for r in found] == [2, 5] and [r["id"] for r in found] == [1, 2]


def test_a_preference_model_scores_comparisons_and_dialogues_alike(call: Call, here: Path, models: Path):
    pairs = comparisons(3)
    whole = [{"dialogue": p["prompt"] + p["chosen"]} for p in pairs]
    chat = [{"role": "user", "content": "Is 0 even?"}, {"role": "assistant", "content": "yes 0"}]
    (here / "pairs.jsonl").write_text(lines(pairs))
    (here / "whole.jsonl").write_text(lines([*whole, {"dialogue": chat}]))
    found = parsed(call("score", models / "pm", "pairs.jsonl", *QUICK))
    assert [r["id"] for r in found] == ["c0", "c1", "c2"] and set(found[0]) == {"id", "chosen", "rejected"}
    alone = parsed(call("score", models / "pm", "whole.jsonl", *QUICK))
    assert [r["score"] for r in alone[:3]] == pytest.approx([r["chosen"] for r in found], abs=1e-5)
    assert alone[3]["score"] == pytest.approx(alone[0]["score"], abs=1e-5), "messages and HH text are one dialogue"
    for run in Path("runs").glob("score-*"):
        check_run(run, "score")


def test_raw_scores_are_not_centred(call: Call, here: Path, models: Path):
    (here / "pairs.jsonl").write_text(lines(comparisons(2)))
    pm = PreferenceModel.load(str(models / "pm"))
    raw = parsed(call("score", models / "pm", "pairs.jsonl", "--raw", *QUICK))
    centred = parsed(call("score", models / "pm", "pairs.jsonl", *QUICK))
    assert raw[0]["chosen"] - centred[0]["chosen"] == pytest.approx(pm.reference_mean, abs=1e-5)


def test_sample_gives_n_replies_per_prompt_and_the_same_again(call: Call, here: Path, models: Path):
    rows = [{"id": "x", "prompt": "Say something."}, {"prompt": [{"role": "user", "content": "And you?"}]}]
    (here / "p.jsonl").write_text(lines(rows))
    argv = ["sample", models / "lm", "p.jsonl", "--n", "3", "--max-new-tokens", "5", *QUICK]
    found = parsed(call(*argv))
    assert [r["id"] for r in found] == ["x", 2]
    for row in found:
        assert len(row["samples"]) == 3
        for s in row["samples"]:
            assert (
                set(s) == {"text", "logprob", "finish", "seed"}
                and s["finish"] in ("stop", "length")
                and s["logprob"] < 0
            )
    assert parsed(call(*argv)) == found, "the finished run is printed again"
    assert parsed(call(*argv, "--out", "other")) == found, "the same seed gives the same replies"
    assert parsed(call(*argv, "--seed", "1")) != found
    check_run(here / "other", "sample")
    code, out, _ = call(*argv, "--json")
    assert code == 0 and json.loads(out)["numbers"]["samples"]["value"] == 6


def test_best_of_n_keeps_the_one_the_preference_model_likes(call: Call, here: Path, models: Path):
    (here / "p.jsonl").write_text(lines([{"prompt": "Hi"}, {"prompt": "Ho"}]))
    argv = ["sample", models / "lm", "p.jsonl", "--n", "4", "--max-new-tokens", "4", "--pm", models / "pm", *QUICK]
    every = parsed(call(*argv))
    best = parsed(call(*argv, "--best", "--out", "best"))
    for row, kept in zip(every, best, strict=True):
        assert kept["samples"] == [max(row["samples"], key=lambda s: s["score"])]
    check_run(here / "best", "sample")
    code, _, err = call("sample", models / "lm", "p.jsonl", "--best")
    assert code == 1 and "--pm" in err


def test_the_median_of_n_is_neither_the_best_nor_empty(call: Call, here: Path, models: Path):
    argv = ["sample", models / "lm", "related-work", "--n", "5", "--max-new-tokens", "4", "--pm", models / "pm", *QUICK]
    every = parsed(call(*argv))
    assert len(every) == 30 and every[0]["id"] == "values-01", "a packaged set, by its name"
    for row, kept in zip(every, parsed(call(*argv, "--median", "--out", "median")), strict=True):
        ranked = sorted((s for s in row["samples"] if s["text"].strip()), key=lambda s: s["score"])
        assert kept["samples"] == ranked[(len(ranked) - 1) // 2 :][:1]
    check_run(here / "median", "sample")
    assert call(*argv, "--median", "--best")[0] == 1
    code, _, err = call("sample", models / "lm", "related-work", "--median")
    assert code == 1 and "--pm" in err


def test_a_language_model_compares_replies_by_mean_logprob(call: Call, here: Path, models: Path):
    (here / "pairs.jsonl").write_text(lines(comparisons(4)))
    found = parsed(call("score", models / "lm", "pairs.jsonl", *QUICK, "--out", "taste"))
    assert [r["id"] for r in found] == ["c0", "c1", "c2", "c3"] and all(r["chosen"] < 0 for r in found)
    right = sum(r["chosen"] > r["rejected"] for r in found) / 4
    assert check_run(here / "taste", "score")["accuracy"]["value"] == right


@pytest.mark.parametrize("verb", ["score", "score pm", "sample"])
def test_a_killed_job_computes_only_the_rest(verb: str, call: Call, here: Path, models: Path, monkeypatch: Any):
    """Catches rows computed twice, chunks that change what is drawn, and rows of a chunk that a kill cut short."""
    (here / "t.jsonl").write_text(lines([{"text": f"text {i % 6}"} for i in range(10)]))
    (here / "c.jsonl").write_text(lines(comparisons(10)))
    (here / "p.jsonl").write_text(lines([{"id": f"p{i}", "prompt": f"Say {i % 3}."} for i in range(5)]))
    argv = {
        "score": ("score", models / "lm", "t.jsonl"),
        "score pm": ("score", models / "pm", "c.jsonl"),
        "sample": ("sample", models / "lm", "p.jsonl", "--n", "2", "--max-new-tokens", "4", "--pm", models / "pm"),
    }[verb]
    whole = parsed(call(*argv, *QUICK, "--out", "whole"))
    monkeypatch.setattr(scoring, "CHUNK", 4)
    chunks, plain = [], scoring.in_chunks

    def dying(run: Any, file: str, items: Any, work: Any, **options: Any) -> Any:
        def once(chunk: Any, place: int) -> Any:
            if len(chunks) == 1:
                with open(run.path / file, "a") as kept:
                    kept.write('{"half": "\u00e9')
                with open(run.path / file, "rb+") as kept:  # cut inside a character
                    kept.truncate(kept.seek(0, os.SEEK_END) - 1)
                chunks.append(place)
                raise KeyboardInterrupt
            chunks.append(place)
            return work(chunk, place)

        return plain(run, file, items, once, **options)

    monkeypatch.setattr(scoring, "in_chunks", dying)
    assert call(*argv, *QUICK, "--out", "o")[0] == 130
    assert not (here / "o" / "rows.jsonl").exists()
    found = parsed(call(*argv, *QUICK, "--out", "o"))
    assert chunks == ([0, 2, 2, 4] if verb == "sample" else [0, 4, 4, 8])
    assert {p.name for p in (here / "o").iterdir()} == {p.name for p in (here / "whole").iterdir()}
    for one, other in zip(found, whole, strict=True):
        assert json.loads(json.dumps(one), parse_float=lambda x: round(float(x), 4)) == json.loads(
            json.dumps(other), parse_float=lambda x: round(float(x), 4)
        )


def test_an_error_while_numbers_are_made_loses_no_row(call: Call, here: Path, models: Path, monkeypatch: Any):
    (here / "t.jsonl").write_text(lines([{"text": "a"}, {"text": "b"}]))
    argv = ("score", models / "lm", "t.jsonl", "--out", "o", *QUICK)
    with monkeypatch.context() as once:
        once.setattr(
            scoring.stats, "mean_interval", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        assert call(*argv)[0] == 1
    monkeypatch.setattr(LM, "score", lambda *a: pytest.fail("rows are computed again"))
    assert len(parsed(call(*argv))) == 2


@pytest.mark.parametrize("verb", ["score", "sample"])
def test_a_row_that_is_too_long_is_named_before_any_work(
    verb: str, call: Call, here: Path, models: Path, monkeypatch: Any
):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    (here / "t.jsonl").write_text(lines([{"text": t, "prompt": t} for t in ("a", "b", "c", "d" * 600)]))
    code, out, err = call(verb, models / "lm", "t.jsonl", *QUICK)
    assert code == 1 and out == "" and "t.jsonl, line 4" in err and "at most 512" in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("wrong", [["--top-p", "2"], ["--stop-after", ""], ["--n", "0"], ["--max-new-tokens", "-1"]])
def test_sampling_options_that_mean_nothing_leave_no_run(wrong: list[str], call: Call, here: Path, models: Path):
    (here / "p.jsonl").write_text(lines([{"prompt": "Hi"}]))
    code, out, err = call("sample", models / "lm", "p.jsonl", *wrong, *QUICK)
    assert code == 1 and out == "" and "Traceback" not in err and not (here / "runs").exists()


def test_a_typo_does_not_spoil_an_empty_folder(call: Call, here: Path, models: Path):
    (here / "t.jsonl").write_text(lines([{"text": "a"}]))
    (here / "o").mkdir()
    assert call("score", "typo", "t.jsonl", "--out", "o", *QUICK)[0] == 1
    assert (here / "o").is_dir() and not list((here / "o").iterdir())
    assert call("score", models / "lm", "t.jsonl", "--out", "o", *QUICK)[0] == 0
    assert call("score", "typo", "t.jsonl", "--out", "o", *QUICK)[0] == 1
    assert (here / "o" / "summary.json").exists(), "a run that is there stays"


@pytest.mark.parametrize("verb", ["score", "sample"])
def test_out_of_time_keeps_what_there_is_and_goes_on(verb: str, call: Call, here: Path, models: Path):
    (here / "t.jsonl").write_text(lines([{"text": "a", "prompt": "a"}] * 3))
    argv = (verb, models / "lm", "t.jsonl", "--out", "o", *QUICK)
    code, out, err = call(*argv, "--max-time", "0")
    assert code == 0 and out == "" and "goes on" in err and "Stopped" in err
    assert len(parsed(call(*argv))) == 3


# ---------------------------------------------------------------- the pipeline


@pytest.fixture(scope="module")
def pipeline(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pm train → pm eval → rlhf train, once for all tests of this file."""
    root = tmp_path_factory.mktemp("pipeline")
    (root / "train.jsonl").write_text(lines(comparisons(24)))
    (root / "test.jsonl").write_text(lines(comparisons(12, seed=1)))
    (root / "prompts.jsonl").write_text(lines([{"prompt": f"Is {i} even?"} for i in range(6)]))
    train = [
        "--init",
        models / "lm",
        "--data",
        root / "train.jsonl",
        "--batch-size",
        "8",
        "--epochs",
        "2",
        "--lr",
        "1e-3",
    ]
    ppo = ["--policy", models / "lm", "--pm", root / "pm", "--prompts", root / "prompts.jsonl", "--steps", "2"]
    small = ["--prompts-per-step", "2", "--samples-per-prompt", "2", "--max-new-tokens", "6"]
    for argv in (
        ["pm", "train", *train, "--out", root / "pm", *QUICK],
        ["pm", "eval", root / "pm", root / "test.jsonl", "--out", root / "eval", *QUICK],
        ["rlhf", "train", *ppo, *small, "--out", root / "rlhf", *QUICK],
    ):
        assert cli.main([str(a) for a in argv]) == 0, argv
    return root


def test_pm_train_leaves_a_model_and_what_it_logged(pipeline: Path):
    check_run(pipeline / "pm", "pm train")
    assert (pipeline / "pm" / "model" / "config.json").exists()
    assert (pipeline / "pm" / "figures" / "curves.svg").exists()


def test_pm_eval_gives_the_numbers_of_the_contract(pipeline: Path):
    numbers = check_run(pipeline / "eval", "pm eval")
    assert set(numbers) >= {"accuracy", "ece", "ece_null_95", "brier", "longer_wins", "shorter_wins"}
    assert numbers["longer_wins"]["value"] == 0 and numbers["shorter_wins"]["value"] == 1
    assert numbers["accuracy"]["n"] == 12
    with open(pipeline / "eval" / "reliability.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(r["n"]) for r in rows) == 12 and {"mean_confidence", "accuracy"} <= set(rows[0])
    assert (pipeline / "eval" / "figures" / "reliability.svg").exists(), "the page drew it"


def test_rlhf_train_gives_the_numbers_of_the_contract(pipeline: Path):
    numbers = check_run(pipeline / "rlhf", "rlhf train")
    assert set(numbers) >= {"pm_score_gain", "kl", "entropy", "reply_tokens", "eos_rate"}
    assert (pipeline / "rlhf" / "model" / "config.json").exists()


def test_rlhf_finetune_gives_the_numbers_of_the_contract(call: Call, here: Path, models: Path):
    (here / "t.jsonl").write_text(lines([{"text": f"{i} and {i + 1}"} for i in range(20)]))
    argv = ["--init", models / "lm", "--data", "t.jsonl", "--batch-tokens", "30", "--eval-share", "0.3"]
    assert call("rlhf", "finetune", *argv, "--out", "sft", *QUICK)[0] == 0
    numbers = check_run(here / "sft", "rlhf finetune")
    assert numbers["loss"]["value"] > 0 and 0 < numbers["end_probability"]["value"] < 1
    assert (here / "sft" / "model" / "config.json").exists() and (here / "sft" / "figures" / "curves.svg").exists()


def test_rlhf_distill_gives_the_numbers_of_the_contract(call: Call, here: Path, models: Path):
    (here / "texts.jsonl").write_text(lines([{"text": f"Some words, {i} of them."} for i in range(12)]))
    (here / "pairs.jsonl").write_text(lines(comparisons(12)))
    (here / "prompt.txt").write_text("Say yes.")
    argv = ("--init", models / "lm", "--data", "texts.jsonl", "pairs.jsonl", "--prompt", "prompt.txt", *QUICK)
    assert call("rlhf", "distill", *argv, "--eval-share", "0.5", "--batch-size", "3", "--out", "d")[0] == 0
    numbers = check_run(here / "d", "rlhf distill")
    assert numbers["init_loss"]["value"] > 0 and (here / "d" / "model" / "config.json").exists()
    shown = json.loads((here / "d" / "samples.jsonl").read_text().splitlines()[0])
    assert set(shown) == {"prompt", "before", "with_prompt", "after"}


def test_rlhf_prompts_gives_the_numbers_of_the_contract(call: Call, here: Path, models: Path):
    (here / "prompts.jsonl").write_text(lines([{"prompt": f"Is {i} even?"} for i in range(9)]))
    argv = ("--examples", "prompts.jsonl", "--shots", "3", "--n", "2", "--max-new-tokens", "4")
    argv += ("--calls-per-prompt", "2")
    assert call("rlhf", "prompts", models / "lm", *argv, "--out", "w", *QUICK)[0] == 0
    numbers = check_run(here / "w", "rlhf prompts")
    assert numbers["calls"]["value"] == 4 and numbers["exact_duplicates"]["value"] == 0


def test_what_was_trained_is_taken_by_name(call: Call, pipeline: Path, here: Path):
    (here / "p.jsonl").write_text(lines([{"prompt": "Is 3 even?"}]))
    found = parsed(
        call("sample", pipeline / "rlhf", "p.jsonl", "--pm", pipeline / "pm", "--max-new-tokens", "4", *QUICK)
    )
    assert "score" in found[0]["samples"][0]


def test_the_same_command_returns_the_finished_run_at_once(call: Call, pipeline: Path):
    before = (pipeline / "eval" / "summary.json").stat().st_mtime_ns
    argv = ["pm", "eval", pipeline / "pm", pipeline / "test.jsonl", "--out", pipeline / "eval", *QUICK]
    assert call(*argv)[0] == 0
    assert (pipeline / "eval" / "summary.json").stat().st_mtime_ns == before
    code, _, err = call(*argv, "--max-length", "99")
    assert code == 1 and "max_length" in err, "another config is refused"


# ---------------------------------------------------------------- honesty


def test_writers(call: Call, here: Path):
    rows = [{"prompt": i // 2, "ranking": ["hh", "writer", "helpful"][:: 1 - 2 * (i % 3 > 1)]} for i in range(12)]
    (here / "r.jsonl").write_text(lines([row | {"worker": f"w{i % 4}"} for i, row in enumerate(rows)]))
    assert call("writers", "r.jsonl", "--out", "w")[0] == 0
    numbers = check_run(here / "w", "writers")
    assert numbers["win_rate/hh/writer"]["value"] == numbers["first/hh"]["value"] == pytest.approx(8 / 12)
    assert {p.name for p in (here / "w" / "figures").glob("*.svg")} == {"win_rates.svg", "band.svg", "elo.svg"}
    code, _, err = call("writers", "r.jsonl", "--reference", "nobody")
    assert code == 1 and "hh, writer, helpful" in err


def test_honesty_choices(call: Call, here: Path, models: Path):
    rows = [{"question": f"{i} + 1?", "choices": [str(i + 1), str(i), "x"], "answer": i % 3} for i in range(8)]
    (here / "q.jsonl").write_text(lines(rows))
    code, out, err = call("honesty", "choices", models / "lm", "q.jsonl", "--json", *QUICK)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "honesty choices")
    wanted = {"accuracy", "ece_top", "ece_null_95", "rms_calibration_error", "brier", "skill", "ece_all", "auroc"}
    assert set(numbers) >= {*wanted, "label_mass"}


def test_honesty_ptrue(call: Call, here: Path, models: Path):
    (here / "q.jsonl").write_text(lines([{"question": f"{i} + 1?", "answers": [str(i + 1)]} for i in range(4)]))
    argv = ["honesty", "ptrue", models / "lm", "q.jsonl", "--samples", "2", "--max-new-tokens", "3", "--json", *QUICK]
    code, out, err = call(*argv)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "honesty ptrue")
    wanted = {"accuracy", "brier", "brier_constant", "skill", "ece", "ece_null_95", "auroc", "conditional_accuracy"}
    assert set(numbers) >= {*wanted, "coverage", "label_mass"}


def test_honesty_pik(call: Call, here: Path, models: Path):
    rows = [{"question": f"{i} + 1?", "answers": [str(i + 1)], "task": "ab"[i % 2]} for i in range(12)]
    (here / "q.jsonl").write_text(lines(rows))
    argv = ["honesty", "pik", "--init", models / "lm", "--data", "q.jsonl", "--samples", "2", "--max-new-tokens", "3"]
    code, out, err = call(*argv, "--json", *QUICK)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "honesty pik")
    wanted = {"auroc", "brier", "brier_constant", "skill", "ece", "ece_null_95", "threshold"}
    assert set(numbers) >= wanted and {"brier/a", "brier/b"} <= set(numbers)


@pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
def test_code(call: Call, here: Path, models: Path):
    small = ["--limit", "4", "--samples", "2", "--ks", "1", "2", "5", "--temperatures", "0", "1"]
    small += ["--max-new-tokens", "4"]
    code, out, err = call("code", models / "lm", "--before", models / "lm", *small, "--json", *QUICK)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "code")
    assert {"pass@1", "pass@2/fixed/difference", "solved", "families_solved"} <= set(numbers)
    assert numbers["pass@1/difference"]["value"] == 0 and "pass@5" not in numbers
    assert {"grid.csv", "families.csv", "rows.jsonl"} <= {p.name for p in Path(json.loads(out)["run"]).iterdir()}


def test_pm_pretrain(call: Call, here: Path, models: Path):
    (here / "c.jsonl").write_text(lines(comparisons(40)))
    argv = ["pm", "pretrain", "--init", models / "lm", "--data", "c.jsonl", "--lm-learning-rate", "1e-2", "--json"]
    code, out, err = call(*argv, "--batch-size", "8", *QUICK)
    assert code == 0, err
    run = Path(json.loads(out)["run"])
    check_run(run, "pm pretrain")
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[1])["lr"] == pytest.approx(1e-3)
    code, out, err = call("pm", "train", "--init", run, "--data", "c.jsonl", "--json", *QUICK)
    assert code == 0, err


def test_pm_mixing(call: Call, here: Path, models: Path):
    (here / "hh.jsonl").write_text(lines(comparisons(24)))
    posts = [{"info": {"id": f"t3_{i}", "post": f"Post {i}.", "title": "T", "subreddit": "s"}} for i in range(24)]
    told = [{"text": " short", "policy": "a"}, {"text": " long and long", "policy": "b"}]
    (here / "tldr.json").write_text(lines([{**post, "summaries": told, "choice": 0, "worker": "w"} for post in posts]))
    argv = ["pm", "mixing", "--init", models / "lm", "--hh", "hh.jsonl", "--tldr", "tldr.json", "--json"]
    code, out, err = call(*argv, "--eval-share", "0.25", *QUICK)
    assert code == 0, err
    check_run(Path(json.loads(out)["run"]), "pm mixing")


def test_pm_ood(call: Call, here: Path, models: Path):
    argv = ["pm", "ood", models / "lm", "--inside", "helpful", "--outside", "red-team", "--limit", "40", "--json"]
    code, out, err = call(*argv, *QUICK)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "pm ood")
    assert {"auroc/exposed/10", "gain/exposed/1"} <= set(numbers)


@pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
def test_rlhf_code(call: Call, here: Path, models: Path):
    rows = [task_to_row(task) for task in easy_tasks(split="test")[:3]]
    (here / "p.jsonl").write_text(lines(rows))
    (here / "t.jsonl").write_text(lines([{"text": f"def f{i}():\n    return {i}\n"} for i in range(10)]))
    small = ["--steps", "1", "--prompts-per-step", "2", "--samples-per-prompt", "2", "--max-new-tokens", "4"]
    small += ["--samples", "2", "--ks", "1", "2", "--temperatures", "1", "--max-code-tokens", "4"]
    argv = ["rlhf", "code", models / "lm", "--pm", models / "pm", "--data", "t.jsonl", "--problems", "p.jsonl", *small]
    code, out, err = call(*argv, "--json", *QUICK)
    assert code == 0, err
    numbers = check_run(Path(json.loads(out)["run"]), "rlhf code")
    assert {"pass@2/difference", "pass@1/fixed/before", "kl"} <= set(numbers)
    path = Path(json.loads(out)["run"])
    assert {"finetuned", "rlhf", "pass-at-k", "figures", "sections.json"} <= {p.name for p in path.iterdir()}


# ---------------------------------------------------------------- the small ones


def test_numbers_of_the_small_commands_are_defined(call: Call, here: Path):
    (here / "c.jsonl").write_text(lines(comparisons(3)))
    (here / "g.jsonl").write_text(lines([{"a": "x", "b": "y", "winner": "a", "conversation": 1}]))
    replies = [{"id": i, "body": f"reply {i}", "parent_id": "t3_s", "score": 9 * i} for i in range(2)]
    (here / "dump.jsonl").write_text(lines([{"id": "s", "title": "Why?"}, *replies]))
    for verb, argv in {
        "data check": ["data", "check", "c.jsonl"],
        "data convert": ["data", "convert", "c.jsonl", "out.parquet", "--to", "trl"],
        "data pairs": ["data", "pairs", "reddit", "dump.jsonl", "--target", "pairs.jsonl"],
        "runs": ["runs", "."],
        "doctor": ["doctor", *QUICK],
        "elo": ["elo", "g.jsonl"],
    }.items():
        code, out, err = call(*argv, "--json")
        assert code == 0, err
        check_names(verb, "Numbers", set(json.loads(out)["numbers"]))
    assert (here / "out.parquet").exists()


def test_chat_answers_and_can_be_kept(call: Call, here: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    said = iter(["/back", "Hello", "/again", ""])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(said))
    code, out, err = call("chat", models / "lm", "--max-new-tokens", "4", "--out", "o", *QUICK)
    assert code == 0 and out.count("lm:") == 2 and "nothing to take back" in err
    rows = [json.loads(line) for line in (here / "o" / "samples.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == ["Hello", "Hello"]
    assert check_run(here / "o", "chat")["exchanges"]["value"] == 2
    code, out, err = call("chat", models / "lm", "--max-new-tokens", "4", "--out", "o", *QUICK)
    assert code == 1 and out == "" and "finished conversation" in err and "--out" in err


def test_an_interrupted_chat_has_kept_what_was_said(call: Call, here: Path, models: Path, monkeypatch: Any):
    talks = [["One", KeyboardInterrupt()], ["Two", ""]]

    def read(prompt: str = "") -> str:
        line = talks[0].pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    argv = ("chat", models / "lm", "--max-new-tokens", "4", "--out", "o", *QUICK)
    assert call(*argv)[0] == 130
    kept = [json.loads(line)["prompt"] for line in (here / "o" / "samples.jsonl").read_text().splitlines()]
    assert kept == ["One"] and not (here / "o" / "summary.json").exists()
    talks.pop(0)
    assert call(*argv)[0] == 0
    kept = [json.loads(line)["prompt"] for line in (here / "o" / "samples.jsonl").read_text().splitlines()]
    assert kept == ["One", "Two"]


def test_a_chat_with_an_unknown_model_leaves_no_run(call: Call, here: Path):
    code, out, err = call("chat", "no-such-model", "--out", "o")
    assert code == 1 and out == "" and "no-such-model" in err and not (here / "o").exists()


# ---------------------------------------------------------------- --dry-run


DRY = {
    "demo": ["--fast"],
    "recipe": ["hh", "--scale", "ci"],
    "chat": ["LM"],
    "sample": ["LM", "prompts.jsonl"],
    "score": ["LM", "pairs.jsonl"],
    "data check": ["pairs.jsonl"],
    "data convert": ["pairs.jsonl", "out.parquet", "--to", "trl"],
    "data pairs": ["reddit", "dump.jsonl", "--target", "out.jsonl"],
    "pm pretrain": ["--init", "LM", "--data", "pairs.jsonl"],
    "pm train": ["--init", "LM", "--data", "pairs.jsonl"],
    "pm eval": ["PM", "pairs.jsonl"],
    "rlhf finetune": ["--init", "LM", "--data", "pairs.jsonl"],
    "rlhf distill": ["--init", "LM", "--data", "pairs.jsonl", "--prompt", "games.jsonl", "--max-length", "64"],
    "rlhf prompts": ["LM", "--examples", "prompts.jsonl", "--shots", "3", "--n", "2", "--max-new-tokens", "4"],
    "pm probe": ["PM"],
    "pm scaling": ["--sizes", "5K", "--pairs", "8", "--max-length", "128"],
    "pm mixing": ["--init", "LM", "--hh", "pairs.jsonl", "--tldr", "pairs.jsonl"],
    "pm ood": ["LM", "--inside", "prompts.jsonl", "--outside", "red-team", "--exposed", "1"],
    "rlhf train": ["--policy", "LM", "--pm", "PM", "--prompts", "prompts.jsonl"],
    "rlhf frontier": ["policy", "--best-of", "2"],
    "rlhf robustness": ["--models", "LM", "--data", "pairs.jsonl", "--samples", "32"],
    "rlhf tension": ["--models", "LM", "--data", "pairs.jsonl", "harmless.jsonl"],
    "rlhf code": ["LM", "--pm", "PM", "--samples", "2"],
    "elo": ["games.jsonl"],
    "writers": ["rankings.jsonl"],
    "eval": ["LM", "--tasks", "toy", "--include-path", "."],
    "bias": ["LM", "--samples", "1", "--max-new-tokens", "3"],
    "honesty choices": ["LM", "choices.jsonl"],
    "honesty ptrue": ["LM", "questions.jsonl"],
    "honesty pik": ["--init", "LM", "--data", "questions.jsonl"],
    "code": ["LM", "--limit", "3", "--samples", "2"],
    "runs": ["."],
    "report": ["run"],
    "compare": ["run", "run"],
    "doctor": [],
}


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in STORE])
def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(verb: str, call: Call, here: Path, models: Path):
    data_of(verb, here)
    if verb == "rlhf frontier":
        evaluated_policy(here / "policy", models)
    assert call("elo", "games.jsonl", "--out", "run")[0] == 0
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    argv = [{"LM": models / "lm", "PM": models / "pm"}.get(a, a) for a in DRY[verb]]
    code, out, err = call(*verb.split(), *argv, *QUICK, "--dry-run")
    assert code == 0 and out.strip(), err
    code, out, err = call(*verb.split(), *argv, *QUICK, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["verb"] == verb, err
    assert json.loads(out)["notes"] or verb in ("runs", "doctor", "data check", "elo")
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*")} == before


def evaluated_policy(folder: Path, models: Path) -> None:
    """What a study reads of a run of `rlhf train`."""
    folder.mkdir()
    (folder / "environment.json").write_text('{"verb": "rlhf train"}')
    options = {"policy": models / "lm", "pm": models / "pm", "max_new_tokens": 3, "stop_after": []}
    (folder / "config.yaml").write_text(json.dumps(options, default=str))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (folder / "evaluations.jsonl").write_text(lines([{"step": s, "id": "1", "dialogue": said} for s in (0, 1)]))


def data_of(verb: str, here: Path) -> None:
    """Files that the arguments in DRY name."""
    (here / "harmless.jsonl").write_text(lines(comparisons(24, seed=2)))
    (here / "pairs.jsonl").write_text(lines([{"text": "a"}] if verb == "score" else comparisons(24)))
    (here / "prompts.jsonl").write_text(lines([{"prompt": f"Is {i} even?"} for i in range(9)]))
    (here / "rankings.jsonl").write_text(lines([{"prompt": 1, "ranking": ["hh", "writer"]}]))
    (here / "games.jsonl").write_text(lines([{"a": "x", "b": "y", "winner": "a", "conversation": 1}]))
    questions = [{"question": f"{i} + 1?", "answers": [str(i + 1)], "id": f"q{i}"} for i in range(30)]
    (here / "questions.jsonl").write_text(lines(questions))
    choices = [{"question": f"{i} + 1?", "choices": [str(i + 1), "x"], "answer": 0} for i in range(9)]
    (here / "choices.jsonl").write_text(lines(choices))
    if verb == "eval":
        (here / "toy.yaml").write_text(
            "task: toy\ndataset_path: json\ndataset_kwargs: {data_files: {test: choices.jsonl}}\ntest_split: test\n"
            'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
            "doc_to_target: answer\nmetric_list: [{metric: acc}]\n"
        )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
@pytest.mark.parametrize("verb", [v for v, argv in DRY.items() if {"LM", "PM"} & set(argv) and v != "chat"])
def test_an_unknown_model_is_named_and_leaves_no_run(verb: str, name: str, call: Call, here: Path, models: Path):
    data_of(verb, here)
    last = [a for a in DRY[verb] if a in ("LM", "PM")][-1]
    argv = [name if a == last else {"LM": models / "lm", "PM": models / "pm"}.get(a, a) for a in DRY[verb]]
    code, out, err = call(*verb.split(), *argv, *QUICK)
    assert code == 1 and out == "" and name in err and "Traceback" not in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--learning-rate", "-1", "learning_rate is -1"),
        ("--warmup-samples", "-1", "warmup_samples is -1"),
        ("--max-grad-norm", "0", "max_grad_norm is 0"),
        ("--halve-every", "0", "halve_every is 0"),
        ("--save-every", "-1", "save_every is -1"),
        ("--eval-share", "1", "eval_share is 1"),
        ("--seed", "-1", "seed is -1"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_work(
    option: str, value: str, said: str, call: Call, here: Path, models: Path
):
    (here / "pairs.jsonl").write_text(lines(comparisons(24)))
    argv = ("pm", "train", "--init", models / "lm", "--data", "pairs.jsonl", option, value, *QUICK)
    code, out, err = call(*argv)
    assert code == 1 and out == "" and said in err and "Traceback" not in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', ["bad.jsonl", "line 2", "txt"]),
        ('{"text": "a"}\n{"context": "b", "continuation": "c"}\n', ["bad.jsonl", "line 2", "Split"]),
        ('{"text": 3}\n', ["bad.jsonl", "line 1", "'text'", "3"]),
        ('{"text": "a"}\n{"text": \n', ["bad.jsonl", "line 2", "JSON"]),
        ("\n\n", ["bad.jsonl", "no rows"]),
        (None, ["bad.jsonl"]),
    ],
)
def test_rows_that_cannot_be_scored_are_named(
    call: Call, here: Path, models: Path, content: str | None, said: list[str]
):
    if content is not None:
        (here / "bad.jsonl").write_text(content)
    code, out, err = call("score", models / "lm", "bad.jsonl", *QUICK)
    assert code == 1 and out == "" and "Traceback" not in err
    assert all(words in err for words in said), err
    assert not Path("runs").exists()


def test_a_prompt_without_a_human_turn_is_named(call: Call, here: Path, models: Path):
    (here / "p.jsonl").write_text(lines([{"prompt": "ok"}, {"prompt": [{"role": "assistant", "content": "Hi"}]}]))
    code, _, err = call("sample", models / "lm", "p.jsonl", *QUICK)
    assert code == 1 and "line 2" in err and "human turn" in err
    (here / "d.jsonl").write_text(lines([{"dialogue": [{"role": "assistant", "content": "Hi"}]}]))
    code, _, err = call("score", models / "pm", "d.jsonl", *QUICK)
    assert code == 1 and "line 1" in err and "no human turn" in err


def test_unknown_models_name_those_there_are(call: Call, here: Path, models: Path):
    (here / "t.jsonl").write_text(lines([{"text": "a"}]))
    code, _, err = call("score", "smolm2", "t.jsonl", *QUICK)
    assert code == 1 and "smollm2" in err and "Traceback" not in err


def test_the_wrong_kind_of_model_is_said(call: Call, here: Path, models: Path):
    (here / "t.jsonl").write_text(lines([{"text": "a"}]))
    (here / "d.jsonl").write_text(lines([{"dialogue": "\n\nHuman: Hi\n\nAssistant: Ho"}]))
    code, _, err = call("score", models / "lm", "d.jsonl", *QUICK)
    assert code == 1 and "preference model" in err
    code, _, err = call("score", models / "pm", "t.jsonl", *QUICK)
    assert code == 1 and "preference model" in err and "language model" in err


# ---------------------------------------------------------------- interrupted


def test_an_interrupted_training_exits_130_and_goes_on(here: Path, models: Path):
    (here / "c.jsonl").write_text(lines(comparisons(40)))
    argv = [SCRIPT, "pm", "train", "--init", models / "lm", "--data", "c.jsonl", "--out", "pm", *QUICK]
    argv += ["--batch-size", "2", "--epochs", "6", "--save-every", "40"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    log = here / "pm" / "metrics.jsonl"
    waited = time.monotonic() + 240
    while (
        process.poll() is None and time.monotonic() < waited and (not log.exists() or log.read_text().count("\n") < 8)
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert out == "" and "the same command goes on" in err and "truing pm train" in err and "Traceback" not in err
    assert not (here / "pm" / "summary.json").exists()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(steps) and (here / "pm" / "summary.json").exists()
