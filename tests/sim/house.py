"""A whole run without AWS: sessions of batchcl over one memory of files, with a trouble at any of their operations.

`House` has what outlives a process: the files below the output root, the images and the service. A session is what
`batchcl run` or `batchcl retry` does after it has opened AWS. Its `Trouble` counts what it does to the outside, and
strikes at the Nth operation. What a crash leaves in memory is thrown away; the next session has only the files.
"""

from __future__ import annotations

import datetime as dt
import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
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
from batchcl.errors import BatchclError, ModelNotReadyError, OutputError, SourceError, TransientError, UnreachableError
from batchcl.events import Observer, SilentObserver
from batchcl.images import ImageRef, Position, check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.loaders.base import Preparer
from batchcl.outcomes import Detection
from batchcl.runs.layout import RunPaths, shard_and_round
from batchcl.runs.lease import RunLease, read_lease
from batchcl.runs.record import read_record, read_summary
from batchcl.runs.store import Store, StoredFile
from batchcl.scoring.retry import execute_round, job_of_round
from batchcl.scoring.run import execute, find_resume_state
from batchcl.scoring.session import RunContext
from batchcl.scoring.source_checks import CheckedSources, TryReading, trust
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
CHANCE: Final = frozenset({"attempts", "latency_ms", "request_id", "scored_at", "failed_at"})
"""Columns in which an undisturbed run and a troubled one may differ."""

MODEL: Final = "arn:aws:rekognition:eu-west-1:123456789012:project/birds/version/v1/1700000000000"


class Crash(BaseException):
    """The process is gone: nothing catches it, and nothing that still runs reaches the outside."""


class Kind(Enum):
    """What happens to an operation: before it takes effect, or after it did."""

    ERROR_BEFORE = "error before"
    ERROR_AFTER = "error after"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    CANCEL_BEFORE = "cancelled before"
    CANCEL_AFTER = "cancelled after"

    @property
    def after(self) -> bool:
        return self.name.endswith("AFTER")


class Sort(Enum):
    """What a session does to the outside; a trouble of sort STORE strikes at READ too, unless it strikes afterwards."""

    STORE = "store"
    READ = "read"
    CALL = "call"
    PAGE = "page"
    MODEL = "model"

    @property
    def of_store(self) -> bool:
        return self in {Sort.STORE, Sort.READ}


def refusal(sort: Sort) -> BatchclError:
    """What an operation of this sort fails with."""
    match sort:
        case Sort.STORE | Sort.READ:
            return OutputError("503 Slow Down")
        case Sort.CALL:
            return TransientError("connection reset", code="ConnectionClosedError")
        case Sort.PAGE:
            return SourceError("the listing broke off")
        case Sort.MODEL:
            return UnreachableError("DescribeProjectVersions: no answer")


