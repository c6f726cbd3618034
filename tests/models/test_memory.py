"""Memory that does not grow with the job, and work that goes on with less when memory runs out."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import textwrap
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import V, as_text, make

from truing.models import engine as engines
from truing.models import memory, slots, tree
from truing.models.engine import Engine
from truing.models.heads import PreferenceModel
from truing.models.memory import OutOfMemory, finish, fitting, free_memory, is_out_of_memory, peak_memory

NO_ROOM = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate."


def no_room(size: int, most: int) -> None:
    """Stands where something of that size is allocated on a machine that has room for ``most``."""
    if size > most:
        raise RuntimeError(NO_ROOM)


# The shared part


@pytest.mark.parametrize(
    "error", [RuntimeError(NO_ROOM), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")]
)
def test_what_running_out_looks_like(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_not_taken_for_it(error: BaseException, capsys: Any) -> None:
    """Planted: every RuntimeError is met by halving, so that a bug is tried four times and then called memory."""
    calls = []

    def work(budget: int) -> None:
        calls.append(budget)
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        fitting(work, 1024, "reading {} tokens at once")
    assert calls == [1024] and capsys.readouterr().err == ""


def test_the_budget_is_halved_until_it_fits_and_that_is_said(capsys: Any) -> None:
    calls = []

    def work(budget: int) -> str:
        calls.append(budget)
        no_room(budget, 300)
        return "done"

    assert fitting(work, 2048, "reading {} tokens at once") == ("done", 256)
    assert calls == [2048, 1024, 512, 256]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "reading 2,048 tokens at once; going on with 1,024" in said[0] and "DefaultCPU" in said[0]


def test_where_even_little_does_not_fit_one_clear_error_says_what_to_do() -> None:
    with pytest.raises(OutOfMemory, match=r"reading 128 tokens at once, and less cannot.*--dtype bfloat16"):
        fitting(lambda budget: no_room(budget, 0), 1024, "reading {} tokens at once")
    with pytest.raises(OutOfMemory, match="reading 100 tokens"):  # a budget that is small from the start
        fitting(lambda budget: no_room(budget, 0), 100, "reading {} tokens at once")


def test_what_is_done_is_not_done_again() -> None:
    """Planted: the job begins anew."""
    seen: list[int] = []

    def work(left: list[int], budget: int) -> Any:
        for at in range(0, len(left), budget):
            places = range(len(left))[at : at + budget]
            no_room(len(places) if seen else 0, 200)
            seen.extend(left[place] for place in places)
            yield places

    assert finish(1000, work, 300, "reading {} rows") == 150
    assert seen == list(range(1000))


def test_what_the_machine_says_of_its_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory()
    assert free is None or 1 << 20 < free < 1 << 50
    held = torch.ones(1 << 23)  # 32 MiB
    most = peak_memory()
    assert most is None or most > held.nbytes
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 700\n")
    assert free_memory() == 1_000_700
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() != 1_000_700


# Memory of scoring


def job(n: int, trunk: int = 400) -> tuple[list[np.ndarray], list[int]]:
    r = random.Random(1)
    common = [r.randrange(V) for _ in range(trunk)]
    rows = [np.array([*common, *(r.randrange(V) for _ in range(8))], dtype=np.int32) for _ in range(n)]
    return rows, [trunk + 4] * n


def most_held(n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes of Python and numpy at most, and of live tensors at most, while n questions behind a prompt are scored."""
    model = make("neox")
    model.config.max_position_embeddings = 1000
    engine, (rows, starts) = Engine(model, budget=256), job(n)
    live, plain = [0], engine._logprobs

    def look(*given: Any) -> Any:
        if len(live) < 1000:
            storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
            live.append(sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        return plain(*given)

    gc.collect()
    tracemalloc.start()  # in a run of its own: the list of all objects is large itself
    found = engine.score(rows, starts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.setattr(engine, "_logprobs", look)
    assert len(engine.score(rows, starts)) == len(found) == n and len(live) > n * 4 / 256
    return peak, max(live)


def test_memory_does_not_grow_with_the_number_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: all packs made at once; whole sequences copied; states kept. Ids and results may grow, 1.5 kB each."""
    most_held(50, monkeypatch)  # what is made once
    (few, few_live), (many, many_live) = (most_held(n, monkeypatch) for n in (200, 1200))
    assert many - few < 1000 * 1500
    assert many_live < few_live + (64 << 10)


# Running out while scoring and sampling


def texts(n: int, trunk: int = 0) -> list[list[int]]:
    """n texts of 11 to 20 tokens after a common trunk; two are equal, one begins another."""
    r = random.Random(3)
    common = [r.randrange(V) for _ in range(trunk)]
    out = [common + [r.randrange(V) for _ in range(r.randrange(11, 21))] for _ in range(n - 2)]
    return [*out, out[1], out[2][:-3]]


@pytest.mark.parametrize("trunk", [0, 40])
def test_scores_are_the_same_in_half_of_the_memory(trunk: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Planted: results of the packs that fitted are lost; members are numbered as in the smaller job."""
    model, sequences = make("llama"), texts(60, trunk)
    starts = [max(1, min(trunk, len(s) - 1)) for s in sequences]
    wanted = Engine(model, budget=512).score(sequences, starts)
    following = Engine(model, budget=512).next_logprobs(sequences)
    capsys.readouterr()
    plain, room = tree.hidden, [10_000]
    run = Engine._run
    sizes = []

    def counted(pack: tree.Pack) -> None:
        sizes.append(len(pack))
        no_room(len(pack), room[0])
        room[0] = 150  # the first one fits; then another program takes the memory

    monkeypatch.setattr(tree, "hidden", lambda model, pack: (counted(pack), plain(model, pack))[1])
    monkeypatch.setattr(Engine, "_run", lambda self, pack, trunk: (counted(pack), run(self, pack, trunk))[1])
    engine = Engine(model, budget=512)
    told: list[tuple[int, int]] = []
    found = engine.score(sequences, starts, progress=lambda *told_now: told.append(told_now))
    assert engine.budget == 128 and max(sizes) > 150
    assert capsys.readouterr().err.count("going on with") == 2
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert told[-1] == (len(sequences), len(sequences)) and told == sorted(told)
    for ours, theirs in zip(engine.next_logprobs(sequences), following, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert capsys.readouterr().err == "", "the smaller budget is kept"


def test_the_head_may_run_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = make("llama"), texts(60)
    wanted = Engine(model, budget=512).score(sequences, [1] * len(sequences))
    plain, calls = tree.logits, []

    def logits(model: Any, hidden: torch.Tensor, *weight: Any) -> torch.Tensor:
        calls.append(len(hidden))
        no_room(len(hidden), 140)
        return plain(model, hidden, *weight)

    monkeypatch.setattr(tree, "logits", logits)
    for ours, theirs in zip(Engine(model, budget=512).score(sequences, [1] * len(sequences)), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert max(calls) > 140


@pytest.mark.parametrize("where", ["cache", "step", "prompt"])
def test_replies_are_the_same_in_half_of_the_batch(where: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Planted: a reply goes on with the old random stream; its text is told twice; finished replies are drawn again."""
    model, asked = make("llama"), texts(9)
    options: dict[str, Any] = {"n": 3, "max_tokens": 12, "seeds": 5, "decode": as_text}
    wanted = Engine(model, 3).sample(asked, **options)
    capsys.readouterr()
    if where == "cache":
        plain = slots.SlotLayer.__init__
        monkeypatch.setattr(
            slots.SlotLayer, "__init__", lambda self, slots, like: (no_room(slots.size, 8), plain(self, slots, like))[0]
        )
    elif where == "step":
        step = slots.Slots.step

        def failing(self: Any, tokens: torch.Tensor) -> torch.Tensor:
            no_room(len(tokens) if int(self.lengths.max()) > 24 else 0, 8)
            return step(self, tokens)

        monkeypatch.setattr(slots.Slots, "step", failing)
    else:
        run = Engine._run
        monkeypatch.setattr(
            Engine, "_run", lambda self, pack, trunk: (no_room(len(pack), 100), run(self, pack, trunk))[1]
        )
    heard: dict[tuple[int, int], str] = {}

    def hear(prompt: int, reply: int, piece: str) -> None:
        heard[prompt, reply] = heard.get((prompt, reply), "") + piece

    told: list[tuple[int, int]] = []
    engine = Engine(model, 3, budget=2048)
    found = engine.sample(asked, **options, on_text=hear, progress=lambda *told_now: told.append(told_now))
    assert [[s.token_ids for s in some] for some in found] == [[s.token_ids for s in some] for some in wanted]
    assert "side by side; going on with" in capsys.readouterr().err and engine.max_batch < 27
    assert all(heard.get((i, j), "") == s.text for i, some in enumerate(found) for j, s in enumerate(some))
    assert told[-1] == (27, 27) and len(told) == len(set(told)), "a reply that is over is over"


def test_the_cache_goes_with_the_call() -> None:
    """Planted: cache and layers hold one another, so that two jobs' caches stand in memory at once."""
    engine = Engine(make("llama"))
    gc.collect()
    gc.disable()
    try:
        engine.sample(texts(9), max_tokens=3)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, slots.SlotLayer)]
    finally:
        gc.enable()


def test_the_cache_leaves_most_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: cache_bytes alone decides; Linux would promise the memory and kill the process later."""
    engine = Engine(make("llama"))
    place = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert engine.rows_at_once(64, 100) == 64
    monkeypatch.setattr(engines, "free_memory", lambda device: 10 * 100 * place * engines.CACHE_SHARE)
    assert engine.rows_at_once(64, 100) == 10
    monkeypatch.setattr(engines, "free_memory", lambda device: 0)
    assert engine.rows_at_once(64, 100) == 1
    monkeypatch.setattr(engines, "free_memory", lambda device: None)
    assert engine.rows_at_once(64, 100) == 64


def test_a_preference_model_scores_the_same_in_half_of_the_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from truing.models.family import byte_tokenizer, new_model
    from truing.models.lm import LM
    from truing.types import Dialogue

    pm = PreferenceModel.new(LM(new_model("llama", layers=2, width=32, heads=2, seed=3), byte_tokenizer()))
    dialogues = [Dialogue().ask(f"Question {i % 7}?").reply(f"{i} " * (i % 5 + 1)) for i in range(40)]
    wanted = pm.score(dialogues)
    plain, sizes = PreferenceModel.project, []

    def project(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        no_room(len(hidden), 15)
        return plain(self, hidden)

    monkeypatch.setattr(PreferenceModel, "project", project)
    np.testing.assert_allclose(pm.score(dialogues), wanted, atol=1e-5)
    assert max(sizes) > 15 and "scoring 512 tokens at once; going on with 256" in capsys.readouterr().err
    pm.score(dialogues)
    assert capsys.readouterr().err == "", "the smaller budget is kept"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count address space otherwise")
def test_a_real_limit_is_met() -> None:
    """The allocator itself says no, under a limit as ``ulimit -v`` sets it."""
    code = """
        import resource, sys, torch
        torch.set_num_threads(1)
        from truing.models.engine import Engine
        from truing.models.family import new_model
        model = new_model("llama", layers=1, width=16, heads=1, vocab_size=300, max_positions=9000)
        engine = Engine(model, budget=8192)
        sequences = [[i % 300, *range(100)] for i in range(90)]
        wanted = Engine(engine.model, budget=256).score(sequences[:3], [1] * 3)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (160 << 20), resource.RLIM_INFINITY))
        found = engine.score(sequences, [1] * 90)
        assert all(abs(a - b).max() < 1e-4 for a, b in zip(found, wanted))
        print(engine.budget)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0 and "going on with 4,096" in done.stderr, done.stderr
    assert int(done.stdout) < 8192
