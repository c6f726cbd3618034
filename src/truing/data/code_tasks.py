"""Programming problems with hidden tests, in HumanEval's format; files of them, and what is run for an answer.

A problem is the beginning of a Python function; a model writes on. An answer is right if the program made of the
problem, the model's text and the hidden test comes to its end (2204.05862 §5.3; Chen et al. 2021).
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from truing.data.files import DataError, read_rows
from truing.data.prompts import hhh_prompt

Context = Literal["none", "hhh", "hhh-short"]
STOPS = ("\ndef", "\nclass", "\nif", "\nprint", "\n#")
"""Where the function that is asked for is over: at the next thing that begins a line."""
STUBS = tuple(f"\n    {line}" for line in ("pass", "return None", "return 0", "return True", "return ''", "return []"))
"""Answers that no test may let through."""
ASKED = (
    "\n\nHuman: Could you finish this Python function for me? Its signature and its docstring are there, but the body "
    "is still to be written:\n\n{prompt}\n    # to be written\n\nAssistant: Certainly. This is the whole function, "
    "with its body:\n\n{prompt}"
)


@dataclass(frozen=True, slots=True)
class CodeTask:
    """One problem. ``test`` defines ``check(candidate)``; problems of one ``family`` are variants of each other.

    >>> task = CodeTask("t", "def one():\\n", "one", "    return 1\\n", "def check(c): assert c() == 1")
    >>> program(task, task.solution)
    'def one():\\n    return 1\\n\\n\\ndef check(c): assert c() == 1\\n\\ncheck(one)\\n'
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str
    family: str = ""

    @property
    def cluster(self) -> str:
        """What is resampled together: the family, or the problem itself."""
        return self.family or self.task_id

    @property
    def solution(self) -> str:
        """The canonical solution as a completion of `code_prompt`, which leaves out the last newline."""
        return f"\n{self.canonical_solution}"


def program(task: CodeTask, completion: str) -> str:
    """What is run to see whether a completion of `code_prompt` is right."""
    return f"{task.prompt.rstrip()}{completion}\n\n{task.test}\n\ncheck({task.entry_point})\n"


def code_prompt(task: CodeTask, context: Context = "none") -> str:
    """What a model goes on from: the problem alone, or after the HHH prompt, as an assistant's answer begun.

    It ends in the last quotes of the docstring: in most tokenizers a newline and the indent after it are one token, and
    a prompt that ends in the newline leaves models without it (SmolLM2 then solves 0% in place of half).
    The paper found that its HHH prompt helps a code model about as much as RLHF (§5.3, App B.8); words are ours.
    Raises ValueError for another context.
    """
    if context not in ("none", "hhh", "hhh-short"):
        raise ValueError(f"context is {context!r}; expected none, hhh or hhh-short.")
    if context == "none":
        return task.prompt.rstrip()
    return hhh_prompt(short=context == "hhh-short") + ASKED.format(prompt=task.prompt.rstrip())


def stops(context: Context = "none") -> list[str]:
    """The strings at which a completion ends."""
    return [*STOPS, *([] if context == "none" else ["\n\nHuman:", "\n\n-----", "\n```"])]


def load_tasks(path: str | Path) -> list[CodeTask]:
    """Problems of a file or hub data set in HumanEval's format, ``family`` optional.

    Raises DataError naming file, line and field on what is missing, is no function or stands there twice.
    """
    out: list[CodeTask] = []
    seen: dict[str, int] = {}
    for line, row in read_rows(path):
        task = row_to_task(row, path, line)
        if task.task_id in seen:
            problem = f"{task.task_id!r} stands in line {seen[task.task_id]} too"
            raise DataError(path, problem, line=line, field="task_id")
        seen[task.task_id] = line
        out.append(task)
    return out


def row_to_task(row: Mapping[str, Any], file: object = "row", line: int | None = None) -> CodeTask:
    """One problem from a row; without a canonical solution there is none to try the test with."""
    texts = {}
    for name in ("task_id", "prompt", "entry_point", "test"):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            problem = f"is {value!r}; expected text" if name in row else f"missing; the row has {', '.join(row)}"
            raise DataError(file, problem, line=line, field=name)
        texts[name] = value
    name = texts["entry_point"]
    if not name.isidentifier() or keyword.iskeyword(name):
        raise DataError(file, f"is {name!r}; expected the name of a function", line=line, field="entry_point")
    if "check" not in texts["test"]:
        raise DataError(file, "defines no function check(candidate), which is called", line=line, field="test")
    solution, family = row.get("canonical_solution"), row.get("family")
    return CodeTask(**texts, canonical_solution=str(solution or ""), family=str(family or ""))


def task_to_row(task: CodeTask) -> dict[str, Any]:
    """The row of a problem; without a family it has HumanEval's fields and no other."""
    row = asdict(task)
    return row if task.family else {k: v for k, v in row.items() if k != "family"}
