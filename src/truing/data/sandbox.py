"""Running Python that a model wrote: in a sandbox of bubblewrap, or not at all.

A program sees the interpreter and its standard library, read-only, and an empty ``/tmp``: no network, no other file,
no other process, no environment. It has limits on time, memory, processes, files and output, and whatever it started
dies with it. There is no way to run it without all of this. What is left is the kernel itself: a program that breaks
the kernel's isolation breaks out.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Memory counts for each of its processes; ``output`` is stdout and stderr together."""

    cpu_seconds: float = 3.0
    wall_seconds: float = 15.0
    memory_mib: int = 512
    processes: int = 8
    file_mib: int = 16
    output_kib: int = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. ``ok``: it came to its last line, without an error and without leaving early.

    ``output`` is what it printed (at most the limit), stderr among stdout; ``seconds`` the wall clock.
    """

    status: Literal["ok", "error", "timeout", "output"]
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the program came to its end."""
        return self.status == "ok"


class NoSandbox(ValueError):
    """There is no safe sandbox on this machine; the message says what to install."""


INSTALL = "Install bubblewrap: `apt install bubblewrap` (Debian, Ubuntu), `dnf install bubblewrap` (Fedora), …"
_INSIDE = """
import os, resource, sys
uid, cpu, memory, processes, size = map(int, sys.argv[1:6])
word = sys.argv.pop()
del sys.argv[1:]
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
for name, most in (("AS", memory), ("NPROC", processes), ("FSIZE", size), ("NOFILE", 64), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
exec(compile(sys.stdin.buffer.read(), "main.py", "exec"), {"__name__": "__main__"})
for file in (sys.stdout, sys.stderr):
    try:
        file.flush()
    except Exception:
        pass
os.write(1, word.encode())
os._exit(0)
"""
"""Gives up root and takes on the limits, for good; runs stdin; says the secret word only at the end of the program."""

_PROBE = """
import os, resource, socket
assert os.getuid() != 0, "runs as root"
assert os.getpid() < 10, "sees the processes outside"
assert [name for _, name in socket.if_nameindex()] == ["lo"], "has a network"
seen = [p for p in ("/home", "/root", "/etc/passwd", "/proc/1", "/var", "/mnt") if os.path.exists(p)]
assert not seen, f"sees {seen}"
assert not {*os.environ} - {"PWD", "LC_CTYPE", "LD_LIBRARY_PATH"}, "has an environment"
for name in ("AS", "NPROC", "FSIZE", "CPU"):
    assert resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] != resource.RLIM_INFINITY, name
for folder in ("/", "/usr", "/dev", "/dev/shm", os.path.dirname(os.__file__)):
    try:
        open(os.path.join(folder, "written"), "w")
    except OSError:
        continue
    raise AssertionError(f"writes into {folder}")
open("/tmp/written", "w").close()
"""


def run_python(program: str, limits: Limits = Limits()) -> Outcome:
    """Run a program in a sandbox of its own, with the standard library and nothing on its stdin.

    That it ended well is told by a random word: only a program that takes its own harness apart could say it early.
    Raises NoSandbox where there is none.
    """
    if problem := why_not():
        raise NoSandbox(f"Programs that a model wrote run only in a sandbox, and there is none here: {problem}")
    return _run(program, limits)


