from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import PIKTrain
from truing.data.quiz import question_prompt
from truing.measure import answers as asking
from truing.measure.answers import FILE, answer_questions, answers_in_run
from truing.measure.p_ik import measure_p_ik, p_ik
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM, show_prompt
from truing.runs import Run
from truing.runs.atomic import as_lines, read_rows
from truing.train.p_ik_numbers import NAMES, choose_threshold
from truing.types import Answers, Dialogue, Question

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm")
    toy_lm().save(path / "lm")
    return path / "lm"


def toy_lm() -> LM:
    return LM(new_model("llama", layers=2, width=32, heads=2, seed=3), byte_tokenizer(), name="toy")


def answered(right: int, n: int = 30, name: str = "q", task: str = "") -> Answers:
    flags = tuple(i < right for i in range(n))
    return Answers(Question(name, ("x",), task=task), tuple("x" if f else "y" for f in flags), flags)


# Numbers


def test_numbers_by_hand() -> None:
    rows = [answered(30, name="a"), answered(15, name="b"), answered(16, name="c"), answered(0, name="d")]
    numbers = measure_p_ik([0.9, 0.6, 0.5, 0.2], rows)
    assert numbers["brier"].value == pytest.approx((0.01 + 0.36 + 0.25 + 0.04) / 4), "15 of 30 is not known, 16 is"
    assert numbers["brier_constant"].value == pytest.approx(0.25)
    assert numbers["skill"].value == pytest.approx(1 - 0.165 / 0.25)
    assert numbers["auroc"].value == pytest.approx(3 / 4)
    assert numbers["ece"].value == pytest.approx((0.1 + 0.1 + abs(16 / 30 - 0.5) + 0.2) / 4), "of the share itself"
    assert numbers["threshold"].value == 0.5 and set(numbers) == set(NAMES)
    lower = measure_p_ik([0.9, 0.6, 0.5, 0.2], rows, threshold=0.25)
    assert lower["brier"].value == pytest.approx((0.01 + 0.16 + 0.25 + 0.04) / 4) and lower["threshold"].value == 0.25


def test_each_task_has_its_numbers() -> None:
    rows = [answered(30 * (i % 2), name=f"{i}", task="ab"[i < 6]) for i in range(12)]
    p = [0.5] * 6 + [0.8, 0.4] * 3
    numbers = measure_p_ik(p, rows)
    assert set(numbers) == {*NAMES, *(f"{name}/{task}" for name in NAMES for task in "ab")}
    assert numbers["brier/b"].value == pytest.approx(0.25) and numbers["auroc/b"].value == 0.5
    assert numbers["auroc/a"].value == 0.0 and numbers["brier/a"].n == 6 and numbers["brier"].n == 12


def test_one_class_is_undefined_with_a_note_not_0_or_1() -> None:
    numbers = measure_p_ik([0.1, 0.2, 0.3], [answered(0, name=str(i)) for i in range(3)])
    assert numbers["auroc"].value is None and numbers["skill"].value is None
    assert "0 of 3" in numbers["auroc"].note and numbers["brier_constant"].value == 0
    assert numbers["brier"].value == pytest.approx(0.14 / 3)


def test_a_question_that_stands_twice_is_no_more_evidence() -> None:
    random = np.random.default_rng(0)
    rows = [answered(int(r), name=f"w{i}") for i, r in enumerate(random.integers(0, 31, 60))]
    p = random.random(60)
    once, twice = measure_p_ik(p, rows), measure_p_ik(np.tile(p, 2), rows * 2)
    for name in ("auroc", "brier", "skill"):
        one, two = once[name], twice[name]
        assert two.value == pytest.approx(one.value) and two.high is not None and one.high is not None
        assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.2), name  # type: ignore[operator]


def test_wrong_probabilities_are_refused() -> None:
    for p in ([0.5], [0.5, 1.2]):
        with pytest.raises(ValueError, match="2 probabilities"):
            measure_p_ik(p, [answered(1), answered(2)])


def test_threshold_follows_from_what_is_known() -> None:
    assert choose_threshold([0.9, 0.1, 0.2, 0.6]) == 0.5
    assert choose_threshold([0.5, 0.5, 0.0, 0.1]) == 0.25, "strictly more than half"
    assert choose_threshold([0.0, 0.1, 0.2, 0.25]) == 0.0
    assert choose_threshold([0.6] + [0.3] * 15 + [0.0] * 15) == 0.25, "one of 31 is too few"
    assert choose_threshold([0.0, 0.0]) == 0.5 and choose_threshold([]) == 0.5


# Answers


def test_prompts_are_the_papers_bytes() -> None:
    plain = Question("What is 36 plus 32?", ("68",))
    assert question_prompt(plain) == "Question: What is 36 plus 32?\nAnswer:"
    assert question_prompt(plain, "chat") == Dialogue().ask("Question: What is 36 plus 32?\nAnswer:")
    lettered = Question("Which?", choices=("one", "two"), answer=1, kind="choice")
    assert question_prompt(lettered) == "Question: Which?\nChoices:\n (A) one\n (B) two\nAnswer:"
    with pytest.raises(ValueError, match="raw or chat"):
        question_prompt(plain, "hh")  # type: ignore[arg-type]


