"""Copies the tables of an output root to another location, merging many small files into few large ones."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.__about__ import __version__
from batchcl.analysis.part_filter import day_of
from batchcl.choices import Encryption
from batchcl.errors import ErrorCode, OutputError, UsageError
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.published import PublishedPart, published_parts, read_part
from batchcl.runs.schema import FAILURES, RESULTS, SCHEMA_VERSION, open_part, parquet_bytes
from batchcl.runs.store import UNENCRYPTED, Store, open_root

__all__ = ["Export", "ExportedFile", "copy_tables", "export_parquet"]

MANIFEST: Final = "export.json"
TARGET_BYTES: Final = 128 * 1024 * 1024
_SORT_ORDER: Final = [("uri", "ascending"), ("version_id", "ascending"), ("run_id", "ascending")]
_SCHEMAS: Final = {"results": RESULTS, "failures": FAILURES}


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One written file: its path below the new root, number of rows, size, and the source files it was merged from."""

    path: str
    rows: int
    size_bytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of an export.

    Attributes:
        source: the output root that was read.
        out: the location of the copy.
        before: only partitions before this day were copied; None for all.
        created_at: when the copy was complete.
        rows: table → number of rows, equal in source and copy.
        files: the written files, in order.
    """

    source: str
    out: str
    before: dt.date | None
    created_at: dt.datetime
    rows: dict[str, int]
    files: tuple[ExportedFile, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and `--json`."""
        return asdict(self) | {"schema": SCHEMA_VERSION, "version": __version__}


async def export_parquet(
    root: str,
    out: str,
    *,
    before: dt.date | str | None = None,
    target_bytes: int = TARGET_BYTES,
    encryption: Encryption = UNENCRYPTED,
    profile: str | None = None,
    region: str | None = None,
) -> Export:
    """Copy the tables of the output root `root` into few large files below `out`; see `copy_tables`.

    Args:
        root: the output root of runs, a directory or `s3://bucket/prefix`.
        out: an empty directory, or one to create, or `s3://bucket/prefix`.
        before: copy only runs that started before this UTC day.
        target_bytes: compressed size of a file. Memory use is about ten times that.
        encryption: server-side encryption of the copy in S3.
        profile: AWS profile for S3.
        region: AWS region for S3.

    Raises:
        UsageError: `out` is not empty or inside `root`, or `before` is not a day.
        OutputError: a root can't be read or written, or the row count of a copied file differs from its sources.
        CredentialsError: there are no credentials for S3.
    """
    day = day_of(before) if isinstance(before, str) else before

    def open_both() -> tuple[Store, Store]:
        source = open_root(root, profile=profile, region=region)
        target = out.rstrip("/") if out.startswith("s3://") else str(Path(out).absolute())
        if f"{target}/".startswith(f"{source.root}/"):
            raise UsageError(
                f"can't export to {target}: it is inside {source.root}; name another location",
                code=ErrorCode.INVALID_TARGET,
            )
        return source, open_root(out, profile=profile, region=region, create=True, encryption=encryption)

    source, target = await anyio.to_thread.run_sync(open_both)
    return await copy_tables(source, target, before=day, target_bytes=target_bytes)


