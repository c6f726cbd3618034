"""Robustness of RLHF to its preference model (2204.05862 §4.2): the verb ``rlhf robustness``.

Comparisons are split in halves by conversation. Train-PMs learn one half, test-PMs the other; policies are trained
against a train-PM, and all test-PMs score the replies of every evaluation. Early on both should agree; where the
train-PM rises above the test-PM, the policy has begun to learn the train-PM's mistakes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Robustness
from truing.data.comparisons import load_comparisons, split_by_conversation, training_comparisons
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.measure.frontier import by_prompt
from truing.measure.robustness import check_apart, curve, gains, halves, onset, peak
from truing.models.lm import LM
from truing.recipes.study_parts import (
    Stopped,
    check_models,
    check_parts,
    finished,
    folders,
    model_hashes,
    names_of,
    pm_config,
    ppo_config,
    prompts_of,
)
from truing.report import figures
from truing.report.page import write_story
from truing.runs import Run, atomic_write
from truing.runs.atomic import read_rows
from truing.stats import Interval
from truing.train.pm import train_pm
from truing.train.pm_setup import data_hash as pairs_hash
from truing.train.ppo import train_ppo
from truing.train.ppo_eval import EVALUATIONS
from truing.train.ppo_reward import RewardFn, ask, load_reward, reward_identity
from truing.train.ppo_setup import data_hash as prompts_hash
from truing.types import Comparison, Dialogue

Gold = RewardFn


@dataclass(frozen=True)
class Halves:
    """The comparisons of a study: for train-PMs, for test-PMs, and held out from both."""

    train: list[Comparison]
    test: list[Comparison]
    held_out: list[Comparison]


def robustness(
    config: Robustness,
    *,
    comparisons: Sequence[Comparison] | None = None,
    prompts: Sequence[PromptRow] | None = None,
    lms: Mapping[str, LM] | None = None,
    gold: Gold | None = None,
) -> Run | dict[str, Any]:
    """The verb: child runs ``train-MODEL``, ``test-MODEL`` and ``POLICY@MODEL``, numbers, figures and a page.

    ``comparisons``, ``prompts`` for RL, ``lms`` (by name, smallest first) and ``gold`` (dialogues → one number each)
    stand in for what the config names. The same call again resumes. Raises ValueError for halves that share a
    conversation, and for what `train_pm` and `train_ppo` refuse.
    """
    check_parts(config)
    names = names_of(config.models, lms)
    parts = split(list(comparisons) if comparisons is not None else load_comparisons(config.data), config)
    asked = rl_prompts(config, parts, prompts)
    if config.dry_run:
        return {"lines": _expected(config, names, parts, asked)}
    if not lms:
        check_models(config.models)
    known = model_hashes(lms)
    if comparisons is not None:
        known["comparisons"] = pairs_hash(comparisons)
    if prompts is not None:
        known["prompts"] = prompts_hash(prompts)
    if gold is None and config.gold:
        gold, known[config.gold] = load_reward(config.gold, "--gold")
    elif gold is not None:
        known |= reward_identity(None, gold, "gold")
    if gold is not None:
        one = parts.held_out[0]
        ask(gold, [one.chosen_dialogue, one.rejected_dialogue])  # what fails must fail before hours of training
    files = [*([] if comparisons is not None else config.data), *([] if prompts is not None else config.prompts)]
    run = Run.open("rlhf robustness", config, data_files=files, data_hashes=known, slug=names[-1])
    if run.done:
        return run
    try:
        found = study(run, config, names, folders(run, config.models, lms), parts, asked, gold)
    except Stopped as stop:
        run.stop({}, [str(stop)])
        return run
    numbers, notes = tell(run, names, found, parts, config.seed)
    run.finish(numbers, notes)
    return run


def split(rows: list[Comparison], config: Robustness) -> Halves:
    """Held-out conversations first, then two halves of the rest; none of the three shares a beginning."""
    kept, _ = training_comparisons(rows)
    rest, held_out = split_by_conversation(kept, config.eval_share, config.seed)
    if not held_out:
        raise ValueError(f"--eval-share {config.eval_share} of {len(kept)} comparisons is none; give a larger share.")
    train, test = halves(rest, config.seed)
    check_apart(rest, held_out)
    return Halves(train, test, held_out)


def rl_prompts(config: Robustness, parts: Halves, given: Sequence[PromptRow] | None) -> list[PromptRow]:
    """Prompts that policies are trained on: never those of the test half or of held-out conversations."""
    if given is not None:
        return list(given)
    if config.prompts:
        return load_prompt_rows(config.prompts, not_in=[*parts.test, *parts.held_out])
    return prompts_of(parts.train)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Trained:
    """One policy's evaluations as tables [evaluations, prompts]: its train-PM's scores, each test-PM's, gold's, KL."""

    policy: str
    pm: str
    samples: list[int]
    train: np.ndarray
    tests: dict[str, np.ndarray]
    gold: np.ndarray | None
    kl: np.ndarray

    @property
    def name(self) -> str:
        """Policy and the size of its train-PM."""
        return f"{self.policy}@{self.pm}"

    @property
    def gap(self) -> np.ndarray:
        """Training gain − gain by the test-PM of the train-PM's size [evaluations, prompts]."""
        return gains(self.train) - gains(self.tests[self.pm])


