"""Does ``--dry-run`` say what the run then takes? Each command twice, and the ratios of tokens, time and memory.

``python bench/dry_run.py score choices …`` runs some of the commands, without names all. Each takes a minute or two,
after half a minute of its dry run. Time is that of the whole process; what the host of a virtual machine took of it is
said beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import ROOT
from output import print_table
from truing.runs.facts import surroundings

ALLOWED = 0.3
QUIET, TRIES = 0.08, 3
"""A comparison is made again, so often at most, where the host took a larger share of either side's time than this."""


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_data(folder: Path, seed: int = 0) -> dict[str, list[str]]:
    """Command lines by name, with the files they read."""
    from truing.data.facts import trivia

    r = random.Random(seed)
    facts = trivia(seed)[:600]
    questions = [{"id": q.id, "question": q.question, "answers": list(q.answers)} for q in facts]
    words = [a for q in questions for a in q["answers"][:1]]
    texts = [{"text": " ".join(r.choice(questions)["question"] for _ in range(r.randrange(1, 6)))} for _ in range(700)]
    choices = []
    for q in questions[:400]:
        options = [q["answers"][0], *r.sample(words, 3)]
        choices.append({"id": q["id"], "question": q["question"], "choices": options, "answer": 0})
    pairs = []
    for q in questions[:400]:
        good, bad = (" ".join(r.choice(words) for _ in range(r.randrange(5, 40))) for _ in range(2))
        pairs.append({"prompt": q["question"], "chosen": good, "rejected": bad})
    prompts = [{"prompt": q["question"]} for q in questions]
    arms = [f"arm{i}" for i in range(12)]
    games = [dict(zip("ab", r.sample(arms, 2), strict=True)) for _ in range(40_000)]
    games = [{**g, "winner": r.choice("ab"), "conversation": i // 4} for i, g in enumerate(games)]
    name = {
        "texts": write(folder / "texts.jsonl", texts),
        "choices": write(folder / "choices.jsonl", choices),
        "few choices": write(folder / "few_choices.jsonl", choices[:200]),
        "pairs": write(folder / "pairs.jsonl", pairs),
        "prompts": write(folder / "prompts.jsonl", prompts[:40]),
        "few": write(folder / "few.jsonl", questions[:40]),
        "some": write(folder / "some.jsonl", questions[:60]),
        "train": write(folder / "train.jsonl", pairs[:140]),
        "games": write(folder / "games.jsonl", games),
    }
    (folder / "toy.yaml").write_text(
        f"task: bench_choices\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name['choices']}}}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    pm = str(folder / "pm")
    return {
        "score": ["score", "smollm2", name["texts"]],
        "score pm": ["score", pm, name["pairs"]],
        "pm eval": ["pm", "eval", pm, name["pairs"]],
        "choices": ["honesty", "choices", "smollm2", name["choices"]],
        "choices shots": ["honesty", "choices", "smollm2", name["few choices"], "--shots", "12"],
        "eval": ["eval", "smollm2", "--tasks", "bench_choices", "--include-path", str(folder)],
        "sample": ["sample", "smollm2", name["prompts"], "--n", "4", "--max-new-tokens", "64"],
        "sample pm": ["sample", "smollm2", name["prompts"], "--n", "4", "--max-new-tokens", "48", "--pm", pm, "--best"],
        "ptrue": ["honesty", "ptrue", "smollm2", name["few"], "--shots", "4"],
        "pik": ["honesty", "pik", "--init", "smollm2", "--data", name["some"], "--frozen-layers", "24"],
        "pm train": ["pm", "train", "--init", "smollm2", "--data", name["train"], "--batch-size", "16"],
        "rlhf train": [
            *("rlhf", "train", "--policy", "smollm2", "--pm", pm, "--prompts", name["prompts"], "--steps", "4"),
            *("--prompts-per-step", "4", "--samples-per-prompt", "4", "--max-new-tokens", "32"),
            *("--frozen-layers", "24"),
        ],
        "elo": ["elo", name["games"]],
    }


def child(argv: Sequence[str], report: Path) -> int:
    """The command in this process, and the tokens that its models read."""
    from truing import cli
    from truing.models.engine import Engine
    from truing.models.heads import ScalarModel
    from truing.train.pm_pairs import Trunk
    from truing.train.ppo_models import Models

    readers: list[Any] = []
    packed = [0]

    def remember(kind: Any) -> None:
        plain = kind.__init__

        def init(self: Any, *given: Any, **named: Any) -> None:
            plain(self, *given, **named)
            readers.append(self)

        kind.__init__ = init

    remember(Engine)
    remember(ScalarModel)
    compute, last, run_trunk = Trunk.compute, Trunk.last, Models.run_trunk

    def counted_compute(self: Any, pack: Any) -> Any:
        packed[0] += len(pack) * (self.k > 0)
        return compute(self, pack)

    def counted_last(self: Any, pack: Any) -> Any:
        packed[0] += len(pack)
        return last(self, pack)

    def counted_trunk(self: Any, parts: Any) -> None:
        packed[0] += sum(len(part.pack) for part in parts)
        run_trunk(self, parts)

    Trunk.compute, Trunk.last, Models.run_trunk = counted_compute, counted_last, counted_trunk  # type: ignore[method-assign]
    began = time.perf_counter()
    code = cli.main(list(argv))
    tokens = packed[0] + sum(reader.tokens_run for reader in readers)
    report.write_text(json.dumps({"tokens": tokens, "inside": time.perf_counter() - began}))
    return int(code or 0)


def busy() -> float:
    """Seconds that this machine's processors have worked, for anybody."""
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def stolen() -> float:
    """Seconds that this machine's processors waited while its host did other work."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


def measured(argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the command took: tokens, seconds of the process, bytes at most."""
    report = folder / "report.json"
    out = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, __file__, "--child", str(report), *argv, "--out", out]
    began, worked, taken = time.perf_counter(), busy(), stolen()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(argv)} failed:\n{said[-2000:]}")
    others = (busy() - worked - usage.ru_utime - usage.ru_stime) / seconds
    return {
        **json.loads(report.read_text()),
        "seconds": seconds,
        "bytes": usage.ru_maxrss * 1024,
        "stolen_by_the_host": round(stolen() - taken, 1),
        "cores_busy_with_other_work": round(others, 2),
    }


def foretold(argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the dry run says: tokens, seconds, bytes."""
    began, worked, own, taken = time.perf_counter(), busy(), os.times(), stolen()
    command = [sys.executable, "-m", "truing", *argv, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} --dry-run failed:\n{done.stderr[-2000:]}")
    tokens = re.search(r"About ([\d,]+) tokens through", done.stdout)
    took = re.search(r"About ([\d.]+) (seconds|minutes|hours)", done.stdout)
    memory = re.search(r"About ([\d.]+) GiB", done.stdout)
    assert took and memory, done.stdout
    unit = {"seconds": 1, "minutes": 60, "hours": 3600}[took[2]]
    return {
        "tokens": int(tokens[1].replace(",", "")) if tokens else 0,
        "seconds": float(took[1]) * unit,
        "bytes": float(memory[1]) * 2**30,
        "took": (seconds := time.perf_counter() - began),
        "stolen_by_the_host": round(stolen() - taken, 1),
        "cores_busy_with_other_work": round((busy() - worked - sum(os.times()[2:4]) + sum(own[2:4])) / seconds, 2),
        "said": done.stdout,
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[3:], Path(sys.argv[2]))
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("commands", nargs="*", help="which; default: all")
    options.add_argument("--out", type=Path, default=ROOT / "results")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "bench_dry_run.json"
    kept = json.loads(path.read_text())["commands"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        lines = make_data(folder)
        wanted = given.commands or list(lines)
        if any(str(folder / "pm") in lines[name] for name in wanted):
            from truing.models.heads import PreferenceModel
            from truing.models.lm import LM

            PreferenceModel.new(LM.load("smollm2"), frozen_layers=24).save(folder / "pm")
        for name in wanted:
            for _ in range(TRIES):
                said, took = foretold(lines[name], folder), measured(lines[name], folder)
                if (
                    said["stolen_by_the_host"] < QUIET * said["took"]
                    and took["stolen_by_the_host"] < QUIET * took["seconds"]
                ):
                    break  # else the host did other work, and neither time is this machine's
            ratios = {k: said[k] / took[k] if took[k] else None for k in ("tokens", "seconds", "bytes")}
            kept[name] = {
                "said": {**said, "said": said["said"].splitlines()},
                "took": took,
                "ratio": ratios,
                "command": " ".join(lines[name]).replace(str(folder) + os.sep, "").replace(str(folder), "."),
            }
            print(name, {k: v and round(v, 2) for k, v in ratios.items()}, file=sys.stderr, flush=True)
            whole = {"bench": "dry_run", "date": time.strftime("%Y-%m-%d"), "commands": kept, **surroundings()}
            path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    columns = (
        "command",
        "tokens",
        "seconds",
        "seconds took",
        "memory",
        "GiB took",
        "dry run, s",
        "others' cores",
        "host took, s",
    )
    rows = [
        (name, f["ratio"]["tokens"], f["ratio"]["seconds"], f["took"]["seconds"], f["ratio"]["bytes"])
        + (f["took"]["bytes"] / 2**30, f["said"]["took"])
        + (max(f[side].get("cores_busy_with_other_work", 0.0) for side in ("said", "took")),)
        + (sum(f[side].get("stolen_by_the_host", 0.0) for side in ("said", "took")),)
        for name, f in kept.items()
    ]
    print_table(columns, rows)
    every = [ratio for f in kept.values() for ratio in f["ratio"].values() if ratio is not None]
    far = sum(abs(ratio - 1) > ALLOWED for ratio in every)
    print(f"{len(every) - far} of {len(every)} estimates are within {ALLOWED:.0%} of what the run took")
    return 3 if far else 0


if __name__ == "__main__":
    raise SystemExit(main())
