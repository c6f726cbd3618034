"""The whole loop on a laptop: simulated people → PM → RLHF → a second round → Elo → red team → honesty → one page.

Read it from top to bottom: each stage is a function that leaves files in the run folder, so that the same command
goes on after ctrl-C. All people are simulated (``collect/crowd.py``); their taste (``collect/gold.py``) is hidden
from everything that trains.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from truing.collect.crowd import Crowd, Reply, crowd_with_agreement
from truing.configs import Demo, PMTrain, PPOTrain
from truing.data.comparisons import load_comparisons
from truing.data.files import write_rows
from truing.data.prompts import Prompt
from truing.models.compute import DTYPES, autocast
from truing.models.draw import trace_of
from truing.models.heads import PreferenceModel, end_of_context
from truing.models.lm import LM
from truing.models.split import num_layers
from truing.recipes import demo_story
from truing.recipes.demo_honesty import Amount, ask
from truing.recipes.demo_redteam import red_team
from truing.recipes.demo_setup import (
    CAREFUL,
    FAST,
    FULL,
    PACK,
    READERS,
    SENTENCE_ENDS,
    Parts,
    Size,
    asked,
    base_model,
    draw_replies,
    gaps_of,
    judged,
    load_json,
    load_lines,
    split_prompts,
    write_comparisons,
    write_prompts,
)
from truing.runs import Run, atomic_write, sweep
from truing.train.pm import train_pm
from truing.train.pm_pairs import Kept, score_above
from truing.train.ppo import train_ppo
from truing.types import Dialogue

STAGES = {
    "people": ("Sampling replies and asking the simulated people", 17),
    "pm": ("Training the preference model", 5),
    "rlhf": ("PPO against it, beside a control with shuffled rewards", 43),
    "judge": ("Sampling the held-out prompts from both policies", 10),
    "round": ("A second round: new replies, new choices, a new preference model", 10),
    "elo": ("Elo of base, best-of-4, RLHF and control", 1),
    "redteam": ("Simulated attackers against four kinds of model", 6),
    "honesty": ("Does it know what it knows?", 8),
}
"""Stage → what it does, and its share of the time in percent."""


STATES = "states.safetensors"
"""What the frozen trunk has read while sampling, until the preference models are trained."""


@dataclass
class Lab:
    """A demo run in progress: its folder, sizes, prompts and the base model."""

    run: Run
    config: Demo
    size: Size
    parts: Parts
    lm: LM
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.run.path

    @property
    def frozen(self) -> int:
        """Layers of the shared frozen trunk."""
        return int(num_layers(self.lm.model) * self.size.frozen_share)

    def crowd(self) -> Crowd:
        """The simulated people, as fitted in the first stage."""
        return Crowd(load_json(self.path / "people.json")["temperature"], seed=self.config.seed)

    def pm(self, name: str) -> PreferenceModel:
        """A preference model trained in this run."""
        return PreferenceModel.load(self.path / name, device=self.lm.model.device)

    def scores(self, pm: str, replies: str) -> dict[Dialogue, float]:
        """What a preference model says of a file's replies; read once, then kept in the run."""
        asked_for = [self.dialogue(row) for row in load_lines(self.path / f"replies_{replies}.jsonl")]
        left = self.path / f"scores_{pm}_{replies}.json"
        if not left.exists():
            found = score_above(self.pm(pm), asked_for, self.kept(), PACK, self.precision)
            atomic_write(left, json.dumps(found.tolist()))
        return dict(zip(asked_for, load_json(left), strict=True))

    def draw(
        self, lm: LM, prompts: Sequence[Prompt], arm: str, *, read_later: bool = True, **how: Any
    ) -> list[dict[str, Any]]:
        """Rows of replies (`draw_replies`); what the frozen trunk reads is kept if preference models will read them.

        Drawn in the precision that preference models read in.
        """
        trace = trace_of(lm.model, self.frozen, (end_of_context(lm),)) if read_later else None
        with self.precision():
            rows = draw_replies(lm, prompts, arm, tokens=self.size.reply_tokens, trace=trace, **how)
        if trace and trace.found:
            self.sampled.learn(trace, lm.model)
        return rows

    def keep_states(self) -> None:
        """Leave in the run what sampling has read, for the stages to come: after a kill they compute the same."""
        self.sampled.save(self.path / STATES)

    @cached_property
    def sampled(self) -> Kept:
        """What the frozen trunk, the same for all models of the run, has read while replies were sampled."""
        left = self.path / STATES
        return Kept.load(left, self.lm.model, self.frozen) if left.exists() else Kept()

    def kept(self) -> Kept:
        """The same to be added to; what is added goes with its reader, so that a kill changes no number."""
        return replace(self.sampled, states=dict(self.sampled.states))

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast where the run computes in bf16, as training does."""
        compute = self.run.environment["compute"]
        return autocast(compute["device"], DTYPES[compute["dtype"]])

    def dialogue(self, row: Mapping[str, Any]) -> Dialogue:
        """The prompt and the reply of a row, as a dialogue."""
        return asked(self.parts.prompt(row["prompt"]), row["system"]).reply(row["text"])


def demo(config: Demo) -> Run | dict[str, Any]:
    """Run the demo, or go on with it; ends in the headline table and ``report.html``."""
    size = FAST if config.fast else FULL
    parts = split_prompts(size, config.seed)
    if config.dry_run:
        return {"lines": _expected(size)}
    run = Run.open("demo", config, slug=Path(config.model).name + ("-fast" if config.fast else ""))
    if run.done:
        return run
    compute = run.compute(config)
    _say(f"Model {config.model} on {compute.device}, {compute.threads} threads, {compute.dtype}. Results: {run.path}")
    base = base_model(config.model, size.temperature, run.path / "base", compute.device)
    lab = Lab(run, config, size, parts, base)
    work: dict[str, Callable[[Lab], None]] = {
        "people": ask_people,
        "pm": first_pm,
        "rlhf": rlhf,
        "judge": judge_policies,
        "round": second_round,
        "elo": rate_arms,
        "redteam": lambda lab: red_team(lab, lab.pm("pm-1")),
        "honesty": honesty,
    }
    for i, (name, stage) in enumerate(work.items(), 1):
        if config.max_time is not None and time.monotonic() - run.opened > 60 * config.max_time:
            run.stop({}, [f"Stopped before stage {i} of {len(work)} ({name}); the same command goes on."])
            return run
        _stage(lab, i, name, stage)
    numbers, notes = demo_story.tell(lab)
    run.finish(numbers, notes)
    return run


def _stage(lab: Lab, i: int, name: str, stage: Callable[[Lab], None]) -> None:
    """Run a stage unless its mark is there; say what is done and how long the rest may take."""
    mark = lab.path / f"{name}.done"
    title, _ = STAGES[name]
    if mark.exists():
        lab.spent[name] = float(mark.read_text())
        return
    known = sum(STAGES[n][1] for n in lab.spent)
    left = sum(share for n, (_, share) in STAGES.items() if n not in lab.spent)
    ahead = f" (about {left / known * sum(lab.spent.values()) / 60:.0f} min left)" if known else ""
    _say(f"[{i}/{len(STAGES)}] {title}{ahead}")
    began = time.perf_counter()
    stage(lab)
    lab.spent[name] = time.perf_counter() - began
    atomic_write(mark, f"{lab.spent[name]:.1f}")


# (a) people


def ask_people(lab: Lab) -> None:
    """Replies of the base model to training, held-out and red-team prompts; the simulated people choose."""
    s, seed = lab.size, lab.config.seed
    train = lab.draw(lab.lm, lab.parts.train, "base", n=s.replies, seed=seed)
    held = lab.draw(lab.lm, lab.parts.held_out, "base", n=s.eval_replies, seed=seed + 1)
    red = [
        row
        for arm, system in (("base", ""), ("prompted", CAREFUL))
        for row in lab.draw(lab.lm, lab.parts.red_train, arm, n=2, seed=seed + 2, kind="harmless", system=system)
    ]
    lab.keep_states()
    for name, rows in (("train", train), ("held_out", held), ("red", red)):
        write_rows(lab.path / f"replies_{name}.jsonl", rows)
    crowd = crowd_with_agreement(gaps_of(train), s.agreement, seed=seed)
    atomic_write(lab.path / "people.json", json.dumps({"temperature": crowd.temperature, "agreement": s.agreement}))
    chosen = judged(crowd, lab.parts, train, "helpful", "round1") + judged(crowd, lab.parts, red, "harmless", "round1")
    write_comparisons(lab.path / "comparisons_1.jsonl", chosen)
    write_comparisons(lab.path / "held_out.jsonl", judged(crowd, lab.parts, held, "helpful", "held-out"))


# (b) a preference model


def pm_config(lab: Lab, name: str, data: str) -> PMTrain:
    """One epoch on the upper layers; the head, new to everything, learns faster than the body."""
    return PMTrain(
        init=str(lab.path / "base"),
        data=[data],
        eval_data=[str(lab.path / "held_out.jsonl")],
        frozen_layers=lab.frozen,
        batch_size=48 * READERS,
        learning_rate=1.5e-4,
        head_learning_rate=1e-3,
        schedule="linear",
        warmup_samples=96 * READERS,
        tokens_per_pack=PACK,
        seed=lab.config.seed,
        out=lab.path / name,
        **_machine(lab),
    )


def first_pm(lab: Lab) -> None:
    """Train on the choices; held-out prompts are in no training pair."""
    train_pm(pm_config(lab, "pm-1", str(lab.path / "comparisons_1.jsonl")), lm=lab.lm, kept=lab.kept())


# (c) RLHF and its control


def rlhf(lab: Lab) -> None:
    """PPO against the preference model, and the same with rewards shuffled within each batch; one process each."""
    train = write_prompts(lab.path / "prompts_train.jsonl", lab.parts.train)
    small = write_prompts(lab.path / "prompts_eval.jsonl", lab.parts.held_out[: lab.size.ppo_eval_prompts])
    cpu = lab.lm.model.device.type == "cpu"
    configs = [
        PPOTrain(
            policy=str(lab.path / "base"),
            pm=str(lab.path / "pm-1"),
            prompts=[train],
            eval_prompts=[small],
            steps=lab.size.ppo_steps,
            prompts_per_step=lab.size.ppo_prompts,
            samples_per_prompt=lab.size.ppo_samples,
            ppo_epochs=1,
            max_new_tokens=lab.size.reply_tokens,
            stop_after=SENTENCE_ENDS,
            kl_coef=0.02,
            gae_lambda=1.0,
            learning_rate=3e-4,
            value_learning_rate=1e-3,
            frozen_layers=lab.frozen,
            length_neutral=True,
            random_reward=random_reward,
            seed=lab.config.seed,
            out=lab.path / name,
            **{**_machine(lab), **({"threads": 1} if cpu else {})},
        )
        for name, random_reward in (("rlhf", False), ("control", True))
    ]
    sweep(train_ppo_run, configs, workers=2 if cpu else 1)


def train_ppo_run(config: PPOTrain) -> Run:
    """One PPO run in a process of its own."""
    run = train_ppo(config)
    assert isinstance(run, Run)
    return run


def judge_policies(lab: Lab) -> None:
    """Both policies answer the held-out prompts, at the seeds the base model had."""
    s, seed = lab.size, lab.config.seed + 1
    for arm in ("rlhf", "control"):
        policy = LM.load(lab.path / arm, device=lab.lm.model.device)
        rows = lab.draw(policy, lab.parts.held_out, arm, n=s.eval_replies, seed=seed, read_later=arm == "rlhf")
        write_rows(lab.path / f"replies_{arm}.jsonl", rows)
    lab.keep_states()


# (d) the second round


def second_round(lab: Lab) -> None:
    """The new policy and the base model answer training prompts; a new PM is trained from scratch on all choices."""
    s, seed = lab.size, lab.config.seed
    policy = LM.load(lab.path / "rlhf", device=lab.lm.model.device)
    prompts = lab.parts.train[: s.round_prompts]
    new = lab.draw(policy, prompts, "rlhf", n=3, seed=seed + 5)
    known = {p.id for p in prompts}
    old = [row for row in load_lines(lab.path / "replies_train.jsonl") if row["prompt"] in known]
    first = [row for i, row in enumerate(old) if i % s.replies == 0]
    write_rows(lab.path / "replies_round2.jsonl", new)
    chosen = judged(lab.crowd(), lab.parts, [*first, *new], "helpful", "round2")
    before = load_comparisons([str(lab.path / "comparisons_1.jsonl")])
    data = write_comparisons(lab.path / "comparisons_2.jsonl", [*before, *chosen])
    train_pm(pm_config(lab, "pm-2", data), lm=lab.lm, kept=lab.kept())
    rows = load_lines(lab.path / "replies_rlhf.jsonl")
    fresh = judged(lab.crowd(), lab.parts, rows, "helpful", "held-out-2")
    write_comparisons(lab.path / "held_out_2.jsonl", fresh)
    write_rows(lab.path / "rounds.jsonl", demo_story.tranches(lab, fresh))
    del lab.sampled  # no other stage reads so much
    (lab.path / STATES).unlink(missing_ok=True)


# (e) Elo


def rate_arms(lab: Lab) -> None:
    """Best-of-4 by the PM, then every pair of arms judged by the simulated people on the held-out prompts."""
    arms = {name: load_lines(lab.path / f"replies_{name}.jsonl") for name in ("held_out", "rlhf", "control")}
    arms["base"] = arms.pop("held_out")
    by_pm = lab.scores("pm-1", "held_out")
    scores = [by_pm[lab.dialogue(row)] for row in arms["base"]]
    n = lab.size.eval_replies
    arms["best-of-4"] = []
    for start in range(0, len(scores), n):
        best = arms["base"][start + int(np.argmax(scores[start : start + 4]))]
        arms["best-of-4"] += [{**best, "arm": "best-of-4"}] * n
    write_rows(lab.path / "replies_best.jsonl", arms["best-of-4"][::n])
    crowd, games = lab.crowd(), []
    names = ("base", "best-of-4", "rlhf", "control")
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for j, (x, y) in enumerate(zip(arms[a], arms[b], strict=True)):
                among_four = (a, b) == ("base", "best-of-4") and j < 4
                if among_four or x["text"].strip() == y["text"].strip():
                    continue  # the best of four may not win against the other three
                prompt = lab.parts.prompt(x["prompt"])
                tag = f"elo/{a}/{b}/{prompt.id}"
                made = crowd.choose(prompt, Reply(a, x["text"]), Reply(b, y["text"]), "helpful", tag, j)
                if made.strength != 1:  # unsure choices are dropped (2204.05862 App B.5)
                    winner = "a" if made.arms == (a, b) else "b"
                    games.append({"a": a, "b": b, "winner": winner, "conversation": prompt.id})
    write_rows(lab.path / "games.jsonl", games)


# (g) honesty


def honesty(lab: Lab) -> None:
    """Are the base model's option probabilities right, can it judge its answers, does it know beforehand?"""
    amount = Amount(lab.size.choices, lab.size.judged)
    ask(lab.config.model, lab.path, amount, lab.frozen, _machine(lab), lab.config.seed)


# Small parts


def _machine(lab: Lab) -> dict[str, Any]:
    compute = lab.run.environment["compute"]
    return {"device": compute["device"], "dtype": compute["dtype"], "threads": compute["threads"]}


def _expected(size: Size) -> list[str]:
    replies = size.train_prompts * size.replies + 3 * size.held_out_replies + 12 * size.attacks
    rollouts = 2 * size.ppo_steps * size.ppo_prompts * size.ppo_samples
    tokens = (replies + rollouts) * size.reply_tokens
    return [
        f"{replies + rollouts:,} replies of at most {size.reply_tokens} tokens ({tokens:,} in all), two preference "
        f"models, two PPO runs of {size.ppo_steps} steps.",
        "15 to 20 minutes (a few with --fast) on two cores; memory about 6 GiB.",
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
