"""``truing score`` and ``truing sample``: one row out for each row in, in order, under its ``id`` or line number.

Rows go to ``rows.jsonl`` in the run, whole or not at all; the command line prints them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truing import stats
from truing.configs import Sampling, Scoring
from truing.data.comparisons import prompt_of, read_pair
from truing.data.files import DataError, Row, read_rows
from truing.models.heads import PreferenceModel
from truing.models.lm import LM, show_prompt
from truing.runs import Run, atomic_write
from truing.runs.atomic import as_lines
from truing.train.progress import counting
from truing.types import Dialogue

TEXT, PAIR, COMPARISON, DIALOGUE = "text", "context and continuation", "chosen and rejected", "dialogue"
EXPECTED = (
    "expected 'text', or 'context' and 'continuation' (scored by a language model), or 'chosen' and 'rejected', or "
    "'dialogue' (scored by a preference model)"
)
ROWS = "rows.jsonl"


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
    of context and continuation); a preference model ``{"id","chosen","rejected"}`` or ``{"id","score"}``, centred on
    its stored reference mean unless ``raw``. Raises DataError for rows it cannot read.
    """
    kind, rows = read_inputs(config.file, kind_of)
    items = [_item(kind, row, config.file, line) for line, row in rows]
    if config.dry_run:
        return _expected(items)
    run = Run.open(
        "score", config, data_files=[config.file], slug=f"{Path(config.file).stem}-{Path(config.model).name}"
    )
    if run.done:
        return run
    ids = [row.get("id", line) for line, row in rows]
    if kind in (TEXT, PAIR):
        out, numbers, notes = _score_texts(config, run, items)
    else:
        out, numbers, notes = _score_replies(config, run, items)
    atomic_write(run.path / ROWS, as_lines({"id": i, **row} for i, row in zip(ids, out, strict=True)))
    run.finish(numbers, notes)
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


def _expected(items: Sequence[Any]) -> dict[str, Any]:
    texts = [" ".join(t.text for d in i for t in d.turns) if isinstance(i, list) else "".join(i) for i in items]
    tokens = sum(len(text) for text in texts) // 4
    lines = [f"{len(items):,} rows, about {tokens:,} tokens at four characters each; beginnings shared are read once."]
    return {"lines": lines}


def _score_texts(config: Scoring, run: Run, items: Sequence[str | tuple[str, str]]) -> Any:
    compute = run.compute(config)
    lm = LM.load(config.model, device=compute.device, dtype=compute.dtype)
    found = lm.score(items)
    out = []
    for one in found:
        row = {"logprob": one.logprob, "num_tokens": one.num_tokens}
        out.append(row | {"boundary": True} if one.boundary else row)
    tokens = sum(one.num_tokens for one in found)
    total = [one.logprob for one in found]
    numbers: dict[str, Any] = {"rows": count(len(found)), "tokens": count(tokens)}
    numbers["logprob"] = stats.mean_interval(total, unit="nats", seed=config.seed)
    per_token = [(one.logprob, one.num_tokens) for one in found]
    numbers["logprob_per_token"] = stats.bootstrap(
        lambda lp, n: float(lp.sum() / n.sum()) if n.sum() else None,
        [np.array([p[0] for p in per_token]), np.array([float(p[1]) for p in per_token])],
        seed=config.seed,
        unit="nats",
    )
    notes = []
    spans = sum(one.boundary for one in found)
    if spans:
        notes.append(f"{spans} rows were tokenised in two parts, because a token spans the join (boundary: true).")
    silent = sum(one.num_tokens == 0 for one in found)
    if silent:
        notes.append(f"{silent} rows have no scored token: the first token counts only after a BOS.")
    return out, numbers, notes


def _score_replies(config: Scoring, run: Run, items: Sequence[list[Dialogue]]) -> Any:
    compute = run.compute(config)
    pm = PreferenceModel.load(config.model, device=compute.device, dtype=compute.dtype)
    flat = [dialogue for item in items for dialogue in item]
    scores = np.asarray(pm.score(flat, centred=not config.raw, max_length=config.max_length), dtype=float)
    notes = [] if config.raw else [f"Scores are centred: the reference mean {pm.reference_mean:.4g} is taken off."]
    if len(items[0]) == 1:
        out = [{"score": float(s)} for s in scores]
        numbers = {"rows": count(len(out)), "score": stats.mean_interval(scores, seed=config.seed)}
        return out, numbers, notes
    chosen, rejected = scores[0::2], scores[1::2]
    out = [{"chosen": float(c), "rejected": float(r)} for c, r in zip(chosen, rejected, strict=True)]
    numbers = {
        "rows": count(len(out)),
        "chosen": stats.mean_interval(chosen, seed=config.seed),
        "rejected": stats.mean_interval(rejected, seed=config.seed),
        "gap": stats.mean_interval(chosen - rejected, seed=config.seed),
    }
    return out, numbers, notes


