"""The app as a process of its own, for tests that kill it, trace it, time it or open it in a browser."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from truing.collect import auth
from truing.collect.store import Store

# Children are forked from a process that has imported the app, so that a start takes tenths of a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["truing.collect.serve", "truing.cli", "truing.configs"])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def script(path: Path, replies: Sequence[str], seconds: float = 0.0) -> str:
    """The name of a model that answers from a file, and takes so long."""
    path.write_text("".join(json.dumps({"reply": text, "seconds": seconds}) + "\n" for text in replies))
    return f"script:{path}"


def administrator(store: Store) -> str:
    """The id of an administrator; made if there is none."""
    with store.write() as db:
        found = auth.person_named(db, "Grace")
        return str(found.id) if found else auth.add_person(db, "Grace", "admin", modes=auth.MODES)


class Served:
    """A process at ``url`` that runs ``work(*options, port)``; ``start`` it, ``kill`` it, and start it again."""

    def __init__(self, work: Callable[..., Any], *options: Any) -> None:
        self.work, self.options, self.port = work, options, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: BaseProcess | None = None

    def start(self, seconds: float = 120.0) -> None:
        """Start, and wait until it answers."""
        self.process = FORKS.Process(target=self.work, args=(*self.options, self.port), daemon=True)
        self.process.start()
        wait_for(self.url, seconds, self.process.is_alive)

    def kill(self) -> None:
        """With signal 9: nothing is tidied up."""
        assert self.process is not None
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def wait_for(url: str, seconds: float, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until the app answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert is_alive(), "the server ended before it answered"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if urllib.request.urlopen(f"{url}/health", timeout=5).status == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"no answer within {seconds:.0f} s")


def truing_serve(db: str, arms: Sequence[str], port: int) -> None:
    """``truing serve``, as the command line calls it."""
    from truing.cli import main

    options = [word for arm in arms for word in ("--arm", arm)]
    raise SystemExit(main(["serve", "--db", db, "--port", str(port), *options]))


def with_short_hold(db: str, arms: Sequence[str], hold: float, port: int) -> None:
    """The same with a shorter delay of red-team replies until an arm's own times are known."""
    import uvicorn

    from truing.collect.app import create_app
    from truing.collect.arms import install, parse_arm
    from truing.collect.desk import Desk
    from truing.collect.web import House

    store = Store(db)
    install(store, [parse_arm(arm) for arm in arms])
    house = House(store)
    house.desk = Desk(store, house.bell, first_hold=hold)
    house.desk.start()
    uvicorn.run(create_app(house), port=port, log_config=None, access_log=False, server_header=False)
