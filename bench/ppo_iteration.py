"""One PPO iteration, sample, score and update: truing's ``rlhf train`` against TRL's PPOTrainer (1.12, the last one).

    python bench/ppo_iteration.py two-trunks

The same prompts, replies to each, token limit, end token, temperature 1, passes over the batch (one optimiser step
each) and coefficients; policy, reference, value function and preference model are loaded from the same two folders.
``two-trunks``: policy and value function have all layers to themselves, on both sides. ``shared-trunk``: in truing the
lower layers are frozen and shared by all four models; TRL's side is as before. The two sides draw other replies, so
what must be equal is checked beside the timing in float32: log-probabilities of the same replies under policy and
reference, and their scores; and the numbers of optimiser steps. Times are compared as they are and per reply token, and
the lower of the two ratios counts.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import WORK, peer_python
from floor import Machine, Shape, sampling_bytes, sampling_work, scoring_work
from output import Verdict, above_floor, best_of, machine_line, measure_peak, parser, print_table, write
from side import Outcome, ResultsDiffer, Side, alternate, largest_difference, median, ratio, run_side, spread
from truing.data.prompts import helpful_prompts
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.load import find_model

TRUING, PEER = "truing", "TRL PPOTrainer"
TARGETS = {"two-trunks": 1.5, "shared-trunk": 2.5}
SCRIPT = "side_ppo.py"
DTYPES = ("bfloat16", "float32")
CHECKED_TOKENS = 12
"""Tokens of the replies on which both sides must agree."""


def options_of(argv: list[str] | None = None) -> Any:
    own = parser(__doc__.splitlines()[0], list(TARGETS))
    own.add_argument("--prompts", type=int, default=16)
    own.add_argument("--n", type=int, default=4, help="replies to each prompt")
    own.add_argument("--max-tokens", type=int, default=48)
    own.add_argument("--epochs", type=int, default=2, help="passes over the batch, one optimiser step each")
    own.add_argument("--frozen-layers", type=int, default=24, help="of truing in shared-trunk")
    own.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="of truing; auto: as it chooses")
    own.add_argument("--peer-dtypes", choices=DTYPES, nargs="+", default=DTYPES, help="of TRL's update, to try")
    own.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16], help="rows of TRL's update at a time")
    own.add_argument("--trial", type=int, default=16, help="rows on which TRL's settings are tried")
    own.add_argument("--rollout-batch", type=int, default=64, help="TRL's local_rollout_forward_batch_size")
    own.add_argument("--check", type=int, default=3, help="prompts to which replies are compared")
    options = own.parse_args(argv)
    if any(options.prompts * options.n % size for size in options.batch_sizes):
        own.error("--prompts times --n must be a multiple of each of --batch-sizes.")
    return options


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    python = peer_python("trl-ppo")
    first, _ = measure_peak(sys.executable, options.threads, options.dtype)
    with tempfile.TemporaryDirectory(prefix="pm-", dir=WORK) as folder:
        job = job_of(options, Path(folder), first.dtype)
        ours = Side(TRUING, sys.executable, SCRIPT, {**job, "side": "truing"})
        peer = Side(PEER, python, SCRIPT, {**job, "side": "peer", "peer_batch": options.batch_sizes[0]})
        found = check(options, ours, peer, first.threads)
        chosen, tried = settle(peer, options.batch_sizes, options.peer_dtypes, first.threads)
        peer = replace(peer, job={**peer.job, **chosen})
        outcomes = alternate([ours, peer], first.threads, options.repeats)
    machine = best_of(first, measure_peak(sys.executable, first.threads, first.dtype)[0])

    verdict = judge(outcomes, found, options)
    lengths = outcomes[TRUING][0]["results"]["lengths"]
    floors = floor_of(options, job, lengths, machine)
    print(
        f"\n{options.row}: {options.prompts} prompts, {options.n} replies each of at most {options.max_tokens} tokens,"
    )
    print(f"{options.epochs} optimiser steps; {job['frozen_layers']} layers frozen and shared in truing")
    print(f"{options.model}, {machine_line(machine)}; median of {options.repeats}; {PEER} updates")
    print(f"{chosen['peer_batch']} rows at a time in {chosen['dtype']}\n")
    show(outcomes, floors)
    print(f"\n{above_floor(median(outcomes[TRUING], 'all'), floors)}\n{verdict}\n{found['agreement']}")
    for name, those in outcomes.items():
        print(f"seconds of {name}, first run: {those[0]['results']['parts']}")
    parts = {name: [o["results"]["parts"] for o in those] for name, those in outcomes.items()}
    more = {"peer_settings": chosen, "tried": tried, "floor": floors, "parts": parts, **found, "outcomes": outcomes}
    print(f"written: {write(f'ppo-iteration-{options.row}', options, machine, more, verdict).name}")
    return 0 if verdict.ratio is not None else 3


def job_of(options: Any, folder: Path, dtype: str) -> dict[str, Any]:
    """The job of both sides; a preference model (its head untrained) is written to ``folder``."""
    source = find_model(options.model)
    lm = LM.load(options.model, device="cpu")
    frozen = options.frozen_layers if options.row == "shared-trunk" else 0
    PreferenceModel.new(lm, seed=options.seed, frozen_layers=frozen).save(folder)
    dialogues = [p.dialogue for p in random.Random(options.seed).sample(helpful_prompts(), options.prompts)]
    return {
        "model": str(source),
        "pm": str(folder),
        "prompts": [d.to_messages() for d in dialogues],
        "queries": [list(lm.encode_prompt(d)) for d in dialogues],
        "frozen_layers": frozen,
        "dtype": dtype,
        "kl_coef": 0.05,
        "vf_coef": 0.1,
        "learning_rate": 1e-6,
        **{name: getattr(options, name) for name in ("n", "max_tokens", "epochs", "trial", "rollout_batch", "seed")},
    }


def check(options: Any, ours: Side, peer: Side, threads: int) -> dict[str, Any]:
    """Log-probabilities and scores of the same short replies on both sides."""
    some = {name: ours.job[name][: options.check] for name in ("prompts", "queries")}
    short = {**ours.job, **some, "max_tokens": CHECKED_TOKENS, "n": 2, "side": "truing-check"}
    mine = run_side(replace(ours, job=short), threads)["results"]
    given = {"replied_queries": mine["queries"], "replies": mine["replies"], "pm_ids": mine["pm_ids"]}
    theirs = run_side(replace(peer, job={**peer.job, **given, "side": "peer-check"}), threads)["results"]
    gaps = {name: largest_difference(mine[name], theirs[name]) for name in ("logprobs", "ref_logprobs", "scores")}
    same = mine["queries"] == [query for query in some["queries"] for _ in range(2)]
    told = ", ".join(f"{name.replace('_', ' ')} {gap:.2g}" for name, gap in gaps.items())
    return {
        "same_prompts": same,
        "difference": max(gaps.values()),
        "agreement": f"{len(mine['replies'])} replies in float32, largest differences: {told}; "
        f"same prompts: {'yes' if same else 'NO'}",
    }


def settle(
    peer: Side, sizes: Sequence[int], dtypes: Sequence[str], threads: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """The peer's fastest number of rows at a time, and its faster dtype in updates; seconds of all tried."""
    every = [(size, dtype) for dtype in dtypes for size in sizes]
    if len(every) == 1:
        return {"peer_batch": every[0][0], "dtype": every[0][1]}, {}
    seconds = run_side(replace(peer, job={**peer.job, "try": every}), threads)["seconds"]
    tried = {name: value for name, value in seconds.items() if name != "warm-up"}
    shown = ", ".join(f"{name}: {value:.1f} s" for name, value in tried.items())
    print(f"  {peer.name} by rows at a time and dtype: {shown}", file=sys.stderr, flush=True)
    size, dtype = min(every, key=lambda pair: tried[f"{pair[0]} {pair[1]}"])
    return {"peer_batch": size, "dtype": dtype}, tried


