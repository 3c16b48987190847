"""Whole runs without AWS: sessions of batchcl over an output root in memory, with a fault at any operation.

A `FakeWorld` contains everything that outlives a process: the files below the output root, the images and the service.
A session is what `batchcl run` or `batchcl retry` does after it has opened AWS. Its `FaultInjector` counts the external
operations, and injects a fault at the Nth one. A crash discards the session's memory; the next session has only the
files.
"""

from __future__ import annotations

import datetime as dt
import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache, partial
from typing import Any, BinaryIO, Final, TypeVar, TypeVarTuple
from unittest import mock

import anyio
import anyio.lowlevel
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import MemoryStore

from batchcl.arns import ModelArn
from batchcl.aws.detect import Detector
from batchcl.choices import IfHeld
from batchcl.errors import BatchclError, ModelNotReadyError, OutputError, SourceError, TransientError, UnreachableError
from batchcl.events import Observer, SilentObserver
from batchcl.images import ImageRef, Position, check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.loaders.base import Preparer
from batchcl.outcomes import Detection
from batchcl.runs.layout import RunPaths, shard_and_round
from batchcl.runs.lease import RunLease, read_lease
from batchcl.runs.ledger import SEGMENT_ENTRIES
from batchcl.runs.record import read_record, read_summary
from batchcl.runs.store import Store, StoredFile
from batchcl.scoring.bounds import deadline_at
from batchcl.scoring.retry import completes_followed_round, execute_round, job_of_round, waiter_for_retry
from batchcl.scoring.run import count_new_run, execute, find_resume_state, summary_of_done_run, waiter_for_run
from batchcl.scoring.session import RunContext
from batchcl.scoring.source_checks import CheckedSources, ReadCheck, skip_read_check
from batchcl.sources.base import SourceCheck
from batchcl.sources.deduplication import NO_NAMES
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from sim.service import Service
from virtual import run_virtual

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RUN: Final = "night"
EPOCH: Final = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
VOLATILE_COLUMNS: Final = frozenset({"attempts", "latency_ms", "request_id", "scored_at", "failed_at"})
"""Columns that may differ between a run without faults and one with faults."""

MODEL: Final = "arn:aws:rekognition:eu-west-1:123456789012:project/birds/version/v1/1700000000000"


class Crash(BaseException):
    """The process is killed: nothing catches this, and no later operation of the session takes effect."""


class FaultKind(Enum):
    """What happens to an operation, before or after it takes effect."""

    ERROR_BEFORE = "error before"
    ERROR_AFTER = "error after"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    CANCEL_BEFORE = "cancelled before"
    CANCEL_AFTER = "cancelled after"

    @property
    def after(self) -> bool:
        return self.name.endswith("AFTER")


class OperationKind(Enum):
    """External operations of a session. Faults of kind STORE also hit READ, unless they come after the operation."""

    STORE = "store"
    READ = "read"
    CALL = "call"
    PAGE = "page"
    MODEL = "model"

    @property
    def is_on_store(self) -> bool:
        """Whether it is a read or a write of the output root."""
        return self in {OperationKind.STORE, OperationKind.READ}


def error_of(operation: OperationKind) -> BatchclError:
    """The error with which operations of this kind fail."""
    match operation:
        case OperationKind.STORE | OperationKind.READ:
            return OutputError("503 Slow Down")
        case OperationKind.CALL:
            return TransientError("connection reset", code="ConnectionClosedError")
        case OperationKind.PAGE:
            return SourceError("the listing broke off")
        case OperationKind.MODEL:
            return UnreachableError("DescribeProjectVersions: no answer")


