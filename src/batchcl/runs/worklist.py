"""The frozen list of a run: Parquet shards, written once, in order, while listing continues."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import OutputError
from batchcl.images import ArchiveMember, Bookmark, ImageRef, Position
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import utf8
from batchcl.runs.store import Store

__all__ = ["IMAGES", "Batch", "ImageRows", "WorkList", "WorkListTotals", "image_table"]

_BOOKMARK: Final = b"batchcl.bookmark"
_SLICE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkListTotals:
    """What a complete list comes to.

    Attributes:
        shards: number of shards.
        images: on the list.
        repeated: images that the sources named more than once, beyond the first time.
        known: images left out by `--incremental`, as their version has a result already.
        known_failed: images left out by `--incremental`, as their version has a permanent failure already.
        bad_lines: lines that name no image and were left out.
        filtered: images left out by the filters.
        filtered_by: which filter → how many of them.
        left_out: lines that name something that is no image to score: what → how many.
        lines: of all lists; None where a source is no list.
    """

    shards: int
    images: int
    repeated: int = 0
    known: int = 0
    known_failed: int = 0
    bad_lines: int = 0
    filtered: int = 0
    filtered_by: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    lines: int | None = None


class WorkList:
    """One run's list: its writer freezes shards, its reader waits for them."""

    def __init__(self, store: Store, paths: RunPaths) -> None:
        self._store = store
        self._paths = paths
        self._shards = 0
        self._images = 0
        self._bookmark: Bookmark | None = None
        self._totals: WorkListTotals | None = None
        self._changed = anyio.Event()

    async def open(self) -> None:
        """Find out what is frozen already. Reads one shard at most, however long the list."""
        totals = await self._store.get(self._paths.totals)
        if totals is not None:
            where = self._store.uri(self._paths.totals)
            with decode_or_raise(where, remedy="delete it, and the rest of the list is listed again"):
                self._totals = WorkListTotals(**orjson.loads(totals))
            self._shards, self._images = self._totals.shards, self._totals.images
            return
        frozen = await self._store.list_all(self._paths.worklist)
        self._shards = len(frozen)
        if frozen:
            data = await self._read(last := self._shards - 1)
            with self._intact(last):
                metadata = await anyio.to_thread.run_sync(lambda: pq.read_schema(io.BytesIO(data)).metadata)
                self._bookmark = _bookmark(orjson.loads(metadata[_BOOKMARK]))
            self._images = self._bookmark.taken - self._bookmark.known - self._bookmark.known_failed

    @property
    def totals(self) -> WorkListTotals | None:
        """None while the list grows."""
        return self._totals

    @property
    def shards(self) -> int:
        """Frozen so far."""
        return self._shards

    @property
    def images(self) -> int:
        """Frozen so far."""
        return self._images

    @property
    def bookmark(self) -> Bookmark | None:
        """Where the listing goes on; None at its beginning."""
        return self._bookmark

    async def freeze(self, images: pa.Table, bookmark: Bookmark) -> None:
        """Add the next shard: `images` has the columns of `IMAGES`, and `bookmark` lies behind its last image.

        Raises:
            StoppedError: somebody else has written another one.
        """
        data = await anyio.to_thread.run_sync(_encode_shard, images, bookmark)
        await self._store.put_mine(self._paths.frozen(self._shards), data, what="the work list")
        self._shards += 1
        self._images += images.num_rows
        self._bookmark = bookmark
        self._notify()

    async def complete(self, totals: WorkListTotals) -> None:
        """No more shards will come. Raises `StoppedError` where another runner has counted something else."""
        await self._store.put_mine(self._paths.totals, orjson.dumps(asdict(totals)), what="the work list's totals")
        self._totals = totals
        self._notify()

    async def shard_numbers(self) -> AsyncIterator[int]:
        """The number of each shard as soon as it is frozen, to the end of the list."""
        number = 0
        while True:
            while number >= self._shards:
                if self._totals is not None:
                    return
                await self._changed.wait()
            yield number
            number += 1

    async def load(self, shard: int) -> pa.Table:
        """The images of a frozen shard, in order, with the columns of `IMAGES`."""
        data = await self._read(shard)
        with self._intact(shard):
            return await anyio.to_thread.run_sync(lambda: pq.read_table(pa.BufferReader(data), schema=IMAGES))

    async def frozen_images(self) -> AsyncIterator[tuple[int, list[ImageRef]]]:
        """The images that are frozen by now, in order, some at a time and with the first source that they may be of."""
        source = 0
        for shard in range(self._shards):
            data = await self._read(shard)
            with self._intact(shard):
                table = await anyio.to_thread.run_sync(lambda data: pq.read_table(pa.BufferReader(data)), data)
            for begin in range(0, len(table), _SLICE):
                positions = range(begin, min(begin + _SLICE, len(table)))
                yield source, await anyio.to_thread.run_sync(list[ImageRef], ImageRows(table, positions))
            source = _bookmark(orjson.loads(table.schema.metadata[_BOOKMARK])).source

    async def _read(self, shard: int) -> bytes:
        path = self._paths.frozen(shard)
        data = await self._store.get(path)
        if data is None:
            raise OutputError(f"{self._store.uri(path)} is missing: the run's work list is damaged; restore it")
        return data

    def _intact(self, shard: int) -> AbstractContextManager[None]:
        where = self._store.uri(self._paths.frozen(shard))
        return decode_or_raise(
            where, remedy="restore it, or score what is left under another run id with --incremental"
        )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _encode_shard(images: pa.Table, bookmark: Bookmark) -> bytes:
    sink = io.BytesIO()
    metadata = {_BOOKMARK: orjson.dumps(asdict(bookmark))}
    pq.write_table(images.combine_chunks().replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def _bookmark(values: dict[str, Any]) -> Bookmark:
    return Bookmark(**values | {"position": Position(**values["position"])})


IMAGES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.binary(), nullable=False),  # a local name need not be UTF-8
        pa.field("version_id", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
        pa.field("extra", pa.string()),
        pa.field("region", pa.string()),
        pa.field("archive", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("any_name", pa.bool_()),
    ]
)
_ROWS_AT_ONCE: Final = 512
"""So many images are objects at a time."""


def image_table(images: Sequence[ImageRef]) -> pa.Table:
    """`images` with the columns of `IMAGES`, in their order."""
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
        "any_name": [image.any_name for image in images],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in IMAGES], schema=IMAGES)


class ImageRows:
    """The images of a table at `positions`, made while they are iterated; can be iterated again."""

    def __init__(self, table: pa.Table, positions: Sequence[int]) -> None:
        self._table = table
        self._positions = positions

    def __iter__(self) -> Iterator[ImageRef]:
        for start in range(0, len(self._positions), _ROWS_AT_ONCE):
            rows = self._table.take(pa.array(self._positions[start : start + _ROWS_AT_ONCE], pa.int32()))
            frame = pl.DataFrame(rows)  # of moments, pyarrow's own lists take seven times as long
            columns = [frame[field.name].to_list() for field in IMAGES]
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
                any_name,
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
                    any_name=any_name,
                )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shard that are to be scored, and the position of each in the shard.

    `images` can be iterated more than once; it may make them while it is.
    """

    shard: int
    images: Iterable[ImageRef]
    positions: Sequence[int]
