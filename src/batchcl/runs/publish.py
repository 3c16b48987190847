"""Publishing: write each chunk of a shard's journal as one file in `results/` and one in `failures/`.

File names and rows follow from the journal alone, whichever process publishes. The files are created exclusively and
never overwritten or deleted, so repeating a publication at any later time changes nothing.
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
    """Properties that all parts of a run share. `model` is `<project>@<version>`, the value of their partition."""

    run_id: str
    model: str
    model_arn: str
    date: dt.date
    min_confidence: float | None = None
    max_results: int | None = None

    def path(self, table: str, shard: int, first: int) -> str:
        """Path of the part in `table` for the chunk that begins at segment `first`."""
        return RunPaths(self.run_id).part(table, model=self.model, date=self.date, shard=shard, first=first)


async def publish_journal(
    store: Store, spec: PartSpec, shard: int, journal: Journal, images: pa.Table
) -> JournalContent:
    """Create the missing files of all chunks that a cut has closed; returns the content of the journal.

    Args:
        store: the output root.
        spec: of the run.
        shard: number of the shard.
        journal: of the shard.
        images: the images of the shard, with the columns of `IMAGES`.

    Raises:
        BatchclError: an image has two entries in one round, which is a bug.
    """
    content = await journal.read()
    outcomes = content.entries.select(["position", "round"])
    if outcomes.group_by(outcomes.column_names, use_threads=False).aggregate([]).num_rows != outcomes.num_rows:
        raise BatchclError(
            f"publishing shard {shard} failed: an image has two outcomes in one round; this is a bug in batchcl, "
            "please report it"
        )
    for chunk in content.chunks:
        await publish_chunk(store, spec, shard, chunk, images)
    return content


async def publish_chunk(store: Store, spec: PartSpec, shard: int, chunk: JournalChunk, images: pa.Table) -> None:
    """Create the chunk's files in `results/` and `failures/` if they have rows and don't exist."""
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
