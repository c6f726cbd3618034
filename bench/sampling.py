"""Best-of-16 sampling: truing's engine against transformers' ``generate``.

    python bench/sampling.py mixed

64 prompts of mixed lengths, 16 replies each, at most 64 tokens, temperature 1, nothing cut off the distribution. In
``mixed`` a reply ends with its first sentence; in ``full`` every reply has all its tokens. The two sides have other
random numbers, so both are made to draw the same amount: truing samples once, and ``generate`` is given the length of
every reply (a row counts as finished there, as it would at an end of its own). Equal results are shown in two ways:
greedy replies must be the same tokens, and a plain forward pass must give the sampled tokens the log-probabilities
that truing returned.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import peer_python
from floor import Machine, Shape, floor, sampling_bytes, sampling_work
from output import Verdict, above_floor, best_of, machine_line, measure_peak, parser, print_table, write
from questions import mixed_prompts, sentence_ends
from side import (
    Outcome,
    ResultsDiffer,
    Side,
    alternate,
    largest_difference,
    median,
    pick_batch,
    ratio,
    run_side,
    spread,
)
from truing.models.load import find_model, load_tokenizer

TRUING, PEER = "truing", "transformers generate"
TARGETS = {"mixed": 3.0, "full": None}
SCRIPT = "side_sampling.py"


def options_of(argv: list[str] | None = None) -> Any:
    own = parser(__doc__.splitlines()[0], list(TARGETS))
    own.add_argument("--prompts", type=int, default=64)
    own.add_argument("--n", type=int, default=16, help="replies to each prompt")
    own.add_argument("--max-tokens", type=int, default=64)
    own.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8], help="prompts in a call of generate")
    own.add_argument("--trial", type=int, default=8, help="prompts on which the batch sizes are tried")
    own.add_argument("--check", type=int, default=4, help="prompts whose replies are scored again and drawn greedily")
    return own.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    source = Path(find_model(options.model))
    tokenizer = load_tokenizer(source)
    prompts = mixed_prompts(tokenizer, options.prompts, options.seed)
    first, _ = measure_peak(sys.executable, options.threads)
    threads = first.threads

    job = {"model": str(source), "prompts": prompts, "n": options.n, "max_tokens": options.max_tokens}
    job |= {"seed": options.seed, "check": options.check, "trial": options.trial}
    job["ends"] = sentence_ends(tokenizer) if options.row == "mixed" else []
    ours = Side(TRUING, sys.executable, SCRIPT, {**job, "side": "truing"})
    lengths = run_side(ours, threads)["results"]["lengths"]
    theirs = {**job, "side": "peer", "lengths": lengths}
    peer = Side(PEER, peer_python("hf"), SCRIPT, theirs)
    batch, tried = pick_batch(peer, options.batch_sizes, threads)
    peer = replace(peer, job={**theirs, "batch_size": batch})
    outcomes = alternate([ours, peer], threads, options.repeats)
    machine = best_of(first, measure_peak(sys.executable, threads)[0])

    difference, checks = check(job, outcomes, lengths, threads)
    verdict = judge(outcomes, difference, options.tolerance, TARGETS[options.row])
    floors = floor_of(source, prompts, lengths, machine)
    total = sum(map(sum, lengths))
    every = sorted(length for replies in lengths for length in replies)
    sizes = sorted(map(len, prompts))
    print(f"\n{options.row}: {options.prompts} prompts of {sizes[0]} to {sizes[-1]} tokens (median {_mid(sizes)}),")
    print(
        f"{options.n} replies each of {every[0]} to {every[-1]} tokens (median {_mid(every)}), {total:,} tokens in all"
    )
    print(
        f"{options.model}, {machine_line(machine)}; median of {options.repeats}; {PEER} with {batch} prompts a call\n"
    )
    show(outcomes, total, floors)
    print(f"\n{above_floor(median(outcomes[TRUING], 'all'), floors)}\n{verdict}\n{checks['agreement']}")
    found = {"drawn_tokens": total, "batch_size": batch, "tried_batch_sizes": tried, "floor": floors, "checks": checks}
    name = f"sampling-{options.row}"
    print(f"written: {write(name, options, machine, {**found, 'outcomes': outcomes}, verdict).name}")
    return 0 if verdict.ratio is not None else 3


def check(
    job: dict[str, Any], outcomes: dict[str, list[Outcome]], lengths: Any, threads: int
) -> tuple[float, dict[str, Any]]:
    """The largest difference (infinite if amounts drawn or greedy replies differ), and what was looked at."""
    ours, theirs = (outcomes[name][0]["results"] for name in (TRUING, PEER))
    same_amount = all(o["results"]["lengths"] == lengths for those in outcomes.values() for o in those)
    equal = sum(a == b for a, b in zip(ours["greedy"], theirs["greedy"], strict=True))
    replies = {TRUING: ours["checked"], PEER: theirs["checked"]}
    again = run_side(
        Side("re-scoring", peer_python("hf"), SCRIPT, {**job, "side": "rescore", "replies": replies}), threads
    )["results"]
    difference = largest_difference(ours["logprobs"], again[TRUING])
    if not same_amount or equal < len(ours["greedy"]):
        difference = float("inf")
    means = {name: _mean_logprob(again[name], replies[name]) for name in (TRUING, PEER)}
    shown = ", ".join(f"{name} {mean:.2f} ± {error:.2f}" for name, (mean, error) in means.items())
    return difference, {
        "same_amount": same_amount,
        "greedy_equal": equal,
        "greedy": len(ours["greedy"]),
        "agreement": f"equal amounts drawn: {'yes' if same_amount else 'NO'}; greedy replies equal: {equal} of "
        f"{len(ours['greedy'])}; {len(again[TRUING])} replies of truing's scored again by a plain forward pass\n"
        f"nats per sampled token by that pass: {shown} (standard error over replies)",
    }


def _mean_logprob(sums: list[float], replies: list[list[list[int]]]) -> tuple[float, float]:
    """Mean log-probability per token, and its standard error over replies."""
    lengths = [len(reply) for given in replies for reply in given]
    mean = sum(sums) / sum(lengths)
    errors = [s - mean * n for s, n in zip(sums, lengths, strict=True)]
    return mean, statistics.pstdev(errors) * len(errors) ** 0.5 / sum(lengths)


def judge(outcomes: dict[str, list[Outcome]], difference: float, tolerance: float, target: float | None) -> Verdict:
    try:
        found = ratio(median(outcomes[PEER], "all"), median(outcomes[TRUING], "all"), difference, tolerance)
    except ResultsDiffer as problem:
        return Verdict(difference, tolerance, "nats", None, target, str(problem))
    return Verdict(difference, tolerance, "nats", found, target)


def floor_of(source: Path, prompts: Any, lengths: Any, machine: Machine) -> dict[str, float]:
    """The floor in seconds for all replies, if they were all drawn side by side."""
    shape = Shape.of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    least = floor(shape, sampling_work(prompts, lengths), sampling_bytes(shape, prompts, lengths), machine)
    return {"compute_seconds": least.compute_seconds, "memory_seconds": least.memory_seconds}


def show(outcomes: dict[str, list[Outcome]], total: int, floors: dict[str, float]) -> None:
    rows: list[list[Any]] = []
    for name, those in outcomes.items():
        seconds, cpu = (median(those, "all", clock) for clock in ("seconds", "cpu_seconds"))
        least, most = spread(those, "all")
        memory = max(outcome["peak_mib"] for outcome in those)
        rows.append([name, seconds, f"{least:.3g}–{most:.3g}", cpu, total / seconds, memory])
    for kind in ("compute", "memory"):
        seconds = floors[f"{kind}_seconds"]
        rows.append([f"floor by {kind}", seconds, None, None, total / seconds, None])
    print_table(("side", "seconds", "range", "CPU s", "tokens/s", "MiB"), rows)


def _mid(values: list[int]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
