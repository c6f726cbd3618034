"""A real PostgreSQL for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import sqlalchemy as sa


class Postgres:
    """A server of its own on a free port of the loopback address. ``url(name)`` is that of one of its databases."""

    def __init__(self, programs: str, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.as_user: list[str] = []
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "postgres")
            self.as_user = ["runuser", "-u", "postgres", "--"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "truing", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-w", "-l", f"{self.folder}/log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: nothing is tidied up."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "-w", "stop")

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://truing@127.0.0.1:{self.port}/{name}"

    def do(self, line: str) -> None:
        engine = sa.create_engine(self.url().replace("postgresql", "postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as db:
            db.execute(sa.text(line))
        engine.dispose()

    def _run(self, program: str, *options: str) -> None:
        command = [*self.as_user, f"{self.programs}/{program}", *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", text=True)
        assert done.returncode == 0, done.stderr
