"""The filter of `--incremental`: excludes image versions that have a result or a permanent failure already.

Many nightly runs leave many small Parquet files. An index below `runs/` stores their content, so that each run reads
only the files that were added since.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import BinaryIO, Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.arns import ModelArn
from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, OutputError
from batchcl.images import ImageRef, Pause, no_pause
from batchcl.name_set import DIGEST_BYTES, NameSet, digests_of
from batchcl.outcomes import PERMANENT_CODES, KnownStatus
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.layout import incremental_index_path
from batchcl.runs.schema import open_part
from batchcl.runs.store import Store, StoredFile

__all__ = ["IncrementalFilter", "read_index", "write_index"]

_SMALL_FILE_BYTES: Final = 32 * 1024
_GROUP_BYTES: Final = 256 * 1024
"""Small files are decoded in groups of this size."""

_GROUPS_AT_ONCE: Final = 3
"""While one group waits for its requests, another one is decoded."""

_LARGE_FILES_AT_ONCE: Final = 8
_BATCH_ROWS: Final = 10_000
_ROWS_PER_IMAGE: Final = 8
"""Rows that are read in the time that it takes to list one image."""

_MIN_NEW_FILES: Final = 50
"""A new index is written if at least this many small files were not in the old one."""

_MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
"""Maximum size of the digests in an index; the files with the most rows are omitted."""

_VERSION_COLUMNS: Final[dict[str, pl.DataType]] = {
    "uri": pl.String(),
    "version_id": pl.String(),
    "etag": pl.String(),
    "size_bytes": pl.Int64(),
    "last_modified": pl.Datetime("us", "UTC"),
}
"""The columns that identify a version, both of listed images and of published rows."""

_FILE_NUMBER: Final = "file"


class IncrementalFilter:
    """Finds image versions that have a result or a permanent failure from a model in an output root.

    The tables are read at the first call of `known`. An image whose version is unknown (neither version id nor etag,
    nor size and time of a local file) is never found.

    Args:
        store: the output root.
        model: rows of this ARN count. A retrained model of the same name has another ARN.
        fit: the `--fit` setting; permanent failures count only if they have the same setting.
        retry_failed: ignore failures.
        pause: awaited while rows are read, with the number of images that could have been listed in the meantime.
        keep_index: write a new index if many small files had to be read.
    """

    def __init__(
        self,
        store: Store,
        model: ModelArn,
        *,
        fit: bool = False,
        retry_failed: bool = False,
        pause: Pause = no_pause,
        keep_index: bool = False,
    ) -> None:
        self._store = store
        self._model = model
        self._pause = pause
        self._keep_index = keep_index
        self._conditions = {"results": pl.col("model_arn") == model.text}
        self._selections = {"results": f"results {model.text}"}
        if not retry_failed:
            permanent = pl.col("error_code").is_in(PERMANENT_CODES) & (pl.col("fit") == fit)
            self._conditions["failures"] = self._conditions["results"] & permanent
            codes = " ".join(sorted(PERMANENT_CODES))
            self._selections["failures"] = f"failures {model.text} fit={fit} {codes}"
        self._known: dict[str, NameSet] | None = None
        self._read_lock = anyio.Lock()
        self._add_lock = anyio.Lock()

    async def known(self, images: Sequence[ImageRef]) -> list[KnownStatus | None]:
        """For each image, whether the tables contain this version of it, and in which table.

        Raises:
            OutputError: a published file is corrupt or can't be read.
        """
        async with self._read_lock:  # the listing and a resumed shard may call this concurrently
            if self._known is None:
                self._known = await self._read_tables()
        return await anyio.to_thread.run_sync(_look_up, self._known, images)

    # --- reading the tables -----------------------------------------------------------------------------------------

    async def _read_tables(self) -> dict[str, NameSet]:
        known = {table: NameSet() for table in self._conditions}
        for table, names in known.items():
            files = await self._store.list_all(f"{table}/model={self._model.name}")
            files = [file for file in files if file.path.endswith(".parquet")]
            small = [file for file in files if file.size_bytes <= _SMALL_FILE_BYTES]
            await self._read_small(small, names, selection=self._selections[table])
            large = [file for file in files if file.size_bytes > _SMALL_FILE_BYTES]
            await gather(partial(self._read_large, known=names), large, at_once=_LARGE_FILES_AT_ONCE)
        return known

    async def _read_small(self, files: Sequence[StoredFile], known: NameSet, *, selection: str) -> None:
        """Add the rows of `files` to `known`, from the index or else by one request per file.

        `selection` describes which rows count. Each selection has its own index.
        """
        indexed = await read_index(self._store, selection) if files else {}
        digests = {file: indexed[file] for file in files if file in indexed}
        await self._add(known, b"".join(digests.values()))
        unread = [file for file in files if file not in digests]

        async def read(group: Sequence[StoredFile]) -> None:
            contents = await gather(lambda file: self._store.get(file.path), group, at_once=len(group))
            existing = {file: data for file, data in zip(group, contents, strict=True) if data is not None}
            async with self._add_lock:
                new = await anyio.to_thread.run_sync(self._decode_small, existing)
                digests.update(new)
                await self._add(known, b"".join(new.values()))

        await gather(read, _grouped(unread), at_once=_GROUPS_AT_ONCE)
        to_index = _smallest(digests) if self._keep_index and len(unread) >= _MIN_NEW_FILES else {}
        if len(to_index.keys() - indexed.keys()) >= _MIN_NEW_FILES:
            with suppress(OutputError):  # without an index, the next run reads the files again
                await write_index(self._store, selection, to_index)

    async def _read_large(self, file: StoredFile, known: NameSet) -> None:
        def open_batches() -> Iterator[pa.RecordBatch]:
            return self._open_batches(file.path, self._store.open_file(file.path, size_bytes=file.size_bytes))

        def digests(rows: pl.DataFrame) -> bytes:
            return b"".join(digests_of(names.to_series(1).drop_nulls().to_list()) for names in _names(rows))

        batches = await anyio.to_thread.run_sync(open_batches)
        while (rows := await anyio.to_thread.run_sync(self._next_rows, file.path, batches)) is not None:
            async with self._add_lock:
                await self._add(known, await anyio.to_thread.run_sync(digests, rows))

    async def _add(self, known: NameSet, digests: bytes) -> None:
        batch_bytes = _BATCH_ROWS * DIGEST_BYTES
        for begin in range(0, len(digests), batch_bytes):
            batch = digests[begin : begin + batch_bytes]
            await anyio.to_thread.run_sync(known.add, batch)
            await self._pause(len(batch) // DIGEST_BYTES // _ROWS_PER_IMAGE)

    # --- decoding; in worker threads --------------------------------------------------------------------------------

    def _decode_small(self, files: Mapping[StoredFile, bytes]) -> dict[StoredFile, bytes]:
        """For each of `files`, given with its content, the digests of its rows. Decoding them together is 3x faster."""
        if not files:
            return {}
        names_of: list[list[bytes]] = [[] for _ in files]
        tables = [self._decode_table(file.path, data, number) for number, (file, data) in enumerate(files.items())]
        path = next(iter(files)).path
        try:
            rows = self._select(path, pa.concat_tables(tables, promote_options="permissive"))
        except pa.ArrowException:  # files of another program, with different types
            rows = pl.concat(self._select(path, table) for table in tables)
        for names in _names(rows):
            for number, name in names.drop_nulls().iter_rows():
                names_of[number].append(name)
        return {file: digests_of(names) for file, names in zip(files, names_of, strict=True)}

    def _decode_table(self, path: str, data: bytes, number: int) -> pa.Table:
        with self._decoding(path):
            table = open_part(io.BytesIO(data), self._store.uri(path)).read(
                columns=self._columns(path), use_threads=False
            )
        self._check_columns(path, table)
        return table.append_column(_FILE_NUMBER, pa.repeat(pa.scalar(number, pa.int32()), len(table)))

    def _open_batches(self, path: str, content: BinaryIO) -> Iterator[pa.RecordBatch]:
        with self._decoding(path):
            file = open_part(content, self._store.uri(path))
            return file.iter_batches(_BATCH_ROWS, columns=self._columns(path))  # type: ignore[no-any-return]

    def _next_rows(self, path: str, batches: Iterator[pa.RecordBatch]) -> pl.DataFrame | None:
        with self._decoding(path):
            batch = next(batches, None)
        if batch is None:
            return None
        self._check_columns(path, batch)
        return self._select(path, pa.Table.from_batches([batch]).append_column(_FILE_NUMBER, pa.repeat(0, len(batch))))

    def _select(self, path: str, table: pa.Table) -> pl.DataFrame:
        """The rows of `table` that count, with `_VERSION_COLUMNS` and the number of their file."""
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        columns = {**_VERSION_COLUMNS, _FILE_NUMBER: pl.Int32()}
        return frame.filter(self._conditions[_table_of(path)]).select(
            pl.col(name).cast(kind) for name, kind in columns.items()
        )

    def _columns(self, path: str) -> list[str]:
        return sorted({*_VERSION_COLUMNS, *self._conditions[_table_of(path)].meta.root_names()})

    def _check_columns(self, path: str, table: pa.Table | pa.RecordBatch) -> None:
        missing = [name for name in self._columns(path) if name not in table.schema.names]
        if missing:
            raise OutputError(
                f"reading {self._store.uri(path)} failed: it has no column {missing[0]}, so it is not a file of "
                f"{_table_of(path)}/; move it elsewhere, or run without --incremental",
                code=ErrorCode.CORRUPT_OUTPUT,
            )

    def _decoding(self, path: str) -> AbstractContextManager[None]:
        remedy = "restore it, or run without --incremental"
        return decode_or_raise(self._store.uri(path), remedy=remedy, errors=(pa.ArrowInvalid,))


def _table_of(path: str) -> str:
    return path.partition("/")[0]


def _grouped(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    """`files` in groups of at most `_GROUP_BYTES`."""
    group: list[StoredFile] = []
    size_bytes = 0
    for file in files:
        if group and size_bytes + file.size_bytes > _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(file)
        size_bytes += file.size_bytes
    if group:
        yield group


# --- names of versions ----------------------------------------------------------------------------------------------

# A version has up to three names: by version id, by etag, by size and time. A name is null if a part of it is unknown.
_BY_VERSION: Final = pl.concat_str(pl.lit("v"), "version_id", pl.lit("\0"), "uri").cast(pl.Binary)
_BY_ETAG: Final = pl.concat_str(pl.lit("e"), "etag", pl.lit("\0"), "uri").cast(pl.Binary)
_BY_TIME: Final = pl.concat_str(
    pl.lit("t"),
    pl.col("size_bytes").cast(pl.String),
    pl.lit(" "),
    pl.col("last_modified").cast(pl.Int64).cast(pl.String),
    pl.lit("\0"),
    "uri",
).cast(pl.Binary)


def _names(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """All names of the versions in `rows`, as returned by `_select`.

    One frame for each kind of name, with the columns file number and name; the name may be null.
    """
    is_local = ~pl.col("uri").str.contains("^s3://")
    names = rows.select(_FILE_NUMBER, version=_BY_VERSION, etag=_BY_ETAG, time=pl.when(is_local).then(_BY_TIME))
    for column in ("version", "etag", "time"):
        yield names.select(_FILE_NUMBER, column)


def _look_up(known: Mapping[str, NameSet], images: Sequence[ImageRef]) -> list[KnownStatus | None]:
    """For each image, which table contains one of its names; results take precedence over failures."""
    listed = pl.DataFrame(
        {
            "uri": [image.uri for image in images],
            "version_id": [image.version_id for image in images],
            "etag": [image.etag for image in images],
            "size_bytes": [image.size_bytes for image in images],
            "last_modified": [image.last_modified for image in images],
            "local": [image.local for image in images],
        },
        schema={**_VERSION_COLUMNS, "local": pl.Boolean()},
    )
    names_of = listed.select(
        version=_BY_VERSION,
        etag=pl.when(pl.col("version_id").is_null()).then(_BY_ETAG),
        time=pl.when("local").then(_BY_TIME),
    )
    scored, failed = known["results"], known.get("failures")

    def find(names: Sequence[bytes | None]) -> KnownStatus | None:
        given = [name for name in names if name is not None]
        if any(name in scored for name in given):
            return "already_scored"
        return "already_failed" if failed and any(name in failed for name in given) else None

    return [find(names) for names in names_of.iter_rows()]


# --- the index of small files ---------------------------------------------------------------------------------------

_INDEX_HEADER: Final = b"batchcl known 1\n"
_CHECKSUM_BYTES: Final = 32
_INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("digests", pa.large_binary(), nullable=False),
    ]
)


async def read_index(store: Store, selection: str) -> dict[StoredFile, bytes]:
    """File → digests of its rows that `selection` describes; empty if there is no valid index."""
    data = await store.get(incremental_index_path(selection))
    return {} if data is None else await anyio.to_thread.run_sync(_decode_index, data, selection)


async def write_index(store: Store, selection: str, digests: Mapping[StoredFile, bytes]) -> None:
    """Store the index for the next run; the last writer wins. Files without an etag are omitted."""
    data = await anyio.to_thread.run_sync(_encode_index, digests, selection)
    await store.put(incremental_index_path(selection), data)


def _smallest(digests: Mapping[StoredFile, bytes]) -> dict[StoredFile, bytes]:
    """The files with the fewest rows, up to the maximum size of an index."""
    selected: dict[StoredFile, bytes] = {}
    left_bytes = _MAX_INDEX_BYTES
    for file, digest in sorted(digests.items(), key=lambda item: len(item[1])):
        left_bytes -= len(digest)
        if left_bytes < 0:
            break
        selected[file] = digest
    return selected


def _encode_index(digests: Mapping[StoredFile, bytes], selection: str) -> bytes:
    with_etag = {file: digest for file, digest in digests.items() if file.etag is not None}
    columns = [
        [file.path for file in with_etag],
        [file.size_bytes for file in with_etag],
        [file.etag for file in with_etag],
        list(with_etag.values()),
    ]
    arrays = [pa.array(*column) for column in zip(columns, _INDEX_SCHEMA.types, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=_INDEX_SCHEMA), sink, compression="zstd", use_dictionary=False)
    body = sink.getvalue()
    return _INDEX_HEADER + _checksum(body, selection) + body


def _decode_index(data: bytes, selection: str) -> dict[StoredFile, bytes]:
    begin = len(_INDEX_HEADER) + _CHECKSUM_BYTES
    body = data[begin:]
    if data[:begin] != _INDEX_HEADER + _checksum(body, selection):
        return {}
    columns = pq.read_table(pa.BufferReader(body), schema=_INDEX_SCHEMA).to_pydict()
    files = map(StoredFile, columns["path"], columns["size_bytes"], columns["etag"])
    return dict(zip(files, columns["digests"], strict=True))


def _checksum(body: bytes, selection: str) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, key=hashlib.sha256(selection.encode()).digest()).digest()
