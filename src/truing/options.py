"""Options from a file and from repeated flags, converted by the types of a ``configs`` dataclass.

Knows no verb and no parser of command lines; every mistake is a ``Usage`` whose text says what would be right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any


class Usage(Exception):
    """Wrong usage: its text goes to stderr, exit code 2."""


def required(cls: type) -> list[str]:
    """Fields without a default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    """Take ``--config FILE`` out of the arguments."""
    for i, word in enumerate(argv):
        if word.startswith("--config="):
            return argv[:i] + argv[i + 1 :], Path(word.split("=", 1)[1])
        if word == "--config":
            if i + 1 == len(argv):
                raise Usage("--config needs a file: --config options.yaml")
            return argv[:i] + argv[i + 2 :], Path(argv[i + 1])
    return argv, None


def join_repeated(argv: list[str], cls: type) -> list[str]:
    """``--data a --data b`` becomes ``--data a b``, for options that take several values."""
    hints = typing.get_type_hints(cls, include_extras=True)
    lists = {flag: f for f, hint in hints.items() if _plain(hint)[0] is list for flag in _flags(f, hint)}
    out: list[str] = []
    values: dict[str, list[str]] = {}
    into: list[str] = out
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag in lists:
            into = values.setdefault(lists[flag], [])
            into += [value] if equals else []
        elif word.startswith("--") or word == "-h":
            into = out
            out.append(word)
        else:
            into.append(word)
    for field, given in values.items():
        out += [f"--{field.replace('_', '-')}", *given]
    return out


def _flags(field: str, hint: Any) -> list[str]:
    names = [f"--{field}"]
    for extra in getattr(hint, "__metadata__", ()):
        names += getattr(extra, "aliases", None) or ()
    return names + [n.replace("_", "-") for n in names] + [n.replace("-", "_").replace("__", "--", 1) for n in names]


def fields_from_file(cls: type, path: Path) -> dict[str, Any]:
    """Options from a YAML (or JSON) file, converted to the types of the dataclass. Raises Usage on any mistake."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as wrong:
        raise Usage(f"{path} is not YAML: {' '.join(str(wrong).split())}") from None
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Usage(f"{path} holds a {type(given).__name__}; expected `option: value` lines.")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {flag[2:].replace("-", "_"): f for f, hint in hints.items() for flag in _flags(f, hint)}
    out = {}
    for key, value in given.items():
        field = names.get(str(key).replace("-", "_"))
        if field is None:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(hints)}."
            raise Usage(f"{path}: unknown option {key!r}.{hint}")
        out[field] = convert(value, hints[field], f"{path}: {key}")
    return out


def rows_from_yaml(path: Path) -> list[Any]:
    """The rows of a YAML (or JSON) file that holds a list. Raises Usage if it is not there or holds none."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as wrong:
        raise Usage(f"{path} cannot be read: {wrong.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as wrong:
        raise Usage(f"{path} is not YAML: {' '.join(str(wrong).split())}") from None
    if not isinstance(given, list):
        raise Usage(f"{path} holds a {type(given).__name__}; expected a list: lines that begin with `- `.")
    return given


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of a type hint without ``Annotated``."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) or hint, typing.get_args(hint)


def convert(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the field's type; YAML 1.1 reads ``3e-5`` as text, so numbers may come as text."""
    kind, args = _plain(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(value, next(a for a in args if a is not type(None)), where)
    if kind is list:
        return [convert(v, args[0], where) for v in (value if isinstance(value, list) else [value])]
    if kind is typing.Literal:
        if value in args:
            return value
        raise Usage(f"{where} is {value!r}; expected one of {', '.join(map(str, args))}.")
    with contextlib.suppress(ValueError, TypeError):
        if kind is bool and isinstance(value, bool):
            return value
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, bool) and (isinstance(value, str) or int(value) == value):
            return int(value)
        if kind in (str, Path) and isinstance(value, str | int | float) and not isinstance(value, bool):
            return kind(str(value))
    expected = {bool: "true or false", float: "a number", int: "a whole number", str: "text", Path: "a path"}
    raise Usage(f"{where} is {value!r}; expected {expected.get(kind, str(kind))}.")
