"""Image versions that have a result or a permanent failure already, for `--incremental`.

A version is told from another by its S3 version id; without one by its entity tag; of a local file by size and time.
All versions in the tables of a model are read once, into a set of 16 bytes for each: 32 where S3 keeps versions, as the
list may tell an image's version or its entity tag alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.aws.arn import ModelArn
from batchcl.digests import NameSet
from batchcl.failure_codes import PERMANENT_CODES
from batchcl.images import ImageRef
from batchcl.runs.damage import intact
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.scoring.outcome import Known
from batchcl.sources.select import Pause, no_pause

__all__ = ["KnownVersions"]

_FILES_AT_ONCE: Final = 8
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


class KnownVersions:
    """Answers for one model's tables below one root, as they were at the first question.

    An image of which the list tells neither version id nor entity tag, nor size and time of a local file, is never
    known.

    Args:
        store: the output root.
        model: whose rows count. A retrained model of the same name is another one, with another ARN.
        fit: the `--fit` setting: failures count that are permanent with the same one.
        retry_failed: no failure counts.
        pause: awaited while results are read, with the number of images that could have been listed meanwhile.
    """

    def __init__(
        self, store: Store, model: ModelArn, *, fit: bool = False, retry_failed: bool = False, pause: Pause = no_pause
    ) -> None:
        self._store = store
        self._model = model
        self._pause = pause
        self._wanted = {"results": pl.col("model_arn") == model.text}
        if not retry_failed:
            permanent = pl.col("error_code").is_in(PERMANENT_CODES) & (pl.col("fit") == fit)
            self._wanted["failures"] = self._wanted["results"] & permanent
        self._known: dict[str, NameSet] | None = None
        self._reading = anyio.Lock()

    async def known(self, images: Sequence[ImageRef]) -> list[Known | None]:
        """For each image, what the tables say of this version of it. Raises `OutputError` for a corrupt file."""
        async with self._reading:  # both the listing and a resumed shard may ask first
            if self._known is None:
                self._known = await self._read_all()
        return await anyio.to_thread.run_sync(_look_up, self._known, images)

    async def _read_all(self) -> dict[str, NameSet]:
        known = {table: NameSet() for table in self._wanted}
        filling = anyio.Lock()

        async def read(path: str) -> None:
            batches = await anyio.to_thread.run_sync(self._open, path)
            while (rows := await anyio.to_thread.run_sync(self._next, path, batches)) is not None:
                async with filling:
                    await anyio.to_thread.run_sync(known[_table(path)].update, _names(rows))
                    await self._pause(len(rows) // _ROWS_PER_IMAGE)

        files = [file for table in known for file in await self._store.list_all(f"{table}/model={self._model.name}")]
        paths = [file.path for file in files if file.path.endswith(".parquet")]
        await together(read, paths, at_once=_FILES_AT_ONCE)
        return known

    def _open(self, path: str) -> Iterator[pa.RecordBatch]:
        columns = {*_SCHEMA, *self._wanted[_table(path)].meta.root_names()}
        with self._intact(path):
            file = pq.ParquetFile(self._store.open_file(path))
            return file.iter_batches(_BATCH_ROWS, columns=sorted(columns))  # type: ignore[no-any-return]

    def _next(self, path: str, batches: Iterator[pa.RecordBatch]) -> pl.DataFrame | None:
        with self._intact(path):
            batch = next(batches, None)
        if batch is None:
            return None
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        return frame.filter(self._wanted[_table(path)]).select(
            pl.col(name).cast(kind) for name, kind in _SCHEMA.items()
        )

    def _intact(self, path: str) -> AbstractContextManager[None]:
        remedy = "restore it, or run without --incremental"
        return intact(self._store.uri(path), remedy=remedy, errors=(pa.ArrowInvalid,))


def _table(path: str) -> str:
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


def _names(known: pl.DataFrame) -> Iterator[bytes]:
    """All names by which the versions in `known`, which has the columns of `_SCHEMA`, may be asked for."""
    local = ~pl.col("uri").str.contains("^s3://")
    for column in known.select(version=_BY_VERSION, etag=_BY_ETAG, time=pl.when(local).then(_BY_TIME)):
        yield from column.drop_nulls().to_list()


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
