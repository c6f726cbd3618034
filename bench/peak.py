"""What this machine does at best, now: threads worth using, matrix products per second, memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from clock import Clock, Job, run
from truing.models.compute import choose

PRODUCTS = ((2048, 2048, 2048), (1024, 576, 1536), (1024, 1536, 576), (1024, 576, 576), (256, 576, 49152))
"""Rows, inner width, columns: a large square, and the shapes of the packaged model's layers and head."""
BLOCK = 1 << 28
"""Bytes of one block of memory, far above any cache."""


def fastest(action: Callable[[], Any], seconds: float) -> float:
    """The shortest wall time of an action that is repeated for about this long."""
    action()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def product_speed(rows: int, inner: int, columns: int, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """FLOP/s of one matrix product."""
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    return 2 * rows * inner * columns / fastest(lambda: torch.nn.functional.linear(left, right), seconds)


def bandwidth(seconds: float = 0.6) -> float:
    """Bytes per second, of reading (a sum) or of copying (read and written), whichever is more."""
    source = torch.ones(BLOCK // 4)
    target = torch.empty_like(source)
    read = BLOCK / fastest(source.sum, seconds)
    return max(read, 2 * BLOCK / fastest(lambda: target.copy_(source), seconds))


def work(job: Job, clock: Clock) -> dict[str, Any]:
    compute = choose("cpu", job.get("dtype", "float32"), job["threads"])
    with clock.time("peak"):
        products = {" x ".join(map(str, shape)): product_speed(*shape, compute.dtype) for shape in PRODUCTS}
        found = {"flops": max(products.values()), "bandwidth": bandwidth()}
    dtype = str(compute.dtype).removeprefix("torch.")
    return {**found, "threads": compute.threads, "dtype": dtype, "products": products, "tried": compute.measured}


if __name__ == "__main__":
    run(work)
