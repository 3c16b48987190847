"""Image versions that have a result or a permanent failure, for `--incremental`, and the index of small files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import BinaryIO, Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.arns import ModelArn
from batchcl.concurrency import gather
from batchcl.errors import OutputError
from batchcl.images import ImageRef, Pause, no_pause
from batchcl.name_set import DIGEST_BYTES, NameSet, digests_of
from batchcl.outcomes import PERMANENT_CODES, Known
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.layout import known_path
from batchcl.runs.store import Store, StoredFile

__all__ = ["IncrementalFilter", "read_index", "write_index"]

_FILES_AT_ONCE: Final = 8
_SMALL_BYTES: Final = 32 * 1024
_TOGETHER_BYTES: Final = 256 * 1024
"""Small files that are decoded together."""

_READERS: Final = 3
"""Of such groups: while one waits for its requests another decodes."""

_INDEX_FROM: Final = 50
"""So many small files that had to be read are worth a new index."""

_INDEX_BYTES: Final = 64 * 1024 * 1024
"""An index has no more digests; files with many rows are left out first."""

_BATCH_ROWS: Final = 10_000
_ROWS_PER_IMAGE: Final = 8
"""Rows that are read here in the time in which one image is listed and frozen."""

_SCHEMA: Final[dict[str, pl.DataType]] = {
    "uri": pl.String(),
    "version_id": pl.String(),
    "etag": pl.String(),
    "size_bytes": pl.Int64(),
    "last_modified": pl.Datetime("us", "UTC"),
}
"""The columns that tell a version, of images and of results alike."""

_NUMBER: Final = "file"


class IncrementalFilter:
    """Answers for one model's tables below one root, as they were at the first question.

    An image of which the list tells neither version id nor entity tag, nor size and time of a local file, is never
    known.

    Args:
        store: the output root.
        model: whose rows count. A retrained model of the same name is another one, with another ARN.
        fit: the `--fit` setting: failures count that are permanent with the same one.
        retry_failed: no failure counts.
        pause: awaited while results are read, with the number of images that could have been listed meanwhile.
        keep_index: write a new index below `runs/` where the next run would have much to read.
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
        self._wanted = {"results": pl.col("model_arn") == model.text}
        self._about = {"results": f"results {model.text}"}
        if not retry_failed:
            permanent = pl.col("error_code").is_in(PERMANENT_CODES) & (pl.col("fit") == fit)
            self._wanted["failures"] = self._wanted["results"] & permanent
            codes = " ".join(sorted(PERMANENT_CODES))
            self._about["failures"] = f"failures {model.text} fit={fit} {codes}"
        self._known: dict[str, NameSet] | None = None
        self._reading = anyio.Lock()
        self._filling = anyio.Lock()

    async def known(self, images: Sequence[ImageRef]) -> list[Known | None]:
        """For each image, what the tables say of this version of it. Raises `OutputError` for a corrupt file."""
        async with self._reading:  # both the listing and a resumed shard may ask first
            if self._known is None:
                self._known = await self._read_all()
        return await anyio.to_thread.run_sync(_look_up, self._known, images)

    async def _read_all(self) -> dict[str, NameSet]:
        known = {table: NameSet() for table in self._wanted}
        for table, names in known.items():
            await self._read_table(table, names)
        return known

    async def _read_table(self, table: str, known: NameSet) -> None:
        files = await self._store.list_all(f"{table}/model={self._model.name}")
        files = [file for file in files if file.path.endswith(".parquet")]
        small = [file for file in files if file.size_bytes <= _SMALL_BYTES]
        await self._read_small(small, known, about=self._about[table])
        large = [file for file in files if file.size_bytes > _SMALL_BYTES]
        await gather(lambda file: self._read_large(file, known), large, at_once=_FILES_AT_ONCE)

    async def _read_small(self, files: Sequence[StoredFile], known: NameSet, *, about: str) -> None:
        """Add the rows of `files` to `known`: by the index, else by a request each.

        `about` says which rows count. Whatever changes them has to change it, and makes an index of its own.
        """
        indexed = await read_index(self._store, about) if files else {}
        found = {file: indexed[file] for file in files if file in indexed}
        await self._add(known, b"".join(found.values()))
        unread = [file for file in files if file not in found]

        async def read(some: Sequence[StoredFile]) -> None:
            contents = await gather(lambda file: self._store.get(file.path), some, at_once=len(some))
            there = {file: data for file, data in zip(some, contents, strict=True) if data is not None}
            async with self._filling:
                digests = await anyio.to_thread.run_sync(self._digests, there)
                found.update(digests)
                await self._add(known, b"".join(digests.values()))

        await gather(read, _grouped(unread), at_once=_READERS)
        kept = _smallest(found) if self._keep_index and len(unread) >= _INDEX_FROM else {}
        if len(kept.keys() - indexed.keys()) >= _INDEX_FROM:
            with suppress(OutputError):  # the next run reads them again
                await write_index(self._store, about, kept)

    async def _add(self, known: NameSet, digests: bytes) -> None:
        size = _BATCH_ROWS * DIGEST_BYTES
        for at in range(0, len(digests), size):
            some = digests[at : at + size]
            await anyio.to_thread.run_sync(known.add, some)
            await self._pause(len(some) // DIGEST_BYTES // _ROWS_PER_IMAGE)

    def _digests(self, files: Mapping[StoredFile, bytes]) -> dict[StoredFile, bytes]:
        """For each of `files`, with its content, the digests of its rows. Decoded together: three times as fast."""
        found: list[list[bytes]] = [[] for _ in files]
        if not files:
            return {}
        tables = [self._table(file.path, data, number) for number, (file, data) in enumerate(files.items())]
        path = next(iter(files)).path
        try:
            rows = self._rows(path, pa.concat_tables(tables, promote_options="permissive"))
        except pa.ArrowException:  # files that something else has written, with types of its own
            rows = pl.concat(self._rows(path, table) for table in tables)
        for names in _names(rows):
            for number, name in names.drop_nulls().iter_rows():
                found[number].append(name)
        return {file: digests_of(names) for file, names in zip(files, found, strict=True)}

    def _table(self, path: str, data: bytes, number: int) -> pa.Table:
        with self._intact(path):
            table = pq.ParquetFile(io.BytesIO(data)).read(columns=self._columns(path), use_threads=False)
        self._check_columns(path, table)
        return table.append_column(_NUMBER, pa.repeat(pa.scalar(number, pa.int32()), len(table)))

    async def _read_large(self, file: StoredFile, known: NameSet) -> None:
        def opened() -> Iterator[pa.RecordBatch]:
            return self._open(file.path, self._store.open_file(file.path, size_bytes=file.size_bytes))

        def digests(rows: pl.DataFrame) -> bytes:
            return b"".join(digests_of(names.to_series(1).drop_nulls().to_list()) for names in _names(rows))

        batches = await anyio.to_thread.run_sync(opened)
        while (rows := await anyio.to_thread.run_sync(self._next, file.path, batches)) is not None:
            async with self._filling:
                await self._add(known, await anyio.to_thread.run_sync(digests, rows))

    def _open(self, path: str, content: BinaryIO) -> Iterator[pa.RecordBatch]:
        with self._intact(path):
            file = pq.ParquetFile(content)
            return file.iter_batches(_BATCH_ROWS, columns=self._columns(path))  # type: ignore[no-any-return]

    def _next(self, path: str, batches: Iterator[pa.RecordBatch]) -> pl.DataFrame | None:
        with self._intact(path):
            batch = next(batches, None)
        if batch is None:
            return None
        self._check_columns(path, batch)
        return self._rows(path, pa.Table.from_batches([batch]).append_column(_NUMBER, pa.repeat(0, len(batch))))

    def _columns(self, path: str) -> list[str]:
        return sorted({*_SCHEMA, *self._wanted[_table_of(path)].meta.root_names()})

    def _rows(self, path: str, table: pa.Table) -> pl.DataFrame:
        """The rows of `table` that count, with the columns of `_SCHEMA` and the number of their file."""
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        columns = {**_SCHEMA, _NUMBER: pl.Int32()}
        return frame.filter(self._wanted[_table_of(path)]).select(
            pl.col(name).cast(kind) for name, kind in columns.items()
        )

    def _check_columns(self, path: str, table: pa.Table | pa.RecordBatch) -> None:
        missing = [name for name in self._columns(path) if name not in table.schema.names]
        if missing:
            raise OutputError(
                f"{self._store.uri(path)} is not a file of {_table_of(path)}: it has no column {missing[0]}; move it "
                "elsewhere, or run without --incremental"
            )

    def _intact(self, path: str) -> AbstractContextManager[None]:
        remedy = "restore it, or run without --incremental"
        return decode_or_raise(self._store.uri(path), remedy=remedy, errors=(pa.ArrowInvalid,))


def _table_of(path: str) -> str:
    return path.partition("/")[0]


# what a version may be asked for by; null where that isn't known
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
    """All names by which the versions in `rows`, as from `_wanted`, may be asked for, beside the number of their file.

    A frame for each way to ask, with null where that isn't known.
    """
    local = ~pl.col("uri").str.contains("^s3://")
    names = rows.select(_NUMBER, version=_BY_VERSION, etag=_BY_ETAG, time=pl.when(local).then(_BY_TIME))
    for column in ("version", "etag", "time"):
        yield names.select(_NUMBER, column)


def _smallest(digests: Mapping[StoredFile, bytes]) -> dict[StoredFile, bytes]:
    """As many of them as an index may have."""
    kept: dict[StoredFile, bytes] = {}
    left_bytes = _INDEX_BYTES
    for file, found in sorted(digests.items(), key=lambda item: len(item[1])):
        left_bytes -= len(found)
        if left_bytes < 0:
            break
        kept[file] = found
    return kept


def _grouped(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    """`files` in groups of so many bytes."""
    group: list[StoredFile] = []
    size_bytes = 0
    for file in files:
        if group and size_bytes + file.size_bytes > _TOGETHER_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(file)
        size_bytes += file.size_bytes
    if group:
        yield group


def _look_up(known: Mapping[str, NameSet], images: Sequence[ImageRef]) -> list[Known | None]:
    """For each image, in which table one of its names is known; a result counts before a failure."""
    listed = pl.DataFrame(
        {
            "uri": [image.uri for image in images],
            "version_id": [image.version_id for image in images],
            "etag": [image.etag for image in images],
            "size_bytes": [image.size_bytes for image in images],
            "last_modified": [image.last_modified for image in images],
            "local": [image.local for image in images],
        },
        schema={**_SCHEMA, "local": pl.Boolean()},
    )
    asked = listed.select(
        version=_BY_VERSION,
        etag=pl.when(pl.col("version_id").is_null()).then(_BY_ETAG),
        time=pl.when("local").then(_BY_TIME),
    )
    scored, failed = known["results"], known.get("failures")

    def of(names: Sequence[bytes | None]) -> Known | None:
        given = [name for name in names if name is not None]
        if any(name in scored for name in given):
            return "already_scored"
        return "already_failed" if failed and any(name in failed for name in given) else None

    return [of(names) for names in asked.iter_rows()]


_FORMAT: Final = b"batchcl known 1\n"
_SUM_BYTES: Final = 32
_COLUMNS: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("digests", pa.large_binary(), nullable=False),
    ]
)


