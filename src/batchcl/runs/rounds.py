"""Retry rounds: each scores failed images of a run again and appends rows to both tables.

A round is described by `rounds/<n>.json`, which is created exclusively. It has ended when `rounds/<n>.done` exists;
until then the next `batchcl retry` continues it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa

from batchcl.runs.corruption import decode_or_raise
from batchcl.runs.entries import FailureGroup, latest, unresolved
from batchcl.runs.layout import RunPaths
from batchcl.runs.markers import Totals
from batchcl.runs.store import Store

__all__ = [
    "FailedImages",
    "Round",
    "end_round",
    "last_round",
    "open_round",
    "read_round",
    "unfinished_round",
]


@dataclass(frozen=True, slots=True)
class Round:
    """One retry round.

    Attributes:
        number: from 1.
        codes: retry failures with these error codes only; empty for all.
        fit: the `--fit` setting.
    """

    number: int
    codes: tuple[str, ...] = ()
    fit: bool = False

    def names(self, group: FailureGroup) -> bool:
        """Whether `codes` includes the error code of `group`, regardless of whether a retry may succeed."""
        return not self.codes or group.code in self.codes

    def selects(self, group: FailureGroup) -> bool:
        """Whether the round scores images of `group` again: `codes` includes them and they may succeed."""
        may_succeed = (group.status == "failed" and not group.permanent) or (self.fit and group.fit_may_help)
        return may_succeed and self.names(group)

    def selected(self, failures: Mapping[FailureGroup, int]) -> int:
        """Number of these images that the round scores again."""
        return sum(number for group, number in failures.items() if self.selects(group))


async def open_round(store: Store, paths: RunPaths, wanted: Round) -> Round:
    """The unfinished round of the run, unchanged, if there is one; otherwise create `wanted` as the next round."""
    last, is_open = await last_round(store, paths)
    if is_open:
        return await read_round(store, paths, last)
    new = Round(last + 1, wanted.codes, wanted.fit)
    await store.put_exclusive(paths.round(new.number), orjson.dumps(new), what=f"the start of round {new.number}")
    return new


async def read_round(store: Store, paths: RunPaths, number: int) -> Round:
    """Read round `number`. Raises `OutputError` if it is missing or corrupt."""
    data = await store.get(paths.round(number))
    with decode_or_raise(store.uri(paths.round(number))):
        values = orjson.loads(data or b"")
        return Round(number, tuple(values["codes"]), values["fit"])


async def unfinished_round(store: Store, paths: RunPaths) -> int | None:
    """The number of the round that was started and has not ended, or None. All its images may have been scored."""
    last, is_open = await last_round(store, paths)
    return last if is_open else None


async def last_round(store: Store, paths: RunPaths) -> tuple[int, bool]:
    """The number of the last round (0 if there was none), and whether it is unfinished."""
    names = {file.path.rpartition("/")[2] for file in await store.list_all(paths.rounds)}
    last = max((int(name.partition(".")[0]) for name in names if name.endswith(".json")), default=0)
    return last, last > 0 and f"{last:03d}.done" not in names


async def end_round(store: Store, paths: RunPaths, number: int) -> None:
    """Mark the round as ended."""
    await store.put(paths.round_end(number), b"")


class FailedImages:
    """The images of a retry round: the unresolved failures that it selects. Implements `ledger.Targets`.

    Args:
        about: describes the round.
        published: shard → the last round in which it was published.
        totals: shard → its totals as of that round.
    """

    is_sample = False

    def __init__(self, about: Round, *, published: Mapping[int, int], totals: Mapping[int, Totals]) -> None:
        self.round = about.number
        self._round = about
        self._published = published
        self._totals = totals

    @property
    def planned(self) -> int:
        """Number of these images in the shards that this round has not published yet."""
        return sum(self._round.selected(self._totals[shard].failures) for shard in self._shards())

    async def shards(self) -> AsyncIterator[int]:
        """The shards with such images that this round has not published yet."""
        for shard in self._shards():
            yield shard

    def positions(self, shard: int, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """The positions of such images in a shard, given its `images` and the entries of `earlier` rounds."""
        groups = unresolved(latest(earlier), images)
        return [position for position, group in groups if self._round.selects(group)]

    def _shards(self) -> list[int]:
        return [
            shard
            for shard, totals in sorted(self._totals.items())
            if self._published[shard] < self.round and self._round.selected(totals.failures)
        ]
