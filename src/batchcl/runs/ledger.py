"""The ledger of one round of a run: which images are to be called for, and where their outcomes go.

It hands out the work list shard by shard, less what is journalled; takes outcomes, journals them at most 2,000 or 15 s
at a time; and publishes a shard as soon as it is complete, beside the scoring of the next one. A round that was cut off
at any point is taken up by a new ledger, from what the store holds.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import anyio.to_thread

from batchcl.errors import BatchclError
from batchcl.images import ImageRef
from batchcl.runs.journal import Entry, Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.markers import Counts, write_marker
from batchcl.runs.parts import PartSpec, shard_parts
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.outcome import Failed, Outcome, Scored
from batchcl.scoring.shards import Batch

__all__ = ["AllImages", "Ledger", "Targets"]

SEGMENT_ENTRIES: Final = 2_000
SEGMENT_AGE_S: Final = 15.0
_LOOK_EVERY_S: Final = 1.0
_GIVE_WAY_S: Final = 30.0


class Targets(Protocol):
    """Which images a round is about."""

    @property
    def round(self) -> int:
        """Its number."""
        ...

    def shards(self) -> AsyncIterator[int]:
        """Numbers of the shards that have any, in order."""
        ...

    async def positions(self, shard: int, images: list[ImageRef]) -> tuple[Collection[int], dict[int, Outcome]]:
        """The positions to score in `shard`, and the outcomes that the others have already."""
        ...


class AllImages:
    """Round 0: everything on the work list that isn't published."""

    round = 0

    def __init__(self, worklist: WorkList, published: Collection[int]) -> None:
        self._worklist = worklist
        self._published = published

    async def shards(self) -> AsyncIterator[int]:
        """All but the published ones."""
        async for shard in self._worklist.shard_numbers():
            if shard not in self._published:
                yield shard

    async def positions(self, shard: int, images: list[ImageRef]) -> tuple[Collection[int], dict[int, Outcome]]:  # noqa: ARG002
        """All of them."""
        return range(len(images)), {}


@dataclass(slots=True)
class _Open:
    """A shard that is being scored. `missing` are the positions without an outcome in the journal or the buffer."""

    images: list[ImageRef]
    journal: Journal
    missing: set[int]
    earlier: dict[int, Outcome]
    buffer: list[Entry] = field(default_factory=list)
    buffered_at: float = math.inf


