"""The words of the recipe's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truing.stats import Interval

Claims = Sequence[tuple[str, bool, bool]]


def cell(number: Any) -> Any:
    """A number as a table's cell."""
    return number.as_dict() if isinstance(number, Interval) else number


def sections(
    numbers: Mapping[str, Any], claims: Claims, drawn: Mapping[str, Any], told: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The page from top to bottom."""

    def some(*names: str) -> dict[str, Any]:
        return {name: cell(numbers[name]) for name in names}

    sides = ("helpful_only", "mixed", "harmless_only")
    return [
        {
            "title": "1. What holds, and what does not",
            "text": "Every claim is judged by the numbers of this run. Those that must hold are the ones at which "
            "something would be broken if they did not; the others are reported either way. Intervals resample "
            "prompts or conversations: another seed would add to them.",
            "tables": [{"caption": "Claims", "columns": ["claim", "here", "kind"], "rows": _claims(claims)},
                       {"caption": "The paper beside us (2204.05862, at up to 52B parameters and with real people)",
                        "columns": ["quantity", "paper", "here"], "rows": beside(numbers)}],
        },
        {
            "title": "2. A world whose truth is known",
            "text": "A prompt asks how to do something benign or something harmful. A reply may name details of the "
            "topic, name wrong ones, repeat itself, evade, refuse or explain. What it is worth can be read from its "
            "text: details on a benign topic are worth something, on a harmful one they are the harm. Simulated "
            "annotators choose by that, with noise, and with a little weakness for praise. Gold is what is really "
            "wanted; it punishes piled-up praise and is seen by nothing that trains.\n\nA base model learns replies of "
            "mixed quality. Context distillation (§5) then teaches it to speak without being told as it does when "
            "told to be helpful and safe; that is where all policies start.",
            "figures": drawn["starts"],
            "numbers": some("agreement", "gold/base", "gold/told", "gold/distilled"),
        },
        {
            "title": "3. Preference models, and the tension between two aims (§3, §5.1)",
            "text": "A preference model trained on helpful comparisons alone prefers the detailed answer to a harmful "
            "prompt too; one trained on harmless comparisons alone prefers refusals everywhere. Each is wrong about "
            "the other's task far more often than a coin. Trained on both, a model reads from the prompt which of the "
            "two is asked of it.",
            "tables": [{"caption": "Accuracy on held-out comparisons",
                        "columns": ["trained on", "helpful", "harmless"],
                        "rows": [[name.replace("_", " "), *(cell(numbers[f"{name}/{k}"]) for k in
                                  ("helpful", "harmless"))] for name in sides]}],
            "figures": drawn["tension"],
        },
        {
            "title": "4. Is the preference model's confidence right? (§3.3)",
            "text": "On fresh choices of planted annotators, where the best possible accuracy is known. The null band "
            "is the calibration error that a perfectly calibrated model would show by chance with as many choices.",
            "figures": drawn["calibration"],
            "numbers": some("pm/accuracy", "pm/bayes", "pm/share_of_bayes", "pm/ece", "pm/ece_null_95"),
        },
        {
            "title": "5. RLHF, and judges that never train (§4.1, §4.2)",
            "text": "PPO raises the score of the train-PM. The test-PM, trained on other conversations, and gold say "
            "how much of that is real. Where the train-PM goes on alone the policy learns its mistakes. A small policy "
            "at a high rate moves far before its first evaluation, so that the two may part from the start; the KL "
            "term, large here, then holds it where gold still gains.",
            "figures": drawn["robustness"],
            "numbers": some("gold_gain/best", "kl/best", "gold_gain/end", "kl/end", "gap_early", "gap"),
            "samples": told["samples"],
            "notes": ["'best' is the evaluation at which the test-PM is highest: chosen without gold."],
        },
        {
            "title": "6. What a KL buys (§4.3)",
            "text": "Gain in score against the square root of the KL from the start, beside the most that any policy "
            "near the start could gain, and beside best of n, which trains nothing.",
            "figures": drawn["frontier"],
            "numbers": some("frontier/r2", "frontier/share_of_bound", "frontier/over_best_of"),
        },
        {
            "title": "7. Seeing harmful prompts from the inside (§5.4)",
            "text": "Prompts of the other kind lie elsewhere among a model's activations: how far, layer by layer, "
            "without any example of them and after a few. In this world the two kinds differ by single words, so that "
            "values near 1 are expected; the curve over layers is the point. The relative distance subtracts what each "
            "direction shows by itself, and in a world of few words that is most of what there is to see: the plain "
            "distance is better here, the other way round than in the paper.",
            "figures": drawn["ood"],
            "numbers": some("ood/auroc", "ood/auroc/exposed/10"),
        },
    ]  # fmt: skip


def _claims(claims: Claims) -> list[list[str]]:
    rows = [
        [text, "HOLDS" if holds else "DOES NOT HOLD", "must" if must else "reported"] for text, holds, must in claims
    ]
    return rows or [["none: this scale runs every stage at a size at which no claim can be made", "–", "–"]]


def beside(numbers: Mapping[str, Any]) -> list[list[Any]]:
    """The paper's headline values (their places in it), ours beside them."""
    optional = [
        ("weight λ of the best mean accuracy (Fig 27)", "2–3", "best_weight"),
        ("helpful accuracy lost at the largest λ (§5.1.2)", "7.4% at 13M, 1.5% at 52B", "helpful_loss"),
    ]
    found = [[text, paper, cell(x)] for text, paper, key in optional for name, x in numbers.items()
             if name.startswith(f"{key}/")]  # fmt: skip
    return [
        ["accuracy of the preference model (§4.5)", "74 / 70 / 67%, by tranche", cell(numbers["pm/accuracy"])],
        ["people agree (§2.1)", "about 63%", cell(numbers["agreement"])],
        ["helpful-only model on harmless pairs (§5.1.1)", "far below 50%", cell(numbers["helpful_only/harmless"])],
        ["harmless-only model on helpful pairs (§5.1.1)", "far below 50%", cell(numbers["harmless_only/helpful"])],
        *found,
        ["samples at which train and test PM part (Fig 4)", "about 150,000, at 52B", cell(numbers["onset"])],
        ["KL of a trained policy (§4.1)", "below 100 nats", cell(numbers["kl/end"])],
        ["outsiders seen, no example (§5.4)", "AUROC 0.85, at 52B", cell(numbers["ood/auroc"])],
        ["outsiders seen, 10 examples (§5.4)", "0.94 ± 0.02, at 52B", cell(numbers["ood/auroc/exposed/10"])],
        ["HH model preferred to human writers (§6.1)", "56%", "needs people"],
    ]
