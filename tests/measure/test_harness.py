"""truing eval: the engine against lm-eval's own Hugging Face model, the verb's numbers, its messages and its resume."""

from __future__ import annotations

import json
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_contract import check_run
from truing import cli
from truing.configs import Eval
from truing.measure import harness, harness_numbers, harness_tax
from truing.measure.harness_lm import harness_class
from truing.models.engine import Engine
from truing.models.family import byte_tokenizer, new_model
from truing.models.lm import LM

WINDOW = 128
QUICK = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
Call = Callable[..., tuple[int, str, str]]


def toy(seed: int) -> LM:
    tokenizer = byte_tokenizer()
    model = new_model("llama", layers=2, width=32, heads=2, vocab_size=259, max_positions=WINDOW, seed=seed)
    return LM(model, tokenizer, name=f"toy {seed}")


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy(3)


@pytest.fixture
def needs_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'truing[eval]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hf(lm: LM) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4, device="cpu")


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


# ---------------------------------------------------------------- the model, against lm-eval's own


@pytest.mark.usefixtures("needs_lm_eval")
def test_answers_equal_those_of_lm_evals_hugging_face_model(lm: LM) -> None:
    r = random.Random(0)
    ours, theirs = harness_class()(lm), hf(lm)

    def text(n: int) -> str:
        return "".join(r.choice(string.ascii_letters + "   .\n") for _ in range(n))

    shared = text(40)
    contexts = [
        "",
        "ends in spaces  ",
        text(WINDOW + 20),
        text(1),
        *(shared + text(r.randrange(1, 20)) for _ in range(8)),
    ]
    pairs = [(c, text(r.randrange(1, 12))) for c in contexts for _ in range(3)]
    pairs += [(c, letter) for c in contexts for letter in string.printable] + [(text(30), text(WINDOW - 2)), *pairs[:4]]
    r.shuffle(pairs)
    requests = instances("loglikelihood", pairs)
    before = lm.engine.tokens_run
    found = ours.loglikelihood(requests)
    read = lm.engine.tokens_run - before
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [g for _, g in found] == [g for _, g in expected] and {g for _, g in found} == {True, False}
    assert read < sum(len(c) + len(t) for c, t in pairs) / 20, "shared contexts are read once"

    texts = [(text(n),) for n in (1, 30, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 7)] + [("",)]
    rolled = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    assert rolled == pytest.approx(theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts)), abs=1e-3)

    settings = [
        {"until": ["\n", "e"], "max_gen_toks": 20},
        {"until": "a", "max_new_tokens": 9, "do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 12},
    ]
    asked = instances("generate_until", [(c, s) for c in contexts[1:] for s in settings])
    said = ours.generate_until(asked)
    assert said == theirs.generate_until(asked, disable_tqdm=True) and len(set(said)) > 5


@pytest.mark.usefixtures("needs_lm_eval")
def test_sampled_replies_follow_the_seed_and_their_request(lm: LM) -> None:
    sampled = {"do_sample": True, "temperature": 1.0, "until": [], "max_gen_toks": 12}
    asked = instances("generate_until", [("one", sampled), ("two", sampled), ("one", sampled)])
    first = harness_class()(lm, seed=1).generate_until(asked)
    assert (
        first == harness_class()(lm, seed=1).generate_until(asked) != harness_class()(lm, seed=2).generate_until(asked)
    )
    assert first[0] != first[2], "a request made twice is drawn twice"
    assert first[1:2] == harness_class()(lm, seed=1).generate_until(asked[1:2])


@pytest.mark.usefixtures("needs_lm_eval")
@pytest.mark.parametrize(
    ("settings", "said"),
    [({"num_beams": 4}, "num_beams"), ({"max_gen_toks": WINDOW}, "no room for a prompt")],
)
def test_replies_it_cannot_give_are_refused(lm: LM, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        harness_class()(lm).generate_until(instances("generate_until", [("a", settings)]))


@pytest.mark.usefixtures("needs_lm_eval")
def test_lm_eval_finds_the_model_by_its_name(lm: LM, tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    lm.save(tmp_path / "lm")
    harness_class()
    model = get_model("truing").create_from_arg_string(
        f"pretrained={tmp_path / 'lm'}", {"batch_size": 1, "device": "cpu"}
    )
    pairs = instances("loglikelihood", [("a", "b")])
    assert model.loglikelihood(pairs) == [
        (pytest.approx(harness_class()(lm).loglikelihood(pairs)[0][0], abs=1e-4), False)
    ]


@pytest.mark.usefixtures("needs_lm_eval")
def test_messages_go_through_the_chat_template() -> None:
    lm = toy(3)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = harness_class()(lm)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert model.apply_chat_template(talk) == "[user]Hi[assistant]" == hf(lm).apply_chat_template(talk)
    assert model.chat_template(True) == lm.tokenizer.chat_template


# ---------------------------------------------------------------- the verb


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm: LM) -> Path:
    """A folder with the models a and b, and in tasks/ four tasks over local files and a group."""
    monkeypatch.chdir(tmp_path)
    lm.save(tmp_path / "a")
    toy(4).save(tmp_path / "b")
    folder, rng = tmp_path / "tasks", np.random.default_rng(0)
    folder.mkdir()
    for name, n in (("train", 6), ("test", 12)):
        rows = [
            {
                "question": f"{name} {i} + {i}?",
                "choices": [str(2 * i), str(2 * i + 7), "none"],
                "answer": int(rng.integers(3)),
                "say": "e",
            }
            for i in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = json.dumps({"data_files": {s: str(folder / f"{s}.jsonl") for s in ("train", "test")}})
    data = f"dataset_path: json\ndataset_kwargs: {files}\ntest_split: test\nfewshot_split: train\n"
    ask = 'doc_to_text: "{{question}} Answer:"\n'
    choice = (
        f'{data}{ask}output_type: multiple_choice\ndoc_to_choice: "{{{{choices}}}}"\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    said = 'doc_to_target: "{{say}}"\noutput_type: generate_until\nmetric_list: [{metric: exact_match}]\n'
    rolling = "output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    written = {
        "toy_choice": choice,
        "toy_few": choice + "process_docs: null\nnum_fewshot: 2\n",
        "toy_say": f"{data}{ask}{said}generation_kwargs: {{until: [' '], max_gen_toks: 6}}\n",
        "toy_text": f'{data}doc_to_text: ""\ndoc_to_target: "{{{{question}}}}"\n{rolling}',
    }
    for name, words in written.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{words}")
    (folder / "toy_group.yaml").write_text(
        "group: toy_group\ntask: [toy_choice, toy_few]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], here: Path) -> Call:
    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(["eval", *argv, "--include-path", "tasks", *QUICK])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return (code, *capsys.readouterr())

    return run


def theirs(lm: LM, tasks: list[str], **options: Any) -> dict[str, float]:
    """lm-eval's own numbers with its own Hugging Face model, under our names."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path="tasks", include_defaults=False)
    results = simple_evaluate(hf(lm), tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)
    return {
        f"{key.removesuffix(',none')}/{name}": value
        for name, entry in results["results"].items()
        for key, value in entry.items()
        if "," in key and "_stderr" not in key
    }


@pytest.mark.usefixtures("needs_lm_eval")
def test_numbers_equal_lm_evals_own(call: Call, here: Path, lm: LM) -> None:
    names = ["toy_group", "toy_say", "toy_text"]
    code, out, err = call("a", "--tasks", "toy_group,toy_say", "toy_text", "--limit", "9", "--json", "--out", "o")
    assert code == 0, err
    expected = theirs(lm, names, limit=9)
    numbers = check_run(here / "o", "eval")
    assert json.loads(out)["numbers"] == numbers and set(numbers) == set(expected)
    assert {"acc/toy_choice", "acc_norm/toy_few", "acc/toy_group", "exact_match/toy_say", "bits_per_byte/toy_text"} <= {
        *numbers
    }
    for name, number in numbers.items():
        assert number["value"] == pytest.approx(expected[name], rel=1e-4), name
        assert number["n"] == (18 if "group" in name else 9) and number["low"] < number["high"]
        assert number["unit"] == ("share" if name.startswith(("acc", "exact")) else ""), name
    rows = [json.loads(line) for line in (here / "o" / "rows.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows[:2]] == ["toy_choice/0", "toy_choice/1"] and len(rows) == 4 * 9
    assert np.mean([r["acc"] for r in rows if r["task"] == "toy_few"]) == pytest.approx(numbers["acc/toy_few"]["value"])
    samples = [json.loads(line) for line in (here / "o" / "samples.jsonl").read_text().splitlines()]
    few = next(s for s in samples if s["task"] == "toy_few")
    assert few["prompt"].count("Answer:") == 3 and few["reply"].endswith("nats)")
    assert "toy_few" in (here / "o" / "tasks.csv").read_text() and not list((here / "o").glob("answers-*"))
    again = call("a", "--tasks", "toy_group,toy_say", "toy_text", "--limit", "9", "--json", "--out", "o")
    assert json.loads(again[1]) == json.loads(out), "a finished run is returned"


@pytest.mark.usefixtures("needs_lm_eval")
def test_two_models_are_compared_question_by_question(call: Call, here: Path, lm: LM) -> None:
    tasks = ["--tasks", "toy_choice", "toy_text", "--num-fewshot", "1"]
    code, out, err = call("--before", "a", "--after", "b", *tasks, "--json")
    assert code == 0, err
    numbers = json.loads(out)["numbers"]
    folder = Path(json.loads(out)["run"])
    check_run(folder, "eval")
    expected = {m: theirs(toy(m), ["toy_choice", "toy_text"], num_fewshot=1) for m in (3, 4)}
    for name in expected[3]:
        assert numbers[f"{name}/before"]["value"] == pytest.approx(expected[3][name], rel=1e-4)
        assert numbers[name]["value"] == pytest.approx(expected[4][name], rel=1e-4)
        gap = numbers[f"{name}/difference"]
        assert gap["value"] == pytest.approx(expected[4][name] - expected[3][name], rel=1e-3, abs=1e-4)
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert "toy_choice,acc," in (folder / "before_after.csv").read_text()
    assert "before_after.csv" in (folder / "report.html").read_text()
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert sample["before"] != sample["after"]
    same = json.loads(call("a", "a", *tasks, "--json")[1])["numbers"]["bits_per_byte/toy_text/difference"]
    assert same["value"] == same["low"] == same["high"] == 0
    assert call("a", "b", "a", *tasks)[0] == 1 and "Name one model, or two" in call(*tasks)[2]


@pytest.mark.usefixtures("needs_lm_eval")
def test_a_killed_run_asks_only_the_rest(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("a", "--tasks", "toy_choice", "toy_say")
    assert call(*argv, "--out", "whole")[0] == 0
    monkeypatch.setattr(harness, "SCORED", 10)
    code, out, err = call(*argv, "--out", "o", "--max-time", "0", "--json")
    assert code == 0 and "goes on" in err and json.loads(out)["numbers"] == {}
    score, calls = Engine.score_greedy, list[int]()

    def dies(self: Engine, sequences: Any, starts: Any) -> Any:
        calls.append(len(sequences))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, sequences, starts)

    monkeypatch.setattr(Engine, "score_greedy", dies)
    assert call(*argv, "--out", "o")[0] == 130
    assert call(*argv, "--out", "o")[0] == 0
    assert calls == [10, 10, 10, 10, 6], "what had been answered was not asked again"
    for file in ("rows.jsonl", "samples.jsonl"):
        assert (here / "o" / file).read_text() == (here / "whole" / file).read_text()
    calls.clear()
    assert call(*argv, "--out", "other", "--seed", "1", "--max-time", "0")[0] == 0
    with open(here / "tasks" / "test.jsonl", "a") as more:
        more.write(json.dumps({"question": "new", "choices": ["x", "y", "z"], "answer": 0, "say": "e"}) + "\n")
    code, _, err = call(*argv, "--out", "other", "--seed", "1")
    assert code == 1 and "another config" in err, "other questions are another run"


@pytest.mark.usefixtures("needs_lm_eval")
def test_other_examples_are_other_data(here: Path) -> None:
    """Catches a finished run that answers for examples it never showed."""

    def hashes() -> dict[str, str]:
        tasks = harness.load_tasks(["toy_choice", "toy_few"], "tasks")[1]
        return {name: harness.content_hash(task) for name, task in tasks.items()}

    before = hashes()
    with open(here / "tasks" / "train.jsonl", "a") as more:
        more.write('{"question": "new?", "choices": ["1", "2", "3"], "answer": 1, "say": "e"}\n')
    after = hashes()
    assert after["toy_few"] != before["toy_few"]
    assert after["toy_choice"] == before["toy_choice"], "which shows none"


def test_mistakes_are_named_before_any_work(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval's own thousands of task files are not read here
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
    for argv, said in [
        (["a", "--tasks", "toy_chioce"], "no task 'toy_chioce'. Did you mean toy_choice"),
        (["a", "--tasks", ","], "names no task"),
        (["a", "typo", "--tasks", "toy_choice"], "typo"),
        (["a", "--tasks", "toy_choice", "--limit", "0"], "--limit is 0"),
        (["a", "--tasks", "toy_choice", "--num-fewshot", "-1"], "--num-fewshot is -1"),
        (["a", "--tasks", "toy_choice", "--apply-chat-template"], "no chat template"),
    ]:
        code, out, err = call(*argv)
        assert code == 1 and out == "" and said in err and "Traceback" not in err, argv
        assert not (here / "runs").exists(), argv
    (here / "tasks" / "test.jsonl").unlink()
    code, _, err = call("a", "--tasks", "toy_choice")
    assert code == 1 and "could not load the task toy_choice" in err


@pytest.mark.usefixtures("needs_lm_eval")
def test_a_dry_run_counts(call: Call, here: Path) -> None:
    code, out, _ = call("a", "--tasks", "toy_*", "--limit", "5", "--dry-run")
    assert code == 0 and "toy_choice: 5 questions, 15 requests, about" in out and "toy_text: 5 questions" in out
    assert not (here / "runs").exists()


def test_without_lm_eval_the_command_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = call("a", "--tasks", "hellaswag")
    assert code == 1 and out == "" and "pip install 'truing[eval]'" in err


# ---------------------------------------------------------------- numbers by hand


def test_a_metric_that_is_no_mean_is_resampled_with_its_own_function() -> None:
    rows = [(-float(i % 7), 3) for i in range(40)]
    other = [(a - 3.0, n) for a, n in rows]

    def per_word(items: list[Any]) -> float:
        return float(np.exp(-sum(a for a, _ in items) / sum(n for _, n in items)))

    one, two = (harness_numbers._as_metric(per_word(x), x, per_word) for x in (rows, other))
    number, gap = one.interval(), two.minus(one)
    assert number.low is not None and number.low < per_word(rows) < (number.high or 0) and number.n == 40
    assert gap.value == pytest.approx(per_word(other) - per_word(rows)) and (gap.low or 0) > 0
    undefined = harness_numbers._as_metric(None, rows, per_word).interval()
    assert undefined.value is None and undefined.note


def test_groups_weigh_their_tasks_as_lm_eval_does() -> None:
    parts = [harness_numbers._as_metric(float(np.mean(r)), r, None) for r in ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0])]
    pooled, by_task, neither = (harness_numbers._of_group(v, parts) for v in (0.5, 0.625, 0.9))
    assert pooled.interval().value == 0.5 and by_task.interval().value == pytest.approx(0.625)
    assert neither.interval().value == 0.9 and neither.interval().low is None and neither.interval().note


def test_which_models_are_meant() -> None:
    def models(**given: Any) -> list[str]:
        return harness.models_of(Eval(tasks=["t"], **given))

    assert models(models=["a"]) == ["a"] and models(models=["a", "b"]) == ["a", "b"]
    assert models(before="a", models=["b"]) == models(before="a", after="b") == ["a", "b"]
    for wrong in (
        {},
        {"models": ["a", "b", "c"]},
        {"models": ["a", "b"], "before": "c"},
        {"models": ["a"], "after": "b"},
    ):
        with pytest.raises(ValueError, match="Name one model, or two"):
            models(**wrong)


# ---------------------------------------------------------------- zero- and few-shot together, and means of tasks


@pytest.mark.usefixtures("needs_lm_eval")
def test_several_numbers_of_examples_are_one_run_each_as_if_alone(call: Call, here: Path) -> None:
    tasks = ["--before", "a", "--after", "b", "--tasks", "toy_choice", "toy_say", "--limit", "9"]
    code, out, err = call(*tasks, "--num-fewshot", "0", "3", "--json", "--out", "both")
    assert code == 0, err
    numbers = check_run(here / "both", "eval")
    alone = json.loads(call(*tasks, "--num-fewshot", "3", "--json")[1])["numbers"]
    alone = {f"{n}/3-shot" if n.count("/") == 1 else _before_mark(n, "3"): v for n, v in alone.items()}
    assert {n: v for n, v in numbers.items() if "/3-shot" in n} == alone
    assert {n.replace("/3-shot", "/0-shot") for n in alone} | alone.keys() == numbers.keys()
    samples = [json.loads(line) for line in (here / "both" / "samples.jsonl").read_text().splitlines()]
    assert {(s["shots"], s["prompt"].count("Answer:")) for s in samples} == {(0, 1), (3, 4)}
    mean = numbers["accuracy/mean/3-shot/difference"]
    parts = [numbers[f"{m}/3-shot/difference"]["value"] for m in ("acc/toy_choice", "exact_match/toy_say")]
    assert mean["value"] == pytest.approx(np.mean(parts)) and mean["n"] == 18
    table = (here / "both" / "before_after.csv").read_text().splitlines()
    assert table[0] == "task,metric,shots,before,after,difference,low,high,n" and len(table) == 1 + 2 * (3 + 1)
    rows = [json.loads(line) for line in (here / "both" / "rows.jsonl").read_text().splitlines()]
    assert sorted({row["shots"] for row in rows}) == [0, 3] and len(rows) == 36
    assert not list((here / "both").glob("answers-*"))
    assert "tax.svg" in {p.name for p in (here / "both" / "figures").iterdir()}


def _before_mark(name: str, shots: str) -> str:
    head, _, mark = name.rpartition("/")
    return f"{head}/{shots}-shot/{mark}"


def test_means_of_tasks_resample_within_tasks() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.random(400) < p for p in (0.1, 0.9)]
    made = {
        f"acc/t{i}": harness_numbers._as_metric(float(c.mean()), c.astype(float).tolist(), None)
        for i, c in enumerate(columns)
    }
    found = harness_tax.task_means([{0: made, 5: made}], ["t0", "t1"])["accuracy/mean/0-shot"]
    error = 0.5 * np.sqrt(sum(c.var() / len(c) for c in columns))
    assert found.value == pytest.approx(np.mean([c.mean() for c in columns])) and found.n == 800
    assert (found.high or 0) - (found.low or 0) == pytest.approx(2 * 1.96 * error, rel=0.1), "tasks are not drawn, too"
    assert harness_tax.task_means([{None: made}], ["t0", "t1"]) == {}
    assert harness_tax.task_means([{0: made, 5: made}], ["t0"]) == {}


def test_a_share_of_a_gap_is_one_where_the_model_needs_no_examples() -> None:
    """Catches a ratio turned round, or taken to the wrong model's few-shot score."""
    rng = np.random.default_rng(1)
    without, shown = (rng.random(2000) < 0.2).astype(float), (rng.random(2000) < 0.6).astype(float)
    now = np.where(rng.random(2000) < 0.4, shown, without)
    found = harness_tax.gap_closed(without, now, shown, 0)
    exact = (now.mean() - without.mean()) / (shown.mean() - without.mean())
    assert found.value == pytest.approx(exact) and 0.3 < exact < 0.5
    assert 0.3 < (found.low or 0) < exact < (found.high or 0) < 0.5
    assert harness_tax.gap_closed(without, shown, shown, 0).value == 1
    assert harness_tax.gap_closed(without, without, shown, 0).value == 0
    lost = harness_tax.gap_closed(shown, now, without, 0)
    assert lost.value is None and "no gap to close" in lost.note
