"""What OpenAI-compatible servers answer, read with care: tokens and log-probabilities, or None where there are none.

Servers leave out fields they do not know and still say 200, so everything is looked for and nothing is assumed. Two
shapes are read: ``logprobs.content`` (chat; llama.cpp also for completions) and ``logprobs.tokens`` (completions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from truing.text import cut_at_stop
from truing.types import Finish

Token = tuple[str, float | None]
"""A token's text and its log-probability in nats (None for the first of a prompt)."""
BROKEN = "\ufffd"
"""Stands in a token's text for bytes that are no whole character."""


class Spans(ValueError):
    """No place divides a prompt's tokens into context and continuation."""


def choices_of(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The choices of an answer. Raises ValueError if it has none."""
    found = answer.get("choices")
    if not isinstance(found, list) or not found or not all(isinstance(c, dict) for c in found):
        raise ValueError(f"A server's answer has no 'choices' (it has {', '.join(answer) or 'nothing'}).")
    return found


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a completion or of a chat reply. Raises ValueError if there is neither."""
    said = choice["message"] if isinstance(choice.get("message"), dict) else choice
    for name in ("content", "text"):
        if name in said and (said[name] is None or isinstance(said[name], str)):
            return said[name] or ""
    raise ValueError(f"A server's choice has neither text nor a message (it has {', '.join(choice) or 'nothing'}).")


def finish_of(choice: Mapping[str, Any]) -> Finish:
    """``length`` if cut at ``max_tokens``, ``filtered`` if the server's filter withheld or cut it, else ``stop``."""
    reason = choice.get("finish_reason")
    return "filtered" if reason == "content_filter" else "length" if reason == "length" else "stop"


def drawn_tokens(choice: Mapping[str, Any]) -> list[tuple[bytes, float]] | None:
    """Bytes and log-probability of every drawn token; None if the server did not give them all."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("content"), list):
        pairs = [(_bytes(e), _number(e.get("logprob"))) for e in found["content"] if isinstance(e, dict)]
    elif isinstance(found.get("tokens"), list) and isinstance(found.get("token_logprobs"), list):
        pairs = [(str(t).encode(), _number(v)) for t, v in zip(found["tokens"], found["token_logprobs"], strict=False)]
    else:
        return None
    known = [(token, value) for token, value in pairs if value is not None]
    return known if len(known) == len(pairs) and (known or not text_of(choice)) else None


def kept_tokens(tokens: Sequence[tuple[bytes, float]], stops: Sequence[str], stops_after: Sequence[str]) -> int | None:
    """How many tokens were drawn until the first stop string was whole; None if their texts hold none."""
    said = b""
    for count, (token, _) in enumerate(tokens, 1):
        said += token
        if cut_at_stop(said.decode(errors="ignore"), stops, stops_after)[1]:
            return count
    return None


def likeliest(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Log-probabilities (nats) of the likeliest first tokens by their text; None if the server gave none."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return None
    first: Any = (found.get("content") or found.get("top_logprobs") or [None])[0]
    if isinstance(found.get("content"), list) and isinstance(first, dict):
        listed = first.get("top_logprobs") or []
        rows = [(e.get("token"), e.get("logprob")) for e in listed if isinstance(e, dict)]
    else:
        rows = list(first.items()) if isinstance(first, dict) else []
    out: dict[str, float] = {}
    for token, given in rows:  # two tokens may read alike: the first is the likelier
        if (value := _number(given)) is not None:
            out.setdefault(str(token), value)
    return out or None


def echoed(answer: Mapping[str, Any], text: str) -> list[Token] | None:
    """The tokens of a prompt sent with ``echo`` and ``logprobs``, what was drawn after it left off; None if not given.

    The prompt's end is where the tokens' texts make it up; where those are broken characters, the server's count.
    """
    choice = choices_of(answer)[0]
    found = choice.get("logprobs")
    if not isinstance(found, dict) or text not in text_of(choice):
        return None
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    usage = answer.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    for size in (len(tokens) - 1, len(tokens)):
        whole = "".join(map(str, tokens[:size]))
        if whole.endswith(text) or (BROKEN in whole and size == counted):
            return _whole([(str(t), _number(v)) for t, v in zip(tokens[:size], values[:size], strict=True)])
    return None


def prompt_tokens(answer: Mapping[str, Any]) -> list[Token] | None:
    """vLLM's ``prompt_logprobs`` (of the choice, or in chats of the answer); None if not given."""
    rows = choices_of(answer)[0].get("prompt_logprobs") or answer.get("prompt_logprobs")
    if not isinstance(rows, list):
        return None
    out: list[Token] = []
    for row in rows:
        entries = list(row.values()) if isinstance(row, dict) else []
        if len(entries) > 1 or (entries and not isinstance(entries[0], dict)):
            return None  # more than was asked for: which is the prompt's own cannot be told
        entry = entries[0] if entries else {}
        out.append((str(entry.get("decoded_token") or ""), _number(entry.get("logprob"))))
    return _whole(out)


def prompt_ids(answer: Mapping[str, Any]) -> list[int] | None:
    """The ids of a prompt's tokens (vLLM's ``return_token_ids``); None if not given."""
    found = choices_of(answer)[0].get("prompt_token_ids") or answer.get("prompt_token_ids")
    good = isinstance(found, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in found)
    return found or None if good else None


def echoed_ids(answer: Mapping[str, Any], count: int) -> list[Token] | None:
    """The ``count`` tokens of a prompt of ids sent with ``echo``, without what was drawn; None if not given."""
    found = choices_of(answer)[0].get("logprobs")
    tokens, values = (found.get("tokens"), found.get("token_logprobs")) if isinstance(found, dict) else (None, None)
    if not isinstance(tokens, list) or not isinstance(values, list) or not len(tokens) == len(values) >= count:
        return None
    return _whole([(str(t), _number(v)) for t, v in zip(tokens[:count], values[:count], strict=True)])


def start_of(tokens: Sequence[Token], context: str, continuation: str) -> int | None:
    """The place of the first token of the continuation. Raises Spans if a token spans the join.

    Looked for from both ends, because texts of tokens that are parts of characters do not add up; None if there are
    such tokens on both sides.
    """
    if not context:
        return 0
    texts = [text for text, _ in tokens]
    whole = "".join(texts)
    for first in (0, 1):  # a BOS may have a text
        head = ""
        for place in range(first, len(texts)):
            rest = "".join(texts[place:]) if head == context else ""
            if rest and (rest == continuation or BROKEN in rest):
                return place
            if len(head) > len(context):
                break
            head += texts[place]
    tail = ends_with(tokens, continuation)
    if tail is not None and (BROKEN in whole or whole.endswith(context + continuation) or not texts[0]):
        return tail
    if BROKEN in whole:
        return None
    raise Spans(f"A token spans the join of {context[-20:]!r} and {continuation[:20]!r}.")


def ends_with(tokens: Sequence[Token], text: str) -> int | None:
    """The place from which the last tokens make up ``text`` exactly; None if none does."""
    tail = ""
    for place in range(len(tokens) - 1, -1, -1):
        tail = tokens[place][0] + tail
        if tail == text:
            while place > 1 and tokens[place - 1][0] == "":  # the first bytes of a character that ends later
                place -= 1
            return place
    return None


def _whole(tokens: list[Token]) -> list[Token] | None:
    """The tokens if all but the first have a log-probability."""
    return tokens if tokens and all(value is not None for _, value in tokens[1:]) else None


def _bytes(entry: Mapping[str, Any]) -> bytes:
    given = entry.get("bytes")
    if isinstance(given, list) and all(isinstance(b, int) and 0 <= b < 256 for b in given):
        return bytes(given)
    return str(entry.get("token", "")).encode()


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
