"""The durable outcomes of a shard so far: Arrow segments, each created exclusively under the next number.

Whoever creates a number first goes on; the other one stops. So a shard has one writer at a time without any lock, and
what a segment holds was recorded by somebody who had read all segments before it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import anyio.to_thread
import pyarrow as pa

from batchcl.images import ImageRef
from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import LABEL, UTC_US, label_row
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.scoring.outcome import Failed, Label, Outcome, Scored

__all__ = ["Entry", "Journal"]

_SCHEMA: Final = pa.schema(
    [
        pa.field("position", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("at", UTC_US, nullable=False),
        pa.field("labels", pa.list_(LABEL)),
        pa.field("latency_ms", pa.float32()),
        pa.field("request_id", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
    ]
)
_WRITER: Final = b"batchcl.writer"
_SCORED: Final = "scored"
_AT_ONCE: Final = 16


class Entry(NamedTuple):
    """An outcome and the position of its image in the shard."""

    position: int
    outcome: Outcome


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

    async def read(self, images: Sequence[ImageRef]) -> list[Entry]:
        """All entries so far, in the order in which they were written; `images` are the shard's."""
        files = await self._store.list_all(self._paths.journal(self._shard, self._round))
        self._next = len(files)
        segments = await together(self._store.get, [file.path for file in files], at_once=_AT_ONCE)
        return await anyio.to_thread.run_sync(_decode, [data for data in segments if data], images, self._round)

    async def stage(self, entries: Sequence[Entry]) -> int:
        """Take over `entries` for the next segment, which `settle` writes; returns how many."""
        await self.settle()
        count = len(entries)
        self._unsettled = await anyio.to_thread.run_sync(_encode, list(entries), self._writer)
        return count

    async def settle(self) -> None:
        """Make what was staged durable. Raises `StoppedError` if another runner has written the segment.

        A write that fails or is cancelled may have happened all the same; calling again writes the same bytes.
        """
        if self._unsettled is not None:
            path = self._paths.segment(self._shard, self._round, self._next)
            await self._store.put_mine(path, self._unsettled, what=f"the journal of shard {self._shard}")
            self._next += 1
            self._unsettled = None


def _encode(entries: Sequence[Entry], writer: str) -> bytes:
    rows = [_row(entry) for entry in entries]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA).replace_schema_metadata({_WRITER: writer})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(table)
    return sink.getvalue()


def _row(entry: Entry) -> dict[str, Any]:
    outcome = entry.outcome
    row: dict[str, Any] = {"position": entry.position, "attempts": outcome.attempts}
    if isinstance(outcome, Scored):
        return row | {
            "status": _SCORED,
            "at": outcome.scored_at,
            "labels": [label_row(label) for label in outcome.labels],
            "latency_ms": outcome.latency_ms,
            "request_id": outcome.request_id,
        }
    return row | {
        "status": outcome.status,
        "at": outcome.failed_at,
        "code": outcome.code,
        "message": outcome.message,
    }


def _decode(segments: Sequence[bytes], images: Sequence[ImageRef], round_: int) -> list[Entry]:
    entries: list[Entry] = []
    for segment in segments:
        with pa.ipc.open_file(pa.py_buffer(segment)) as file:
            rows = file.read_all().to_pylist()
        entries.extend(Entry(row["position"], _outcome(row, images[row["position"]], round_)) for row in rows)
    return entries


def _outcome(row: dict[str, Any], image: ImageRef, round_: int) -> Outcome:
    if row["status"] == _SCORED:
        return Scored(
            image=image,
            labels=tuple(map(_label, row["labels"])),
            attempts=row["attempts"],
            latency_ms=row["latency_ms"],
            request_id=row["request_id"],
            scored_at=row["at"],
        )
    return Failed(
        image=image,
        status=row["status"],
        code=row["code"],
        message=row["message"],
        attempts=row["attempts"],
        failed_at=row["at"],
        round=round_,
    )


def _label(row: dict[str, Any]) -> Label:
    box = None if row["left"] is None else (row["left"], row["top"], row["width"], row["height"])
    polygon = None if row["polygon"] is None else tuple((point["x"], point["y"]) for point in row["polygon"])
    return Label(row["name"], row["confidence"], box, polygon)
