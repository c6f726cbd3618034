"""Finetuned on functions, then PPO on prompts without code, then both measured on the same problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.configs import CodeStudy
from truing.data import sandbox
from truing.data.code_tasks import CodeTask
from truing.data.easy_functions import solved
from truing.data.prompts import PromptRow
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM
from truing.recipes.code_rlhf import code_study
from truing.runs import Run
from truing.types import Dialogue

here = pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
PROMPTS = [PromptRow(Dialogue().ask(text), text, i, "toy") for i, text in enumerate(("Hi", "Hello", "Bye"), 1)]


def constant(name: str, value: int) -> CodeTask:
    """A function so easy that a model of a few thousand weights can learn it by heart."""
    test = f"def check(candidate):\n    assert candidate() == {value}\n"
    return CodeTask(name, f"def {name}():\n", name, f"    return {value}\n", test, "constants")


TASKS = [constant(name, i) for i, name in enumerate(("one", "two", "red", "cat"))]


def length(dialogues: list[Dialogue]) -> list[int]:
    return [len(d.last.text) for d in dialogues]


def study(folder: Path, reward_fn: Any = length, **options: Any) -> Run:
    tokenizer = byte_tokenizer()
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=264, max_positions=128, seed=0)
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": solved(t)}) + "\n" for t in (*TASKS, *TASKS)))
    small = {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4, "max_code_tokens": 20}
    small |= {"finetune_epochs": 70, "finetune_learning_rate": 1e-2, "samples": 1, "ks": [1], "temperatures": [0.0]}
    machine = {"device": "cpu", "dtype": "float32", "threads": 1, "out": folder / "study"}
    config = CodeStudy(model="toy", data=[str(folder / "code.jsonl")], **{**small, **machine, **options})
    found = code_study(
        config,
        lm=LM(model, tokenizer),
        reward_fn=reward_fn,
        prompts=PROMPTS,
        tasks=TASKS,
    )
    assert isinstance(found, Run)
    return found


@here
def test_what_rlhf_costs_a_code_model_is_seen(tmp_path: Path):
    """A PPO that hardly moves costs nothing; one with a learning rate that breaks the model costs all it knew."""
    for name, rate, cost in (("gentle", 1e-7, False), ("harsh", 0.5, True)):
        (tmp_path / name).mkdir()
        run = study(tmp_path / name, learning_rate=rate)
        numbers = {k: v["value"] for k, v in run.summary()["numbers"].items()}
        assert numbers["pass@1/before"] > 0.5, "it learned them"
        assert numbers["pass@1/difference"] == (-numbers["pass@1/before"] if cost else 0)
        assert (run.path / "report.html").exists() or (run.path / "sections.json").exists()


@here
def test_a_study_stops_and_goes_on(tmp_path: Path):
    stopped = study(tmp_path, max_time=0.0, finetune_epochs=1)
    assert not stopped.done and "Stopped before finetuned" in stopped.summary()["notes"][0]
    assert study(tmp_path, finetune_epochs=1).done


def test_the_reward_is_named_before_anything_is_trained(tmp_path: Path):
    options: dict[str, Any] = {"device": "cpu", "out": tmp_path / "o", "model": "smollm2"}
    if sandbox.why_not():
        pytest.skip(sandbox.why_not())
    with pytest.raises(ValueError, match="give one of the two"):
        code_study(CodeStudy(**options))
    assert not (tmp_path / "o").exists()


@here
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl_coef": -1.0}, "kl_coef is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"finetune_epochs": 0}, "epochs is 0"),
        ({"ks": [0]}, "--ks are"),
        ({"temperatures": [-1.0]}, "--temperatures are"),
    ],
)
def test_no_step_is_done_before_the_options_of_all_are_known_to_be_right(
    tmp_path: Path, options: dict[str, Any], said: str
):
    with pytest.raises(ValueError, match=said):
        study(tmp_path, **options)
    assert not (tmp_path / "study").exists()


@here
def test_a_language_model_as_the_reward_is_refused_before_the_finetuning(tmp_path: Path):
    with pytest.raises(ValueError, match="smollm2 is no preference model"):
        code_study(CodeStudy(model="smollm2", pm="smollm2", device="cpu", out=tmp_path / "o"))
    assert not (tmp_path / "o").exists()


@here
def test_problems_too_long_for_the_model_are_refused_before_the_finetuning(tmp_path: Path):
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=264, max_positions=16, seed=0)
    config = CodeStudy(model="toy", device="cpu", dtype="float32", threads=1, out=tmp_path / "o")
    with pytest.raises(ValueError, match="reads 16"):
        code_study(config, lm=LM(model, byte_tokenizer()), reward_fn=length, prompts=PROMPTS)
    assert not (tmp_path / "o" / "finetuned").exists()


@here
def test_another_reward_is_another_study(tmp_path: Path):
    study(tmp_path, max_time=0.0)
    study(tmp_path, max_time=0.0)
    with pytest.raises(ValueError, match="another"):
        study(tmp_path, reward_fn=lambda ds: [-len(d.last.text) for d in ds], max_time=0.0)
