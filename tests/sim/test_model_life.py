"""Faults around a model's start and stop: batchcl stops the model if it has started it, and only then.

A world has one model, one run with several sessions or two concurrent runs, the reaper, and a user who starts the
model by hand when it is stopped and has no tag. Each session has one fault; the fault and what happens between the
sessions follow from the seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import pytest
from botocore.exceptions import ConnectionClosedError, HTTPClientError

from batchcl.arns import ModelArn
from batchcl.aws.detect import Detector
from batchcl.events import Notice, Progress
from batchcl.lifetime.lease_tags import lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease
from batchcl.lifetime.reaper import reap
from batchcl.quantities import Units
from batchcl.scoring.session import RunContext
from batchcl.stop_signal import StopSignal
from fake_rekognition import Models, arn_of, now, refused
from sim.fake_world import Crash, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image

T = TypeVar("T")

NAME: Final = "cats@v1"
LEASE_S: Final = 900.0
SIGNATURE_S: Final = 300.0
"""Requests that were signed longer ago are refused."""

SEEDS: Final = int(os.environ.get("BATCHCL_MODEL_SEEDS", "25"))
BATCH: Final = 25

OPERATIONS: Final = ("start", "stop", "tag", "untag", "list", "describe")
FAULTS: Final = (
    "reset before",
    "reset after",
    "500 before",
    "500 after",
    "503 after",
    "throttled",
    "killed before",
    "killed after",
    "SIGTERM before",
    "SIGTERM after",
    "two signals",
    "suspended before",
    "suspended after",
)


class ClosedObserver:
    """An observer that raises."""

    def started(self, progress: Progress) -> None:
        raise BrokenPipeError

    def notice(self, notice: Notice) -> None:
        raise BrokenPipeError


class ModelFault(FaultInjector):
    """Injects a fault at the `nth` call of one model operation, or like `FaultInjector`."""

    def __init__(self, how: str, call: str, nth: int, **more: Any) -> None:
        super().__init__(**more)
        self.how = how
        self.call = call
        self.nth = nth
        self.stop_signal = StopSignal()
        self.while_suspended: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        self._seen: Counter[str] = Counter()
        self._woken: anyio.Event | None = None

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        """A suspended process does nothing."""
        if self._woken is not None:
            await self._woken.wait()
        return await super().around(operation, act)

    async def model(self, operation: str, act: Callable[[], Awaitable[T]]) -> T:
        """Execute the model operation, with the fault if it is due."""
        await self._sleep_through()
        self._check_alive()
        number = self._seen[operation]
        self._seen[operation] += 1
        if (operation, number) != (self.call, self.nth):
            return await act()
        self.fired = True
        how, _, when = self.how.partition(" ")
        if when != "after":
            begun_at = anyio.current_time()
            await self._hit(how)
            self._refuse_late(begun_at)
        result = await act()
        if when == "after":
            await self._hit(how)
        return result

    async def _sleep_through(self) -> None:
        """Requests of a suspended process are sent when it wakes."""
        if self._woken is not None:
            begun_at = anyio.current_time()
            await self._woken.wait()
            self._refuse_late(begun_at)

    def _refuse_late(self, begun_at: float) -> None:
        if anyio.current_time() - begun_at > SIGNATURE_S:
            raise refused(
                "InvalidSignatureException", message="Signature expired: 20261121T000000Z is now earlier than"
            )

    async def _hit(self, how: str) -> None:
        match how:
            case "reset":
                raise ConnectionClosedError(endpoint_url="https://x", request=None, error=HTTPClientError)
            case "500":
                raise refused("InternalServerError", 500)
            case "503":
                raise refused("503", 503)
            case "throttled":
                raise refused("ThrottlingException")
            case "killed":
                self.crashed = True
                raise Crash
            case "SIGTERM":
                self.stop_signal.request("ended by SIGTERM")
            case "two":
                self.stop_signal.request("ended by SIGTERM")
                self.stop_signal.hurry()
                assert self.scope is not None
                self.scope.cancel()
            case "suspended":
                self._woken = anyio.Event()
                with anyio.CancelScope(shield=True):
                    await self.while_suspended()
                self._woken.set()
                self._woken = None


@dataclass
class RunModels(Models):
    """The control plane of one session."""

    fault: ModelFault = field(default_factory=lambda: ModelFault("", "", 0))

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        return await self.fault.model(operation, partial(super()._do, operation, name, effect))


@dataclass
class ModelWorld(FakeWorld):
    """Everything that outlives a process, including the model."""

    models: Models = field(default_factory=lambda: Models({NAME: "STOPPED"}))
    holder: str = "run night in memory"

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        assert isinstance(faults, ModelFault)
        shared = {name: getattr(self.models, name) for name in vars(self.models) if name != "who"}
        client = RunModels(**shared, who="run", fault=faults)
        arn = ModelArn.parse(arn_of(NAME))
        lease = ModelLease(client, arn, key=lease_key(self.holder), holder=self.holder, length_s=LEASE_S, now=now)
        return ModelManager(
            client,
            arn,
            units=Units(1),
            keep=False,
            lease=lease,
            observer=ClosedObserver(),
            stop_signal=faults.stop_signal,
        )

    def _context(self, faults: FaultInjector, service: Detector, ends_at: float) -> RunContext:
        assert isinstance(faults, ModelFault)
        return replace(super()._context(faults, service, ends_at), stop_signal=faults.stop_signal)

    @property
    def status(self) -> str:
        return self.models.status(NAME)

    @property
    def is_tagged(self) -> bool:
        return bool(self.models.tags[NAME])

    async def reap(self) -> None:
        """Run `model reap` repeatedly until a start has ended."""
        reaper = replace(self.models, who="reaper")
        await reap(reaper, now=now)
        await anyio.sleep(500 if self.status in {"STARTING", "STOPPING"} else 0)
        await reap(reaper, now=now)

    async def start_by_hand(self) -> None:
        """Start the model by hand if it is stopped and has no tags."""
        if self.status == "STOPPED" and not self.is_tagged:
            await replace(self.models, who="hand").start_project_version(ProjectVersionArn=arn_of(NAME))

    def assert_nothing_wrong(self) -> None:
        wrong = [who for who, started_by in self.models.stops if started_by == "hand"]
        assert not wrong, f"{wrong} stopped a model that was started by hand"


def random_world(rng: random.Random) -> ModelWorld:
    models = Models({NAME: "STOPPED"}, start_s=rng.choice([0.0, 5.0, 400.0]), stop_s=rng.choice([0.0, 20.0]))
    return ModelWorld(
        images=[image(n) for n in range(6)],
        service=Service(latency_s=lambda _: rng.choice([1.0, 60.0])),
        page=6,
        models=models,
    )


def fault(rng: random.Random) -> ModelFault:
    if rng.random() < 0.1:  # at a call or a write to the output root
        kind = rng.choice([FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER])
        return ModelFault(
            "", "", 0, operation=rng.choice([OperationKind.STORE, OperationKind.CALL]), at=rng.randrange(12), kind=kind
        )
    operation = rng.choice(OPERATIONS)
    return ModelFault(rng.choice(FAULTS), operation, rng.choice([0, 0, 0, 1, 1, 2, 4]))


async def play_one_run(seed: int) -> bool:
    """Play one world; returns whether a fault was injected."""
    rng = random.Random(seed)
    world = random_world(rng)
    fired = False

    async def while_suspended() -> None:
        await anyio.sleep(rng.choice([60.0, LEASE_S + 60]))
        if rng.random() < 0.7:
            await world.reap()
            if rng.random() < 0.7:
                await world.start_by_hand()
        await anyio.sleep(rng.choice([0.0, 60.0, 600.0]))

    for _ in range(rng.choice([1, 2, 3])):
        faults = fault(rng)
        faults.while_suspended = while_suspended
        end = await world.run(faults)
        fired = fired or faults.fired
        world.assert_nothing_wrong()
        assert faults.crashed or "SIGTERM" not in str(end) or faults.stop_signal.error is not None
        between = rng.choice(["at once", "soon", "reaped", "reaped and started", "later"])
        await anyio.sleep({"at once": 0.0, "soon": 60.0}.get(between, LEASE_S + 60))
        if between.startswith("reaped"):
            await world.reap()
            assert world.status != "RUNNING" or world.models.started_by[NAME] == "hand"
        if between == "reaped and started":
            await world.start_by_hand()
        world.assert_nothing_wrong()
    await anyio.sleep(LEASE_S + 60)
    await world.reap()
    world.assert_nothing_wrong()
    if world.status != "STOPPED":
        assert world.models.started_by[NAME] == "hand", "a model that batchcl started still runs"
    return fired


async def play_two_runs(seed: int) -> bool:
    """Two runs on one model, each with a fault; returns whether one was injected."""
    rng = random.Random(f"shared {seed}")
    first = random_world(rng)
    second = replace(first, holder="run other in memory", files={})
    both = [fault(rng), fault(rng)]

    async def while_suspended() -> None:
        await anyio.sleep(rng.choice([60.0, LEASE_S + 60]))
        await first.reap()
        await first.start_by_hand()
        await anyio.sleep(rng.choice([0.0, 600.0]))

    async with anyio.create_task_group() as group:
        for world, faults in zip([first, second], both, strict=True):
            faults.while_suspended = while_suspended
            group.start_soon(world.run, faults)
            await anyio.sleep(rng.choice([0.0, 1.0, 30.0, 400.0]))
    first.assert_nothing_wrong()
    await anyio.sleep(LEASE_S + 60)
    await first.reap()
    first.assert_nothing_wrong()
    if first.status != "STOPPED":
        assert first.models.started_by[NAME] == "hand", "a model that batchcl started still runs"
    return any(faults.fired for faults in both)


@pytest.mark.parametrize("scene", [play_one_run, play_two_runs])
@pytest.mark.parametrize("batch", range(0, SEEDS, BATCH))
def test_faults_around_start_and_stop_leave_nothing_running(
    scene: Callable[[int], Awaitable[bool]], batch: int
) -> None:
    fired = 0
    for seed in range(batch, min(batch + BATCH, SEEDS)):
        try:
            fired += run_simulation(scene, seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert fired > BATCH // 4
