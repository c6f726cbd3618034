"""The jobs: questions with options behind a few-shot prompt, unrelated texts, prompts of mixed lengths. By seed."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

from truing.data.asking import SEPARATOR, ask, lettered
from truing.data.facts import choice_questions, trivia
from truing.data.prompts import helpful_prompts, hhh_dialogues
from truing.text import encode
from truing.types import Dialogue, Question

LETTERS = (" A", " B", " C", " D")
OPTION_TOKENS = 8
QUESTION_TOKENS = 72
"""A question with its notes is a little shorter than this: as long as those of common multiple-choice sets."""


def count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def multiple_choice(
    tokenizer: Any, count: int, shot_tokens: int, letters: bool, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Rows ``{"context", "options"}``, four options each, and the tokens of the solved examples before every question.

    ``letters``: options are listed in the question and answered by one token; otherwise each has eight tokens.
    Notes of other facts before a question bring it to about ``QUESTION_TOKENS``. Solved examples are added until one
    more would pass ``shot_tokens``.
    """
    rng = random.Random(seed)
    phrase, facts = phrases(tokenizer, rng), trivia(seed)
    pool = choice_questions(count + 200, seed)
    asked: list[tuple[str, tuple[str, ...], str]] = []
    solved: list[tuple[str, str]] = []
    for question in pool:
        options = LETTERS if letters else tuple(phrase() for _ in LETTERS)
        plain = lettered(question.question, question.choices) if letters else ask(question.question)
        text = with_notes(plain, tokenizer, facts, rng)
        asked.append((text, options, options[question.answer or 0]))
    for shown, _, right in asked[count:]:
        if count_tokens(tokenizer, behind([*solved, (shown, right)], "")) > shot_tokens:
            break
        solved.append((shown, right))
    rows = [{"context": behind(solved, text), "options": list(options)} for text, options, _ in asked[:count]]
    wanted = 1 if letters else OPTION_TOKENS
    for row in rows:
        context = str(row["context"])
        known = count_tokens(tokenizer, context)
        sizes = {count_tokens(tokenizer, context + option) - known for option in row["options"]}
        if sizes != {wanted}:
            raise ValueError(f"an option has {sizes} tokens with this tokenizer; the bench needs {wanted}")
    return rows, count_tokens(tokenizer, behind(solved, ""))


def behind(solved: list[tuple[str, str]], text: str) -> str:
    """A text behind solved examples."""
    return "".join(f"{asked}{answer}{SEPARATOR}" for asked, answer in solved) + text


def with_notes(text: str, tokenizer: Any, facts: list[Question], rng: random.Random) -> str:
    """The text behind as many random facts as bring it nearest to ``QUESTION_TOKENS`` from below."""
    notes = ""
    while True:
        fact = rng.choice(facts)
        more = f"{notes} {fact.question} {fact.answers[0]}."
        if count_tokens(tokenizer, f"Notes:{more}\n{text}") > QUESTION_TOKENS:
            return f"Notes:{notes}\n{text}" if notes else text
        notes = more


def phrases(tokenizer: Any, rng: random.Random) -> Any:
    """A function that gives another phrase of eight common words, each one token, at every call."""
    text = " ".join(" ".join(turn.text for turn in d.turns) for d in hhh_dialogues())
    words = sorted({w for w in re.findall(r"(?<= )[a-z]{3,9}(?= )", text) if count_tokens(tokenizer, f" {w}") == 1})
    return lambda: "".join(f" {word}" for word in rng.sample(words, OPTION_TOKENS))


def texts(tokenizer: Any, count: int, tokens: int, seed: int) -> list[list[int]]:
    """``count`` unrelated texts of exactly ``tokens`` token ids each."""
    out: list[list[int]] = []
    for again in itertools.count():
        facts = trivia(seed + again)
        joined = SEPARATOR.join(f"{ask(q.question)} {q.answers[0]}" for q in facts)
        ids = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
        out += [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)]
        if len(out) >= count:
            return out[:count]
    raise AssertionError


def mixed_prompts(tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """Token ids of ``count`` different requests in the model's own format, after 0 to 2 earlier turns of talk each."""
    rng = random.Random(seed)
    asked = [prompt.text for prompt in helpful_prompts()]
    replies = [turn.text for talk in hhh_dialogues() for turn in talk.turns if turn.role != "human"]
    out = []
    for i, text in enumerate(rng.sample(asked, count)):
        dialogue = Dialogue()
        for _ in range(i % 3):
            dialogue = dialogue.ask(rng.choice(asked)).reply(rng.choice(replies))
        out.append(encode(dialogue.ask(text), tokenizer, "chat"))
    return out


def sentence_ends(tokenizer: Any) -> list[int]:
    """Ids of all tokens whose text ends a sentence or a line."""
    texts_of = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts_of) if "\n" in text or text.rstrip().endswith((".", "!", "?"))]
