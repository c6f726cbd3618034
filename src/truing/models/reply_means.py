"""How likely a language model holds replies: the mean log-probability per token of each (2204.05862 App B.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from truing.models.lm import LM
from truing.text import encode
from truing.types import Dialogue


def reply_ids(lm: LM, dialogue: Dialogue) -> tuple[list[int], int]:
    """A dialogue's token ids and where its last reply begins; an empty reply is the end-of-sequence token alone."""
    start = len(lm.encode_prompt(dialogue.prompt))
    whole = encode(dialogue, lm.tokenizer, lm.format)
    return (whole if len(whole) > start else [*whole, *lm.engine.eos_ids][: start + 1]), start


def reply_means(lm: LM, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """Mean log-probability per token, float64 [N] in nats, of the last reply of each dialogue given what is before."""
    sequences, starts = zip(*(reply_ids(lm, d) for d in dialogues), strict=True)
    return np.array([x.mean(dtype=np.float64) for x in lm.engine.score(sequences, starts)])


def preferred(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """1 where the chosen reply's mean is the higher, 0 where the rejected one's is, ½ for a tie; [N]."""
    return (np.sign(chosen - rejected) + 1) / 2
