"""The files of `results/` and `failures/` below an output root, each with what its path says of it."""

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
from batchcl.runs.layout import PartName, run_name
from batchcl.runs.store import Store

__all__ = ["PARTITION", "PublishedPart", "check_root", "later_parts", "published_parts", "read_part"]

PARTITION: Final = pa.schema([("model", pa.string()), ("date", pa.date32())])
"""The columns that a file's path has."""

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
    size_bytes: int

    def may_hold(self, run_id: str) -> bool:
        """Whether it may have rows of the run; files of an export have rows of several."""
        written = PartName.parse(self.name)
        return written is None or written.run == run_name(run_id)


def published_parts(store: Store) -> list[PublishedPart]:
    """All files of the tables, in no order. Blocks.

    Raises:
        OutputError: the store is not an output root, or can't be read.
    """
    files = [*store.list_now("results"), *store.list_now("failures")]
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
    """The columns of `schema`, of which those of `PARTITION` come from the path. One that the file lacks is null.

    This thread alone reads: the file is a Python object, which pyarrow's own threads, as `pq.read_table` has them, may
    still hold when the interpreter ends. That aborts the process.

    Raises:
        OutputError: the file can't be read, or is damaged.
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


def later_parts(parts: Iterable[PublishedPart]) -> dict[PublishedPart, list[PublishedPart]]:
    """For each file of `failures/`, the files that may resolve or repeat its rows, where there are any.

    These are the later ones of the same run and shard: a run may have called for an image again only there. A file of
    an export may be resolved by any file of its partition.
    """
    groups: defaultdict[tuple[str, ...], list[tuple[int, PublishedPart]]] = defaultdict(list)
    exported = {(part.model, part.date) for part in parts if PartName.parse(part.name) is None}
    for part in parts:
        written = PartName.parse(part.name)
        if written is None or (part.model, part.date) in exported:
            groups[part.model, part.date].append((1 if part.table == "results" else 0, part))
        else:
            groups[part.model, part.date, written.run, str(written.shard)].append((written.first, part))
    found = {
        part: [other for later, other in group if later > first]
        for group in groups.values()
        for first, part in group
        if part.table == "failures"
    }
    return {part: others for part, others in found.items() if others}


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