class Ledger:
    """The engine's source of batches and its sink. Raises `StoppedError` where another runner was faster."""

    def __init__(
        self,
        store: Store,
        spec: PartSpec,
        worklist: WorkList,
        targets: Targets,
        *,
        writer: str,
        on_taken_up: Callable[[Outcome], None] = lambda _: None,
        on_published: Callable[[int, Counts], None] = lambda _shard, _counts: None,
    ) -> None:
        self._store = store
        self._spec = spec
        self._paths = RunPaths(spec.run_id)
        self._worklist = worklist
        self._targets = targets
        self._writer = writer
        self._on_taken_up = on_taken_up
        self._on_published = on_published
        self._open: dict[int, _Open] = {}
        self._complete: list[int] = []
        self._lock = anyio.Lock()
        self._publishing = anyio.Lock()
        self._wake = anyio.Event()

    async def batches(self) -> AsyncIterator[Batch]:
        """The images of each shard that are still to be called for."""
        async for shard in self._targets.shards():
            images = await self._worklist.load(shard)
            wanted, earlier = await self._targets.positions(shard, images)
            journal = Journal(self._store, self._paths, shard, round_=self._targets.round, writer=self._writer)
            missing = set(wanted)
            for position, outcome in await journal.read(images):
                missing.discard(position)
                self._on_taken_up(outcome)
            self._open[shard] = _Open(images, journal, missing, earlier)
            if missing:
                left = sorted(missing)
                yield Batch(shard, [images[position] for position in left], left)
            else:
                self._completed(shard)

    async def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Take over one outcome; journals when enough have come together."""
        opened = self._open[shard]
        opened.missing.remove(position)
        opened.buffer.append(Entry(position, outcome))
        opened.buffered_at = min(opened.buffered_at, anyio.current_time())
        if len(opened.buffer) >= SEGMENT_ENTRIES or not opened.missing:
            await self._flush(shard)
        if not opened.missing:
            self._completed(shard)

    async def keep(self) -> None:
        """Journal what has waited long enough, and publish complete shards, until cancelled."""
        while True:
            wake = self._wake
            with anyio.move_on_after(_LOOK_EVERY_S):
                await wake.wait()
            await self._flush_older_than(anyio.current_time() - SEGMENT_AGE_S)
            await self._publish_complete()

    async def close(self) -> None:
        """Journal everything that was recorded, and publish what is complete."""
        await self._flush_older_than(math.inf)
        await self._publish_complete()

    def _completed(self, shard: int) -> None:
        self._complete.append(shard)
        self._wake.set()
        self._wake = anyio.Event()

    async def _flush_older_than(self, at: float) -> None:
        for shard, opened in tuple(self._open.items()):
            if opened.buffered_at <= at or math.isinf(at):
                await self._flush(shard)

    async def _flush(self, shard: int) -> None:
        async with self._lock:
            opened = self._open[shard]
            if opened.buffer:
                entries = await opened.journal.stage(opened.buffer)
                del opened.buffer[:entries]
                opened.buffered_at = anyio.current_time() if opened.buffer else math.inf
            await opened.journal.settle()

    async def _publish_complete(self) -> None:
        async with self._publishing:
            while self._complete:
                await self._publish(self._complete[0])
                del self._open[self._complete.pop(0)]

    async def _publish(self, shard: int) -> None:
        """Read the journal back, which is what counts, and write parts and marker."""
        opened, round_ = self._open[shard], self._targets.round
        new = await self._journalled(shard, round_)
        state = opened.earlier | new
        if len(state) != len(opened.images):
            raise BatchclError(f"shard {shard} has {len(state)} outcomes of {len(opened.images)}: a bug in batchcl")
        counts = _counts(state.values())
        try:
            if not await self._store.exists(self._paths.marker(shard, round_)):
                await self._put_parts(shard, round_, new, state)
                await write_marker(self._store, self._paths, shard, round_=round_, counts=counts)
        finally:
            with anyio.move_on_after(_GIVE_WAY_S, shield=True):
                await self._give_way(shard, state)
        self._on_published(shard, counts)

    async def _give_way(self, shard: int, state: dict[int, Outcome]) -> None:
        """Put back what later rounds left in `failures/`, had this runner slept until after them while it published.

        Another runner took over then, ended the round and retried it, and the failures of this round, which it
        resolved, have just been written anew.
        """
        last = self._targets.round
        while await self._store.exists(self._paths.marker(shard, last + 1)):
            while await self._store.exists(self._paths.marker(shard, last + 1)):
                last += 1
                state = state | await self._journalled(shard, last)
            await self._put_parts(shard, last, {}, state)

    async def _journalled(self, shard: int, round_: int) -> dict[int, Outcome]:
        images = self._open[shard].images
        journal = Journal(self._store, self._paths, shard, round_=round_, writer=self._writer)
        found: dict[int, Outcome] = {}
        for position, outcome in await journal.read(images):
            if position in found:
                raise BatchclError(f"shard {shard} has two outcomes for position {position}: a bug in batchcl")
            found[position] = outcome
        return found

    async def _put_parts(self, shard: int, round_: int, new: dict[int, Outcome], state: dict[int, Outcome]) -> None:
        left = [outcome for outcome in state.values() if isinstance(outcome, Failed)]
        parts = await anyio.to_thread.run_sync(
            lambda: shard_parts(self._spec, shard, round_=round_, new=list(new.values()), left=left)
        )
        for part in parts:
            if part.data is None:
                await self._store.delete(part.path)
            else:
                await self._store.put(part.path, part.data)


def _counts(outcomes: Collection[Outcome]) -> Counts:
    scored = sum(isinstance(outcome, Scored) for outcome in outcomes)
    skipped = sum(isinstance(outcome, Failed) and outcome.status == "skipped" for outcome in outcomes)
    return Counts(scored, len(outcomes) - scored - skipped, skipped)
