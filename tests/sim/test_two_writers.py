"""Two processes on one run that both hold the lease: only the journal separates them."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from unittest import mock

import anyio
import pytest

from batchcl.errors import BatchclError, CallError, ImageError, StoppedError
from batchcl.images import ImageRef
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.record import read_summary
from batchcl.summary import Summary
from sim.fake_world import RUN, FakeWorld, FaultInjector, run_simulation
from sim.service import Service, image

IMAGES = 40
RACES = int(os.environ.get("BATCHCL_CONCURRENT_SEEDS", "12"))
EVERY = 1 if "BATCHCL_CONCURRENT_SEEDS" in os.environ else 5
"""A process is suspended at each pause, or at every fifth one."""
FAILED_ONCE = (289,)
"""Seeds of races: the slower process read that the run was not done, and wrote so after the other had completed it."""


@pytest.fixture(autouse=True)
def no_leases() -> Iterator[None]:
    """Both processes hold the lease."""

    async def granted(_self: RunLeaseHolder, **_: object) -> None:
        await anyio.lowlevel.checkpoint()

    async def kept(_self: RunLeaseHolder) -> None:
        await anyio.sleep_forever()

    with mock.patch.multiple(RunLeaseHolder, acquire=granted, keep=kept, check=granted):
        yield


def refused(each: ImageRef, _call: int, _now: float) -> CallError | None:
    if int(each.key[:6]) % 5 == 4:
        return ImageError("larger than 4096 pixels", code="ImageTooLargeException", status=400)
    return None


def world() -> FakeWorld:
    images = [
        image(n) if n % 7 else replace(image(n), uri=f"s3://b/{n:06}.txt", key=f"{n:06}.txt") for n in range(IMAGES)
    ]
    service = Service(fault=refused, latency_s=lambda rng: rng.uniform(0.1, 3))
    return FakeWorld(images, service, max_in_flight=4, segment_entries=3)  # small segments: conflicts are frequent


def slow_store(rng: random.Random) -> FaultInjector:
    """A session whose operations on the store take random times."""

    async def pause() -> None:
        await anyio.sleep(rng.expovariate(20.0) if rng.random() < 0.9 else rng.uniform(0, 5))

    return FaultInjector(pause=pause)


def race(seed: int) -> tuple[FakeWorld, list[Summary | BatchclError | None]]:
    """Two sessions that start within seconds, then one that completes the run if they have not."""
    contested = world()
    ends: list[Summary | BatchclError | None] = []

    async def main() -> None:
        rng = random.Random(seed)

        async def session(delay_s: float) -> None:
            await anyio.sleep(delay_s)
            ends.append(await contested.run(slow_store(random.Random(rng.random()))))

        async with anyio.create_task_group() as group:
            group.start_soon(session, 0.0)
            group.start_soon(session, rng.uniform(0, 6))
        assert set(contested.table()) >= contested.published()
        last = await read_summary(contested.store(), RUN)
        assert last is not None
        assert (last.status == "done") == any(isinstance(end, Summary) for end in ends), "the loser has no say"
        journalled, called = contested.journalled(), contested.service.calls.copy()
        contested.assert_exactly_once(await contested.run_to_end())
        assert not journalled & (contested.service.calls - called).keys()

    run_simulation(main)
    return contested, ends


def test_each_image_has_one_row_and_the_slower_process_stops():
    """In rare cases both stop, each having lost another shard, or one comes when the other is done."""
    stopped: Counter[int] = Counter()
    for seed in (*range(RACES), *FAILED_ONCE):
        try:
            contested, ends = race(seed)
            check_race(contested, ends)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        stopped[sum(isinstance(end, StoppedError) for end in ends)] += 1
    assert stopped[1] > stopped[0] + stopped[2], "the two sessions do race"
    assert stopped[1] > RACES / 2


def check_race(contested: FakeWorld, ends: list[Summary | BatchclError | None]) -> None:
    for end in ends:
        if not isinstance(end, Summary):
            assert isinstance(end, StoppedError), repr(end)
            assert "another process is working on the same run" in str(end)
    calls = contested.service.calls.values()
    assert max(calls) <= 3, "each session calls for an image once at most"
    if all(isinstance(end, Summary) for end in ends):
        assert set(calls) == {1}, "both may come to the end only if they never met in a shard"


def test_a_process_that_wakes_after_the_end_changes_nothing():
    """The process is suspended at any operation for any time, like a frozen container."""
    stalled_at = 0
    try:
        while _stalled_before(stalled_at):
            stalled_at += EVERY
    except BaseException as error:
        error.add_note(f"stalled at pause {stalled_at}")
        raise
    assert stalled_at > 60


def _stalled_before(number: int) -> bool:
    """Run a scene; returns whether the session reached pause `number` (two per operation)."""

    async def main() -> bool:
        resolved = False

        def fault(each: ImageRef, call: int, now: float) -> CallError | None:
            return None if resolved else refused(each, call, now)

        contested = FakeWorld([image(n) for n in range(10)], Service(fault=fault), shard_size=5, segment_entries=3)
        asleep, awake, ended = anyio.Event(), anyio.Event(), anyio.Event()
        pauses = count()

        async def pause() -> None:
            if next(pauses) >= number:
                asleep.set()
                await awake.wait()

        async with anyio.create_task_group() as group:

            async def sleeper() -> None:
                end = await contested.run(FaultInjector(pause=pause))
                assert isinstance(end, Summary | StoppedError)
                ended.set()
                asleep.set()

            group.start_soon(sleeper)
            await asleep.wait()
            fell_asleep = not ended.is_set()
            await contested.run_to_end()
            resolved = True
            summary = await contested.retry_to_end()
            contested.assert_exactly_once(summary)
            awake.set()
        called = contested.service.calls.copy()
        await contested.run_to_end()
        assert contested.service.calls == called
        assert {uri: row["table"] for uri, row in contested.table().items()} == {
            each.uri: "results" for each in contested.images
        }
        return fell_asleep

    return run_simulation(main)
