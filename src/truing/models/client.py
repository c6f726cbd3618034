"""Client: questions to one OpenAI-compatible server, asked side by side and again where that can help.

Knows HTTP and no model: JSON in, JSON out. What came back is judged by `truing.models.remote`.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import json
import os
import queue
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from truing.models import wire
from truing.models.kept import KeptAnswers

Item = TypeVar("Item")
Found = TypeVar("Found")
KEYS = ("TRUING_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the API key; the first that is set counts. The second, which many people have
set for one company's servers, goes to this machine and over https only."""
TRIES = 8
"""Times a request is sent before the server is given up."""
LATE_TRIES = 3
"""Times it is sent if each time the answer is not whole in time: the server may have worked on all of them."""
BACKOFF = 0.5
"""Seconds before the second try; they double with every further one, up to LONGEST_BACKOFF."""
LONGEST_BACKOFF = 30.0
LONGEST_WAIT = 300.0
"""A server that asks to be left alone for more seconds than this is given up at once."""
GRACE = 30.0
"""Seconds for which answers that are under way are waited for when a job's time is over."""
_AGAIN = (408, 425, 429)
_ABOUT = ("id", "owned_by", "created", "root", "max_model_len", "meta")
_READ = ("choices", "usage", "model", "system_fingerprint", "prompt_logprobs", "prompt_token_ids")
"""What is read of an answer; the rest is not kept."""


class ServerError(ConnectionError):
    """A server that gave no usable answer, however often it was asked."""


class Refused(ValueError):
    """A server that understood and will not: the same request would be refused again."""


class OutOfTime(Exception):
    """The job's time (`Client.until`) is over, or would be before the server may be asked again."""


class _Stopped(Exception):
    """Another thread's request failed, so that this one's answer is no longer wanted."""


class _Again(Exception):
    """What went wrong with one try, and the seconds the server asks to wait before the next."""

    def __init__(self, what: str, wait: float = 0.0, late: bool = False) -> None:
        super().__init__(what)
        self.wait, self.late = wait, late


