"""The loop that draws replies: rows enter a batch, get a token each, and leave it when they are over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from truing.models.draw import Job, Row, fill_holes
from truing.models.slots import Reread, Slots


def decode(waiting: list[Row], batch: Slots | Reread, job: Job, head: Callable[[Tensor], Tensor]) -> None:
    """Draw the replies of some rows; they enter the batch in order. ``head`` makes logits [N, V] of states [N, H]."""
    rows: list[Row] = []
    logits = torch.empty(0)
    while rows or waiting:
        free = batch.size - len(rows)
        if waiting and (free * 4 >= batch.size):
            new, waiting = waiting[:free], waiting[free:]
            entered = head(batch.admit([row.prompt for row in new]))
            logits, rows = torch.cat([logits, entered]) if rows else entered, rows + new
            for row, lower in zip(new, batch.below([row.prompt for row in new]), strict=bool(job.trace)):
                row.lower = [lower]
        tokens = next_tokens(rows, logits, job)
        if None in tokens:
            order = fill_holes([token is not None for token in tokens])
            batch.keep(order)
            rows, tokens = [rows[i] for i in order], [tokens[i] for i in order]
        if rows:
            read = torch.tensor([token for token in tokens if token is not None], device=logits.device)
            logits = head(batch.step(read))
            for row, lower in zip(rows, batch.below(), strict=bool(job.trace)):
                row.lower.append(lower)


def next_tokens(rows: Sequence[Row], logits: Tensor, job: Job) -> list[int | None]:
    """The token that each row reads next: drawn, or left to read for a trace; None for a row that leaves."""
    drawing = [i for i, row in enumerate(rows) if not row.over]
    out = [row.rest.pop(0) if row.over and row.rest else None for row in rows]
    if not drawing:
        return out
    drawn = [rows[i] for i in drawing]
    found, logprobs = job.draw(drawn, logits if len(drawing) == len(rows) else logits[drawing])
    tokens = found.tolist()
    for i, token, goes_on in zip(drawing, tokens, job.take(drawn, tokens, logprobs.tolist()), strict=True):
        row = rows[i]
        if not goes_on and job.trace:
            row.rest = job.trace.rest(row, job.ends[row.request].eos_ids)
        out[i] = token if goes_on else row.rest.pop(0) if row.rest else None
    return out