def test_answers_are_one_line_graded_and_independent_of_the_others() -> None:
    lm = toy_lm()
    questions = [Question(f"say {i}", ("x",), id=str(i)) for i in range(4)]
    found = answer_questions(lm, questions, 6, 5, seed=2)
    assert [len(a.samples) for a in found] == [6] * 4 and [a.question for a in found] == questions
    assert all("\n" not in s and s == s.strip() for a in found for s in a.samples)
    assert len({s for a in found for s in a.samples}) > 12, "drawn at temperature 1"
    assert answer_questions(lm, questions[2:3], 6, 5, seed=2) == found[2:3]
    assert answer_questions(lm, questions, 6, 5, seed=3) != found
    wanted = Question("say 0", (found[0].samples[1],), id="again")
    both = answer_questions(lm, [questions[0], wanted], 6, 5, seed=2)
    assert both[1].samples == both[0].samples, "one prompt is asked once"
    if wanted.answers[0]:
        assert both[1].correct[1] and not any(both[0].correct)


def test_a_question_that_text_cannot_grade_is_refused_before_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_lm()
    monkeypatch.setattr(lm, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="code"):
        answer_questions(lm, [Question("f", ("x",)), Question("g", ("x",), kind="code")], 2)


def test_a_killed_run_asks_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_lm()
    questions = [Question(f"say {i}", ("x",), id=str(i)) for i in range(7)]
    config = PIKTrain(init="toy", data=[], out=tmp_path / "run", **QUICK)
    monkeypatch.setattr(asking, "CHUNK", 3)
    plain, asked = answer_questions, list[int]()

    def counted(lm: LM, some: list[Question], *args: Any, **options: Any) -> list[Answers]:
        asked.append(len(some))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(lm, some, *args, **options)

    monkeypatch.setattr(asking, "answer_questions", counted)
    run = Run.open("honesty pik", config)
    with pytest.raises(KeyboardInterrupt):
        answers_in_run(run, lm, questions, 2, 4, seed=1)
    assert len(read_rows(run.path / FILE)) == 3
    resumed = answers_in_run(run, lm, questions, 2, 4, seed=1)
    assert asked == [3, 3, 3, 1] and resumed == plain(lm, questions, 2, 4, seed=1)
    assert [row["id"] for row in read_rows(run.path / FILE)] == [q.id for q in questions]


def test_answers_after_a_row_of_another_question_are_asked_again(tmp_path: Path) -> None:
    """Catches answers given to the wrong question: rows were filtered by place, so all after a gap moved up by one."""
    lm, questions = toy_lm(), [Question(f"say {i}", ("x",), id=str(i)) for i in range(4)]
    run = Run.open("honesty pik", PIKTrain(init="toy", data=[], out=tmp_path / "run", **QUICK))
    whole = answers_in_run(run, lm, questions, 2, 4, seed=1)
    rows = read_rows(run.path / FILE)
    (run.path / FILE).write_text(as_lines([rows[0], {**rows[1], "question": "say 9"}, *rows[2:]]))
    assert answers_in_run(run, lm, questions, 2, 4, seed=1) == whole
    assert [row["id"] for row in read_rows(run.path / FILE)] == ["0", "1", "2", "3"]


def test_the_first_prompt_is_shown_with_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    digest = show_prompt(toy_lm(), "Question: a\nAnswer:")
    assert f"sha256 {digest}):\nQuestion: a\nAnswer:\n" in capsys.readouterr().err and len(digest) == 16
    assert show_prompt(toy_lm(), Dialogue().ask("a")) != digest
    assert "\n\nHuman: a\n\nAssistant:" in capsys.readouterr().err


# The verb


def rows_file(path: Path, n: int = 12) -> Path:
    rows = [{"question": f"{i} + 1?", "answers": [str(i + 1)], "task": "ab"[i % 2]} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_verb_asks_trains_and_measures(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rows_file(tmp_path / "q.jsonl")
    config = PIKTrain(init=str(folder), data=[str(file)], samples=2, max_new_tokens=3, epochs=2, **QUICK)
    run = p_ik(config)
    assert isinstance(run, Run) and run.done and run.verb == "honesty pik"
    assert "Question: 0 + 1?\nAnswer:" in capsys.readouterr().err
    assert len(read_rows(run.path / FILE)) == 12 and (run.path / "model" / "truing.json").exists()
    assert {*NAMES, "brier/a", "brier/b"} <= set(run.summary()["numbers"])
    assert run.summary()["numbers"]["auroc"]["value"] is None, "this model knows nothing"
    monkeypatch.setattr(LM, "load", lambda *a, **k: pytest.fail("loaded again"))
    assert p_ik(config).path == run.path  # type: ignore[union-attr]


def test_max_time_stops_while_asking(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rows_file(tmp_path / "q.jsonl")
    options = {"init": str(folder), "data": [str(file)], "samples": 1, "max_new_tokens": 2, **QUICK}
    run = p_ik(PIKTrain(**options, max_time=0.0))
    assert isinstance(run, Run) and not run.done and "answers to 0 of 12" in run.summary()["notes"][0]
    assert p_ik(PIKTrain(**options)).done  # type: ignore[union-attr]


def test_dry_run_counts_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    file = rows_file(tmp_path / "q.jsonl", 10)
    found = p_ik(PIKTrain(init=str(folder), data=[str(file)], samples=3, max_new_tokens=4, dry_run=True, **QUICK))
    assert isinstance(found, dict) and "10 questions" in found["lines"][0]
    assert "at most 120 tokens" in found["lines"][0] and not Path("runs").exists()