def tokens_of(outcome: Outcome) -> int:
    """Reply tokens that were drawn, each reply's stop among them."""
    return sum(outcome["results"]["lengths"])


def judge(outcomes: dict[str, list[Outcome]], found: dict[str, Any], options: Any) -> Verdict:
    """The lower of the ratios of times and of times per reply token, if both sides did the same."""
    difference, target = found["difference"], TARGETS[options.row]
    steps = {o["results"]["steps"] for those in outcomes.values() for o in those}
    replies = {len(o["results"]["lengths"]) for those in outcomes.values() for o in those}
    try:
        if not found["same_prompts"] or len(steps) > 1 or len(replies) > 1:
            raise ResultsDiffer("the sides did not answer the same prompts in the same number of optimiser steps")
        theirs, ours = (median(outcomes[name], "all") for name in (PEER, TRUING))
        plain = ratio(theirs, ours, difference, options.tolerance)
    except ResultsDiffer as problem:
        return Verdict(difference, options.tolerance, "nats", None, target, str(problem))
    by_token = plain * tokens_of(outcomes[TRUING][0]) / tokens_of(outcomes[PEER][0])
    note = f"{plain:.2f} by time, {by_token:.2f} by time per reply token"
    return Verdict(difference, options.tolerance, "nats", min(plain, by_token), target, note)


