"""The ledger of one round of a run: which images still need a call, and the recording of their outcomes.

It yields the images of the work list shard by shard, without those that have an outcome in the journal. It buffers
the outcomes of each shard and journals them after 2,000 outcomes or 15 s. Complete shards are cut and published; so are
incomplete ones when a session ends early. Journalling and publishing run concurrently with the calls and with each
other. After an interruption at any point, a new ledger continues the round from the stored state.
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
from batchcl.outcomes import AlreadyKnown, Counts, KnownStatus, Outcome, Scored
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
MAX_BUFFERED_ENTRIES: Final = 4 * SEGMENT_ENTRIES
"""With this many outcomes in memory, `room` waits for the journal, so that no more calls are sent."""

MAX_UNPUBLISHED_SHARDS: Final = 1
"""With this many complete but unpublished shards, no further shard is opened."""


_LookUp: TypeAlias = Callable[[Sequence[ImageRef]], Awaitable[list[KnownStatus | None]]]


class Targets(Protocol):
    """The images that a round scores."""

    @property
    def round(self) -> int:
        """Number of the round."""
        ...

    def shards(self) -> AsyncIterator[int]:
        """Numbers of the shards with images to score, in order."""
        ...

    @property
    def is_sample(self) -> bool:
        """Whether images of its shards that have no outcome are left to later sessions."""
        ...

    def positions(self, shard: int, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """The positions to score in a shard, given its `images` and the entries of `earlier` rounds."""
        ...


class AllImages:
    """Round 0: all images of the work list, in shards that aren't published. Implements `Targets`."""

    round = 0
    is_sample = False

    def __init__(self, worklist: WorkList, published: Collection[int]) -> None:
        self._worklist = worklist
        self._published = published

    async def shards(self) -> AsyncIterator[int]:
        """All shards that aren't published."""
        async for shard in self._worklist.shard_numbers():
            if shard not in self._published:
                yield shard

    def positions(self, shard: int, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """All positions."""
        return range(images.num_rows)


@dataclass(slots=True)
class _OpenShard:
    """A shard that is being scored.

    Attributes:
        missing: positions without an outcome in the journal, `staged` or `buffer`.
        before: position → latest status in earlier rounds; empty in round 0.
        is_cut: whether the journal ends with a cut or is empty.
        buffer: outcomes that are not in a segment yet.
        staged: outcomes in a segment that may not be written yet.
        buffered_at: when the oldest outcome in `buffer` was recorded; infinity if it is empty.
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
        """Whether all its outcomes are in the journal."""
        return not self.missing and not self.buffer and not self.staged


class Ledger:
    """The engine's source of batches and the sink of its outcomes.

    All methods raise `StoppedError` if another process owns a shard.

    Args:
        store: the output root.
        spec: of the run.
        worklist: of the run.
        targets: the images of the round.
        writer: identifies this process in the journal.
        fit: the round's `--fit` setting; stored in rows of `failures/`.
        check_owner: raises `StoppedError` if another process has taken over the run.
        known: the incremental filter: for each image, whether it has a result or a permanent failure from another run.
            None for no filter.
        on_resumed: called with the counts of the outcomes in a shard that earlier sessions have journalled.
        on_known: called with each outcome that `known` has determined without a call.
        utcnow: the current time.
        segment_entries: number of entries after which a segment is written.

    Attributes:
        opened: the shards whose outcomes of earlier sessions were counted.
        settled: whether `close` has published everything.
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
        on_resumed: Callable[[Counts], None] = lambda _: None,
        on_known: Callable[[Outcome], None] = lambda _: None,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        segment_entries: int = SEGMENT_ENTRIES,
    ) -> None:
        self._store = store
        self._segment_entries = segment_entries
        self._spec = spec
        self._paths = RunPaths(spec.run_id)
        self._worklist = worklist
        self._targets = targets
        self._writer = writer
        self._check_owner = check_owner
        self._fit = fit
        self._known = known
        self._utcnow = utcnow
        self._on_taken_up = on_resumed
        self._on_known = on_known
        self.opened: set[int] = set()
        self.settled = False
        self._open: dict[int, _OpenShard] = {}
        self._buffered = 0
        self._replaced: Counter[str] = Counter()  # status before this round → images with an outcome in this round
        self._journal_lock = anyio.Lock()
        self._publish_lock = anyio.Lock()
        self._recorded = Notifier()  # for `_journal_loop`: outcomes are due
        self._journalled = Notifier()  # for `_publish_loop` and `room`
        self._published = Notifier()  # for `batches`

    async def batches(self) -> AsyncIterator[Batch]:
        """For each shard, the images that still need a call."""
        async for shard in self._targets.shards():
            while sum(opened.complete for opened in self._open.values()) >= MAX_UNPUBLISHED_SHARDS:
                await self._published.wait()
            images = await self._worklist.load(shard)
            journal = Journal(self._store, self._paths, shard, writer=self._writer)
            content = await journal.read()
            # after reading: a process that takes over later cuts the journal after the segments that were read
            await self._check_owner()
            current, earlier = of_round(content.entries, self._targets.round)
            self._on_taken_up(counts(current))
            self.opened.add(shard)
            missing = set(self._targets.positions(shard, images, earlier)).difference(positions(current))
            before = statuses(latest(earlier))
            self._replaced.update(before[position] for position in positions(current) if before)
            self._open[shard] = _OpenShard(images, journal, missing, before, is_cut=content.uncut is None)
            if missing and self._known is not None:
                await self._exclude_known(shard, images, self._known)
            if missing:
                remaining = sorted(missing)
                yield Batch(shard, ImageRows(images, remaining), remaining)
            else:  # nothing to score: let the loops publish the shard
                self._recorded.notify()
                self._journalled.notify()

    async def _exclude_known(self, shard: int, images: pa.Table, look_up: _LookUp) -> None:
        """Record outcomes of images that other runs have processed since the work list was written."""
        remaining = sorted(self._open[shard].missing)
        candidates = list(ImageRows(images, remaining))
        for position, image, known in zip(remaining, candidates, await look_up(candidates), strict=True):
            if known is not None:
                outcome = AlreadyKnown(image=image, status=known, at=self._utcnow())
                self.record(shard, position, outcome)
                self._on_known(outcome)

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Buffer one outcome; `keep` makes it durable later."""
        opened = self._open[shard]
        opened.missing.remove(position)
        if opened.before:
            self._replaced[opened.before[position]] += 1
        opened.buffer.append(JournalEntry(position, outcome))
        is_first = opened.buffered_at == math.inf
        if is_first:
            opened.buffered_at = anyio.current_time()
        self._buffered += 1
        if is_first or self._is_due(opened):
            self._recorded.notify()

    def unsaved(self) -> Counts:
        """Counts of recorded outcomes that are not durable: lost if nothing more can be written."""
        outcomes = [entry.outcome for _, entry in self._unsaved()]
        unlabelled = sum(isinstance(outcome, Scored) and not outcome.labels for outcome in outcomes)
        return Counts(**Counter[str](outcome.status for outcome in outcomes), unlabelled=unlabelled)

    def replaced(self) -> Counts:
        """Earlier statuses of the images that have a durable outcome in this round, which replaces them."""
        unsaved = Counter(opened.before[entry.position] for opened, entry in self._unsaved() if opened.before)
        return Counts(**(self._replaced - unsaved))

    def _unsaved(self) -> Iterator[tuple[_OpenShard, JournalEntry]]:
        """The recorded outcomes that are not durable."""
        for opened in self._open.values():
            for entry in (*opened.staged, *opened.buffer):
                yield opened, entry

    async def wait_for_capacity(self) -> None:
        """Wait while too many outcomes are buffered: a store slower than the model must not let memory grow."""
        while self._buffered >= MAX_BUFFERED_ENTRIES:
            await self._journalled.wait()

    async def keep(self) -> None:
        """Journal due outcomes and publish complete shards, until cancelled."""
        loops: tuple[Callable[[], Awaitable[None]], ...] = (self._journal_loop, self._publish_loop)
        await gather(lambda loop: loop(), loops, at_once=len(loops))

    async def close(self) -> None:
        """Journal and publish all recorded outcomes, including those of incomplete shards."""
        await self._flush(older_than=math.inf)
        await self._publish_complete()
        async with self._publish_lock:
            await self._for_each_shard(self._cut_and_publish)
        self.settled = True

    async def save(self) -> None:
        """Journal all recorded outcomes without publishing them; a recovery of the run does that."""
        await self._flush(older_than=math.inf)

    async def _journal_loop(self) -> None:
        while True:
            while (wait_s := self._next_flush_at() - anyio.current_time()) > 0:
                await self._recorded.wait(timeout_s=wait_s)
            await self._flush(older_than=anyio.current_time() - SEGMENT_AGE_S)

    def _next_flush_at(self) -> float:
        """When the next outcomes are due, on the clock of the event loop; infinity if there are none."""
        shards = self._open.values()
        return min(
            (0.0 if self._is_due(opened) else opened.buffered_at + SEGMENT_AGE_S for opened in shards), default=math.inf
        )

    async def _publish_loop(self) -> None:
        while True:
            await self._publish_complete()
            if not any(opened.complete for opened in self._open.values()):
                await self._journalled.wait()

    async def _flush(self, *, older_than: float) -> None:
        """Journal due outcomes of every shard, even if some shards fail: the outcomes were paid for."""
        async with self._journal_lock:
            await self._for_each_shard(lambda _, opened: self._flush_shard(opened, older_than=older_than))
            self._journalled.notify()

    async def _flush_shard(self, opened: _OpenShard, *, older_than: float) -> None:
        if opened.buffer and (self._is_due(opened) or opened.buffered_at <= older_than):
            await self._flush_staged(opened)
            staged = await opened.journal.stage(opened.buffer, round_=self._targets.round, fit=self._fit)
            opened.is_cut = False
            opened.staged = opened.buffer[:staged]
            del opened.buffer[:staged]
            opened.buffered_at = anyio.current_time() if opened.buffer else math.inf
        await self._flush_staged(opened)

    async def _for_each_shard(self, act: Callable[[int, _OpenShard], Awaitable[object]]) -> None:
        """Call `act` for every open shard; afterwards raise the first error, if any."""
        failures: list[BatchclError] = []
        for shard, opened in tuple(self._open.items()):
            try:
                await act(shard, opened)
            except BatchclError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _flush_staged(self, opened: _OpenShard) -> None:
        await opened.journal.flush()
        self._buffered -= len(opened.staged)
        opened.staged = []

    async def _publish_complete(self) -> None:
        async with self._publish_lock:
            for shard, opened in tuple(self._open.items()):
                if opened.complete:
                    await self._publish(shard, opened)
                    del self._open[shard]
                    self._published.notify()

    async def _publish(self, shard: int, opened: _OpenShard) -> None:
        content = await self._cut_and_publish(shard, opened)
        last = latest(content.entries)
        if last.num_rows != opened.images.num_rows:
            if self._targets.is_sample:
                return
            raise BatchclError(
                f"completing shard {shard} failed: {last.num_rows} outcomes for {opened.images.num_rows} images; this "
                "is a bug in batchcl, please report it"
            )
        await write_marker(
            self._store, self._paths, shard, round_=self._targets.round, entries=last, images=opened.images
        )

    async def _cut_and_publish(self, shard: int, opened: _OpenShard) -> JournalContent:
        """Close the journal's current chunk, and publish what is read back from the journal."""
        if not opened.is_cut:
            await opened.journal.cut()
            opened.is_cut = True
        return await publish_journal(self._store, self._spec, shard, opened.journal, opened.images)

    def _is_due(self, opened: _OpenShard) -> bool:
        """Whether the buffer is to be journalled regardless of its age: it is full, or the shard is complete."""
        return len(opened.buffer) >= self._segment_entries or (not opened.missing and bool(opened.buffer))
