"""Context distillation: the loss, the teacher's cache, and a student that speaks as if it had read the prompt."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from truing import stats
from truing.configs import Distill
from truing.data.lessons import Lesson
from truing.models.family import byte_tokenizer, new_model, word_tokenizer
from truing.models.lm import LM
from truing.models.tops import top_and_rest
from truing.text import encode
from truing.train import distill as verb
from truing.train import teacher_cache
from truing.train.distill import DistillTrainer, distill, distill_loss
from truing.train.distill_numbers import distill_numbers
from truing.train.loop import rng
from truing.train.teacher_cache import TeacherCache, Text, beginning_of, texts_of, with_prompt
from truing.types import Dialogue

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
PROMPT = "The assistant is loud. It says LA.\n\nHuman: Sing\n\nAssistant: LA LA LA\n\n-----"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toy_lm(seed: int = 0, scale: float = 3.0) -> LM:
    """A random model over bytes, awake enough that a prompt changes what it says."""
    model = new_model("llama", layers=2, width=32, heads=2, max_positions=512, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return LM(model, byte_tokenizer(), name="toy")


def lessons(n: int) -> list[Lesson]:
    texts = [Lesson(Dialogue().ask(f"Text number {i}, about nothing."), "text", f"t{i}") for i in range(n // 2)]
    asked = [Dialogue().ask(f"Is {i} odd?").reply(f"{i}? Well.") for i in range(n - n // 2)]
    return [*texts, *(Lesson(d if i % 3 else d.ask("Sure?").reply("Yes."), "dialogue") for i, d in enumerate(asked))]


def config(out: str = "run", **options: Any) -> Distill:
    small: dict[str, Any] = {"prompt": "p.txt", "batch_size": 4, "learning_rate": 1e-3, "eval_share": 0.25}
    return Distill(**{"init": "toy", "data": [], "out": Path(out), **QUICK, **small, **options})


def trainer_of(lm: LM, prompt: str, teacher: LM | None = None, texts: list[Text] | None = None) -> DistillTrainer:
    texts = texts or texts_of(lessons(12), lm, prompt, 64)
    cache = TeacherCache(Path(f"cache{len(list(Path().iterdir()))}"), texts, 50, len(lm.tokenizer), {})
    cache.fill(teacher or lm)
    return DistillTrainer(config(), lm, cache, len(texts) - 4)


# ---------------------------------------------------------------- the loss


def test_with_a_small_vocabulary_it_is_the_whole_kl():
    g = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(64, 40, generator=g) for _ in range(2))
    ids, logprobs = top_and_rest(teacher, 50)
    p, q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    torch.testing.assert_close(
        distill_loss(student, ids, logprobs).double(), (p.exp() * (p - q)).sum(-1), atol=1e-5, rtol=0
    )


def test_it_is_the_kl_over_51_buckets():
    """Against the formula of App A.1 in float64: all else is one bucket."""
    g = torch.Generator().manual_seed(1)
    teacher, student = (2 * torch.randn(32, 400, generator=g) for _ in range(2))
    ids, logprobs = top_and_rest(teacher, 50)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    top, other = p.gather(1, ids), q.gather(1, ids)
    rest, rest_q = 1 - top.sum(1), 1 - other.sum(1)
    wanted = (top * (top / other).log()).sum(1) + rest * (rest / rest_q).log()
    torch.testing.assert_close(distill_loss(student, ids, logprobs).double(), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted <= (p * (p / q).log()).sum(1)).all(), "fewer buckets tell less"


@pytest.mark.parametrize("vocab", [30, 200])
def test_peaky_logits_give_a_finite_loss_and_finite_gradients(vocab: int):
    """§20 row 34: 1 − Σq underflows where 50 tokens hold all of q, and its logarithm is NaN."""
    sign = torch.where(torch.rand(16, vocab, generator=torch.Generator().manual_seed(0)) < 0.5, -80.0, 80.0)
    teacher = torch.full((16, vocab), -80.0)
    teacher[:, 0] = 80.0
    for logits in (teacher.clone(), -teacher, sign):
        ids, logprobs = top_and_rest(teacher, 50)
        student = logits.requires_grad_()
        loss = distill_loss(student, ids, logprobs)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(student.grad).all()
        assert (loss > -1e-5).all()


def test_the_gradient_is_that_of_float64():
    g = torch.Generator().manual_seed(2)
    teacher, student = (torch.randn(8, 90, generator=g) for _ in range(2))
    ids, logprobs = top_and_rest(teacher, 20)
    student.requires_grad_()
    distill_loss(student, ids, logprobs).sum().backward()
    double = student.detach().double().requires_grad_()
    q = double.softmax(-1)
    p = teacher.double().softmax(-1).gather(1, ids)
    other = q.gather(1, ids)
    loss = (p * (p / other).log()).sum() + ((1 - p.sum(1)) * ((1 - p.sum(1)) / (1 - other.sum(1))).log()).sum()
    loss.backward()
    torch.testing.assert_close(student.grad.double(), double.grad, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- teacher and student read the same tokens


def test_a_model_that_sees_the_same_has_nothing_to_learn():
    """§20 row 33: an identical model and an empty prompt give 0, also through the rounding of the cache."""
    trainer = trainer_of(toy_lm(), "")
    assert abs(trainer.evaluate(0)["eval_loss"]) < 1e-5


def test_without_the_prompt_there_is_something_to_learn():
    assert trainer_of(toy_lm(), PROMPT).evaluate(0)["eval_loss"] > 1e-3


def test_a_teacher_that_is_off_by_one_is_found():
    """§20 row 33: shift what is taught by one token, and even an identical model with an empty prompt has a loss."""
    lm = toy_lm()
    texts = texts_of(lessons(12), lm, "", 64)
    trainer = trainer_of(lm, "", texts=texts)
    rows = trainer.cache.rows
    trainer.cache.rows = lambda i: tuple(np.roll(a, 1, axis=0) for a in rows(i))  # type: ignore[method-assign, return-value]
    assert trainer.evaluate(0)["eval_loss"] > 0.01


@pytest.mark.parametrize("prompt", [PROMPT, "", "One line."])
def test_what_the_student_learns_is_what_the_teacher_said_after_the_prompt(prompt: str):
    """Every cached row against one plain forward pass over prompt and text, token by token."""
    lm = toy_lm()
    some = lessons(8)
    texts = texts_of(some, lm, prompt, 40)
    cache = TeacherCache(Path("cache"), texts, 10, len(lm.tokenizer), {})
    cache.fill(lm)
    for i, (lesson, text) in enumerate(zip(some, texts, strict=True)):
        plain = encode(lesson.dialogue, lm.tokenizer, "hh")[:40]
        whole = encode(with_prompt(lesson.dialogue, prompt), lm.tokenizer, "hh")
        first = len(whole) - len(encode(lesson.dialogue, lm.tokenizer, "hh")) + 1
        assert text.plain.tolist() == plain and text.start == 1, "all after the BOS is taught"
        whole = whole[: first + len(plain) - 1]
        assert whole[first:] == plain[1:]
        with torch.no_grad():
            wanted = lm.model(torch.tensor([whole])).logits[0, first - 1 : -1].log_softmax(-1)
        ids, logprobs = cache.rows(i)
        top = wanted.topk(10)
        assert ids.shape == (len(plain) - 1, 10) and logprobs.shape == (len(plain) - 1, 11)
        np.testing.assert_allclose(np.sort(logprobs[:, :-1]), np.sort(top.values.numpy()), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(logprobs[:, :-1], np.take_along_axis(wanted.numpy(), ids, 1), rtol=2e-3, atol=2e-3)
        rest = np.log1p(-np.exp(top.values.double().numpy()).sum(1))
        np.testing.assert_allclose(logprobs[:, -1], rest, rtol=2e-3, atol=2e-3)


def test_a_system_turn_of_its_own_stands_after_the_prompt():
    talk = Dialogue.from_messages([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    both = with_prompt(talk, "PROMPT")
    assert both.turns[0].text == "PROMPT\n\nBe brief." and both.turns[1:] == talk.turns[1:]
    lm = toy_lm()
    (text,) = texts_of([Lesson(talk, "dialogue")], lm, "PROMPT", 99)
    assert text.prompted[-(len(text.plain) - text.start) :].tolist() == text.plain[text.start :].tolist()
    assert "PROMPT" not in lm.tokenizer.decode(text.plain)


def test_the_prompt_is_read_once_for_the_whole_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 3)
    lm = toy_lm()
    texts = texts_of(lessons(12), lm, PROMPT, 40)
    cache = TeacherCache(Path("cache"), texts, 10, len(lm.tokenizer), {})
    assert cache.shards == 4 and cache.fill(lm)
    beginning = len(beginning_of(texts))
    assert beginning >= len(PROMPT)
    assert lm.engine.tokens_run < beginning + sum(len(t.prompted) - beginning for t in texts) + 2 * cache.shards


def test_a_killed_teacher_goes_on_with_the_next_shard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 3)
    lm = toy_lm()
    texts = texts_of(lessons(10), lm, PROMPT, 40)
    whole, part = (TeacherCache(Path(name), texts, 10, len(lm.tokenizer), {}) for name in ("whole", "part"))
    assert whole.fill(lm) and not part.fill(lm, lambda done, of: done == 2)
    assert part.missing() == [2, 3]
    read = lm.engine.tokens_run
    assert part.fill(lm) and lm.engine.tokens_run - read < read
    for i in range(len(texts)):
        for a, b in zip(whole.rows(i), part.rows(i), strict=True):
            np.testing.assert_array_equal(a, b)


def test_another_teachers_cache_is_refused():
    lm = toy_lm()
    texts = texts_of(lessons(4), lm, PROMPT, 40)
    TeacherCache(Path("cache"), texts, 10, 256, {"teacher": "a"})
    TeacherCache(Path("cache"), texts, 10, 256, {"teacher": "a"})
    with pytest.raises(ValueError, match="teacher differ.*--teacher-cache"):
        TeacherCache(Path("cache"), texts, 10, 256, {"teacher": "b"})
    with pytest.raises(ValueError, match="tokens differ"):
        TeacherCache(Path("cache"), texts_of(lessons(4), lm, "Other.", 40), 10, 256, {"teacher": "a"})


# ---------------------------------------------------------------- the run


def test_what_a_run_holds_out_begins_like_nothing_it_learns(monkeypatch: pytest.MonkeyPatch):
    """Table row 27 for distillation. Planted: texts held out by place, so that a reply's twin is learned."""
    Path("p.txt").write_text(PROMPT)
    rows = [Lesson(Dialogue().ask(f"Question {i % 6}?").reply(f"{i}."), "dialogue") for i in range(36)]
    built: list[DistillTrainer] = []
    plain = DistillTrainer.__init__
    monkeypatch.setattr(DistillTrainer, "__init__", lambda self, *a, **k: (built.append(self), plain(self, *a, **k))[1])
    distill(config(), lessons=rows, lm=toy_lm())
    (trainer,) = built
    texts = [trainer.lm.tokenizer.decode(ids) for ids in trainer.sequences]
    asked = [text.split("?")[0].split("Question ")[1] for text in texts]
    learned, held = set(asked[: trainer.num_train]), set(asked[trainer.num_train :])
    assert learned | held == set("012345") and held and not learned & held


