"""The files of `results/` and `failures/` below an output root, each with what its path says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.errors import OutputError
from batchcl.runs.compact import hidden_parts
from batchcl.runs.store import Store

__all__ = ["PublishedPart", "check_root", "published_parts"]

_PATH: Final = re.compile(
    r"(?P<table>results|failures)/model=(?P<model>[^/]+)/date=(?P<date>\d{4}-\d\d-\d\d)/(?P<name>[^/]+\.parquet)"
)


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """One published file: of which `table`, by which `model`, of a run of which `date`."""

    table: str
    model: str
    date: str
    name: str
    path: str
    uri: str


def published_parts(store: Store) -> list[PublishedPart]:
    """All files whose rows count, in no order. Blocks.

    Raises:
        OutputError: the store is no output root, or can't be read.
    """
    files = [*store.list_now("results"), *store.list_now("failures")]
    hidden = hidden_parts(store, {file.path for file in files})
    found = ((file.path, _PATH.fullmatch(file.path)) for file in files if file.path not in hidden)
    parts = [
        PublishedPart(**match.groupdict(), path=path, uri=store.uri(path)) for path, match in found if match is not None
    ]
    if not parts:
        check_root(store)
    return parts


def check_root(store: Store) -> None:
    """Raise `OutputError` where no run can ever have written: a name that was mistyped. Blocks."""
    if not _is_root(store):
        raise OutputError(
            f"{store.root} is not an output root: it has neither results/ nor failures/ nor runs/; "
            "give the directory or prefix that --out named"
        )


def _is_root(store: Store) -> bool:
    names = ("results", "failures", "runs")
    if not store.is_s3 and any((Path(store.root) / name).is_dir() for name in names):
        return True
    return any(store.list_now(name) for name in names)
