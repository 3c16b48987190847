"""`--if-held wait`: a process that waits for another one ends with the run's result, or takes the run over."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.choices import IfHeld
from batchcl.errors import (
    BatchclError,
    CallError,
    ExitCode,
    HeldError,
    ImageError,
    InterruptedRunError,
    RefusedError,
    StoppedError,
    TooManyFailuresError,
)
from batchcl.events import Progress
from batchcl.images import ImageRef
from batchcl.job import Job
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import read_leases
from batchcl.runs.record import read_summary
from batchcl.scoring.run import new_record
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import arn_of, refused
from observers import RecordingObserver
from sim.fake_world import RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image
from sim.test_left_model import world as world_with_model

T = TypeVar("T")
IMAGES = 120
HEARTBEAT_S = 10.0
EXPIRES_S = 45.0
INTERVAL_S = 10.0


class Watching(RecordingObserver):
    """Records the counters that it is shown once a second."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []
        self.progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        self.progress = progress

    async def watch(self) -> None:
        while True:
            if self.progress is not None:
                self.shown.append(self.progress.snapshot(anyio.current_time()).scored)
            await anyio.sleep(1)


@dataclass
class Process:
    """One process on the run: its world, its end, and when it ended."""

    world: FakeWorld
    start_s: float = 0.0
    faults: FaultInjector | None = None
    signal_s: float | None = None
    work: Callable[[FakeWorld, FaultInjector | None], Awaitable[Summary | BatchclError | None]] = FakeWorld.run
    observer: Watching = field(default_factory=Watching)
    end: Summary | BatchclError | None = None
    ended_s: float = -1.0

    async def live(self) -> None:
        self.world.observer, self.world.stop_signal = self.observer, StopSignal()
        await anyio.sleep(self.start_s)
        async with anyio.create_task_group() as group:
            group.start_soon(self.observer.watch)
            if self.signal_s is not None:
                group.start_soon(self._signal, self.signal_s - self.start_s)
            self.end = await self.work(self.world, self.faults)
            self.ended_s = anyio.current_time()
            group.cancel_scope.cancel()

    async def _signal(self, after_s: float) -> None:
        await anyio.sleep(after_s)
        assert self.world.stop_signal is not None
        self.world.stop_signal.request("ended by SIGTERM", limit_s=25)

    @property
    def kinds(self) -> list[str]:
        return self.observer.kinds


def night(*, fault: Callable[[ImageRef, int, float], CallError | None] = lambda *_: None, **more: Any) -> FakeWorld:
    """A run of two minutes."""
    service = Service(latency_s=lambda _: 2.0, fault=fault)
    return FakeWorld([image(n) for n in range(IMAGES)], service, shard_size=30, max_in_flight=2, **more)


def waiter(world: FakeWorld, start_s: float = 15.0, **more: Any) -> Process:
    """A second process of the same job."""
    changes = {name: more.pop(name) for name in ("deadline", "max_failures", "run_id") if name in more}
    return Process(replace(world, if_held=IfHeld.WAIT, **changes), start_s, **more)


def play(*processes: Process) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for process in processes:
                group.start_soon(process.live)

    run_simulation(main)


def sessions(world: FakeWorld) -> int:
    return sum(path.startswith(RunPaths(RUN).sessions) and path.endswith(".json") for path in world.files)


def killed(at: int = 40) -> FaultInjector:
    return FaultInjector(OperationKind.CALL, at, FaultKind.CRASH_BEFORE)


def assert_done_once(process: Process) -> Summary:
    assert isinstance(process.end, Summary), repr(process.end)
    process.world.assert_exactly_once(process.end)
    return process.end


def test_a_waiter_ends_with_the_summary_of_the_holder():
    world = night()
    holder = Process(world)
    second = waiter(world)
    play(holder, second)
    assert assert_done_once(second) == holder.end
    assert sessions(world) == 1
    assert max(world.service.calls.values()) == 1
    assert second.ended_s - holder.ended_s <= INTERVAL_S + 2
    assert [kind for kind in second.kinds if "holder" in kind] == ["holder", "holder-ended"]
    shown = second.observer.shown
    assert shown == sorted(shown)
    assert len(set(shown)) >= 8, "the holder's heartbeats of two minutes"
    assert second.observer.progress is not None
    assert second.observer.progress.snapshot(0).scored == second.observer.progress.scored == IMAGES


