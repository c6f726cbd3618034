"""``truing doctor``: what it says of the sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from truing.configs import Doctor
from truing.data import sandbox
from truing.report.machine import doctor


def test_doctor_says_whether_code_of_models_can_be_run(monkeypatch: pytest.MonkeyPatch):
    def found() -> tuple[str, list[str]]:
        said: dict[str, Any] = doctor(Doctor(device="cpu", dtype="float32", threads=1))
        return dict(said["table"]["rows"])["sandbox"], [n for n in said["notes"] if "refused" in n]

    monkeypatch.setattr(sandbox, "why_not", lambda: "bubblewrap is not installed.")
    row, notes = found()
    assert "refused" in row and "bubblewrap is not installed" in notes[0]
    monkeypatch.setattr(sandbox, "why_not", lambda: "")
    row, notes = found()
    assert "tried" in row and notes == []
