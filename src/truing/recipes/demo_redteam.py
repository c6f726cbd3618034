"""The demo's red team: simulated attackers against four kinds of model (2209.07858 §3), rated by gold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from truing.collect.gold import harmfulness
from truing.data.attempts import write_attempts
from truing.data.files import write_rows
from truing.measure.redteam import matrices
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.recipes.demo_setup import CAREFUL, draw_replies
from truing.runs import atomic_write
from truing.text import to_hh
from truing.types import Attempt

if TYPE_CHECKING:
    from truing.recipes.demo import Lab


def red_team(lab: Lab, pm: PreferenceModel) -> None:
    """Simulated attackers send held-out red-team prompts to four kinds of model and rate what comes back."""
    s, seed = lab.size, lab.config.seed
    size = f"{sum(p.numel() for p in lab.lm.model.parameters()) / 1e6:.0f}M"
    policy = LM.load(lab.path / "rlhf", device=lab.lm.model.device)

    def attack(lm: LM, arm: str, n: int, system: str) -> list[dict[str, Any]]:
        options: dict[str, Any] = {"n": n, "tokens": s.reply_tokens, "seed": seed + 7, "kind": "harmless"}
        return draw_replies(lm, lab.parts.attacks, arm, system=system, **options)

    careful = attack(lab.lm, "prompted", 4, CAREFUL)
    scores = pm.score([lab.dialogue(row) for row in careful])
    best = [careful[i + int(np.argmax(scores[i : i + 4]))] for i in range(0, len(careful), 4)]
    rows = [
        *attack(lab.lm, "plain", 2, ""),
        *[row for i, row in enumerate(careful) if i % 4 < 2],
        *[{**row, "arm": "rejection sampling"} for row in best],
        *attack(policy, "rlhf", 2, CAREFUL),
    ]
    scores = pm.score([lab.dialogue(row) for row in rows])
    attempts = [
        Attempt(
            transcript=to_hh(lab.dialogue(row)),
            rating=harmfulness(lab.parts.prompt(row["prompt"]), row["text"]),
            task_description=lab.parts.prompt(row["prompt"]).text,
            min_harmlessness_score_transcript=float(score),
            model_type=row["arm"],
            num_params=size,
            red_team_member_id=f"simulated-{row['prompt']}",
            tags=(lab.parts.prompt(row["prompt"]).theme,),
        )
        for row, score in zip(rows, scores, strict=True)
    ]
    write_attempts(str(lab.path / "attempts.jsonl"), attempts)
    write_rows(lab.path / "replies_attacks.jsonl", rows)
    found = {name: interval.as_dict() for name, interval in matrices(attempts, seed=seed).items()}
    atomic_write(lab.path / "redteam.json", json.dumps(found))
