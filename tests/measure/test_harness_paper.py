"""The paper's own formats through truing eval: chance, an oracle, pairs of answers, files that are wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_contract import check_run
from truing import cli
from truing.measure import harness, harness_paper
from truing.measure.harness_lm import Nats
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'truing[eval]'")
QUICK = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def lm() -> LM:
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=512, seed=3)
    return LM(model, byte_tokenizer(), name="toy")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm: LM) -> Call:
    monkeypatch.chdir(tmp_path)
    lm.save(tmp_path / "a")

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["eval", *argv, *QUICK])
        return (code, *capsys.readouterr())

    return run


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def questions(n: int, choices: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"id": i, "question": f"Which is number {i}?", "choices": rng.permutation(100)[:choices].astype(str).tolist(),
         "answer": int(rng.integers(choices))}
        for i in range(n)
    ]  # fmt: skip


def answers_to(task: Any, choose: Callable[[Any, list[Any]], list[Any]]) -> float:
    """The accuracy of a model that answers the requests of each question as ``choose`` says."""
    task.set_fewshot_seed(seed=0)
    task.build_all_requests()
    right = []
    for doc_id in {r.doc_id for r in task.instances}:
        asked = [r for r in task.instances if r.doc_id == doc_id]
        right.append(task.process_results(asked[0].doc, choose(asked[0].doc, asked)).popitem()[1])
    return float(np.mean(right))


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize(("format", "choices"), [("arc", 4), ("mmlu", 4), ("openbookqa", 3), ("truthfulqa", 5)])
def test_guessing_is_right_by_chance_and_an_oracle_always(
    format: str, choices: int, shots: int, tmp_path: Path
) -> None:
    """Row 23: a random model scores 1/n ± 2 standard errors, an oracle 100%."""
    n, rng = 400, np.random.default_rng(5)
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in questions(n, choices)))
    task = harness_paper.paper_task(f"paper_{format}:{file}")
    task.set_config("num_fewshot", shots)
    guessed = answers_to(task, lambda _, asked: [(Nats(rng.normal(), 1), False) for _ in asked])
    assert abs(guessed - 1 / choices) < 2 * math.sqrt((1 / choices) * (1 - 1 / choices) / n)
    known = answers_to(task, lambda d, asked: [(Nats(float(r.args[1] == d["target"]), 1), True) for r in asked])
    assert known == 1.0


def test_words_and_replies_are_right_when_they_are_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"question": "Capital of France?", "answers": ["Paris", "City of Light"]}\n')
    task = harness_paper.paper_task(f"paper_triviaqa:{file}")
    for said, right in [(" Paris.", 1), (" the City of Light", 1), (" Lyon", 0), ("", 0)]:
        assert answers_to(task, lambda *_, said=said: [said]) == right
    file.write_text('{"text": "She greeted Bob"}\n')
    task = harness_paper.paper_task(f"paper_lambada:{file}")
    task.build_all_requests()
    assert task.instances[0].args == ("She greeted", " Bob")
    assert task.process_results({}, [(-1.5, True)]) == {"acc": 1, "perplexity": -1.5}


def test_the_file_is_asked_as_any_task_of_lm_eval(call: Call, tmp_path: Path, lm: LM) -> None:
    write("easy.jsonl", questions(12, 3))
    write("trivia.jsonl", [{"question": f"{i} + 1?", "answers": [str(i + 1)]} for i in range(6)])
    names = ["paper_arc:easy.jsonl", "paper_triviaqa:trivia.jsonl"]
    code, out, err = call("a", "--tasks", *names, "--num-fewshot", "0", "2", "--json", "--out", "o")
    assert code == 0, err
    numbers = check_run(tmp_path / "o", "eval")
    arc = harness_paper.load_items("arc", "easy.jsonl")
    for shots in (0, 2):
        picked = []
        for i, item in enumerate(arc):
            asked = harness_paper.prompt("arc", arc, i, shots)
            logprobs = [s.logprob for s in lm.score([(asked, choice) for choice in item.choices])]
            picked.append(int(np.argmax(logprobs)) == item.answer)
        assert numbers[f"acc/paper_arc:easy/{shots}-shot"]["value"] == pytest.approx(np.mean(picked))
    assert "exact_match/paper_triviaqa:trivia/2-shot" in numbers and "accuracy/mean/2-shot" in numbers
    samples = [json.loads(line) for line in (tmp_path / "o" / "samples.jsonl").read_text().splitlines()]
    assert {s["prompt"].count("Answer:") for s in samples if "arc" in s["task"]} == {1, 3}
    code, out, _ = call("a", "--tasks", *names, "--num-fewshot", "0", "2", "--dry-run")
    assert code == 0 and "paper_arc:easy: 12 questions after 2 examples, 36 requests" in out


def test_other_examples_or_rows_are_other_data(tmp_path: Path) -> None:
    def digest(rows: list[dict[str, Any]], shots: int) -> str:
        file = tmp_path / "q.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = harness.load_tasks([f"paper_arc:{file}"])[1]["paper_arc:q"]
        task.set_config("num_fewshot", shots)
        return harness.content_hash(task, limit=2)

    rows = questions(6, 3)
    last = [*rows[:-1], {**rows[-1], "question": "Other?"}]
    assert digest(rows, 0) == digest(last, 0) != digest(rows, 1) != digest(last, 1)


def test_pairs_of_answers_have_a_gap_and_losses(call: Call, tmp_path: Path, lm: LM) -> None:
    """App B.7, against log-probabilities summed by hand, per token."""
    rows = [
        {"question": f"How do I {w}?", "good": f"Use {w}.", "bad": "I do not know, sorry."} for w in ("add", "sort")
    ]
    write("so.jsonl", rows)
    code, _, err = call("--before", "a", "--after", "a", "--tasks", "paper_pairs:so.jsonl", "--out", "o")
    assert code == 0, err
    numbers = check_run(tmp_path / "o", "eval")
    found = {}
    for side in ("good", "bad"):
        pairs = [(f"\n\nHuman: {r['question']}\n\nAssistant:", f" {r[side]}") for r in rows]
        found[side] = [(s.logprob, s.num_tokens) for s in lm.score(pairs)]
    gaps = [g / n - b / m for (g, n), (b, m) in zip(found["good"], found["bad"], strict=True)]
    assert numbers["logprob_gap/paper_pairs:so"]["value"] == pytest.approx(np.mean(gaps), abs=1e-5)
    assert numbers["acc/paper_pairs:so"]["value"] == np.mean([g > 0 for g in gaps])
    for side, values in found.items():
        loss = -sum(v for v, _ in values) / sum(n for _, n in values)
        assert numbers[f"loss_{side}/paper_pairs:so"]["value"] == pytest.approx(loss, abs=1e-5)
    assert numbers["logprob_gap/paper_pairs:so/difference"]["value"] == 0


def test_mistakes_are_named_before_any_model_is_loaded(call: Call, tmp_path: Path) -> None:
    write("q.jsonl", questions(3, 3))
    Path("sub").mkdir()
    write("sub/q.jsonl", questions(3, 3))
    for argv, said in [
        (["paper_ark:q.jsonl"], "Did you mean paper_arc?"),
        (["paper_arc:none.jsonl"], "none.jsonl"),
        (["paper_hellaswag:q.jsonl"], "q.jsonl, line 1: field 'ctx'"),
        (["paper_arc:q.jsonl", "paper_arc:sub/q.jsonl"], "two files"),
        (["paper_arc:q.jsonl", "--num-fewshot", "0", "3"], "--num-fewshot 3 needs 3 other questions"),
    ]:
        code, out, err = call("a", "--tasks", *argv)
        assert code == 1 and out == "" and said in err and "Traceback" not in err, argv
        assert not Path("runs").exists(), argv


def test_in_a_chat_the_template_stands_around_the_question(tmp_path: Path) -> None:
    file = tmp_path / "so.jsonl"
    file.write_text('{"question": "How?", "good": "So.", "bad": "No."}\n')
    task = harness_paper.paper_task(f"paper_pairs:{file}", chat=True)
    task.build_all_requests(apply_chat_template=True, chat_template=lambda m, **_: f"<{m[-1]['content']}>")
    assert [r.args for r in task.instances] == [("<How?>", "So."), ("<How?>", "No.")]
