"""Dialogue pairs as long as those of the HH data, made of the packaged prompts, conversations and facts. By seed.

Only lengths matter for speed, so lengths follow quantiles measured on 1,600 of the released HH pairs, 400 of each of
four files, in SmolLM2's chat format (dialogues: median 223 tokens, mean 268), and the words are ours: a fresh clone has
no HH data. Dialogues above 1,024 tokens (1 in 100) are left out, because RewardTrainer drops them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from truing.data.asking import ask
from truing.data.facts import trivia
from truing.data.prompts import helpful_prompts, hhh_dialogues
from truing.text import encode
from truing.types import Comparison, Dialogue

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
PROMPT_TOKENS = (31, 40, 50, 146, 251, 397, 496, 680, 720)
"""Tokens of a prompt (all but the last reply) at ``SHARES`` of the pairs."""
REPLY_TOKENS = (2, 12, 26, 56, 110, 181, 239, 265, 300)
"""Tokens of a last reply."""
NOISE = 0.5
"""Spread that makes the lengths of chosen and rejected replies correlate by about a half, as in HH."""
EXCHANGE_TOKENS = 100
"""A human turn and its reply in a prompt, about."""


def hh_like(tokenizer: Any, count: int, seed: int) -> list[Comparison]:
    """``count`` pairs that share all but their last replies; no prompt stands twice.

    Lengths are spread evenly over the quantiles, so that few pairs have the same distribution as many.
    """
    rng = random.Random(seed)
    questions = [prompt.text for prompt in helpful_prompts()]
    words, asked = _words(tokenizer, seed), itertools.cycle(rng.sample(questions, len(questions)))
    prompts, chosen_lengths = (_spread(knots, count, rng) for knots in (PROMPT_TOKENS, REPLY_TOKENS))
    plans = zip(prompts, chosen_lengths, _alike(chosen_lengths, rng), strict=True)
    out = []
    for prompt_tokens, *reply_tokens in plans:
        prompt = _prompt(prompt_tokens, tokenizer, words, asked)
        chosen, rejected = (_text(n, tokenizer, words) for n in reply_tokens)
        out.append(Comparison(prompt, chosen, rejected))
    return out


def _prompt(tokens: int, tokenizer: Any, words: Iterator[int], asked: Iterator[str]) -> Dialogue:
    """Exchanges and a last question that have about so many tokens together."""
    exchanges = max(0, round(tokens / EXCHANGE_TOKENS) - 1)
    questions = [next(asked) for _ in range(exchanges + 1)]
    bare = Dialogue()
    for question in questions[:-1]:
        bare = bare.ask(question).reply("Yes.")
    missing = tokens - len(encode(bare.ask(questions[-1]), tokenizer, "chat"))
    dialogue = Dialogue()
    for question in questions[:-1]:
        dialogue = dialogue.ask(question).reply(_text(max(2, missing // exchanges), tokenizer, words))
    if not exchanges and missing > 0:
        questions[-1] += " " + _text(missing, tokenizer, words)
    return dialogue.ask(questions[-1])


def _text(tokens: int, tokenizer: Any, words: Iterator[int]) -> str:
    """The next so many tokens of our words."""
    return tokenizer.decode(list(itertools.islice(words, max(1, tokens)))).strip() or "Yes."


def _words(tokenizer: Any, seed: int) -> Iterator[int]:
    """Token ids of facts and of the replies in our conversations, without end."""
    for again in itertools.count():
        parts = [f"{ask(q.question)} {q.answers[0]}." for q in trivia(seed + again)]
        parts += [turn.text for talk in hhh_dialogues() for turn in talk.turns if turn.role == "assistant"]
        joined = " ".join(random.Random(seed + again).sample(parts, len(parts)))
        yield from tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]


def _spread(knots: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """``count`` lengths at evenly spaced shares of the line through the quantiles, shuffled."""
    out = []
    for i in range(count):
        share = (i + 0.5) / count
        place = next(j for j in range(1, len(SHARES)) if share <= SHARES[j])
        part = (share - SHARES[place - 1]) / (SHARES[place] - SHARES[place - 1])
        out.append(round(knots[place - 1] + part * (knots[place] - knots[place - 1])))
    return rng.sample(out, count)


def _alike(lengths: list[int], rng: random.Random) -> list[int]:
    """The same lengths in an order that correlates with the one they stand in."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    noisy = {i: rank / len(lengths) + rng.gauss(0, NOISE) for rank, i in enumerate(order)}
    out = [0] * len(lengths)
    for length, i in zip(sorted(lengths), sorted(noisy, key=noisy.__getitem__), strict=True):
        out[i] = length
    return out