class Trouble:
    """Counts the operations of one session, and strikes at the one with number `at`, from 0, of a sort.

    After a read nothing is different from before it, so that kinds which strike afterwards do so after writes only.

    Args:
        sort: of operation; None for a session without trouble.
        at: its number.
        kind: what happens.
        error: raised by `ERROR_BEFORE` and `ERROR_AFTER`; `refusal(sort)` when left out.
        pause: waited before and after each operation on the store, so that sessions interleave.
        failing: tells for each operation on the store whether it is refused, for outages.
    """

    def __init__(
        self,
        sort: Sort | None = None,
        at: int = 0,
        kind: Kind = Kind.ERROR_BEFORE,
        *,
        error: Callable[[], BatchclError] | None = None,
        pause: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint,
        failing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.counts: Counter[Sort] = Counter()
        self.struck = False
        self.dead = False
        self.scope: anyio.CancelScope | None = None
        self._sort = sort
        self._at = at
        self._kind = kind
        self._error = error
        self._pause = pause
        self._failing = failing

    async def around(self, sort: Sort, act: Callable[[], Awaitable[T]]) -> T:
        """Let `act` take place, or what this trouble makes of it."""
        if sort.of_store:
            await self._pause()
        self._alive()
        if sort is Sort.READ and not self._kind.after:
            sort = Sort.STORE
        strikes = sort is self._sort and self.counts[sort] == self._at
        self.counts[sort] += 1
        if sort.of_store and self._failing():
            raise refusal(sort)
        if strikes and not self._kind.after:
            await self._strike(sort)
        try:
            result = await act()
        finally:
            if strikes and self._kind.after:
                await self._strike(sort)
        if sort.of_store:
            await self._pause()
        self._alive()
        return result

    def _alive(self) -> None:
        if self.dead:
            raise Crash

    async def _strike(self, sort: Sort) -> None:
        self.struck = True
        match self._kind:
            case Kind.ERROR_BEFORE | Kind.ERROR_AFTER:
                raise refusal(sort) if self._error is None else self._error()
            case Kind.CRASH_BEFORE | Kind.CRASH_AFTER:
                self.dead = True
                raise Crash
            case Kind.CANCEL_BEFORE | Kind.CANCEL_AFTER:
                assert self.scope is not None
                self.scope.cancel()
                await anyio.lowlevel.checkpoint()


class FaultyStore(Store):
    """A store over files in a dict, each operation under the session's trouble.

    Not over obstore's own memory: that works in threads which virtual time can't see, and answers in any order.
    `test_house.py` holds the two against each other.
    """

    def __init__(self, files: dict[str, bytes], trouble: Trouble | None = None, *, root: str = "memory") -> None:
        super().__init__(root, MemoryStore())
        self._files = files
        self._trouble = trouble or Trouble()

    async def put(self, path: str, data: bytes) -> None:
        await self._do(lambda: self._files.__setitem__(path, data))

    async def put_new(self, path: str, data: bytes) -> bool:
        return await self._do(lambda: self._create(path, data))

    async def get(self, path: str) -> bytes | None:
        return await self._do(lambda: self._files.get(path), Sort.READ)

    async def exists(self, path: str) -> bool:
        return await self._do(lambda: path in self._files, Sort.READ)

    async def delete(self, path: str) -> None:
        await self._do(lambda: self._files.pop(path, None))

    async def list_all(self, prefix: str) -> list[StoredFile]:
        return await self._do(lambda: self.list_now(prefix), Sort.READ)

    async def children(self, prefix: str) -> list[str]:
        return await self._do(lambda: self._folders(prefix), Sort.READ)

    def get_now(self, path: str) -> bytes | None:
        return self._files.get(path)

    def list_now(self, prefix: str) -> list[StoredFile]:
        return [
            StoredFile(path, len(data), str(hash(data)))
            for path, data in sorted(self._files.items())
            if _below(prefix, path) and not path.rpartition("/")[2].startswith(".")
        ]

    def open_file(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        return io.BytesIO(self._files[path])

    async def _do(self, act: Callable[[], T], sort: Sort = Sort.STORE) -> T:
        async def acting() -> T:
            return act()

        return await self._trouble.around(sort, acting)

    def _create(self, path: str, data: bytes) -> bool:
        return self._files.setdefault(path, data) is data

    def _folders(self, prefix: str) -> list[str]:
        rests = [path.removeprefix(f"{prefix}/") for path in self._files if _below(prefix, path)]
        return sorted({rest.partition("/")[0] for rest in rests if "/" in rest and not rest.startswith(".")})


def _below(prefix: str, path: str) -> bool:
    return not prefix or path.startswith(f"{prefix}/")


class HouseKeeper(ModelManager):
    """The model's keeper: the model runs, and is back `back_after_s` after it said that it is not ready."""

    def __init__(self, trouble: Trouble, *, back_after_s: float = 60.0) -> None:
        model = ModelArn.parse(MODEL)
        super().__init__(None, model, units=None, keep=False, observer=SilentObserver(), stopper=StopSignal())
        self._trouble = trouble
        self._back_after_s = back_after_s

    @property
    def owned(self) -> bool:
        return False

    @property
    def stops(self) -> bool:
        return False

    def remember(self, on_owning: Callable[[], Awaitable[None]]) -> None:
        """It starts nothing."""

    def adopt(self) -> None:
        """Nobody has started it."""

    async def check(self) -> None:
        await self._ask()

    def dollars(self) -> float | None:
        return None

    async def have_running(self) -> None:
        await self._ask()

    @asynccontextmanager
    async def stopping(self) -> AsyncIterator[None]:
        yield
        await self._ask()

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        await self._ask()
        await anyio.sleep(self._back_after_s)

    async def _ask(self) -> None:
        await self._trouble.around(Sort.MODEL, anyio.lowlevel.checkpoint)


class HouseDetector:
    """The service under the session's trouble."""

    def __init__(self, service: Detector, trouble: Trouble) -> None:
        self._service = service
        self._trouble = trouble

    async def detect(self, image: ImageRef) -> Detection:
        return await self._trouble.around(Sort.CALL, partial(self._service.detect, image))


class HouseSource:
    """A list in pages, each under the session's trouble."""

    description = "the house's images"
    repeats = NO_NAMES
    exhaustive = False
    is_explicit = False

    def __init__(self, images: Sequence[ImageRef], trouble: Trouble, *, page: int) -> None:
        self._images = images
        self._uris = frozenset(image.uri for image in images)
        self._trouble = trouble
        self._page = page

    async def check(self) -> SourceCheck:
        return SourceCheck()

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        at = 0 if after is None else after.count
        while at < len(self._images):
            await self._trouble.around(Sort.PAGE, anyio.lowlevel.checkpoint)
            yield list(self._images[at : at + self._page])
            at += self._page

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        return [image.uri in self._uris for image in images]


@dataclass
class House:
    """What outlives every process."""

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
    stopper: StopSignal | None = None
    try_reading: TryReading = trust

    def store(self, trouble: Trouble | None = None) -> FaultyStore:
        """The output root as a session sees it."""
        return FaultyStore(self.files, trouble)

    @asynccontextmanager
    async def detector(self) -> AsyncIterator[Detector]:
        """How a session reaches the service."""
        yield self.service

    def keeper(self, trouble: Trouble) -> ModelManager:
        """Who looks after the model in a session."""
        return HouseKeeper(trouble, back_after_s=self.back_after_s)

    async def run(self, trouble: Trouble | None = None) -> Summary | BatchclError | None:
        """One session of `batchcl run`: its summary, its error, or None when it was killed or cancelled."""
        return await _outcome(self._run, trouble or Trouble())

    async def retry(
        self, trouble: Trouble | None = None, *, codes: Sequence[str] = (), fit: bool = False
    ) -> Summary | BatchclError | None:
        """One session of `batchcl retry`, likewise."""
        return await _outcome(partial(self._retry, codes=codes, fit=fit), trouble or Trouble())

    async def run_to_end(self, *, tries: int = 3) -> Summary:
        """`batchcl run` as cron would: again, when the lease of the last session is over, until it is done."""
        return await self._to_end(self.run, tries)

    async def retry_to_end(self, *, tries: int = 3) -> Summary:
        """Likewise for `batchcl retry`."""
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

    async def _run(self, trouble: Trouble) -> Summary:
        job, begun_at = self._job(), anyio.current_time()
        model, observer, store = ModelArn.parse(MODEL), SilentObserver(), self.store(trouble)
        await store.check_writable()

        async def check(_: dt.datetime) -> CheckedSources:
            selection = Selection(self._sources(trouble), Filters())
            return CheckedSources(selection, 0, {}, try_reading=self.try_reading)

        found = await find_resume_state(job, model, store, check=check, observer=observer)
        if found.summary is not None:
            return found.summary
        async with self.detector() as service:
            means = self._prepared(self._means(trouble, service, begun_at), job)
            return await execute(job, found, means)

    def _sources(self, trouble: Trouble) -> list[HouseSource]:
        """Two, of which each names a third of the images that the other one names too."""
        third = len(self.images) // 3
        parts = self.images[: 2 * third], self.images[third:]
        return [HouseSource(part, trouble, page=self.page) for part in parts]

    async def _retry(self, trouble: Trouble, codes: Sequence[str], fit: bool) -> Summary:
        store = self.store(trouble)
        record, earlier = await read_record(store, self.run_id), await read_summary(store, self.run_id)
        assert record is not None
        assert earlier is not None
        job = await job_of_round(store, record, {"out": "memory"} | ({"fit": True} if fit else {}))
        async with self.detector() as service:
            means = self._prepared(self._means(trouble, service, anyio.current_time()), job)
            return await execute_round(job, store, record, earlier, means, codes=codes)

    def _prepared(self, means: RunContext, job: Job) -> RunContext:
        return replace(means, preparer=self.preparer) if job.fit else means

    def _means(self, trouble: Trouble, service: Detector, begun_at: float) -> RunContext:
        return RunContext(
            keeper=self.keeper(trouble),
            detector=HouseDetector(service, trouble),
            observer=self.observer,
            stopper=self.stopper or StopSignal(),
            begun_at=begun_at,
            utcnow=lambda: utcnow() + dt.timedelta(seconds=self.skew_s),
        )

    def _job(self) -> Job:
        return Job(
            sources=("the house's images",),
            model=MODEL,
            out="memory",
            run_id=self.run_id,
            shard_size=self.shard_size,
            max_in_flight=self.max_in_flight,
            incremental=self.incremental,
            retry_failed=self.retry_failed,
            fit=self.fit,
            max_failures=None if self.max_failures is None else str(self.max_failures),
        )

    def rows(self) -> list[dict[str, Any]]:
        """All rows of both tables, as any reader sees them now."""
        paths = [path for path in self.files if path.startswith(("results/", "failures/"))]
        return [row | {"table": path.partition("/")[0]} for path in sorted(paths) for row in _rows(self.files[path])]

    def table(self) -> dict[str, dict[str, Any]]:
        """Each uri with its row in `results/`, else its latest failure, without what chance decides.

        An image with two results, or two failures in one round, fails the test.
        """
        rows = self.rows()
        times = Counter((row["uri"], row["table"], row.get("round")) for row in rows)
        assert not (twice := [each for each, count in times.items() if count > 1]), f"more than one row: {twice}"
        newest = sorted(rows, key=lambda row: (row["table"] == "results", row.get("round") or 0))
        return {row["uri"]: {name: value for name, value in row.items() if name not in CHANCE} for row in newest}

    async def lease(self) -> RunLease | None:
        """The newest session of the run."""
        return await read_lease(self.store(), RunPaths(self.run_id).sessions)

    def journalled(self, round_: int = 0) -> set[str]:
        """Images with a durable outcome in the round."""
        found: set[str] = set()
        for path, data in self.files.items():
            if path.startswith(f"runs/{self.run_id}/journal/"):
                shard = int(path.split("/")[3])
                found.update(self.images[shard * self.shard_size + at].uri for at in _positions(data, round_))
        return found

    def published(self) -> set[str]:
        """Images that a marker says are in the tables."""
        shards = {shard_and_round(path)[0] for path in self.files if path.startswith(f"runs/{self.run_id}/shards/")}
        size = self.shard_size
        return {image.uri for shard in shards for image in self.images[shard * size : (shard + 1) * size]}

    def assert_exactly_once(self, summary: Summary) -> None:
        """Each image has one row, and the summary counts them as they are."""
        table = self.table()
        assert set(table) == {image.uri for image in self.images}
        counts = Counter(str(row.get("status", "scored")) for row in table.values())
        assert summary.status == "done"
        assert summary.planned == len(self.images)
        assert (summary.scored, summary.failed, summary.skipped) == tuple(
            counts[status] for status in ("scored", "failed", "skipped")
        )
        for image in self.images:
            assert (table[image.uri].get("status") == "skipped") == (check_limits(image) is not None)


async def _outcome(session: Callable[[Trouble], Awaitable[Summary]], trouble: Trouble) -> Summary | BatchclError | None:
    """Run a session as a process of its own. Whatever it raises that batchcl does not promise fails the test."""
    with anyio.CancelScope() as scope:
        trouble.scope = scope
        try:
            return await session(trouble)
        except BatchclError as error:
            return error
        except Crash:
            pass
        except BaseExceptionGroup:
            if not trouble.dead:
                raise
    return None


def utcnow() -> dt.datetime:
    """The time of day in virtual time."""
    return EPOCH + dt.timedelta(seconds=anyio.current_time())


def in_house(fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, start_s: float = 0.0) -> T:
    """`run_virtual`, with the work of threads done in the loop: many times faster, and in the same order each time."""
    with mock.patch("anyio.to_thread.run_sync", _run_here):
        return run_virtual(fn, *args, start_s=start_s)


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
