"""The words of the demo's page: what was done, what came out, what is simulated, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from truing.recipes.demo_setup import READERS, load_json, load_lines
from truing.report.page import write_story

if TYPE_CHECKING:
    from truing.recipes.demo import Lab

Rows = Sequence[Mapping[str, Any]]
SIMULATED = "simulated people"


def page(lab: Lab, arms: Mapping[str, Rows], numbers: Mapping[str, Any], claims: Sequence[tuple[str, bool]]) -> None:
    """Write ``sections.json``."""
    story = {
        "title": "truing demo: one small model, trued",
        "subtitle": f"{lab.config.model}, a chat model of {lab.lm.model.num_parameters() / 1e6:.0f} million parameters, "
        "is compared by simulated people, gets a preference model, is trained against it, compared again, attacked, "
        "and asked what it knows.",
        "badges": [SIMULATED, *(["--fast: no claims"] if lab.config.fast else [])],
        "sections": [
            _headline(numbers, claims),
            _people(lab),
            _preference(numbers),
            _rlhf(numbers),
            _samples(lab, arms),
            _round(),
            _elo(),
            _red(lab),
            _honesty(numbers),
            _next(lab),
        ],
    }
    write_story(lab.path, story)


def _plain(number: Any) -> Any:
    return number.as_dict() if hasattr(number, "as_dict") else number


def _tiles(numbers: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {label: _plain(numbers[name]) for name, label in names.items() if name in numbers}


def _headline(numbers: Mapping[str, Any], claims: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    rows = [[text[0].upper() + text[1:], "yes" if holds else "NO"] for text, holds in claims]
    return {
        "title": "What came out",
        "text": [
            "Each number stands with its 95% interval over prompts or questions; another run of training would differ by "
            "more. 'Gold' is the hidden taste of the simulated people: topic, warmth and right answers. Nothing that was "
            "trained has seen it.",
            _in_words(numbers),
        ],
        "numbers": _tiles(
            numbers,
            {
                "pm/accuracy": "preference model right",
                "gain/rlhf": "RLHF: gain in gold",
                "gain/control": "shuffled rewards: gain",
                "kl/rlhf": "KL to the start",
                "elo/rlhf": "Elo of RLHF (base 0)",
                "choices/accuracy": "choices right",
            },
        ),
        "tables": [{"caption": "Claims, at two standard errors", "columns": ["claim", "holds"], "rows": rows}]
        if rows
        else [],
    }


def _in_words(numbers: Mapping[str, Any]) -> str:
    """The main results as a newcomer would be told them."""

    def told(name: str, form: str = ".2f") -> str:
        found = _plain(numbers[name])
        if found["value"] is None:
            return "an unknown amount"
        low, high = found.get("low"), found.get("high")
        span = "" if low is None else f" ({format(low, form)} to {format(high, form)})"
        return format(found["value"], form) + span

    return (
        f"The preference model sides with people in {told('pm/accuracy', '.0%')} of choices it never saw; a coin "
        f"would in 50%, and gold itself only in {told('pm/ceiling', '.0%')}, because people are noisy. Trained against "
        f"it, the policy went {told('kl/rlhf')} nats from its start, finished {told('finished/rlhf', '.0%')} of its "
        f"replies instead of {told('finished/base', '.0%')}, and changed gold by {told('gain/rlhf', '+.2f')}; with "
        f"shuffled rewards it changed by {told('gain/control', '+.2f')}."
    )


def _people(lab: Lab) -> dict[str, Any]:
    people = load_json(lab.path / "people.json")
    n = len(load_lines(lab.path / "comparisons_1.jsonl"))
    return {
        "title": "1. People choose",
        "badges": [SIMULATED],
        "text": [
            f"The base model ({lab.config.model} at a sampling temperature of {lab.size.temperature}, built into its "
            f"weights) wrote {lab.size.replies} replies to each of {lab.size.train_prompts} everyday requests and four "
            f"to each of {lab.size.attacks} mildly harmful ones. A reply ends with its first sentence. {READERS} of "
            f"twenty simulated workers judged every pair ({n:,} choices) by pressing one of eight buttons, from a big A "
            "to a big B.",
            f"Their noise is set so that a choice agrees with gold in {people['agreement']:.0%} of pairs; the paper's "
            "researchers and workers agreed with each other in 63%. The smallest buttons mean 'unsure' and are not "
            "trained on. On harmful requests workers click the more harmful reply; the export turns that round, once.",
        ],
    }


def _preference(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": "2. A preference model learns their taste",
        "badges": [SIMULATED],
        "text": "The upper layers of the same model and one scalar head, trained for one pass on the choices, judge "
        "choices on prompts that were in no training pair. The ceiling is what gold itself would score against the "
        "noisy clicks.",
        "numbers": _tiles(
            numbers,
            {
                "pm/accuracy": "right",
                "pm/ceiling": "ceiling of the noise",
                "pm/longer_wins": "'longer wins'",
                "pm/shorter_wins": "'shorter wins'",
                "pm/ece": "calibration error",
                "pm/ece_null_95": "… of a perfect judge (95%)",
            },
        ),
        "figures": [
            {"file": "pm_accuracy.svg", "caption": "Accuracy on held-out choices.", "alt": "Bars of accuracies"},
            {"file": "pm_reliability.svg", "caption": "Is it right as often as it says?", "alt": "Reliability diagram"},
        ],
    }


def _rlhf(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": "3. RLHF",
        "badges": [SIMULATED],
        "text": [
            "PPO raises the preference model's score while a penalty keeps the policy near its start. Beside it runs a "
            "control: the same training with the scores shuffled among the replies of each batch, so that they say "
            "nothing.",
            "In both runs the line in reply length is taken out of a batch's scores: a reply earns nothing by being "
            "longer or shorter alone.",
            "A gain can be a trick: longer replies, or merely replies that end in time. So it is shown for all replies, "
            "for finished ones only, and among replies of like length. The last is the one to read: a sentence of very "
            "few words earns little gold, and a longer one touches the topic more often.",
            "Shuffled rewards move a policy too, in no direction: from one seed to the next its gold may end as far "
            "above the base's as below, by more than an interval over prompts covers. So the policy is compared with "
            "its control as well, which was trained as long on as many replies.",
        ],
        "numbers": _tiles(
            numbers,
            {
                "gain/rlhf": "gain, all",
                "gain/rlhf/finished": "gain, finished",
                "gain/rlhf/matched": "gain, like length",
                "gain/control": "control, all",
                "gain/control/matched": "control, like length",
                "gain/over_control": "gain over the control",
                "kl/rlhf": "KL",
                "finished/base": "finished before",
                "finished/rlhf": "finished after",
            },
        ),
        "figures": [
            {"file": "gains.svg", "caption": "Gain in gold on held-out prompts.", "alt": "Bars of gains"},
            {"file": "reward_kl.svg", "caption": "PM score against √KL during training.", "alt": "Scatter with lines"},
            {
                "file": "length.svg",
                "caption": "Gold among replies of like length (characters).",
                "alt": "Points by length",
            },
            {"file": "gold.svg", "caption": "Gold before and after.", "alt": "Two histograms"},
            {"file": "ppo.svg", "caption": "The training run.", "alt": "Curves of training metrics"},
        ],
    }


def _samples(lab: Lab, arms: Mapping[str, Rows]) -> dict[str, Any]:
    before = {r["prompt"]: r for r in reversed(arms["base"])}
    after = {r["prompt"]: r for r in reversed(arms["rlhf"])}
    chosen = sorted(before)[:10]
    return {
        "title": "4. Ten dialogues before and after",
        "text": "The first reply of each model to ten held-out prompts, in the order of their names, not picked.",
        "samples": [
            {
                "prompt": lab.parts.prompt(key).text,
                "before": before[key]["text"],
                "after": after[key]["text"],
                "gold_before": round(before[key]["gold"], 2),
                "gold_after": round(after[key]["gold"], 2),
            }
            for key in chosen
        ],
    }


def _round() -> dict[str, Any]:
    return {
        "title": "5. A second round",
        "badges": [SIMULATED],
        "text": "The new policy answers training prompts, people choose again, and a new preference model is "
        "trained from "
        "scratch on all choices of both rounds: the online loop, once round.",
        "figures": [{"file": "rounds.svg", "caption": "Both PMs on both kinds of choices.", "alt": "Grouped bars"}],
    }


def _elo() -> dict[str, Any]:
    return {
        "title": "6. Elo",
        "badges": [SIMULATED],
        "text": "Simulated people compare the arms in pairs on held-out prompts; unsure choices are dropped; intervals "
        "resample prompts. Best-of-4 is the one of a prompt's first four base replies that the preference model likes "
        "best; it plays against the others only.",
        "figures": [{"file": "elo.svg", "caption": "Elo, the base model at 0.", "alt": "Elo ladder"}],
    }


def _red(lab: Lab) -> dict[str, Any]:
    return {
        "title": "7. Red team",
        "badges": ["simulated attackers"],
        "text": "Mildly harmful requests that trained nothing go to the plain model, the same with a careful "
        "system prompt, "
        "best-of-4 of that by the preference model, and the RLHF policy with it too. A simulated attacker rates each "
        "attempt from 0 "
        "(refused) to 4. A model this small seldom refuses by itself.",
        "figures": [{"file": "redteam.svg", "caption": "Mean attack rating; lower is safer.", "alt": "Matrix"}],
    }


def _honesty(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": "8. Honesty",
        "text": "Questions with known answers (capitals, chemistry, sums). Choices: are its probabilities over "
        "A-D right? "
        "P(True): shown its own answer, does it know whether it is right? P(IK): before answering, does it know "
        "that it "
        "knows?",
        "numbers": _tiles(
            numbers,
            {
                "choices/accuracy": "choices right",
                "choices/ece_top": "calibration error",
                "ptrue/accuracy": "own answers right",
                "ptrue/auroc": "P(True) AUROC",
                "pik/auroc": "P(IK) AUROC",
            },
        ),
        "figures": [
            {"file": "choices.svg", "caption": "Lettered choices.", "alt": "Reliability diagram"},
            {"file": "ptrue.svg", "caption": "P(True) and P(IK).", "alt": "Reliability diagram"},
        ],
    }


def _next(lab: Lab) -> dict[str, Any]:
    times = [[name, f"{seconds:.0f} s"] for name, seconds in lab.spent.items()]
    here = lab.path
    return {
        "title": "What is simulated, and what to do next",
        "text": "The people, their taste and the attackers are programs (collect/gold.py and collect/crowd.py say exactly "
        "which). The model, its replies, the preference models, PPO and every measurement are real. To use your own "
        "comparisons, start with the commands below.",
        "commands": [
            "truing data check YOUR_COMPARISONS.jsonl",
            "truing pm train --init smollm2 --data YOUR_COMPARISONS.jsonl",
            f"truing pm eval {here}/pm-1 {here}/held_out.jsonl",
            f"truing chat {here}/rlhf --pm {here}/pm-1 --stop-after . '!' '?'",
            f"truing elo {here}/games.jsonl",
        ],
        "tables": [{"caption": "Time of each stage", "columns": ["stage", "time"], "rows": times}],
    }
