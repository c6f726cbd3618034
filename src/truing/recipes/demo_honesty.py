"""The demo's honesty study: calibration on choices, P(True) and P(IK), on questions with known answers (2207.05221).

Each is the public verb with its own run folder inside the demo's, so that each can be opened, resumed and repeated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.configs import Choices, PIKTrain, PTrue
from truing.data.facts import arithmetic, choice_questions, trivia
from truing.data.files import write_rows
from truing.data.questions import question_to_row
from truing.measure.choices import choices
from truing.measure.p_ik import p_ik
from truing.measure.p_true import p_true
from truing.types import Question

STUDIES = ("choices", "ptrue", "pik")


@dataclass(frozen=True)
class Amount:
    """Questions of the three studies."""

    choices: int
    judged: int
    """Questions of P(True); P(IK) takes four times as many."""


def ask(model: str, folder: Path, amount: Amount, frozen_layers: int, machine: dict[str, Any], seed: int) -> None:
    """Run the three studies into ``folder/choices``, ``folder/ptrue`` and ``folder/pik``."""
    options = write_questions(folder / "questions_choices.jsonl", choice_questions(amount.choices, seed))
    some = write_questions(folder / "questions_ptrue.jsonl", open_questions(amount.judged, seed + 1))
    more = write_questions(folder / "questions_pik.jsonl", open_questions(4 * amount.judged, seed + 2))
    choices(Choices(model=model, file=options, shots=2, out=folder / "choices", seed=seed, **machine))
    p_true(
        PTrue(model=model, file=some, samples=4, shots=2, max_new_tokens=10, out=folder / "ptrue", seed=seed, **machine)
    )
    p_ik(
        PIKTrain(
            init=model,
            data=[more],
            samples=5,
            max_new_tokens=10,
            frozen_layers=frozen_layers,
            epochs=3,
            batch_size=16,
            learning_rate=1e-4,
            head_learning_rate=1e-3,
            tokens_per_pack=512,
            eval_share=0.4,
            out=folder / "pik",
            seed=seed,
            **machine,
        )
    )


def open_questions(n: int, seed: int) -> list[Question]:
    """Half trivia, half sums, so that some are known and some are not."""
    facts = trivia(seed)
    chosen = random.Random(seed).sample(facts, min(n // 2, len(facts)))
    return chosen + arithmetic(n - len(chosen), seed, ops=("plus", "minus"), digits=(1, 2))


def write_questions(path: Path, questions: list[Question]) -> str:
    """Write questions; returns the file's name for a config."""
    write_rows(path, [question_to_row(q) for q in questions])
    return str(path)
