"""Threads that answer asks: one for all models in memory, one for each server and each script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from truing.collect.arms import ArmSpec
from truing.collect.replies import Ask, Models

MOST_TOGETHER = 64
"""Asks of one call: more wait for the next one, so that the first are not kept waiting for the last."""


class Lane:
    """One thread. It takes the oldest ask and all others of its key, has them answered, and says so to ``done``."""

    def __init__(self, name: str, models: Models, done: Callable[[Ask], None]) -> None:
        self._models, self._done = models, done
        self._asks: list[Ask] = []
        self._calls: list[tuple[ArmSpec, Future[Any]]] = []
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"truing {name}", daemon=True)
        self._thread.start()

    def put(self, asks: Sequence[Ask]) -> None:
        """Have asks answered."""
        with self._news:
            self._asks += asks
            self._news.notify()

    def open(self, spec: ArmSpec) -> Future[Any]:
        """Have an arm's model loaded, before any other ask."""
        future: Future[Any] = Future()
        with self._news:
            self._calls.append((spec, future))
            self._news.notify()
        return future

    def close(self, seconds: float) -> None:
        """Stop after the batch that is being answered; wait for that at most so long."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._news:
                while not (self._asks or self._calls or self._closed):
                    self._news.wait()
                if self._closed:
                    return
                calls, self._calls = self._calls, []
                batch = [] if calls else self._take()
            for spec, future in calls:
                try:
                    future.set_result(self._models.open(spec))
                except Exception as error:
                    future.set_exception(error)
            if batch:
                self._models.answer(batch)
                for ask in batch:
                    self._done(ask)

    def _take(self) -> list[Ask]:
        key = self._asks[0].key
        batch = [ask for ask in self._asks if ask.key == key][:MOST_TOGETHER]
        self._asks = [ask for ask in self._asks if ask not in batch]
        return batch
