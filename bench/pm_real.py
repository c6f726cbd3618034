"""Preference models of smollm2 on real human comparisons, beside what length and word counts alone reach.

    python bench/pm_real.py harmless-base.jsonl.gz

Whole conversations are held out, a fifth of the pairs in each split. The lower layers stay frozen: all splits share
what they read, and keep it below --work, so that a killed bench goes on. Prints and writes results/pm_real.json and
results/pm_real.md: numbers only, never the data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from environment import ROOT
from truing.configs import PMTrain
from truing.data.comparisons import conversation_key, load_comparisons, split_by_conversation
from truing.data.files import read_rows
from truing.data.provenance import HELD_OUT
from truing.measure.baselines import length_gaps
from truing.measure.preference_groups import group_numbers
from truing.models.lm import LM
from truing.report.numbers import digits, interval_text
from truing.runs import Run
from truing.runs.facts import surroundings
from truing.stats import Interval, difference_interval, mean_interval
from truing.stats.words import bag_of_words
from truing.train.pm import train_pm
from truing.train.pm_numbers import correctness, preference_numbers
from truing.train.pm_pairs import Kept
from truing.types import Comparison

SHARE = 0.2


def train(given: argparse.Namespace, rows: list[Comparison]) -> list[Run]:
    """A run for each split, from the same model; finished ones are reused."""
    states = given.work / "states.safetensors"
    kept = Kept.load(states, LM.load(given.model).model, given.frozen_layers) if states.exists() else Kept()
    runs = []
    for split in range(given.splits):
        held_in, held_out = split_by_conversation(rows, SHARE, split)
        config = PMTrain(
            init=given.model,
            data=[],
            out=given.work / f"split-{split}",
            seed=split,
            frozen_layers=given.frozen_layers,
            learning_rate=given.learning_rate,
            head_learning_rate=1e-3,
            batch_size=16,
            threads=given.threads,
        )
        run = train_pm(config, comparisons=held_in, eval_comparisons=held_out, lm=LM.load(given.model), kept=kept)
        assert isinstance(run, Run)
        runs.append(run)
        if kept.states and not states.exists():
            kept.save(states)
    return runs


def judge(runs: list[Run], rows: list[Comparison]) -> tuple[dict[str, Interval], list[dict[str, float]]]:
    """Numbers over the held-out comparisons of all splits, and each split's accuracies.

    Intervals resample conversations, one that is held out in several splits with all its rows. Word counts are fitted
    on what the preference model of the split was trained on.
    """
    keys: list[str] = []
    right: dict[str, list[np.ndarray]] = {}
    gaps, every, each = [], [], []
    for split, run in enumerate(runs):
        held_in, held_out = split_by_conversation(rows, SHARE, split)
        gap = np.array([row["gap"] for _, row in read_rows(run.path / HELD_OUT)])
        sides = [([c.chosen for c in part], [c.rejected for c in part]) for part in (held_in, held_out)]
        longer = length_gaps(held_out)
        words = bag_of_words(sides[0], sides[1])
        found = {"preference model": gap, "shorter reply": -longer, "longer reply": longer, "word counts": words}
        each.append({name: float(correctness(g).mean()) for name, g in found.items()})
        for name, g in found.items():
            right.setdefault(name, []).append(correctness(g))
        keys += [conversation_key(c) for c in held_out]
        gaps.append(gap)
        every += held_out
    whole = {name: np.concatenate(parts) for name, parts in right.items()}
    numbers = {name: mean_interval(x, keys, unit="share") for name, x in whole.items()}
    for name in ("shorter reply", "longer reply", "word counts"):
        numbers[f"preference model − {name}"] = difference_interval(
            whole["preference model"], whole[name], keys, unit="share"
        )
    more = preference_numbers(np.concatenate(gaps), every) | group_numbers(np.concatenate(gaps), every)
    names = ("loss", "ece", "ece_null_95", "brier")
    return numbers | {k: v for k, v in more.items() if k in names or k.startswith("accuracy/turn")}, each


def report(given: argparse.Namespace, rows: list[Comparison], runs: list[Run], seconds: float) -> str:
    """Write pm_real.json and pm_real.md; returns the latter."""
    numbers, each = judge(runs, rows)
    first = runs[0]
    compute = first.environment["compute"]
    start = [run.summary()["numbers"]["init_loss"]["value"] for run in runs]
    trained = sum(row.get("seconds", 0.0) for run in runs for row in run.metrics()[-1:])
    command = f"python bench/pm_real.py {given.file.name} --splits {given.splits}"
    facts = {
        "bench": "pm_real",
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "options": {k: str(v) for k, v in vars(given).items() if k not in ("out", "work", "file")},
        "rows": len(rows),
        "conversations": len({conversation_key(c) for c in rows}),
        "seconds": {"training": round(trained), "this call": round(seconds)},
        "init_loss": start,
        "numbers": {k: v.as_dict() for k, v in numbers.items()},
        "splits": each,
        "compute": compute,
        **surroundings(),
    }
    (given.out / "pm_real.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    spread = {name: np.std([e[name] for e in each], ddof=1) if len(each) > 1 else None for name in each[0]}
    lines = [
        f"# {given.model} as a preference model on real comparisons",
        "",
        f"`{command}` on {len(rows):,} comparisons of {facts['conversations']:,} conversations, {len(runs)} split(s) "
        f"by conversation, a fifth held out. {given.frozen_layers} layers frozen, one pass, learning rate "
        f"{given.learning_rate:g}. {compute['device']}, {compute['dtype']}, {compute['threads']} thread(s); "
        f"{trained / 60:.0f} minutes of training on a machine that did other work. Loss at the start "
        f"{', '.join(f'{x:.4f}' for x in start)} nats (ln 2 = 0.6931).",
        "",
        "Intervals are 95% and resample conversations; sd is over splits.",
        "",
        "| number | value | 95% interval | n | sd |",
        "|---|--:|---|--:|--:|",
    ]
    for name, x in numbers.items():
        sd = spread.get(name)
        cells = [digits(x.value, 3), interval_text(x.as_dict(), 3), f"{x.n:,}", "" if sd is None else f"{sd:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (given.out / "pm_real.md").write_text(text, encoding="utf-8")
    return text


def options() -> argparse.Namespace:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("file", type=Path, help="comparisons, e.g. harmless-base of the released HH data")
    out.add_argument("--model", default="smollm2")
    out.add_argument("--splits", type=int, default=5)
    out.add_argument("--frozen-layers", type=int, default=26)
    out.add_argument("--learning-rate", type=float, default=1.5e-4)
    out.add_argument("--threads", type=int, default=0)
    out.add_argument("--work", type=Path, default=ROOT / ".bench" / "pm_real", help="folder for the runs")
    out.add_argument("--out", type=Path, default=ROOT / "results")
    return out.parse_args()


def main() -> None:
    given = options()
    rows = load_comparisons(given.file)
    began = time.perf_counter()
    runs = train(given, rows)
    print(report(given, rows, runs, time.perf_counter() - began))


if __name__ == "__main__":
    main()
