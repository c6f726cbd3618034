"""Out-of-distribution prompts: distances against closed forms, planted outliers, and the leaks that would flatter."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from truing.configs import PMOOD
from truing.data.files import write_rows
from truing.measure import ood as study
from truing.measure.ood import PLAIN, ZERO, exposure, judge_layer, make_split, ood, prompts_of
from truing.models import family
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.states import StateReader
from truing.report.page import build
from truing.stats import auroc
from truing.stats.outliers import RIDGE, Gaussian, Judged, auroc_draws, disjoint, expose, ledoit_wolf
from truing.types import Dialogue


def correlated(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Rows with correlated features of very different scale; ``shift`` goes along the direction of least variance."""
    mix = np.random.default_rng(7).normal(size=(d, d)) * np.geomspace(1, 0.05, d)[:, None]
    least = np.linalg.svd(mix)[2][-1]
    return (np.random.default_rng(seed).normal(size=(n, d)) @ mix + shift * least) * np.geomspace(0.1, 30, d) + 5


# ---------------------------------------------------------------- the distances


@pytest.mark.parametrize(("n", "d"), [(200, 12), (13, 12), (12, 12), (8, 12), (2, 5)])
def test_the_fitted_rows_are_as_far_as_there_are_dimensions(n: int, d: int):
    """Spec, §19 row 22: in-sample mean full distance = min(d, N − 1), diagonal = d, to 1e-6."""
    x = correlated(n, d, seed=n)
    gaussian = Gaussian.fit(x, shrinkage=0.0)
    assert gaussian.full(x).mean() == pytest.approx(min(d, n - 1), abs=1e-6)
    assert gaussian.diagonal(x).mean() == pytest.approx(d, abs=1e-6)
    assert gaussian.fitted_distance == pytest.approx(min(d, n - 1), abs=1e-9)


def test_distances_against_an_inverse_in_float64():
    x, v = correlated(300, 6, seed=1), correlated(40, 6, seed=2, shift=3)
    cov = np.cov(x.T, bias=True)  # 1/N
    off = v - x.mean(0)
    full = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
    diagonal = (off**2 / np.diag(cov)).sum(1)
    gaussian = Gaussian.fit(x)
    assert gaussian.shrinkage == 0, "300 rows are many for 6 dimensions"
    np.testing.assert_allclose(gaussian.full(v), full, rtol=1e-8)
    np.testing.assert_allclose(gaussian.diagonal(v), diagonal, rtol=1e-8)
    np.testing.assert_allclose(gaussian.relative(v), full - diagonal, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (5, 8)])
def test_shrinkage_mixes_the_covariance_with_its_diagonal(n: int, d: int):
    x, v = correlated(n, d, seed=3), correlated(9, d, seed=4, shift=2)
    cov = np.cov(x.T, bias=True)
    shrunk = 0.7 * cov + 0.3 * np.diag(np.diag(cov))
    off = v - x.mean(0)
    gaussian = Gaussian.fit(x, shrinkage=0.3)
    np.testing.assert_allclose(gaussian.full(v), np.einsum("ni,ij,nj->n", off, np.linalg.inv(shrunk), off), rtol=1e-7)
    assert gaussian.full(x).mean() == pytest.approx(gaussian.fitted_distance, rel=1e-9)
    np.testing.assert_allclose(Gaussian.fit(x, shrinkage=1.0).relative(v), 0, atol=1e-9 * gaussian.diagonal(v).max())


@pytest.mark.parametrize(("n", "d"), [(30, 10), (10, 30)])
def test_few_rows_are_shrunk_by_ledoit_and_wolf(n: int, d: int):
    x = correlated(n, d, seed=5)
    z = (x - x.mean(0)) / x.std(0)
    expected = LedoitWolf(assume_centered=True).fit(z).shrinkage_
    assert ledoit_wolf(z) == pytest.approx(expected, rel=1e-9)
    assert Gaussian.fit(x).shrinkage == pytest.approx(expected, rel=1e-9)
    assert Gaussian.fit(correlated(100, 10, seed=6)).shrinkage == 0


def test_a_feature_that_never_differs_counts_for_nothing():
    x = np.hstack([correlated(30, 4, seed=1), np.full((30, 1), 0.1)])
    gaussian = Gaussian.fit(x, shrinkage=0.0)
    assert gaussian.full(x).mean() == pytest.approx(4, abs=1e-6) and np.isfinite(gaussian.full(x + 1)).all()


# ---------------------------------------------------------------- AUROC and exposure


