"""The ledger of one round of a run: which images need a call, and where their outcomes go.

It hands out the work list shard by shard, less what is journalled; takes outcomes, and journals them at the latest
after 2,000 or 15 s. A complete shard is cut and published; so is what a session has when it ends early. Journalling and
publishing run beside the calls and beside each other. A round that ended at any point is continued by a new ledger,
from what the store holds.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import anyio
import anyio.lowlevel
import pyarrow as pa

from batchcl.concurrency import Notifier, gather
from batchcl.errors import BatchclError
from batchcl.images import ImageRef
from batchcl.outcomes import AlreadyKnown, Counts, Known, Outcome
from batchcl.runs.entries import JournalEntry, counts, latest, of_round, positions, statuses
from batchcl.runs.journal import Journal, JournalContent
from batchcl.runs.layout import RunPaths
from batchcl.runs.markers import write_marker
from batchcl.runs.publish import PartSpec, publish_journal
from batchcl.runs.store import Store
from batchcl.runs.worklist import Batch, ImageRows, WorkList

__all__ = ["AllImages", "Ledger", "Targets"]

SEGMENT_ENTRIES: Final = 2_000
SEGMENT_AGE_S: Final = 15.0
BEHIND_ENTRIES: Final = 4 * SEGMENT_ENTRIES
"""With so many outcomes in memory the journal is behind, and no more calls should be sent."""

BEHIND_SHARDS: Final = 1
"""With so many complete shards that aren't published, no further one is opened."""

_LOOK_EVERY_S: Final = 1.0

_LookUp: TypeAlias = Callable[[Sequence[ImageRef]], Awaitable[list[Known | None]]]


