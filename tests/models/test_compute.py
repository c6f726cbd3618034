"""Device, precision, threads: what is given stays, the rest is measured once."""

from __future__ import annotations

import pytest
import torch

from truing.models import compute


@pytest.fixture(autouse=True)
def threads_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_given_is_kept_and_nothing_measured(monkeypatch):
    """Catches measuring again on a resume: another choice would be another run."""
    monkeypatch.setattr(compute, "measure", lambda threads: pytest.fail("measured"))
    chosen = compute.choose("cpu", "bfloat16", 1)
    assert chosen == compute.Compute(torch.device("cpu"), torch.bfloat16, 1, {})
    assert compute.choose("cpu", torch.float32, 1).dtype == torch.float32
    assert str(chosen) == "cpu, bfloat16, 1 thread"


def test_the_faster_is_taken_and_threads_are_set(monkeypatch):
    """Catches a choice that is reported but not made."""
    speeds = {"1 float32": 50.0, "1 bfloat16": 20.0, "2 float32": 95.0, "2 bfloat16": 200.0}
    monkeypatch.setattr(compute, "measure", lambda threads: speeds)
    chosen = compute.choose("cpu")
    assert (chosen.threads, chosen.dtype, chosen.measured) == (2, torch.bfloat16, speeds)
    assert torch.get_num_threads() == 2
    assert compute.choose("cpu", "float32").threads == 2
    assert compute.choose("cpu", "auto", 1).dtype == torch.float32


def test_near_ties_go_to_the_exact_and_the_modest():
    """Catches noise that decides between bf16 and float32, or gives a busy machine another thread."""
    speeds = {"2 bfloat16": 57.0, "2 float32": 55.0, "1 bfloat16": 52.0, "1 float32": 50.0}
    assert compute.pick(speeds, 0, "auto") == (1, "float32")
    assert compute.pick(speeds, 2, "bfloat16") == (2, "bfloat16")


def test_a_measurement_is_quick_complete_and_leaves_threads_alone():
    """Catches a measurement that changes what it measures for."""
    compute.measure.cache_clear()
    before = torch.get_num_threads()
    found = compute.measure(1)
    assert set(found) == {"1 float32", "1 bfloat16"} and min(found.values()) > 0
    assert torch.get_num_threads() == before
    assert compute.measure(1) is found


def test_what_is_not_here_is_said():
    """Catches a torch error in place of a sentence."""
    for device in ("tpu9", "cuda:77", "xpu"):
        with pytest.raises(ValueError, match="device is"):
            compute.choose(device, "float32", 1)
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        compute.choose("cpu", "float16", 1)
    with pytest.raises(ValueError, match="threads is -1"):
        compute.choose("cpu", "float32", -1)
