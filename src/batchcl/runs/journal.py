"""The durable outcomes of a shard so far: Arrow segments, each created exclusively under the next number.

Whoever creates a number first goes on; the other one stops. So a shard has one writer at a time without any lock, and
what a segment holds was recorded by somebody who had read all segments before it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Final

import anyio.to_thread
import pyarrow as pa

from batchcl.runs.damage import intact
from batchcl.runs.entries import ENTRIES, Entry, entry_table
from batchcl.runs.layout import RunPaths, sequence
from batchcl.runs.store import Store
from batchcl.runs.together import together

__all__ = ["Journal"]

_WRITER: Final = b"batchcl.writer"
_AT_ONCE: Final = 16


class Journal:
    """The journal of one shard in one round.

    Args:
        store: the output root.
        paths: the run's.
        shard: number of the shard.
        round_: 0, or the number of the retry.
        writer: tells this runner's segments from another's.
    """

    def __init__(self, store: Store, paths: RunPaths, shard: int, *, round_: int, writer: str) -> None:
        self._store = store
        self._paths = paths
        self._shard = shard
        self._round = round_
        self._writer = writer
        self._next = 0
        self._unsettled: bytes | None = None

    async def read(self) -> pa.Table:
        """All entries so far, in the order in which they were written, with the columns of `ENTRIES`."""
        files = await self._store.list_all(self._paths.journal(self._shard, self._round))
        self._next = 1 + max((sequence(file.path) for file in files), default=-1)
        segments = await together(self._store.get, [file.path for file in files], at_once=_AT_ONCE)
        where = [self._store.uri(file.path) for file in files]
        return await anyio.to_thread.run_sync(_decode, zip(where, segments, strict=True))

    async def stage(self, entries: Sequence[Entry]) -> int:
        """Take over `entries` for the next segment, which `settle` writes; returns how many."""
        await self.settle()
        taken = list(entries)
        self._unsettled = await anyio.to_thread.run_sync(_encode, taken, self._round, self._writer)
        return len(taken)

    async def settle(self) -> None:
        """Make what was staged durable. Raises `StoppedError` if another runner has written the segment.

        A write that fails or is cancelled may have happened all the same; calling again writes the same bytes.
        """
        if self._unsettled is not None:
            path = self._paths.segment(self._shard, self._round, self._next)
            await self._store.put_mine(path, self._unsettled, what=f"the journal of shard {self._shard}")
            self._next += 1
            self._unsettled = None


def _encode(entries: Sequence[Entry], round_: int, writer: str) -> bytes:
    table = entry_table(entries, round_=round_).replace_schema_metadata({_WRITER: writer})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(table)
    return sink.getvalue()


def _decode(segments: Iterable[tuple[str, bytes | None]]) -> pa.Table:
    tables = [ENTRIES.empty_table()]
    for where, segment in segments:
        if not segment:
            continue  # its name was there before the power went: nobody was told that it is durable
        with (
            intact(where, remedy="delete it, and its images are scored again"),
            pa.ipc.open_file(pa.py_buffer(segment)) as file,
        ):
            tables.append(file.read_all().replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="default")  # an older version's segments may lack a column
