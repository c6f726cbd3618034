"""Client: questions to one OpenAI-compatible server, asked side by side and again where that can help.

Knows HTTP and no model: JSON in, JSON out. What came back is judged by `truing.models.remote`.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import queue
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")
KEYS = ("TRUING_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the API key; the first that is set counts. The second, which many people have
set for one company's servers, goes to this machine and over https only."""
TRIES = 8
"""Times a request is sent before the server is given up."""
BACKOFF = 0.5
"""Seconds before the second try; they double with every further one, up to LONGEST_BACKOFF."""
LONGEST_BACKOFF = 30.0
LONGEST_WAIT = 300.0
"""A server that asks to be left alone for more seconds than this is given up at once."""
_AGAIN = (408, 425, 429)


class ServerError(ConnectionError):
    """A server that gave no usable answer, however often it was asked."""


class Refused(ValueError):
    """A server that understood and will not: the same request would be refused again."""


class _Stopped(Exception):
    """Another thread's request failed, so that this one's answer is no longer wanted."""


class _Again(Exception):
    """What went wrong with one try, and the seconds the server asks to wait before the next."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class Client:
    """Sends JSON to ``url`` (``http://host:port/v1``), at most ``concurrency`` requests at a time.

    ``concurrency`` defaults to $TRUING_CONCURRENCY or 8, ``requests_per_minute`` to $TRUING_REQUESTS_PER_MINUTE or no
    limit; ``timeout`` is in seconds, for one answer. The key comes from the environment (`KEYS`) and goes into the
    request's header, nowhere else. Raises ValueError for a limit or a key that cannot be meant.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int | None = None,
        requests_per_minute: float | None = None,
        timeout: float = 300.0,
    ) -> None:
        import httpx

        self.url = url.rstrip("/")
        self.concurrency = at_once(concurrency)
        per_minute = _limit("TRUING_REQUESTS_PER_MINUTE", requests_per_minute)
        self._interval = 60 / per_minute if per_minute else 0.0
        place = httpx.URL(self.url)
        here = place.host in ("localhost", "127.0.0.1", "::1")
        self._key = _key(KEYS if here or place.scheme == "https" else KEYS[:1])
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
            limits=httpx.Limits(max_connections=self.concurrency),
            trust_env=not here,  # a proxy for the world is none for this machine
        )
        weakref.finalize(self, self._http.close)
        self._lock = threading.Lock()
        self._free_at = self._told_at = 0.0
        self._thread = threading.local()

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one POST. Raises Refused for a 4xx, ServerError after `TRIES` tries that gave none."""
        import httpx

        began = time.monotonic()
        for attempt in range(1, TRIES + 1):
            self._take_turn()
            try:
                return self._once(path, body)
            except httpx.TimeoutException as problem:
                failed = _Again(f"no answer in time ({type(problem).__name__})")
            except httpx.RequestError as problem:
                failed = _Again(self._clean(str(problem)) or type(problem).__name__)
            except _Again as problem:
                failed = problem
            if failed.wait > LONGEST_WAIT or attempt == TRIES:
                break
            backoff = min(LONGEST_BACKOFF, BACKOFF * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            self._hold_on(failed, max(backoff, failed.wait))
        asks = f"; it asks to wait {failed.wait:.0f} s" if failed.wait > LONGEST_WAIT else ""
        times = f"{attempt} attempt{'s' * (attempt > 1)} in {time.monotonic() - began:.0f} s"
        raise ServerError(
            f"The server {self.url} gives no answer: {failed} ({times}{asks}). Check that it runs and that its address "
            "is right. Rows that a run has kept stay: the same command goes on."
        )

    def each(
        self, work: Callable[[Item], Found], items: Sequence[Item], tell: Callable[[Found], None] | None = None
    ) -> list[Found]:
        """``work`` of every item, side by side, in the items' order; ``tell`` hears of each as it is done.

        The first error ends all of them.
        """
        found: dict[int, Found] = {}
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        todo, lock, stop = iter(enumerate(items)), threading.Lock(), threading.Event()

        def run() -> None:
            self._thread.stop = stop
            while not stop.is_set():
                with lock:
                    i, item = next(todo, (-1, None))
                if i < 0:
                    return
                try:
                    done.put((i, work(item), None))  # type: ignore[arg-type]
                except BaseException as problem:
                    done.put((i, None, problem))

        for _ in range(min(self.concurrency, len(items))):
            threading.Thread(target=run, daemon=True).start()  # ctrl-C must not wait for answers
        try:
            for _ in items:
                i, result, problem = done.get()
                if problem is not None:
                    raise problem
                found[i] = result
                if tell:
                    tell(result)
        finally:
            stop.set()
        return [found[i] for i in range(len(items))]

    def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self._http.post(self.url + path, json=dict(body))
        status, said = response.status_code, ""
        with contextlib.suppress(ValueError):
            answer = response.json()
            said = _words(answer)
            if status == 200 and isinstance(answer, dict) and not answer.get("error"):
                return answer
        said = self._clean(said or response.text)
        if status in _AGAIN or (status >= 500 and status != 501):  # 501: it has no such thing, and will have none
            raise _Again(f"HTTP {status} {said}".strip(), _retry_after(response.headers.get("retry-after")))
        if status == 200 and not _is_json(response):
            raise _Again(f"its answer is not whole JSON: {said[:80]!r}")
        if status in (401, 403):
            which = f"the key in {next(_set_keys(KEYS))}" if self._key else "no key"
            raise ServerError(
                f"The server {self.url} lets nobody in with {which} (HTTP {status} {said}). "
                f"Put the server's API key into the environment variable {KEYS[0]}."
            )
        hint = (
            " Check the address (it usually ends in /v1) and the model's name."
            if status in (404, 405) or status in range(300, 400)
            else ""
        )
        raise Refused(
            f"The server {self.url} refused {path} (HTTP {status}): {said or 'it does not say why'}.{hint}"
            f" It was asked with {_asked(body)!r}."
        )

    def _take_turn(self) -> None:
        """Wait until this request may go out."""
        with self._lock:
            at = max(self._free_at, time.monotonic())
            self._free_at = at + self._interval
        self._pause(at - time.monotonic())

    def _hold_on(self, failed: _Again, seconds: float) -> None:
        """Wait before another try; all others wait as well if the server asked for it."""
        with self._lock:
            now = time.monotonic()
            if failed.wait:
                self._free_at = max(self._free_at, now + failed.wait)
            if tell := seconds >= 2 and now - self._told_at >= 10:
                self._told_at = now
        if tell:
            print(f"{self.url}: {failed}; trying again in {seconds:.0f} s.", file=sys.stderr)
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        stop: threading.Event = getattr(self._thread, "stop", None) or threading.Event()
        if (seconds > 0 and stop.wait(seconds)) or stop.is_set():
            raise _Stopped

    def _clean(self, text: str) -> str:
        """What a server or a library said, on one line, without the key."""
        text = " ".join(text.split())
        return (text.replace(self._key, "[key]") if self._key else text)[:300].rstrip(".")


def at_once(given: int | None = None) -> int:
    """Requests that may be under way together: the given number, $TRUING_CONCURRENCY, or 8. ValueError for others."""
    return int(_limit("TRUING_CONCURRENCY", given) or 8)


def _words(answer: Any) -> str:
    """An error's message, from the forms that servers give it."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    for name in ("message", "detail"):
        if isinstance(error, dict) and error.get(name):
            return str(error[name])
    return error if isinstance(error, str) else ""