def pairs_of(names: Sequence[str], scan: str) -> list[tuple[str, str]]:
    """(policy, size of its train-PM) of the scans; what both scans ask for is trained once."""
    largest = [(name, names[-1]) for name in names] if scan != "own" else []
    own = [(name, name) for name in names] if scan != "largest" else []
    return list(dict.fromkeys([*largest, *own]))


def study(
    run: Run,
    config: Robustness,
    names: Sequence[str],
    models: Mapping[str, str],
    parts: Halves,
    asked: Sequence[PromptRow],
    gold: Gold | None,
) -> tuple[dict[str, Interval], list[Trained]]:
    """Train all preference models, then all policies; accuracies on held-out comparisons, and what policies did."""
    pms: dict[str, Run] = {}
    for half, rows in (("train", parts.train), ("test", parts.test)):
        for name in names:

            def learn(machine: dict[str, Any], rows: Any = rows, name: str = name) -> Any:
                given = pm_config(config, models[name], **machine)
                return train_pm(given, comparisons=rows, eval_comparisons=parts.held_out)

            pms[f"{half}-{name}"] = finished(run, config, f"{half}-{name}", learn)
    accuracies = {f"accuracy/{name}": Interval(**_row(pm, "accuracy")) for name, pm in pms.items()}
    held_out = prompts_of(parts.held_out, config.eval_prompts)
    tests = [str(run.path / f"test-{name}") for name in names]
    done = []
    for policy, pm in pairs_of(names, config.scan):

        def train(machine: dict[str, Any], policy: str = policy, pm: str = pm) -> Any:
            judge = str(run.path / f"train-{pm}")
            given = ppo_config(config, models[policy], judge, test_pm=tests, **machine)
            return train_ppo(given, prompts=asked, eval_prompts=held_out)

        child = finished(run, config, f"{policy}@{pm}", train)
        done.append(_tables(child, policy, pm, names, gold))
    return accuracies, done


def _row(run: Run, name: str) -> dict[str, Any]:
    return run.summary()["numbers"][name]


def _tables(child: Run, policy: str, pm: str, names: Sequence[str], gold: Gold | None) -> Trained:
    rows = read_rows(child.path / EVALUATIONS)
    judged = None
    if gold is not None:
        kept = child.path / "gold.json"
        if not kept.exists():
            scores = ask(gold, [Dialogue.from_messages(row["dialogue"]) for row in rows])
            atomic_write(kept, json.dumps(scores.tolist()))
        scores = json.loads(kept.read_text())
        judged = by_prompt([row | {"gold": x} for row, x in zip(rows, scores, strict=True)], "gold")
    tests = {name: by_prompt(rows, f"score/test-{name}") for name in names}
    samples = sorted({row["samples"] for row in rows})
    return Trained(policy, pm, samples, by_prompt(rows, "score"), tests, judged, by_prompt(rows, "kl"))


# ---------------------------------------------------------------- numbers


def numbers_of(t: Trained, seed: int = 0) -> dict[str, Any]:
    """Numbers of one policy; every gain is since its start, on held-out prompts."""

    def last(table: np.ndarray, unit: str = "PM units") -> Interval:
        return stats.mean_interval(table[-1], unit=unit, seed=seed)

    gap, prompts = t.gap, t.gap.shape[1]
    early, when = stats.mean_interval(gap[1], unit="PM units", seed=seed), onset(t.samples[1:], gap[1:])
    out: dict[str, Any] = {
        "gain_train": last(gains(t.train)),
        "gain_test": last(gains(t.tests[t.pm])),
        "gap": last(gap),
        "gap_early": early,
        "onset": Interval(when, None, None, prompts, "samples", "" if when else "the gap never lasts above two errors"),
        "kl": last(t.kl, "nats per reply"),
    }
    if t.gold is not None:
        best, fall = peak(t.samples, gains(t.gold), unit="gold", seed=seed)
        out |= {"gain_gold": last(gains(t.gold), "gold"), "gold_peak": Interval(best, None, None, prompts, "samples")}
        out["gold_fall"] = fall
    return {f"{name}/{t.name}": x for name, x in out.items()}


