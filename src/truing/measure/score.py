"""``truing score`` and ``truing sample``: one row out for each row in, in order, under its ``id`` or line number.

Rows go to ``rows.jsonl`` in the run, whole or not at all; the command line prints them from there. A killed command
goes on with the rows that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Sampling, Scoring
from truing.data.comparisons import prompt_of, read_pair
from truing.data.files import DataError, Row, read_rows
from truing.data.prompts import PACKAGED, packaged_rows
from truing.measure.labels import in_chunks
from truing.measure.picking import answer, count, sample_numbers, shown
from truing.measure.reply_logprobs import is_language_model, pair_numbers, pair_rows, too_long
from truing.measure.serving import equal_replies, open_in_run, server_notes
from truing.models.compute import choose
from truing.models.draw import check_settings
from truing.models.heads import PreferenceModel
from truing.models.lm import LM, show_prompt
from truing.models.load import is_remote
from truing.models.remote import AnyLM, savings
from truing.runs import Run, atomic_write
from truing.runs.atomic import as_lines, finite
from truing.train.cost import reading, sampling, timed
from truing.train.progress import counting
from truing.types import Dialogue, Sample

TEXT, PAIR, COMPARISON, DIALOGUE = "text", "context and continuation", "chosen and rejected", "dialogue"
EXPECTED = (
    "expected 'text', or 'context' and 'continuation' (scored by a language model), or 'chosen' and 'rejected', or "
    "'dialogue' (scored by a preference model)"
)
ROWS = "rows.jsonl"
KEPT = "rows-so-far.jsonl"
"""Rows of the chunks that are done, so that a killed run computes only the rest."""
CHUNK = 1024
"""Rows scored or replies drawn between two savings."""


def kind_of(row: Mapping[str, Any], file: object, line: int) -> str:
    """Which of the four kinds a row to score is. Raises DataError for a row that is none."""
    if "chosen" in row and "rejected" in row:
        return COMPARISON
    if "dialogue" in row:
        return DIALOGUE
    if "context" in row and "continuation" in row:
        return PAIR
    if "text" in row:
        return TEXT
    raise DataError(file, f"has the fields {', '.join(row) or 'none'}; {EXPECTED}.", line=line)


def read_inputs(path: str | Path, kinds: Callable[[Mapping[str, Any], object, int], str]) -> tuple[str, list[Row]]:
    """The rows of a file that all have one kind, and that kind. Raises DataError for a mixture or an empty file."""
    rows: list[Row] = []
    kind = ""
    for line, row in read_rows(path):
        found = kinds(row, path, line)
        if kind and found != kind:
            raise DataError(path, f"this row has {found}, the rows before it have {kind}. Split the file.", line=line)
        kind = found
        rows.append((line, row))
    if not rows:
        raise DataError(path, f"has no rows; {EXPECTED}.")
    return kind, rows


def score(config: Scoring) -> Run | dict[str, Any]:
    """Score texts (nats) with a language model, or replies with a preference model, by what the rows hold.

    A language model gives rows ``{"id","logprob","num_tokens"}`` (``"boundary": true`` where a token spans the join
    of context and continuation, with ``logprob`` null if a server cannot tell it); a preference model
    ``{"id","chosen","rejected"}`` or ``{"id","score"}``, centred on its stored reference mean unless ``raw``. Of
    comparisons a language model gives the mean log-probability per token of both replies.
    """
    kind, rows = read_inputs(config.file, kind_of)
    items = [_item(kind, row, config.file, line) for line, row in rows]
    lines = [line for line, _ in rows]
    if config.dry_run:
        return {"lines": _expected_scoring(config, kind, items, lines)}
    run = Run.open(
        "score", config, data_files=[config.file], slug=f"{Path(config.file).stem}-{Path(config.model).name}"
    )
    if run.done:
        return run
    compute = run.compute(config)
    work, numbers_of, _ = _ways(config, compute, kind, items, lines, run)
    part = savings(config.model, CHUNK)
    out = in_chunks(run, KEPT, items, lambda chunk, _: work(chunk), label="Rows", max_time=config.max_time, **part)
    if len(out) < len(items):
        notes = [f"Stopped after {len(out)} of {len(items)} rows; the same command goes on."]
        run.stop({"rows": count(len(out))}, [*notes, *server_notes(run)])
        return run
    out = [{"id": row.get("id", line), **found} for (line, row), found in zip(rows, out, strict=True)]
    atomic_write(run.path / ROWS, as_lines(out))
    numbers, notes = numbers_of(out)
    run.finish(numbers, [*notes, *server_notes(run)])
    (run.path / KEPT).unlink()
    return run


def _item(kind: str, row: Mapping[str, Any], file: object, line: int) -> Any:
    if kind == COMPARISON:
        pair = read_pair(row, file, line)
        both = [side.prompt.reply(side.reply) for side in (pair.chosen, pair.rejected)]
        for name, dialogue in zip(("chosen", "rejected"), both, strict=True):
            _check_turns(dialogue, file, line, name)
        return both
    if kind == DIALOGUE:
        return [_dialogue(row["dialogue"], file, line)]
    names = ("text",) if kind == TEXT else ("context", "continuation")
    for name in names:
        if not isinstance(row[name], str):
            raise DataError(file, f"is {row[name]!r}; expected text", line=line, field=name)
    return row["text"] if kind == TEXT else (row["context"], row["continuation"])


def _dialogue(value: Any, file: object, line: int) -> Dialogue:
    try:
        dialogue = prompt_of(value)
    except ValueError as bad:
        raise DataError(file, str(bad), line=line, field="dialogue") from None
    if not len(dialogue) or dialogue.last.role != "assistant":
        problem = "does not end in an assistant's reply, which is what a preference model scores"
        raise DataError(file, problem, line=line, field="dialogue")
    _check_turns(dialogue, file, line, "dialogue")
    return dialogue


def _check_turns(dialogue: Dialogue, file: object, line: int, field: str) -> None:
    if not any(turn.role == "human" for turn in dialogue.turns):
        raise DataError(file, "has no human turn; a reply answers somebody", line=line, field=field)


Work = Callable[[Sequence[Any]], list[dict[str, Any]]]
Numbers = Callable[[Sequence[Mapping[str, Any]]], tuple[dict[str, Any], list[str]]]
Ways = tuple[Work, Numbers, Any]
"""How rows are scored, what numbers they make, and the model that reads and counts tokens."""


def _ways(
    config: Scoring, compute: Any, kind: str, items: Sequence[Any], lines: Sequence[int], run: Run | None = None
) -> Ways:
    if kind == COMPARISON and is_language_model(config.model):
        lm = LM.load(config.model, device=compute.device, dtype=compute.dtype)
        _refuse_long(too_long(lm, items), config.file, lines)
        return lambda some: pair_rows(lm, some), pair_numbers(items, config.seed), lm.engine
    if kind not in (TEXT, PAIR):
        return _with_pm(config, compute)
    any_lm = open_in_run(run, config, compute) if run else None
    any_lm = any_lm or LM.load(config.model, device=compute.device, dtype=compute.dtype)
    return _with_lm(any_lm, config, items, lines)


def _expected_scoring(config: Scoring, kind: str, items: Sequence[Any], lines: Sequence[int]) -> list[str]:
    """What it would take: tokens counted, time and memory measured on a part."""
    if is_remote(config.model) and kind in (TEXT, PAIR):
        tokens = sum(len("".join(item)) for item in items) // 4
        return [f"{len(items):,} rows, about {tokens:,} tokens at four characters each; the time is the server's."]
    compute = choose(config.device, config.dtype, config.threads)
    (work, numbers_of, reader), loading = timed(lambda: _ways(config, compute, kind, items, lines))
    cost = reading(reader, lambda start, stop: work(items[start:stop]), len(items), CHUNK)
    names = {COMPARISON: ("chosen", "rejected"), DIALOGUE: ("score",)}.get(kind, ("id", "logprob", "num_tokens"))
    _, numbers = timed(lambda: numbers_of([dict.fromkeys(names, 1 + i % 7) for i in range(len(items))]))
    return [f"{len(items):,} rows.", *(loading + cost + numbers).lines(compute)]


def _refuse_long(long: tuple[int, str] | None, file: str, lines: Sequence[int]) -> None:
    """Raise DataError for a row that does not fit into the model's window, before anything is computed."""
    if long:
        raise DataError(file, f"has {long[1]}. Shorten it or leave it out.", line=lines[long[0]])


