"""What else is watched at evaluations: the policy's own judgement of comparisons, and refusals of benign requests.

Neither is trained on. The policy's judgement (2204.05862 App B.3) is the share of held-out pairs whose chosen
reply it gives the higher mean log-probability; refusals are counted on prompts that only look dangerous (§4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from truing import stats
from truing.data.prompts import PromptRow
from truing.models.lm import LM
from truing.models.reply_means import preferred, reply_means
from truing.stats import Interval
from truing.text import refuses, to_hh
from truing.train.ppo_batch import Reply
from truing.types import Comparison

Found = Mapping[str, np.ndarray]
"""Name of a number → 0, ½ or 1 for each of its rows."""


@dataclass
class Watch:
    """Held-out ``comparisons`` and benign prompts ``benign``; either may be empty."""

    comparisons: Sequence[Comparison] = ()
    benign: Sequence[PromptRow] = ()
    refused: Callable[[str], bool] = field(default=refuses)

    def look(self, policy: LM, draw: Callable[[LM, Sequence[PromptRow]], list[Reply]]) -> dict[str, np.ndarray]:
        """What a policy does; ``draw`` samples one reply to each prompt, at fixed seeds."""
        found = {}
        if self.comparisons:
            found["policy_accuracy"] = policy_right(policy, self.comparisons)
        if self.benign:
            replies = draw(policy, self.benign)
            found["refusal_rate"] = np.array([float(self.refused(r.dialogue.last.text)) for r in replies])
        return found

    def metrics(self, found: Found) -> dict[str, float]:
        """What is logged of it."""
        return {f"eval_{name}": float(rows[keep].mean()) for name, (rows, keep) in self._parts(found).items()}

    def numbers(self, before: Found, after: Found, seed: int = 0) -> dict[str, Interval]:
        """Each number after training and before it, with its interval by prompt."""
        out = {}
        for (name, (new, keep)), (old, _) in zip(self._parts(after).items(), self._parts(before).values(), strict=True):
            rows = self.comparisons if name.startswith("policy_accuracy") else self.benign
            clusters = np.array([to_hh(row.prompt if isinstance(row, Comparison) else row.dialogue) for row in rows])
            for label, values in ((name, new), (f"{name}/before", old)):
                out[label] = stats.mean_interval(values[keep], clusters[keep].tolist(), unit="share", seed=seed)
        return out

    def _parts(self, found: Found) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Rows and which of them count: all, and of the comparisons each kind where there are several."""
        out = {name: (rows, np.ones(len(rows), dtype=bool)) for name, rows in found.items()}
        kinds = np.array([c.kind for c in self.comparisons])
        if "policy_accuracy" in out and len(set(kinds.tolist())) > 1:
            for kind in sorted(set(kinds.tolist())):
                out[f"policy_accuracy/{kind}"] = (found["policy_accuracy"], kinds == kind)
        return out


def policy_right(lm: LM, comparisons: Sequence[Comparison]) -> np.ndarray:
    """1 for each comparison whose chosen reply has the higher mean log-probability per token, ½ for a tie, else 0."""
    means = reply_means(lm, [d for c in comparisons for d in (c.chosen_dialogue, c.rejected_dialogue)]).reshape(-1, 2)
    return preferred(means[:, 0], means[:, 1])


def policy_accuracy(lm: LM, comparisons: Sequence[Comparison]) -> Interval:
    """Share of comparisons whose chosen reply the policy gives the higher mean log-probability per token.

    A tie counts half (2204.05862 App B.3; it stays below the preference model's own accuracy). Clusters: prompts.
    """
    clusters = [to_hh(c.prompt) for c in comparisons]
    return stats.mean_interval(policy_right(lm, comparisons), clusters, unit="share")