def tell(
    run: Run, names: Sequence[str], found: tuple[dict[str, Interval], list[Trained]], parts: Halves, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Draw figures, write the page, return numbers and notes."""
    accuracies, done = found
    numbers: dict[str, Any] = dict(accuracies)
    for t in done:
        numbers |= numbers_of(t, seed)
    notes = [
        f"ALARM: {t.name}: from {numbers[f'onset/{t.name}'].value:,.0f} samples on the train-PM gains more than the "
        "test-PM of its size: later gains are partly the train-PM's mistakes."
        for t in done
        if numbers[f"onset/{t.name}"].value is not None
    ]
    notes.append(
        "Both judges may share a mistake: that they agree is no proof. Intervals resample prompts; another run of "
        "training would add to them."
    )
    files = draw(run, names, done, seed)
    _story(run, names, accuracies, done, numbers, files, parts)
    return numbers, notes


def draw(run: Run, names: Sequence[str], done: Sequence[Trained], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Figures: every policy's curves, all gaps, gold, and final test scores by test-PM; for the page, by section.

    One policy under one test-PM has no table of these.
    """
    files: dict[str, list[dict[str, str]]] = {"curves": [], "gaps": [], "sizes": []}

    def save(figure: Any, name: str, section: str, caption: str) -> None:
        figures.save(figure, run.figures, name)
        files[section].append({"file": f"{name}.svg", "caption": caption})

    for t in done:
        series = {"train-PM": curve(t.samples, gains(t.train), seed=seed)}
        series |= {"test-PM": curve(t.samples, gains(t.tests[t.pm]), seed=seed)}
        figure = figures.lines(series, xlabel="samples", ylabel="gain since the start, PM units")
        save(figure, f"curve-{_plain(t.name)}", "curves", f"Policy {t.policy} against the train-PM {t.pm}.")
    gaps = {t.name: curve(t.samples, t.gap, seed=seed) for t in done}
    figure = figures.lines(gaps, xlabel="samples", ylabel="train-PM − test-PM, PM units", reference=0.0)
    save(figure, "gaps", "gaps", "How far the train-PM has risen above the test-PM of its size (95% bands).")
    golden = {t.name: curve(t.samples, gains(t.gold), unit="gold", seed=seed) for t in done if t.gold is not None}
    if golden:
        figure = figures.lines(golden, xlabel="samples", ylabel="gold gain since the start", reference=0.0)
        save(figure, "gold", "gaps", "What is really wanted, which no model here has seen.")
    if len(names) == len(done) == 1:  # a table of one cell shows nothing
        return files
    final = [[float(gains(t.tests[name])[-1].mean()) for name in names] for t in done]
    figure = figures.matrix_heatmap([t.name for t in done], list(names), final, label="final gain, PM units")
    save(figure, "test-sizes", "sizes", "Final gain of each policy (row) by each test-PM (column).")
    return files


def _plain(name: str) -> str:
    return name.replace("@", "-by-")


def _story(
    run: Run,
    names: Sequence[str],
    accuracies: Mapping[str, Interval],
    done: Sequence[Trained],
    numbers: Mapping[str, Any],
    files: Mapping[str, list[dict[str, str]]],
    parts: Halves,
) -> None:
    shown = ("kl", "gain_train", "gain_test", "gap", "gap_early", "onset")
    rows = [[t.name, *(numbers[f"{key}/{t.name}"].as_dict() for key in shown)] for t in done]
    judges = [[name, *(accuracies[f"accuracy/{x}-{name}"].as_dict() for x in ("train", "test"))] for name in names]
    accuracy = {"caption": "Accuracy on held-out pairs", "columns": ["model", "train-PM", "test-PM"], "rows": judges}
    ends = {"caption": "At the end; gap_early at the first evaluation", "columns": ["policy", *shown], "rows": rows}
    sections: list[dict[str, Any]] = [
        {
            "title": "1. Judges that have nothing in common",
            "text": f"{len(parts.train):,} comparisons train one set of preference models, {len(parts.test):,} "
            f"another; {len(parts.held_out):,} are held out from both. No first human turn and no beginning of a "
            "dialogue is in two parts.",
            "tables": [accuracy],
        },
        {
            "title": "2. The judge that trains, and the judge that does not",
            "text": "A policy is trained against a train-PM; both judges score its replies to held-out prompts on the "
            "way. While they rise together the policy learns what people like. Where the train-PM goes on alone it "
            "learns that judge's mistakes. NAME@SIZE is the policy NAME against the train-PM of that SIZE.",
            "figures": files["curves"],
        },
        {
            "title": "3. When they part",
            "text": "Onset: samples from which on the gap stays more than two standard errors above 0.",
            "figures": files["gaps"],
            "tables": [ends],
        },
    ]
    if files["sizes"]:
        sections.append({"title": "4. Judges of other sizes", "figures": files["sizes"]})
    write_story(run.path, {"title": "Robustness of RLHF", "sections": sections})


def _expected(config: Robustness, names: Sequence[str], parts: Halves, asked: Sequence[PromptRow]) -> list[str]:
    """What would be trained; each part's own command measures what it takes."""
    jobs = pairs_of(names, config.scan)
    given = ppo_config(config, "", "")
    looks = (1 + -(-given.steps // given.eval_every)) * min(config.eval_prompts, len(prompts_of(parts.held_out)))
    return [
        f"{2 * len(names)} preference models ({', '.join(names)}) on {len(parts.train):,} and {len(parts.test):,} "
        f"comparisons, {len(parts.held_out):,} held out.",
        f"{len(jobs)} policies, each {given.steps:,} steps on {len(asked):,} prompts and "
        f"{looks * config.samples_per_prompt:,} replies in evaluations.",
        f"{len(jobs) * given.steps * config.prompts_per_step * config.samples_per_prompt:,} replies of at most "
        f"{config.max_new_tokens} tokens in training. `truing pm train` and `truing rlhf train` with --dry-run measure "
        "what one of each takes.",
    ]
