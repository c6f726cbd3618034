"""Training a preference model: truing's ``pm train`` against TRL's RewardTrainer.

    python bench/pm_training.py defaults

One pass over dialogue pairs as long as those of the HH data (`pairs`), all layers trained, from one initial folder that
both sides load, the same number of pairs in an optimiser step. ``defaults``: RewardTrainer as it comes (8 pairs at a
time in random order, padded; bf16 and gradient checkpointing). ``tuned``: RewardTrainer with pairs of like length
together, without checkpointing, at its fastest number of pairs at a time and in its faster dtype, both tried first.
truing takes its defaults and the dtype it chooses on this machine. The results that must be equal are those of a check
in float32 that is not timed: score gaps of some pairs before training, and after steps over the same batches.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import WORK, peer_python
from floor import Shape, training_flops
from output import Verdict, above_floor, best_of, machine_line, measure_peak, parser, print_table, write
from pairs import hh_like
from side import Outcome, ResultsDiffer, Side, alternate, largest_difference, median, ratio, run_side, spread
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.models.load import find_model

TRUING, PEER = "truing", "TRL RewardTrainer"
TARGETS = {"defaults": 2.5, "tuned": 1.3}
SCRIPT = "side_pm.py"
DTYPES = ("bfloat16", "float32")
PEER_DEFAULT_BATCH = 8


def options_of(argv: list[str] | None = None) -> Any:
    own = parser(__doc__.splitlines()[0], list(TARGETS))
    own.add_argument("--pairs", type=int, default=16)
    own.add_argument("--batch", type=int, default=PEER_DEFAULT_BATCH, help="pairs in an optimiser step, on both sides")
    own.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="of truing; auto: its own choice")
    own.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="pairs at a time to try (tuned)")
    own.add_argument("--trial", type=int, default=8, help="pairs on which TRL's settings are tried")
    own.add_argument("--check", type=int, default=4, help="pairs, in two steps, on which both sides must agree")
    own.add_argument("--step-tolerance", type=float, default=1e-2, help="by which gaps may differ after two steps")
    own.add_argument("--learning-rate", type=float, default=1e-5)
    options = own.parse_args(argv)
    if options.batch % max(options.batch_sizes) or options.pairs % options.batch or options.check % 2:
        own.error("--batch must be a multiple of --batch-sizes, --pairs of --batch, and --check even.")
    return options


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    python = peer_python("trl")
    first, _ = measure_peak(sys.executable, options.threads, options.dtype)
    with tempfile.TemporaryDirectory(prefix="pm-", dir=WORK) as folder:
        job = job_of(options, Path(folder), first.dtype)
        ours = Side(TRUING, sys.executable, SCRIPT, {**job, "side": "truing"})
        peer = Side(PEER, python, SCRIPT, {**job, "side": "peer", "peer_batch": 0})
        found = check(options, ours, peer, first.threads)
        chosen: dict[str, Any] = {"peer_batch": 0}
        if options.row == "tuned":
            chosen, found["tried"] = settle(peer, options.batch_sizes, first.threads)
        peer = replace(peer, job={**peer.job, **chosen})
        outcomes = alternate([ours, peer], first.threads, options.repeats)
    machine = best_of(first, measure_peak(sys.executable, first.threads, first.dtype)[0])

    shape = Shape.of(json.loads((Path(find_model(options.model)) / "config.json").read_text(encoding="utf-8")))
    verdict = judge(outcomes, found, options)
    floors = {"compute_seconds": training_flops(shape, [*job["chosen"], *job["rejected"]]) / machine.flops}
    floors["memory_seconds"] = 3 * shape.weight_bytes * options.pairs / options.batch / machine.bandwidth
    lengths = sorted(map(len, [*job["chosen"], *job["rejected"]]))
    print(f"\n{options.row}: {options.pairs} pairs, dialogues of {lengths[0]} to {lengths[-1]} tokens (median")
    print(f"{statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}), {options.batch} pairs a step")
    print(f"{options.model}, {machine_line(machine)}; median of {options.repeats}; {PEER}: {told(chosen)}\n")
    show(outcomes, options.pairs, floors)
    print(f"\n{above_floor(median(outcomes[TRUING], 'all'), floors)}\n{verdict}\n{found['agreement']}")
    found |= {k: v if v < math.inf else None for k, v in found.items() if k.startswith("difference")}
    more = {"peer_settings": chosen, "dialogue_tokens": lengths, "floor": floors, **found, "outcomes": outcomes}
    print(f"written: {write(f'pm-training-{options.row}', options, machine, more, verdict).name}")
    return 0 if verdict.ratio is not None else 3


def job_of(options: Any, folder: Path, dtype: str) -> dict[str, Any]:
    """The job of both sides; the initial model is written to ``folder``."""
    lm = LM.load(options.model, device="cpu")
    pm = PreferenceModel.new(lm, seed=options.seed)
    pm.save(folder)
    pairs = hh_like(pm.tokenizer, options.pairs, options.seed)
    rows = [{"prompt": p.prompt.to_messages(), "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    job = {"model": str(folder), "rows": rows, "batch": options.batch, "dtype": dtype, "seed": options.seed}
    job |= {"learning_rate": options.learning_rate, "trial": options.trial}
    job["chosen"] = [pm.pm_ids(p.chosen_dialogue) for p in pairs]
    job["rejected"] = [pm.pm_ids(p.rejected_dialogue) for p in pairs]
    return job


def check(options: Any, ours: Side, peer: Side, threads: int) -> dict[str, Any]:
    """Gaps of a few pairs on both sides, before and after two steps in float32."""
    some = {name: ours.job[name][: options.check] for name in ("rows", "chosen", "rejected")}
    some |= {"batch": options.check // 2, "dtype": "float32", "peer_batch": max(1, options.check // 4)}
    mine, theirs = (
        run_side(replace(side, job={**side.job, **some, "side": f"{side.job['side']}-check"}), threads)["results"]
        for side in (ours, peer)
    )
    start, end = (largest_difference(mine[when], theirs[when]) for when in ("before", "after"))
    moved = max(abs(a - b) for a, b in zip(mine["before"], mine["after"], strict=True))
    same = mine["same_ids"] and mine["steps"] == theirs["steps"] == 2
    return {
        "same_job": same,
        "difference_before": start,
        "difference_after": end,
        "moved": moved,
        "agreement": f"{options.check} pairs in float32: score gaps differ by {start:.2g} before training and by "
        f"{end:.2g} after two steps\n(at most {options.step_tolerance:g} and a tenth of their movement, {moved:.2g}, "
        "are allowed); "
        f"same tokens and steps: {'yes' if same else 'NO'}",
    }


def settle(peer: Side, sizes: Sequence[int], threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The peer's faster dtype at a middle number of pairs at a time, then its fastest number; seconds of all tried."""
    middle, tried = sorted(sizes)[len(sizes) // 2], {}

    def run(combinations: list[tuple[int, str]]) -> None:
        if combinations:
            tried.update(run_side(replace(peer, job={**peer.job, "try": combinations}), threads)["seconds"])

    run([(middle, dtype) for dtype in DTYPES])
    dtype = min(DTYPES, key=lambda dtype: tried[f"{middle} {dtype}"])
    run([(size, dtype) for size in sizes if size != middle])
    best = min(sizes, key=lambda size: tried[f"{size} {dtype}"])
    shown = ", ".join(f"{name}: {seconds:.1f} s" for name, seconds in tried.items())
    print(f"  {peer.name} by pairs at a time and dtype: {shown}", file=sys.stderr, flush=True)
    return {"peer_batch": best, "dtype": dtype}, tried


def told(chosen: dict[str, Any]) -> str:
    if not chosen["peer_batch"]:
        return "its defaults"
    return f"{chosen['peer_batch']} pairs at a time in {chosen['dtype']}, grouped by length, no checkpointing"


def judge(outcomes: dict[str, list[Outcome]], found: dict[str, Any], options: Any) -> Verdict:
    """The ratio of times if results agree before and after the checked steps, and both sides took as many steps."""
    before, target = found["difference_before"], TARGETS[options.row]
    steps = {o["results"]["steps"] for those in outcomes.values() for o in those}
    try:
        if len(steps) > 1 or not found["same_job"]:
            raise ResultsDiffer("the sides did not read the same tokens in the same number of steps")
        if not found["moved"]:
            raise ResultsDiffer("two steps moved no score gap, so they show nothing")
        ratio(1.0, 1.0, found["difference_after"], min(options.step_tolerance, found["moved"] / 10))
        times = (median(outcomes[name], "all") for name in (PEER, TRUING))
        value = ratio(*times, before, options.tolerance)
    except ResultsDiffer as problem:
        return Verdict(before, options.tolerance, "nats", None, target, str(problem))
    return Verdict(before, options.tolerance, "nats", value, target)


def show(outcomes: dict[str, list[Outcome]], pairs: int, floors: dict[str, float]) -> None:
    rows: list[list[Any]] = []
    for name, those in outcomes.items():
        seconds, cpu = (median(those, "all", clock) for clock in ("seconds", "cpu_seconds"))
        least, most = spread(those, "all")
        memory, tokens = max(o["peak_mib"] for o in those), those[0]["results"]["tokens"]
        rows.append([name, seconds, f"{least:.3g}–{most:.3g}", cpu, pairs / seconds, tokens, memory])
    for kind in ("compute", "memory"):
        seconds = floors[f"{kind}_seconds"]
        rows.append([f"floor by {kind}", seconds, None, None, pairs / seconds, None, None])
    print_table(("side", "seconds", "range", "CPU s", "pairs/s", "real tokens", "MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
