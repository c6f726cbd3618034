from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from truing.runs import Run, atomic_folder, atomic_write, sweep
from truing.runs import atomic as atomic_module


@dataclass
class Config:
    out: Path | None = None
    json: bool = False
    debug: bool = False
    report_to: str = "none"
    max_time: float | None = None
    dry_run: bool = False
    seed: int = 0
    learning_rate: float = 3e-5
    init: str = "smollm2"
    data: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_name_ignores_options_that_only_concern_output() -> None:
    a = Run.open("pm train", Config(), slug="smol/lm2")
    assert a.path.parent == Path("runs") and a.name.startswith("pm-train-smol-lm2-")
    same = Config(json=True, debug=True, report_to="wandb", max_time=3.0)
    assert Run.open("pm train", same, slug="smol/lm2").path == a.path
    assert Run.open("pm train", Config(seed=1), slug="smol/lm2").path != a.path
    assert Run.open("pm eval", Config(), slug="smol/lm2").path != a.path


def test_the_name_follows_the_content_of_data_not_its_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.jsonl").write_text("{}\n")
    first = Run.open("v", Config(data=["a/x.jsonl"]), data_files=["a/x.jsonl"])
    moved = Run.open("v", Config(data=["b/x.jsonl"]), data_files=["b/x.jsonl"])
    assert first.path == moved.path
    (tmp_path / "b/x.jsonl").write_text("{ }\n")
    assert Run.open("v", Config(data=["b/x.jsonl"]), data_files=["b/x.jsonl"]).path != first.path
    in_memory = Run.open("v", Config(), data_hashes={"comparisons": "1"})
    assert in_memory.path != Run.open("v", Config(), data_hashes={"comparisons": "2"}).path


def test_another_runs_folder_stands_for_its_hash(tmp_path: Path) -> None:
    pm = Run.open("pm train", Config())
    pm.finish({})
    relative, absolute = (Run.open("v", Config(init=str(p))).path for p in (pm.path, pm.path.resolve()))
    assert relative == absolute != Run.open("v", Config(init="elsewhere")).path


def test_a_model_stands_for_its_weights(tmp_path: Path) -> None:
    """Else new weights under an old name would get back the numbers of the old ones."""
    for name, weights in (("m", "1"), ("copy", "1"), ("runs/half/model", "1")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(weights)
    (tmp_path / "runs/half/environment.json").write_text('{"hash": "h", "verb": "pm train"}')
    opened = {n: Run.open("v", Config(init=str(tmp_path / n))).path for n in ("m", "copy", "runs/half")}
    assert len(set(opened.values())) == 1
    (tmp_path / "m/model.safetensors").write_text("2")
    assert Run.open("v", Config(init=str(tmp_path / "m"))).path != opened["m"]


def test_home_is_understood_in_data_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.jsonl").write_text("{}\n")
    first = Run.open("v", Config(data=["~/x.jsonl"]), data_files=["~/x.jsonl"]).path
    (tmp_path / "x.jsonl").write_text("{}\n{}\n")
    assert Run.open("v", Config(data=["~/x.jsonl"]), data_files=["~/x.jsonl"]).path != first


def test_rows_with_unicode_line_ends_stay_whole(tmp_path: Path) -> None:
    rows = [{"s": "a\u2028b"}, {"s": "c\u0085d"}, {"s": "e"}]
    atomic_module.atomic_write(tmp_path / "x.jsonl", atomic_module.as_lines(rows))
    assert atomic_module.read_rows(tmp_path / "x.jsonl") == rows


def test_a_pipe_or_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    atomic_write(tmp_path / "pipe", "through")
    assert reader.communicate(timeout=20)[0] == b"through" and (tmp_path / "pipe").is_fifo()


def test_a_folder_of_somebody_else_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rows.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"holds rows.jsonl but is no run's folder"):
        Run.open("v", Config(out=tmp_path / "mine"))
    with pytest.raises(ValueError, match="--seed is -1"):
        Run.open("v", Config(seed=-1))
    with pytest.raises(ValueError, match="--learning-rate is nan; expected a finite number"):
        Run.open("v", Config(learning_rate=float("nan")))
    assert not Path("runs").exists()


def test_a_folder_of_another_config_is_refused_by_naming_the_keys() -> None:
    Run.open("v", Config(out=Path("d"))).close()
    with pytest.raises(ValueError, match="learning_rate: 3e-05 there, 0.1 now; seed: 0 there, 4 now"):
        Run.open("v", Config(out=Path("d"), seed=4, learning_rate=0.1))
    with pytest.raises(ValueError, match="a run of 'v', not of 'w'"):
        Run.open("w", Config(out=Path("d")))
    Path("e").mkdir()
    Path("e/config.yaml").write_text("mine")
    with pytest.raises(ValueError, match="holds config.yaml but is no run's folder"):
        Run.open("v", Config(out=Path("e")))
    assert Path("e/config.yaml").read_text() == "mine"
    Path("f").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Run.open("v", Config(out=Path("f")))


