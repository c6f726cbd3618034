"""Easy Python functions, generated: families of problems on which a small model is above 0, with hidden tests.

Every family has some variants: other names, other constants. Tests are drawn by the seed from the family's own
solution; the example in the docstring is not among them. Half of each family's variants can be kept for training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from truing.data.code_tasks import CodeTask

Split = Literal["all", "train", "test"]
TESTS = 8
VARIANTS = 4


class Family(NamedTuple):
    """A function in variants: ``{k}`` is one of ``ks``, ``{a}`` and ``{b}`` are its arguments, of the kinds ``takes``.

    Its own names are taken in turn, and so are those of its arguments.
    """

    names: list[str]
    takes: list[str]
    doc: str
    body: str
    ks: Sequence[Any] = ("",)


LETTERS = "aaabcdeeefghiiklmnooprsstuw"
ARGUMENTS = {
    "int": (("a", "b"), ("x", "y"), ("n", "m"), ("first", "second")),
    "ints": (("numbers", "others"), ("values", "more"), ("items", "rest"), ("xs", "ys")),
    "text": (("s", "t"), ("text", "other"), ("word", "ending"), ("string", "suffix")),
}


def families() -> list[Family]:
    """The table of functions, packaged beside the prompts."""
    lines = (files("truing.data") / "prompts" / "easy_functions.jsonl").read_text("utf-8").splitlines()
    return [Family(**json.loads(line)) for line in lines]


def easy_tasks(seed: int = 0, split: Split = "all") -> list[CodeTask]:
    """The problems, in variants of one family after the other; ``train`` and ``test`` are halves of every family.

    Raises ValueError for another split.
    """
    if split not in ("all", "train", "test"):
        raise ValueError(f"split is {split!r}; expected all, train or test.")
    out = []
    for family in families():
        count = min(VARIANTS, max(len(family.names), len(family.ks)))
        for i in range(count):
            if split == "all" or (split == "train") == (i < count // 2):
                out.append(_task(family, i, seed))
    return out


def solved(task: CodeTask) -> str:
    """A problem with its solution, to train on."""
    return task.prompt + task.canonical_solution


def _task(family: Family, variant: int, seed: int) -> CodeTask:
    key, kinds = family.names[0].format(k="k"), family.takes
    rng = random.Random(f"{seed} {key} {variant}")
    names = _arguments(kinds, variant)
    slots = {"k": family.ks[variant % len(family.ks)], **dict(zip("ab", names, strict=False))}
    name = family.names[variant % len(family.names)].format(**slots)
    doc, body = family.doc.format(**slots), family.body.format(**slots)
    solution = "".join(f"    {line}\n" for line in body.splitlines())
    head = f"def {name}({', '.join(names)}):\n"
    space: dict[str, Any] = {}
    exec(head + solution, space)  # ours, from the packaged table
    cases = _cases(space[name], kinds, rng)
    (shown, told), *hidden = cases
    example = f"    >>> {name}({', '.join(map(repr, shown))})\n    {told!r}\n"
    test = "".join(f"    assert candidate({', '.join(map(repr, given))}) == {want!r}\n" for given, want in hidden)
    return CodeTask(
        task_id=f"easy/{key}/{variant}",
        prompt=f'{head}    """{doc}\n\n{example}    """\n',
        entry_point=name,
        canonical_solution=solution,
        test=f"def check(candidate):\n{test}",
        family=key,
    )


def _arguments(kinds: list[str], variant: int) -> list[str]:
    """Names for arguments: of two of a kind the pair's, else the first of each kind."""
    kinds = [{"nat": "int", "words": "text", "digits": "text"}.get(kind, kind) for kind in kinds]
    pools = [ARGUMENTS[kind][variant % len(ARGUMENTS[kind])] for kind in kinds]
    return [pool[kinds[:i].count(kinds[i])] for i, pool in enumerate(pools)]


def _cases(function: Callable[..., Any], kinds: list[str], rng: random.Random) -> list[tuple[tuple[Any, ...], Any]]:
    """Arguments, all different, with what the function gives: one to show, the others hidden.

    The hidden have two different results or more, and no argument is always the result: a stub is not right by chance.
    """
    while True:
        given: dict[str, tuple[Any, ...]] = {}
        while len(given) < TESTS + 1:
            some = tuple(_draw(kind, rng) for kind in kinds)
            given.setdefault(repr(some), some)
        cases = [(some, function(*some)) for some in given.values()]
        results = [repr(result) for _, result in cases[1:]]
        same = any(
            all(repr(some[i]) == r for (some, _), r in zip(cases[1:], results, strict=True)) for i in range(len(kinds))
        )
        if len(set(results)) > 1 and not same:
            return cases


def _draw(kind: str, rng: random.Random) -> Any:
    if kind in ("int", "nat"):
        return rng.randint(0 if kind == "nat" else -9, 12)
    if kind == "ints":
        return [rng.randint(-4, 9) for _ in range(rng.randint(1, 6))]
    if kind == "digits":
        return str(rng.randint(0, 999))
    if kind == "words":
        return " ".join(_draw("text", rng) for _ in range(rng.randint(1, 4)))
    word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 5)))
    return word + word[::-1] if rng.random() < 0.25 else word
