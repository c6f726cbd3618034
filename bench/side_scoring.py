"""Both sides of `scoring_floor`: token sequences scored by truing's engine, or read by a plain forward pass."""

from __future__ import annotations

from typing import Any

import torch

from clock import Clock, Job, run


def work(job: Job, clock: Clock) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    return by_truing(job, clock) if job["side"] == "truing" else by_forward(job, clock)


def by_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """Sums of log-probabilities in nats, and how many tokens the engine read."""
    from truing.models.lm import LM

    engine = LM.load(job["model"]).engine
    sequences, starts = job["sequences"], job["starts"]
    engine.score([sequence[-64:] for sequence in sequences[:4]], [60] * len(sequences[:4]))
    before = engine.tokens_run
    with clock.time("all"):
        found = engine.score(sequences, starts)
    return {"logprobs": [float(row.sum(dtype="float64")) for row in found], "read": engine.tokens_run - before}


@torch.no_grad()
def by_forward(job: Job, clock: Clock) -> dict[str, Any]:
    """The same from one forward pass a batch of sequences of one length; the head runs at scored places only."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    sequences, starts = job["sequences"], job["starts"]

    def score(size: int, count: int) -> list[float]:
        out = [0.0] * count
        order = sorted(range(count), key=lambda i: (len(sequences[i]), starts[i]))
        while order:
            length, start = len(sequences[order[0]]), starts[order[0]]
            same = [i for i in order[:size] if (len(sequences[i]), starts[i]) == (length, start)]
            order = order[len(same) :]
            ids = torch.tensor([sequences[i] for i in same])
            scored = length - start
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=scored + 1).logits[:, :-1]
            chosen = logits.gather(-1, ids[:, start:, None]).squeeze(-1)
            sums = (chosen - logits.logsumexp(-1)).sum(-1, dtype=torch.float64)
            for i, logprob in zip(same, sums.tolist(), strict=True):
                out[i] = logprob
        return out

    model(input_ids=torch.tensor([sequences[0][-64:]]), use_cache=False)
    for size in job.get("try_batch_sizes", ()):
        with clock.time(f"batch {size}"):
            score(size, min(job["trial"], len(sequences)))
    if "try_batch_sizes" in job:
        return {}
    with clock.time("all"):
        found = score(job["batch_size"], len(sequences))
    return {"logprobs": found, "read": sum(map(len, sequences))}


if __name__ == "__main__":
    run(work)