def run_many(
    programs: Sequence[str],
    limits: Limits = Limits(),
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run programs side by side, ``workers`` at a time (0: one per core); equal ones run once. As `run_python`."""
    unique = list(dict.fromkeys(programs))
    found: dict[str, Outcome] = {}
    with ThreadPoolExecutor(workers or _cores()) as pool:
        for program, outcome in zip(unique, pool.map(lambda p: run_python(p, limits), unique), strict=True):
            found[program] = outcome
            if progress:
                progress(len(found), len(unique))
    return [found[program] for program in programs]


@functools.cache
def why_not() -> str:
    """Why there is no safe sandbox on this machine and what to do; empty if there is one, tried out once."""
    if sys.platform != "linux":
        return f"bubblewrap needs Linux and this is {sys.platform}. Use a Linux machine, WSL or a container."
    if not shutil.which("bwrap"):
        return f"bubblewrap is not installed. {INSTALL}"
    tried = _run(_PROBE, Limits(cpu_seconds=10, wall_seconds=30))
    if tried.ok:
        return ""
    said = (tried.output.strip().splitlines() or [tried.status])[-1]
    return (
        f"bubblewrap does not work here ({said}). It needs version 0.5 or newer and user namespaces: on Ubuntu "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, in Docker `--security-opt seccomp=unconfined "
        "--security-opt systempaths=unconfined`."
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(program: str, limits: Limits) -> Outcome:
    word, began = secrets.token_hex(16), time.monotonic()
    with tempfile.TemporaryFile() as source:
        source.write(program.encode("utf-8", "surrogatepass"))
        source.seek(0)
        process = subprocess.Popen(
            _command(limits, word),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd="/",
            start_new_session=True,
        )
    try:
        status, printed = _watch(process, limits, began)
    finally:
        _kill(process)
    if status == "":
        status = "ok" if process.returncode == 0 and printed.endswith(word.encode()) else "error"
        killed = process.returncode in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
        if killed and time.monotonic() - began > limits.cpu_seconds:
            status = "timeout"
    text = printed.decode("utf-8", "replace").removesuffix(word)
    return Outcome(status, text, time.monotonic() - began)  # type: ignore[arg-type]


def _watch(process: subprocess.Popen[bytes], limits: Limits, began: float) -> tuple[str, bytes]:
    """What a program prints until it ends, and which limit it broke, if it did not end."""
    assert process.stdout is not None
    printed, most, end = bytearray(), limits.output_kib << 10, began + limits.wall_seconds
    wait = select.poll()
    wait.register(process.stdout, select.POLLIN)
    while True:
        if not wait.poll(max(0.0, end - time.monotonic()) * 1000):
            return "timeout", bytes(printed)
        piece = os.read(process.stdout.fileno(), 1 << 16)
        printed += piece
        if len(printed) > most:
            return "output", bytes(printed[:most])
        if not piece:
            break
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "timeout", bytes(printed)
    return "", bytes(printed)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End bubblewrap, and with it (``--die-with-parent``, a process space of its own) all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _command(limits: Limits, word: str) -> list[str]:
    """The command line of bubblewrap and of the interpreter in it.

    As root no user namespace is made, because root's limit on processes does not bind inside one: the program gets a
    user of its own instead.
    """
    root = os.geteuid() == 0
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    caps = ["--cap-drop", "ALL", *(["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else [])]
    uid = 61184 + secrets.randbelow(4336) if root else 0  # those of systemd's dynamic users: nobody owns a file
    python, shown = _python()
    numbers = (uid, math.ceil(limits.cpu_seconds), limits.memory_mib << 20, limits.processes, limits.file_mib << 20)
    return [
        shutil.which("bwrap") or "bwrap",
        *([] if root else ["--unshare-user"]),
        *spaces,
        *caps,
        *("--die-with-parent", "--new-session", "--clearenv"),
        *shown,
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(limits.file_mib << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/"),
        *("--", python, "-I", "-S", "-X", "utf8", "-c", _INSIDE, *map(str, numbers), word),
    ]


@functools.cache
def _python() -> tuple[str, tuple[str, ...]]:
    """Where the interpreter is inside, and what of the system it is shown, read-only."""
    shown = ["--ro-bind", "/usr", "/usr", "--dir", "/etc", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            shown += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            shown += ["--ro-bind", name, name]
    python = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    if python.is_relative_to("/usr"):
        return str(python), tuple(shown)
    shown += ["--dir", "/python", "--dir", "/python/bin"]  # else nobody but root may look into them
    shown += ["--ro-bind", str(Path(sys.base_prefix).resolve() / "lib"), "/python/lib"]
    shown += ["--ro-bind", str(python), f"/python/bin/{python.name}", "--setenv", "LD_LIBRARY_PATH", "/python/lib"]
    return f"/python/bin/{python.name}", tuple(shown)
