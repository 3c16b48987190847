"""Calls continue while the list is read and shards are written."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeVar

import anyio

from batchcl.summary import Summary
from sim.fake_world import FakeWorld, FaultInjector, OperationKind, run_simulation
from sim.service import Service, image

T = TypeVar("T")

SHARD_SIZE = 40
IN_FLIGHT = 8
LATENCY_S = 10.0
PAGE_S = 60.0


async def slow_store() -> None:
    await anyio.sleep(0.25)  # before each operation, and again behind it


class SlowList(FaultInjector):
    """Each page takes a minute; records the times of the pages and of the first published shard."""

    def __init__(self, world: FakeWorld) -> None:
        super().__init__()
        self.pages: list[float] = []
        self.published_at = math.inf
        self._world = world

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        if operation is OperationKind.PAGE:
            await anyio.sleep(PAGE_S)
            self.pages.append(anyio.current_time())
        result = await super().around(operation, act)
        if self._world.published():
            self.published_at = min(self.published_at, anyio.current_time())
        return result


def test_a_slow_store_leaves_no_call_slot_idle_between_shards():
    async def main() -> None:
        images = [image(n) for n in range(10 * SHARD_SIZE)]
        service = Service(latency_s=lambda rng: rng.uniform(0.5, 1.5) * LATENCY_S)
        world = FakeWorld(images, service, shard_size=SHARD_SIZE, page=1000, max_in_flight=IN_FLIGHT)
        world.assert_exactly_once(summary := await ended(world, FaultInjector(pause=slow_store)))
        assert summary.calls == len(images)
        warm, last = service.sent_at[IN_FLIGHT * 4], service.sent_at[-1]
        calls = len(images) - IN_FLIGHT * 4
        assert last - warm < 1.03 * calls * LATENCY_S / IN_FLIGHT, "a slot was idle"
        assert max(after - before for before, after in pairwise(service.sent_at)) < LATENCY_S

    run_simulation(main)


def test_shards_are_frozen_and_scored_while_the_list_is_read():
    async def main() -> None:
        images = [image(n) for n in range(5 * SHARD_SIZE)]
        world = FakeWorld(images, Service(), shard_size=SHARD_SIZE, page=SHARD_SIZE)
        slow = SlowList(world)
        world.assert_exactly_once(await ended(world, slow))
        assert len(slow.pages) > 5
        assert slow.published_at < slow.pages[2], "the first shard is in the table while others are listed"
        assert world.service.sent_at[-1] < slow.pages[-1] + PAGE_S

    run_simulation(main)


async def ended(world: FakeWorld, faults: FaultInjector) -> Summary:
    end = await world.run(faults)
    assert isinstance(end, Summary), repr(end)
    return end