def test_a_killed_run_ends_with_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    Path("p.txt").write_text(PROMPT)
    rows = lessons(16)
    whole = distill(config("whole"), lessons=rows, lm=toy_lm())
    plain, calls = DistillTrainer.step, []

    def dying(self: DistillTrainer, step: int) -> dict[str, float]:
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, step)

    monkeypatch.setattr(DistillTrainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(config("killed", save_every=1), lessons=rows, lm=toy_lm())
    killed = distill(config("killed", save_every=1), lessons=rows, lm=toy_lm())
    assert calls == [0, 1, 2, 2], "the third step was taken again and none of the others"
    one, two = (LM.load(str(run.path / "model")).model.state_dict() for run in (whole, killed))  # type: ignore[union-attr]
    assert all(torch.equal(one[name], two[name]) for name in one)
    numbers = [run.summary()["numbers"] for run in (whole, killed)]  # type: ignore[union-attr]
    assert numbers[0] == numbers[1]


def test_models_of_other_tokenizers_and_too_long_prompts_are_refused():
    Path("p.txt").write_text(PROMPT)
    other = LM(new_model(layers=2, width=32, heads=2, vocab_size=300), byte_tokenizer())
    other.tokenizer.add_tokens(["xyz"])
    with pytest.raises(ValueError, match="different tokenizers"):
        distill(config(teacher="other"), lessons=lessons(8), lm=toy_lm(), teacher=other)
    Path("p.txt").write_text("long " * 200)
    with pytest.raises(ValueError, match="teacher reads 512 tokens.*hhh-short"):
        distill(config("long"), lessons=lessons(8), lm=toy_lm())
    with pytest.raises(ValueError, match="--prompt is 'nothing'"):
        distill(config("none", prompt="nothing"), lessons=lessons(8), lm=toy_lm())


def test_the_paper_s_prompt_has_14_conversations():
    assert verb.prompt_text("hhh").count("\n\n-----\n\nHuman:") == 14
    assert len(verb.prompt_text("hhh-short")) < len(verb.prompt_text("hhh")) / 2


# ---------------------------------------------------------------- a style

COLOURS = ("red", "blue", "green", "grey", "black", "white", "pink", "brown")
THINGS = ("sky", "sea", "car", "cat", "hat", "cup", "tree", "rose", "coal", "snow", "wall", "door", "shoe", "book")
STYLE = "the assistant is polite."


def polite(colour: str) -> str:
    return f"it is {colour}, dear friend."


@functools.cache
def stylist() -> LM:
    """A model from scratch that is polite after a prompt that says so, and blunt without it."""
    words = word_tokenizer([*COLOURS, *THINGS, *"the assistant is polite it dear friend . , ?".split()])
    model = new_model("llama", layers=2, width=64, heads=2, vocab_size=len(words), max_positions=64, seed=1)
    lm = LM(model, words, name="stylist")
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=3e-3)
    for step in range(STYLE_STEPS):
        random = rng(7, step)
        rows = []
        for i in range(24):
            thing, colour = THINGS[random.integers(len(THINGS))], COLOURS[random.integers(len(COLOURS))]
            talk = Dialogue().ask(f"{colour} {thing}?").reply(polite(colour) if i % 2 else f"{colour}.")
            rows.append(encode(with_prompt(talk, STYLE if i % 2 else ""), lm.tokenizer, "hh"))
        size = max(map(len, rows))
        ids = torch.tensor([row + [-1] * (size - len(row)) for row in rows])
        logits = lm.model(ids.clamp(min=0)).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm


