"""The recipe's numbers, claims and page, all pulled from the runs below its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from truing import stats
from truing.data.toy_hh import agreement, gold
from truing.measure.frontier import by_prompt
from truing.measure.matched import exceeds
from truing.recipes.hh_text import sections
from truing.report import figures
from truing.report.page import build, write_story
from truing.runs.atomic import read_rows
from truing.stats import Interval
from truing.train.pm_numbers import KINDS
from truing.train.ppo_eval import EVALUATIONS
from truing.types import Dialogue

if TYPE_CHECKING:
    from truing.recipes.hh_setup import Lab

CHILDREN = ("tension", "robustness", "frontier", "ood")
CAPTIONS = {"layers.svg": "AUROC of harmful prompts among held-out helpful ones, by layer (95% band)."}
"""Of figures whose own page has none."""


def tell(lab: Lab) -> tuple[dict[str, Any], list[str]]:
    """Draw, write the page's story, and return headline numbers and notes."""
    numbers = {
        **start_numbers(lab),
        **pm_numbers(lab),
        **policy_numbers(lab),
        **_some(lab, "frontier", ("sigma_w", "slope", "r2", "share_of_bound", "above_bound", "over_best_of")),
        **_some(lab, "ood", ("auroc", "auroc/mahalanobis", "auroc/exposed/10")),
    }
    claims = judge_claims(numbers) if lab.config.scale != "ci" else []
    drawn = draw(lab)
    title = "Training a helpful and harmless assistant, in a toy world"
    story = {
        "title": title,
        "subtitle": f"2204.05862 from top to bottom at scale {lab.config.scale}, seed {lab.config.seed}.",
        "badges": ["simulated people", f"ToyHH, {lab.largest} parameters"],
        "sections": sections(numbers, claims, drawn, _told(lab)),
    }
    write_story(lab.path, story)
    notes = ["All people, prompts and replies are of a toy world: the shape of results is compared, not their size."]
    if lab.config.scale == "ci":
        notes.append("Scale ci runs every stage at a size at which no claim can be made.")
    return numbers, [*notes, *(f"{'HOLDS' if holds else 'DOES NOT HOLD'}: {text}" for text, holds, _ in claims)]


# ---------------------------------------------------------------- numbers


def start_numbers(lab: Lab) -> dict[str, Any]:
    """Gold of the base model, of itself told to be careful, and of what was distilled; how well people agree."""
    found = json.loads((lab.path / "starts.json").read_text())
    names = {"base": "base", "base, told to be careful": "told", "distilled": "distilled"}
    out: dict[str, Any] = {}
    for name, rows in found.items():
        flat = [x for row in rows for x in row]
        where = [i for i, row in enumerate(rows) for _ in row]
        out[f"gold/{names[name]}"] = stats.mean_interval(flat, where, unit="gold", seed=lab.config.seed)
    for size in lab.scale.sizes:
        out[f"loss_removed/{size}"] = lab.numbers(size)["loss_removed"]
    pairs = [c for c in lab.pairs if c.source == "toy"]
    return out | {"agreement": Interval(agreement(pairs), None, None, len(pairs), "share")}


def pm_numbers(lab: Lab) -> dict[str, Any]:
    """One-sided and mixed preference models on both sides; calibration and share of the best possible accuracy."""
    scans, size = lab.numbers("tension"), lab.largest
    names = {"helpful_only": "0", "mixed": "50", "harmless_only": "100"}
    out = {f"{name}/{side}": scans[f"mix/{size}/{p}/{side}"] for name, p in names.items() for side in KINDS}
    out |= {name: x for name, x in scans.items() if name.startswith(("best_weight", "helpful_loss", "best_mix"))}
    found = json.loads((lab.path / "calibration.json").read_text())
    n = found["numbers"]["accuracy"]["n"]
    return out | {f"pm/{name}": x for name, x in found["numbers"].items()} | {
        "pm/bayes": Interval(found["bayes"], None, None, n, "share"),
        "pm/share_of_bayes": Interval(found["share_of_bayes"], None, None, n, "share"),
    }  # fmt: skip


def policy_numbers(lab: Lab) -> dict[str, Any]:
    """The largest policy under its own size's train-PM: what judges and gold say at the end, and where the test-PM is
    highest, a place chosen without gold.
    """
    numbers, name = lab.numbers("robustness"), f"{lab.largest}@{lab.largest}"
    keep = ("gain_train", "gain_test", "gap", "gap_early", "onset", "kl", "gain_gold", "gold_peak", "gold_fall")
    out = {key: numbers[f"{key}/{name}"] for key in keep}
    rows = evaluations(lab)
    worth, kl = by_prompt(rows, "gold"), by_prompt(rows, "kl")
    best = int(np.argmax(by_prompt(rows, f"score/test-{lab.largest}").mean(1)))
    kinds = np.array([next(r["kind"] for r in rows if r["id"] == id) for id in dict.fromkeys(r["id"] for r in rows)])
    seed = lab.config.seed
    for place, at in (("best", best), ("end", -1)):
        gain = worth[at] - worth[0]
        out[f"gold_gain/{place}"] = stats.mean_interval(gain, unit="gold", seed=seed)
        out[f"kl/{place}"] = stats.mean_interval(kl[at], unit="nats per reply", seed=seed)
        for kind in KINDS:
            out[f"gold_gain/{place}/{kind}"] = stats.mean_interval(gain[kinds == kind], unit="gold", seed=seed)
    return out | {"gold/start": stats.mean_interval(worth[0], unit="gold", seed=seed)}


