"""How much memory scoring takes: many questions behind one long prompt, in one call.

Prints the resident memory as the job goes on, and its peak against that of the loaded model: at most 2 GiB more.
``--layers`` takes a random model of smollm2's width with so many layers, which shows growth in less time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from environment import ROOT
from truing.data.asking import letters
from truing.models.compute import choose
from truing.models.family import new_model
from truing.models.lm import LM
from truing.models.load import find_model, load_tokenizer
from truing.models.memory import peak_memory
from truing.runs.facts import surroundings, without_home

LIMIT = 2 << 30


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def questions(lm: LM, count: int, trunk: int) -> list[str]:
    """So many short questions after the same text of about ``trunk`` tokens."""
    shot = "Question: What is {} + {}?\n (A) {}\n (B) {}\nAnswer: (A)\n\n"
    common = ""
    while len(lm.encode_prompt(common)) < trunk:
        common += shot.format(n := len(common), 7, n + 7, n + 8)
    return [f"{common}Question: Is {i} even?\nAnswer:" for i in range(count)]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--layers", type=int, default=0)
    options.add_argument("--questions", type=int, default=10_000)
    options.add_argument("--letters", type=int, default=1, help="scored after each question; tokenised with its prompt")
    options.add_argument("--trunk", type=int, default=2000)
    options.add_argument("--out", type=Path, default=ROOT / "results")
    given = options.parse_args()
    compute = choose()
    if given.layers:
        tokenizer = load_tokenizer(find_model(given.model))
        model = new_model(
            "llama", layers=given.layers, width=576, heads=9, vocab_size=len(tokenizer), max_positions=4096
        )
        lm = LM(model.to(compute.dtype), tokenizer)
    else:
        lm = LM.load(given.model, dtype=compute.dtype)
    lm.score(["a warm-up that touches every weight"])
    loaded, began = resident(), time.perf_counter()
    prompts = questions(lm, given.questions, given.trunk)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        if done == total or done >= len(seen) * total / 10:
            seen.append((done, resident()))
            print(f"{done:,} of {total:,}: {resident() / 2**20:,.0f} MiB", file=sys.stderr, flush=True)

    found = lm.score(
        [(prompt, label) for prompt in prompts for label in letters(26)[: given.letters]], progress=progress
    )
    more = (peak_memory() or 0) - loaded
    result = {
        "bench": "scoring_memory",
        "date": time.strftime("%Y-%m-%d"),
        "options": {k: without_home(str(v)) for k, v in vars(given).items() if k != "out"},
        "compute": {k: str(v) for k, v in asdict(compute).items()},
        "sequences": len(found),
        "tokens_run": lm.engine.tokens_run,
        "seconds": round(time.perf_counter() - began, 1),
        "loaded_bytes": loaded,
        "peak_bytes": peak_memory(),
        "more_bytes": more,
        "limit_bytes": LIMIT,
        "resident_by_sequences_done": seen,
        **surroundings(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"bench_scoring_memory{'_shape' * bool(given.layers)}.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )
    print(
        f"model {loaded / 2**20:,.0f} MiB, at most {more / 2**20:,.0f} MiB more: {'met' if more < LIMIT else 'MISSED'}"
    )
    return 0 if more < LIMIT else 3


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(main())
