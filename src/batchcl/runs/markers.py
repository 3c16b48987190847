"""Markers: a small file for each shard that is published in a round, with the shard's totals up to that round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import anyio.to_thread
import orjson
import pyarrow as pa

from batchcl.concurrency import gather
from batchcl.outcomes import Counts
from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.entries import FailureGroup, counts, failure_groups
from batchcl.runs.layout import RunPaths, shard_and_round
from batchcl.runs.store import Store

__all__ = ["Totals", "published", "read_totals", "sum_totals", "write_marker"]

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Totals:
    """Outcomes of the images of one or more shards, and their unresolved failures by group."""

    counts: Counts = field(default_factory=Counts)
    failures: Counter[FailureGroup] = field(default_factory=Counter)

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.counts + other.counts, self.failures + other.failures)


async def published(store: Store, paths: RunPaths) -> dict[int, int]:
    """Shard → the last round in which it was published. Lists file names only."""
    rounds: dict[int, int] = {}
    for file in await store.list_all(paths.markers):
        shard, round_ = shard_and_round(file.path)
        rounds[shard] = max(round_, rounds.get(shard, 0))
    return rounds


async def write_marker(
    store: Store, paths: RunPaths, shard: int, *, round_: int, entries: pa.Table, images: pa.Table
) -> None:
    """Mark the shard as published in the round. Writing the same marker twice is fine.

    Args:
        store: the output root.
        paths: of the run.
        shard: number of the shard.
        round_: number of the round.
        entries: the last entry of each image.
        images: the images of the shard.

    Raises:
        StoppedError: another process has written a different marker.
    """
    groups = await anyio.to_thread.run_sync(failure_groups, entries, images)
    document = {
        "counts": asdict(counts(entries)),
        "failures": [[*group, number] for group, number in sorted(groups.items())],
    }
    data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    await store.put_exclusive(paths.marker(shard, round_), data, what=f"the marker of shard {shard}")


async def read_totals(store: Store, paths: RunPaths, rounds: Iterable[tuple[int, int]]) -> dict[int, Totals]:
    """Shard → totals, read from the markers of the given (shard, round) pairs."""

    async def read(marker: tuple[int, int]) -> tuple[int, Totals]:
        shard, round_ = marker
        data = await store.get(paths.marker(shard, round_))
        with decode_or_raise(store.uri(paths.marker(shard, round_))):
            document = orjson.loads(data or b"")
            failures = Counter({FailureGroup(*group): number for *group, number in document["failures"]})
            return shard, Totals(Counts(**document["counts"]), failures)

    return dict(await gather(read, rounds, at_once=_AT_ONCE))


def sum_totals(totals: Iterable[Totals]) -> Totals:
    """The sum."""
    return sum(totals, Totals())
