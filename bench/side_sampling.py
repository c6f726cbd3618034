"""Both sides of `sampling`: replies from truing's engine or from transformers' ``generate``; and plain re-scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from clock import Clock, Job, run

Replies = list[list[list[int]]]
"""Token ids by prompt and reply."""


def work(job: Job, clock: Clock) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    return {"truing": by_truing, "peer": by_generate, "rescore": rescore}[job["side"]](job, clock)


def by_truing(job: Job, clock: Clock) -> dict[str, Any]:
    """All replies in one call; log-probabilities of the replies to the first ``check`` prompts, and greedy ones."""
    from truing.models.lm import LM

    lm = LM.load(job["model"])
    engine, prompts, check = lm.engine, job["prompts"], job["check"]
    engine.eos_ids = frozenset(job["ends"])
    common = {"max_tokens": job["max_tokens"], "decode": lm.tokenizer.decode}
    engine.sample(prompts[:2], n=2, max_tokens=4)
    with clock.time("all"):
        drawn = engine.sample(prompts, n=job["n"], seeds=job["seed"], **common)
    greedy = engine.sample(prompts[:check], temperature=0, **common)
    return {
        "lengths": [[len(s.token_ids) for s in samples] for samples in drawn],
        "checked": [[list(s.token_ids) for s in samples] for samples in drawn[:check]],
        "logprobs": [s.logprob for samples in drawn[:check] for s in samples],
        "greedy": [list(samples[0].token_ids) for samples in greedy],
    }


def by_generate(job: Job, clock: Clock) -> dict[str, Any]:
    """The same numbers of tokens for the same prompts, in padded batches of prompts of like length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # ends are given with each call
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompts, lengths, check = job["prompts"], job["lengths"], job["check"]
    generate(model, prompts[:2], [[4, 4], [4, 4]], 2)
    for size in job.get("try_batch_sizes", ()):
        step = max(1, len(prompts) // job["trial"])
        with clock.time(f"batch {size}"):
            generate(model, prompts[::step], lengths[::step], size)
    if "try_batch_sizes" in job:
        return {}
    with clock.time("all"):
        drawn = generate(model, prompts, lengths, job["batch_size"])
        for replies in drawn:
            tokenizer.batch_decode(replies)
    return {
        "lengths": [[len(reply) for reply in replies] for replies in drawn],
        "checked": drawn[:check],
        "greedy": greedy(model, prompts[:check], job),
    }


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Left-padded ids and their mask, as ``generate`` wants them."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }


def batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of prompts in batches, longest first, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for at in range(0, len(order), size):
        yield order[at : at + size]


def generate(model: Any, prompts: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]], size: int) -> Replies:
    """Replies of exactly these lengths. A row is finished at its own length; a batch ends with its longest row."""
    from transformers import StoppingCriteriaList

    out: Replies = [[] for _ in prompts]
    for places in batches(prompts, size):
        given = padded([prompts[i] for i in places])
        start, n = given["input_ids"].shape[1], len(lengths[places[0]])
        limits = torch.tensor([length for i in places for length in lengths[i]])

        def done(ids: torch.Tensor, scores: Any, start: int = start, limits: torch.Tensor = limits) -> torch.Tensor:
            return ids.shape[1] - start >= limits

        ids = model.generate(
            **given,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=n,
            max_new_tokens=int(limits.max()),
            stopping_criteria=StoppingCriteriaList([done]),
            pad_token_id=0,
        )[:, start:].tolist()
        for row, i in enumerate(places):
            out[i] = [ids[row * n + j][: lengths[i][j]] for j in range(n)]
    return out


def greedy(model: Any, prompts: Sequence[Sequence[int]], job: Job) -> list[list[int]]:
    """The likeliest reply to each prompt, up to and with its first end."""
    given, ends = padded(prompts), job["ends"]
    ids = model.generate(
        **given,
        do_sample=False,
        top_k=None,
        top_p=None,
        temperature=None,
        max_new_tokens=job["max_tokens"],
        pad_token_id=0,
        **({"eos_token_id": ends} if ends else {}),
    )
    out = []
    for row in ids[:, given["input_ids"].shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in set(ends)), len(row) - 1)
        out.append(row[: stop + 1])
    return out


@torch.no_grad()
def rescore(job: Job, clock: Clock) -> dict[str, Any]:
    """Log-probability in nats of every reply, each read by itself in one plain forward pass; by side."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()

    def logprob(prompt: list[int], reply: list[int]) -> float:
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).double().sum())

    return {
        side: [
            logprob(prompt, reply) for prompt, given in zip(job["prompts"], replies, strict=False) for reply in given
        ]
        for side, replies in job["replies"].items()
    }


if __name__ == "__main__":
    run(work)