def _with_lm(lm: AnyLM, config: Scoring, items: Sequence[Any], lines: Sequence[int]) -> Ways:
    _refuse_long(lm.too_long(items), config.file, lines)

    def work(items: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        found = [({"logprob": finite(s.logprob), "num_tokens": s.num_tokens}, s.boundary) for s in lm.score(items)]
        return [row | {"boundary": True} if spans else row for row, spans in found]

    def numbers_of(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        known = [row for row in rows if row["logprob"] is not None]
        unknown = [str(row["id"]) for row in rows if row["logprob"] is None]
        logprobs, tokens = (np.array([float(row[name]) for row in known]) for name in ("logprob", "num_tokens"))
        numbers: dict[str, Any] = {"rows": count(len(rows)), "tokens": count(int(tokens.sum()))}
        numbers["logprob"] = stats.mean_interval(logprobs, unit="nats", seed=config.seed)
        numbers["logprob_per_token"] = stats.bootstrap(
            lambda lp, n: float(lp.sum() / n.sum()) if n.sum() else None,
            [logprobs, tokens],
            seed=config.seed,
            unit="nats",
        )
        notes, spans, silent = [], sum("boundary" in row for row in known), int((tokens == 0).sum())
        if unknown:
            some = ", ".join(unknown[:20]) + (", …" if len(unknown) > 20 else "")
            notes.append(
                f"{len(unknown)} rows have no log-probability (null) and count in no number, because a token spans the "
                f"join of context and continuation and the server does not tokenise them apart: {some}."
            )
        if spans:
            notes.append(f"{spans} rows were tokenised in two parts, because a token spans the join (boundary: true).")
        if silent:
            notes.append(f"{silent} rows have no scored token: the first token counts only after a BOS.")
        return numbers, notes

    return work, numbers_of, getattr(lm, "engine", None)


def _with_pm(config: Scoring, compute: Any) -> Ways:
    pm = PreferenceModel.load(config.model, device=compute.device, dtype=compute.dtype)

    def work(items: Sequence[list[Dialogue]]) -> list[dict[str, Any]]:
        flat = [dialogue for item in items for dialogue in item]
        scores = pm.score(flat, centred=not config.raw, max_length=config.max_length).astype(float).tolist()
        if len(items[0]) == 1:
            return [{"score": s} for s in scores]
        return [{"chosen": c, "rejected": r} for c, r in zip(scores[0::2], scores[1::2], strict=True)]

    def numbers_of(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "id"}
        if "chosen" in columns:
            columns["gap"] = columns["chosen"] - columns["rejected"]
        means = {name: stats.mean_interval(values, seed=config.seed) for name, values in columns.items()}
        centred = f"Scores are centred: the reference mean {pm.reference_mean:.4g} is taken off."
        return {"rows": count(len(rows)), **means}, [] if config.raw else [centred]

    return work, numbers_of, pm


def sample(config: Sampling) -> Run | dict[str, Any]:
    """Draw ``n`` replies to every prompt: rows ``{"id","samples":[{"text","logprob","finish","seed"}]}``.

    With ``pm`` every sample carries its ``score``; with ``best`` or ``median`` one sample of a row is kept.
    ``file`` may name a packaged set of prompts. Raises DataError for rows without a prompt that a human ends,
    ValueError for ``best`` or ``median`` without ``pm``.
    """
    for picked in ("best", "median"):
        if getattr(config, picked) and not config.pm:
            raise ValueError(f"--{picked} keeps one reply by a preference model's scores: name one with --pm.")
    if config.best and config.median:
        raise ValueError("--best and --median keep one reply each: choose one of them.")
    settings = (config.n, config.max_new_tokens, config.temperature, config.top_p, config.top_k)
    check_settings(*settings, config.stop, config.stop_after, decode=str)
    own = config.file in PACKAGED and not Path(config.file).exists()
    rows = packaged_rows(config.file) if own else read_inputs(config.file, lambda row, file, line: "prompt")[1]
    prompts = [_prompt(row, config.file, line) for line, row in rows]
    if config.dry_run:
        return {"lines": _expected_sampling(config, prompts, [line for line, _ in rows])}
    slug = f"{Path(config.file).stem}-{Path(config.model).name}"
    run = Run.open("sample", config, data_files=[] if own else [config.file], slug=slug)
    if run.done:
        return run
    drawn = in_chunks(
        run,
        KEPT,
        prompts,
        _drawing(run, config, prompts, [line for line, _ in rows]),
        label=None,
        max_time=config.max_time,
        **savings(config.model, max(1, CHUNK // config.n)),
    )
    if len(drawn) < len(prompts):
        notes = [f"Stopped after {len(drawn)} of {len(prompts)} prompts; the same command goes on."]
        run.stop({"rows": count(len(drawn))}, [*notes, *server_notes(run)])
        return run
    out = [
        {"id": row.get("id", line), "samples": answer(kept["samples"], config)}
        for (line, row), kept in zip(rows, drawn, strict=True)
    ]
    atomic_write(run.path / ROWS, as_lines(out))
    run.write_samples([shown(p, o["samples"]) for p, o in zip(prompts, out, strict=True)])
    numbers, notes = sample_numbers(drawn, out, config)
    told = any(s["logprob"] is not None for row in drawn for s in row["samples"])
    if config.temperature:
        notes += equal_replies(run, ([s["text"] for s in row["samples"]] for row in drawn))
    cut = (config.temperature, config.top_p) if told else (1.0, 1.0)
    run.finish(numbers, [*notes, *server_notes(run, *cut)])
    (run.path / KEPT).unlink()
    return run


def _expected_sampling(config: Sampling, prompts: Sequence[Dialogue], lines: Sequence[int]) -> list[str]:
    """What it would take: prompts counted, time, memory and the length of replies measured on a part."""
    most = len(prompts) * config.n
    first = f"{len(prompts):,} prompts, {most:,} replies, at most {most * config.max_new_tokens:,} tokens."
    if is_remote(config.model):
        return [first, "The time is the server's."]
    compute = choose(config.device, config.dtype, config.threads)
    lm, cost = timed(lambda: LM.load(config.model, device=compute.device, dtype=compute.dtype))
    _refuse_long(lm.too_long(prompts), config.file, lines)
    settings = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "stop", "stop_after")}
    drawn: list[Dialogue] = []

    def draw(places: Sequence[int], n: int, most: int) -> list[list[Sample]]:
        found = lm.sample([prompts[i] for i in places], n, max_tokens=most, seed=config.seed, **settings)
        if most == config.max_new_tokens:  # to their end, not only begun
            drawn[:] = [prompts[i].reply(s.text) for i, samples in zip(places, found, strict=True) for s in samples]
        return found

    sizes = [len(lm.encode_prompt(prompt)) for prompt in prompts]
    cost += sampling(lm.engine, draw, sizes, config.n, config.max_new_tokens, max(1, CHUNK // config.n))
    if not config.pm:
        return [first, *cost.lines(compute)]
    pm, loading = timed(lambda: PreferenceModel.load(str(config.pm), device=compute.device, dtype=compute.dtype))
    _, scoring = timed(lambda: pm.score(drawn), pm)
    return [first, *(cost + loading + scoring * (most / max(1, len(drawn)))).lines(compute)]


def _drawing(
    run: Run, config: Sampling, prompts: Sequence[Dialogue], lines: Sequence[int]
) -> Callable[[Sequence[Dialogue], int], Any]:
    """A function that draws (and scores) the replies to some of the prompts, given the place of the first."""
    compute = run.compute(config)
    lm = open_in_run(run, config, compute)
    pm = PreferenceModel.load(config.pm, device=compute.device, dtype=compute.dtype) if config.pm else None
    _refuse_long(lm.too_long(prompts), config.file, lines)
    show_prompt(lm, prompts[0])
    seeds = lm.seeds(prompts, config.n, config.seed)
    tell: Callable[[int, int], None] | None = None

    def draw(some: Sequence[Dialogue], place: int) -> list[dict[str, Any]]:
        nonlocal tell
        before = config.n * place
        said = tell = tell or counting("Replies", start=before)

        def progress(done: int, _: int) -> None:
            said(before + done, config.n * len(prompts))

        drawn = lm.sample(
            some,
            n=config.n,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop=config.stop,
            stop_after=config.stop_after,
            seed=seeds[place : place + len(some)],
            progress=progress,
        )
        rows = [
            {"text": s.text, "logprob": s.logprob, "finish": s.finish, "seed": s.seed, "tokens": s.num_tokens}
            for samples in drawn
            for s in samples
        ]
        if pm is not None:
            scores = pm.score([p.reply(s.text) for p, samples in zip(some, drawn, strict=True) for s in samples])
            rows = [{**row, "score": float(score)} for row, score in zip(rows, scores, strict=True)]
        return [{"samples": rows[i : i + config.n]} for i in range(0, len(rows), config.n)]

    return draw


def _prompt(row: Mapping[str, Any], file: object, line: int) -> Dialogue:
    if "prompt" not in row:
        problem = f"has no field 'prompt' (it has {', '.join(row) or 'none'}); expected text or messages."
        raise DataError(file, problem, line=line)
    try:
        prompt = prompt_of(row["prompt"])
    except ValueError as bad:
        raise DataError(file, str(bad), line=line, field="prompt") from None
    if not prompt.is_prompt:
        raise DataError(
            file, "does not end in a human turn, so there is nothing to reply to", line=line, field="prompt"
        )
    return prompt
