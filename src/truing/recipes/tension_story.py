"""Numbers, figures and page of ``rlhf tension``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from truing.measure.tension import best, flatness, normalised, places_over, policy_numbers
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run
from truing.stats import Interval
from truing.train.pm_numbers import KINDS

if TYPE_CHECKING:
    from truing.recipes.tension import Found, Scan

SIDES = (*KINDS, "mean")


def tell(
    run: Run, found: Found, total: int, refused: Callable[[str], bool], seed: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Draw figures, write the page, return numbers and notes."""
    numbers: dict[str, Any] = {}
    for what, scans in (("mix", found.mixes), ("weight", found.weights)):
        for model, scan in scans.items():
            for x, point in scan.items():
                at = f"{100 * x:g}" if what == "mix" else f"{x:g}"
                numbers |= {f"{what}/{model}/{at}/{side}": point[side] for side in SIDES}
            means = {x: point["mean"] for x, point in scan.items()}
            if len(means) > 1:
                top = best(means)
                scale = 100 if what == "mix" else 1
                unit = "percent harmless" if what == "mix" else "λ"
                numbers[f"best_{what}/{model}"] = {"value": None if top is None else scale * top, "unit": unit}
                numbers[f"flat_{what}/{model}"] = {"value": flatness(means), "n": len(means), "unit": "share"}
    numbers |= {f"helpful_loss/{model}": loss for model, loss in found.losses.items()}
    by_share = {s: policy_numbers(rows, found.data, refused, seed) for s, rows in found.policies.items()}
    numbers |= {f"rl/{100 * s:g}/{name}": x for s, given in by_share.items() for name, x in given.items()}
    files = draw(run, found, by_share, seed)
    _story(run, found, total, by_share, files)
    return numbers, ["Intervals resample held-out conversations; another run of training would add to them."]


def draw(
    run: Run, found: Found, by_share: Mapping[float, Mapping[str, Interval]], seed: int = 0
) -> dict[str, list[dict[str, str]]]:
    """All figures; for the page, by section."""
    files: dict[str, list[dict[str, str]]] = {"mix": [], "weight": [], "rl": []}

    def save(figure: Any, name: str, section: str, caption: str) -> None:
        figures.save(figure, run.figures, name)
        files[section].append({"file": f"{name}.svg", "caption": caption})

    for what, scans, scale, label in (
        ("mix", found.mixes, 100.0, "harmless comparisons, %"),
        ("weight", found.weights, 1.0, "λ, weight of a harmless comparison"),
    ):
        if not any(len(scan) > 1 for scan in scans.values()):
            continue
        series = {
            f"{side}, {model}": [(scale * x, point[side]) for x, point in scan.items()]
            for model, scan in scans.items()
            for side in KINDS
        }
        how: dict[str, Any] = {"xlabel": label, "percent": True, "log_x": what == "weight"}
        figure = figures.lines(series, ylabel="accuracy on held-out pairs", reference=0.5, **how)
        save(figure, f"{what}-accuracy", what, "Accuracy on both sides (95% bands); the dashed line is chance.")
        flat = {
            model: [(scale * x, i) for x, i in normalised({x: point["mean"] for x, point in scan.items()})]
            for model, scan in scans.items()
        }
        figure = figures.lines(flat, ylabel="mean accuracy / its best", reference=1.0, **how)
        save(figure, f"{what}-normalised", what, "Mean of both sides over the best mean of the same model.")
    if by_share:
        _draw_policies(found, by_share, save, seed)
    return files


def _draw_policies(
    found: Found, by_share: Mapping[float, Mapping[str, Interval]], save: Callable[..., None], seed: int
) -> None:
    """Refusals and gains against the share; where scores stand in the data over training; histograms at the end."""
    x = "harmless prompts in RL, %"
    refusals = {"refusals": [(100 * s, given["refusals"]) for s, given in by_share.items()]}
    figure = figures.lines(refusals, xlabel=x, ylabel="refusals of helpful prompts", percent=True)
    save(figure, "rl-refusals", "rl", "How often replies to helpful prompts refuse, at the end.")
    gains = {kind: [(100 * s, given[f"gain/{kind}"]) for s, given in by_share.items()] for kind in KINDS}
    save(figures.lines(gains, xlabel=x, ylabel="gain, PM units", reference=0.0), "rl-gains", "rl", "Gain by kind.")
    places = {
        f"{kind}, {100 * s:g}%": places_over(rows, kind, found.data[kind], seed)
        for s, rows in found.policies.items()
        for kind in KINDS
    }
    figure = figures.lines(places, xlabel="samples", ylabel="mean place in the data", reference=0.5, percent=True)
    save(figure, "rl-places", "rl", "Share of the data's replies that a policy's reply outscores, over training.")
    for s, rows in found.policies.items():
        last = max(row["step"] for row in rows)
        for kind in KINDS:
            scores = [row["score"] for row in rows if row["step"] == last and row["kind"] == kind]
            figure = score_histogram(found.data[kind], scores)
            save(figure, f"scores-{kind}-{100 * s:g}", "rl", f"Scores on {kind} prompts, {100 * s:g}% harmless in RL.")


def score_histogram(data: Sequence[float], policy: Sequence[float]) -> Any:
    """Preference-model scores of the data's replies beside those of a policy's (2204.05862 Fig 14)."""
    return figures.histogram_pair(data, policy, ("data", "policy"), xlabel="score, PM units")


def _table(scans: Mapping[str, Scan], scale: float, what: str) -> dict[str, Any]:
    rows = [
        [model, f"{scale * x:g}", *(point[side].as_dict() for side in SIDES)]
        for model, scan in scans.items()
        for x, point in scan.items()
    ]
    return {"caption": "Accuracy on held-out pairs", "columns": ["model", what, *SIDES], "rows": rows}


def _story(
    run: Run,
    found: Found,
    total: int,
    by_share: Mapping[float, Mapping[str, Interval]],
    files: Mapping[str, list[dict[str, str]]],
) -> None:
    sections: list[dict[str, Any]] = [
        {
            "title": "1. One preference model for two aims",
            "text": f"Each point is a preference model trained on {total:,} comparisons, from none harmless to all. "
            "Who learned one side alone is wrong about the other: below the dashed line it does worse than chance.",
            "figures": files["mix"],
            "tables": [_table(found.mixes, 100, "% harmless")],
        }
    ]
    if any(found.weights.values()):
        losses = [[model, loss.as_dict()] for model, loss in found.losses.items()]
        lost = {"caption": "Helpful accuracy, smallest λ − largest", "columns": ["model", "lost"], "rows": losses}
        sections.append(
            {
                "title": "2. Weighing harmless losses",
                "text": "All comparisons, with the loss L_helpful + λ·L_harmless.",
                "figures": files["weight"],
                "tables": [_table(found.weights, 1, "λ"), *([lost] if losses else [])],
            }
        )
    if by_share:
        names = list(next(iter(by_share.values())))
        rows = [[f"{100 * s:g}%", *(given[name].as_dict() for name in names)] for s, given in by_share.items()]
        sections.append(
            {
                "title": "3. The mix of prompts in RL",
                "text": "Policies trained against the preference model of all comparisons, at several shares of "
                "harmless prompts. A kind whose scores lie beyond all data is over-optimised; one in the middle of the "
                "data has hardly been trained.",
                "figures": files["rl"],
                "tables": [{"caption": "At the end", "columns": ["harmless prompts", *names], "rows": rows}],
            }
        )
    write_story(run.path, {"title": "Helpful against harmless", "sections": sections})
