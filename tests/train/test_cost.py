"""What ``--dry-run`` says is what the run takes: on a clock that work itself moves, and on real models by tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppo_toys import config, toy_lm, toy_pm

from truing.configs import PMTrain
from truing.models.engine import Engine
from truing.models.family import byte_tokenizer, new_model
from truing.models.heads import PreferenceModel
from truing.models.lm import LM
from truing.train import cost
from truing.train.cost import Cost, reading, replying, sampling, spread, timed
from truing.train.pm import train_pm
from truing.train.pm_pairs import Trunk
from truing.train.ppo import PPO, train_ppo
from truing.train.ppo_models import Models
from truing.types import Comparison, Dialogue, Sample


class Machine:
    """A clock, and a reader that needs its time: ``fixed`` seconds a chunk and ``each`` a token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: float, each: float, noise: float = 0.05) -> None:
        self.now, self.fixed, self.each, self.noise = 0.0, fixed, each, noise
        self.trees = True
        self.tokens_run, self.counting, self.calls, self.random = 0, False, 0, random.Random(0)
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)

    def take(self, seconds: float) -> None:
        self.calls += 1
        slow = 3.0 if self.calls == 1 else 1.0  # the first time is no measure
        self.now += slow * seconds * self.random.uniform(1 - self.noise, 1 + self.noise)

    def read(self, tokens: int) -> None:
        self.tokens_run += tokens
        if not self.counting:
            self.take(self.fixed + self.each * tokens)


