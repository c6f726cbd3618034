"""``truing chat``: one person and one model in a terminal, with a preference model's opinion beside it.

With ``--out`` every exchange is kept at once in ``samples.jsonl`` of a run. After ctrl-C the same command adds to what
is there, in a conversation that starts anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from truing.configs import Chat
from truing.models.compute import choose
from truing.models.heads import PreferenceModel
from truing.models.lm import show_prompt
from truing.models.remote import AnyLM, open_lm
from truing.runs import Run
from truing.types import Dialogue, Sample, Turn

HELP = "An empty line or ctrl-D ends, /again draws another reply, /back takes the last exchange back, /new starts anew."


def chat(config: Chat, read: Callable[[str], str] | None = None) -> Run | dict[str, Any] | None:
    """Read lines and answer them until an empty line or the end of input; ``read`` stands in for the keyboard.

    Raises ValueError for ``best_of`` above 1 without a preference model.
    """
    if config.best_of > 1 and not config.pm:
        raise ValueError("--best-of needs a preference model that chooses: name one with --pm.")
    if config.dry_run:
        return {"lines": [f"Would talk with {config.model}."]}
    compute = choose(config.device, config.dtype, config.threads)
    lm = open_lm(config.model, device=compute.device, dtype=compute.dtype)
    pm = PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype) if config.pm else None
    run = Run.open("chat", config) if config.out else None
    if run and run.done:
        raise ValueError(f"{run.path} holds a finished conversation. Give another --out.")
    print(HELP, file=sys.stderr)
    start = Dialogue((Turn("system", config.system),)) if config.system else Dialogue()
    said = run.samples() if run else []
    dialogue, draws = start, len(said)
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
        if not said:
            show_prompt(lm, dialogue)
        print(f"\n{config.model}: ", end="", flush=True)
        reply, score = _reply(lm, pm, dialogue, config, draws)
        draws += 1
        dialogue = dialogue.reply(reply.text)
        if reply.finish == "filtered":
            print("(The server's content filter cut or withheld this reply.)", file=sys.stderr)
        print(reply.text if config.best_of > 1 else "", "" if score is None else f"  [score {score:+.2f}]", sep="")
        said.append({"prompt": dialogue.prompt.last.text, "reply": reply.text, "score": score, "finish": reply.finish})
        if run:
            run.write_samples(said)
    if run:
        run.finish({"exchanges": {"value": len(said), "n": len(said), "unit": "exchanges"}})
    return run


def _reply(
    lm: AnyLM, pm: PreferenceModel | None, dialogue: Dialogue, config: Chat, draws: int
) -> tuple[Sample, float | None]:
    """Draw and choose; a reply that is the only one is printed as it comes."""
    samples = lm.sample(
        [dialogue],
        n=config.best_of,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        stop_after=config.stop_after,
        seed=config.seed + draws,
        on_text=(lambda prompt, reply, piece: print(piece, end="", flush=True)) if config.best_of == 1 else None,
    )[0]
    if pm is None:
        return samples[0], None
    scores = pm.score([dialogue.reply(s.text) for s in samples])
    best = int(np.argmax(scores))
    return samples[best], float(scores[best])