def _asked(body: Mapping[str, Any]) -> str:
    """The beginning of what was asked, so that its row can be found."""
    messages = body.get("messages") or [{}]
    return str(body.get("prompt") or messages[-1].get("content", ""))[:60]


def _is_json(response: Any) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(response.json(), dict)
    return False


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number, or a date; 0 if there is none that can be read."""
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if float(value) < float("inf") else 0.0
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _limit(variable: str, given: float | None) -> float | None:
    """A positive limit: the given one, or the environment's."""
    value: float | str | None = given if given is not None else os.environ.get(variable) or None
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        least = 1 if variable == "TRUING_CONCURRENCY" else 0.001
        if least <= float(value) < float("inf"):
            return float(value)
    raise ValueError(f"{variable} (or the argument in its place) is {value!r}; expected a positive number.")


def _key(names: Sequence[str]) -> str:
    """The API key of the environment; "" if there is none. Raises ValueError, without it, for one with blanks."""
    for name in _set_keys(names):
        key = os.environ[name].strip()
        if not (key.isascii() and key.isprintable()) or " " in key:  # httpx would quote it in its error
            raise ValueError(f"The environment variable {name} holds blanks or characters that no API key has.")
        return key
    return ""


def _set_keys(names: Sequence[str]) -> Iterator[str]:
    return (name for name in names if os.environ.get(name, "").strip())