async def copy_tables(
    source: Store,
    target: Store,
    *,
    before: dt.date | None = None,
    target_bytes: int = TARGET_BYTES,
    on_file: Callable[[ExportedFile], None] = lambda _: None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Export:
    """Copy `results/` and `failures/` of `source` into `target`, with the same partitions, columns and rows.

    Each file is sorted by uri. The source is not changed; rows that are published meanwhile may be missing. The
    manifest `export.json` is written last, so a copy without it is incomplete.

    Args:
        source: an output root.
        target: an empty location.
        before: copy only runs that started before this UTC day.
        target_bytes: compressed size of a file. Memory use is about ten times that.
        on_file: called with each written file.
        utcnow: returns the current time.

    Raises:
        UsageError: `target` is not empty.
        OutputError: a root can't be read or written, or the row count of a copied file differs from its sources.
        StoppedError: another export is writing to `target`.
    """
    if await target.list_all(""):
        raise UsageError(
            f"can't export to {target.root}: it is not empty; name another location, or delete what an interrupted "
            f"export left there (it has no {MANIFEST})",
            code=ErrorCode.TARGET_EXISTS,
        )
    parts = [part for part in await anyio.to_thread.run_sync(published_parts, source) if _is_before(part, before)]
    files: list[ExportedFile] = []
    rows = {"results": 0, "failures": 0}
    for path, group in await anyio.to_thread.run_sync(lambda: list(_plan_files(source, parts, target_bytes))):
        written = await _copy_file(source, target, path, group)
        rows[group[0].table] += written.rows
        files.append(written)
        on_file(written)
    export = Export(
        source=source.root, out=target.root, before=before, created_at=utcnow(), rows=rows, files=tuple(files)
    )
    document = orjson.dumps(export.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)
    await target.put_exclusive(MANIFEST, document, what="another export")
    return export


def _is_before(part: PublishedPart, before: dt.date | None) -> bool:
    return before is None or dt.date.fromisoformat(part.date) < before


def _plan_files(
    store: Store, parts: Iterable[PublishedPart], target_bytes: int
) -> Iterator[tuple[str, list[PublishedPart]]]:
    """The files to write: path, and the parts to merge into it, which are adjacent by uri. Blocks."""
    partitions: defaultdict[tuple[str, str, str], list[PublishedPart]] = defaultdict(list)
    for part in parts:
        partitions[part.table, part.model, part.date].append(part)
    for (table, model, date), members in sorted(partitions.items()):
        ordered = sorted((_first_uri_and_size(store, part), part.path, part) for part in members)
        group: list[PublishedPart] = []
        number = size = 0
        for (_, size_bytes), _, part in ordered:
            if group and size + size_bytes > target_bytes:
                yield f"{table}/model={model}/date={date}/part-{number:05d}.parquet", group
                group, number, size = [], number + 1, 0
            group.append(part)
            size += size_bytes
        yield f"{table}/model={model}/date={date}/part-{number:05d}.parquet", group


def _first_uri_and_size(store: Store, part: PublishedPart) -> tuple[str, int]:
    """The first uri of a file, and its compressed size in bytes."""
    metadata = _metadata(store, part)
    column = metadata.schema.to_arrow_schema().get_field_index("uri")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    statistics = groups[0].column(column).statistics if groups else None
    first = statistics.min if statistics is not None and statistics.has_min_max else ""
    return first, sum(group.column(at).total_compressed_size for group in groups for at in range(group.num_columns))


def _metadata(store: Store, part: PublishedPart) -> pq.FileMetaData:
    file = store.open_file(part.path)
    with decode_or_raise(part.uri, errors=(pa.ArrowInvalid,)), open_part(file, part.uri) as parquet:
        return parquet.metadata


async def _copy_file(source: Store, target: Store, path: str, group: Sequence[PublishedPart]) -> ExportedFile:
    data = await anyio.to_thread.run_sync(_merge_sorted, source, group)
    await target.put_exclusive(path, data, what="a file of another export")
    expected = await anyio.to_thread.run_sync(lambda: sum(_metadata(source, part).num_rows for part in group))
    rows = await anyio.to_thread.run_sync(lambda: pq.read_metadata(target.open_file(path)).num_rows)
    if rows != expected:
        raise OutputError(
            f"the copy {target.uri(path)} is wrong: it has {rows:,} rows, but its {len(group):,} source files have "
            f"{expected:,}; delete this copy, and export to another location",
            code=ErrorCode.WRITE_FAILED,
        )
    return ExportedFile(path, rows, len(data), tuple(part.path for part in group))


def _merge_sorted(store: Store, group: Sequence[PublishedPart]) -> bytes:
    schema = _SCHEMAS[group[0].table]
    tables = [read_part(store, part, schema) for part in group]
    return parquet_bytes(pa.concat_tables(tables).cast(schema).sort_by(_SORT_ORDER))