class Targets(Protocol):
    """Which images a round is about."""

    @property
    def round(self) -> int:
        """Its number."""
        ...

    def shards(self) -> AsyncIterator[int]:
        """Numbers of the shards that have any, in order."""
        ...

    def positions(self, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """The positions to score in a shard of these `images`, with the `earlier` entries of previous rounds."""
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

    def positions(self, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """All of them."""
        return range(images.num_rows)


@dataclass(slots=True)
class _Open:
    """A shard that is being scored.

    Attributes:
        missing: the positions without an outcome in the journal or the buffer.
        before: the status that each image of a retry had in earlier rounds, by position.
        is_cut: whether the journal ends with a cut, or is empty.
    """

    images: pa.Table
    journal: Journal
    missing: set[int]
    before: Mapping[int, str]
    is_cut: bool
    buffer: list[JournalEntry] = field(default_factory=list)
    staged: list[JournalEntry] = field(default_factory=list)
    buffered_at: float = math.inf

    @property
    def complete(self) -> bool:
        """Whether all of it is in the journal."""
        return not self.missing and not self.buffer and not self.staged


class Ledger:
    """The engine's source of batches and its sink. Raises `StoppedError` where another process owns a shard.

    Args:
        store: the output root.
        spec: the run's.
        worklist: the run's.
        targets: what the round is about.
        writer: distinguishes this process's segments from another's.
        fit: the round's `--fit` setting, which rows of failures state.
        check_owner: raises `StoppedError` when another process has taken the run over.
        known: for each image, what another run has made of it; None where that needs no look.
        on_taken_up: receives the counts of what earlier sessions have journalled in a shard.
        on_known: receives each outcome that needs no call.
        utcnow: the time of day.

    Attributes:
        settled: `close` has published everything.
    """

    def __init__(
        self,
        store: Store,
        spec: PartSpec,
        worklist: WorkList,
        targets: Targets,
        *,
        writer: str,
        fit: bool = False,
        check_owner: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint,
        known: _LookUp | None = None,
        on_taken_up: Callable[[Counts], None] = lambda _: None,
        on_known: Callable[[Outcome], None] = lambda _: None,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._store = store
        self._spec = spec
        self._paths = RunPaths(spec.run_id)
        self._worklist = worklist
        self._targets = targets
        self._writer = writer
        self._check_owner = check_owner
        self._fit = fit
        self._known = known
        self._utcnow = utcnow
        self._on_taken_up = on_taken_up
        self._on_known = on_known
        self.settled = False
        self._open: dict[int, _Open] = {}
        self._buffered = 0
        self._replaced: Counter[str] = Counter()
        self._journalling = anyio.Lock()
        self._publishing = anyio.Lock()
        self._recorded = Notifier()
        self._journalled = Notifier()
        self._published = Notifier()

    async def batches(self) -> AsyncIterator[Batch]:
        """The images of each shard that are still to be called for."""
        async for shard in self._targets.shards():
            while sum(opened.complete for opened in self._open.values()) >= BEHIND_SHARDS:
                await self._published.wait()
            images = await self._worklist.load(shard)
            journal = Journal(self._store, self._paths, shard, writer=self._writer)
            content = await journal.read()
            await self._check_owner()  # after reading: a later takeover cuts the journal behind what was read
            written, earlier = of_round(content.entries, self._targets.round)
            self._on_taken_up(counts(written))
            missing = set(self._targets.positions(images, earlier)).difference(positions(written))
            before = statuses(latest(earlier))
            self._replaced.update(before[position] for position in positions(written) if before)
            self._open[shard] = _Open(images, journal, missing, before, is_cut=content.uncut is None)
            if missing and self._known is not None:
                await self._leave_out(shard, images, self._known)
            if missing:
                left = sorted(missing)
                yield Batch(shard, ImageRows(images, left), left)
            else:
                self._recorded.ring()
                self._journalled.ring()

    async def _leave_out(self, shard: int, images: pa.Table, look_up: _LookUp) -> None:
        """Record the images that another run has dealt with since the list was made."""
        left = sorted(self._open[shard].missing)
        candidates = list(ImageRows(images, left))
        for position, image, known in zip(left, candidates, await look_up(candidates), strict=True):
            if known is not None:
                outcome = AlreadyKnown(image=image, status=known, at=self._utcnow())
                self.record(shard, position, outcome)
                self._on_known(outcome)

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Take over one outcome; it is durable some time later."""
        opened = self._open[shard]
        opened.missing.remove(position)
        if opened.before:
            self._replaced[opened.before[position]] += 1
        opened.buffer.append(JournalEntry(position, outcome))
        if opened.buffered_at == math.inf:
            opened.buffered_at = anyio.current_time()
        self._buffered += 1
        if _is_due(opened):
            self._recorded.ring()

    def unkept(self) -> Counts:
        """What was recorded and isn't durable: all that is lost if nothing more can be written."""
        return Counts(**Counter[str](entry.outcome.status for _, entry in self._unkept()))

    def replaced(self) -> Counts:
        """What the images of a retry that have a durable outcome of its round had come to before."""
        unkept = Counter(opened.before[entry.position] for opened, entry in self._unkept() if opened.before)
        return Counts(**(self._replaced - unkept))

    def _unkept(self) -> Iterator[tuple[_Open, JournalEntry]]:
        for opened in self._open.values():
            for entry in (*opened.staged, *opened.buffer):
                yield opened, entry

    async def room(self) -> None:
        """Wait while the journal is behind, so that memory doesn't grow where the store is slower than the model."""
        while self._buffered >= BEHIND_ENTRIES:
            await self._journalled.wait()

    async def keep(self) -> None:
        """Journal what is due, and publish complete shards, until cancelled."""
        parts: tuple[Callable[[], Awaitable[None]], ...] = (self._keep_journal, self._keep_publishing)
        await gather(lambda part: part(), parts, at_once=len(parts))

    async def close(self) -> None:
        """Journal everything that was recorded, and publish it, incomplete shards too."""
        await self._flush(older_than=math.inf)
        await self._publish_complete()
        async with self._publishing:
            await self._of_each(self._cut_and_publish)
        self.settled = True

    async def save(self) -> None:
        """Journal everything that was recorded, and leave publishing to whoever recovers the run."""
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
        """Journal what is due in every shard, also where another one fails: its outcomes were paid for."""
        async with self._journalling:
            await self._of_each(lambda _, opened: self._flush_shard(opened, older_than=older_than))
            self._journalled.ring()

    async def _flush_shard(self, opened: _Open, *, older_than: float) -> None:
        if opened.buffer and (_is_due(opened) or opened.buffered_at <= older_than):
            await self._settle(opened)
            staged = await opened.journal.stage(opened.buffer, round_=self._targets.round, fit=self._fit)
            opened.is_cut = False
            opened.staged = opened.buffer[:staged]
            del opened.buffer[:staged]
            opened.buffered_at = anyio.current_time() if opened.buffer else math.inf
        await self._settle(opened)

    async def _of_each(self, act: Callable[[int, _Open], Awaitable[object]]) -> None:
        """Act on every open shard; raises the first error at the end."""
        failures: list[BatchclError] = []
        for shard, opened in tuple(self._open.items()):
            try:
                await act(shard, opened)
            except BatchclError as error:
                failures.append(error)
        if failures:
            raise failures[0]

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
        content = await self._cut_and_publish(shard, opened)
        state = latest(content.entries)
        if state.num_rows != opened.images.num_rows:
            raise BatchclError(
                f"shard {shard} has {state.num_rows} outcomes of {opened.images.num_rows}: a bug in batchcl"
            )
        await write_marker(
            self._store, self._paths, shard, round_=self._targets.round, entries=state, images=opened.images
        )

    async def _cut_and_publish(self, shard: int, opened: _Open) -> JournalContent:
        """Close what is journalled, and publish it as it is read back, which is what counts."""
        if not opened.is_cut:
            await opened.journal.cut()
            opened.is_cut = True
        return await publish_journal(self._store, self._spec, shard, opened.journal, opened.images)


def _is_due(opened: _Open) -> bool:
    """Whether its buffer is worth a segment, however young."""
    return len(opened.buffer) >= SEGMENT_ENTRIES or (not opened.missing and bool(opened.buffer))
