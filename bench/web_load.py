"""Load on the web app: people connected, choices a second, and how long each kind of request takes.

``truing serve`` runs as a process of its own with an arm that answers at once; simulated people (one process) sign up,
stay connected by their long polls, and choose at a steady rate together. Once everybody is in and the rate is steady,
``--seconds`` are measured. Results: ``results/bench_web_load.json``.

With a model in the server's own process (``--people 5 --rate 0.5 --arm real=smollm2``) what counts is that the
process goes on answering while the model writes: the slowest health check.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clock
from truing.collect import auth, migrate
from truing.collect.people import Book, Chance, Manner, attend, invite_simulated
from truing.collect.store import Store
from truing.collect.visitor import Asked

RESULTS = Path(__file__).resolve().parents[1] / "results"
TARGET = {"p99_ms": 250.0, "health_check_ms": 1000.0, "errors": 0}
POLL = "GET /api/conversations/ID"
SETTLE = 10.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="choices a second, all people together")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured")
    parser.add_argument("--db", help="a database (default: a new SQLite file); it must be empty")
    parser.add_argument("--mode", choices=("helpful", "rank"), default="helpful")
    parser.add_argument("--arm", help="NAME=MODEL (default: a script that answers at once)")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_web_load.json")
    return parser.parse_args()


async def load(url: str, link: str, o: argparse.Namespace, book: Book) -> tuple[float, float, float]:
    """Run the people; (start, end) of what is measured and the slowest health check in it, in seconds."""
    turns = 8
    clicks = 2 + 1 / turns  # a turn has two, and each conversation is ended by one more
    manner = Manner(o.mode, conversations=None, turns=turns, think=0.95 * o.people / o.rate / clicks)
    joined = asyncio.Event()
    people = asyncio.create_task(attend(url, link, o.people, manner, Chance(1), book=book, seed=1, joined=joined.set))
    await asyncio.wait({people, asyncio.create_task(joined.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if people.done():
        people.result()
    await asyncio.sleep(SETTLE + manner.think)  # the first clicks come at random, not at once
    start, slowest = time.monotonic(), 0.0
    while time.monotonic() < start + o.seconds and not people.done():
        began = time.monotonic()
        await asyncio.to_thread(urllib.request.urlopen, f"{url}/health", timeout=30)
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.5)
    end = time.monotonic()
    people.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await people
    return start, end, slowest


def summary(asked: Sequence[Asked], start: float, end: float) -> dict[str, Any]:
    """Percentiles in milliseconds by kind of request, and of all that is not a long poll."""
    inside = [one for one in asked if start <= one.at - one.seconds and one.at <= end]
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for one in inside:
        kinds[f"{one.method} {one.path}"].append(1000 * one.seconds)
    answers = [ms for kind, values in kinds.items() if kind != POLL for ms in values]
    bad = collections.Counter(one.status for one in inside if one.status == 0 or one.status >= 400)
    return {
        "all_but_long_polls": spread(answers),
        "kinds": {kind: spread(values) for kind, values in sorted(kinds.items())},
        "statuses_of_errors": {str(status): count for status, count in bad.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count and percentiles."""
    if not values:
        return {"n": 0}
    p50, p95, p99 = (round(float(x), 1) for x in np.quantile(values, [0.5, 0.95, 0.99]))
    return {"n": len(values), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": round(max(values), 1)}


@contextlib.contextmanager
def served(db: str, arm: str) -> Any:
    """``truing serve``; the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "truing", "serve", "--db", db, "--port", str(port), "--arm", arm]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(1200):
                assert server.poll() is None, "the server ended"
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def main() -> int:
    o = options()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "replies.jsonl"
        script.write_text("".join(json.dumps({"reply": f"This is reply number {i}. " * 8}) + "\n" for i in range(500)))
        db = o.db or f"{folder}/load.db"
        store, book = Store(db), Book()
        migrate.upgrade(store)
        with store.write() as rows:
            auth.add_person(rows, "Load test", "admin")
        with served(db, o.arm or f"quick=script:{script}") as url:
            link = invite_simulated(store, o.people)
            busy = os.getloadavg()[0]
            start, end, slowest = asyncio.run(load(url, link, o, book))
        store.close()
    found = summary(book.asked, start, end)
    choices = found["kinds"].get("POST /api/conversations/ID/choices", {"n": 0})["n"]
    errors = sum(found["statuses_of_errors"].values()) + len(book.problems)
    p99 = found["all_but_long_polls"].get("p99_ms")
    kept_up = o.arm is not None or choices >= o.rate * (end - start)  # a model's replies set their own pace
    met = p99 is not None and p99 < TARGET["p99_ms"] and slowest < TARGET["health_check_ms"] / 1000
    met = met and not errors and kept_up
    outcome = {
        "people": o.people,
        "mode": o.mode,
        "arm": o.arm or "a script that answers at once",
        "rate": o.rate,
        "database": "postgresql" if o.db and "://" in o.db else "sqlite",
        "measured_seconds": round(end - start, 1),
        "choices_per_second": round(choices / (end - start), 2),
        "errors": errors,
        "problems": sorted(set(book.problems))[:10],
        "slowest_health_check_ms": round(1000 * slowest, 1),
        **found,
        "target": TARGET,
        "target_met": met,
        "load_average_before": round(busy, 2),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": clock.versions(),
    }
    o.out.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: outcome[k] for k in ("people", "choices_per_second", "errors", "slowest_health_check_ms")}))
    print(f"p99 {p99} ms of {found['all_but_long_polls']['n']} requests; load before: {busy:.1f}; written: {o.out}")
    return 0 if met else 3


if __name__ == "__main__":
    raise SystemExit(main())