def sample(config: Sampling) -> Run | dict[str, Any]:
    """Draw ``n`` replies to every prompt: rows ``{"id","samples":[{"text","logprob","finish","seed"}]}``.

    With ``pm`` every sample carries its ``score``; with ``best`` only the best one of a row is kept.
    Raises DataError for rows without a prompt that a human ends, ValueError for ``best`` without ``pm``.
    """
    if config.best and not config.pm:
        raise ValueError("--best keeps the reply that a preference model likes best: name one with --pm.")
    if config.n < 1:
        raise ValueError(f"--n is {config.n}; at least one reply per prompt is needed.")
    _, rows = read_inputs(config.file, lambda row, file, line: "prompt")
    prompts = [_prompt(row, config.file, line) for line, row in rows]
    if config.dry_run:
        most = len(prompts) * config.n
        return {
            "lines": [f"{len(prompts):,} prompts, {most:,} replies, at most {most * config.max_new_tokens:,} tokens."]
        }
    slug = f"{Path(config.file).stem}-{Path(config.model).name}"
    run = Run.open("sample", config, data_files=[config.file], slug=slug)
    if run.done:
        return run
    compute = run.compute(config)
    lm = LM.load(config.model, device=compute.device, dtype=compute.dtype)
    show_prompt(lm, prompts[0])
    drawn = lm.sample(
        prompts,
        n=config.n,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=config.stop,
        stop_after=config.stop_after,
        seed=config.seed,
        progress=counting("Replies"),
    )
    scores = _scores(config, compute, prompts, drawn) if config.pm else None
    out = []
    for i, ((line, row), samples) in enumerate(zip(rows, drawn, strict=True)):
        cells = [{"text": s.text, "logprob": s.logprob, "finish": s.finish, "seed": s.seed} for s in samples]
        if scores is not None:
            cells = [{**c, "score": float(s)} for c, s in zip(cells, scores[i], strict=True)]
            if config.best:
                cells = [cells[int(np.argmax(scores[i]))]]
        out.append({"id": row.get("id", line), "samples": cells})
    atomic_write(run.path / ROWS, as_lines(out))
    run.write_samples([_shown(p, o["samples"][0]) for p, o in zip(prompts, out, strict=True)])
    run.finish(_sample_numbers(drawn, out, config))
    return run


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


def _scores(config: Sampling, compute: Any, prompts: Iterable[Dialogue], drawn: Iterable[Sequence[Any]]) -> Any:
    pm = PreferenceModel.load(config.pm or "", device=compute.device, dtype=compute.dtype)
    flat = [prompt.reply(s.text) for prompt, samples in zip(prompts, drawn, strict=True) for s in samples]
    return np.asarray(pm.score(flat, centred=True), dtype=float).reshape(-1, config.n)


def _shown(prompt: Dialogue, best: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt.last.text, "reply": best["text"], "logprob": best["logprob"], "finish": best["finish"]}


def _sample_numbers(
    drawn: Sequence[Sequence[Any]], out: Sequence[Mapping[str, Any]], config: Sampling
) -> dict[str, Any]:
    rows = [i for i, samples in enumerate(drawn) for _ in samples]
    every = [s for samples in drawn for s in samples]
    numbers: dict[str, Any] = {"rows": count(len(drawn)), "samples": count(len(every))}
    numbers["reply_tokens"] = stats.mean_interval(
        [len(s.token_ids) for s in every], rows, unit="tokens", seed=config.seed
    )
    finished = np.array([s.finish == "stop" for s in every])
    numbers["eos_rate"] = stats.mean_interval(finished, rows, unit="share", seed=config.seed)
    if config.pm:
        kept = [(i, c["score"]) for i, row in enumerate(out) for c in row["samples"]]
        numbers["pm_score"] = stats.mean_interval([k[1] for k in kept], [k[0] for k in kept], seed=config.seed)
    return numbers


def count(n: int) -> dict[str, Any]:
    """A count as a number of a summary: no interval is meant."""
    return {"value": n, "low": None, "high": None, "n": n, "unit": ""}
