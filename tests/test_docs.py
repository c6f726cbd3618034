"""What README and docs say is compared with the code: commands, flags, functions, links, file names."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from truing import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block that begins with `truing`."""
    found = []
    for path in PAGES:
        for block in blocks(path.read_text(encoding="utf-8"), "sh"):
            found += [
                (path.name, line.split(" #")[0].strip()) for line in block.splitlines() if line.startswith("truing ")
            ]
    return found


def spans(text: str) -> list[str]:
    """Inline code, and the cells a table's vertical bars are escaped in, without the escapes."""
    return [
        s.replace("\\|", "|") for s in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    ]


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_example_is_a_real_command_with_real_flags(page: str, command: str):
    name, rest = cli.find_verb(shlex.split(command)[1:])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.read_options(name, cli.VERBS[name], rest)
    except SystemExit as wrong:
        pytest.fail(f"{page}: `{command}` is refused: {wrong} {said.getvalue()}")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_commands_named_in_the_text_exist(path: Path):
    for span in spans(path.read_text(encoding="utf-8")):
        words = re.match(r"truing ((?:[a-z]+)(?: [a-z|]+)?)", span)
        if not words or "COMMAND" in span:
            continue
        group, _, verbs = words[1].partition(" ")
        for verb in verbs.split("|") if verbs else [""]:
            known = group in cli.VERBS or f"{group} {verb}".strip() in cli.VERBS or (not verb and group in cli.GROUPS)
            assert known, f"{path.name} names `{span}`"


def test_the_tables_name_every_command():
    for page in ("README.md", "docs/cli.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        missing = [v for v in cli.VERBS if v != "demo" and f"`{v}" not in text and f"truing {v}" not in text]
        assert missing == [], page


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_functions_named_exist(path: Path):
    """`module:function` in papers.md and dotted names such as `truing.train.pm.train_pm` anywhere."""
    for span in spans(path.read_text(encoding="utf-8")):
        named = re.fullmatch(r"((?:[a-z_0-9]+\.)*[a-z_0-9]+):([A-Za-z_0-9.]+)", span)
        dotted = re.match(r"truing((?:\.[a-z_0-9]+)+)\.([A-Za-z_0-9]+)", span)
        if named:
            module, names = f"truing.{named[1]}", named[2]
        elif dotted:
            module, names = f"truing{dotted[1]}", dotted[2]
        else:
            continue
        thing = importlib.import_module(module)
        for name in names.split("."):
            assert hasattr(thing, name), f"{path.name} names `{span}`, and {module} has no {name}"
            thing = getattr(thing, name)


def test_the_papers_page_covers_every_public_part_of_training_and_measuring():
    """A module that trains or measures belongs to a section of a paper."""
    named = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    parts = [p for folder in ("train", "measure") for p in (ROOT / "src" / "truing" / folder).glob("*.py")]
    helpers = {"__init__", "progress", "loop", "parallel", "cost", "cost_of", "score", "serving"}
    missing = [
        f"{p.parent.name}.{p.stem}"
        for p in parts
        if p.stem not in helpers and f"`{p.parent.name}.{p.stem}" not in named
    ]
    assert missing == []


RED_TEAM_ROWS = [1, 2, 4, 5, 6, 7, *range(10, 19), 27, 28, 32, 34, 35]


def test_tests_named_for_mistakes_exist():
    """Every row has its number, and names tests that are there or says what it waits for."""
    text = (ROOT / "docs" / "mistakes.md").read_text("utf-8")
    rows = re.findall(r"^\| (R?\d+) \|[^|]+\|([^|]+)\|$", text, re.M)
    training = len([number for number, _ in rows if number.isdigit()])
    assert training and text.count("\n| R") == len(rows) - training + 2  # two heads of tables
    assert [number for number, _ in rows] == [*map(str, range(1, training + 1)), *(f"R{n}" for n in RED_TEAM_ROWS)]
    for number, said in rows:
        named = re.findall(r"`([^`:]+)::([^`]+)`", said)
        assert named or "none yet: comes with" in said, number
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8"), f"row {number}: {file} has no {test}"


def test_the_layout_in_the_readme_is_the_layout():
    tree = re.search(r"src/truing/\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert tree
    named = {n.rstrip("/") for n in re.findall(r"^[├└]── (\S+)", tree[1], re.M)}
    there = {p.name for p in (ROOT / "src" / "truing").iterdir() if not p.name.startswith("_")} - {
        "py.typed",
        "options.py",
    }
    assert named == there


def test_make_targets_named_in_the_text_exist():
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for path in PAGES:
        for span in [*spans(path.read_text(encoding="utf-8")), *blocks(path.read_text(encoding="utf-8"), "sh")]:
            for line in span.splitlines():
                if line.startswith("make "):
                    words = line.split("#")[0].split()[1:]
                    targets = [
                        w for w in words if "=" not in w and not w.startswith("<") and w not in ("that", "address>")
                    ]
                    assert set(targets) <= made, f"{path.name}: {line}"


def test_the_schema_of_stories_in_the_docs_is_the_one_in_the_code():
    from truing.report import page

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## Pages that tell a story")[1]
    assert page.__doc__
    for key in {*page.STORY_KEYS, *page.SECTION_KEYS, *page.TABLE_KEYS, *page.FIGURE_KEYS}:
        assert f"`{key}`" in text or f'"{key}"' in text, key
        assert f'"{key}"' in page.__doc__, key


def test_python_examples_are_whole():
    for path in PAGES:
        for block in blocks(path.read_text(encoding="utf-8"), "python"):
            ast.parse(block)