def test_by_default_the_second_process_ends_at_once():
    world = night()
    second = Process(replace(world), 15.0)
    play(Process(world), second)
    assert isinstance(second.end, HeldError)
    assert second.end.exit_code is ExitCode.STOPPED
    assert second.ended_s <= 15 + HEARTBEAT_S + 2


def test_a_waiter_has_the_tolerance_of_its_own_job():
    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("no", code="InvalidImageFormatException") if each.key == "000007.jpg" else None

    world = night(fault=fault)
    strict, lenient = waiter(world), waiter(world, max_failures=2)
    play(Process(world), strict, lenient)
    assert not assert_done_once(strict).tolerated
    assert assert_done_once(lenient).tolerated


def test_a_limit_that_the_holder_has_reached_ends_the_waiter_too():
    """Another session would start the model only to end at the same limit."""

    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("no", code="InvalidImageFormatException") if 30 < int(each.key[:6]) < 40 else None

    world = night(fault=fault, max_failures=5)
    holder, second = Process(world), waiter(world)
    higher = waiter(world, max_failures=20)
    play(holder, second)
    assert isinstance(holder.end, TooManyFailuresError)
    assert isinstance(second.end, TooManyFailuresError)
    assert second.end.summary is not None
    assert second.end.summary == holder.end.summary
    assert sessions(world) == 1
    play(higher)
    assert_done_once(higher)


def test_a_killed_holder_is_replaced_after_45_s():
    world = night()
    holder, second = Process(world, faults=killed()), waiter(world)
    play(holder, second)
    assert holder.end is None
    summary = assert_done_once(second)
    assert [each.number for each in summary.sessions] == [0, 1]
    (died,) = [at for at, kind in zip(second.observer.times, second.kinds, strict=True) if kind == "holder-dead"]
    last_heartbeat_s = holder.ended_s // HEARTBEAT_S * HEARTBEAT_S
    assert EXPIRES_S <= died - last_heartbeat_s <= EXPIRES_S + 2 * INTERVAL_S + 1
    (resumed,) = [at for at, kind in zip(second.observer.times, second.kinds, strict=True) if kind == "started"]
    assert resumed - died < 5, "found dead once, not twice"
    assert "holder-silent" in second.kinds


def test_a_holder_that_is_stopped_is_replaced_at_the_next_read():
    world = night()
    holder, second = Process(world, signal_s=50.0), waiter(world)
    play(holder, second)
    assert isinstance(holder.end, StoppedError)
    assert len(assert_done_once(second).sessions) == 2
    assert max(world.service.calls.values()) == 1, "the calls in flight were completed and kept"
    (ended,) = [at for at, kind in zip(second.observer.times, second.kinds, strict=True) if kind == "resuming"]
    assert ended - holder.ended_s <= INTERVAL_S + 2


class Suspended(FaultInjector):
    """A process that is suspended from one moment to another."""

    def __init__(self, since_s: float, until_s: float) -> None:
        super().__init__()
        self._since_s, self._until_s = since_s, until_s

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        await self._nap()
        result = await super().around(operation, act)
        await self._nap()
        return result

    async def _nap(self) -> None:
        if self._since_s <= anyio.current_time() < self._until_s:
            await anyio.sleep_until(self._until_s)


def test_a_suspended_holder_is_fenced_when_it_returns():
    world = night()
    holder, second = Process(world, faults=Suspended(40, 160)), waiter(world)
    play(holder, second)
    assert isinstance(holder.end, StoppedError)
    assert "another process" in str(holder.end)
    assert_done_once(second)


def test_a_holder_that_returns_in_time_is_left_alone():
    world = night()
    holder, second = Process(world, faults=Suspended(40, 70)), waiter(world)
    play(holder, second)
    assert assert_done_once(second) == holder.end
    assert second.kinds[-4:-1] == ["holder-silent", "holder-alive", "holder-ended"]


