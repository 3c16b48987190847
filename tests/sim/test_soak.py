"""Hours of one session in virtual time: memory stays flat and every image has its row."""

from __future__ import annotations

import datetime as dt
import gc
import os
import tracemalloc

import anyio

from batchcl.errors import CallError, ImageError, ThrottledError
from batchcl.images import ImageRef
from batchcl.outcomes import Detection
from batchcl.scoring.session import RunContext
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, FaultInjector, FaultyStore, run_simulation, utcnow
from sim.service import Service, image

HOURS = float(os.environ.get("BATCHCL_SOAK_HOURS", "0.25"))
HOUR_S = 3600.0
TPS = 6.0
FAILURES = min(10_000, int(HOURS * HOUR_S * TPS) // 2)
MOST_GROWTH_BYTES = 500_000 if HOURS < 1 else 1_500_000


class DroppingStore(FaultyStore):
    """A store that drops the files of complete shards, which this test does not read again."""

    def __init__(self, files: dict[str, bytes], faults: FaultInjector | None = None) -> None:
        super().__init__(files, faults)
        self._mine = files

    async def put_new(self, path: str, data: bytes) -> bool:
        created = await super().put_new(path, data)
        folder, _, name = path.rpartition("/")
        if folder.endswith("/shards"):
            shard = name.removesuffix(".json")
            for each in self._mine:
                if f"/journal/{shard}/" in each or f"-{shard}-" in each or f"/worklist/{shard}." in each:
                    self._mine[each] = b""
        return created


class UncountedService(Service):
    """A counter that does not count."""

    async def detect(self, image: ImageRef) -> Detection:
        try:
            return await super().detect(image)
        finally:
            self.calls.clear()
            self.answered.clear()
            self.sent_at.clear()


class SkewedWorld(FakeWorld):
    """A world whose clock is set back by an hour during the run."""

    def store(self, faults: FaultInjector | None = None) -> FaultyStore:
        return DroppingStore(self.files, faults)

    def _context(self, *arguments: object) -> RunContext:
        context = super()._context(*arguments)  # type: ignore[arg-type]
        begun_at = anyio.current_time()

        def now() -> dt.datetime:
            set_back = anyio.current_time() - begun_at > HOURS * HOUR_S / 2
            return utcnow() - dt.timedelta(hours=1) * set_back

        return RunContext(
            model_manager=context.model_manager,
            detector=context.detector,
            observer=context.observer,
            stop_signal=context.stop_signal,
            ends_at=context.ends_at,
            utcnow=now,
        )


def fault(each: ImageRef, _call: int, now: float) -> CallError | None:
    number = int(each.key[:6])
    if 1000 <= number < 1000 + FAILURES:
        return ImageError("not a PNG", code="InvalidImageFormatException", status=400)
    if now % HOUR_S < 60 and number % 3:
        return ThrottledError("Provisioned Rate exceeded", code="ProvisionedThroughputExceededException", status=400)
    return None


def test_memory_stays_flat_over_a_day_of_calls_and_failures():
    count = int(HOURS * HOUR_S * TPS)
    begun: list[float] = []

    def latency_s(rng) -> float:
        age_s = anyio.current_time() - begun[0] if begun else 0.0
        return 60.0 if 0.1 < age_s / (HOURS * HOUR_S) < 0.2 else rng.uniform(0.2, 0.8)

    night = SkewedWorld(
        [image(number) for number in range(count)],
        UncountedService(tps=lambda _: TPS, latency_s=latency_s, fault=fault),
        shard_size=1000,
        page=1000,
        max_in_flight=400,
    )
    sizes: list[int] = []

    async def watch() -> None:
        for _ in range(8):
            await anyio.sleep(HOURS * HOUR_S / 9)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])

    async def main() -> object:
        begun.append(anyio.current_time())
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            end = await night.run()
            group.cancel_scope.cancel()
        return end

    tracemalloc.start()
    try:
        end = run_simulation(main)
    finally:
        tracemalloc.stop()
    assert isinstance(end, Summary)
    assert (end.scored, end.failed) == (count - FAILURES, FAILURES)
    assert len(sizes) >= 6
    early, late = max(sizes[1:3]), max(sizes[-2:])
    assert late - early < MOST_GROWTH_BYTES, f"bytes over time: {sizes}"
