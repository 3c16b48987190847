"""The work list of a run: Parquet shards of images that are written once, in order, while the listing continues.

Images are handled as Arrow tables with the columns of `IMAGES`; `ImageRef` objects are created only while iterating.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import ErrorCode, OutputError
from batchcl.images import ArchiveMember, Bookmark, ImageRef, Position
from batchcl.runs.corruption import decode_or_raise, known_fields
from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import utf8
from batchcl.runs.store import Store
from batchcl.summary import SourceCounts

__all__ = ["IMAGES", "Batch", "ImageRows", "WorkList", "image_table"]

_BOOKMARK: Final = b"batchcl.bookmark"
_REMEDY: Final = "restore it, or score the remaining images with --incremental and another --run-id"
_SLICE: Final = 1000
_CHUNK_ROWS: Final = 512
"""Number of images that exist as objects at the same time."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

IMAGES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.binary(), nullable=False),  # names of local files need not be UTF-8
        pa.field("version_id", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
        pa.field("extra", pa.string()),
        pa.field("region", pa.string()),
        pa.field("archive", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("any_extension", pa.bool_()),
    ]
)


def image_table(images: Sequence[ImageRef]) -> pa.Table:
    """`images` as a table with the columns of `IMAGES`, in their order."""
    columns: dict[str, list[Any]] = {
        "uri": [image.uri for image in images],
        "bucket": [image.bucket for image in images],
        "key": [utf8(image.key) for image in images],
        "version_id": [image.version_id for image in images],
        "etag": [image.etag for image in images],
        "size_bytes": [image.size_bytes for image in images],
        "last_modified": [image.last_modified for image in images],
        "extra": [image.extra for image in images],
        "region": [image.region for image in images],
        "archive": [None if image.member is None else utf8(image.member.archive) for image in images],
        "offset": [None if image.member is None else image.member.offset for image in images],
        "any_extension": [image.any_extension for image in images],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in IMAGES], schema=IMAGES)


