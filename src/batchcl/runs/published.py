"""The files in `results/` and `failures/` of an output root, with the table, model and date in their paths."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa

from batchcl.errors import ErrorCode, OutputError
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.layout import FOLDERS, PartName, run_name
from batchcl.runs.schema import open_part
from batchcl.runs.store import Store

__all__ = [
    "PARTITION",
    "PartStatistics",
    "PublishedPart",
    "check_root",
    "published_parts",
    "read_ahead",
    "read_part",
    "read_row_groups",
    "read_statistics",
    "resolving_parts",
]

T = TypeVar("T")

_FILES_AHEAD: Final = 16
_BYTES_AHEAD: Final = 16 * 1024 * 1024
"""Read-ahead in files and in compressed bytes. Small files are mostly S3 latency."""

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

    @property
    def run(self) -> str | None:
        """The `run_name` of the run that wrote it; None for a file of an export, which may have several runs."""
        part = PartName.parse(self.name)
        return None if part is None else part.run

    def may_contain(self, run_id: str) -> bool:
        """Whether it may contain rows of the run."""
        return self.run in (None, run_name(run_id))


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
        OutputError: the file can't be read, is corrupt, or has a later schema.
    """
    file = store.open_file(part.path, size_bytes=part.size_bytes)
    with decode_or_raise(part.uri, errors=(pa.ArrowException, OSError)), open_part(file, part.uri) as parquet:
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


def read_row_groups(
    store: Store, part: PublishedPart, columns: Sequence[str], *, label_fields: Sequence[str] = ()
) -> Iterator[tuple[str | None, pa.Table]]:
    """Yield the row groups of a file of `results/` in order, each with the ARN of their model.

    A file that was not written by a run may have rows of several models: the ARN is then None, and the table has the
    column `model_arn`.

    Args:
        store: the output root.
        part: the file.
        columns: to read; the file must have them.
        label_fields: fields of `labels` to read; `name` is read as a dictionary. Reading two of them takes a fifth of
            the time of reading all.

    Raises:
        OutputError: the file can't be read, is corrupt, or has a later schema.
    """
    file = store.open_file(part.path, size_bytes=part.size_bytes)
    fields = [f"labels.list.element.{name}" for name in label_fields]
    with (
        decode_or_raise(part.uri, errors=(pa.ArrowException, OSError)),
        open_part(file, part.uri, read_dictionary=["labels.list.element.name"]) as parquet,
    ):
        arn = (parquet.metadata.metadata or {}).get(b"batchcl.model_arn", b"").decode() or None
        wanted = [*columns, *fields, *(["model_arn"] if arn is None else [])]
        for number in range(parquet.num_row_groups):
            yield arn, parquet.read_row_group(number, wanted, use_threads=False)


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """What a file's footer says of its rows.

    Attributes:
        uris: the lowest and the highest uri; None if unknown.
        min_confidences: the lowest and the highest value of the column; None among them stands for null.
        model_arn: of all rows; None for a file that was not written by a run.
    """

    uris: tuple[str, str] | None
    min_confidences: frozenset[float | None]
    model_arn: str | None


def read_statistics(store: Store, part: PublishedPart) -> PartStatistics:
    """Read the footer of a file of `results/`. Raises `OutputError` as `read_part` does."""
    file = store.open_file(part.path, size_bytes=part.size_bytes)
    with decode_or_raise(part.uri, errors=(pa.ArrowException, OSError)), open_part(file, part.uri) as parquet:
        metadata = parquet.metadata
        names = [parquet.schema.column(number).path for number in range(metadata.num_columns)]
        columns = {
            name: [metadata.row_group(group).column(names.index(name)) for group in range(metadata.num_row_groups)]
            for name in ("uri", "min_confidence")
        }
    uris = [chunk.statistics for chunk in columns["uri"]]
    known = bool(uris) and all(each is not None and each.has_min_max for each in uris)
    minima: set[float | None] = set()
    for statistics in (chunk.statistics for chunk in columns["min_confidence"]):
        minima |= (
            {statistics.min + 0.0, statistics.max} if statistics.has_min_max else set()
        )  # a lowest 0 is stored as -0
        minima |= {None} if statistics.null_count else set()
    return PartStatistics(
        uris=(min(each.min for each in uris), max(each.max for each in uris)) if known else None,
        min_confidences=frozenset(minima),
        model_arn=(metadata.metadata or {}).get(b"batchcl.model_arn", b"").decode() or None,
    )


def read_ahead(
    parts: Iterable[PublishedPart], read: Callable[[PublishedPart], T], *, footers: bool = False
) -> Iterator[T]:
    """Yield `read(part)` for each part in order, from worker threads; small files are read ahead. Blocks.

    `footers` says that only the ends of the files are read.
    """
    with ThreadPoolExecutor(_FILES_AHEAD) as threads:
        reading: deque[tuple[int, Future[T]]] = deque()
        for part in parts:
            size_bytes = 0 if footers else part.size_bytes
            ahead_bytes = sum(size for size, _ in reading)
            while reading and (len(reading) == _FILES_AHEAD or ahead_bytes + size_bytes > _BYTES_AHEAD):
                size, result = reading.popleft()
                ahead_bytes -= size
                yield result.result()
            reading.append((size_bytes, threads.submit(read, part)))
        while reading:
            yield reading.popleft()[1].result()


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
            "pass the directory or prefix that was used with --out",
            code=ErrorCode.NOT_AN_OUTPUT_ROOT,
        )