class FaultInjector:
    """Counts the operations of one session, and injects a fault at operation number `at` of a kind.

    Faults after an operation are injected at writes only: a read changes nothing.

    Args:
        operation: the kind of operation; None for a session without faults.
        at: its number, from 0.
        kind: the fault.
        error: raised by `ERROR_BEFORE` and `ERROR_AFTER`; default: `error_of(operation)`.
        pause: awaited before and after each operation on the store, so that sessions interleave.
        failing: returns whether operations on the store fail now, for outages.
    """

    def __init__(
        self,
        operation: OperationKind | None = None,
        at: int = 0,
        kind: FaultKind = FaultKind.ERROR_BEFORE,
        *,
        error: Callable[[], BatchclError] | None = None,
        pause: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint,
        failing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.counts: Counter[OperationKind] = Counter()
        self.fired = False
        self.crashed = False
        self.scope: anyio.CancelScope | None = None
        self._operation = operation
        self._at = at
        self._kind = kind
        self._error = error
        self._pause = pause
        self._failing = failing

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        """Execute `act`, with the fault if it is due."""
        if operation.is_on_store:
            await self._pause()
        self._check_alive()
        if operation is OperationKind.READ and not self._kind.after:
            operation = OperationKind.STORE
        is_due = operation is self._operation and self.counts[operation] == self._at
        self.counts[operation] += 1
        if operation.is_on_store and self._failing():
            raise error_of(operation)
        if is_due and not self._kind.after:
            await self._inject(operation)
        try:
            result = await act()
        finally:
            if is_due and self._kind.after:
                await self._inject(operation)
        if operation.is_on_store:
            await self._pause()
        self._check_alive()
        return result

    def _check_alive(self) -> None:
        if self.crashed:
            raise Crash

    async def _inject(self, operation: OperationKind) -> None:
        self.fired = True
        match self._kind:
            case FaultKind.ERROR_BEFORE | FaultKind.ERROR_AFTER:
                raise error_of(operation) if self._error is None else self._error()
            case FaultKind.CRASH_BEFORE | FaultKind.CRASH_AFTER:
                self.crashed = True
                raise Crash
            case FaultKind.CANCEL_BEFORE | FaultKind.CANCEL_AFTER:
                assert self.scope is not None
                self.scope.cancel()
                await anyio.lowlevel.checkpoint()


class FaultyStore(Store):
    """A store whose files are in a dict, with the session's faults.

    It does not use obstore's memory store: that works in threads, which virtual time can't see, and its order is not
    deterministic. `test_fake_world.py` compares the two.
    """

    def __init__(self, files: dict[str, bytes], faults: FaultInjector | None = None, *, root: str = "memory") -> None:
        super().__init__(root, MemoryStore())
        self._files = files
        self._faults = faults or FaultInjector()

    async def put(self, path: str, data: bytes) -> None:
        await self._do(lambda: self._files.__setitem__(path, data))

    async def put_new(self, path: str, data: bytes) -> bool:
        return await self._do(lambda: self._create(path, data))

    async def get(self, path: str) -> bytes | None:
        return await self._do(lambda: self._files.get(path), OperationKind.READ)

    async def exists(self, path: str) -> bool:
        return await self._do(lambda: path in self._files, OperationKind.READ)

    async def delete(self, path: str) -> None:
        await self._do(lambda: self._files.pop(path, None))

    async def list_all(self, prefix: str) -> list[StoredFile]:
        return await self._do(lambda: self.list_sync(prefix), OperationKind.READ)

    async def children(self, prefix: str) -> list[str]:
        return await self._do(lambda: self._folders(prefix), OperationKind.READ)

    def list_sync(self, prefix: str) -> list[StoredFile]:
        below = f"{prefix}/" if prefix else ""
        return [
            StoredFile(path, len(self._files[path]), str(hash(self._files[path])))
            for path in sorted(path for path in self._files if path.startswith(below))
            if not path.rpartition("/")[2].startswith(".")
        ]

    def open_file(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        return io.BytesIO(self._files[path])

    async def _do(self, act: Callable[[], T], operation: OperationKind = OperationKind.STORE) -> T:
        async def acting() -> T:
            return act()

        return await self._faults.around(operation, acting)

    def _create(self, path: str, data: bytes) -> bool:
        return self._files.setdefault(path, data) is data

    def _folders(self, prefix: str) -> list[str]:
        below = f"{prefix}/" if prefix else ""
        rests = [path.removeprefix(below) for path in self._files if path.startswith(below)]
        return sorted({rest.partition("/")[0] for rest in rests if "/" in rest and not rest.startswith(".")})


class FakeModelManager(ModelManager):
    """Manages a model that is always RUNNING; `recover` takes `back_after_s`."""

    def __init__(self, faults: FaultInjector, *, back_after_s: float = 60.0) -> None:
        model = ModelArn.parse(MODEL)
        super().__init__(None, model, units=None, keep=False, observer=SilentObserver(), stop_signal=StopSignal())
        self._faults = faults
        self._back_after_s = back_after_s

    @property
    def owned(self) -> bool:
        return False

    @property
    def stops(self) -> bool:
        return False

    def remember(self, before_start: Callable[[], Awaitable[None]]) -> None:
        """Never called: it starts no model."""

    def adopt(self, *, unattended_since: dt.datetime | None = None) -> None:
        """No earlier session has started the model."""

    async def check(self) -> None:
        await self._request()

    def dollars(self) -> float | None:
        return None

    async def ensure_running(self) -> None:
        await self._request()

    @asynccontextmanager
    async def stopping(self) -> AsyncIterator[None]:
        yield
        await self._request()

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        await self._request()
        await anyio.sleep(self._back_after_s)

    async def _request(self) -> None:
        await self._faults.around(OperationKind.MODEL, anyio.lowlevel.checkpoint)


class FaultyDetector:
    """The service, with the session's faults."""

    def __init__(self, service: Detector, faults: FaultInjector) -> None:
        self._service = service
        self._faults = faults

    async def detect(self, image: ImageRef) -> Detection:
        return await self._faults.around(OperationKind.CALL, partial(self._service.detect, image))


class FaultySource:
    """A list of images in pages, with the session's faults."""

    description = "the world's images"
    repeats = NO_NAMES
    exhaustive = False
    is_explicit = False

    def __init__(self, images: Sequence[ImageRef], faults: FaultInjector, *, page: int) -> None:
        self._images = images
        self._uris = frozenset(image.uri for image in images)
        self._faults = faults
        self._page = page

    async def check(self) -> SourceCheck:
        return SourceCheck()

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        at = 0 if after is None else after.count
        while at < len(self._images):
            await self._faults.around(OperationKind.PAGE, anyio.lowlevel.checkpoint)
            yield list(self._images[at : at + self._page])
            at += self._page

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        return [image.uri in self._uris for image in images]


@dataclass
class FakeWorld:
    """Everything that outlives a process."""

    images: Sequence[ImageRef]
    service: Service
    files: dict[str, bytes] = field(default_factory=dict)
    shard_size: int = 10
    page: int = 13
    max_in_flight: int = 8
    back_after_s: float = 60.0
    run_id: str = RUN
    incremental: bool = False
    skew_s: float = 0.0
    retry_failed: bool = False
    fit: bool = False
    preparer: Preparer | None = None
    max_failures: int | None = None
    observer: Observer = field(default_factory=SilentObserver)
    stop_signal: StopSignal | None = None
    segment_entries: int = SEGMENT_ENTRIES
    check_readable: ReadCheck = skip_read_check
    if_held: IfHeld = IfHeld.FAIL
    deadline: str | None = None
    max_cost: float | None = None
    monthly_budget: float | None = None
    model: str = MODEL
    min_images: int | None = None
    max_wait: str | None = None

    def store(self, faults: FaultInjector | None = None) -> FaultyStore:
        """Open the output root for a session."""
        return FaultyStore(self.files, faults)

    @asynccontextmanager
    async def detector(self) -> AsyncIterator[Detector]:
        """Open the service for a session."""
        yield self.service

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        """The model manager of a session."""
        return FakeModelManager(faults, back_after_s=self.back_after_s)

    async def run(self, faults: FaultInjector | None = None) -> Summary | BatchclError | None:
        """One session of `batchcl run`: its summary, its error, or None if it was killed or cancelled."""
        return await _outcome(self._run, faults or FaultInjector())

    async def pilot(self, images: int, faults: FaultInjector | None = None) -> Summary | BatchclError | None:
        """One session of `batchcl pilot`; returns the same as `run`."""
        return await _outcome(partial(self._run, sample_images=images), faults or FaultInjector())

    async def retry(
        self, faults: FaultInjector | None = None, *, codes: Sequence[str] = (), fit: bool = False
    ) -> Summary | BatchclError | None:
        """One session of `batchcl retry`; returns the same as `run`."""
        return await _outcome(partial(self._retry, codes=codes, fit=fit), faults or FaultInjector())

    async def run_to_end(self, *, tries: int = 3) -> Summary:
        """Repeat `batchcl run` until it is done, as cron would; each time after the last lease has expired."""
        return await self._to_end(self.run, tries)

    async def retry_to_end(self, *, tries: int = 3) -> Summary:
        """The same for `batchcl retry`."""
        return await self._to_end(self.retry, tries)

    async def _to_end(self, session: Callable[[], Awaitable[Summary | BatchclError | None]], tries: int) -> Summary:
        ends: list[object] = []
        for _ in range(tries):
            await anyio.sleep(60)
            end = await session()
            if isinstance(end, Summary):
                return end
            ends.append(end)
        raise AssertionError(f"not done after {tries} sessions: {ends}")

    async def _run(self, faults: FaultInjector, sample_images: int | None = None) -> Summary:
        job = self._job()
        ends_at = deadline_at(job, begun_at=anyio.current_time(), now=utcnow())
        model, store = ModelArn.parse(self.model), self.store(faults)
        stop_signal = self.stop_signal or StopSignal()
        await store.check_writable()

        async def check(_: dt.datetime) -> CheckedSources:
            selection = Selection(self._sources(faults), Filters())
            return CheckedSources(selection, 0, {}, check_readable=self.check_readable)

        async def attempt() -> Summary:
            state = await find_resume_state(job, model, store, check=check, observer=self.observer)
            if not state.is_resumed:
                state = replace(state, record=replace(state.record, started_at=utcnow()))
            if state.summary is not None:
                return await summary_of_done_run(
                    job, state.summary, nullcontext(), self.observer, followed=waiter.followed
                )
            async with AsyncExitStack() as listing, self.detector() as service:
                batch = None
                if sample_images is None:
                    batch = await count_new_run(job, state, listing, observer=self.observer)
                if isinstance(batch, Summary):
                    return batch
                context = self._with_preparer(self._context(faults, service, ends_at), job)
                state = replace(state, pages=batch)
                return await execute(job, state, context, dead=waiter.dead, sample_images=sample_images)

        waiter = waiter_for_run(job, store, observer=self.observer, stop_signal=stop_signal, ends_at=ends_at)
        return await waiter.run(attempt)

    def _sources(self, faults: FaultInjector) -> list[FaultySource]:
        """Two sources that overlap in a third of the images."""
        third = len(self.images) // 3
        parts = self.images[: 2 * third], self.images[third:]
        return [FaultySource(part, faults, page=self.page) for part in parts]

    async def _retry(self, faults: FaultInjector, codes: Sequence[str], fit: bool) -> Summary:
        store = self.store(faults)
        record, begun_at = await read_record(store, self.run_id), anyio.current_time()
        assert record is not None
        changes = {"out": "memory", "if_held": self.if_held} | ({"fit": True} if fit else {})
        job = await job_of_round(store, record, changes)
        ends_at = deadline_at(job, begun_at=begun_at, now=utcnow())

        async def attempt() -> Summary:
            earlier = await read_summary(store, self.run_id)
            assert earlier is not None
            if await completes_followed_round(store, earlier, job, codes=codes, followed=waiter.followed):
                return earlier
            async with self.detector() as service:
                context = self._with_preparer(self._context(faults, service, ends_at), job)
                return await execute_round(job, store, record, earlier, context, codes=codes, dead=waiter.dead)

        waiter = waiter_for_retry(
            job,
            store,
            self.run_id,
            observer=self.observer,
            stop_signal=self.stop_signal or StopSignal(),
            ends_at=ends_at,
        )
        return await waiter.run(attempt)

    def _with_preparer(self, context: RunContext, job: Job) -> RunContext:
        return replace(context, preparer=self.preparer) if job.fit else context

    def _context(self, faults: FaultInjector, service: Detector, ends_at: float) -> RunContext:
        return RunContext(
            model_manager=self.model_manager(faults),
            detector=FaultyDetector(service, faults),
            observer=self.observer,
            stop_signal=self.stop_signal or StopSignal(),
            ends_at=ends_at,
            utcnow=lambda: utcnow() + dt.timedelta(seconds=self.skew_s),
            segment_entries=self.segment_entries,
        )

    def _job(self) -> Job:
        return Job(
            sources=("the world's images",),
            model=self.model,
            out="memory",
            run_id=self.run_id,
            shard_size=self.shard_size,
            max_in_flight=self.max_in_flight,
            incremental=self.incremental,
            retry_failed=self.retry_failed,
            fit=self.fit,
            max_failures=None if self.max_failures is None else str(self.max_failures),
            if_held=self.if_held,
            deadline=self.deadline,
            max_cost=self.max_cost,
            monthly_budget=self.monthly_budget,
            min_images=self.min_images,
            max_wait=self.max_wait,
        )

    def rows(self) -> list[dict[str, Any]]:
        """All rows of both tables as a reader sees them now."""
        paths = [path for path in self.files if path.startswith(("results/", "failures/"))]
        return [row | {"table": path.partition("/")[0]} for path in sorted(paths) for row in _rows(self.files[path])]

    def table(self) -> dict[str, dict[str, Any]]:
        """Each uri with its row in `results/`, else its latest failure, without `VOLATILE_COLUMNS`.

        Two results of an image, or two failures in one round, fail the test.
        """
        rows = self.rows()
        counts = Counter((row["uri"], row["table"], row.get("round")) for row in rows)
        assert not (twice := [each for each, count in counts.items() if count > 1]), f"more than one row: {twice}"
        newest = sorted(rows, key=lambda row: (row["table"] == "results", row.get("round") or 0))
        return {
            row["uri"]: {name: value for name, value in row.items() if name not in VOLATILE_COLUMNS} for row in newest
        }

    async def lease(self) -> RunLease | None:
        """The newest session of the run."""
        return await read_lease(self.store(), RunPaths(self.run_id).sessions)

    def journalled(self, round_: int = 0) -> set[str]:
        """Images with a journalled outcome in the round."""
        found: set[str] = set()
        for path, data in self.files.items():
            if path.startswith(f"runs/{self.run_id}/journal/"):
                shard = int(path.split("/")[3])
                found.update(self.images[shard * self.shard_size + at].uri for at in _positions(data, round_))
        return found

    def published(self) -> set[str]:
        """Images of published shards."""
        shards = {shard_and_round(path)[0] for path in self.files if path.startswith(f"runs/{self.run_id}/shards/")}
        size = self.shard_size
        return {image.uri for shard in shards for image in self.images[shard * size : (shard + 1) * size]}

    def assert_exactly_once(self, summary: Summary) -> None:
        """Assert that each image has one row, and that the summary has the right counts."""
        table = self.table()
        assert set(table) == {image.uri for image in self.images}
        counts = Counter(str(row.get("status", "scored")) for row in table.values())
        assert summary.status == "done"
        assert summary.planned == len(self.images)
        assert (summary.scored, summary.failed, summary.skipped) == tuple(
            counts[status] for status in ("scored", "failed", "skipped")
        )
        assert summary.unlabelled == sum(row.get("labels") == [] for row in table.values())
        for image in self.images:
            assert (table[image.uri].get("status") == "skipped") == (check_limits(image) is not None)


async def _outcome(
    session: Callable[[FaultInjector], Awaitable[Summary]], faults: FaultInjector
) -> Summary | BatchclError | None:
    """Run a session like a process of its own. Exceptions other than `BatchclError` fail the test."""
    with anyio.CancelScope() as scope:
        faults.scope = scope
        try:
            return await session(faults)
        except BatchclError as error:
            return error
        except Crash:
            pass
        except BaseExceptionGroup:
            if not faults.crashed:
                raise
    return None


def utcnow() -> dt.datetime:
    """The current time in virtual time."""
    return EPOCH + dt.timedelta(seconds=anyio.current_time())


def run_simulation(fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, start_s: float = 0.0) -> T:
    """`run_virtual` without threads: their work is done in the loop, which is deterministic and many times faster."""
    with mock.patch("anyio.to_thread.run_sync", _run_here):
        return run_virtual(fn, *args, start_s=start_s, is_alone=True)


async def _run_here(func: Callable[[*Ts], T], *args: *Ts, **_options: object) -> T:
    await anyio.lowlevel.checkpoint()
    return func(*args)


@lru_cache(maxsize=64)
def _rows(part: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(io.BytesIO(part)).read(use_threads=False).to_pylist()
    return rows


@lru_cache(maxsize=64)
def _positions(segment: bytes, round_: int) -> list[int]:
    with pa.ipc.open_file(pa.py_buffer(segment)) as file:
        rows = file.read_all().select(["position", "round"]).to_pylist()
    return [int(row["position"]) for row in rows if row["round"] == round_]
