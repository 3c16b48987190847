"""Image versions that have a result already, for `--incremental`.

Sized for many nights over many images: the range of uris in each part of the model is read once, from its footer; a
page of the list then reads only row groups whose range it meets, and only the columns that tell a version. Parts are
sorted by uri, so over a prefix that is scored every night that is about one row group a night.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.runs.damage import intact
from batchcl.runs.store import Store
from batchcl.runs.together import together

__all__ = ["KnownVersions"]

_AT_ONCE: Final = 16
_LAST: Final = "\U0010ffff"
"""Behind any name."""

_SCHEMA: Final[dict[str, pl.DataType]] = {
    "uri": pl.String(),
    "version_id": pl.String(),
    "etag": pl.String(),
    "size_bytes": pl.Int64(),
    "last_modified": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True, slots=True)
class _RowGroup:
    path: str
    number: int
    first: str
    last: str


class KnownVersions:
    """Answers for one model's results below one root.

    A version is known by its version id; without one by its etag; for a local file by its size and time. An image of
    which the list tells none of these is never known.
    """

    def __init__(self, store: Store, model: str) -> None:
        self._store = store
        self._model = model
        self._groups: list[_RowGroup] | None = None
        self._cached: dict[_RowGroup, pl.DataFrame] = {}

    async def fresh(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image, whether this version of it has no result yet."""
        if self._groups is None:
            self._groups = await self._index()
        uris = [image.uri for image in images]
        low, high = min(uris), max(uris)
        wanted = [group for group in self._groups if group.first <= high and group.last >= low]
        self._cached = {group: frame for group, frame in self._cached.items() if group in set(wanted)}
        frames = []
        for group in wanted:
            try:
                if group not in self._cached:
                    self._cached[group] = await self._read(group)
            except OutputError:
                if await self._store.exists(group.path):
                    raise
                self._groups = None  # merged into another file meanwhile
                return await self.fresh(images)
            frames.append(self._cached[group])
        if not frames:
            return [True] * len(images)
        return await anyio.to_thread.run_sync(_fresh, images, frames)

    async def _index(self) -> list[_RowGroup]:
        files = await self._store.list_all(f"results/model={self._model}")
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def look(path: str) -> list[_RowGroup]:
            return await anyio.to_thread.run_sync(self._row_groups, path, limiter=limiter)

        parts = [file.path for file in files if file.path.endswith(".parquet")]
        return [group for part in await together(look, parts, at_once=_AT_ONCE) for group in part]

    def _row_groups(self, path: str) -> list[_RowGroup]:
        with self._intact(path):
            metadata = pq.read_metadata(self._store.open_file(path))
        column = metadata.schema.to_arrow_schema().get_field_index("uri")
        found = []
        for number in range(metadata.num_row_groups):
            statistics = metadata.row_group(number).column(column).statistics
            if statistics is None or not statistics.has_min_max:  # as of names that are too long
                found.append(_RowGroup(path, number, "", _LAST))
            else:
                found.append(_RowGroup(path, number, statistics.min, statistics.max))
        return found

    async def _read(self, group: _RowGroup) -> pl.DataFrame:
        return await anyio.to_thread.run_sync(self._read_now, group)

    def _read_now(self, group: _RowGroup) -> pl.DataFrame:
        with self._intact(group.path), pq.ParquetFile(self._store.open_file(group.path)) as file:
            table = file.read_row_group(group.number, columns=list(_SCHEMA))
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _intact(self, path: str) -> AbstractContextManager[None]:
        remedy = "restore it, or run without --incremental"
        return intact(self._store.uri(path), remedy=remedy, errors=(pa.ArrowInvalid,))


def _fresh(images: Sequence[ImageRef], frames: Sequence[pl.DataFrame]) -> list[bool]:
    """Join the images with what `frames` know of the same uris."""
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
    ).with_row_index("n")
    known = pl.concat([frame.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items()) for frame in frames])
    pairs = listed.join(known, on="uri", suffix="_known")
    by_version = pl.col("version_id") == pl.col("version_id_known")
    by_etag = pl.col("version_id").is_null() & (pl.col("etag") == pl.col("etag_known"))
    by_time = (
        pl.col("local")
        & (pl.col("size_bytes") == pl.col("size_bytes_known"))
        & (pl.col("last_modified") == pl.col("last_modified_known"))
    )
    found = pairs.filter(
        by_version.fill_null(value=False) | by_etag.fill_null(value=False) | by_time.fill_null(value=False)
    )
    seen = set(found["n"])
    return [n not in seen for n in range(len(images))]
