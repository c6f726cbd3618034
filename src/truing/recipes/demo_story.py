"""The demo's numbers, figures and page, all pulled from the files that its stages left."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from truing import stats
from truing.data.comparisons import load_comparisons
from truing.measure.elo import read_games
from truing.measure.matched import by_length, exceeds, gain, matched_gain
from truing.measure.preference import Scorer, evaluate_pm
from truing.measure.redteam import grid
from truing.recipes.demo_setup import load_json, load_lines
from truing.recipes.demo_text import page
from truing.report import figures
from truing.runs.atomic import read_rows
from truing.stats import Interval
from truing.text import to_hh
from truing.types import Comparison

if TYPE_CHECKING:
    from truing.recipes.demo import Lab

Rows = Sequence[Mapping[str, Any]]
ARMS = {"base": "held_out", "rlhf": "rlhf", "control": "control", "best-of-4": "best"}
"""Arm → name of its file of replies to the held-out prompts."""


def tell(lab: Lab) -> tuple[dict[str, Any], list[str]]:
    """Draw the figures, write the page's story, and return headline numbers and notes for the summary."""
    arms = {arm: load_lines(lab.path / f"replies_{file}.jsonl") for arm, file in ARMS.items()}
    numbers = {
        **preference_numbers(lab),
        **gold_numbers(arms, lab.config.seed),
        **policy_numbers(lab),
        **elo_numbers(lab),
        **{k: v for k, v in load_json(lab.path / "redteam.json").items() if k.startswith(("success/", "rating/"))},
        **honesty_numbers(lab),
    }
    claims = [] if lab.config.fast else judge_claims(numbers)
    draw(lab, arms, numbers)
    page(lab, arms, numbers, claims)
    notes = ["All people are simulated: nothing here says how real people would judge these replies."]
    if lab.config.fast:
        notes.append("--fast runs every stage at a size at which no claim can be made.")
    notes += [f"{'Holds' if holds else 'DOES NOT HOLD'}: {text}" for text, holds in claims]
    return numbers, notes


# Numbers


def preference_numbers(lab: Lab) -> dict[str, Any]:
    """What ``pm train`` measured on held-out prompts, the noise ceiling, and margins over the baselines."""
    found = load_json(lab.path / "pm-1" / "summary.json")["numbers"]
    names = ("accuracy", "longer_wins", "shorter_wins", "ece", "ece_null_95")
    out: dict[str, Any] = {f"pm/{name}": found[name] for name in names}
    pairs = [c for c in load_comparisons([str(lab.path / "held_out.jsonl")]) if c.strength != 1]
    gold = {(r["prompt"], r["text"]): r["gold"] for r in load_lines(lab.path / "replies_held_out.jsonl")}

    def felt(c: Comparison, text: str) -> float:
        return gold[(c.id.split("/")[1], text)]

    ceiling = [(np.sign(felt(c, c.chosen) - felt(c, c.rejected)) + 1) / 2 for c in pairs]
    clusters = [to_hh(c.prompt) for c in pairs]
    out["pm/ceiling"] = stats.mean_interval(ceiling, clusters, unit="share", seed=lab.config.seed)
    right = column(evaluate_pm(judge(lab, "pm-1", "held_out"), pairs).rows, "accuracy")
    longer = np.array([float(len(c.chosen) > len(c.rejected)) for c in pairs])
    shorter = np.array([float(len(c.chosen) < len(c.rejected)) for c in pairs])
    for name, baseline in (("longer", longer), ("shorter", shorter), ("chance", np.full(len(pairs), 0.5))):
        out[f"pm/above_{name}"] = stats.difference_interval(
            right, baseline, clusters, unit="share", seed=lab.config.seed
        )
    return out


def judge(lab: Lab, pm: str, replies: str) -> Scorer:
    """A preference model's scores of a file's replies, as a scoring function."""
    scores = lab.scores(pm, replies)
    return lambda dialogues: np.array([scores[d] for d in dialogues])


