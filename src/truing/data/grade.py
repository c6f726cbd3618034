"""Is this answer right? By alias, by number, by option; every rule in words at the function that applies it.

Graders see what a model wrote after the question. It is cut first (``short_answer``), because models run on into
the next question (2207.05221).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from truing.types import Question

_LEADS = re.compile(
    r"^\s*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?answer(?:\s+is)?\s*:?|a\s*:|it\s+is|it's|that\s+is|that's|they\s+are)\s+",
    re.IGNORECASE,
)
_NEXT = re.compile(r"(?:^|\n)\s*(?:question|q|human|user)\s*:", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])[-−–+]?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d])|(?<![\w.,])[-−–+]?\.\d+")
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {w: i for i, w in enumerate(_UNITS)} | {w: 10 * (i + 2) for i, w in enumerate(_TENS)}
_WORD_NUMBER = re.compile(
    rf"\b(?:(minus|negative)\s+)?(?:({'|'.join(_TENS)})[\s-]({'|'.join(_UNITS[1:10])})|({'|'.join(_WORDS)}))\b(?!\s*-?\s*(?:hundred|thousand|million|billion))",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"^\W{0,3}\(?([A-Z])\)?(?=[\s.:,;)*]|$)")
_CHOICE_LATER = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?|\(([A-Z])\)", re.IGNORECASE)

_SPELT_OUT = str.maketrans(dict(zip("øłđıæœþ", ("o", "l", "d", "i", "ae", "oe", "th"), strict=True)))

_HEDGED = re.compile(r"\b(?:not|no|never|neither|or)\b|n['’]t\b", re.IGNORECASE)
_BEFORE = r"(?:is|are|was|were|be|called|named|in|on|by|to)"
_AFTER = r"(?:is|are|was|were|in|on|of|which|who|where|because|as|since|for|but|from)"

CONTAIN_WORDS = 12
"""An answer longer than this many words is not searched for aliases."""


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """Lower case without diacritics, punctuation, articles and doubled spaces (TriviaQA's rule, and diacritics).

    Letters without a decomposition are spelt out (ø → o, ß → ss); hyphens and underscores become spaces,
    apostrophes and full stops vanish.

    >>> normalise("The  Côte-d’Ivoire!"), normalise("U.S.A.")
    ('cote divoire', 'usa')
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = text.translate(_SPELT_OUT)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"['’‘ʻʼ`´.]", "", text)
    text = "".join(c if c.isalnum() else " " for c in text)
    words = text.split()
    kept = [w for w in words if w not in ("a", "an", "the")]
    return " ".join(kept or words)


def short_answer(text: str) -> str:
    """The first non-empty line, before a next ``Question:`` or turn, without lead-ins such as ``The answer is``.

    >>> short_answer(" Answer: Paris\\nQuestion: What is")
    'Paris'
    """
    line = next((part.strip() for part in _cut(text).splitlines() if part.strip()), "")
    while (lead := _LEADS.match(line)) is not None:
        line = line[lead.end() :]
    return line.strip()


def _cut(text: str) -> str:
    """What stands before the next question or turn."""
    following = _NEXT.search(text)
    return text[: following.start()] if following else text


def grade(question: Question, text: str) -> bool:
    """Whether ``text`` answers ``question`` rightly, by ``question.kind``; raises ValueError on one it cannot grade.

    ``code`` needs a sandbox and is graded elsewhere.
    """
    if question.kind == "choice":
        return grade_choice(question, text)
    if not question.answers:
        raise ValueError(f"question {question.id or question.question!r} has no answers to compare with")
    if question.kind == "number":
        return grade_number(text, question.answers)
    if question.kind == "exact":
        return grade_alias(text, question.answers)
    raise ValueError(f"a question of kind {question.kind!r} cannot be graded by comparing text")


def grade_alias(text: str, answers: tuple[str, ...]) -> bool:
    """Right if the short answer, or its part before the first ``. , ; (``, equals an alias after ``normalise``.

    Otherwise by containment, in a first sentence of at most ``CONTAIN_WORDS`` words that denies nothing (``not``,
    ``n't``) and offers no second answer (``or``): an alias of at least 4 characters must stand as whole words, at
    the beginning or after a word such as ``is`` or ``called``, and before a word such as ``which`` or ``in``, a
    comma or the end (so ``Papua New Guinea`` is not ``Guinea``); a shorter alias (``Au``) must end the sentence in
    the same case.
    """
    line = short_answer(text)
    wanted = {normalise(a) for a in answers} - {""}
    head = re.split(r"[.,;(](?:\s|$)|\(", line, maxsplit=1)[0]
    if normalise(line) in wanted or normalise(head) in wanted:
        return True
    sentence = re.split(r"(?<=\w{3}[.!?])\s|;", line, maxsplit=1)[0]
    if len(sentence.split()) > CONTAIN_WORDS or _HEDGED.search(sentence):
        return False
    parts = [normalise(part) for part in re.split(r"[,:]\s", sentence)]
    if any(_holds(part, w) for part in parts[:2] for w in wanted if len(w) >= 4):
        return True
    last = re.findall(r"[\w+]+", sentence)[-1:]
    return any(len(normalise(a)) < 4 and last == [a] for a in answers)