def test_of_two_waiters_one_takes_over_and_the_other_waits():
    world = night()
    two = [waiter(world, 15.0), waiter(world, 16.5)]
    play(Process(world, faults=killed()), *two)
    ends = [assert_done_once(each) for each in two]
    assert ends[0] == ends[1]
    assert sessions(world) == 2
    assert max(world.service.calls.values()) <= 2, "once by the killed holder, once by its successor"


def test_a_waiter_takes_over_from_a_holder_that_took_over_itself():
    world = night()
    two = [waiter(world, 15.0, faults=killed(20)), waiter(world, 20.0)]
    play(Process(world, faults=killed()), *two)
    first, last = two
    assert first.end is None
    assert [each.number for each in assert_done_once(last).sessions] == [0, 1, 2]


def test_the_deadline_bounds_the_waiting():
    world = night()
    holder, second = Process(world), waiter(world, deadline="30s")
    play(holder, second)
    assert isinstance(second.end, StoppedError)
    assert "deadline of 30s has passed while waiting" in str(second.end)
    assert second.ended_s == pytest.approx(15 + 30, abs=0.1)
    assert_done_once(holder)
    assert sessions(world) == 1


@pytest.mark.parametrize("by_user", [False, True])
def test_a_signal_ends_the_waiting_within_a_second(by_user):
    world = night()
    holder, second = Process(world), waiter(world)

    async def main() -> None:
        async def signal() -> None:
            await anyio.sleep(33.3)
            assert second.world.stop_signal is not None
            second.world.stop_signal.request("ended", by_user=by_user, limit_s=25)

        async with anyio.create_task_group() as group:
            for each in (holder, second):
                group.start_soon(each.live)
            group.start_soon(signal)

    run_simulation(main)
    assert type(second.end) is (InterruptedRunError if by_user else StoppedError)
    assert second.ended_s - 33.3 < 1
    assert_done_once(holder)


def failing(since_s: float, until_s: float) -> FaultInjector:
    return FaultInjector(failing=lambda: since_s <= anyio.current_time() < until_s)


def test_an_outage_of_the_store_is_not_taken_for_a_death():
    """It doesn't count for the 45 s: the holder can't write its heartbeats either."""
    world = night()
    world.service, world.max_in_flight = Service(latency_s=lambda _: 120.0), IMAGES
    holder = Process(world, faults=failing(30, 114))
    second = waiter(world, faults=failing(30, 114))  # it reads at 115 s, and the holder writes at 120 s
    play(holder, second)
    assert second.kinds[-4:-1] == ["holder-unknown", "holder-alive", "holder-ended"]
    assert assert_done_once(second) == holder.end
    assert sessions(world) == 1


def test_five_minutes_without_the_store_end_the_waiting():
    world = night()
    second = waiter(world, faults=failing(30, 1e9))
    play(Process(world), second)
    assert isinstance(second.end, StoppedError)
    assert "503 Slow Down; repeat the command" in str(second.end)
    assert 300 <= second.ended_s - 30 <= 300 + 2 * INTERVAL_S


@pytest.mark.parametrize("seed", range(4))
def test_of_starts_at_the_same_instant_one_scores(seed):
    rng = random.Random(seed)

    async def pause() -> None:
        await anyio.sleep(rng.expovariate(20.0))

    world = night()
    three = [waiter(world, 0.0, faults=FaultInjector(pause=pause)) for _ in range(3)]
    play(*three)
    ends = [assert_done_once(each) for each in three]
    assert ends[0] == ends[1] == ends[2]
    assert sessions(world) == 1
    assert max(world.service.calls.values()) == 1


def test_a_run_waits_for_other_runs_of_the_same_images():
    world = night(incremental=True)
    world.images = [replace(each, etag="e") for each in world.images]
    first, second = Process(world), waiter(world, run_id="next-night")
    play(first, second)
    assert isinstance(first.end, Summary)
    assert isinstance(second.end, Summary)
    assert second.end.already_scored == IMAGES
    assert max(world.service.calls.values()) == 1
    assert "holder" in second.kinds
    assert set(second.observer.shown) <= {0}, "the other run's counters are not its own"


