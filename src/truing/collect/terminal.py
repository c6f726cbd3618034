"""``truing chat``: one person and one model in a terminal, with a preference model's opinion beside it.

Keeps the conversation in memory; with ``--out`` it is written as ``samples.jsonl`` of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from truing.configs import Chat
from truing.models.compute import choose
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.runs import Run
from truing.types import Dialogue, Sample, Turn

HELP = "An empty line or ctrl-D ends, /again draws another reply, /back takes the last exchange back, /new starts anew."


def chat(config: Chat, read: Callable[[str], str] | None = None) -> Run | None:
    """Read lines and answer them until an empty line or the end of input; ``read`` stands in for the keyboard.

    Raises ValueError for ``best_of`` above 1 without a preference model.
    """
    if config.best_of > 1 and not config.pm:
        raise ValueError("--best-of needs a preference model that chooses: name one with --pm.")
    compute = choose(config.device, config.dtype, config.threads)
    lm = LM.load(config.model, device=compute.device, dtype=compute.dtype)
    pm = PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype) if config.pm else None
    print(HELP, file=sys.stderr)
    start = Dialogue((Turn("system", config.system),)) if config.system else Dialogue()
    dialogue, said, draws = start, [], 0
    while True:
        try:
            line = (read or input)("\nYou: ").strip()
        except EOFError:
            break
        if not line:
            break
        if line == "/new":
            dialogue = start
            continue
        if line in ("/back", "/again"):
            if len(dialogue) <= len(start):
                print("There is nothing to take back yet.", file=sys.stderr)
                continue
            dialogue = dialogue.prompt
            if line == "/back":
                dialogue = Dialogue(dialogue.turns[:-1])
                continue
        else:
            dialogue = dialogue.ask(line)
        reply, score = _reply(lm, pm, dialogue, config, draws)
        draws += 1
        dialogue = dialogue.reply(reply.text)
        opinion = "" if score is None else f"  [score {score:+.2f}]"
        print(f"\n{config.model}: {reply.text}{opinion}", flush=True)
        said.append({"prompt": dialogue.prompt.last.text, "reply": reply.text, "score": score, "finish": reply.finish})
    return _kept(config, said) if config.out else None


def _reply(
    lm: LM, pm: PreferenceModel | None, dialogue: Dialogue, config: Chat, draws: int
) -> tuple[Sample, float | None]:
    samples = lm.sample(
        [dialogue],
        n=config.best_of,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed + draws,
    )[0]
    if pm is None:
        return samples[0], None
    scores = pm.score([dialogue.reply(s.text) for s in samples])
    best = int(np.argmax(scores))
    return samples[best], float(scores[best])


def _kept(config: Chat, said: list[dict[str, Any]]) -> Run:
    run = Run.open("chat", config)
    if not run.done:
        run.write_samples(said)
        run.finish({"exchanges": {"value": len(said), "n": len(said)}})
    return run