async def read_index(store: Store, about: str) -> dict[StoredFile, bytes]:
    """File → the digests of its rows. `about` says from which rows: two that differ have indexes of their own."""
    data = await store.get(known_path(about))
    return {} if data is None else await anyio.to_thread.run_sync(_decode_index, data, about)


async def write_index(store: Store, about: str, digests: Mapping[StoredFile, bytes]) -> None:
    """Keep `digests` for the next run; the last writer wins. Files without an entity tag are left out."""
    await store.put(known_path(about), await anyio.to_thread.run_sync(_encode_index, digests, about))


def _encode_index(digests: Mapping[StoredFile, bytes], about: str) -> bytes:
    known = {file: found for file, found in digests.items() if file.etag is not None}
    columns = [
        [file.path for file in known],
        [file.size_bytes for file in known],
        [file.etag for file in known],
        list(known.values()),
    ]
    table = pa.table([pa.array(*column) for column in zip(columns, _COLUMNS.types, strict=True)], schema=_COLUMNS)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    body = sink.getvalue()
    return _FORMAT + _checksum(body, about) + body


def _decode_index(data: bytes, about: str) -> dict[StoredFile, bytes]:
    begin = len(_FORMAT) + _SUM_BYTES
    body = data[begin:]
    if data[:begin] != _FORMAT + _checksum(body, about):
        return {}
    columns = pq.read_table(pa.BufferReader(body), schema=_COLUMNS).to_pydict()
    files = map(StoredFile, columns["path"], columns["size_bytes"], columns["etag"])
    return dict(zip(files, columns["digests"], strict=True))


def _checksum(body: bytes, about: str) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM_BYTES, key=hashlib.sha256(about.encode()).digest()).digest()
