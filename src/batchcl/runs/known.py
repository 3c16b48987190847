"""Image versions that have a result already, for `--incremental`.

Sized for many nights over many images: the range of uris in each part of the model is read once, from its footer; a
page of the list then reads only row groups whose range it meets, and only the columns that tell a version. Parts are
sorted by uri, so over a prefix that is scored every night that is about one row group a night.

A list in no order, as an inventory is, meets nearly all row groups with every page. For that all versions are read
once, into a set on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.digests import SeenOnDisk
from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.runs.damage import intact
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.runs.versions import SCHEMA, names, not_among, not_in

__all__ = ["KnownVersions"]

_AT_ONCE: Final = 16
_GROUPS_AT_ONCE: Final = 2
_MOST_ROWS: Final = 500_000
"""Known versions that a page of the list may meet, before all go to disk: some 110 bytes each while they are needed."""

_LAST: Final = "\U0010ffff"
"""Behind any name."""


@dataclass(frozen=True, slots=True)
class _RowGroup:
    path: str
    number: int
    rows: int
    first: str
    last: str


class KnownVersions:
    """Answers for one model's results below one root.

    A version is known by its version id; without one by its etag; for a local file by its size and time. An image of
    which the list tells none of these is never known.
    """

    def __init__(self, store: Store, model: str, *, most_rows: int = _MOST_ROWS) -> None:
        self._store = store
        self._model = model
        self._most_rows = most_rows
        self._groups: list[_RowGroup] | None = None
        self._cached: dict[_RowGroup, pl.DataFrame] = {}
        self._all: SeenOnDisk | None = None

    async def fresh(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image, whether this version of it has no result yet."""
        if self._all is not None:
            return await anyio.to_thread.run_sync(not_in, self._all, images)
        if self._groups is None:
            self._groups = await self._index()
        uris = [image.uri for image in images]
        low, high = min(uris), max(uris)
        wanted = [group for group in self._groups if group.first <= high and group.last >= low]
        if sum(group.rows for group in wanted) > self._most_rows:
            self._cached = {}
            self._all = await self._read_all(self._groups)
            return await self.fresh(images)
        self._cached = {group: frame for group, frame in self._cached.items() if group in set(wanted)}
        for group in wanted:
            if group not in self._cached:
                frame = await self._read(group)
                if frame is None:
                    self._groups = None
                    return await self.fresh(images)
                self._cached[group] = frame
        if not wanted:
            return [True] * len(images)
        return await anyio.to_thread.run_sync(not_among, images, [self._cached[group] for group in wanted])

    async def _read_all(self, groups: Iterable[_RowGroup]) -> SeenOnDisk:
        """Every version of the model in a set on disk."""
        seen = SeenOnDisk()
        taking = anyio.Lock()
        taken: set[_RowGroup] = set()

        async def take(group: _RowGroup) -> bool:
            frame = await self._read(group)
            if frame is None:
                return False
            async with taking:
                await anyio.to_thread.run_sync(lambda: seen.update(names(frame)))
            taken.add(group)
            return True

        while not all(await together(take, [group for group in groups if group not in taken], at_once=_GROUPS_AT_ONCE)):
            groups = await self._index()
        await anyio.to_thread.run_sync(seen.seal)
        return seen

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
            group = metadata.row_group(number)
            statistics = group.column(column).statistics
            if statistics is None or not statistics.has_min_max:  # as of names that are too long
                found.append(_RowGroup(path, number, group.num_rows, "", _LAST))
            else:
                found.append(_RowGroup(path, number, group.num_rows, statistics.min, statistics.max))
        return found

    async def _read(self, group: _RowGroup) -> pl.DataFrame | None:
        """The versions in a row group; None where its file was merged into another one meanwhile."""
        try:
            return await anyio.to_thread.run_sync(self._read_now, group)
        except OutputError:
            if await self._store.exists(group.path):
                raise
            return None

    def _read_now(self, group: _RowGroup) -> pl.DataFrame:
        with self._intact(group.path), pq.ParquetFile(self._store.open_file(group.path)) as file:
            table = file.read_row_group(group.number, columns=list(SCHEMA))
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())

    def _intact(self, path: str) -> AbstractContextManager[None]:
        remedy = "restore it, or run without --incremental"
        return intact(self._store.uri(path), remedy=remedy, errors=(pa.ArrowInvalid,))