def evaluations(lab: Lab) -> list[dict[str, Any]]:
    """Every reply of the largest policy's evaluations, with its gold."""
    path = lab.path / "robustness" / f"{lab.largest}@{lab.largest}" / EVALUATIONS
    return [row | {"gold": gold(Dialogue.from_messages(row["dialogue"]))} for row in read_rows(path)]


def _some(lab: Lab, child: str, names: Sequence[str]) -> dict[str, Any]:
    """Some numbers of a run below, without the name of the largest policy."""
    found, tail = lab.numbers(child), f"/{lab.largest}@{lab.largest}"
    return {f"{child}/{name}": found.get(name + tail, found.get(name)) for name in names}


# ---------------------------------------------------------------- claims


def value(number: Any) -> float:
    """The value of an Interval or its dict; not a number where it is undefined, so that no claim holds of it."""
    found = number["value"] if isinstance(number, Mapping) else number.value
    return float("nan") if found is None else float(found)


def judge_claims(numbers: Mapping[str, Any]) -> list[tuple[str, bool, bool]]:
    """(claim, whether the numbers bear it out, whether it must hold). Two standard errors: the 95% interval."""

    def of(name: str) -> float:
        return value(numbers[name])

    early, late = numbers["gap_early"], numbers["gap"]
    return [
        ("a preference model of helpful comparisons alone is right on less than 40% of harmless ones",
         of("helpful_only/harmless") < 0.4, True),
        ("one of harmless comparisons alone is right on less than 40% of helpful ones",
         of("harmless_only/helpful") < 0.4, True),
        ("a mixed one is right on more than 70% of both", min(of(f"mixed/{k}") for k in KINDS) > 0.7, True),
        ("on planted choices the preference model is calibrated: its ECE lies within the null band",
         of("pm/ece") <= of("pm/ece_null_95"), True),
        ("its accuracy is at least 95% of the best possible", of("pm/share_of_bayes") >= 0.95, True),
        ("RL stays under the bound Δr ≤ σ_w·√(2·KL) at small KL", of("frontier/above_bound") == 0, True),
        (f"RL raises gold over its start by more than two standard errors, at a KL of {of('kl/best'):.2f} nats (where "
         "the judge that never trains is highest)", exceeds(interval(numbers["gold_gain/best"])), True),
        (f"the gain is near-linear in √KL: R² = {of('frontier/r2'):.3f} on the early half (0.9 or more)",
         of("frontier/r2") >= 0.9, False),
        ("train-PM and test-PM agree early: the interval of their gap holds 0",
         _holds_zero(interval(early)), False),
        ("late, the train-PM has risen above the test-PM", exceeds(interval(late)), False),
    ]  # fmt: skip


def interval(x: Any) -> Interval:
    """A number of a summary as an Interval."""
    return Interval(**x) if isinstance(x, Mapping) else x


def _holds_zero(x: Interval) -> bool:
    return x.low is not None and x.high is not None and x.low <= 0 <= x.high


# ---------------------------------------------------------------- figures


def draw(lab: Lab) -> dict[str, list[dict[str, str]]]:
    """The recipe's own figures, and those of the runs below, copied here; by study, for the page."""
    found: dict[str, list[dict[str, str]]] = {}
    for child in CHILDREN:
        build(lab.path / child)
        told = json.loads(path.read_text()) if (path := lab.path / child / "sections.json").exists() else {}
        captions = {f["file"]: f for s in told.get("sections", ()) for f in s.get("figures", ())}
        found[child] = []
        for file in sorted((lab.path / child / "figures").glob("*.svg"), key=lambda p: list(captions).index(p.name)
                           if p.name in captions else len(captions)):  # fmt: skip
            for one in (file, file.with_suffix(".png")):
                shutil.copy(one, lab.run.figures / f"{child}-{one.name}")
            caption = captions.get(file.name, {}).get("caption") or CAPTIONS.get(file.name)
            caption = caption or figures.words(file.stem.replace("-", " "))
            found[child].append({"file": f"{child}-{file.name}", "caption": caption})
    bins = json.loads((lab.path / "calibration.json").read_text())["bins"]
    figures.save(figures.reliability_diagram({"train-PM": bins}), lab.run.figures, "calibration")
    found["calibration"] = [{"file": "calibration.svg", "caption": "Accuracy against confidence on fresh choices."}]
    starts = start_numbers(lab)
    bars = {name: starts[f"gold/{name}"] for name in ("base", "told", "distilled")}
    figure = figures.bars_with_intervals(bars, ylabel="gold of a reply to a held-out prompt")
    figures.save(figure, lab.run.figures, "starts")
    caption = "Gold of the base model, of itself told to be careful, and of what was distilled from that."
    found["starts"] = [{"file": "starts.svg", "caption": caption}]
    return found


def _told(lab: Lab) -> dict[str, Any]:
    """Samples for the page: replies of the start and of the policy to the same prompts."""
    rows = evaluations(lab)
    first, last = ([r for r in rows if r["step"] == step] for step in (rows[0]["step"], rows[-1]["step"]))
    shown: dict[str, dict[str, Any]] = {}
    for before, after in zip(first, last, strict=True):
        if before["id"] not in shown and sum(s["kind"] == before["kind"] for s in shown.values()) < 5:
            shown[before["id"]] = {
                "prompt": " … ".join(turn["content"] for turn in before["dialogue"][:-1] if turn["role"] != "system"),
                "kind": before["kind"],
                "before": before["dialogue"][-1]["content"],
                "after": after["dialogue"][-1]["content"],
                "gold_before": before["gold"],
                "gold_after": after["gold"],
            }
    return {"samples": list(shown.values())}
