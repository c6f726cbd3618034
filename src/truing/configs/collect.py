"""Options of the feedback web app and its store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from truing.configs.common import Common, alias


@dataclass(kw_only=True)
class Serve(Common):
    """Serve the feedback and red-team web app: people talk with models and say what is better, or worse."""

    db: str = "truing.db"
    """Where what people say is kept: a file (SQLite), or postgresql://USER@HOST/NAME for several processes."""
    arm: list[str] = field(default_factory=list)
    """A model offered to people: NAME=MODEL, or NAME=MODEL,KEY=VALUE,… (weight, modes, temperature, best_of, pm, …)."""
    arms: Path | None = None
    """Arms from a YAML file: a list of mappings with name, model and the same keys."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need --behind-proxy or --allow-plain-http."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and says which."""
    url: str | None = None
    """Where people reach the app, for the link that is printed: https://feedback.example.org."""
    behind_proxy: bool = False
    """A proxy speaks TLS with people: cookies are for https only, and X-Forwarded-For and -Proto are believed."""
    proxy: Annotated[list[str], alias("forwarded-allow-ips")] = field(default_factory=lambda: ["127.0.0.1", "::1"])
    """Addresses of proxies whose X-Forwarded headers are believed."""
    allow_plain_http: bool = False
    """Listen on other addresses without TLS, though passwords can then be read on the way."""
    seed: int | None = None  # type: ignore[assignment]
    """Seed of everything random, so that draws can be replayed; without one every conversation draws its own."""
