"""Prompts that a model writes: what is kept, where it comes from, and that a killed job goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.configs import WritePrompts
from truing.data.near import Near, key_of
from truing.data.prompts import load_prompt_rows
from truing.data.provenance import leaks
from truing.measure import model_prompts
from truing.measure.model_prompts import Examples, Sieve, parse, write_prompts
from truing.text import HUMAN
from truing.types import Sample

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
VERBS = ("paint", "clean", "sell", "repair", "draw", "carry", "measure", "describe", "hide", "compare")
THINGS = ("boat", "violin", "garden", "letter", "bridge", "kettle", "jacket", "window", "poem", "map")
PLACES = ("Lisbon", "winter", "the attic", "a small town", "the rain", "school", "the dark", "a hurry")


class Writer:
    """Stands in for a model: it writes new prompts, repeats itself, copies examples and held-out prompts, rambles."""

    format = "hh"

    def __init__(self, held_out: Sequence[str] = ()) -> None:
        self.held_out, self.asked = list(held_out), []

    def render(self, prompt: str) -> str:
        return prompt

    def sample(self, prompts: Sequence[str], *, seed: Sequence[Sequence[int]], **options: Any) -> list[list[Sample]]:
        assert options["stop"] == ["\n\n"] and options["temperature"] > 0
        self.asked += prompts
        return [[self.reply(prompt, s)] for prompt, (s,) in zip(prompts, seed, strict=True)]

    def reply(self, prompt: str, seed: int) -> Sample:
        random = np.random.default_rng(seed)
        shown = [part.strip() for part in prompt.split(HUMAN)[1:-1]]
        verb, thing, place = (some[random.integers(len(some))] for some in (VERBS, THINGS, PLACES))
        new = f"How would you {verb} the {thing} in {place} for {random.integers(2, 99)} people?"
        text = [new, new, new, shown[0], f"Please {shown[1].lower()}", "Hm.", "12 34 56 78", *self.held_out][
            random.integers(7 + len(self.held_out))
        ]
        return Sample(f" {text}", (1,), (-1.0,), "length" if random.random() < 0.1 else "stop", seed)


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.chdir(tmp_path)
    held_out = [f"What is the oldest tree number {i} in the park?" for i in range(5)]
    examples = [f"Tell me something nice about the planet number {i} please" for i in range(40)]
    Path("test.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in held_out))
    both = [*examples, held_out[0]]
    Path("people.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "prompt": t}) + "\n" for i, t in enumerate(both))
    )
    found = Writer(held_out)
    monkeypatch.setattr(model_prompts, "open_in_run", lambda *_: found)
    return found


def config(out: str = "run", **options: Any) -> WritePrompts:
    files = {"examples": ["people.jsonl"], "exclude": ["test.jsonl"]}
    return WritePrompts(model="writer", out=Path(out), **{"n": 200, **files, **QUICK, **options})


def kept(out: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "prompts.jsonl").read_text().splitlines()]


def test_200_prompts_without_duplicates_or_overlap(writer: Writer):
    """§19 row 13: checked here by brute force, not by the numbers of the run."""
    run = write_prompts(config())
    rows, held_out = kept(), [json.loads(line)["prompt"] for line in Path("test.jsonl").read_text().splitlines()]
    assert len(rows) == 200 and len({key_of(r["prompt"]) for r in rows}) == 200
    near = Near(held_out)
    assert all(near.likeness(r["prompt"]) < 0.5 for r in rows), "nothing like a held-out prompt"
    for i, row in enumerate(rows):
        assert Near(r["prompt"] for r in rows[:i]).likeness(row["prompt"]) < 0.5
        assert 3 <= len(row["prompt"].split()) <= 60
    numbers = run.summary()["numbers"]  # type: ignore[union-attr]
    assert numbers["prompts"]["value"] == 200
    assert numbers["exact_duplicates"]["value"] == numbers["overlap"]["value"] == 0
    assert all(numbers[f"left_out/{why}"]["value"] > 0 for why in ("unfinished", "length", "held_out", "no_words"))


def test_ten_examples_that_are_not_held_out_are_shown_in_each_call(writer: Writer):
    write_prompts(config())
    shown = [[part.strip() for part in prompt.split(HUMAN)[1:-1]] for prompt in writer.asked]
    assert {len(some) for some in shown} == {10} and all(len(set(some)) == 10 for some in shown)
    assert len({tuple(some) for some in shown}) > len(shown) / 2, "drawn anew for each call"
    assert not {text for some in shown for text in some} & set(writer.held_out)


def test_every_prompt_says_where_it_comes_from(writer: Writer):
    write_prompts(config(n=20))
    people = {row.id for row in load_prompt_rows("people.jsonl")}
    for row in kept():
        assert row["model"] == "writer" and row["source"] == "model-written" and isinstance(row["seed"], int)
        assert len(row["examples"]) == 10 and set(row["examples"]) <= people
    prompts = load_prompt_rows("run/prompts.jsonl")
    assert [p.dialogue.last.text for p in prompts] == [row["prompt"] for row in kept()], (
        "rlhf train --prompts reads them"
    )
    first = kept()[0]["examples"][0]
    assert [row.id for row, _ in leaks(prompts, {first})] == [r["id"] for r in kept() if first in r["examples"]]


def test_examples_of_a_call_are_of_one_kind(writer: Writer):
    run = write_prompts(config(examples=["helpful", "red-team"], n=40))
    assert run.done  # type: ignore[union-attr]
    for row in kept():
        assert all(name.startswith("red-") == (row["kind"] == "harmless") for name in row["examples"])
    assert {row["kind"] for row in kept()} == {"helpful", "harmless"}


def test_a_killed_job_asks_only_for_what_is_missing(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    write_prompts(config("whole"))
    asked, plain = len(writer.asked), Writer.sample
    writer.asked.clear()

    def dying(self: Writer, prompts: Any, **options: Any) -> Any:
        if len(self.asked) >= 2 * model_prompts.CHUNK:
            raise KeyboardInterrupt
        return plain(self, prompts, **options)

    monkeypatch.setattr(Writer, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        write_prompts(config("killed"))
    monkeypatch.setattr(Writer, "sample", plain)
    write_prompts(config("killed"))
    assert len(writer.asked) == asked and kept("killed") == kept("whole")


def test_a_model_that_repeats_itself_ends_the_job(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    same = Sample("What is the capital of that country?", (1,), (-1.0,), "stop", 0)
    monkeypatch.setattr(Writer, "reply", lambda *_: same)
    run = write_prompts(config(n=30, calls_per_prompt=3))
    summary = run.summary()  # type: ignore[union-attr]
    assert len(kept()) == 1 and "Only 1 of 30 prompts after 90 calls" in " ".join(summary["notes"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" What is rain?\n\nHuman: And snow?", "What is rain?"),
        ('3. "Name a bird."', "Name a bird."),
        ("- Write a list:\n1. eggs", "Write a list:\n1. eggs"),
        ("3.5 litres is how many pints?", "3.5 litres is how many pints?"),
        ("", ""),
    ],
)
def test_one_query_is_parsed(text: str, wanted: str):
    assert parse(text) == wanted


def test_what_is_not_kept_is_counted_by_reason(writer: Writer):
    people = load_prompt_rows("people.jsonl")
    sieve = Sieve(config(), Examples(people[:-1], people[-1:], 10, 0))
    said = [
        ("Where do birds sleep at night?", "stop", ""),
        ("where do birds sleep, at night", "stop", "duplicate"),
        ("Where do all birds sleep at night in winter?", "stop", ""),
        ("Where do birds sleep at night", "length", "unfinished"),
        ("Hello there", "stop", "length"),
        ("12 34 56", "stop", "no words"),
        ("Tell me: Human: what is this", "stop", "no words"),
        (people[-1].dialogue.last.text.upper(), "stop", "held out"),
        (people[0].dialogue.last.text + " now", "stop", "like an example"),
    ]
    for text, finish, why in said:
        assert sieve.keep(text, finish) == (why == ""), text
    assert sieve.left_out == {w: [x[2] for x in said].count(w) for w in {x[2] for x in said} - {""}}


def test_options_that_mean_nothing_are_refused(writer: Writer):
    for wrong, said in (
        ({"n": 0}, "n is 0"),
        ({"likeness": 0.0}, "likeness is 0"),
        ({"temperature": 0.0}, "again and again"),
        ({"max_words": 2}, "max_words is 2; expected 3"),
        ({"shots": 50}, "--shots 50.*there are 40"),
    ):
        with pytest.raises(ValueError, match=said):
            write_prompts(config(**wrong))
    assert not Path("run").exists()
