"""``truing serve``: the store brought up to date, the arms loaded, the app on a port, and where to go first.

Several processes may serve one database: each has a desk of its own, and what one does the others find there.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn

from truing.collect import auth, migrate
from truing.collect.app import create_app
from truing.collect.arms import Offer, arms, install, parse_arm, read_arm
from truing.collect.bell import Bell
from truing.collect.desk import Desk
from truing.collect.replies import Models
from truing.collect.store import Store
from truing.collect.web import House
from truing.configs import Serve
from truing.options import Usage, rows_from_yaml


def serve(config: Serve) -> dict[str, Any] | None:
    """Serve until ctrl-C, SIGTERM or ``max_time``.

    Raises Usage for options that do not go together, ValueError for a store, an arm or a port that cannot be had.
    """
    check(config)
    offers = read_offers(config)
    if config.dry_run:
        names = ", ".join(o.name for o in offers) or "those of the store"
        return {"lines": [f"Would serve {Store(config.db).shown} on {_address(config, config.port)}, arms: {names}."]}
    listening = listen(config.host, config.port)
    store = open_store(config.db)
    install(store, offers)
    bell = Bell()
    desk = Desk(store, bell, Models(config.device, config.dtype, config.threads))
    desk.start()
    house = House(store, secure_cookies=config.behind_proxy, bell=bell, desk=desk, seed=config.seed)
    _log()
    for line in welcome(config, store, listening.getsockname()[1]):
        print(line, file=sys.stderr, flush=True)
    _run(house, config, listening)
    return None


def check(config: Serve) -> None:
    """Raise Usage for what would be unsafe, or cannot be meant."""
    if config.out is not None:
        raise Usage("truing serve makes no run, so --out has no meaning: the store is where --db says.")
    if not 0 <= config.port < 65536:
        raise Usage(f"--port is {config.port}; expected 1 to 65535, or 0 for a free one.")
    if config.url is not None and not config.url.startswith(("http://", "https://")):
        raise Usage(f"--url is {config.url!r}; expected something like https://feedback.example.org.")
    if not is_own(config.host) and not (config.behind_proxy or config.allow_plain_http):
        raise Usage(
            f"--host {config.host} can be reached from other machines, and without TLS passwords could be read on the "
            "way. Put a proxy with TLS before it and give --behind-proxy (docs/serve.md), or give --allow-plain-http."
        )


def is_own(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_offers(config: Serve) -> list[Offer]:
    """The arms of ``--arm`` and ``--arms``. Raises Usage for one that cannot be meant, and for a name given twice."""
    offers: list[Offer] = []
    try:
        offers += [parse_arm(text) for text in config.arm]
        if config.arms is not None:
            offers += [_offer(config.arms, row) for row in rows_from_yaml(config.arms)]
    except ValueError as problem:
        raise Usage(str(problem)) from None
    names = [o.name for o in offers]
    if twice := [n for n in names if names.count(n) > 1]:
        raise Usage(f"The arm {twice[0]!r} is given twice.")
    return offers


def _offer(path: Path, row: Any) -> Offer:
    if not isinstance(row, Mapping):
        raise ValueError(f"{path} holds a {type(row).__name__} in its list; expected mappings with name and model.")
    try:
        return read_arm(row)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def open_store(db: str) -> Store:
    """The store, made or brought to this code's revision. Raises ValueError if it cannot be reached."""
    store = Store(db)
    if store.file is not None and not store.file.parent.is_dir():
        raise ValueError(f"--db {store.shown}: there is no folder {store.file.parent}.")
    try:
        migrate.upgrade(store)
    except sa.exc.DBAPIError as problem:
        said = (str(problem.orig).strip().splitlines() or [type(problem.orig).__name__])[0]
        raise ValueError(f"The database {store.shown} cannot be used: {said}") from None
    except RuntimeError as problem:  # SQLite does not obey, as on some network drives
        raise ValueError(f"{store.shown}: {problem} Keep the file on a disk of this machine.") from None
    return store


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError if the port is taken or the address is not this machine's."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as problem:
        listening.close()
        why = getattr(problem, "strerror", None) or str(problem)
        raise ValueError(
            f"Cannot listen on {host}, port {port}: {why}. Choose others with --host and --port."
        ) from None
    listening.listen(2048)
    return listening


def welcome(config: Serve, store: Store, port: int) -> list[str]:
    """What is said when the app is up: what is served, where, and on the first run the link to begin with."""
    with store.read() as db:
        offered = [(a.name, [m for m, w in a.weights.items() if w > 0]) for a in arms(db)]
    named = [f"{name} ({', '.join(modes)})" for name, modes in offered if modes]
    where = _address(config, port)
    lines = [
        f"Store: {store.shown}",
        f"Arms: {'; '.join(named) or 'none yet: add them on the page Administration, or with --arm NAME=MODEL'}",
        f"Open {where}/ (ctrl-C stops)",
    ]
    with store.write() as db:
        if not auth.has_admin(db):
            _, token = auth.invite(db, "setup", "admin", modes=auth.MODES, days=1)
            lines += [
                "Nobody runs this place yet. Make the administrator here, within a day:",
                f"  {where}/setup/{token}",
            ]
    return lines


def _address(config: Serve, port: int) -> str:
    if config.url:
        return config.url.rstrip("/")
    host = config.host.strip("[]")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    """Lets go of long polls before it waits for connections to end."""

    bell: Bell

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.bell.close()
        await super().shutdown(sockets)


def _run(house: House, config: Serve, listening: socket.socket) -> None:
    server = _Server(
        uvicorn.Config(
            create_app(house),
            log_config=None,
            access_log=False,  # our own names no token (truing.collect.guard)
            server_header=False,
            ws="none",
            proxy_headers=config.behind_proxy,
            forwarded_allow_ips=list(config.proxy),
            timeout_keep_alive=75,  # longer than a proxy keeps its connections
            timeout_graceful_shutdown=5,
        )
    )
    server.bell = house.bell
    gc.collect()
    gc.freeze()  # what was imported stays: to look through it time and again would hold up everybody
    if config.max_time is not None:
        timer = threading.Timer(config.max_time * 60, setattr, (server, "should_exit", True))
        timer.daemon = True
        timer.start()
    with contextlib.suppress(KeyboardInterrupt):  # the way to stop a server
        server.run(sockets=[listening])
    print("Stopped.", file=sys.stderr, flush=True)


def _log() -> None:
    """Requests and errors on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name, level in (("truing.access", logging.INFO), ("truing.errors", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
