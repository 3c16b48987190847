"""Copies of the tables elsewhere: few large files instead of many small ones."""

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
from batchcl.analysis.results import day_of
from batchcl.choices import Encryption
from batchcl.errors import OutputError, UsageError
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.published import PublishedPart, published_parts, read_part
from batchcl.runs.schema import FAILURES, RESULTS, SCHEMA_VERSION, parquet_bytes
from batchcl.runs.store import UNENCRYPTED, Store, open_root

__all__ = ["Export", "ExportedFile", "copy_tables", "export_parquet"]

MANIFEST: Final = "export.json"
TARGET_BYTES: Final = 128 * 1024 * 1024
_ORDER: Final = [("uri", "ascending"), ("version_id", "ascending"), ("run_id", "ascending")]
_SCHEMAS: Final = {"results": RESULTS, "failures": FAILURES}


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One written file: its path below the new root, its rows, its size, and the source's files that it copies."""

    path: str
    rows: int
    size_bytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was copied.

    Attributes:
        source: the output root that was read.
        out: where the copy is.
        before: only partitions before this day were copied; None for all.
        created_at: when the copy was complete.
        rows: table → rows in it, equal in source and copy.
        files: every file, in the order in which they were written.
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
        root: what `--out` was, a directory or `s3://bucket/prefix`.
        out: an empty directory, or one to create, or `s3://bucket/prefix`.
        before: copy the runs that started before this UTC day only.
        target_bytes: compressed size of a file. Memory is about ten times that.
        encryption: of the copy, in S3.
        profile: AWS profile, for S3.
        region: AWS region, for S3.

    Raises:
        UsageError: `out` is not empty or inside `root`, or `before` is not a day.
        OutputError: a root can't be read or written, or a file of the copy has other rows than its sources.
        CredentialsError: there are none for S3.
    """
    day = day_of(before) if isinstance(before, str) else before

    def open_both() -> tuple[Store, Store]:
        source = open_root(root, profile=profile, region=region)
        where = out.rstrip("/") if out.startswith("s3://") else str(Path(out).absolute())
        if f"{where}/".startswith(f"{source.root}/"):
            raise UsageError(f"can't export to {where}: it is inside {source.root}; name another location")
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

    Each file is sorted by uri. The source isn't changed; rows that are published while this runs may be missing. The
    manifest `export.json` is written last, so a copy without one is not complete.

    Args:
        source: an output root.
        target: an empty location.
        before: copy the runs that started before this UTC day only.
        target_bytes: compressed size of a file. Memory is about ten times that.
        on_file: receives each file once it is written.
        utcnow: the time of day.

    Raises:
        UsageError: `target` is not empty.
        OutputError: a root can't be read or written, or a file of the copy has other rows than its sources.
        StoppedError: another export writes to `target`.
    """
    if await target.list_all(""):
        raise UsageError(
            f"can't export to {target.root}: it is not empty; name another location, or delete what an interrupted "
            f"export left there (it has no {MANIFEST})"
        )
    parts = [part for part in await anyio.to_thread.run_sync(published_parts, source) if _is_before(part, before)]
    files: list[ExportedFile] = []
    rows = {"results": 0, "failures": 0}
    for path, group in await anyio.to_thread.run_sync(lambda: list(_groups(source, parts, target_bytes))):
        written = await _copy(source, target, path, group)
        rows[group[0].table] += written.rows
        files.append(written)
        on_file(written)
    export = Export(
        source=source.root, out=target.root, before=before, created_at=utcnow(), rows=rows, files=tuple(files)
    )
    document = orjson.dumps(export.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)
    await target.put_mine(MANIFEST, document, what="another export")
    return export


def _is_before(part: PublishedPart, before: dt.date | None) -> bool:
    return before is None or dt.date.fromisoformat(part.date) < before


def _groups(
    store: Store, parts: Iterable[PublishedPart], target_bytes: int
) -> Iterator[tuple[str, list[PublishedPart]]]:
    """The files to write: path, and the parts whose rows go there, neighbours by uri. Blocks."""
    partitions: defaultdict[tuple[str, str, str], list[PublishedPart]] = defaultdict(list)
    for part in parts:
        partitions[part.table, part.model, part.date].append(part)
    for (table, model, date), members in sorted(partitions.items()):
        found = sorted((_footer(store, part), part.path, part) for part in members)
        group: list[PublishedPart] = []
        number = size = 0
        for (_, size_bytes), _, part in found:
            if group and size + size_bytes > target_bytes:
                yield f"{table}/model={model}/date={date}/part-{number:05d}.parquet", group
                group, number, size = [], number + 1, 0
            group.append(part)
            size += size_bytes
        yield f"{table}/model={model}/date={date}/part-{number:05d}.parquet", group


def _footer(store: Store, part: PublishedPart) -> tuple[str, int]:
    """The first uri of a file, and its compressed size in bytes."""
    metadata = _metadata(store, part)
    column = metadata.schema.to_arrow_schema().get_field_index("uri")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    statistics = groups[0].column(column).statistics if groups else None
    first = statistics.min if statistics is not None and statistics.has_min_max else ""
    return first, sum(group.column(at).total_compressed_size for group in groups for at in range(group.num_columns))


def _metadata(store: Store, part: PublishedPart) -> pq.FileMetaData:
    file = store.open_file(part.path)
    with decode_or_raise(part.uri, errors=(pa.ArrowInvalid,)):
        return pq.read_metadata(file)


async def _copy(source: Store, target: Store, path: str, group: Sequence[PublishedPart]) -> ExportedFile:
    data = await anyio.to_thread.run_sync(_sorted, source, group)
    await target.put_mine(path, data, what="a file of another export")
    expected = await anyio.to_thread.run_sync(lambda: sum(_metadata(source, part).num_rows for part in group))
    rows = await anyio.to_thread.run_sync(lambda: pq.read_metadata(target.open_file(path)).num_rows)
    if rows != expected:
        raise OutputError(
            f"{target.uri(path)} has {rows:,} rows, but its {len(group):,} source files have {expected:,}: don't use "
            "this copy; export to another location"
        )
    return ExportedFile(path, rows, len(data), tuple(part.path for part in group))


def _sorted(store: Store, group: Sequence[PublishedPart]) -> bytes:
    schema = _SCHEMAS[group[0].table]
    tables = [read_part(store, part, schema) for part in group]
    return parquet_bytes(pa.concat_tables(tables).cast(schema).sort_by(_ORDER))
