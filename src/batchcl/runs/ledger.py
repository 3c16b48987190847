"""The ledger of one round of a run: which images are to be called for, and where their outcomes go.

It hands out the work list shard by shard, less what is journalled; takes outcomes, journals them at most 2,000 or 15 s
at a time; and publishes a shard as soon as it is complete. Journalling and publishing go on beside the calls and beside
each other. A round that was cut off at any point is taken up by a new ledger, from what the store holds.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import anyio
import anyio.to_thread
import pyarrow as pa

from batchcl.bell import Bell
from batchcl.errors import BatchclError
from batchcl.runs.entries import ENTRIES, Entry, counts, entry_table, positions, replaced
from batchcl.runs.image_table import ImageRows
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.markers import write_marker
from batchcl.runs.parts import PartSpec, shard_parts
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.runs.worklist import WorkList
from batchcl.scoring.outcome import Counts, Outcome
from batchcl.scoring.shards import Batch

__all__ = ["AllImages", "Ledger", "Targets"]

SEGMENT_ENTRIES: Final = 2_000
SEGMENT_AGE_S: Final = 15.0
BEHIND_ENTRIES: Final = 4 * SEGMENT_ENTRIES
"""With so many outcomes in memory the journal is behind, and no more calls should be sent."""

BEHIND_SHARDS: Final = 1
"""With so many complete shards that aren't published, no further one is opened."""

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

    async def positions(self, shard: int, images: int) -> tuple[Sequence[int], pa.Table]:
        """The positions to score in `shard`, which has so many images, and the last entries of the others."""
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

    async def positions(self, shard: int, images: int) -> tuple[Sequence[int], pa.Table]:  # noqa: ARG002
        """All of them."""
        return range(images), ENTRIES.empty_table()


