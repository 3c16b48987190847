"""Several processes on one output root at once, each suspended, killed or failing at any operation.

A run, its resumption, its retry, an incremental run with another id, processes that wait for these, an export and a
reader share the root. At any time, a glob over `results/` shows no image twice, and no file there is changed or
removed; at the end each image is there once.

For a longer search: `BATCHCL_CONCURRENT_SEEDS=2000 pytest tests/sim/test_concurrent.py`
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio
import pytest

from batchcl.analysis.export import copy_tables
from batchcl.choices import IfHeld
from batchcl.errors import (
    BatchclError,
    CallError,
    FatalCallError,
    ImageError,
    OutputError,
    StoppedError,
    TransientError,
)
from batchcl.images import ImageRef
from batchcl.runs.record import read_summary
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, FaultInjector, FaultKind, FaultyStore, OperationKind, run_simulation
from sim.service import Service, image

T = TypeVar("T")

SEEDS = int(os.environ.get("BATCHCL_CONCURRENT_SEEDS", "10"))
IMAGES = 21
BROKEN = {4, 9, 16}
"""Images that are missing at first and exist later."""

FAULTS = (FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER, FaultKind.ERROR_BEFORE, FaultKind.ERROR_AFTER)
HOPELESS = {12}
"""Images with permanent failures: no run calls for them again."""


class Suspended(FaultInjector):
    """A process that is suspended at given operations on the store.

    Args:
        naps: seconds of suspension, by the number of the operation on the store, from 0.
        late: suspend after the operation's effect, so that only the response is late.
        fault: number of the operation that crashes or fails, before or after its effect.
        rng: for the duration of operations.
    """

    def __init__(self, naps: dict[int, float], *, late: bool, fault: int | None, rng: random.Random) -> None:
        super().__init__(None if fault is None else OperationKind.STORE, fault or 0, rng.choice(FAULTS))
        self._naps = naps
        self._late = late
        self._rng = rng
        self._until = 0.0
        self._operations = 0

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        nap = 0.0
        if operation.is_on_store:
            nap = self._naps.get(self._operations, 0.0)
            self._operations += 1
            await anyio.sleep(self._rng.expovariate(20.0))
        if nap and not self._late:
            self._until = anyio.current_time() + nap
        await self._awake()
        result = await super().around(operation, act)
        if nap and self._late:
            self._until = anyio.current_time() + nap
        await self._awake()
        return result

    async def _awake(self) -> None:
        await anyio.sleep_until(self._until)
        if self._until > anyio.current_time():  # it was suspended again
            await self._awake()


@dataclass
class World:
    """One output root, the service, and what readers have seen."""

    rng: random.Random
    files: dict[str, bytes] = field(default_factory=dict)
    missing_exist: bool = False
    seen: dict[str, bytes] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = [replace(image(n), etag=f"e{n}") for n in range(IMAGES)]
        self.service = Service(fault=self._fault, latency_s=lambda rng: rng.uniform(0.1, 4))

    def _fault(self, each: ImageRef, _call: int, _now: float) -> CallError | None:
        n = int(each.key[:6])
        if n in HOPELESS:
            return ImageError("no", code="InvalidImageFormatException", status=400)
        return ImageError("no", code="InvalidS3ObjectException") if n in BROKEN and not self.missing_exist else None

    def night(self, run_id: str) -> FakeWorld:
        return FakeWorld(
            self.images,
            self.service,
            files=self.files,
            shard_size=5,
            page=7,
            max_in_flight=3,
            run_id=run_id,
            incremental=True,
            segment_entries=2,
            skew_s=self.rng.choice([-300.0, 0.0, 300.0]),
        )

    def faults(self) -> Suspended:
        """A process that may be suspended, killed or get an error, and whose clock may be wrong."""
        rng = random.Random(self.rng.random())
        naps = {rng.randrange(90): rng.choice([20.0, 50.0, 100.0, 400.0]) for _ in range(rng.choice([0, 1, 1, 2]))}
        fault = rng.randrange(90) if rng.random() < 0.4 else None
        return Suspended(naps, late=rng.random() < 0.5, fault=fault, rng=rng)

    def results(self) -> Counter[str]:
        """Number of rows of each image in `results/`."""
        return Counter(row["uri"] for row in self._rows() if row["table"] == "results")

    def _rows(self) -> list[dict[str, Any]]:
        return self.night("any").rows()

    def look(self) -> None:
        """Assert what readers may rely on at any time."""
        tables = {path: data for path, data in self.files.items() if path.startswith(("results/", "failures/"))}
        assert self.seen.items() <= tables.items(), "a file was changed or removed"
        if len(tables) > len(self.seen):
            twice = [uri for uri, times in self.results().items() if times > 1]
            assert not twice, f"in results/ twice: {twice}"
        self.seen = tables

    async def act(self, name: str, run_id: str, after_s: float) -> None:
        await anyio.sleep(after_s)
        night, faults = self.night(run_id), self.faults()
        night.if_held = IfHeld.WAIT if name.startswith("waiting") else IfHeld.FAIL
        if name.endswith("retry"):
            summary = await read_summary(night.store(), run_id)
            if summary is None or summary.status != "done":
                return
            end = await night.retry(faults)
        else:
            end = await night.run(faults)
        assert end is None or isinstance(end, Summary | StoppedError | OutputError), repr(end)
        self.ends.append(f"{name} {run_id}: {end if isinstance(end, BatchclError) else type(end).__name__}")

    async def export(self, after_s: float) -> None:
        await anyio.sleep(after_s)
        if not any(path.startswith("results/") for path in self.files):
            return
        copied: dict[str, bytes] = {}
        await copy_tables(self.night("any").store(), FaultyStore(copied, root="copy:"))
        rows = Counter(
            row["uri"] for row in FakeWorld(self.images, self.service, files=copied).rows() if "labels" in row
        )
        assert max(rows.values(), default=1) == 1


async def play(world: World) -> None:
    rng = world.rng

    async def read() -> None:
        while True:
            world.look()
            await anyio.sleep(0.5)

    async with anyio.create_task_group() as reader:
        reader.start_soon(read)
        async with anyio.create_task_group() as actors:
            for name, run_id, latest_s in (
                ("run", "night-1", 5),
                ("run", "night-1", 300),
                ("run", "night-2", 300),
                ("run", "night-3", 300),
                ("retry", "night-1", 500),
                ("retry", "night-2", 500),
                ("waiting run", "night-1", 60),
                ("waiting run", "night-2", 300),
                ("waiting retry", "night-1", 500),
            ):
                actors.start_soon(world.act, name, run_id, rng.uniform(0, latest_s))
            actors.start_soon(world.export, rng.uniform(20, 500))
            actors.start_soon(provide_missing, world, rng.uniform(20, 500))
        world.look()
        await resume_all(world)
        world.look()
        reader.cancel_scope.cancel()
    expected = {each.uri for n, each in enumerate(world.images) if n not in HOPELESS}
    assert world.results() == dict.fromkeys(expected, 1)


async def provide_missing(world: World, after_s: float) -> None:
    await anyio.sleep(after_s)
    world.missing_exist = True


async def resume_all(world: World) -> None:
    """Without more faults, resume each run to its end, and score the rest with one more incremental run."""
    world.missing_exist = True
    begun = sorted({path.split("/")[1] for path in world.files if path.endswith("/run.json")})
    for run_id in begun:
        await world.night(run_id).run_to_end()
        world.look()
    for run_id in begun:
        await world.night(run_id).retry_to_end()
        world.look()
    await world.night("night-9").run_to_end()
    calls = world.service.calls.copy()
    summary = await world.night("night-10").run_to_end()
    assert (summary.already_scored, summary.already_failed) == (IMAGES - len(HOPELESS), len(HOPELESS))
    assert world.service.calls == calls, "a permanent failure was called for again"


def test_a_suspended_process_adds_nothing_after_a_resumption():
    """The process has outcomes in memory and no segment; the resumed session ends before it opens that shard."""
    files: dict[str, bytes] = {}
    images = [replace(image(n), etag=f"e{n}") for n in range(40)]

    def fault(each: ImageRef, _call: int, now: float) -> CallError | None:
        if 55 <= now < 66:
            return FatalCallError("denied", code="AccessDeniedException", status=400)
        slow = each.key.startswith("000000") and now < 30
        return TransientError("later", code="InternalServerError", status=500) if slow else None

    service = Service(fault=fault, latency_s=lambda rng: rng.uniform(0.5, 1))

    async def session(run_id: str, after_s: float, faults: FaultInjector | None = None) -> None:
        await anyio.sleep(after_s)
        night = FakeWorld(images, service, files=files, shard_size=8, page=40, max_in_flight=2, run_id=run_id)
        night.incremental = True
        await night.run(faults)

    class SuspendedSession(FaultInjector):
        async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
            if 12 <= anyio.current_time() < 75:
                await anyio.sleep_until(75)
            return await super().around(operation, act)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(session, "night-1", 0.0, SuspendedSession())
            group.start_soon(session, "night-1", 14.0)
            group.start_soon(session, "night-2", 70.0)
        rows = FakeWorld(images, service, files=files).rows()
        times = Counter(row["uri"] for row in rows if row["table"] == "results")
        assert not [uri for uri, count in times.items() if count > 1]

    run_simulation(main)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_image_is_in_the_results_twice_whatever_happens(seed):
    world = World(random.Random(seed))
    try:
        run_simulation(play, world)
    except BaseException as error:
        error.add_note("; ".join(world.ends))
        raise