class ImageRows:
    """The images of a table at `positions`, created while iterating; can be iterated repeatedly."""

    def __init__(self, table: pa.Table, positions: Sequence[int]) -> None:
        self._table = table
        self._positions = positions

    def __iter__(self) -> Iterator[ImageRef]:
        for start in range(0, len(self._positions), _CHUNK_ROWS):
            columns = _columns(_rows(self._table, self._positions[start : start + _CHUNK_ROWS]))
            for (
                uri,
                bucket,
                key,
                version_id,
                etag,
                size_bytes,
                last_modified,
                extra,
                region,
                archive,
                offset,
                any_extension,
            ) in zip(*columns, strict=True):
                yield ImageRef(
                    uri=uri,
                    bucket=bucket,
                    key=_text(key),
                    version_id=version_id,
                    etag=etag,
                    size_bytes=size_bytes,
                    last_modified=last_modified,
                    extra=extra,
                    region=region,
                    member=None if archive is None else ArchiveMember(_text(archive), offset),
                    any_extension=any_extension,
                )


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shard to score, and the position of each in the shard. `images` can be iterated repeatedly."""

    shard: int
    images: Iterable[ImageRef]
    positions: Sequence[int]


def _rows(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    first = positions[0]
    if all(position == at for at, position in enumerate(positions, first)):
        return table.slice(first, len(positions))  # `take` imports pyarrow.compute, which takes 30 ms
    return table.take(pa.array(positions, pa.int32()))


def _columns(rows: pa.Table) -> list[list[Any]]:
    """The values of each column."""
    columns = {field.name: rows[field.name] for field in IMAGES}
    times = columns.pop("last_modified").combine_chunks().view(pa.int64()).to_pylist()  # 7x faster than as timestamps
    values = {name: column.to_pylist() for name, column in columns.items()}
    values["last_modified"] = [None if us is None else _EPOCH + dt.timedelta(microseconds=us) for us in times]
    return [values[field.name] for field in IMAGES]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class WorkList:
    """The work list of one run. A writer appends shards; readers wait for them."""

    def __init__(self, store: Store, paths: RunPaths) -> None:
        self._store = store
        self._paths = paths
        self._shards = 0
        self._images = 0
        self._bookmark: Bookmark | None = None
        self._totals: SourceCounts | None = None
        self._changed = anyio.Event()

    async def open(self) -> None:
        """Read the state of an existing list: its totals, or else the names of its shards and the last one."""
        totals = await self._store.get(self._paths.totals)
        if totals is not None:
            where = self._store.uri(self._paths.totals)
            with decode_or_raise(where, remedy="delete it, and the same command lists the remaining images again"):
                values = orjson.loads(totals)
                self._shards = values["shards"]
                self._totals = SourceCounts(**known_fields(SourceCounts, values))
            self._images = self._totals.planned
            return
        shards = await self._store.list_all(self._paths.worklist)
        self._shards = len(shards)
        if shards:
            data = await self._read(last := self._shards - 1)
            with self._decoding(last):
                metadata = await anyio.to_thread.run_sync(lambda: pq.read_schema(io.BytesIO(data)).metadata)
                self._bookmark = _decode_bookmark(metadata)
            self._images = self._bookmark.taken - self._bookmark.already_scored - self._bookmark.already_failed

    @property
    def totals(self) -> SourceCounts | None:
        """The counts of the complete list; None while it is being written."""
        return self._totals

    @property
    def shards(self) -> int:
        """Number of shards so far."""
        return self._shards

    @property
    def images(self) -> int:
        """Number of images so far."""
        return self._images

    @property
    def bookmark(self) -> Bookmark | None:
        """Where the listing resumes; None for its beginning."""
        return self._bookmark

    async def freeze(self, images: pa.Table, bookmark: Bookmark) -> None:
        """Append a shard of `images`, with the columns of `IMAGES`. `bookmark` is the position after the last image.

        Raises:
            StoppedError: another process has written a different shard.
        """
        data = await anyio.to_thread.run_sync(_encode_shard, images, bookmark)
        await self._store.put_exclusive(self._paths.frozen(self._shards), data, what="the work list")
        self._shards += 1
        self._images += images.num_rows
        self._bookmark = bookmark
        self._notify()

    async def complete(self, totals: SourceCounts) -> None:
        """Mark the list as complete. Raises `StoppedError` if another process has written different totals."""
        data = orjson.dumps({"shards": self._shards} | asdict(totals))
        await self._store.put_exclusive(self._paths.totals, data, what="the work list's totals")
        self._totals = totals
        self._notify()

    async def shard_numbers(self) -> AsyncIterator[int]:
        """Yield the number of each shard as soon as it exists, until the list is complete."""
        number = 0
        while True:
            while number >= self._shards:
                if self._totals is not None:
                    return
                await self._changed.wait()
            yield number
            number += 1

    async def load(self, shard: int) -> pa.Table:
        """The images of a shard, in order, with the columns of `IMAGES`."""
        data = await self._read(shard)
        with self._decoding(shard):
            return await anyio.to_thread.run_sync(_decode_shard, data)

    async def frozen_images(self) -> AsyncIterator[tuple[int, list[ImageRef]]]:
        """The images so far, in order, in batches; each with the number of the first source that may contain them."""
        source = 0
        for shard in range(self._shards):
            data = await self._read(shard)
            with self._decoding(shard):
                table = await anyio.to_thread.run_sync(_read_shard, data)
            for begin in range(0, len(table), _SLICE):
                positions = range(begin, min(begin + _SLICE, len(table)))
                yield source, await anyio.to_thread.run_sync(list[ImageRef], ImageRows(table, positions))
            source = _decode_bookmark(table.schema.metadata).source

    async def _read(self, shard: int) -> bytes:
        path = self._paths.frozen(shard)
        data = await self._store.get(path)
        if data is None:
            raise OutputError(
                f"reading the work list failed: {self._store.uri(path)} is missing; {_REMEDY}",
                code=ErrorCode.CORRUPT_OUTPUT,
            )
        return data

    def _decoding(self, shard: int) -> AbstractContextManager[None]:
        return decode_or_raise(self._store.uri(self._paths.frozen(shard)), remedy=_REMEDY)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _read_shard(data: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def _decode_shard(data: bytes) -> pa.Table:
    table = _read_shard(data)
    if table.schema.equals(IMAGES):
        return table.replace_schema_metadata(None)
    return pq.read_table(pa.BufferReader(data), schema=IMAGES)  # which imports pyarrow.dataset, and takes 30 ms for it


def _encode_shard(images: pa.Table, bookmark: Bookmark) -> bytes:
    sink = io.BytesIO()
    metadata = {_BOOKMARK: orjson.dumps(bookmark)}
    pq.write_table(images.combine_chunks().replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def _decode_bookmark(metadata: Mapping[bytes, bytes]) -> Bookmark:
    values = orjson.loads(metadata[_BOOKMARK])
    position = Position(**known_fields(Position, values["position"]))
    return Bookmark(**known_fields(Bookmark, values) | {"position": position})