def test_environment_and_config_say_what_was_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = tmp_path / "x.jsonl"
    data.write_text("{}\n")
    run = Run.open("v", Config(init=str(tmp_path / "model"), data=[str(data)]), data_files=[data])
    text = (run.path / "environment.json").read_text()
    facts = json.loads(text)
    assert facts["versions"]["torch"] and facts["hardware"]["cores"] >= 1 and facts["hardware"]["memory_gib"] > 0
    assert facts["data"]["~/x.jsonl"].startswith("sha256:") and str(tmp_path) not in text
    assert yaml.safe_load((run.path / "config.yaml").read_text())["learning_rate"] == 3e-5
    assert "json" not in run.config


def test_compute_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    @dataclass
    class Compute:
        device: str
        dtype: str
        threads: int
        measured: dict

    def choose(device: str, dtype: str, threads: int) -> Compute:
        calls.append((device, dtype, threads))
        return Compute("cpu", "torch.bfloat16", 2, {"float32_ms": 1.0})

    module = type(sys)("truing.models.compute")
    module.choose = choose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "truing.models.compute", module)

    @dataclass
    class WithDevice(Config):
        device: str = "auto"
        dtype: str = "auto"
        threads: int = 0

    Run.open("v", WithDevice()).compute(WithDevice())
    Run.open("v", WithDevice()).compute(WithDevice())
    assert calls == [("auto", "auto", 0), ("cpu", "bfloat16", 2)]


def test_numbers_notes_and_undefined_values() -> None:
    @dataclass
    class Interval:
        value: float | None
        note: str = ""

        def as_dict(self) -> dict:
            return {"value": self.value, "low": 0.1, "high": 0.3, "n": 7, "unit": "share"}

    run = Run.open("v", Config())
    assert not run.done
    numbers = {"a": Interval(0.2), "b": Interval(None, "one class"), "c": float("nan"), "d": {"value": 1}}
    run.stop({"a": Interval(0.1)})
    assert run.summary()["numbers"]["a"]["value"] == 0.1 and not run.done
    run.finish(numbers, ["hello"])
    summary = json.loads((run.path / "summary.json").read_text())
    assert run.done and not (run.path / "partial.json").exists() and not (run.path / "lock").exists()
    assert summary["numbers"]["a"] == {"value": 0.2, "low": 0.1, "high": 0.3, "n": 7, "unit": "share"}
    assert summary["numbers"]["c"]["value"] is None
    assert summary["numbers"]["d"] == {"value": 1, "low": None, "high": None, "n": None, "unit": ""}
    assert summary["notes"] == ["hello", "b: one class"] and set(summary) == {"verb", "run", "numbers", "notes"}


def test_metrics_lose_what_came_after_a_checkpoint_and_torn_lines() -> None:
    run = Run.open("v", Config())
    for step in range(5):
        run.log(step, loss=float("nan") if step == 2 else step / 2)
    run.write_samples([{"text": "a"}], step=1)
    run.write_samples([{"text": "b"}], step=4)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    run.truncate_metrics(3)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3] and run.metrics()[2]["loss"] is None
    assert [json.loads(line)["text"] for line in (run.path / "samples.jsonl").read_text().splitlines()] == ["a"]
    run.write_samples([{"text": "c"}], step=1)
    assert (run.path / "samples.jsonl").read_text().count("\n") == 1


