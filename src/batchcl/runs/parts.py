"""From outcomes to published parts: each shard becomes one file in `results/` and one in `failures/`, written whole."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass

import anyio.to_thread

from batchcl.runs.layout import part_path
from batchcl.runs.schema import failures_table, parquet_bytes, results_table
from batchcl.runs.store import Store
from batchcl.scoring.outcome import Failed, Outcome, Scored

__all__ = ["PartSink", "PartSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """What all parts of a run have in common."""

    run_id: str
    model: str
    date: dt.date
    min_confidence: float | None = None
    max_results: int | None = None


class PartSink:
    """A `Sink` that holds the outcomes of open shards in memory and publishes a shard when it is complete.

    Memory is that of the shards that calls are in flight for: one or two. What a drain leaves incomplete is published
    by `close` as it is.
    """

    def __init__(self, store: Store, spec: PartSpec) -> None:
        self._store = store
        self._spec = spec
        self._open: defaultdict[int, list[Outcome]] = defaultdict(list)
        self._sizes: dict[int, int] = {}

    async def record(self, shard: int, outcome: Outcome) -> None:
        """Take over one outcome."""
        self._open[shard].append(outcome)
        await self._publish_complete(shard)

    async def listed(self, shard: int, images: int) -> None:
        """Learn how many images the shard has."""
        self._sizes[shard] = images
        await self._publish_complete(shard)

    async def close(self) -> None:
        """Publish what is left."""
        for shard in sorted(self._open):
            await self._publish(shard)

    async def _publish_complete(self, shard: int) -> None:
        if len(self._open[shard]) == self._sizes.get(shard):
            await self._publish(shard)
            del self._sizes[shard]

    async def _publish(self, shard: int) -> None:
        outcomes = self._open.pop(shard)
        for table, data in await anyio.to_thread.run_sync(self._parts, outcomes):
            path = part_path(table, model=self._spec.model, date=self._spec.date, run_id=self._spec.run_id, shard=shard)
            await self._store.put(path, data)

    def _parts(self, outcomes: list[Outcome]) -> list[tuple[str, bytes]]:
        """The shard's non-empty parts with the table each belongs to."""
        spec = self._spec
        scored = [outcome for outcome in outcomes if isinstance(outcome, Scored)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        parts = []
        if scored:
            rows = results_table(
                scored, run_id=spec.run_id, min_confidence=spec.min_confidence, max_results=spec.max_results
            )
            parts.append(("results", parquet_bytes(rows, run_id=spec.run_id)))
        if failed:
            parts.append(("failures", parquet_bytes(failures_table(failed, run_id=spec.run_id), run_id=spec.run_id)))
        return parts