class Client:
    """Sends JSON to ``url`` (``http://host:port/v1``), at most ``concurrency`` requests at a time.

    ``concurrency`` defaults to $TRUING_CONCURRENCY or 8, ``requests_per_minute`` to $TRUING_REQUESTS_PER_MINUTE or no
    limit; ``timeout`` is in seconds, for one whole answer, and defaults to $TRUING_TIMEOUT or 300. The key comes from
    the environment (`KEYS`) and goes into the request's header, nowhere else. After ``until`` (of time.monotonic)
    nothing is sent any more; what ``kept`` holds is not asked for. ``called`` are the models and system fingerprints
    that answers named, and ``on_new_name`` hears of a further one. Raises ValueError for an address, a limit or a key
    that cannot be meant.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int | None = None,
        requests_per_minute: float | None = None,
        timeout: float | None = None,
    ) -> None:
        import httpx

        self.url = url.rstrip("/")
        self.concurrency = at_once(concurrency)
        self._seconds = _limit("TRUING_TIMEOUT", timeout) or 300.0
        per_minute = _limit("TRUING_REQUESTS_PER_MINUTE", requests_per_minute)
        self._interval = 60 / per_minute if per_minute else 0.0
        try:
            place = httpx.URL(self.url)
        except httpx.InvalidURL as wrong:
            raise ValueError(f"{url!r} is no address of a server: {wrong}") from None
        here = _is_here(place.host)
        self._key = _key(KEYS if here or place.scheme == "https" else KEYS[:1])
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._seconds, connect=min(10.0, self._seconds)),
            limits=httpx.Limits(max_connections=self.concurrency),
            trust_env=not here,  # a proxy for the world is none for this machine
        )
        weakref.finalize(self, self._http.close)
        self._lock = threading.Lock()
        self._free_at = self._told_at = 0.0
        self._thread = threading.local()
        self.until: float | None = None
        self.called: dict[str, set[str]] = {"model": set(), "system_fingerprint": set()}
        self.on_new_name: Callable[[], None] | None = None
        self.kept: KeptAnswers | None = None

    def about(self, model: str) -> dict[str, Any] | None:
        """What ``GET /models`` says of a model; None where it says nothing. One try and no error: few need it."""
        import httpx

        try:
            response = self._http.get(f"{self.url}/models", timeout=min(10.0, self._seconds))
            listed = response.json()["data"] if response.status_code == 200 else []
            found = [dict(row) for row in listed if row["id"] == model]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
        text = self._clean(json.dumps({k: found[0][k] for k in _ABOUT if k in found[0]}), 4000) if found else "null"
        with contextlib.suppress(ValueError):  # an answer of any length is no fingerprint
            return json.loads(re.sub(r"//[^/@\s\"]*@", "//", text))
        return None

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one POST. Raises Refused for a 4xx, ServerError after `TRIES` tries that gave none."""
        answer = self.kept.get(self.url, path, body) if self.kept else None
        if answer is None:
            answer = self._insist(path, body)
            if self.kept and (part := self._to_keep(answer)):
                self.kept.add(part, self.url, path, body)
        names = {(name, self._clean(said)) for name in self.called if isinstance(said := answer.get(name), str)}
        with self._lock:
            if new := [(name, said) for name, said in names if said not in self.called[name]]:
                for name, said in new:
                    self.called[name].add(said)
                if self.on_new_name:
                    self.on_new_name()
        return answer

    def keeps(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether the answer to that POST was kept by an earlier process."""
        return self.kept is not None and self.kept.get(self.url, path, body) is not None

    def _to_keep(self, answer: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is read of an answer, without the key; None if it is not as answers are: it may be asked for again."""
        with contextlib.suppress(ValueError):
            for choice in wire.choices_of(answer):
                wire.text_of(choice)
            text = json.dumps({name: answer[name] for name in _READ if name in answer})
            return json.loads(text.replace(self._key, "[key]") if self._key else text)
        return None

    def _insist(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request that is sent until it is answered or `TRIES` are over."""
        import httpx

        began, late = time.monotonic(), 0
        for attempt in range(1, TRIES + 1):
            self._take_turn()
            try:
                return self._once(path, body)
            except (httpx.ConnectTimeout, httpx.PoolTimeout) as problem:
                failed = _Again(f"it cannot be reached ({type(problem).__name__})")
            except httpx.TimeoutException:
                limit = f"no whole answer within {self._seconds:g} s, the limit that TRUING_TIMEOUT sets"
                failed = _Again(limit, late=True)
            except httpx.RequestError as problem:
                failed = _Again(self._clean(str(problem)) or type(problem).__name__)
            except _Again as problem:
                failed = problem
            late += failed.late
            if failed.wait > LONGEST_WAIT or attempt == TRIES or late == LATE_TRIES:
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

        The first error ends all of them; what is under way when the time is over is waited for a little (`GRACE`).
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
                    stop.set()  # nobody needs what comes after

        threads = [threading.Thread(target=run, daemon=True) for _ in range(min(self.concurrency, len(items)))]
        for thread in threads:  # daemons: ctrl-C must not wait for answers
            thread.start()
        try:
            for _ in items:
                i, result, problem = done.get()
                if problem is not None:
                    raise problem
                found[i] = result
                if tell:
                    tell(result)
        except OutOfTime:
            stop.set()
            last = time.monotonic() + GRACE
            for thread in threads:
                thread.join(max(0.0, last - time.monotonic()))
            raise
        finally:
            stop.set()
        return [found[i] for i in range(len(items))]

    def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        status, headers, text = self._post(path, body)
        answer: Any = None
        said = ""
        with contextlib.suppress(ValueError):
            answer = json.loads(text)
            said = _words(answer)
            if status == 200 and isinstance(answer, dict) and not answer.get("error"):
                if _is_broken_off(answer):
                    raise _Again("it broke off a reply")
                return answer
        if status == 200 and isinstance(answer, dict):  # gateways say 200 and put what went wrong into the error
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            status = code if isinstance(code, int) and code in range(400, 600) else status
        said = self._clean(said or text)
        if status in _AGAIN or (status >= 500 and status != 501):  # 501: it has no such thing, and will have none
            raise _Again(f"HTTP {status} {said}".strip(), _retry_after(headers.get("retry-after")))
        if status == 200 and not isinstance(answer, dict):
            raise _Again(f"its answer is not whole JSON: {said[:80]!r}")
        if status in (401, 403):
            which = f"the key in {next(_set_keys(KEYS))}" if self._key else "no key"
            raise ServerError(
                f"The server {self.url} lets nobody in with {which} (HTTP {status} {said}). "
                f"Put the server's API key into the environment variable {KEYS[0]}."
            )
        hint = (
            " Check the address" + (" (it usually ends in /v1) and the model's name." if path else ".")
            if status in (404, 405) or status in range(300, 400)
            else ""
        )
        raise Refused(
            f"The server {self.url} refused {path or 'a request'} (HTTP {status}): {said or 'it does not say why'}."
            f"{hint} It was asked with {_asked(body)!r}."
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of an answer that came whole. Raises httpx.TimeoutException if it takes too long."""
        import httpx

        end = time.monotonic() + self._seconds
        request = self._http.build_request("POST", self.url + path, json=dict(body))
        response = self._http.send(request, stream=True)
        data = bytearray()
        with contextlib.closing(response):
            # httpx counts from byte to byte, so an answer that trickles would never end
            request.extensions["timeout"]["read"] = max(0.001, end - time.monotonic())
            for part in response.iter_bytes():
                data += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("", request=request)
        return response.status_code, response.headers, data.decode(errors="replace")

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
            tell = seconds >= 2 and now - self._told_at >= 10 and not self._is_over(seconds)
            if tell:
                self._told_at = now
        if tell:
            print(f"{self.url}: {failed}; trying again in {seconds:.0f} s.", file=sys.stderr)
        self._pause(seconds)

    def _is_over(self, seconds: float = 0.0) -> bool:
        """Whether the job's time is over, in so many seconds from now."""
        return self.until is not None and time.monotonic() + max(0.0, seconds) > self.until

    def _pause(self, seconds: float) -> None:
        if self._is_over(seconds):
            raise OutOfTime
        stop: threading.Event = getattr(self._thread, "stop", None) or threading.Event()
        if (seconds > 0 and stop.wait(seconds)) or stop.is_set():
            raise _Stopped

    def _clean(self, text: str, most: int = 300) -> str:
        """What a server or a library said, on one line, without the key."""
        text = " ".join(text.split())
        return (text.replace(self._key, "[key]") if self._key else text)[:most].rstrip(".")


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


def _is_here(host: str) -> bool:
    """Whether an address is this machine's own."""
    with contextlib.suppress(ValueError):
        place = ipaddress.ip_address(host)
        return place.is_loopback or place.is_unspecified
    return host == "localhost"


def _is_broken_off(answer: Mapping[str, Any]) -> bool:
    """Whether the server itself ended a reply, which then is not whole (vLLM says abort when it goes down)."""
    choices = answer.get("choices")
    found = choices if isinstance(choices, list) else []
    return any(isinstance(c, dict) and c.get("finish_reason") in ("abort", "error") for c in found)


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
