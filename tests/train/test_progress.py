"""Counting work says how far it is and how long is left, on one line of a terminal or every ten seconds elsewhere."""

from __future__ import annotations

import sys

import pytest

from truing.train import progress


def test_counting_says_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tell = progress.counting("Replies")
    for done, at in ((1, 101.0), (100, 112.0), (120, 115.0), (400, 160.0)):
        now[0] = at
        tell(done, 400)
    assert capsys.readouterr().err.splitlines() == ["Replies: 100 of 400, ETA 0:36", "Replies: 400 of 400"]


def test_counting_after_a_resume_takes_only_its_own_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tell = progress.counting("Replies", start=300)
    now[0] = 120.0
    tell(320, 400)
    assert capsys.readouterr().err == "Replies: 320 of 400, ETA 1:20\n"


def test_counting_keeps_to_one_line_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tell = progress.counting("Replies")
    tell(4, 4)
    assert capsys.readouterr().err == "\r\033[KReplies: 4 of 4\n"
