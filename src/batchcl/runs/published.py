"""The files in `results/` and `failures/` of an output root, with the table, model and date in their paths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import OutputError
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.layout import FOLDERS, PartName, run_name
from batchcl.runs.store import Store

__all__ = ["PARTITION", "PublishedPart", "check_root", "published_parts", "read_part", "resolving_parts"]

PARTITION: Final = pa.schema([("model", pa.string()), ("date", pa.date32())])
"""The columns whose values are in a file's path."""

_PATH: Final = re.compile(
    r"(?P<table>results|failures)/model=(?P<model>[^/]+)/date=(?P<date>\d{4}-\d\d-\d\d)/(?P<name>[^/]+\.parquet)"
)


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """One published file. `table`, `model` (`<project>@<version>`) and `date` (of the run) are parsed from its path."""

    table: str
    model: str
    date: str
    name: str
    path: str
    uri: str
    size_bytes: int

    def may_contain(self, run_id: str) -> bool:
        """Whether it may contain rows of the run; a file of an export may contain rows of several runs."""
        part = PartName.parse(self.name)
        return part is None or part.run == run_name(run_id)


def published_parts(store: Store) -> list[PublishedPart]:
    """All files of both tables, in no order. Blocks.

    Raises:
        OutputError: the store is not an output root, or can't be read.
    """
    files = [*store.list_sync("results"), *store.list_sync("failures")]
    found = ((file, _PATH.fullmatch(file.path)) for file in files)
    parts = [
        PublishedPart(**match.groupdict(), path=file.path, uri=store.uri(file.path), size_bytes=file.size_bytes)
        for file, match in found
        if match is not None
    ]
    if not parts:
        check_root(store)
    return parts


def read_part(store: Store, part: PublishedPart, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`; those of `PARTITION` are taken from the path, and columns that the file lacks are null.

    Reads without pyarrow's threads, which `pq.read_table` uses: the file is a Python object, and the process aborts if
    a thread still holds it when the interpreter exits.

    Raises:
        OutputError: the file can't be read, or is corrupt.
    """
    file = store.open_file(part.path, size_bytes=part.size_bytes)
    with decode_or_raise(part.uri, errors=(pa.ArrowException, OSError)), pq.ParquetFile(file) as parquet:
        stored = set(parquet.schema_arrow.names) - set(PARTITION.names)
        table = parquet.read([name for name in schema.names if name in stored], use_threads=False)
        known = {"model": part.model, "date": part.date}
        columns = [
            table[name]
            if name in stored
            else pa.repeat(pa.scalar(known.get(name), pa.string()), parquet.metadata.num_rows)
            for name in schema.names
        ]
        return pa.table(
            [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], names=schema.names
        )


def resolving_parts(parts: Iterable[PublishedPart]) -> dict[PublishedPart, list[PublishedPart]]:
    """For each file of `failures/`, the files that may resolve or repeat its rows; files without any are omitted.

    These are the later files of the same run and shard: retries write nowhere else. A file of an export may be resolved
    by any file of its partition.
    """
    groups: defaultdict[tuple[str, ...], list[tuple[int, PublishedPart]]] = defaultdict(list)
    exported = {(part.model, part.date) for part in parts if PartName.parse(part.name) is None}
    for part in parts:
        name = PartName.parse(part.name)
        if name is None or (part.model, part.date) in exported:
            groups[part.model, part.date].append((1 if part.table == "results" else 0, part))
        else:
            groups[part.model, part.date, name.run, str(name.shard)].append((name.first, part))
    later = {
        part: [other for order, other in group if order > first]
        for group in groups.values()
        for first, part in group
        if part.table == "failures"
    }
    return {part: others for part, others in later.items() if others}


def check_root(store: Store) -> None:
    """Raise `OutputError` if the location has none of an output root's folders: its name may be misspelt. Blocks."""
    if not store.is_s3 and any((Path(store.root) / name).is_dir() for name in FOLDERS):
        return
    if not any(store.list_sync(name) for name in FOLDERS):
        raise OutputError(
            f"{store.root} is not an output root: it contains none of results/, failures/ and runs/; "
            "pass the directory or prefix that was used with --out"
        )