def test_auroc_over_splits_is_the_mean_and_its_resamples_are_those_of_rows():
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        ids_in, ids_out = rng.permutation(60)[:40], rng.permutation(30)[:20]
        parts.append(Judged(ids_in, rng.normal(size=40).round(1), ids_out, rng.normal(0.8, 1, size=20).round(1)))
    value, draws = auroc_draws(parts, n_boot=400, seed=1)
    each = [auroc(np.append(p.inside, p.outside), np.repeat([0, 1], [40, 20])) for p in parts]
    assert value == pytest.approx(np.mean(each), abs=1e-12)
    assert draws.std() == pytest.approx(0.05, abs=0.025) and abs(draws.mean() - value) < 0.01
    (one,) = [auroc_draws(parts[:1], n_boot=2000, seed=2)[1]]
    n, m = 40, 20  # Hanley and McNeil (1982): standard error of one AUROC
    a = each[0]
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    known = np.sqrt((a * (1 - a) + (m - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (n * m))
    assert one.std() == pytest.approx(known, rel=0.2)


def test_a_repeated_outlier_is_a_weight_and_the_layer_is_logistic_regression():
    a, b = correlated(60, 5, seed=1), correlated(3, 5, seed=2, shift=1)
    layer = expose(a, b, times=20)
    again = expose(a, np.repeat(b, 20, axis=0))
    v = correlated(10, 5, seed=3)
    np.testing.assert_allclose(layer.score(v), again.score(v), rtol=1e-3, atol=1e-3)
    z = (np.vstack([a, np.repeat(b, 20, axis=0)]) - a.mean(0)) / a.std(0)
    reference = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=10_000).fit(z, np.repeat([0, 1], 60))
    expected = reference.decision_function((v - a.mean(0)) / a.std(0))
    np.testing.assert_allclose(layer.score(v), expected, rtol=1e-3, atol=1e-3)


def planted(d: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Inside rows, and rows that differ by a little along the direction in which inside rows hardly vary."""
    return correlated(400, d, seed=1), correlated(120, d, seed=2, shift=3.0)


def config(**options: Any) -> PMOOD:
    return PMOOD(model="m", inside="i", outside="o", **options)


def splits_of(c: PMOOD, inside: int, outside: int) -> list[study.Split]:
    return study._splits(c, inside, outside)


def test_planted_outliers_are_found_and_ten_examples_do_not_hurt():
    """Spec, §19 row 22: planted AUROC > .9; exposure with M = 10 ≥ zero-shot; relative beats plain distance here."""
    inside, outside = planted()
    c = config(exposed=[1, 10])
    layer = judge_layer(inside, outside, splits_of(c, 400, 120), c)
    found = layer.auroc[ZERO]
    assert found.value > 0.9 and found.low > 0.85 and found.low <= found.value <= found.high
    assert found.value >= layer.auroc[PLAIN].value - 0.01
    assert layer.auroc[exposure(10)].value >= found.value, layer.auroc
    assert layer.gain[exposure(10)].low >= -0.01
    assert layer.distances["fitted"] < layer.distances["held_out"] < layer.distances["outside"]


def test_prompts_of_one_kind_are_not_told_apart():
    x = correlated(520, 24, seed=9)
    c = config(exposed=[10])
    layer = judge_layer(x[:400], x[400:], splits_of(c, 400, 120), c)
    assert layer.auroc[ZERO].low < 0.5 < layer.auroc[ZERO].high and 0.35 < layer.auroc[exposure(10)].value < 0.65


# ---------------------------------------------------------------- leaks (spec, §20 rows 35 and 36)


@pytest.mark.parametrize("shrinkage", [0.0, None])
def test_a_covariance_fitted_on_the_rows_it_judges_is_caught(shrinkage: float | None):
    x = correlated(60, 20, seed=1)
    gaussian = Gaussian.fit(x, shrinkage)
    with pytest.raises(ValueError, match="fitted on the 60 rows"):
        gaussian.refuse_fitted(x)
    others = correlated(60, 20, seed=2)
    assert gaussian.refuse_fitted(others) > gaussian.fitted_distance


def test_the_study_itself_refuses_such_a_split():
    inside, outside = planted(8)
    c = config(exposed=[])
    (good, *_) = splits_of(c, 400, 120)
    leaking = study.Split(good.judged, good.judged, good.pool, good.outside)
    with pytest.raises(ValueError, match="would look perfect"):
        judge_layer(inside, outside, [leaking], c)
    shown = study.Split(good.fitted, good.judged, good.outside, good.outside)
    c = config(exposed=[10], splits=1)
    with pytest.raises(ValueError, match="shown and judged at once"):
        judge_layer(inside, outside, [shown], c)


def test_held_out_prompts_lie_farther_off_the_fewer_were_fitted():
    """With N near d the fitted rows look near whatever they are; only held-out ones show it."""
    far = {}
    for n in (30, 60, 2000):
        gaussian = Gaussian.fit(correlated(n, 25, seed=1), shrinkage=0.0)
        far[n] = gaussian.full(correlated(500, 25, seed=2)).mean() / gaussian.fitted_distance
    assert far[30] > 3 and far[30] > far[60] > far[2000] and far[2000] == pytest.approx(1, abs=0.1)
    shrunk = Gaussian.fit(correlated(30, 25, seed=1))
    assert shrunk.full(correlated(500, 25, seed=2)).mean() / shrunk.fitted_distance < far[30] / 2


def test_outliers_that_are_shown_never_judge():
    c = config(exposed=[10], draws=5)
    for split in splits_of(c, 80, 60):
        assert not set(split.pool) & set(split.outside) and not set(split.fitted) & set(split.judged)
        assert len(split.pool) == 30 and len(split.pool) + len(split.outside) == 60
        assert sorted([*split.fitted, *split.judged]) == list(range(80))
    with pytest.raises(ValueError, match="3 rows are shown and judged at once"):
        disjoint(shown=[1, 2, 3], judged=[3, 2, 1, 0])
    with pytest.raises(ValueError, match="too few"):
        make_split(3, 10, 0.5, 5, np.random.default_rng(0))


# ---------------------------------------------------------------- activations


@pytest.fixture(scope="module")
def lm() -> LM:
    tokenizer = family.byte_tokenizer()
    size = {"layers": 3, "width": 32, "heads": 2, "max_positions": 256}
    return LM(family.new_model("llama", vocab_size=len(tokenizer), seed=1, **size), tokenizer, name="toy")


@pytest.mark.parametrize("shape", ["llama", "neox", "gpt2"])
def test_states_are_those_of_the_model_alone(shape: Any, monkeypatch: pytest.MonkeyPatch):
    tokenizer = family.byte_tokenizer()
    model = family.new_model(shape, layers=3, width=32, heads=2, vocab_size=len(tokenizer), seed=2)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 200, n).tolist() for n in (9, 3, 40)]
    sequences += [sequences[0][:5], [*sequences[0], 7], sequences[0]]
    reader = StateReader(LM(model, tokenizer))
    found = reader.read(sequences)
    assert found.shape == (3, 6, 32) and found.dtype == np.float32
    with torch.no_grad():
        for i, sequence in enumerate(sequences):
            states = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
            for layer in range(2):  # after the last layer transformers gives the normed state
                np.testing.assert_allclose(found[layer, i], states[layer + 1][0, -1].numpy(), atol=1e-5)
            normed = getattr(model.base_model, {"gpt2": "ln_f", "neox": "final_layer_norm"}.get(shape, "norm"))(
                torch.from_numpy(found[2, i])
            )
            np.testing.assert_allclose(normed.numpy(), states[3][0, -1].numpy(), atol=1e-5)
    monkeypatch.setattr("truing.models.tree.supports_trees", lambda model: False)
    np.testing.assert_allclose(StateReader(LM(model, tokenizer)).read(sequences), found, atol=1e-5)


def test_a_long_prompt_loses_its_beginning_and_keeps_its_end(lm: LM):
    reader = StateReader(lm)
    prompt = Dialogue().ask("x" * 500 + " the end")
    whole, cut = lm.encode_prompt(prompt), reader.ids(prompt, 64)
    assert len(cut) == 64 and cut[0] == whole[0] == lm.tokenizer.bos_token_id and cut[1:] == whole[-63:]


# ---------------------------------------------------------------- the verb


def questions(n: int, form: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(len(form))
    words = ["tea", "bread", "a lamp", "the moon", "rain", "boats"]
    return [{"id": f"{form[:2]}{i}", "prompt": form.format(words[rng.integers(6)], i)} for i in range(n)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows("in.jsonl", questions(90, "How do I make {} number {}?"))
    write_rows("out.jsonl", questions(60, "INSULT {} {} !!"))
    return tmp_path


def test_the_verb_leaves_auroc_by_layer_and_a_figure(here: Path, lm: LM):
    c = PMOOD(model="toy", inside="in.jsonl", outside="out.jsonl", out=here / "run", device="cpu", threads=1)
    c.dtype, c.exposed = "float32", [1, 10]
    run = ood(c, reader=StateReader(lm))
    assert not isinstance(run, dict) and run.done
    numbers = run.summary()["numbers"]
    assert numbers["auroc"]["value"] > 0.9, "letters alone tell them apart"
    assert numbers["auroc/exposed/10"]["low"] is not None and numbers["gain/exposed/10"]["value"] is not None
    assert 100 < numbers["auroc"]["n"] <= 150, "prompts, not prompts × splits"
    assert numbers["auroc/exposed/10"]["n"] == numbers["auroc"]["n"]
    assert numbers["dimensions"]["value"] == 32 and 0 < numbers["shrinkage"]["value"] < 1
    notes = " ".join(run.summary()["notes"])
    assert "layer 2 of 3, the middle one" in notes and "45 prompts for 32 dimensions" in notes
    with open(run.path / "layers.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(r["layer"], r["series"]) for r in rows} == {
        (str(n), s) for n in (1, 2, 3) for s in (ZERO, PLAIN, "1 outlier shown", "10 outliers shown")
    }
    table = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in table} == {"inside", "outside"} and len({r["id"] for r in table}) == len(table) == 75
    build(run.path)
    assert (run.path / "figures" / "layers.svg").exists() and "layers.svg" not in (run.path / "report.html").read_text()
    assert not list(run.path.glob("states-*.npy"))
    assert ood(c, reader=StateReader(lm)).done  # type: ignore[union-attr]


def test_a_stopped_study_goes_on_with_what_was_read(here: Path, lm: LM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "CHUNK", 40)
    c = PMOOD(model="toy", inside="in.jsonl", outside="out.jsonl", out=here / "run", device="cpu", threads=1)
    whole = ood(PMOOD(**{**vars(c), "out": here / "whole"}), reader=StateReader(lm))

    class Stops(StateReader):
        def read(self, sequences: Any) -> np.ndarray:
            if self.tokens_run:
                raise KeyboardInterrupt
            return super().read(sequences)

    with pytest.raises(KeyboardInterrupt):
        ood(c, reader=Stops(lm))
    assert len(list((here / "run").glob("states-*.npy"))) == 1
    reader = StateReader(lm)
    stopped = ood(PMOOD(**{**vars(c), "max_time": 0.0}), reader=reader)
    assert not stopped.done and not reader.tokens_run  # type: ignore[union-attr]
    run = ood(c, reader=reader)
    assert run.summary()["numbers"] == whole.summary()["numbers"]  # type: ignore[union-attr]
    sizes = [sum(len(reader.ids(row.dialogue)) for row in rows) for rows in prompts_of(c)[:2]]
    assert reader.tokens_run < sum(sizes)


def test_a_preference_model_is_read_too_and_the_packaged_prompts_have_names(tmp_path: Path, lm: LM):
    PreferenceModel.new(lm).save(tmp_path / "pm")
    reader = StateReader.load(str(tmp_path / "pm"))
    plain = StateReader(lm)
    inside, outside, _ = prompts_of(PMOOD(model="m", inside="helpful", outside="red-team", limit=5))
    assert len(inside) == len(outside) == 5
    ids = [plain.ids(row.dialogue) for row in inside]
    assert [reader.ids(row.dialogue) for row in inside] == ids
    np.testing.assert_allclose(reader.read(ids), plain.read(ids), atol=1e-6)


def test_one_prompt_of_a_conversation_and_none_that_is_in_both(tmp_path: Path):
    rows = ["A?", "B?", "a?  ", "C?"]
    write_rows(tmp_path / "in.jsonl", [{"prompt": p} for p in rows])
    write_rows(tmp_path / "out.jsonl", [{"prompt": p} for p in ("D!", "B?")])
    inside, outside, notes = prompts_of(
        PMOOD(model="m", inside=str(tmp_path / "in.jsonl"), outside=str(tmp_path / "out.jsonl"))
    )
    assert [r.dialogue.last.text for r in inside] == ["A?", "C?"] and [r.dialogue.last.text for r in outside] == ["D!"]
    assert "1 prompts of" in notes[0] and "1 conversations stand in both" in notes[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit_share": 1.0}, "fit_share is 1.0"),
        ({"exposed": [0]}, "exposed is"),
        ({"exposed": [40]}, "40 outliers cannot be shown of 60 prompts"),
        ({"splits": 0}, "splits is 0"),
        ({"layer": 9}, "layer is 9; this model has layers 1 to 3"),
        ({"shrinkage": 2.0}, "shrinkage is 2.0"),
        ({"limit": 3, "exposed": [1]}, "too few"),
    ],
)
def test_options_that_mean_nothing_are_refused(here: Path, lm: LM, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        ood(
            PMOOD(model="toy", inside="in.jsonl", outside="out.jsonl", device="cpu", threads=1, **options),
            reader=StateReader(lm),
        )
    assert "layer" in options or not (here / "runs").exists(), "before anything is read"
