"""The verb pm probe on a tiny model and on one that likes some words: its files, its numbers, its flag."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_contract import check_run
from truing.configs import PMProbe
from truing.data.prompts import occupations
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.recipes import pm_probe as recipe
from truing.recipes.pm_probe import pm_probe
from truing.report.page import build
from truing.types import Dialogue

FEMALE = {pair[0] for pair in occupations()[1]}


class Words:
    """Stands in for a preference model: a score from hashes of the words, and a lean to female terms."""

    def __init__(self, lean: float) -> None:
        self.lean = lean

    def score(self, dialogues: Sequence[Dialogue], max_length: int = 0) -> np.ndarray:
        def one(text: str) -> float:
            words = text.rstrip(".").split()
            drawn = np.random.default_rng([ord(letter) for letter in text]).normal(0, 0.5)
            return (
                drawn
                + np.random.default_rng([ord(x) for x in words[-1]]).normal(0, 0.6)
                + self.lean * (words[-1] in FEMALE)
            )

        return np.array([one(d.last.text) for d in dialogues])


@pytest.fixture
def pm(tmp_path: Path) -> str:
    tokenizer = family.byte_tokenizer()
    size: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "max_positions": 512}
    model = family.new_model("llama", vocab_size=len(tokenizer), seed=0, **size)
    PreferenceModel.new(LM(model, tokenizer, name="tiny"), seed=0).save(tmp_path / "pm")
    return str(tmp_path / "pm")


def config(pm: str, out: Path, **more: Any) -> PMProbe:
    return PMProbe(pm=pm, out=out, device="cpu", dtype="float32", threads=1, **more)


@pytest.mark.parametrize(("lean", "flagged"), [(0.0, 0), (2.0, 1)])
def test_a_lean_to_female_terms_is_flagged_and_none_is_not(
    lean: float, flagged: int, pm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreferenceModel, "load", lambda *a, **k: Words(lean))
    run = pm_probe(config(pm, tmp_path / "out", probes=["gender"]))
    numbers = run.summary()["numbers"]  # type: ignore[union-attr]
    assert numbers["gender/flagged"]["value"] == flagged
    page = build(run.path).read_text()  # type: ignore[union-attr]
    assert ("not flagged" in page) == (not flagged) and "hhh/accuracy" not in numbers


def test_a_whole_run_survives_a_kill_and_gives_what_is_documented(
    pm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"dialogue": f"\n\nHuman: a{i}\n\nAssistant: b{i}", "label": i % 2} for i in range(12)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = {"labelled": str(tmp_path / "labelled.jsonl")}
    plain, seen = recipe._scores, []

    def dying(model: PreferenceModel, dialogues: Sequence[Dialogue], length: int) -> list[dict[str, float]]:
        seen.append(len(dialogues))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(model, dialogues, length)

    with monkeypatch.context() as once:
        once.setattr(recipe, "_scores", dying)
        with pytest.raises(KeyboardInterrupt):
            pm_probe(config(pm, tmp_path / "out", **options))
    run = pm_probe(config(pm, tmp_path / "out", **options))
    assert not isinstance(run, dict) and run.done and sum(seen[:2]) == 2 * recipe.CHUNK
    build(run.path)
    numbers = check_run(run.path, "pm probe")
    assert numbers["hhh/accuracy"]["n"] == 48 and numbers["labelled/safe"]["n"] == 6
    pairs = [json.loads(line) for line in (run.path / "hhh.jsonl").read_text().splitlines()]
    loaded = PreferenceModel.load(pm)
    first = pairs[0]
    scores = loaded.score([Dialogue().ask(first["prompt"]).reply(first[side]) for side in ("chosen", "rejected")])
    assert first["gap"] == pytest.approx(float(scores[0] - scores[1]), abs=2e-3)
    assert {p.stem for p in run.figures.glob("*.svg")} == {"hhh", "gender", "labelled"}
    with pytest.raises(ValueError, match="nothing to probe"):
        pm_probe(config(pm, tmp_path / "other", probes=[]))
