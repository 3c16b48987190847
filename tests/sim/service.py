"""Fakes for the engine in virtual time: a service with capacity, latency and faults, a sink, and a recovery."""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import count, islice

import anyio
import anyio.lowlevel

from batchcl.errors import BatchclError, CallError, ModelNotReadyError, ThrottledError
from batchcl.events import Pace
from batchcl.images import ImageRef
from batchcl.outcomes import Detection, Failed, Label, Outcome, Scored
from batchcl.runs.worklist import Batch


def image(n: int) -> ImageRef:
    return ImageRef(uri=f"s3://b/{n:06}.jpg", bucket="b", key=f"{n:06}.jpg", size_bytes=1000)


async def batches(images: Iterable[ImageRef], size: int = 10_000) -> AsyncIterator[Batch]:
    rest = iter(images)
    for shard in count():
        part = list(islice(rest, size))
        if not part:
            return
        yield Batch(shard, part, range(len(part)))


class UnpacedPacer:
    """Never waits, and learns nothing."""

    async def acquire(self) -> None:
        await anyio.lowlevel.checkpoint()

    def succeeded(self, *, sent_at: float) -> None:
        pass

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        pass

    def sent(self) -> None:
        pass

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        pass

    def pace(self) -> Pace:
        return Pace(math.inf)


class Service:
    """A model whose capacity is a token bucket; `fault(image, call number, now)` may return an error to raise.

    An image is admitted while there is one token, and takes `tokens`; later calls wait until these are refilled.
    """

    def __init__(
        self,
        *,
        tps: Callable[[float], float] = lambda _: 1e9,
        tokens: Callable[[ImageRef], float] = lambda _: 1.0,
        latency_s: Callable[[random.Random], float] = lambda _: 0.1,
        fault: Callable[[ImageRef, int, float], CallError | None] = lambda *_: None,
        seed: int = 0,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.sent_at: list[float] = []
        self._tps = tps
        self._tokens_of = tokens
        self._latency_s = latency_s
        self._fault = fault
        self._rng = random.Random(seed)
        self._tokens = 0.0
        self._filled_at = 0.0

    async def detect(self, image: ImageRef) -> Detection:
        now = anyio.current_time()
        self.sent_at.append(now)
        self.calls[image.uri] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if not self._admit(image, now):
                await anyio.sleep(0.01)
                raise ThrottledError("Provisioned Rate exceeded", code="ProvisionedThroughputExceededException")
            await anyio.sleep(self._latency_s(self._rng))
            if (error := self._fault(image, self.calls[image.uri], now)) is not None:
                raise error
        finally:
            self.in_flight -= 1
        self.answered[image.uri] += 1
        labels = () if zlib.crc32(image.key.encode()) % 5 == 0 else (Label("cat", 90.0),)
        return Detection(labels, request_id=f"r-{image.key}")

    def _admit(self, image: ImageRef, now: float) -> bool:
        tps = self._tps(now)
        self._tokens = min(max(1.0, tps), self._tokens + (now - self._filled_at) * tps)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= self._tokens_of(image)
        return True


@dataclass
class MemorySink:
    """Stores outcomes in memory; `keep` raises `error` at outcome number `fail_at`."""

    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    positions: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False
    saved: bool = False
    fail_at: int | None = None
    error: BatchclError | None = None
    save_error: BatchclError | None = None
    failed_now: anyio.Event = field(default_factory=anyio.Event)

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        if self.error is not None and len(self.outcomes) == self.fail_at:
            self.failed_now.set()
        self.outcomes.append((shard, outcome))
        self.positions.append((shard, position))

    async def wait_for_capacity(self) -> None:
        pass

    async def keep(self) -> None:
        await self.failed_now.wait()
        assert self.error is not None
        raise self.error

    async def close(self) -> None:
        self.closed = True

    async def save(self) -> None:
        self.saved = True
        if self.save_error is not None:
            raise self.save_error

    @property
    def scored(self) -> list[Scored]:
        return [outcome for _, outcome in self.outcomes if isinstance(outcome, Scored)]

    @property
    def failed(self) -> list[Failed]:
        return [outcome for _, outcome in self.outcomes if isinstance(outcome, Failed)]


@dataclass
class WaitingRecovery:
    """Waits `seconds` in each pause, then raises `error` if there is one."""

    seconds: float = 60.0
    error: BatchclError | None = None
    pauses: list[float] = field(default_factory=list)

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        self.pauses.append(anyio.current_time())
        await anyio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
