"""Options of the feedback store's verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from truing.configs.common import Common, shown


@dataclass(kw_only=True)
class StoreCommon(Common):
    """Options of every verb of the store."""

    db: str = "truing.db"
    """The store: a file, sqlite:///FILE or postgresql://USER@HOST/NAME."""


@dataclass(kw_only=True)
class StoreBackup(StoreCommon):
    """Copy a store into one file while it is in use; the file's hash is in its last line."""

    target: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """File to write, .jsonl.gz; it holds everything, passwords' hashes too: keep it as safe as the store."""


@dataclass(kw_only=True)
class StoreRestore(StoreCommon):
    """Fill an empty store from a backup, of whichever database; checked first, whole or not at all."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """What `truing store backup` wrote."""


@dataclass(kw_only=True)
class StoreImport(StoreCommon):
    """Comparisons of a file into a store: exports of Label Studio, Argilla and Potato, or any that truing reads."""

    file: Annotated[tyro.conf.Positional[str], shown("FILE")]
    """The export."""
    items: str | None = None
    """Potato: the file with the items, which its answers only number."""
    task: Literal["helpful", "red_team"] = "helpful"
    """Other tools: people picked the better text, or (red_team) the more harmful one."""
    prompt_field: str = ""
    """Other tools: the field with the prompt, where it has an unusual name."""
    again: bool = False
    """Import a file that was imported before once more."""


@dataclass(kw_only=True)
class StoreExport(StoreCommon):
    """Comparisons, games, rankings or attempts of a store, as the administrator's page writes them."""

    target: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder for the file."""
    kind: Literal["helpful", "harmless", "games", "rankings", "attempts"] = "helpful"
    """Comparisons (helpful or harmless ones), games for `truing elo`, rankings for `truing writers`, attempts."""
    to: Literal["truing", "hh", "trl"] = "truing"
    """Comparisons: ours, HH two-column text, TRL conversational."""
    part: Literal["all", "train", "test"] = "all"
    """Whole conversations only; none that begin alike are in both parts."""
    test_share: float = 0.05
    """Share of the test part."""
    arms: bool = False
    """Name the models that wrote the replies."""
    unfinished: bool = False
    """Also conversations that were stopped or left, labelled."""
    people: Literal["real", "simulated", "all"] = "real"
    """Whose conversations."""


@dataclass(kw_only=True)
class StoreErase(StoreCommon):
    """Replace what was said in conversations by a tombstone, for good; say which runs were trained on it."""

    conversations: Annotated[tyro.conf.Positional[list[str]], shown("ID…")] = field(default_factory=list)
    """Conversations, by id (as the administrator's pages show them)."""
    why: str = ""
    """The reason, for the log."""
    runs: str = "runs"
    """Folder of the runs to look through."""


@dataclass(kw_only=True)
class StorePerson(StoreCommon):
    """Everything that is kept about one person: into a file, or erased."""

    name: Annotated[tyro.conf.Positional[str], shown("NAME")]
    """The person's name."""
    export: str | None = None
    """File to write, .json."""
    erase: bool = False
    """Erase what they said and their name. What they were paid, and that they consented, is kept."""
    why: str = ""
    """The reason, for the log."""
    runs: str = "runs"
    """Folder of the runs to look through."""
