"""Both sides of `lm_eval_scoring`: lm-eval's requests, answered by truing's engine or by lm-eval's own ``HFLM``."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lm_eval.api.instance import Instance

from clock import Clock, Job, run


def load(job: Job) -> Any:
    """The model that answers lm-eval's requests, in float32."""
    if job["side"] == "truing":
        from truing.measure.harness_lm import harness_class

        return harness_class()(job["model"])
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=job["model"], device="cpu", dtype="float32", batch_size=job["batch_size"])


def requests(questions: list[dict[str, Any]]) -> list[Instance]:
    """One request per option, in the order of the questions."""
    pairs = [(q["context"], option) for q in questions for option in q["options"]]
    return [Instance("loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]


def work(job: Job, clock: Clock) -> dict[str, Any]:
    """Answers every size asked for, and tries batch sizes if asked; log-probabilities are of the largest size."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(job["threads"])
    lm, questions = load(job), job["questions"]
    lm.loglikelihood(requests(questions[: job["warm_up"]]), disable_tqdm=True)
    for size in job.get("try_batch_sizes", ()):
        lm.batch_size_per_gpu = size
        with clock.time(f"batch {size}"):
            lm.loglikelihood(requests(questions[: job["trial"]]), disable_tqdm=True)
    if "try_batch_sizes" in job:
        return {}
    found: list[tuple[float, bool]] = []
    for size in job["sizes"]:
        with clock.time(str(size)):
            found = lm.loglikelihood(requests(questions[:size]), disable_tqdm=True)
    return {"logprobs": [float(logprob) for logprob, _ in found], "greedy": [bool(greedy) for _, greedy in found]}


if __name__ == "__main__":
    run(work)