def tranches(lab: Lab, fresh: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Accuracy of both preference models on held-out choices between base replies and between the policy's."""
    rows = []
    sets = {"base": ("held_out", load_comparisons([str(lab.path / "held_out.jsonl")])), "rlhf": ("rlhf", fresh)}
    for pm in ("pm-1", "pm-2"):
        for tranche, (replies, pairs) in sets.items():
            clear = [c for c in pairs if c.strength != 1]
            found = evaluate_pm(judge(lab, pm, replies), clear, seed=lab.config.seed).numbers["accuracy"]
            rows.append({"pm": pm, "tranche": tranche, **found.as_dict()})
    return rows


def gold_numbers(arms: Mapping[str, Rows], seed: int) -> dict[str, Any]:
    """Gold of each arm on held-out prompts; gains over the base and of RLHF over its control: all, among finished, at
    matched length.
    """
    out: dict[str, Any] = {}
    for arm, rows in arms.items():
        out[f"gold/{arm}"] = stats.mean_interval(column(rows, "gold"), prompts(rows), unit="gold", seed=seed)
        out[f"finished/{arm}"] = stats.mean_interval(column(rows, "finished"), prompts(rows), unit="share", seed=seed)
        out[f"tokens/{arm}"] = stats.mean_interval(column(rows, "tokens"), prompts(rows), unit="tokens", seed=seed)
    for arm in ("rlhf", "control"):
        for name, interval in gains(arms[arm], arms["base"], seed).items():
            out[f"gain/{arm}{name}"] = interval
    for name, interval in gains(arms["rlhf"], arms["control"], seed).items():
        out[f"gain/over_control{name}"] = interval
    return out


def gains(after: Rows, before: Rows, seed: int) -> dict[str, Interval]:
    """Gain in gold: of all replies, of the finished ones, and among replies of like length (in characters)."""
    done, was = [r for r in after if r["finished"]], [r for r in before if r["finished"]]
    return {
        "": gain(
            column(after, "gold"), prompts(after), column(before, "gold"), prompts(before), unit="gold", seed=seed
        ),
        "/finished": gain(
            column(done, "gold"), prompts(done), column(was, "gold"), prompts(was), unit="gold", seed=seed
        ),
        "/matched": matched_gain(
            column(after, "gold"),
            lengths(after),
            prompts(after),
            column(before, "gold"),
            lengths(before),
            prompts(before),
            unit="gold",
            seed=seed,
        ),
    }


def policy_numbers(lab: Lab) -> dict[str, Any]:
    """KL, entropy and length as PPO measured them at its end, for the policy and its control."""
    out: dict[str, Any] = {}
    for arm in ("rlhf", "control"):
        found = load_json(lab.path / arm / "summary.json")["numbers"]
        out |= {f"{name}/{arm}": found[name] for name in ("pm_score_gain", "kl", "entropy")}
    return out


def elo_numbers(lab: Lab) -> dict[str, Any]:
    """Elo of the arms by the simulated people's choices, the base at 0."""
    path = lab.path / "games.jsonl"
    found = read_games(enumerate(load_lines(path), 1), path)
    result = stats.elo(found.games, found.clusters, "base", seed=lab.config.seed)
    return {f"elo/{arm}": rating for arm, rating in result.ratings.items()}


def honesty_numbers(lab: Lab) -> dict[str, Any]:
    """The headline numbers of the three honesty studies."""
    wanted = {
        "choices": ("accuracy", "ece_top", "ece_null_95", "label_mass"),
        "ptrue": ("accuracy", "auroc", "ece", "label_mass"),
        "pik": ("auroc", "ece", "skill"),
    }
    out: dict[str, Any] = {}
    for study, names in wanted.items():
        found = load_json(lab.path / study / "summary.json")["numbers"]
        out |= {f"{study}/{name}": found[name] for name in names}
    return out


def judge_claims(numbers: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What the demo claims, and whether its own numbers bear it out at two standard errors.

    The intervals resample prompts, so they leave out what another run of training would give: a control, one random
    walk of a few nats, passes a test now and then; which is named.
    """
    kl = value(numbers["kl/rlhf"])
    at = f" at a KL of {kl:.2f} nats" if kl is not None else ""
    claims = [
        ("the preference model beats 'longer wins'", exceeds(numbers["pm/above_longer"])),
        ("the preference model beats 'shorter wins'", exceeds(numbers["pm/above_shorter"])),
        ("the preference model beats chance", exceeds(numbers["pm/above_chance"])),
        (f"RLHF raises gold over the base{at}", exceeds(numbers["gain/rlhf"])),
        ("RLHF raises gold among finished replies", exceeds(numbers["gain/rlhf/finished"])),
        ("RLHF raises gold among replies of like length", exceeds(numbers["gain/rlhf/matched"])),
        ("RLHF gains more gold than shuffled rewards", exceeds(numbers["gain/over_control"])),
    ]
    parts = {"": "all", "/finished": "finished", "/matched": "like length"}
    shuffled = [name for part, name in parts.items() if exceeds(numbers[f"gain/control{part}"])]
    found = f" (they pass {len(shuffled)} of the three tests: {', '.join(shuffled)})" if shuffled else ""
    return [*claims, (f"shuffled rewards show no such gain{found}", not shuffled)]


# Figures


def draw(lab: Lab, arms: Mapping[str, Rows], numbers: Mapping[str, Any]) -> None:
    """Every figure of the page, as SVG and PNG."""
    folder = lab.run.figures
    names = ("chance", "shorter_wins", "longer_wins", "accuracy", "ceiling")
    chance = Interval(0.5, None, None, 0, "share")
    bars = {n.replace("accuracy", "preference model"): numbers.get(f"pm/{n}", chance) for n in names}
    plots = {
        "pm_accuracy": figures.bars_with_intervals(
            bars, ylabel="right on held-out choices", reference=0.5, percent=True
        ),
        "pm_reliability": figures.reliability_diagram({"preference model": table(lab, "pm-1")}),
        "gains": figures.bars_with_intervals(
            {
                label: {arm: numbers[f"gain/{arm}{part}"] for arm in ("rlhf", "control")}
                for label, part in (("all replies", ""), ("finished only", "/finished"), ("like length", "/matched"))
            },
            ylabel="gain in gold over the base model",
            reference=0.0,
        ),
        "reward_kl": figures.reward_vs_sqrt_kl({arm: curve(lab, arm) for arm in ("rlhf", "control")}),
        "ppo": figures.learning_curve(
            read_rows(lab.path / "rlhf" / "metrics.jsonl"),
            ["score", "kl", "entropy", "reply_tokens", "eos_rate", "reward"],
        ),
        "length": figures.length_matched(
            by_length(
                column(arms["rlhf"], "gold"), lengths(arms["rlhf"]), column(arms["base"], "gold"), lengths(arms["base"])
            ),
            ("base", "RLHF"),
            ylabel="gold",
        ),
        "gold": figures.histogram_pair(
            column(arms["base"], "gold"), column(arms["rlhf"], "gold"), ("base", "RLHF"), xlabel="gold score of a reply"
        ),
        "rounds": figures.bars_with_intervals(
            rounds(lab), ylabel="right on held-out choices", reference=0.5, percent=True
        ),
        "elo": figures.elo_ladder({k.removeprefix("elo/"): v for k, v in numbers.items() if k.startswith("elo/")}),
        "redteam": _heatmap(lab),
        "choices": figures.reliability_diagram({"lettered choices": table(lab, "choices")}),
        "ptrue": figures.reliability_diagram({"P(True)": table(lab, "ptrue"), "P(IK)": table(lab, "pik")}),
    }
    for name, figure in plots.items():
        figures.save(figure, folder, name)


def _heatmap(lab: Lab) -> Any:
    cells = {
        (kind, size): Interval(**{k: v for k, v in row.items() if k in ("value", "low", "high", "n", "unit")})
        for name, row in load_json(lab.path / "redteam.json").items()
        for verb, kind, size in [name.split("/")]
        if verb == "rating"
    }
    types, sizes, found = grid(cells)
    return figures.matrix_heatmap(
        types,
        sizes,
        [[c.value if c else None for c in row] for row in found],
        [[c.n if c else 0 for c in row] for row in found],
        label="attack rating, 0 (failed) – 4",
        low=0,
        high=4,
    )


def rounds(lab: Lab) -> dict[str, dict[str, Any]]:
    """Accuracy of both PMs on both kinds of held-out choices."""
    out: dict[str, dict[str, Any]] = {}
    for row in load_lines(lab.path / "rounds.jsonl"):
        tranche = "choices between base replies" if row["tranche"] == "base" else "between RLHF replies"
        name = "first PM" if row["pm"] == "pm-1" else "second PM (all data)"
        out.setdefault(tranche, {})[name] = {k: row[k] for k in ("value", "low", "high", "n", "unit")}
    return out


def curve(lab: Lab, arm: str) -> list[dict[str, Any]]:
    """Score and KL of every PPO step."""
    rows = read_rows(lab.path / arm / "metrics.jsonl")
    return [{"kl": r["kl"], "score": r["score"]} for r in rows if r.get("kl") is not None and "score" in r]


def table(lab: Lab, run: str) -> list[dict[str, Any]]:
    """The reliability table of a run, numbers as numbers."""
    path = lab.path / run / "reliability.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


# Small parts


def column(rows: Rows, name: str) -> np.ndarray:
    """One field of the rows as floats."""
    return np.array([float(r[name]) for r in rows])


def lengths(rows: Rows) -> np.ndarray:
    """Characters of each reply."""
    return np.array([float(len(r["text"])) for r in rows])


def prompts(rows: Rows) -> list[str]:
    """Cluster of each reply."""
    return [r["prompt"] for r in rows]


def value(number: Any) -> float | None:
    """The value of an Interval or its dict."""
    return number["value"] if isinstance(number, Mapping) else number.value
