"""Markers: one small file says that a shard is published in a round, and what the shard comes to since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import orjson

from batchcl.runs.damage import intact
from batchcl.runs.layout import RunPaths, shard_and_round
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.scoring.outcome import Counts

__all__ = ["published", "read_counts", "total", "write_marker"]

_AT_ONCE = 32


async def published(store: Store, paths: RunPaths) -> dict[int, int]:
    """Shard → the last round in which it was published. Lists names only."""
    rounds: dict[int, int] = {}
    for file in await store.list_all(paths.markers):
        shard, round_ = shard_and_round(file.path)
        rounds[shard] = max(round_, rounds.get(shard, 0))
    return rounds


async def write_marker(store: Store, paths: RunPaths, shard: int, *, round_: int, counts: Counts) -> None:
    """Close the shard for the round; the same marker twice is fine. Raises `StoppedError` if another one is there."""
    data = orjson.dumps(asdict(counts), option=orjson.OPT_SORT_KEYS)
    await store.put_mine(paths.marker(shard, round_), data, what=f"the end of shard {shard}")


async def read_counts(store: Store, paths: RunPaths, rounds: Iterable[tuple[int, int]]) -> dict[int, Counts]:
    """Shard → its counts, of the given (shard, round) markers."""

    async def read(marker: tuple[int, int]) -> tuple[int, Counts]:
        shard, round_ = marker
        data = await store.get(paths.marker(shard, round_))
        with intact(store.uri(paths.marker(shard, round_))):
            return shard, Counts(**orjson.loads(data or b""))

    return dict(await together(read, rounds, at_once=_AT_ONCE))


def total(counts: Iterable[Counts]) -> Counts:
    """The sum."""
    return sum(counts, Counts())
