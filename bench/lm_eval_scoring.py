"""Multiple-choice questions through lm-eval's interface: truing's engine against lm-eval's Hugging Face model.

    python bench/lm_eval_scoring.py fewshot-options

Both sides get the same texts in one call of ``loglikelihood``, so tokenisation is in both times. Behind a few-shot
prompt the peer would take an hour, so it answers two smaller numbers of questions: its time per question must be the
same at both, and is then scaled to all. Results are compared on the questions that both sides answered.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from environment import peer_python
from floor import Machine, Shape, floor, scoring_work
from output import Verdict, above_floor, best_of, machine_line, measure_peak, parser, print_table, write
from questions import multiple_choice
from side import Outcome, ResultsDiffer, Side, alternate, largest_difference, median, pick_batch, ratio, scaled, spread
from truing.models.load import find_model, load_tokenizer
from truing.text import split_context

TRUING, PEER = "truing", "lm-eval HFLM"


@dataclass(frozen=True)
class Row:
    """A comparison: the ratio aimed at, how many questions the peer answers (0: all) and tries batch sizes on."""

    letters: bool
    shot_tokens: int
    target: float
    peer_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    trial: int


ROWS = {
    "fewshot-letters": Row(True, 2000, 15, (8, 16), (1, 4), 8),
    "fewshot-options": Row(False, 2000, 30, (2, 4), (1, 4), 2),
    "zeroshot-options": Row(False, 0, 3, (0,), (1, 8, 32), 32),
    "zeroshot-letters": Row(True, 0, 1, (0,), (1, 8, 32), 64),
}


def options_of(argv: list[str] | None = None) -> Any:
    own = parser(__doc__.splitlines()[0], list(ROWS))
    own.add_argument("--questions", type=int, default=200)
    own.add_argument("--shot-tokens", type=int, help="tokens of solved examples (default: the row's)")
    own.add_argument("--peer-questions", type=int, nargs="+", help="what the peer answers (default: the row's; 0: all)")
    own.add_argument("--batch-sizes", type=int, nargs="+", help="of the peer, tried first (default: the row's)")
    return own.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    row = ROWS[options.row]
    source = Path(find_model(options.model))
    tokenizer = load_tokenizer(source)
    shots = row.shot_tokens if options.shot_tokens is None else options.shot_tokens
    questions, shot_tokens = multiple_choice(tokenizer, options.questions, shots, row.letters, options.seed)
    peer_sizes = sorted({size or len(questions) for size in options.peer_questions or row.peer_sizes})
    if peer_sizes[-1] > len(questions):
        raise SystemExit(f"--peer-questions {peer_sizes[-1]} is more than the {len(questions)} questions there are")
    first, _ = measure_peak(sys.executable, options.threads)
    threads = first.threads

    sizes = sorted({peer_sizes[-1], len(questions)})
    job: dict[str, Any] = {
        "model": str(source),
        "questions": questions,
        "warm_up": 1,
        "trial": min(row.trial, len(questions)),
    }
    ours = Side(TRUING, sys.executable, "side_lm_eval.py", {**job, "side": "truing", "sizes": sizes})
    theirs = {**job, "side": "peer", "sizes": peer_sizes, "questions": questions[: max(job["trial"], peer_sizes[-1])]}
    peer = Side(PEER, peer_python("hf"), "side_lm_eval.py", {**theirs, "batch_size": 1})
    batch, tried = pick_batch(peer, options.batch_sizes or row.batch_sizes, threads)
    peer = replace(peer, job={**theirs, "batch_size": batch})
    outcomes = alternate([ours, peer], threads, options.repeats)
    machine = best_of(first, measure_peak(sys.executable, threads)[0])

    verdict, extra = judge(outcomes, questions, peer_sizes, options.tolerance, row.target)
    floors = floor_of(source, tokenizer, questions, machine)
    what = "4 letters" if row.letters else "4 options of 8 tokens"
    print(f"\n{options.row}: {len(questions)} questions, {what}, behind {shot_tokens:,} tokens of solved examples")
    print(f"{options.model}, {machine_line(machine)}; median of {options.repeats}; {PEER} with batches of {batch}\n")
    show(outcomes, sizes, peer_sizes, extra, floors)
    print(f"\n{above_floor(median(outcomes[TRUING], str(sizes[-1])), floors)}\n{verdict}\n{extra['agreement']}")
    found = {"shot_tokens": shot_tokens, "batch_size": batch, "tried_batch_sizes": tried, **extra, "floor": floors}
    print(f"written: {write(options.row, options, machine, {**found, 'outcomes': outcomes}, verdict).name}")
    return 0 if verdict.ratio is not None else 3


def judge(
    outcomes: dict[str, list[Outcome]], questions: list[Any], peer_sizes: list[int], tolerance: float, target: float
) -> tuple[Verdict, dict[str, Any]]:
    """The ratio at all questions, or why there is none; beside it the ratio at what both sides answered."""
    common, total = peer_sizes[-1], len(questions)
    cells = sum(len(q["options"]) for q in questions[:common])
    pairs = [
        (a["results"]["logprobs"][:cells], b["results"]["logprobs"])
        for a, b in zip(outcomes[TRUING], outcomes[PEER], strict=True)
    ]
    difference = max(largest_difference(a, b) for a, b in pairs)
    per = len(questions[0]["options"])
    same = sum(_likeliest(a, per) == _likeliest(b, per) for a, b in pairs) if pairs else 0
    extra: dict[str, Any] = {
        "agreement": f"{cells} log-probabilities compared; likeliest options equal in {same} of {len(pairs)} repeats"
    }
    ours = median(outcomes[TRUING], str(total))
    theirs = {n: median(outcomes[PEER], str(n)) for n in peer_sizes}
    try:
        extra["ratio_at_common"] = ratio(theirs[common], median(outcomes[TRUING], str(common)), difference, tolerance)
        extra["peer_seconds_at_all"] = theirs[total] if total in theirs else scaled(theirs, total)
        found = ratio(extra["peer_seconds_at_all"], ours, difference, tolerance)
    except ValueError as problem:
        known = "" if isinstance(problem, ResultsDiffer) else f"; on the same {common}: {extra['ratio_at_common']:.2f}"
        return Verdict(difference, tolerance, "nats", None, target, f"{problem}{known}"), extra
    note = ""
    if total not in theirs:
        each = " and ".join(f"{s / n:.3g} s a question at {n}" for n, s in theirs.items())
        note = f"{PEER} scaled to {total} from {each}; measured on the same {common}: {extra['ratio_at_common']:.2f}"
    return Verdict(difference, tolerance, "nats", found, target, note), extra


def _likeliest(logprobs: list[float], per: int) -> list[int]:
    rows = [logprobs[i : i + per] for i in range(0, len(logprobs), per)]
    return [max(range(len(row)), key=row.__getitem__) for row in rows]


def floor_of(source: Path, tokenizer: Any, questions: list[dict[str, Any]], machine: Machine) -> dict[str, Any]:
    """The floor for all questions in seconds, and the distinct tokens it counts."""
    shape = Shape.of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    parts = [split_context(q["context"], option, tokenizer) for q in questions for option in q["options"]]
    work = scoring_work([head + tail for head, tail, _ in parts], [len(head) for head, _, _ in parts])
    least = floor(shape, work, shape.weight_bytes, machine)
    return {"tokens": work.tokens, "compute_seconds": least.compute_seconds, "memory_seconds": least.memory_seconds}


def show(
    outcomes: dict[str, list[Outcome]],
    sizes: list[int],
    peer_sizes: list[int],
    extra: dict[str, Any],
    floors: dict[str, Any],
) -> None:
    rows: list[list[Any]] = []
    for name, those in ((TRUING, sizes), (PEER, peer_sizes)):
        memory = max(outcome["peak_mib"] for outcome in outcomes[name])
        for size in those:
            seconds, cpu = (median(outcomes[name], str(size), clock) for clock in ("seconds", "cpu_seconds"))
            least, most = spread(outcomes[name], str(size))
            rows.append([name, size, seconds, f"{least:.3g}–{most:.3g}", cpu, 1000 * seconds / size, memory])
    total = sizes[-1]
    if total not in peer_sizes and "peer_seconds_at_all" in extra:
        seconds = extra["peer_seconds_at_all"]
        rows.append([f"{PEER}, scaled", total, seconds, None, None, 1000 * seconds / total, None])
    for kind in ("compute", "memory"):
        seconds = floors[f"{kind}_seconds"]
        rows.append([f"floor by {kind}", total, seconds, None, None, 1000 * seconds / total, None])
    print_table(("side", "questions", "seconds", "range", "CPU s", "ms each", "MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
