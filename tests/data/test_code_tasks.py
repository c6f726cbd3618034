"""Programming problems: our easy functions, files in HumanEval's format, and what is run for an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from truing.data import sandbox
from truing.data.code_tasks import STOPS, STUBS, CodeTask, code_prompt, load_tasks, program, stops, task_to_row
from truing.data.easy_functions import easy_tasks, families, solved
from truing.data.files import DataError
from truing.data.sandbox import Limits, run_many, run_python

here = pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
TASK = CodeTask(
    "t/1",
    'def double(x):\n    """Return x twice."""\n',
    "double",
    "    return 2 * x\n",
    "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate('a') == 'aa'\n",
)


def passing(tries: list[tuple[str, str]]) -> list[str]:
    """Names of the programs that come to their end, all run in one sandbox to save time."""
    run = "for name, text in tries:\n    try: exec(text, {})\n    except Exception: continue\n    print(name)"
    found = run_python(f"tries = {tries!r}\n{run}", Limits(cpu_seconds=20, wall_seconds=60))
    assert found.ok, found
    return found.output.splitlines()


@here
def test_solutions_of_all_easy_functions_pass_their_hidden_tests():
    """Row 24 of the paper's table: canonical solutions pass 100%."""
    tasks = easy_tasks()
    assert passing([(t.task_id, program(t, t.solution)) for t in tasks]) == [t.task_id for t in tasks]
    assert all(found.ok for found in run_many([program(t, t.solution) for t in tasks[::20]]))


@here
def test_no_stub_passes_a_hidden_test():
    """Row 24: stubs pass 0%, those that give back an argument too."""
    tries = []
    for task in easy_tasks():
        arguments = re.search(r"\((.*)\)", task.prompt)
        assert arguments
        echoes = [f"\n    return {name}" for name in arguments[1].split(", ")]
        tries += [(f"{task.task_id} {stub}", program(task, stub)) for stub in (*STUBS, *echoes)]
    assert passing(tries) == []


def test_easy_functions_are_many_all_different_and_follow_from_the_seed():
    tasks = easy_tasks()
    assert (len(families()), len(tasks)) == (54, 193), "as the docs say"
    assert len({task.task_id for task in tasks}) == len({task.prompt for task in tasks}) == len(tasks)
    assert tasks == easy_tasks() and [t.test for t in tasks] != [t.test for t in easy_tasks(seed=1)]
    assert all(task.cluster == task.task_id.split("/")[1] for task in tasks)
    with pytest.raises(ValueError, match="split is 'dev'; expected all, train or test"):
        easy_tasks(split="dev")  # type: ignore[arg-type]


def test_halves_for_training_and_testing_share_families_and_no_problem():
    train, test = easy_tasks(split="train"), easy_tasks(split="test")
    assert {t.family for t in train} == {t.family for t in test} and not {*train} & {*test}
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    assert {*train, *test} == {*easy_tasks()}


def test_the_hidden_test_is_hidden():
    """The example that a prompt shows is not among what is tested: a look-up table of it is no solution."""
    for task in easy_tasks():
        call = re.search(r">>> \w+(\(.*\))\n", task.prompt)
        assert call and f"candidate{call[1]}" not in task.test
        assert task.test.count("assert") == 8 and "assert" not in task.prompt
        assert solved(task).startswith(task.prompt) and "return" in solved(task)


def test_a_program_is_the_problem_the_completion_and_the_test():
    text = program(TASK, "\n    return x + x")
    assert text.index("def double") < text.index("return x + x") < text.index("def check") < text.index("check(double)")
    exec(text, {})
    with pytest.raises(AssertionError):
        exec(program(TASK, "\n    return 6"), {})


def test_an_unclosed_string_does_not_swallow_the_test():
    """Otherwise a completion that opens a docstring and breaks off would pass."""
    with pytest.raises(SyntaxError):
        exec(program(TASK, '\n    """'), {})


def test_the_hhh_prompt_stands_before_the_problem_and_its_stops_with_it():
    alone, after = code_prompt(TASK), code_prompt(TASK, "hhh-short")
    assert alone == TASK.prompt.rstrip("\n") and stops() == [*STOPS], "no newline for its token to be torn apart at"
    assert after.endswith(alone) and after.count(alone) == 2, "asked by the human, begun by the assistant"
    assert "\n\nAssistant:" in after.rpartition("-----")[2] and "\n\nHuman:" in stops("hhh-short")
    assert len(code_prompt(TASK, "hhh")) > len(after) > 4000
    with pytest.raises(ValueError, match="context is 'polite'; expected none, hhh or hhh-short"):
        code_prompt(TASK, "polite")  # type: ignore[arg-type]


def test_files_in_humanevals_format_come_back_as_they_were(tmp_path: Path):
    rows = [task_to_row(TASK), task_to_row(easy_tasks()[0])]
    assert [*rows[0]] == ["task_id", "prompt", "entry_point", "canonical_solution", "test"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_tasks(tmp_path / "p.jsonl") == [TASK, easy_tasks()[0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": None}, "line 2: field 'test': is None"),
        ({"test": "assert double(1) == 2"}, "line 2: field 'test': defines no function check"),
        ({"entry_point": "a b"}, "line 2: field 'entry_point': is 'a b'"),
        ({"entry_point": "class"}, "expected the name of a function"),
        ({"task_id": "t/1"}, "'t/1' stands in line 1 too"),
        ({"prompt": " "}, "field 'prompt': is ' '; expected text"),
    ],
)
def test_rows_that_are_no_problem_are_named(tmp_path: Path, change: dict[str, Any], said: str):
    rows = [task_to_row(TASK), task_to_row(TASK) | {"task_id": "t/2"} | change]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=re.escape(said)):
        load_tasks(tmp_path / "p.jsonl")