@pytest.mark.parametrize("count", [1, 30, 128, 1000, 10_000])
@pytest.mark.parametrize(("trunk", "fixed", "each"), [(0, 0.0, 2e-3), (2000, 4.0, 2e-3), (0, 0.0, 1e-5)])
def test_reading_is_foretold(
    count: int, trunk: int, fixed: float, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the first part is taken as a measure; a beginning is paid for each item; the last chunk is forgotten."""
    sizes = np.random.default_rng(0).integers(20, 60, count)
    machine = Machine(monkeypatch, fixed, each)

    def work(start: int, stop: int) -> None:
        machine.read(trunk + int(sizes[start:stop].sum()))

    found = reading(machine, work, count, 128)
    assert not machine.counting
    spent = machine.now
    machine.tokens_run = 0
    for start in range(0, count, 128):
        work(start, min(start + 128, count))
    assert found.tokens == pytest.approx(machine.tokens_run, rel=0.05)
    assert found.seconds == pytest.approx(machine.now - spent, rel=0.25)
    assert spent < 0.5 * (machine.now - spent) + 60


@pytest.mark.parametrize(
    ("count", "n", "most", "trunk", "long", "ordered"),
    [
        (1, 1, 9, 0, 0, False), (300, 4, 64, 0, 0, False), (40, 16, 32, 0, 0, False), (2000, 1, 16, 0, 0, False),
        (500, 2, 1, 0, 0, False), (600, 1, 12, 2000, 0, False), (400, 4, 32, 0, 3, False), (800, 1, 24, 0, 300, True),
    ],
)  # fmt: skip
def test_sampling_is_foretold(
    count: int, n: int, most: int, trunk: int, long: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: all replies taken as long as allowed; a wide step taken as long as a narrow one; a reply's last token
    read; a common beginning paid for each prompt; a few long prompts (here 4,000 tokens, for which the cache has room
    for 4 rows) that make all others be decoded 4 at a time; a file in order of length whose chunks are taken as mixed;
    the cache of the long prompts left out."""
    machine, seeds = Machine(monkeypatch, 0.0, 1e-3), random.Random(5)
    prompts = [4000 if long and i % (count // long) == 7 % (count // long) else trunk + 30 for i in range(count)]
    prompts = sorted(prompts) if ordered else prompts

    def rows_at_once(wanted: int, longest: int) -> int:
        return min(wanted, 4 if longest > 3500 else 64)

    def draw(places: Sequence[int], n: int, most: int) -> list[list[Sample]]:
        machine.read(trunk + sum(prompts[i] - trunk for i in places))
        if machine.counting:
            return []
        out: dict[int, list[Sample]] = {}
        for size in sorted({prompts[i] for i in places}):
            those = [i for i in places if prompts[i] == size]
            lengths = [min(most, seeds.randrange(10, 60)) for _ in range(len(those) * n)]
            for step, width in enumerate(cost._widths(lengths, rows_at_once(len(lengths), size + most))):
                machine.take(0.05 + 0.004 * width if step else 0.0)
            machine.tokens_run += sum(lengths) - len(lengths)
            replies = iter([Sample("", (1,) * length, None, "length", 0) for length in lengths])
            out |= {i: [next(replies) for _ in range(n)] for i in those}
        return [out[i] for i in places]

    monkeypatch.setattr(machine, "rows_at_once", rows_at_once, raising=False)
    monkeypatch.setattr(machine, "row_bytes", lambda longest: 10 * longest, raising=False)
    size = max(1, 256 // n)
    found = sampling(machine, draw, prompts, n, most, size)
    spent, machine.tokens_run = machine.now, 0
    for start in range(0, count, size):
        draw(range(start, min(start + size, count)), n, most)
    assert found.tokens == pytest.approx(machine.tokens_run, rel=0.1)
    assert found.seconds == pytest.approx(machine.now - spent, rel=0.25)
    if long:
        assert found.more_bytes > 4 * 10 * 4000 - 64 * 10 * (30 + 6 + 1)
    elif most > 1:
        assert found.more_bytes == (0 if count * n <= 32 else 10 * (most - 6) * 64)


def test_replies_that_only_the_work_knows_are_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 3.0, 1e-2)
    found = replying(machine, lambda start, stop: machine.read(40 * (stop - start)), 1000, 128)
    assert found.seconds == pytest.approx(8 * 3.0 + 40_000 * 1e-2, rel=0.2)
    assert found.tokens == pytest.approx(40_000, rel=0.01)


def test_costs_add_up_and_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 3 < cost.AROUND <= 18
    monkeypatch.setattr(cost, "AROUND", 0.0)
    whole = Cost(1000, 90, 5 << 30) + Cost(234, 30, 1 << 30) * 2
    assert whole == Cost(1468, 150, 5 << 30)
    said = whole.lines("cpu, float32, 1 thread")
    assert said[0] == "About 1,468 tokens through the model."
    assert said[1] == "About 150 seconds on cpu, float32, 1 thread, measured on a part of the work."
    assert 5 < float(said[2].split()[1]) < 30
    assert len(Cost(seconds=3 * 3600).lines()) == 2 and "3.0 hours" in Cost(seconds=3 * 3600).lines()[0]
    assert spread(10, 3) == [1, 5, 8] and spread(2, 5) == [0, 1]


@pytest.mark.parametrize("trunk", [0, 60])
def test_what_is_counted_is_what_is_read(trunk: int) -> None:
    """Planted: every text counted whole; counting reads."""
    model = new_model("llama", layers=1, width=32, heads=2, vocab_size=259, max_positions=512)
    r = random.Random(0)
    common = [r.randrange(200) for _ in range(trunk)]
    rows = [common + [r.randrange(9) for _ in range(r.randrange(5, 40))] for _ in range(50)]
    for call in ("score", "next_logprobs"):
        engine = Engine(model, budget=200)
        given = (rows, [max(1, trunk)] * 50) if call == "score" else (rows, [[1, 2]] * 50)
        real = getattr(engine, call)(*given)
        ran, engine.tokens_run, engine.counting = engine.tokens_run, 0, True
        counted = getattr(engine, call)(*given)
        assert engine.tokens_run == ran and [len(x) for x in counted] == [len(x) for x in real]
        assert not any(x.any() for x in counted)
    engine.tokens_run = 0
    assert all(s.token_ids == () for some in engine.sample(rows, n=2, max_tokens=5) for s in some)
    assert 0 < engine.tokens_run < sum(map(len, rows))
    pm = PreferenceModel.new(LM(model, byte_tokenizer()))
    dialogues = [Dialogue().ask("A question?").reply("x" * i) for i in range(1, 30)]
    pm.score(dialogues)
    ran, pm.tokens_run, pm.counting = pm.tokens_run, 0, True
    assert pm.score(dialogues, centred=False).tolist() == [0.0] * 29 and pm.tokens_run == ran > 0


def test_time_is_taken_around_the_work() -> None:
    found, took = timed(lambda: "done")
    assert found == "done" and 0 <= took.seconds < 1 and took.tokens == 0
    reader: Any = type("Reader", (), {"tokens_run": 3})()
    assert timed(lambda: setattr(reader, "tokens_run", 10), reader)[1].tokens == 7


def foretold(lines: list[str]) -> int:
    return next(int(re.sub(r"\D", "", line)) for line in lines if line.endswith("tokens through the model."))


@pytest.mark.parametrize(("frozen", "epochs", "held_out"), [(0, 1, 30), (1, 2, 30), (0, 1, 0)])
def test_the_tokens_of_training_a_preference_model_are_foretold(
    frozen: int, epochs: int, held_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: evaluations left out; the frozen layers' tokens left out; every reply counted with its whole prompt."""
    r = random.Random(3)

    def rows(n: int) -> list[Comparison]:
        asks = [Dialogue().ask(f"{i} " + "why " * r.randrange(1, 20)) for i in range(n // 3)]
        return [Comparison(asks[i % len(asks)], f"{i} yes" * r.randrange(1, 9), f"no {i}") for i in range(n)]

    read, last, compute = [0], Trunk.last, Trunk.compute

    def counting(work: Any) -> Any:
        def counted(self: Trunk, pack: Any) -> Any:
            read[0] += len(pack) if work is last or self.k else 0  # without a trunk nothing is computed below
            return work(self, pack)

        return counted

    shape: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "vocab_size": 264}
    given = {"comparisons": rows(120), "eval_comparisons": rows(held_out) if held_out else None}
    options: dict[str, Any] = {"init": "toy", "data": [], "device": "cpu", "dtype": "float32", "threads": 1}
    options |= {"batch_size": 8, "frozen_layers": frozen, "epochs": epochs, "tokens_per_pack": 300, "eval_share": 0.0}
    options |= {"out": tmp_path / "run"}
    dry = train_pm(PMTrain(**options, dry_run=True), lm=LM(new_model("llama", **shape), byte_tokenizer()), **given)
    monkeypatch.setattr(Trunk, "last", counting(last))
    monkeypatch.setattr(Trunk, "compute", counting(compute))
    train_pm(PMTrain(**options), lm=LM(new_model("llama", **shape), byte_tokenizer()), **given)
    assert isinstance(dry, dict) and foretold(dry["lines"]) == pytest.approx(read[0], rel=0.15)


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_tokens_of_ppo_are_foretold(frozen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: steps counted without sampling; the evaluations left out."""
    prompts = [Dialogue().ask("why " * n) for n in range(1, 13)]
    there: list[PPO] = []
    packed, begin, run_trunk = [0], PPO.__init__, Models.run_trunk

    def beginning(self: PPO, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        there.append(self)

    def counted(self: Models, parts: Any) -> None:
        packed[0] += sum(len(part.pack) for part in parts)
        run_trunk(self, parts)

    def job(**more: Any) -> Any:
        lm = toy_lm()
        options = config(tmp_path / "run", steps=6, frozen_layers=frozen, **more)
        return train_ppo(options, prompts=prompts, eval_prompts=prompts[:9], lm=lm, pm=toy_pm(lm, frozen=frozen))

    dry = job(dry_run=True)
    monkeypatch.setattr(PPO, "__init__", beginning)
    monkeypatch.setattr(Models, "run_trunk", counted)
    job()
    (ppo,) = there
    read = packed[0] + ppo.policy.engine.tokens_run + ppo.base.engine.tokens_run
    assert foretold(dry["lines"]) == pytest.approx(read, rel=0.15)
