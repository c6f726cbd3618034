"""Where and how to compute: device, precision and threads, measured once and written down."""

from __future__ import annotations

import functools
import os
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MARGIN = 1.15
"""bf16, or one more thread, must be faster by this factor to be taken: noise must not decide."""
ROUNDS = 15
_SHAPE = (512, 576, 1536)


@dataclass(frozen=True)
class Compute:
    """A choice. ``measured`` holds GFLOP/s of one matrix product by ``"THREADS DTYPE"``; empty if nothing was."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    measured: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people: ``cpu, float32, 1 thread``."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.device}, {name}, {self.threads} thread{'s' if self.threads != 1 else ''}"


def choose(device: str = "auto", dtype: str | torch.dtype = "auto", threads: int = 0) -> Compute:
    """Choose what is left to choose (``auto``, 0 threads) and set torch's threads.

    A GPU is taken if there is one, with bf16 where it has it. On a CPU one matrix product is timed with one thread
    and with all, in float32 and bf16. Raises ValueError for a device that is not here, or another dtype.
    """
    chosen = _device(device)
    name = str(dtype).removeprefix("torch.")
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected auto, {' or '.join(DTYPES)}.")
    if threads < 0:
        raise ValueError(f"threads is {threads}; expected 0 (choose) or more.")
    measured: dict[str, float] = {}
    if chosen.type != "cpu":
        name = _accelerator_dtype(chosen) if name == "auto" else name
        threads = threads or torch.get_num_threads()
    elif name == "auto" or threads == 0:
        measured = measure(threads)
        threads, name = pick(measured, threads, name)
    torch.set_num_threads(threads)
    return Compute(chosen, DTYPES[name], threads, measured)


def autocast(device: str | torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to bf16 where that was chosen, else nothing; heads and losses stay in float32 all the same."""
    if dtype in (None, torch.float32):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device is {wanted!r}; expected auto, cpu, cuda, cuda:0 or mps.") from None
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        seen = ", ".join(f"{count} {kind}" for kind, count in here.items() if count)
        raise ValueError(f"device is {wanted!r}, which is not on this machine (there is {seen}). Use --device auto.")
    return device


def _accelerator_dtype(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def pick(measured: dict[str, float], threads: int, dtype: str) -> tuple[int, str]:
    """Threads and dtype from measured speeds; what is given stays. float32 and fewer threads win near ties.

    >>> pick({"1 float32": 90.0, "1 bfloat16": 40.0, "2 float32": 170.0, "2 bfloat16": 70.0}, 0, "auto")
    (2, 'float32')
    """
    best: tuple[int, str] = (0, "")
    for key, speed in sorted(
        measured.items(), key=lambda item: (int(item[0].split()[0]), item[0].split()[1] != "float32")
    ):
        count, name = int(key.split()[0]), key.split()[1]
        if threads not in (0, count) or dtype not in ("auto", name):
            continue
        if not best[0] or speed > MARGIN * measured[f"{best[0]} {best[1]}"]:
            best = (count, name)
    return best


@functools.cache
def measure(threads: int = 0) -> dict[str, float]:
    """GFLOP/s of a matrix product of the packaged model's size, by ``THREADS DTYPE``; once a process.

    Medians over rounds that take turns, for a core that is lent to others for a moment must not decide.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [threads] if threads else sorted({1, *(2**i for i in range(1, 7) if 2**i < cores), cores})
    seconds: dict[tuple[int, str], list[float]] = {(count, name): [] for count in counts for name in DTYPES}
    before = torch.get_num_threads()
    try:
        for turn in range(ROUNDS):
            best = min((second for taken in seconds.values() for second in taken), default=0.0)
            for (count, name), taken in seconds.items():
                if turn < 3 or min(taken) < 3 * best:  # what cannot win takes no more of anybody's time
                    torch.set_num_threads(count)
                    taken.append(_product(DTYPES[name]))
    finally:
        torch.set_num_threads(before)
    rows, inner, columns = _SHAPE
    work = 2 * rows * inner * columns / 1e9
    return {f"{count} {name}": round(work / statistics.median(taken), 1) for (count, name), taken in seconds.items()}


def _product(dtype: torch.dtype) -> float:
    """Seconds of one matrix product; an untimed one before it wakes the threads."""
    rows, inner, columns = _SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    torch.nn.functional.linear(left, right)
    began = time.perf_counter()
    torch.nn.functional.linear(left, right)
    return time.perf_counter() - began
