"""Options from files and repeated flags: converted by type, or refused with what would be right."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from truing import options
from truing.configs import PMTrain, alias
from truing.options import Usage


@dataclass(kw_only=True)
class Example:
    data: Annotated[list[str], alias("train-file")]
    rate: Annotated[float, alias("lr", "learning-rate")] = 1.0
    steps: int = 1
    flag: bool = False
    shape: Literal["a", "b"] = "a"
    out: Path | None = None
    limit: float | None = None
    more: list[int] = field(default_factory=list)


def given(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "o.yaml").write_text(text)
    return options.fields_from_file(Example, tmp_path / "o.yaml")


def test_values_take_the_type_of_their_field(tmp_path: Path):
    text = "data: one.jsonl\nlr: 3e-5\nsteps: '7'\nflag: true\nshape: b\nout: x/y\nlimit: null\nmore: [1, 2.0]\n"
    found = given(tmp_path, text)
    assert found == {
        "data": ["one.jsonl"], "rate": 3e-5, "steps": 7, "flag": True, "shape": "b", "out": Path("x/y"),
        "limit": None, "more": [1, 2],
    }  # fmt: skip
    assert isinstance(found["rate"], float) and isinstance(found["more"][1], int)


@pytest.mark.parametrize("key", ["train-file", "train_file", "data"])
def test_aliases_work_in_files(tmp_path: Path, key: str):
    assert given(tmp_path, f"{key}: [a, b]")["data"] == ["a", "b"]


def test_an_empty_file_and_json_are_fine(tmp_path: Path):
    assert given(tmp_path, "") == {}
    assert given(tmp_path, '{"steps": 3}') == {"steps": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3", "unknown option 'stepz'. Did you mean 'steps'"),
        ("zzz: 3", "unknown option 'zzz'. Known: data, rate"),
        ("steps: 1.5", "steps is 1.5; expected a whole number"),
        ("steps: true", "steps is True; expected a whole number"),
        ("rate: fast", "rate is 'fast'; expected a number"),
        ("flag: 3", "flag is 3; expected true or false"),
        ("shape: c", "shape is 'c'; expected one of a, b"),
        ("rate: null", "rate is None; expected a number"),
        ("data: {a: 1}", "expected text"),
        ("- 1", "holds a list"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str):
    with pytest.raises(Usage) as wrong:
        given(tmp_path, text)
    assert said in str(wrong.value) and "o.yaml" in str(wrong.value)


def test_repeated_list_flags_are_joined_and_others_left_alone():
    argv = ["--data", "a", "--steps", "2", "--train-file", "b", "c", "--rate=3", "--data=d", "-h"]
    assert options.join_repeated(argv, Example) == ["--steps", "2", "--rate=3", "-h", "--data", "a", "b", "c", "d"]
    assert options.join_repeated(["--eval_data", "x"], PMTrain) == ["--eval-data", "x"]


def test_required_fields_are_those_without_a_default():
    assert options.required(Example) == ["data"] and set(options.required(PMTrain)) == {"init", "data"}


def test_the_config_file_is_taken_out():
    assert options.take_config(["a", "--config", "f.yaml", "--x"]) == (["a", "--x"], Path("f.yaml"))
    assert options.take_config(["--config=f.yaml"]) == ([], Path("f.yaml"))
    assert options.take_config(["a"]) == (["a"], None)
    with pytest.raises(Usage, match="--config needs a file"):
        options.take_config(["--config"])