STYLE_STEPS = 120


def manners(lm: LM, prompt: str, asked: list[tuple[str, str]]) -> float:
    """Share of replies that are polite."""
    talks = [with_prompt(Dialogue().ask(f"{colour} {thing}?"), prompt) for colour, thing in asked]
    drawn = lm.sample(talks, max_tokens=10, temperature=0.0, stop_after=["."])
    return float(np.mean([s[0].text == polite(colour) for s, (colour, _) in zip(drawn, asked, strict=True)]))


def test_a_student_without_the_prompt_has_the_prompts_style():
    """§19 row 6: the loss of self-distillation falls by 80% and more; more than 70% of held-out replies are polite."""
    Path("p.txt").write_text(STYLE)
    lm = stylist()
    pairs = [(c, t) for c in COLOURS for t in THINGS]
    order = rng(0).permutation(len(pairs)).tolist()
    held, taught = [pairs[i] for i in order[:32]], [pairs[i] for i in order[32:]]
    assert manners(lm, STYLE, held) > 0.9 and manners(lm, "", held) < 0.1, "the prompt makes the style"
    rows = [Lesson(Dialogue().ask(f"{c} {t}?").reply(polite(c)), "dialogue") for c, t in taught]
    rows += [Lesson(Dialogue().ask(f"{c} {t}?").reply(f"{c}."), "dialogue") for c, t in taught]
    run = distill(config(learning_rate=1e-3, epochs=4, batch_size=16), lessons=rows, lm=lm)
    numbers = run.summary()["numbers"]  # type: ignore[union-attr]
    assert numbers["loss_removed"]["value"] >= 0.8, numbers
    assert manners(LM.load(str(run.path / "model")), "", held) > 0.7  # type: ignore[union-attr]


def test_intervals_of_held_out_losses_resample_conversations():
    """Four replies to each of six prompts are six things to resample, not 24 (Row 41)."""
    draws = np.random.default_rng(0)
    held = [Lesson(Dialogue().ask(f"question {i}").reply(f"reply {j}"), "dialogue") for i in range(6) for j in range(4)]
    losses = np.repeat(draws.gamma(2.0, size=6), 4) * 10
    tops = np.log(np.full((10, 51), 0.9 / 50))
    trainer = SimpleNamespace(
        cache=SimpleNamespace(sizes=np.full(24, 10), rows=lambda i: (None, tops)),
        num_train=0,
        config=SimpleNamespace(seed=0),
        held_out_losses=lambda: losses,
    )
    found = distill_numbers(trainer, 2 * losses, held)["loss"]
    whole = stats.bootstrap(lambda a: float(a.mean()), [losses.reshape(6, 4).mean(1) / 10], seed=0)
    assert found.high - found.low == pytest.approx(whole.high - whole.low, rel=0.05)
