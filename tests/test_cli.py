"""The command line's contract: what is found, what is printed where, and with which exit code."""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing import cli, configs

SCRIPT = Path(sys.executable).parent / "truing"
GAMES = (
    '{"a": "base", "b": "rlhf", "winner": "b", "conversation": 1}\n'
    '{"a": "base", "b": "rlhf", "winner": "a", "conversation": 2}\n'
)
PAIRS = (
    '{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: Go."}\n'
    '{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!"}\n'
)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "games.jsonl").write_text(GAMES)
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, stdout and stderr of one command in this process."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(argv))
        except SystemExit as end:  # tyro ends by itself on --help and on wrong flags
            code = end.code if isinstance(end.code, int) else 1
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `truing elo` raise."""

    def set_up(problem: BaseException) -> None:
        def broken(config: Any) -> None:
            raise problem

        monkeypatch.setattr("truing.measure.elo.elo", broken)

    return set_up


def script(*argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *argv], capture_output=True, text=True, timeout=120, **kwargs)


# ---------------------------------------------------------------- finding a verb


def test_help_answers_within_a_second_and_without_torch():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = script("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU seconds: a busy machine must not fail this
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0
    assert answer.returncode == 0 and "truing pm train" in answer.stdout
    code = (
        "import sys; from truing import cli; cli.main(['--help']); "
        "sys.exit(3 if {'torch', 'tyro', 'numpy'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_options_of_a_verb_are_shown_without_torch():
    code = (
        "import sys; from truing import cli\n"
        "try: cli.main(['pm', 'train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout and "--lr" in done.stdout


def test_help_of_a_group(call: Call):
    code, out, _ = call("pm", "--help")
    assert code == 0 and "truing pm train" in out and "truing rlhf" not in out
    code, out, err = call("pm")
    assert code == 2 and out == "" and "truing pm eval" in err
    assert call()[0] == 2
    assert call("--version")[1].startswith("truing ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pm", "trian"], "`truing pm train`"),
        (["elho"], "`truing elo`"),
        (["train"], "`truing pm train` or `truing rlhf train`"),
        (["honsety", "choices"], "`truing honesty`"),
        (["zzzz"], "`truing --help` lists"),
    ],
)
def test_unknown_verbs_name_the_nearest(call: Call, argv: list[str], said: str):
    code, out, err = call(*argv)
    assert code == 2 and out == "" and said in err


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_exists_and_takes_its_dataclass(name: str):
    verb = cli.VERBS[name]
    module, function = verb.function.split(":")
    fn = getattr(importlib.import_module(module), function)
    hints = typing.get_type_hints(fn)
    first = next(k for k in hints if k != "return")
    assert hints[first] is getattr(configs, verb.config)
    assert name.split()[0] in cli.GROUPS or " " not in name


# ---------------------------------------------------------------- options


def test_wrong_flags_and_values_are_wrong_usage(call: Call):
    assert call("elo")[0] == 2
    code, _, err = call("elo", "games.jsonl", "--ancor", "base")
    assert code == 2 and "--anchor" in err
    code, _, err = call("elo", "games.jsonl", "--seed", "many")
    assert code == 2 and "seed" in err


def test_options_come_from_a_file_and_flags_win(call: Call, here: Path):
    (here / "o.yaml").write_text("file: games.jsonl\nanchor: rlhf\nseed: 3\n")
    code, out, _ = call("elo", "--config", "o.yaml", "--anchor", "base", "--json", "--out", "o")
    assert code == 0 and json.loads(out)["numbers"]["elo/base"]["value"] == 0
    held = (here / "o" / "config.yaml").read_text()
    assert "seed: 3" in held and "anchor: base" in held


def test_an_unknown_key_in_the_file_is_wrong_usage(call: Call, here: Path):
    (here / "o.yaml").write_text("file: games.jsonl\nancor: rlhf\n")
    code, out, err = call("elo", "--config", "o.yaml")
    assert code == 2 and out == "" and "'ancor'" in err and "'anchor'" in err
    assert call("elo", "--config", "none.yaml")[0] == 1


# ---------------------------------------------------------------- what is printed


def test_json_is_the_summary_and_nothing_else(call: Call, here: Path):
    code, out, err = call("elo", "games.jsonl", "--json", "--out", "o")
    assert code == 0
    summary = json.loads(out)
    assert summary == json.loads((here / "o" / "summary.json").read_text())
    assert set(summary) >= {"verb", "run", "numbers", "notes"}
    assert set(summary["numbers"]["elo/rlhf"]) == {"value", "low", "high", "n", "unit"}
    assert (here / "o" / "report.html").exists()
    again = call("elo", "games.jsonl", "--json", "--out", "o")
    assert json.loads(again[1]) == summary, "a finished run is returned"


def test_prints_of_a_verb_go_to_stderr(call: Call, monkeypatch: pytest.MonkeyPatch):
    import truing.measure.elo as module

    real = module.elo

    def chatty(config: Any) -> Any:
        print("said on the way")
        return real(config)

    monkeypatch.setattr(module, "elo", chatty)
    _, out, err = call("elo", "games.jsonl", "--json")
    json.loads(out)
    assert "said on the way" in err


def test_without_json_there_is_a_table_and_where_results_lie(call: Call):
    code, out, _ = call("elo", "games.jsonl")
    assert code == 0 and "elo/rlhf" in out and "95% interval" in out
    assert "Page: runs/elo-games-" in out and "report.html" in out


def test_a_check_that_fails_exits_3_and_still_prints(call: Call):
    assert call("data", "check", "pairs.jsonl")[0] == 0
    code, out, _ = call("data", "check", "pairs.jsonl", "--strict", "--json")
    assert code == 3 and json.loads(out)["numbers"]["identical_pairs"]["value"] == 1
    assert json.loads(out)["run"] is None and not Path("runs").exists()


def test_a_verb_without_run_makes_one_with_out(call: Call, here: Path):
    code, out, _ = call("data", "check", "pairs.jsonl", "--out", "o", "--json")
    assert code == 0 and json.loads(out)["run"] == "o"
    assert json.loads((here / "o" / "summary.json").read_text())["numbers"]["usable"]["value"] == 1
    assert (here / "o" / "report.html").exists()
    code, _, err = call("elo", "games.jsonl", "--out", "o")
    assert code == 1 and "data check" in err, "a folder that holds another run is refused"


def test_dry_run_computes_nothing(call: Call):
    code, out, _ = call("elo", "games.jsonl", "--dry-run")
    assert code == 0 and "2 games" in out and not Path("runs").exists()


def test_runs_report_and_compare_work_together(call: Call):
    assert json.loads(call("runs", "--json")[1])["runs"] == []
    call("elo", "games.jsonl", "--out", "runs/a")
    call("elo", "games.jsonl", "--out", "runs/b", "--seed", "1")
    code, out, _ = call("runs")
    assert code == 0 and "done" in out and "elo" in out
    assert json.loads(call("runs", "--json")[1])["numbers"]["runs"]["value"] == 2
    Path("runs/a/report.html").unlink()
    assert call("report", "a")[0] == 0 and Path("runs/a/report.html").exists()
    code, out, _ = call("compare", "a", "b", "--json")
    assert code == 0 and json.loads(out)["numbers"]["elo/rlhf"]["value"] == 0
    assert call("report", "a", "b", "--out", "both")[0] == 0 and Path("both/report.html").exists()
    code, _, err = call("compare", "a", "nothing")
    assert code == 1 and "a, b" in err, "runs there are, are named"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (ValueError("pairs.jsonl, line 3: field 'chosen' is missing"), "line 3: field 'chosen' is missing"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.jsonl"), "there is no file x.jsonl"),
        (PermissionError(errno.EACCES, "denied", "x.jsonl"), "no permission for x.jsonl"),
        (IsADirectoryError(errno.EISDIR, "is a directory", "x"), "x is a folder"),
        (OSError(errno.ENOSPC, "No space left", "runs/x"), "the disk is full while writing runs/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full. Nothing"),
        (BrokenPipeError(), "stopped reading"),
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), "needs the package 'datasets'"),
        (RuntimeError("shape mismatch\nmore"), "unexpected RuntimeError: shape mismatch"),
        (KeyError("k"), "unexpected KeyError"),
    ],
)
def test_problems_are_one_message_without_traceback(
    call: Call, fails: Callable[[BaseException], None], problem: Exception, said: str
):
    fails(problem)
    code, out, err = call("elo", "games.jsonl", "--json")
    assert code == 1 and out == "" and said in err and "Traceback" not in err
    assert ("--debug" in err) == ("unexpected" in err)


def test_debug_shows_where_it_comes_from(fails: Callable[[BaseException], None]):
    fails(ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        cli.main(["elo", "games.jsonl", "--debug"])


def test_an_interrupt_says_how_to_go_on(call: Call, fails: Callable[[BaseException], None]):
    fails(KeyboardInterrupt())
    code, out, err = call("elo", "games.jsonl", "--out", "a b")
    assert code == 130 and out == "" and "truing elo games.jsonl --out 'a b'" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ["bad.jsonl"]),
        ("", ["bad.jsonl", "empty"]),
        ('{"a": "x"\n', ["bad.jsonl", "line 1", "JSON"]),
        (
            GAMES + '{"a": "base", "b": "rlhf", "winner": "rlhf", "conversation": 1}\n',
            ["bad.jsonl", "line 3", "winner"],
        ),
    ],
)
def test_bad_files_are_named_with_line_and_field(call: Call, here: Path, content: str | None, said: list[str]):
    if content is not None:
        (here / "bad.jsonl").write_text(content)
    code, out, err = call("elo", "bad.jsonl", "--json")
    assert code == 1 and out == "" and "Traceback" not in err
    assert all(words in err for words in said), err
    assert not Path("runs").exists(), "nothing is half-written"


def test_the_script_itself_ends_well_when_nobody_reads_on():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([SCRIPT, "elo", "games.jsonl", "--json"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1 and "stopped reading" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_full_disk_is_said(call: Call):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run([SCRIPT, "elo", "games.jsonl", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "disk is full" in done.stderr and "Traceback" not in done.stderr


def test_text_that_is_not_utf8_is_said_and_text_that_cannot_be_printed_is_not_blamed_on_the_input():
    assert "not UTF-8" in cli.explain(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    said = cli.explain(UnicodeEncodeError("ascii", "x" * 999 + "é", 999, 1000, "ordinal not in range"))
    assert "takes ascii, which has no 'é'" in said and "PYTHONIOENCODING" in said and "xxx" not in said
