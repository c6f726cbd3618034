"""Fixtures of the tests against a small server of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_server import QUICK, Server, serving, toy

from truing import cli
from truing.models import client
from truing.models.lm import LM

LIMITS = (*client.KEYS, "TRUING_CONCURRENCY", "TRUING_REQUESTS_PER_MINUTE", "TRUING_TIMEOUT")


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy()


@pytest.fixture
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(lm: LM, no_limits: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "BACKOFF", 0.005)
    with serving(lm) as found:
        yield found


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*map(str, argv), *QUICK])
        return (code, *capsys.readouterr())

    return run