def test_load_by_a_beginning_of_the_name() -> None:
    a, b = Run.open("v", Config(), slug="one"), Run.open("v", Config(seed=1), slug="two")
    assert Run.load("v-o").path == a.path and Run.load(b.path).path == b.path
    with pytest.raises(ValueError, match="may be any of"):
        Run.load("v-")
    with pytest.raises(FileNotFoundError, match="Runs in runs: v-one"):
        Run.load("w")


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from truing.runs import atomic
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        atomic.atomic_write(sys.argv[1], "new" * 100)
    """
    atomic_write("x.json", "old")
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), "x.json"])
    assert killed.returncode == -signal.SIGKILL and Path("x.json").read_text() == "old"
    (tmp_path / "d").mkdir()
    (tmp_path / "d/.x.json.tmp-99").write_text("half")
    (tmp_path / "d/.model.old-99").mkdir()
    Run.open("v", Config(out=Path("d")))
    assert not Path("d/.x.json.tmp-99").exists() and Path("d/model").is_dir(), "swept up, put back"


def test_a_full_disk_is_said_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write("x.json", "old")
    run = Run.open("v", Config(out=Path("d")))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_module.os, "fsync", full)
        with pytest.raises(OSError, match="disk is full: x.json was not written"):
            atomic_write("x.json", "new")
        with pytest.raises(OSError, match="disk is full"), atomic_folder("model") as folder:
            (folder / "weights").write_text("w")
        with pytest.raises(OSError, match="disk is full"):
            run.finish({})
    assert Path("x.json").read_text() == "old" and not run.done
    assert sorted(os.listdir()) == ["d", "x.json"]
    assert sorted(os.listdir("d")) == ["config.yaml", "environment.json", "lock"]
    run.finish({})
    assert run.done


def test_a_folder_is_replaced_whole_or_not() -> None:
    with atomic_folder("m") as folder:
        (folder / "w").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_folder("m") as folder:
        (folder / "w").write_text("2")
        raise KeyboardInterrupt
    assert Path("m/w").read_text() == "1"
    with atomic_folder("m") as folder:
        (folder / "v").write_text("3")
    assert [p.name for p in Path("m").iterdir()] == ["v"] and os.listdir() == ["m"]


def test_two_processes_cannot_work_on_one_run_and_a_dead_one_is_taken_over() -> None:
    code = """
        import sys; sys.path.insert(0, sys.argv[1])
        from test_runs import Config; from pathlib import Path; from truing.runs import Run
        Run.open("v", Config(out=Path("d"))); print("open", flush=True); sys.stdin.read()
    """
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(code), here]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match=f"worked on by process {other.pid} on"):
            Run.open("v", Config(out=Path("d")))
        other.kill()
    assert str(other.pid) in Path("d/lock").read_text()
    run = Run.open("v", Config(out=Path("d")))
    assert str(os.getpid()) in Path("d/lock").read_text()
    assert Run.open("v", Config(out=Path("d"))).path == run.path, "the same process may open it again"


def count(config: Config) -> Run:
    run = Run.open("count", config)
    if not run.done:
        with open("calls", "a") as file:
            file.write(f"{config.seed}\n")
        run.finish({"seed": config.seed})
    return run


def test_a_sweep_reuses_what_is_finished_here_and_in_processes() -> None:
    configs = [Config(seed=i) for i in range(3)]
    count(configs[1])
    for workers in (1, 2):
        found = sweep(count, configs, workers=workers)
        assert [run.summary()["numbers"]["seed"]["value"] for run in found] == [0, 1, 2]
        assert sorted(Path("calls").read_text().split()) == ["0", "1", "2"]


def hang_or_fail(config: Config) -> Run:
    if config.seed == 0:
        time.sleep(120)
    raise ValueError(f"seed {config.seed} fails")


def test_an_error_in_one_worker_ends_the_sweep_at_once() -> None:
    """Catches waiting for the others' work: the first in line hangs, the second fails."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="seed 1 fails"):
        sweep(hang_or_fail, [Config(seed=0), Config(seed=1)], workers=2)
    assert time.monotonic() - began < 60
    while multiprocessing.active_children():  # told to end, they need a moment
        assert time.monotonic() - began < 60
        time.sleep(0.05)


@dataclass
class Texts(Config):
    stop_after: list[str] = field(default_factory=lambda: ["."])


def test_text_stands_for_itself_not_for_the_folder_one_is_in(tmp_path: Path) -> None:
    """Catches Path("") = Path("."): the weights in the current folder became part of a run's identity."""
    before = Run.open("v", Texts(init="")).path
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert Run.open("v", Texts(init="")).path == before


def test_rows_after_a_damaged_one_are_not_taken_for_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"i": 0}\n{"i": 1\n{"i": 2}\n')
    assert atomic_module.read_rows(tmp_path / "r.jsonl") == [{"i": 0}]
    (tmp_path / "r.jsonl").write_bytes('{"i": "\u2028"}\n{"i": "é'.encode()[:-1])
    assert atomic_module.read_rows(tmp_path / "r.jsonl") == [{"i": "\u2028"}]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_run_is_said_whoever_opens_it(text: str) -> None:
    path = Run.open("v", Config(out=Path("r"))).path
    (path / "environment.json").write_text(text)
    for touch in (lambda: Run.open("v", Config(out=Path("r"))), lambda: Run.load("r")):
        with pytest.raises(ValueError, match=r"environment\.json is damaged"):
            touch()


def test_workers_of_a_sweep_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Else they would hold their runs, and the same command could not go on with them."""
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def work(name):\n"
        "    pathlib.Path(name).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    from truing.runs import sweep\n"
        "    sweep(work, ['a', 'b'], workers=2)\n"
    )
    parent = subprocess.Popen([sys.executable, "slow.py"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in "ab"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    workers = [int((tmp_path / n).read_text()) for n in "ab"]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
