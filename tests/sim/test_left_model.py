"""A model that a run started and could not stop: later sessions of the run stop it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Final, TypeVar

import anyio
import orjson
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import FatalCallError, OutputError, RefusedError, StoppedError
from batchcl.events import SilentObserver
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import AutoUnits, Units
from batchcl.runs.layout import RunPaths
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of, refused
from sim.fake_world import EPOCH, RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image
from sim.test_faults import EVERY, inject_everywhere

T = TypeVar("T")

NAME: Final = "cats@v1"
PATHS: Final = RunPaths(RUN)
ONE: Final = Units(1)


@dataclass
class UnreachableModels(Models):
    """The control plane; unreachable for a killed session."""

    faults: FaultInjector = field(default_factory=FaultInjector)

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        return await self.faults.around(OperationKind.MODEL, partial(super()._do, operation, name, effect))


@dataclass
class WorldWithModel(FakeWorld):
    """A world whose sessions start and stop the model."""

    models: UnreachableModels = field(default_factory=lambda: UnreachableModels({NAME: "STOPPED"}))
    units: Units | AutoUnits | None = ONE
    keep: bool = False
    model: str = arn_of(NAME)

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        self.models.faults = faults
        arn = ModelArn.parse(self.model)
        return ModelManager(
            self.models, arn, units=self.units, keep=self.keep, observer=SilentObserver(), stop_signal=StopSignal()
        )

    @property
    def status(self) -> str:
        return self.models.statuses[NAME]

    async def owns_model(self) -> bool | None:
        """The record of the newest session of the run."""
        lease = await self.lease()
        return None if lease is None else lease.progress["owns_model"]


def world() -> WorldWithModel:
    return WorldWithModel([image(n) for n in range(12)], Service(latency_s=lambda _: 1.0), page=6, shard_size=12)


async def with_left_model() -> WorldWithModel:
    """A run whose first session was killed during scoring, an hour ago."""
    left = world()
    died = await left.run(FaultInjector(OperationKind.CALL, 8, FaultKind.CRASH_BEFORE))
    assert died is None
    assert (left.status, await left.owns_model()) == ("RUNNING", True)
    await anyio.sleep(3600)
    return left


@cache
def left_model() -> tuple[WorldWithModel, float]:
    """The same, and the time."""

    async def main() -> tuple[WorldWithModel, float]:
        left = await with_left_model()
        left.models.faults = FaultInjector()
        return left, anyio.current_time()

    return run_simulation(main)


def test_a_run_waits_for_a_model_that_is_stopping():
    """Also when the machine's clock, unlike the run, is older than the time limit of the wait."""

    async def main() -> None:
        stopping = world()
        stopping.models.statuses[NAME] = "STOPPING"
        stopping.models.due[NAME] = (anyio.current_time() + 120.0, "STOPPED")
        assert isinstance(await stopping.run(), Summary)
        assert stopping.status == "STOPPED"

    run_simulation(main, start_s=86_400.0)


@pytest.mark.parametrize(
    ("kind", "begin", "step"),
    [
        pytest.param(FaultKind.ERROR_BEFORE, 0, 2, id="error before"),
        pytest.param(FaultKind.CRASH_BEFORE, 1, 2, id="crash before"),
        pytest.param(FaultKind.CRASH_AFTER, 0, 1, id="crash after"),
    ],
)
def test_a_second_session_stops_the_left_model_or_records_it(kind, begin, step):
    """At every second operation; at all of them with BATCHCL_CONCURRENT_SEEDS."""
    world, now_s = left_model()

    def scene(n: int) -> bool:
        async def main() -> bool:
            left, faults = deepcopy(world), FaultInjector(OperationKind.STORE, n, kind)
            await left.run(faults)
            assert left.status == "STOPPED" or await left.owns_model()
            await left.run_to_end()
            assert left.status == "STOPPED"
            return faults.fired

        return run_simulation(main, start_s=now_s)

    steps = {} if EVERY == 1 else {"begin": begin, "step": step}
    assert inject_everywhere(scene, **steps) > (10 if kind.after else 20)