@dataclass(slots=True)
class _Open:
    """A shard that is being scored. `missing` are the positions without an outcome in the journal or the buffer."""

    images: pa.Table
    journal: Journal
    missing: set[int]
    earlier: pa.Table
    buffer: list[Entry] = field(default_factory=list)
    staged: list[Entry] = field(default_factory=list)
    buffered_at: float = math.inf

    @property
    def complete(self) -> bool:
        """Whether all of it is in the journal."""
        return not self.missing and not self.buffer and not self.staged


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
        on_taken_up: Callable[[Counts], None] = lambda _: None,
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
        self._buffered = 0
        self._journalling = anyio.Lock()
        self._publishing = anyio.Lock()
        self._recorded = Bell()
        self._journalled = Bell()
        self._published = Bell()

    async def batches(self) -> AsyncIterator[Batch]:
        """The images of each shard that are still to be called for."""
        async for shard in self._targets.shards():
            while sum(opened.complete for opened in self._open.values()) >= BEHIND_SHARDS:
                await self._published.wait()
            images = await self._worklist.load(shard)
            wanted, earlier = await self._targets.positions(shard, images.num_rows)
            journal = Journal(self._store, self._paths, shard, round_=self._targets.round, writer=self._writer)
            written = await journal.read()
            self._on_taken_up(counts(written))
            missing = set(wanted).difference(positions(written))
            self._open[shard] = _Open(images, journal, missing, earlier)
            if missing:
                left = sorted(missing)
                yield Batch(shard, ImageRows(images, left), left)
            else:
                self._journalled.ring()

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Take over one outcome; it is durable some time later."""
        opened = self._open[shard]
        opened.missing.remove(position)
        opened.buffer.append(Entry(position, outcome))
        if opened.buffered_at == math.inf:
            opened.buffered_at = anyio.current_time()
        self._buffered += 1
        if _is_due(opened):
            self._recorded.ring()

    def unkept(self) -> Counts:
        """What was recorded and isn't durable: all that is lost if nothing more can be written."""
        entries = [entry for opened in self._open.values() for entry in (*opened.staged, *opened.buffer)]
        return counts(entry_table(entries, round_=self._targets.round))

    async def room(self) -> None:
        """Wait while the journal is behind, so that memory doesn't grow where the store is slower than the model."""
        while self._buffered >= BEHIND_ENTRIES:
            await self._journalled.wait()

    async def keep(self) -> None:
        """Journal what is due, and publish complete shards, until cancelled."""
        parts: tuple[Callable[[], Awaitable[None]], ...] = (self._keep_journal, self._keep_publishing)
        await together(lambda part: part(), parts, at_once=len(parts))

    async def close(self) -> None:
        """Journal everything that was recorded, and publish what is complete."""
        await self._flush(older_than=math.inf)
        await self._publish_complete()

    async def save(self) -> None:
        """Journal everything that was recorded, and leave publishing to the next session."""
        await self._flush(older_than=math.inf)

    async def _keep_journal(self) -> None:
        while True:
            await self._recorded.wait(at_most_s=_LOOK_EVERY_S)
            await self._flush(older_than=anyio.current_time() - SEGMENT_AGE_S)

    async def _keep_publishing(self) -> None:
        while True:
            await self._publish_complete()
            await self._journalled.wait(at_most_s=_LOOK_EVERY_S)

    async def _flush(self, *, older_than: float) -> None:
        async with self._journalling:
            for opened in tuple(self._open.values()):
                if opened.buffer and (_is_due(opened) or opened.buffered_at <= older_than):
                    await self._settle(opened)
                    staged = await opened.journal.stage(opened.buffer)
                    opened.staged = opened.buffer[:staged]
                    del opened.buffer[:staged]
                    opened.buffered_at = anyio.current_time() if opened.buffer else math.inf
                await self._settle(opened)
            self._journalled.ring()

    async def _settle(self, opened: _Open) -> None:
        await opened.journal.settle()
        self._buffered -= len(opened.staged)
        opened.staged = []

    async def _publish_complete(self) -> None:
        async with self._publishing:
            for shard, opened in tuple(self._open.items()):
                if opened.complete:
                    await self._publish(shard, opened)
                    del self._open[shard]
                    self._published.ring()

    async def _publish(self, shard: int, opened: _Open) -> None:
        """Read the journal back, which is what counts, and write parts and marker."""
        round_ = self._targets.round
        new = await self._read_back(shard, round_)
        state = replaced(opened.earlier, new)
        if state.num_rows != opened.images.num_rows:
            raise BatchclError(
                f"shard {shard} has {state.num_rows} outcomes of {opened.images.num_rows}: a bug in batchcl"
            )
        done = counts(state)
        try:
            if not await self._store.exists(self._paths.marker(shard, round_)):
                await self._put_parts(shard, round_, new, state)
                await write_marker(self._store, self._paths, shard, round_=round_, counts=done)
        finally:
            with anyio.move_on_after(_GIVE_WAY_S, shield=True):
                await self._give_way(shard, state)
        self._on_published(shard, done)

    async def _give_way(self, shard: int, state: pa.Table) -> None:
        """Put back what later rounds left in `failures/`, had this runner slept until after them while it published.

        Another runner took over then, ended the round and retried it, and the failures of this round, which it
        resolved, have just been written anew.
        """
        last = self._targets.round
        while await self._store.exists(self._paths.marker(shard, last + 1)):
            while await self._store.exists(self._paths.marker(shard, last + 1)):
                last += 1
                state = replaced(state, await self._read_back(shard, last))
            await self._put_parts(shard, last, ENTRIES.empty_table(), state)

    async def _read_back(self, shard: int, round_: int) -> pa.Table:
        journal = Journal(self._store, self._paths, shard, round_=round_, writer=self._writer)
        found = await journal.read()
        if len(set(positions(found))) != found.num_rows:
            raise BatchclError(f"shard {shard} has two outcomes for one image: a bug in batchcl")
        return found

    async def _put_parts(self, shard: int, round_: int, new: pa.Table, state: pa.Table) -> None:
        images = self._open[shard].images
        make = partial(shard_parts, self._spec, shard, round_=round_, images=images, new=new, state=state)
        parts = await anyio.to_thread.run_sync(make)
        for part in parts:
            if part.data is None:
                await self._store.delete(part.path)
            else:
                await self._store.put(part.path, part.data)


def _is_due(opened: _Open) -> bool:
    """Whether its buffer is worth a segment, however young."""
    return len(opened.buffer) >= SEGMENT_ENTRIES or (not opened.missing and bool(opened.buffer))
