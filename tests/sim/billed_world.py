"""Runs whose model is billed: the service's own meter beside what batchcl records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.detect import Detector
from batchcl.errors import ModelNotReadyError
from batchcl.images import ImageRef
from batchcl.lifetime.lease_tags import lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease
from batchcl.outcomes import Detection
from batchcl.prices import unit_hour_usd
from batchcl.quantities import Units
from batchcl.runs.spending import read_spending
from batchcl.stop_signal import StopSignal
from fake_rekognition import Models, arn_of, now, refused
from sim.fake_world import FakeWorld, FaultInjector, OperationKind, utcnow

T = TypeVar("T")

NAME: Final = "cats@v1"
LEASE_S: Final = 900.0
_SIGNATURE_S: Final = 300.0


class Suspension(FaultInjector):
    """Operations of the session wait from `suspend` on until `resume`, as if its process had been stopped.

    Requests to the service that were signed long before they are sent are refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self._woken = anyio.Event()
        self._woken.set()

    def suspend(self) -> None:
        self._woken = anyio.Event()

    def resume(self) -> None:
        self._woken.set()

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        signed_at = anyio.current_time()
        await self._woken.wait()
        if operation is OperationKind.MODEL and anyio.current_time() - signed_at > _SIGNATURE_S:
            raise refused("InvalidSignatureException", message="Signature expired: 20261121T000000Z is now earlier")
        return await super().around(operation, act)


@dataclass
class SessionModels(Models):
    """The control plane as one session sees it."""

    faults: FaultInjector = field(default_factory=FaultInjector)

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        return await self.faults.around(OperationKind.MODEL, partial(super()._do, operation, name, effect))


@dataclass
class BilledWorld(FakeWorld):
    """A world whose sessions start, share and stop a model under leases.

    Worlds of several runs share `models` and `files`.
    """

    models: Models = field(default_factory=lambda: Models({NAME: "STOPPED"}, start_s=400.0, stop_s=60.0))
    units: Units | None = Units(2)  # noqa: RUF009 - frozen
    keep: bool = False
    name: str = NAME

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        client = SessionModels(**vars(self.models), faults=faults)
        arn, holder = ModelArn.parse(arn_of(self.name)), f"run {self.run_id} in memory"
        return ModelManager(
            client,
            arn,
            units=self.units,
            keep=self.keep,
            lease=ModelLease(client, arn, key=lease_key(holder), holder=holder, length_s=LEASE_S, now=now),
            observer=self.observer,
            stop_signal=self.stop_signal or StopSignal(),
            utcnow=utcnow,
        )

    @asynccontextmanager
    async def detector(self) -> AsyncIterator[Detector]:
        yield _ModelDetector(self)

    @property
    def status(self) -> str:
        return self.models.status(self.name)

    def metered_usd(self) -> float:
        """Dollars by the service's meter."""
        return self.models.billed_unit_s() * unit_hour_usd() / 3600

    async def recorded_usd(self) -> float:
        """Dollars that the sessions of all runs have recorded."""
        runs = await read_spending(self.store())
        return sum(session.cost_usd or 0.0 for run in runs for session in run.sessions)

    async def stop_by_hand(self) -> None:
        await self.models.stop_project_version(ProjectVersionArn=arn_of(self.name))


@dataclass
class _ModelDetector:
    """The service, which refuses calls while the model is not RUNNING."""

    world: BilledWorld

    async def detect(self, image: ImageRef) -> Detection:
        if self.world.status != "RUNNING":
            raise ModelNotReadyError("not ready", code="ResourceNotReadyException")
        return await self.world.service.detect(image)


def minute_usd(units: int) -> float:
    """What the model costs in one minute."""
    return units * unit_hour_usd() / 60
