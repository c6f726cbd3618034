"""Shared by all tests: one thread, no hub, a throw-away home for caches."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


def pytest_runtest_setup() -> None:
    """One thread, in tests that have torch at all: those of the web app do without."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where all that tests need is installed (TRUING_NO_SKIPS=1), a test that skips has failed."""
    report = yield
    if os.environ.get("TRUING_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason} — but TRUING_NO_SKIPS is set"
    return report