def test_a_session_that_ends_before_scoring_stops_the_left_model():
    async def main() -> None:
        left = await with_left_model()
        end = await left.run(FaultInjector(failing=lambda: f"{PATHS.sessions}/00001.json" in left.files))
        assert isinstance(end, OutputError)
        assert left.status == "STOPPED"

    run_simulation(main)


def test_a_session_that_starts_no_model_leaves_the_left_model():
    async def main() -> None:
        left = await with_left_model()
        left.units = None
        assert await left.run(FaultInjector(OperationKind.CALL, 0, FaultKind.CRASH_BEFORE)) is None
        assert (left.status, await left.owns_model()) == ("RUNNING", True)
        await anyio.sleep(3600)
        denied = FatalCallError("not any more", code="AccessDeniedException")
        assert isinstance(await left.run(FaultInjector(OperationKind.CALL, 0, error=lambda: denied)), RefusedError)
        assert (left.status, await left.owns_model()) == ("RUNNING", True)
        left.units = ONE
        assert isinstance(await left.run(), Summary), "at once, as nobody is at work"
        assert (left.status, await left.owns_model()) == ("STOPPED", False)

    run_simulation(main)


def test_the_next_session_repeats_a_failed_stop():
    async def main() -> None:
        left = world()
        left.models.errors["stop"] = refused("InternalServerError", 500)
        end = await left.run()
        assert isinstance(end, StoppedError)
        assert "could not be stopped" in str(end)
        assert (left.status, await left.owns_model()) == ("RUNNING", True)
        left.models.errors.clear()
        assert isinstance(await left.run(), Summary), "at once, as nobody is at work"
        assert (left.status, await left.owns_model()) == ("STOPPED", False)

    run_simulation(main)


def test_a_kept_model_is_not_stopped_by_later_sessions():
    async def main() -> None:
        left = world()
        left.keep = True
        end = await left.run()
        assert isinstance(end, Summary)
        assert end.cost_usd is not None
        assert end.cost_usd > 0
        assert (left.status, await left.owns_model()) == ("RUNNING", False)

    run_simulation(main)


def test_a_process_without_the_lease_does_not_stop_the_model():
    async def main() -> None:
        left = await with_left_model()
        path = f"{PATHS.sessions}/00000.json"

        async def beat() -> None:
            for number in count(1000):
                left.files[path] = orjson.dumps(orjson.loads(left.files[path]) | {"heartbeats": number})
                await anyio.sleep(10)

        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            end = await left.run()
            group.cancel_scope.cancel()
        assert isinstance(end, StoppedError)
        assert "in use by another process" in str(end)
        assert (left.status, await left.owns_model()) == ("RUNNING", True)

    run_simulation(main)


@pytest.mark.parametrize(
    ("told", "ended", "status"),
    [
        pytest.param({"owns_model": True, "stops_model": True}, False, "RUNNING", id="will-stop-it"),
        pytest.param({"owns_model": True, "stops_model": False}, False, "STOPPED", id="starts-no-model"),
        pytest.param({}, False, "STOPPED", id="of-an-older-version"),
        pytest.param({"owns_model": True, "stops_model": True}, True, "STOPPED", id="is-over-already"),
    ],
)
def test_a_replaced_process_leaves_the_stop_to_its_successor(told, ended, status):
    async def main() -> None:
        contested = world()
        contested.service = Service(latency_s=lambda _: 40.0)
        ends: list[object] = []

        async def first() -> None:
            ends.append(await contested.run())

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(15)
            lease = orjson.loads(contested.files[f"{PATHS.sessions}/00000.json"])
            assert (lease["progress"]["stops_model"], contested.status) == (True, "RUNNING")
            seen = EPOCH + dt.timedelta(seconds=anyio.current_time())
            other = {
                "holder": "another",
                "location": "elsewhere",
                "heartbeat_at": seen,
                "progress": told,
                "ended": ended,
            }
            contested.files[f"{PATHS.sessions}/00001.json"] = orjson.dumps(lease | other)
        (end,) = ends
        assert isinstance(end, StoppedError)
        assert "was taken over by another process" in str(end)
        assert contested.status == status

    run_simulation(main)
