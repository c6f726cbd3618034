"""Options of talking to models, of files and of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from truing.configs.common import Common, alias, shown


@dataclass(kw_only=True)
class Sampling(Common):
    """Sample replies from a model."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Any model name truing knows, also http://host:port/v1#model for one on a server."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows with 'prompt' (text or messages), or a packaged set: helpful, red-team, benign-sensitive, related-work."""
    n: int = 1
    """Replies per prompt."""
    pm: str | None = None
    """Score replies with this preference model."""
    best: bool = False
    """Keep only the reply the preference model likes best."""
    median: bool = False
    """Keep only the reply of median score among those that are not empty (the papers show the median of 17)."""
    max_new_tokens: Annotated[int, alias("max-tokens")] = 128
    """Tokens a reply may have."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    stop: list[str] = field(default_factory=list)
    """More stop strings; a reply's text ends before the first of them."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""


@dataclass(kw_only=True)
class Scoring(Common):
    """Score texts with a language model (nats) or dialogues with a preference model."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")]
    """Language model or preference model."""
    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Rows: text; context and continuation; prompt, chosen and rejected; or dialogue."""
    raw: bool = False
    """Preference model: scores as the head gives them, not centred."""
    max_length: int = 1024
    """Preference model: tokens a dialogue may have."""


@dataclass(kw_only=True)
class Chat(Common):
    """Talk with a model in the terminal."""

    model: Annotated[tyro.conf.Positional[str], shown("MODEL")] = "smollm2"
    """Any model name truing knows, also http://host:port/v1#model for one on a server."""
    pm: str | None = None
    """Show this preference model's score of every reply."""
    best_of: int = 1
    """Sample this many replies and show the one the preference model likes best."""
    system: str = ""
    """System turn."""
    max_new_tokens: int = 256
    """Tokens a reply may have."""
    stop_after: list[str] = field(default_factory=list)
    """Strings after the first of which a reply ends: '.' '!' '?' for one sentence."""
    temperature: float = 0.7
    """Sampling temperature."""


@dataclass(kw_only=True)
class DataCheck(Common):
    """What is in a file and what is wrong with it."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Any known format."""
    strict: bool = False
    """Exit with 3 if anything is wrong."""


@dataclass(kw_only=True)
class DataConvert(Common):
    """Between formats; writes the file TARGET."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """Any known format."""
    target: Annotated[tyro.conf.Positional[str], shown("TARGET")]
    """File to write: .jsonl, .json, .csv (each also .gz) or .parquet."""
    to: Literal["truing", "hh", "trl"] = "truing"
    """Columns: ours, HH two-column text, TRL conversational."""
    on_problem: Literal["error", "drop"] = "error"
    """Rows that cannot be converted: stop and name them, or leave them out and say how many."""
    compat: Literal["", "2022"] = ""
    """Red-team attempts: 2022 writes the released file's form, misspelt field and all."""


@dataclass(kw_only=True)
class DataPairs(Common):
    """Comparisons from dumps of the web, for preference model pretraining (2204.05862 App A.2)."""

    source: Annotated[tyro.conf.Positional[Literal["stackexchange", "reddit", "wikipedia"]], shown("SOURCE")]
    """What the files are: stackexchange (Posts.xml, or rows with question and answers), reddit (pushshift's JSON
    lines of submissions and comments), wikipedia (revision dumps)."""
    files: Annotated[tyro.conf.Positional[list[str]], shown("FILE…")]
    """Dump files, also .gz (XML also .bz2)."""
    target: str
    """File of comparisons to write: .jsonl or .jsonl.gz."""
    pairs_per_prompt: int = 4
    """At most this many pairs of replies to one text, drawn from all whose scores differ."""


@dataclass(kw_only=True)
class Doctor(Common):
    """Versions, device, threads, dtype, memory, sandbox, cached model."""


@dataclass(kw_only=True)
class Runs(Common):
    """What runs there are."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")] = "runs"
    """Folder to look in."""


@dataclass(kw_only=True)
class ReportConfig(Common):
    """Rebuild or combine pages."""

    runs: Annotated[tyro.conf.Positional[list[str]], shown("RUN…")]
    """Run folders."""


@dataclass(kw_only=True)
class Compare(Common):
    """Paired differences of two runs' numbers with intervals."""

    a: Annotated[tyro.conf.Positional[str], shown("RUN")]
    """Run."""
    b: Annotated[tyro.conf.Positional[str], shown("RUN")]
    """Run."""


@dataclass(kw_only=True)
class Demo(Common):
    """The whole loop on the packaged model: simulated people, PM, RLHF, round two, red team, honesty, one report."""

    fast: bool = False
    """At most five minutes: every stage and figure, no claims."""
    model: str = "smollm2"
    """Model to start from."""


@dataclass(kw_only=True)
class Recipe(Common):
    """A paper from top to bottom: every study and figure on one page, the paper's values beside ours."""

    paper: Annotated[tyro.conf.Positional[Literal["hh"]], shown("hh")]
    """hh: Training a Helpful and Harmless Assistant (2204.05862)."""
    scale: Literal["ci", "toy", "small", "paper"] = "toy"
    """ci: every stage in seconds, no claims; toy: minutes on two cores; small: one GPU; paper: its commands (with
    --dry-run)."""
