"""Retries: a round scores images that failed again, and appends what it finds to both tables.

It is described by `rounds/<n>.json`, created exclusively, and over when `rounds/<n>.done` exists; until then the next
retry continues it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass

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
    """One retry.

    Attributes:
        number: from 1.
        codes: the error codes that it is about; none means all.
        fit: its `--fit` setting.
    """

    number: int
    codes: tuple[str, ...] = ()
    fit: bool = False

    def names(self, group: FailureGroup) -> bool:
        """Whether it is about images of `group`, be it to leave them as they are."""
        return not self.codes or group.code in self.codes

    def selects(self, group: FailureGroup) -> bool:
        """Whether it scores images of `group` again: those that may succeed."""
        may_succeed = (group.status == "failed" and not group.permanent) or (self.fit and group.fit_may_help)
        return may_succeed and self.names(group)

    def selected(self, failures: Mapping[FailureGroup, int]) -> int:
        """How many of these images it scores again."""
        return sum(number for group, number in failures.items() if self.selects(group))


async def open_round(store: Store, paths: RunPaths, wanted: Round) -> Round:
    """The unfinished round of the run if there is one, as it was begun; else `wanted`, under the next number."""
    last, is_open = await last_round(store, paths)
    if is_open:
        return await read_round(store, paths, last)
    about = Round(last + 1, wanted.codes, wanted.fit)
    await store.put_mine(
        paths.round(about.number), orjson.dumps(asdict(about)), what=f"the start of round {about.number}"
    )
    return about


async def read_round(store: Store, paths: RunPaths, number: int) -> Round:
    """A round that was opened."""
    data = await store.get(paths.round(number))
    with decode_or_raise(store.uri(paths.round(number))):
        values = orjson.loads(data or b"")
        return Round(number, tuple(values["codes"]), values["fit"])


async def unfinished_round(store: Store, paths: RunPaths) -> int | None:
    """The retry that was begun and is not over: it may have scored everything and died before it could say so."""
    last, is_open = await last_round(store, paths)
    return last if is_open else None


async def last_round(store: Store, paths: RunPaths) -> tuple[int, bool]:
    """The number of the last round, 0 when there was none, and whether it is open."""
    names = {file.path.rpartition("/")[2] for file in await store.list_all(paths.rounds)}
    last = max((int(name.partition(".")[0]) for name in names if name.endswith(".json")), default=0)
    return last, last > 0 and f"{last:03d}.done" not in names


async def end_round(store: Store, paths: RunPaths, number: int) -> None:
    """The round is over."""
    await store.put(paths.round_end(number), b"")


class FailedImages:
    """The images of a round: those without a result that it selects.

    Args:
        about: the round.
        published: shard → the last round in which it was published.
        totals: shard → its totals since then.
    """

    def __init__(self, about: Round, *, published: Mapping[int, int], totals: Mapping[int, Totals]) -> None:
        self.round = about.number
        self._about = about
        self._published = published
        self._totals = totals

    @property
    def planned(self) -> int:
        """How many images they are, in the shards that this round has not published yet."""
        return sum(self._about.selected(self._totals[shard].failures) for shard in self._shards())

    async def shards(self) -> AsyncIterator[int]:
        """Those with such images that this round has not published yet."""
        for shard in self._shards():
            yield shard

    def positions(self, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """Of the images that may succeed now."""
        groups = unresolved(latest(earlier), images)
        return [position for position, group in groups if self._about.selects(group)]

    def _shards(self) -> list[int]:
        return [
            shard
            for shard, totals in sorted(self._totals.items())
            if self._published[shard] < self.round and self._about.selected(totals.failures)
        ]
