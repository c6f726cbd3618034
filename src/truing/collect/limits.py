"""How often somebody may ask: a bucket of tokens a person or address, in this process.

Limits keep one person or machine from taking the place of all. They are counted in memory, since they lose nothing
by a restart: with several processes behind one database each counts for itself.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_KEYS = 20_000


class TooMany(Exception):
    """Asked too often: 429, to be tried again after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Too many requests: wait {seconds:.0f} s.")
        self.seconds = max(1, round(seconds + 0.5))


class Buckets:
    """A bucket a key: it holds ``burst`` tokens at first and gains ``per_second`` until it is full again."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst, self.per_second, self.clock = burst, per_second, clock
        self._held: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> None:
        """Take one token. Raises TooMany if there is none."""
        with self._lock:
            tokens = self._tokens(key)
            if tokens < 1:
                raise TooMany((1 - tokens) / self.per_second)
            self._set(key, tokens - 1)

    def give(self, key: str) -> None:
        """Give a token back, because what it was taken for does not count."""
        with self._lock:
            self._set(key, min(self.burst, self._tokens(key) + 1))

    def _tokens(self, key: str) -> float:
        tokens, at = self._held.get(key, (self.burst, 0.0))
        return min(self.burst, tokens + (self.clock() - at) * self.per_second)

    def _set(self, key: str, tokens: float) -> None:
        if key not in self._held and len(self._held) >= MOST_KEYS:
            self._held = {k: v for k, v in self._held.items() if self._tokens(k) < self.burst}
            for old in sorted(self._held, key=lambda k: self._held[k][1])[: max(0, len(self._held) - MOST_KEYS // 2)]:
                del self._held[old]
        self._held[key] = (tokens, self.clock())


@dataclass
class Limits:
    """The app's limits. Two hundred people behind one address can all sign in at nine o'clock."""

    person: Buckets = field(default_factory=lambda: Buckets(120, 20))
    """Requests of one person who is signed in."""
    address: Buckets = field(default_factory=lambda: Buckets(1200, 20))
    """Requests of one address without a session."""
    guess: Buckets = field(default_factory=lambda: Buckets(10, 10 / 900))
    """Wrong passwords for one name from one address: 10, then 10 in 15 minutes."""
    guess_address: Buckets = field(default_factory=lambda: Buckets(200, 200 / 900))
    """Wrong passwords from one address."""
    guess_name: Buckets = field(default_factory=lambda: Buckets(300, 300 / 3600))
    """Wrong passwords for one name from everywhere."""


def address_key(host: str | None) -> str:
    """What an address counts as: itself, and with IPv6 its /64, of which one machine may have every address."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or "?"
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
