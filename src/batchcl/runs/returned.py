"""Parts that are back after they were merged.

A runner that is frozen in the middle of writing a part may wake up when another one has long ended the run and a
compaction has merged that part: its write then takes effect, and the rows are there twice. So a merged file names what
it was made from, and the next compaction removes what is back, once it has seen that no row of it would be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Final

import anyio.to_thread
import polars as pl
import pyarrow.parquet as pq

from batchcl.runs.layout import COMPACTED
from batchcl.runs.schema import MERGED
from batchcl.runs.store import Store, StoredFile

__all__ = ["merged_from", "names_of", "returned_parts"]

_ROW: Final = ["run_id", "uri", "version_id", "scored_at", "request_id"]
"""What tells one call's row from any other."""


async def returned_parts(store: Store, files: Sequence[StoredFile]) -> frozenset[str]:
    """Those of `files`, sorted by path, of which each row stands in another one that was made from them."""
    found: set[str] = set()
    for _, partition in groupby(files, key=lambda file: file.path.rpartition("/")[0]):
        paths = [file.path for file in partition]
        for merged in (path for path in paths if _name(path).startswith(COMPACTED) and len(paths) > 1):
            names = await anyio.to_thread.run_sync(_read_names, store, merged)
            for path in paths:
                if _name(path) in names and await anyio.to_thread.run_sync(_holds, store, merged, path):
                    found.add(path)
    return frozenset(found)


def merged_from(paths: Iterable[str], earlier: Iterable[Collection[str]]) -> list[str]:
    """The names of all files whose rows a file has that is made from `paths`, which were made from `earlier`."""
    return sorted({*map(_name, paths), *(name for names in earlier for name in names)})


def names_of(metadata: dict[bytes, bytes] | None) -> frozenset[str]:
    """What a file with this key-value metadata was made from."""
    return frozenset((metadata or {}).get(MERGED.encode(), b"").decode().split())


def _read_names(store: Store, path: str) -> frozenset[str]:
    return names_of(pq.read_metadata(store.open_file(path)).metadata)


def _holds(store: Store, merged: str, path: str) -> bool:
    """Whether the file `merged` has every row of the file at `path`."""
    rows = pq.read_table(store.open_file(path), columns=_ROW)
    runs = rows["run_id"].unique().to_pylist()
    there = pq.read_table(store.open_file(merged), columns=_ROW, filters=[("run_id", "in", runs)])
    missing = pl.DataFrame(rows).join(pl.DataFrame(there), on=_ROW, how="anti", nulls_equal=True)
    return missing.is_empty()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
