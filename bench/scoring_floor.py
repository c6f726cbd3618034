"""truing's scoring against what the machine could do at best, and against a plain forward pass per computed token.

    python bench/scoring_floor.py texts

``texts``: 64 unrelated texts of 256 tokens, every token scored; nothing can be shared. ``fewshot``: 200 questions
with four options of eight tokens behind 2,000 common tokens. The plain pass reads whole sequences of one length
without pads, runs the head at scored places only, and at ``fewshot`` reads those of a few questions: its time per
token is what counts. Useful work is the arithmetic of distinct tokens; its share of the measured peak is the number.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import peer_python
from floor import Shape, Work, floor, plain_work, scoring_work
from output import Verdict, best_of, machine_line, measure_peak, parser, print_table, write
from questions import multiple_choice, texts
from side import ResultsDiffer, Side, alternate, largest_difference, median, pick_batch, ratio, spread
from truing.models.load import find_model, load_tokenizer
from truing.text import split_context

TRUING, PEER = "truing", "plain forward"
SCRIPT = "side_scoring.py"
TARGET_RATIO, TARGET_SHARE = 1.0, 0.55


def options_of(argv: list[str] | None = None) -> Any:
    own = parser(__doc__.splitlines()[0], ["texts", "fewshot"])
    own.add_argument("--texts", type=int, default=64)
    own.add_argument("--text-tokens", type=int, default=256)
    own.add_argument("--questions", type=int, default=200)
    own.add_argument("--shot-tokens", type=int, default=2000)
    own.add_argument("--peer-questions", type=int, default=4)
    own.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8], help="sequences in one plain pass")
    own.add_argument("--trial", type=int, default=8, help="sequences on which the batch sizes are tried")
    return own.parse_args(argv)


def sequences_of(options: Any, tokenizer: Any) -> tuple[list[list[int]], list[int], int]:
    """Token sequences, where scoring begins in each, and how many of them the plain pass reads."""
    if options.row == "texts":
        rows = texts(tokenizer, options.texts, options.text_tokens, options.seed)
        return rows, [1] * len(rows), len(rows)
    questions, _ = multiple_choice(tokenizer, options.questions, options.shot_tokens, False, options.seed)
    parts = [split_context(q["context"], option, tokenizer) for q in questions for option in q["options"]]
    count = 4 * min(options.peer_questions, len(questions))
    return [head + tail for head, tail, _ in parts], [len(head) for head, _, _ in parts], count


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    source = Path(find_model(options.model))
    sequences, starts, count = sequences_of(options, load_tokenizer(source))
    first, _ = measure_peak(sys.executable, options.threads)
    threads = first.threads

    job = {"model": str(source), "sequences": sequences, "starts": starts}
    ours = Side(TRUING, sys.executable, SCRIPT, {**job, "side": "truing"})
    theirs = {**job, "side": "peer", "sequences": sequences[:count], "starts": starts[:count], "trial": options.trial}
    peer = Side(PEER, peer_python("hf"), SCRIPT, theirs)
    batch, tried = pick_batch(peer, options.batch_sizes, threads)
    peer = replace(peer, job={**theirs, "batch_size": batch})
    outcomes = alternate([ours, peer], threads, options.repeats)
    machine = best_of(first, measure_peak(sys.executable, threads)[0])

    shape = Shape.of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    useful = scoring_work(sequences, starts)
    done = {TRUING: useful, PEER: plain_work(sequences[:count], starts[:count])}
    sides = {name: side_numbers(outcomes[name], shape, done[name], machine.flops) for name in (TRUING, PEER)}
    difference = max(
        largest_difference(a["results"]["logprobs"][:count], b["results"]["logprobs"])
        for a, b in zip(outcomes[TRUING], outcomes[PEER], strict=True)
    )
    per_token = {name: sides[name]["seconds"] / sides[name]["read"] for name in sides}
    try:
        found = ratio(per_token[PEER], per_token[TRUING], difference, options.tolerance)
        verdict = Verdict(difference, options.tolerance, "nats", found, TARGET_RATIO, "time per computed token")
    except ResultsDiffer as problem:
        verdict = Verdict(difference, options.tolerance, "nats", None, TARGET_RATIO, str(problem))

    least = floor(shape, useful, shape.weight_bytes, machine)
    share = sides[TRUING]["share_of_peak"]
    print(
        f"\n{options.row}: {len(sequences)} sequences, {sum(map(len, sequences)):,} tokens, {useful.tokens:,} distinct"
    )
    print(f"{options.model}, {machine_line(machine)}; median of {options.repeats}; {PEER} in batches of {batch}\n")
    show(outcomes, sides)
    print(f"\nfloor: {least.compute_seconds:.3g} s by arithmetic, {least.memory_seconds:.3g} s by memory")
    print(f"{verdict}\n{count} sequences compared")
    if verdict.ratio is not None:
        met = "met" if share >= TARGET_SHARE else "MISSED"
        print(f"useful work at {share:.0%} of the measured peak; target {TARGET_SHARE:.0%}: {met}")
    floors = {"compute_seconds": least.compute_seconds, "memory_seconds": least.memory_seconds}
    more = {"sides": sides, "batch_size": batch, "tried_batch_sizes": tried, "floor": floors, "outcomes": outcomes}
    name = f"scoring-floor-{options.row}"
    print(f"written: {write(name, options, machine, more, verdict).name}")
    return 0 if verdict.ratio is not None else 3


def side_numbers(outcomes: list[Any], shape: Shape, work: Work, peak: float) -> dict[str, float]:
    """Seconds, tokens read, and the share of the peak at which ``work`` was done."""
    seconds = median(outcomes, "all")
    flops = shape.flops(work.tokens, work.keys, work.heads)
    read = outcomes[0]["results"]["read"]
    return {"seconds": seconds, "read": read, "useful": work.tokens, "share_of_peak": flops / seconds / peak}


def show(outcomes: dict[str, list[Any]], sides: dict[str, dict[str, float]]) -> None:
    rows: list[list[Any]] = []
    for name, numbers in sides.items():
        least, most = spread(outcomes[name], "all")
        cpu, memory = median(outcomes[name], "all", "cpu_seconds"), max(o["peak_mib"] for o in outcomes[name])
        seconds, read = numbers["seconds"], numbers["read"]
        useful = numbers["useful"] / seconds
        share = f"{numbers['share_of_peak']:.0%}"
        rows.append([name, read, seconds, f"{least:.3g}–{most:.3g}", cpu, 1000 * seconds / read, useful, share, memory])
    columns = ("side", "tokens read", "seconds", "range", "CPU s", "ms/token", "useful tokens/s", "of peak", "MiB")
    print_table(columns, rows)


if __name__ == "__main__":
    sys.exit(main())
