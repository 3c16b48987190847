"""From a chunk of a shard's journal to its published files: the same names and rows, whoever writes them.

The files are created exclusively, and nothing overwrites or deletes them. A process that repeats a publication, however
late, finds them there and changes nothing.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import anyio.to_thread
import pyarrow as pa

from batchcl.errors import BatchclError
from batchcl.runs.entries import counts, of_status
from batchcl.runs.journal import Journal, JournalChunk, JournalContent
from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import failures_table, parquet_bytes, results_table
from batchcl.runs.store import Store

__all__ = ["PartSpec", "publish_chunk", "publish_journal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """What all parts of a run have in common. `model` is `<project>@<version>`, which names their partition."""

    run_id: str
    model: str
    model_arn: str
    date: dt.date
    min_confidence: float | None = None
    max_results: int | None = None

    def path(self, table: str, shard: int, first: int) -> str:
        """Of the part in `table` with the rows of the chunk that begins at segment `first`."""
        return RunPaths(self.run_id).part(table, model=self.model, date=self.date, shard=shard, first=first)


async def publish_journal(
    store: Store, spec: PartSpec, shard: int, journal: Journal, images: pa.Table
) -> JournalContent:
    """Create the files of all chunks that a cut has closed, those that aren't there; returns what the journal holds.

    Args:
        store: the output root.
        spec: the run's.
        shard: its number.
        journal: the shard's.
        images: of the shard, with the columns of `IMAGES`.

    Raises:
        BatchclError: two entries of one round are about the same image, which is a bug.
    """
    content = await journal.read()
    pairs = content.entries.select(["position", "round"]).group_by(["position", "round"]).aggregate([])
    if pairs.num_rows != content.entries.num_rows:
        raise BatchclError(f"shard {shard} has two outcomes for one image: a bug in batchcl")
    for chunk in content.chunks:
        await publish_chunk(store, spec, shard, chunk, images)
    return content


async def publish_chunk(store: Store, spec: PartSpec, shard: int, chunk: JournalChunk, images: pa.Table) -> None:
    """Create the chunk's files in `results/` and `failures/`, those that have rows and aren't there."""
    outcomes = counts(chunk.entries)
    for table, rows in (("results", outcomes.scored), ("failures", outcomes.failed + outcomes.skipped)):
        path = spec.path(table, shard, chunk.first)
        if rows and not await store.exists(path):
            await store.put_new(path, await anyio.to_thread.run_sync(_part, spec, table, chunk.entries, images))


def _part(spec: PartSpec, table: str, entries: pa.Table, images: pa.Table) -> bytes:
    if table == "results":
        rows = results_table(
            images,
            of_status(entries, scored=True),
            run_id=spec.run_id,
            model_arn=spec.model_arn,
            min_confidence=spec.min_confidence,
            max_results=spec.max_results,
        )
    else:
        rows = failures_table(images, of_status(entries, scored=False), run_id=spec.run_id, model_arn=spec.model_arn)
    return parquet_bytes(rows, run_id=spec.run_id, model_arn=spec.model_arn)
