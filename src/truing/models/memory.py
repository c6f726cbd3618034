"""Memory: how much is free, how much this process took at most, and going on with less when it runs out.

Running out is met where the allocator says no: on a GPU, under ``ulimit -v``, or where the system does not
overcommit. Linux by default promises more than it has and kills the process later, and so does a container's limit;
nothing can be caught there, so what is allocated once and large is chosen by ``free_memory`` beforehand.
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
LEAST_TOKENS = 128
"""A budget of fewer tokens saves nothing: the model itself does not fit."""
STATES_SHARE = 0.5
"""A frozen trunk's states are kept only if they fit into this share of the memory that is free."""
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
_GROUP = Path("/sys/fs/cgroup")


class OutOfMemory(ValueError):
    """Even the smallest piece of work does not fit; says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said no: torch's on a CPU (a plain RuntimeError) or a GPU, or Python's.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(ValueError("no"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def fitting(
    work: Callable[[int], T], budget: int, what: str, *, least: int = LEAST_TOKENS, retry: bool = True
) -> tuple[T, int]:
    """``work(budget)``, again with half of the budget each time memory runs out; the result and the budget that fitted.

    ``work`` must be able to begin anew (or to go on) after it failed. ``what`` names the budget on stderr: "scoring
    with {} tokens at once". ``retry`` is False where other processes would wait for this one. Raises OutOfMemory where
    less than ``least`` would be left; other errors pass.
    """
    while True:
        try:
            return work(budget), budget
        except (MemoryError, RuntimeError) as error:
            if not retry or not is_out_of_memory(error):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if budget // 2 < min(least, budget):  # what was computed so far is freed only outside of the handler
            raise OutOfMemory(
                f"Memory ran out while {what.format(f'{budget:,}')}, and less cannot be tried ({said}). Use a smaller "
                "model, shorter texts, --dtype bfloat16, or a machine with more memory; close what else runs here."
            )
        print(
            f"Memory ran out while {what.format(f'{budget:,}')}; going on with {budget // 2:,} ({said}).",
            file=sys.stderr,
            flush=True,
        )
        budget //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def finish(count: int, work: Callable[[list[int], int], Iterable[Sequence[int]]], budget: int, what: str) -> int:
    """A job of ``count`` items, piece by piece: where memory runs out, the items left are done with half of the budget.

    ``work(items left, budget)`` yields after each piece the places in that list of what is done. Returns the budget
    that fitted. ``what`` and errors as in ``fitting``.
    """
    left = list(range(count))

    def go_on(budget: int) -> None:
        nonlocal left
        done = set[int]()
        try:
            for places in work(left, budget):
                done.update(places)
        finally:
            left = [item for place, item in enumerate(left) if place not in done]

    return fitting(go_on, budget, what)[1]


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that are free on a device, where the system says: in memory, also what a container leaves of it."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = []
    with contextlib.suppress(OSError):
        said = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        found += [int(said[1]) * 1024] if said else []
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        limit, used = (int((_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        cache = re.search(r"^inactive_file (\d+)$", (_GROUP / "memory.stat").read_text(), re.M)
        found.append(max(0, limit - used + (int(cache[1]) if cache else 0)))
    return min(found, default=None)


def peak_memory(device: torch.device | str = "cpu") -> int | None:
    """The most bytes that this process has held so far: resident in memory, or on a GPU what torch took there."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # no such count on this system
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
