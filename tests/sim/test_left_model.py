"""A model that a run started and could not stop: every later session knows of it until one has stopped it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final, TypeVar

import anyio
import orjson
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.models import Units
from batchcl.errors import FatalCallError, OutputError, RefusedError, StoppedError
from batchcl.events import SilentObserver
from batchcl.lifetime.manager import ModelManager
from batchcl.runs.layout import RunPaths
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from sim.fake_world import EPOCH, RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image
from sim.test_faults import strike_everywhere
from unit.aws.models_service import Models, arn_of, refused

T = TypeVar("T")

NAME: Final = "cats@v1"
PATHS: Final = RunPaths(RUN)
ONE: Final = Units(1)


@dataclass
class TroubledModels(Models):
    """The control plane, out of reach for a session that was killed."""

    faults: FaultInjector = field(default_factory=FaultInjector)

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        return await self.faults.around(OperationKind.MODEL, partial(super()._do, operation, name, effect))


@dataclass
class ModelHouse(FakeWorld):
    """A world whose sessions look after a model of their own."""

    models: TroubledModels = field(default_factory=lambda: TroubledModels({NAME: "STOPPED"}))
    units: Units | None = ONE
    keep: bool = False

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        self.models.faults = faults
        arn = ModelArn.parse(arn_of(NAME))
        return ModelManager(
            self.models, arn, units=self.units, keep=self.keep, observer=SilentObserver(), stopper=StopSignal()
        )

    @property
    def status(self) -> str:
        return self.models.statuses[NAME]

    async def owns_model(self) -> bool | None:
        """What the newest session of the run has recorded."""
        lease = await self.lease()
        return None if lease is None else lease.progress["owns_model"]


def world() -> ModelHouse:
    return ModelHouse(images=[image(n) for n in range(12)], service=Service(latency_s=lambda _: 1.0), page=6)


async def orphaned() -> ModelHouse:
    """A run whose first session was killed while it scored, an hour ago."""
    left = world()
    died = await left.run(FaultInjector(OperationKind.CALL, 8, FaultKind.CRASH_BEFORE))
    assert died is None
    assert (left.status, await left.owns_model()) == ("RUNNING", True)
    await anyio.sleep(3600)
    return left


@pytest.mark.parametrize(
    "kind", [FaultKind.ERROR_BEFORE, FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER], ids=lambda kind: kind.value
)
def test_whatever_becomes_of_the_second_session_the_model_is_stopped_or_remembered(kind):
    def scene(n: int) -> bool:
        async def main() -> bool:
            left, faults = await orphaned(), FaultInjector(OperationKind.STORE, n, kind)
            await left.run(faults)
            assert left.status == "STOPPED" or await left.owns_model()
            await left.run_to_end()
            assert left.status == "STOPPED"
            return faults.fired

        return run_simulation(main)

    assert strike_everywhere(scene) > 20


def test_a_session_that_ends_between_taking_the_lease_and_scoring_stops_the_model():
    async def main() -> None:
        left = await orphaned()
        end = await left.run(FaultInjector(failing=lambda: f"{PATHS.sessions}/00001.json" in left.files))
        assert isinstance(end, OutputError)
        assert left.status == "STOPPED"

    run_simulation(main)


def test_a_session_that_starts_no_model_leaves_it_to_one_that_does():
    async def main() -> None:
        left = await orphaned()
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


def test_a_stop_that_failed_is_the_next_sessions_to_make():
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


def test_a_model_that_is_kept_is_nobodys_to_stop():
    async def main() -> None:
        left = world()
        left.keep = True
        end = await left.run()
        assert isinstance(end, Summary)
        assert end.cost_usd is not None
        assert end.cost_usd > 0
        assert (left.status, await left.owns_model()) == ("RUNNING", False)

    run_simulation(main)


def test_a_runner_that_is_refused_the_lease_leaves_the_model_alone():
    async def main() -> None:
        left = await orphaned()
        path = f"{PATHS.sessions}/00000.json"

        async def beat() -> None:
            for number in count(1000):
                left.files[path] = orjson.dumps(orjson.loads(left.files[path]) | {"beat": number})
                await anyio.sleep(10)

        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            end = await left.run()
            group.cancel_scope.cancel()
        assert isinstance(end, StoppedError)
        assert "held by another runner" in str(end)
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
def test_a_runner_that_was_taken_for_dead_leaves_the_model_to_one_that_will_stop_it(told, ended, status):
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
            other = {"holder": "another", "place": "elsewhere", "beat_at": seen, "progress": told, "ended": ended}
            contested.files[f"{PATHS.sessions}/00001.json"] = orjson.dumps(lease | other)
        (end,) = ends
        assert isinstance(end, StoppedError)
        assert "was taken over by another runner" in str(end)
        assert contested.status == status

    run_simulation(main)