def _holds(words: str, alias: str) -> bool:
    pattern = rf"(?:\b{_BEFORE}\s+){re.escape(alias)}(?:$|\s+{_AFTER}\b)|^{re.escape(alias)}\s+{_AFTER}\b"
    return re.search(pattern, words) is not None


def numbers_in(text: str) -> list[float]:
    """Numbers in order: digits with thousands separators, signs and currency marks, or words up to ninety-nine.

    >>> numbers_in("-1,234.5 and forty-two, costs $7.")
    [-1234.5, 42.0, 7.0]
    """
    found: list[tuple[int, float]] = []
    for m in _NUMBER.finditer(text):
        digits = re.sub(r"[,$€£\s+]", "", m[0]).replace("−", "-").replace("–", "-")
        found.append((m.start(), float(digits)))
    for m in _WORD_NUMBER.finditer(text):
        value = _WORDS[m[2].lower()] + _WORDS[m[3].lower()] if m[2] else _WORDS[m[4].lower()]
        found.append((m.start(), float(-value if m[1] else value)))
    return [value for _, value in sorted(found)]


def grade_number(text: str, answers: tuple[str, ...]) -> bool:
    """Right if the number answered equals an accepted one (difference below 1e-6).

    The number answered is the one after ``####`` if there is one. Else, in the short answer: a number that it begins
    with, if ``. , ; )``, ``because`` or the end follows; else the first number after its last ``=``, ``is`` or
    ``are``; else the last number if the line repeats the sum (``plus``, ``+`` … between numbers), else the first.
    """
    accepted = [n[0] for a in answers if (n := numbers_in(a))]
    value = answered_number(text)
    return value is not None and any(abs(value - a) < 1e-6 for a in accepted)


def answered_number(text: str) -> float | None:
    """The number that counts as the answer by ``grade_number``'s rule; None if there is none."""
    marked = re.search(r"####\s*([^\n]+)", _cut(text))
    line = marked[1] if marked else short_answer(text)
    begins = re.match(r"[-−–+]?[$€£]?[\w,.-]*\w(?=[.,;)!]?(?:\s+because\b|[,;)]|$))", line)
    if begins and len(found := numbers_in(begins[0])) == 1:
        return found[0]
    after = re.split(r"=|\b(?:is|are|equals|makes|gives)\b", line)[-1]
    if after != line and (found := numbers_in(after)):
        return found[0]
    found = numbers_in(line)
    if not found:
        return None
    repeats = re.search(r"\d\s*(?:[-+*/×x÷−]|plus|minus|times|divided by|multiplied by)\s*\d", line)
    return found[-1] if repeats and len(found) > 2 else found[0]


def grade_choice(question: Question, text: str) -> bool:
    """Right if the option named is the right one: by letter (``(B)``, ``B.``, ``Answer: B``) or by its full text.

    A letter at the start wins; then a single option whose normalised text equals the short answer, then
    ``answer is B`` or ``(B)`` later on, then the only option whose text the answer contains. Two are none.
    """
    return question.answer is not None and chosen_option(text, question.choices) == question.answer


def chosen_option(text: str, choices: tuple[str, ...]) -> int | None:
    """The index of the option that ``text`` names by ``grade_choice``'s rule; None if none or several."""
    line = short_answer(text)
    words = normalise(line)
    options = [normalise(c) for c in choices]
    equal = [i for i, option in enumerate(options) if option == words]
    if len(equal) == 1:
        return equal[0]
    if re.match(r"^\W*[A-Z]\W*\s(?:or|and)\b", line):
        return None
    start = _CHOICE.match(line)
    if start and _index(start[1]) < len(choices) and not re.match(r"^\W*[AI]\s+[a-z]", line):
        return _index(start[1])
    letters = {_index((m[1] or m[2]).upper()) for m in _CHOICE_LATER.finditer(line)}
    letters = {i for i in letters if i < len(choices)}
    if letters:
        return letters.pop() if len(letters) == 1 else None
    held = [i for i, option in enumerate(options) if option and re.search(rf"\b{re.escape(option)}\b", words)]
    return held[0] if len(held) == 1 else None


def _index(letter: str) -> int:
    return ord(letter.upper()) - ord("A")
