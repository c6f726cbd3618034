"""A process killed in the middle of a chunk, and time that runs out in the middle of a job: nothing is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from truing import cli
from truing.measure import choices, labels, p_true, preference, score
from truing.models import family
from truing.models.engine import Engine
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.runs import Run

QUICK = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
JOBS: dict[str, tuple[str, ...]] = {
    "score": ("score", "lm", "texts.jsonl"),
    "score pm": ("score", "pm", "pairs.jsonl"),
    "pm eval": ("pm", "eval", "pm", "pairs.jsonl"),
    "sample": ("sample", "lm", "prompts.jsonl", "--n", "2", "--max-new-tokens", "4"),
    "choices": ("honesty", "choices", "lm", "choices.jsonl"),
    "ptrue": ("honesty", "ptrue", "lm", "questions.jsonl", "--samples", "2", "--max-new-tokens", "4"),
}
ROWS = 10
every_job = pytest.mark.parametrize("job", JOBS)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tokenizer = family.byte_tokenizer()
    size = {"layers": 2, "width": 32, "heads": 2, "max_positions": 512, "seed": 0}
    lm = LM(family.new_model("llama", vocab_size=len(tokenizer), **size), tokenizer)  # type: ignore[arg-type]
    lm.save(root / "lm")
    PreferenceModel.new(lm, seed=0).save(root / "pm")
    return root


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("lm", "pm"):
        (tmp_path / name).symlink_to(models / name)
    n = range(ROWS)
    ask = "\n\nHuman: Is {} even?\n\nAssistant:"
    data: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": f"text {i}"} for i in n],
        "pairs": [{"prompt": ask.format(i), "chosen": f" yes {i}", "rejected": f" no {i}"} for i in n],
        "prompts": [{"prompt": f"Say {i}."} for i in n],
        "choices": [{"question": f"{i} + 1?", "choices": [str(i + 1), "x"], "answer": 0} for i in n],
        "questions": [{"question": f"{i} + 1?", "answers": [str(i + 1)], "id": f"q{i}"} for i in n],
    }
    for name, rows in data.items():
        (tmp_path / f"{name}.jsonl").write_text(lines(rows))
    for module, name in ((score, "CHUNK"), (choices, "CHUNK"), (p_true, "CHUNK"), (preference, "CHUNK")):
        monkeypatch.setattr(module, name, 6 if module is score else 3)
    return tmp_path


def counted(monkeypatch: pytest.MonkeyPatch, die_at: int = 0) -> list[str]:
    """Each call in which a model works; at number ``die_at`` the process is killed when the work is done."""
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def call(self: Any, items: Any, *given: Any, **named: Any) -> Any:
            found = plain(self, items, *given, **named)
            calls.append(f"{name} {len(items)}")
            if len(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        monkeypatch.setattr(owner, name, call)

    watch(Engine, "score")
    watch(Engine, "sample")
    watch(PreferenceModel, "read")
    return calls


def numbers(path: Path) -> Any:
    """What a finished run holds, less the digits that depend on which texts stand in one pack."""

    def rounded(x: str) -> float:
        return round(float(x), 4)

    rows = (path / "rows.jsonl").read_text().splitlines()
    return [json.loads(row, parse_float=rounded) for row in rows]


@every_job
def test_kill_9_in_the_middle_repeats_no_finished_chunk(
    job: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Planted: rows are kept at the end only; the chunk before the killed one is done again."""
    argv = [*JOBS[job], *QUICK]
    with monkeypatch.context() as once:
        whole = counted(once)
        assert cli.main([*argv, "--out", "whole"]) == 0
    assert len(whole) >= 2
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            counted(monkeypatch, die_at=2)
            cli.main([*argv, "--out", "cut"])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (here / "cut" / "summary.json").exists()
    rest = counted(monkeypatch)
    assert cli.main([*argv, "--out", "cut"]) == 0
    assert rest == whole[1:], "the first chunk was kept, the one that was cut is done again"
    assert numbers(here / "cut") == numbers(here / "whole")
    assert {p.name for p in (here / "cut").iterdir()} == {p.name for p in (here / "whole").iterdir()}


@every_job
def test_time_that_runs_out_leaves_a_valid_part(
    job: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Planted: the clock is looked at once; a part's numbers claim the whole job."""
    argv = [*JOBS[job], *QUICK]
    with monkeypatch.context() as once:
        whole = counted(once)
        assert cli.main([*argv, "--out", "whole"]) == 0
    with monkeypatch.context() as slow:
        calls, in_chunks, append = counted(slow), labels.in_chunks, labels.append
        runs: list[Run] = []

        def watched(run: Run, *given: Any, **named: Any) -> Any:
            runs.append(run)
            return in_chunks(run, *given, **named)

        def slowly(*given: Any) -> None:
            append(*given)
            runs[-1].opened -= 100  # seconds that this chunk took

        slow.setattr(labels, "append", slowly)
        for module in (score, choices, p_true, preference):
            slow.setattr(module, "in_chunks", watched)
        assert cli.main([*argv, "--out", "part", "--max-time", "1"]) == 0
    assert 0 < len(calls) < len(whole)
    part = json.loads((here / "part" / "partial.json").read_text())
    assert any("Stopped after" in note and "goes on" in note for note in part["notes"])
    assert all(row["n"] is None or row["n"] < ROWS for row in part["numbers"].values())
    assert (here / "part" / "report.html").exists() and not (here / "part" / "summary.json").exists()
    rest = counted(monkeypatch)
    assert cli.main([*argv, "--out", "part"]) == 0
    assert rest == whole[len(calls) :]
    assert numbers(here / "part") == numbers(here / "whole") and not (here / "part" / "partial.json").exists()