def test_a_second_retry_ends_with_the_result_of_the_first():
    broken = {1, 3, 5, 7}

    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("no", code="InvalidS3ObjectException") if int(each.key[:6]) in broken else None

    world = night(fault=fault)
    play(Process(world))
    broken = {7}

    async def retry(each: FakeWorld, faults: FaultInjector | None) -> Summary | BatchclError | None:
        return await each.retry(faults)

    first, second = Process(world, work=retry), waiter(world, 1.0, work=retry)
    play(first, second)
    assert isinstance(first.end, Summary)
    assert (first.end.round, first.end.failed) == (1, 1)
    assert second.end == first.end
    assert not [path for path in world.files if "rounds/002" in path]
    again = Process(world, work=retry)
    play(again)
    assert isinstance(again.end, Summary)
    assert again.end.round == 2, "without waiting, the failure would have been retried again"


def test_the_model_of_a_killed_holder_is_stopped_by_the_waiter():
    left = world_with_model()
    left.service = Service(latency_s=lambda _: 10.0)
    left.max_in_flight = 2
    second = Process(replace(left, if_held=IfHeld.WAIT), 15.0)
    play(Process(left, faults=FaultInjector(OperationKind.CALL, 6, FaultKind.CRASH_BEFORE)), second)
    assert isinstance(second.end, Summary)
    assert left.status == "STOPPED"


def test_a_holder_that_has_spent_max_cost_is_not_continued():
    left = world_with_model()
    left.service = Service(latency_s=lambda _: 30.0)
    left.max_in_flight = 1
    left.max_cost = 0.1
    holder, second = Process(left), Process(replace(left, if_held=IfHeld.WAIT), 15.0)
    play(holder, second)
    assert isinstance(holder.end, StoppedError)
    assert isinstance(second.end, RefusedError)
    assert "--max-cost" in str(second.end)
    assert [call for call in left.models.calls if call.startswith("start ")] == ["start cats@v1"]
    assert left.status == "STOPPED"


def test_a_model_that_the_holder_could_not_stop_is_taken_over():
    """Although the holder has ended at a limit."""

    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("no", code="InvalidImageFormatException") if int(each.key[:6]) in {1, 2} else None

    left = world_with_model()
    left.service = Service(latency_s=lambda _: 10.0, fault=fault)
    left.max_in_flight = 1
    left.max_failures = 1
    left.models.errors["stop"] = refused("InternalServerError", 500)
    holder, second = Process(left), Process(replace(left, if_held=IfHeld.WAIT), 15.0)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(second.live)
            await holder.live()
            left.models.errors.clear()

    run_simulation(main)
    assert isinstance(holder.end, StoppedError)
    assert "could not be stopped" in str(holder.end)
    assert "holder-dead" not in second.kinds, "it tried for five minutes, with heartbeats"
    assert sessions(left) == 2
    assert left.status == "STOPPED"


def test_a_run_that_is_done_needs_no_waiting():
    """Although its retry is in progress."""
    world = night()
    first = Process(world)
    play(first)

    async def main() -> None:
        lease = (await read_leases(world.store(), RunPaths(RUN).sessions))[0]
        summary = await read_summary(world.store(), RUN)
        assert summary is not None
        path = f"{RunPaths(RUN).sessions}/00001.json"
        world.files[path] = world.files[path.replace("1.json", "0.json")].replace(b'"ended":true', b'"ended":false')
        assert lease.ended
        second = waiter(world, 0.0)
        await second.live()
        assert second.end == first.end
        assert second.ended_s < 1

    run_simulation(main)


def test_a_retry_does_not_inherit_the_wait_of_its_run():
    job = Job(sources="x", out="y", model=arn_of("cats@v1"), if_held=IfHeld.WAIT)
    record = new_record(job, ModelArn.parse(arn_of("cats@v1")), None)
    assert "if_held" not in record.settings
