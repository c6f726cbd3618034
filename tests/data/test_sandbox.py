"""What model-written programs may do: compute, print and use /tmp. Everything else is contained."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from truing.data import sandbox
from truing.data.sandbox import Limits, NoSandbox, run_many, run_python

here = pytest.mark.skipif(bool(sandbox.why_not()), reason=sandbox.why_not())
QUICK = Limits(cpu_seconds=1, wall_seconds=5, memory_mib=128, output_kib=16)
SHORT = replace(QUICK, wall_seconds=0.5)


def lives(marker: str, seconds: float = 2) -> bool:
    """Whether a process with this word on its command line is still there after some time."""
    end = time.monotonic() + seconds
    while found := any(marker in _command_line(p) for p in Path("/proc").glob("[0-9]*")):
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    return found


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


@here
def test_a_program_computes_prints_and_writes_into_tmp():
    program = "import math\nopen('/tmp/a', 'w').write('é')\nprint(open('a').read(), math.factorial(5))"
    found = run_python(program, QUICK)
    assert found.ok and found.output == "é 120\n"
    assert not run_python("open('/tmp/a')", QUICK).ok, "nothing is left for the next one"


@here
@pytest.mark.parametrize(
    "leave", ["1 / 0", "raise SystemExit", "import sys; sys.exit(0)", "import os; os._exit(0)", "("]
)
def test_only_a_program_that_came_to_its_end_is_ok(leave: str):
    """Catches taking exit code 0 for success: a program that leaves before its tests has not passed them."""
    found = run_python(f"{leave}\nassert False, 'the hidden test'", QUICK)
    assert found.status == "error" and "hidden" not in found.output.splitlines()[-1:]


@here
@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("while True: pass", "timeout"),
        ("import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("import os, sys\nos.close(1); os.close(2)\nimport time; time.sleep(60)", "timeout"),
        ("while True: print('x' * 1000)", "output"),
        ("x = bytearray(1 << 30)", "error"),
        ("x = []\nwhile True: x.append('y' * len(x))", "error"),
        ("open('/tmp/big', 'wb').write(bytes(64 << 20))", "error"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)\nos.abort()", "error"),
        ("import os\nos.killpg(0, 9)", "error"),
        ("import ctypes\nctypes.string_at(0)", "error"),
    ],
)
def test_what_takes_too_much_or_kills_ends_alone(program: str, status: str):
    found = run_python(program, SHORT if "sleep" in program else QUICK)
    assert found.status == status, found
    assert found.seconds < QUICK.wall_seconds + 5 and len(found.output) <= QUICK.output_kib << 10


@here
def test_a_fork_bomb_stops_at_its_limit_and_leaves_nothing():
    bomb = """
import os, sys, time
made = 0
while made < 200:
    try:
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "truing-fork-bomb"])
        made += 1
    except BlockingIOError:
        break
print(made)
"""
    found = run_python(bomb, QUICK)
    assert found.ok and 1 <= int(found.output.split()[-1]) < QUICK.processes
    assert not lives("truing-fork-bomb")
    endless = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run_python(endless, SHORT).status == "timeout"
    assert run_python("print(1)", QUICK).ok, "the next program has its own share"


@here
def test_a_background_process_dies_with_its_program():
    program = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", "truing-left"])
    os._exit(0)
time.sleep(0.3)
print("left")
"""
    found = run_python(program, QUICK)
    assert found.output == "left\n" and found.seconds < QUICK.wall_seconds, "nobody waits for it"
    assert not lives("truing-left")


@here
def test_no_network_not_even_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (("127.0.0.1", port), ("1.1.1.1", 53)):
            found = run_python(f"import socket\nsocket.create_connection({address!r}, 1)", QUICK)
            assert found.status == "error" and "Errno" in found.output, found


@here
def test_neither_files_nor_environment_nor_open_files_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRUING_API_KEY", "secret")
    (tmp_path / "key").write_text("secret")
    os.chmod(tmp_path / "key", 0o666)
    mine = os.open(tmp_path / "key", os.O_RDWR)
    os.set_inheritable(mine, True)
    for target in (tmp_path / "key", Path.home(), "/etc/passwd", "/proc/self/environ", "/root", "/home"):
        assert not run_python(f"import os\nassert os.path.exists({str(target)!r})", QUICK).ok, target
    program = """
import os
print(dict(os.environ))
for i in range(3, 64):
    try:
        os.fstat(i)
        print("open", i)
    except OSError:
        pass
"""
    found = run_python(program, QUICK)
    os.close(mine)
    assert found.ok and "secret" not in found.output and "open" not in found.output, found.output


@here
def test_nothing_outside_tmp_can_be_written(tmp_path: Path):
    folders = ["/", "/usr", "/usr/lib", "/dev", "/dev/shm", "/etc", os.path.dirname(os.__file__)]
    program = f"""
import os
for folder in [*{folders!r}, os.path.dirname(os.__file__)]:
    try:
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, "truing-was-here"), "w")
    except OSError:
        continue
    print("written:", folder)
"""
    found = run_python(program, QUICK)
    assert found.ok and found.output == ""
    assert not any(os.path.exists(os.path.join(folder, "truing-was-here")) for folder in folders)
    assert run_python(f"import os\nos.makedirs({str(tmp_path / 'new')!r})", QUICK).ok, "in a /tmp of its own"
    assert not (tmp_path / "new").exists()


@here
def test_many_programs_side_by_side_in_order():
    told: list[tuple[int, int]] = []
    programs = [f"print({i % 5})" for i in range(20)]
    found = run_many(programs, QUICK, workers=4, progress=lambda *x: told.append(x))
    assert [f.output for f in found] == [f"{i % 5}\n" for i in range(20)]
    assert told[-1] == (5, 5), "equal programs run once"
    began = time.monotonic()
    assert all(f.ok for f in run_many([f"import time; time.sleep(1)  # {i}" for i in range(4)], QUICK, workers=4))
    assert time.monotonic() - began < 3.5


@here
@pytest.mark.parametrize(
    ("gone", "more", "said"),
    [
        ("--unshare-net", [], "network"),
        ("--unshare-pid", [], "processes"),
        ("--clearenv", [], "environment"),
        ("", ["--ro-bind", "/etc", "/etc"], "/etc/passwd"),
        ("", ["--bind", "/var", "/var"], "/var"),
    ],
)
def test_a_sandbox_with_a_hole_is_none(gone: str, more: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    """The self-test at first use: it is not enough that a program runs."""
    plain, start = sandbox._command, sandbox.subprocess.Popen

    def with_hole(limits: Limits, word: str) -> list[str]:
        full = [part for part in plain(limits, word) if part != gone]
        at = full.index("--chdir")
        return full[:at] + more + full[at:]

    monkeypatch.setattr(sandbox, "_command", with_hole)
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, env, **k: start(*a, env={"SEEN": "1"}, **k))
    assert said in sandbox.why_not.__wrapped__()


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch):
    """Catches a silent fallback to running it here."""
    sandbox.why_not.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, **k: pytest.fail("it ran"))
    try:
        for run in (lambda: run_python("print(1)"), lambda: run_many(["print(1)"])):
            with pytest.raises(NoSandbox, match="bubblewrap is not installed.*apt install bubblewrap"):
                run()
    finally:
        sandbox.why_not.cache_clear()


@here
def test_a_sandbox_that_does_not_start_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    false = tmp_path / "bwrap"
    false.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    false.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(false))
    said = sandbox.why_not.__wrapped__()
    assert "No permissions to create new namespace" in said and "apparmor" in said
