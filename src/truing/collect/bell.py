"""Wakes the long polls of a conversation when something happened to it in this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Bell:
    """Threads ring, coroutines wait. What another process does is not heard: who waits also looks from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self.closed = False

    def ring(self, conversation: str) -> None:
        """Wake all who wait for a conversation."""
        with self._lock:
            waiting = list(self._waiting.get(conversation, ()))
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # a loop that was closed waits for nothing
                loop.call_soon_threadsafe(event.set)

    def listen(self, conversation: str) -> Listener:
        """A context in which no ring is missed: look at the conversation inside it, then wait."""
        return Listener(self, conversation)

    def close(self) -> None:
        """Wake everybody, for good."""
        self.closed = True
        for conversation in list(self._waiting):
            self.ring(conversation)


class Listener:
    """``with bell.listen(id) as heard: …; await heard.wait(seconds)``."""

    def __init__(self, bell: Bell, conversation: str) -> None:
        self._bell, self._conversation = bell, conversation
        self._place = (asyncio.get_running_loop(), asyncio.Event())

    def __enter__(self) -> Listener:
        with self._bell._lock:
            self._bell._waiting.setdefault(self._conversation, set()).add(self._place)
        return self

    def __exit__(self, *_: object) -> None:
        with self._bell._lock:
            waiting = self._bell._waiting.get(self._conversation, set())
            waiting.discard(self._place)
            if not waiting:
                self._bell._waiting.pop(self._conversation, None)

    async def wait(self, seconds: float) -> bool:
        """True if it rang, at once if it already has; False after so many seconds, or once the app is closing."""
        if self._bell.closed:
            return False
        event = self._place[1]
        try:
            await asyncio.wait_for(event.wait(), max(seconds, 0.0))
        except TimeoutError:
            return False
        event.clear()
        return not self._bell.closed