def floor_of(options: Any, job: dict[str, Any], lengths: list[int], machine: Machine) -> dict[str, float]:
    """Sampling; one pass of reference, PM and value function; passes and gradients of policy and value function.

    By arithmetic all of it, prompts read once for all replies to them; by memory the sampling alone.
    """
    shape = Shape.of(json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8")))
    grouped = [lengths[i : i + options.n] for i in range(0, len(lengths), options.n)]
    drawn = sampling_work(job["queries"], grouped)
    return {
        "compute_seconds": (
            shape.flops(drawn.tokens, drawn.keys, drawn.heads)
            + iteration_flops(shape, job["queries"], grouped, options.epochs, job["frozen_layers"])
        )
        / machine.flops,
        "memory_seconds": sampling_bytes(shape, job["queries"], grouped) / machine.bandwidth,
    }


def iteration_flops(shape: Shape, prompts: Any, lengths: Sequence[Sequence[int]], epochs: int, frozen: int) -> int:
    """Operations of scoring and updating: everything but the sampling, and nothing of a frozen trunk."""
    rows = [
        [*prompt, *(-(1000 * j + t + 1) for t in range(length))]  # replies share nothing
        for prompt, those in zip(prompts, lengths, strict=True)
        for j, length in enumerate(those)
    ]
    work = scoring_work([[*row, 0] for row in rows], [len(row) for row in rows])
    top = shape.flops(work.tokens, work.keys, 0) * (shape.layers - frozen) // shape.layers
    head = shape.flops(0, 0, sum(map(sum, lengths)))
    return 3 * top + head + epochs * (6 * top + 3 * head)


def show(outcomes: dict[str, list[Outcome]], floors: dict[str, float]) -> None:
    rows: list[list[Any]] = []
    for name, those in outcomes.items():
        seconds, cpu = (median(those, "all", clock) for clock in ("seconds", "cpu_seconds"))
        least, most = spread(those, "all")
        tokens, memory = tokens_of(those[0]), max(o["peak_mib"] for o in those)
        rows.append([name, seconds, f"{least:.3g}–{most:.3g}", cpu, tokens, 1000 * seconds / tokens, memory])
    for kind in ("compute", "memory"):
        rows.append([f"floor by {kind}", floors[f"{kind}_seconds"], None, None, None, None, None])
    print_table(("side", "seconds", "range", "CPU s", "reply tokens", "s per 1,000", "MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
