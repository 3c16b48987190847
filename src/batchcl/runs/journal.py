"""The journal of a shard: numbered Arrow segments, each created exclusively under the next number.

A segment contains entries (outcomes), or is a cut, which contains none. The entries between two cuts are a chunk; a
chunk becomes one published file in each table. The process that creates a number first owns the shard; another process
fails to create it and stops. So a shard has one writer at a time, and a process that was suspended while another one
took over the shard can't append to it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import pyarrow as pa

from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, OutputError
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.entries import ENTRIES, JournalEntry, entry_table
from batchcl.runs.layout import RunPaths, segment_number
from batchcl.runs.store import Store, StoredFile

__all__ = ["Journal", "JournalChunk", "JournalContent"]

_WRITER: Final = b"batchcl.writer"
_CUT: Final = b"batchcl.cut"
_AT_ONCE: Final = 16
_NO_ENTRIES: Final = ENTRIES.empty_table()
_READ: Final = pa.ipc.IpcReadOptions(use_threads=False)
_WRITE: Final = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
"""A segment is small: in pyarrow's threads it takes twice the processor time."""

_LISTING_PAUSES_S: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Pauses between listings that lack a segment: S3 lists what was written before, some other stores do so later."""

_REMEDY: Final = "restore the journal, or score the remaining images with --incremental and another --run-id"


@dataclass(frozen=True, slots=True)
class JournalChunk:
    """The entries between two cuts, with the columns of `ENTRIES`; `first` is the number of their first segment."""

    first: int
    entries: pa.Table


@dataclass(frozen=True, slots=True)
class JournalContent:
    """Everything in a journal.

    Attributes:
        chunks: the chunks that a cut has closed, without empty ones.
        uncut: the entries after the last cut; None if there are none.
    """

    chunks: tuple[JournalChunk, ...]
    uncut: JournalChunk | None

    @property
    def entries(self) -> pa.Table:
        """All entries, in the order of writing."""
        chunks = self.chunks if self.uncut is None else (*self.chunks, self.uncut)
        return pa.concat_tables([_NO_ENTRIES, *(chunk.entries for chunk in chunks)])


class Journal:
    """The journal of one shard, over all rounds of its run.

    Args:
        store: the output root.
        paths: the run's.
        shard: number of the shard.
        writer: distinguishes this process's segments from another's.
    """

    def __init__(self, store: Store, paths: RunPaths, shard: int, *, writer: str) -> None:
        self._store = store
        self._paths = paths
        self._shard = shard
        self._writer = writer
        self._next = 0
        self._staged: bytes | None = None
        self._lock = anyio.Lock()

    async def read(self) -> JournalContent:
        """Read all segments. Later writes append after them.

        Raises:
            OutputError: a segment is corrupt, or the store does not list one that this object has written or read.
        """
        async with self._lock:
            files, numbers = await self._list()
            self._next = 1 + max(numbers, default=-1)
        segments = await gather(self._store.get, [file.path for file in files], at_once=_AT_ONCE)
        where = [self._store.uri(file.path) for file in files]
        return await anyio.to_thread.run_sync(_decode, list(zip(numbers, where, segments, strict=True)))

    async def _list(self) -> tuple[list[StoredFile], list[int]]:
        """The files of all segments, and their numbers; waits for those that the store does not list yet."""
        for pause_s in (0, *_LISTING_PAUSES_S):
            await anyio.sleep(pause_s)
            files = await self._store.list_all(self._paths.journal(self._shard))
            numbers = [segment_number(file.path) for file in files]
            if max(numbers, default=-1) >= self._next - 1:
                return files, numbers
        raise OutputError(
            f"{self._store.uri(self._paths.segment(self._shard, self._next - 1))} was written, but the store does "
            "not list it; repeat the command once it does, or use another output root"
        )

    async def stage(self, entries: Sequence[JournalEntry], *, round_: int, fit: bool = False) -> int:
        """Prepare `entries` as the next segment, which `flush` writes; returns their number."""
        await self.flush()
        staged = list(entries)
        self._staged = await anyio.to_thread.run_sync(
            lambda: _encode(entry_table(staged, round_=round_, fit=fit), self._writer)
        )
        return len(staged)

    async def flush(self) -> None:
        """Write the staged segment. Raises `StoppedError` if another process has created it.

        A write that fails or is cancelled may have taken effect; calling again writes the same bytes. Concurrent calls
        write it once.
        """
        async with self._lock:
            if self._staged is not None:
                path = self._paths.segment(self._shard, self._next)
                await self._store.put_exclusive(path, self._staged, what=f"the journal of shard {self._shard}")
                self._next += 1
                self._staged = None

    async def cut(self) -> None:
        """Close the current chunk. Raises `StoppedError` as `flush` does."""
        await self.flush()
        self._staged = _encode(_NO_ENTRIES, self._writer, is_cut=True)
        await self.flush()


def _encode(entries: pa.Table, writer: str, *, is_cut: bool = False) -> bytes:
    metadata: dict[bytes | str, bytes | str] = {_WRITER: writer, **({_CUT: b"1"} if is_cut else {})}
    table = entries.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=_WRITE) as out:
        out.write_table(table)
    return sink.getvalue()


def _decode(segments: Iterable[tuple[int, str, bytes | None]]) -> JournalContent:
    chunks: list[JournalChunk] = []
    tables: list[pa.Table] = []
    first = 0
    for expected, (number, where, segment) in enumerate(segments):
        if number != expected or not segment:
            problem = "it is empty" if number == expected else f"segment {expected} is missing"
            raise OutputError(f"{where} is corrupt: {problem}; {_REMEDY}", code=ErrorCode.CORRUPT_OUTPUT)
        with (
            decode_or_raise(where, remedy=_REMEDY),
            pa.ipc.open_file(pa.py_buffer(segment), options=_READ) as file,
        ):
            is_cut = _CUT in (file.schema.metadata or {})
            table = file.read_all().replace_schema_metadata(None)
        if not is_cut:
            first = first if tables else number
            tables.append(table)
        elif tables:
            chunks.append(_chunk(first, tables))
            tables = []
    return JournalContent(tuple(chunks), _chunk(first, tables) if tables else None)


def _chunk(first: int, tables: Sequence[pa.Table]) -> JournalChunk:
    """The chunk of these segments; columns that another version lacks are null, those that it has added ignored."""
    entries = pa.concat_tables([_NO_ENTRIES, *tables], promote_options="default")
    return JournalChunk(first, entries.select(ENTRIES.names))
