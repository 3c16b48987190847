"""Retries: a round scores images that failed again, and appends what it finds to both tables.

It is described by `rounds/<n>.json`, created exclusively, and over when `rounds/<n>.done` exists; until then the next
retry continues it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import pyarrow as pa

from batchcl.runs.damage import intact
from batchcl.runs.entries import failed_by_code, latest, of_round, to_retry
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.scoring.outcome import Counts

__all__ = [
    "FailedImages",
    "Round",
    "count_codes",
    "end_round",
    "last_round",
    "open_round",
    "read_round",
    "unfinished_round",
]


_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Round:
    """One retry: its number from 1, and the error codes that it is about; none means all failures."""

    number: int
    codes: tuple[str, ...]


async def open_round(store: Store, paths: RunPaths, codes: tuple[str, ...]) -> Round:
    """The unfinished round of the run if there is one, with its own codes; else a new one."""
    last, is_open = await last_round(store, paths)
    if is_open:
        return await read_round(store, paths, last)
    await store.put_mine(paths.round(last + 1), orjson.dumps(list(codes)), what=f"the codes of round {last + 1}")
    return Round(last + 1, codes)


async def read_round(store: Store, paths: RunPaths, number: int) -> Round:
    """A round that was opened."""
    data = await store.get(paths.round(number)) or b"[]"
    with intact(store.uri(paths.round(number))):
        return Round(number, tuple(orjson.loads(data)))


async def unfinished_round(store: Store, paths: RunPaths) -> int | None:
    """The retry that was begun and is not over: it may have scored everything and died before it could say so."""
    last, is_open = await last_round(store, paths)
    return last if is_open else None


async def count_codes(store: Store, paths: RunPaths, shards: Iterable[int]) -> dict[int, Counter[str]]:
    """Shard → error code → how many of its images failed with it before the round that is open, or that comes next."""
    last, is_open = await last_round(store, paths)
    number = last if is_open else last + 1

    async def count(shard: int) -> tuple[int, Counter[str]]:
        content = await Journal(store, paths, shard, writer="").read()
        _, earlier = of_round(content.entries, number)
        return shard, failed_by_code(latest(earlier))

    return dict(await together(count, shards, at_once=_AT_ONCE))


async def last_round(store: Store, paths: RunPaths) -> tuple[int, bool]:
    """The number of the last round, 0 when there was none, and whether it is open."""
    names = {file.path.rpartition("/")[2] for file in await store.list_all(paths.rounds)}
    last = max((int(name.partition(".")[0]) for name in names if name.endswith(".json")), default=0)
    return last, last > 0 and f"{last:03d}.done" not in names


async def end_round(store: Store, paths: RunPaths, number: int) -> None:
    """The round is over."""
    await store.put(paths.round_end(number), b"")


class FailedImages:
    """The images of a round: those whose last outcome is a failure with one of the round's codes.

    Args:
        about: the round.
        published: shard → the last round in which it was published.
        counts: shard → its counts since then.
    """

    def __init__(self, about: Round, *, published: Mapping[int, int], counts: Mapping[int, Counts]) -> None:
        self.round = about.number
        self._codes = about.codes
        self._published = published
        self._counts = counts

    async def shards(self) -> AsyncIterator[int]:
        """Those with failures that this round has not published yet."""
        for shard in sorted(self._counts):
            if self._counts[shard].failed and self._published[shard] < self.round:
                yield shard

    def positions(self, images: int, earlier: pa.Table) -> Sequence[int]:  # noqa: ARG002 - the other rounds need it
        """The failed ones."""
        return to_retry(latest(earlier), self._codes)
