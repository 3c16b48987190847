"""What the emulator's operations share."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
import anyio.to_thread

from batchcl.emulator.capacity import AutoScaler
from batchcl.emulator.errors import access_denied, invalid_s3_object, not_found
from batchcl.emulator.fault_injection import Injector
from batchcl.emulator.records import owner

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from batchcl.emulator.buckets import ObjectStore
    from batchcl.emulator.capacity import Capacity, Latency
    from batchcl.emulator.dataset_files import DatasetFiles
    from batchcl.emulator.learning.model import Prediction, Predictor
    from batchcl.emulator.records import StoredDataset, StoredProject, StoredVersion
    from batchcl.emulator.settings import EmulatorSettings
    from batchcl.emulator.state import EmulatorState

__all__ = ["Call", "Clock", "EmulatorService", "ForwardClock", "SystemClock"]

_Resource = TypeVar("_Resource")


class Clock(Protocol):
    """Wall time for what is stored and signed, monotonic time for what is measured."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine's start."""
        return time.monotonic()


class ForwardClock:
    """A clock that can be put forward, for what takes hours in the service: `/_emulator/clock` does it.

    Measured time goes on as it does, so capacity and faults know nothing of it; neither do signatures, as the clients'
    clocks stay where they are.
    """

    def __init__(self, base: Clock) -> None:
        self._base = base
        self.ahead_s = 0.0

    def time(self) -> float:
        """Seconds since the epoch, and those that it was put forward."""
        return self._base.time() + self.ahead_s

    def signed_time(self) -> float:
        """Seconds since the epoch as clients that sign have them."""
        return self._base.time()

    def monotonic(self) -> float:
        """Seconds since the machine's start."""
        return self._base.monotonic()


@dataclass(slots=True, kw_only=True)
class EmulatorService:
    """One emulator's parts.

    Attributes:
        settings: as given.
        clock: its one source of time.
        state: what it remembers.
        dataset_files: the entries of its datasets.
        buckets: where objects come from and results go.
        capacity: what it lets through.
        tasks: where trainings run.
        threads: how many images are decoded and looked at, at once.
        models: trained models in use, by version ARN.
        seen: what models saw in images, by version and content, where inference is cached; the oldest go first.
        scalers: of versions that run between a least and a most number of units, by version ARN.
        injector: faults on demand.
        latency: of images that are let through.
        closing: true once the emulator is told to end; a training looks at it now and then.
    """

    settings: EmulatorSettings
    clock: ForwardClock
    state: EmulatorState
    dataset_files: DatasetFiles
    buckets: ObjectStore
    capacity: Capacity
    tasks: TaskGroup
    threads: anyio.CapacityLimiter
    models: dict[str, tuple[Predictor, dict[str, float]]] = field(default_factory=dict)
    seen: OrderedDict[tuple[str, bytes], list[Prediction]] = field(default_factory=OrderedDict)
    scalers: dict[str, AutoScaler] = field(default_factory=dict)
    injector: Injector = field(default_factory=Injector)
    latency: Latency
    closing: bool = False

    def scale(self, version: StoredVersion, *, now: float) -> AutoScaler | None:
        """Let a running version have the units in service that it has at `now`; None for one that isn't scaled."""
        if version.metered_since is None or version.max_units is None or version.min_units is None:
            return None
        scaler = self.scalers.get(version.arn)
        if scaler is None:
            scaler = self.scalers[version.arn] = AutoScaler(
                least=version.min_units,
                most=version.max_units,
                tps_per_unit=self.settings.tps_per_unit,
                period_s=self.settings.scale_seconds,
                now=version.metered_since,
            )
        for at, units in scaler.advance(now):
            version.meter(at)
            version.units = units
        return scaler

    def halt(self, version: StoredVersion, status: str, message: str, *, now: float) -> None:
        """Take a running version out of service; the caller saves the state."""
        self.scale(version, now=now)
        version.halt(status, message, now=now)
        self.scalers.pop(version.arn, None)
        self.models.pop(version.arn, None)

    async def read_object(
        self, bucket: str, key: str, *, region: str, limit_bytes: int, version_id: str | None = None
    ) -> bytes:
        """An object of a bucket that lies in `region`, or whose region nobody knows; see `ObjectStore.read`.

        Raises:
            ServiceError: InvalidS3ObjectException, which the service gives for a bucket of another region, too.
        """
        lies_in = await self._region_of(bucket)
        if lies_in not in {None, region}:
            raise invalid_s3_object()
        return await self.buckets.read(bucket, key, limit_bytes=limit_bytes, version_id=version_id)

    async def _region_of(self, bucket: str) -> str | None:
        regions = self.settings.regions()
        return regions[bucket] if bucket in regions else await self.buckets.region(bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated call; `now` in seconds since the epoch."""

    service: EmulatorService
    operation: str
    account: str
    region: str
    now: float

    def project(self, arn: str) -> StoredProject:
        """The caller's project, unless it is being deleted.

        Raises:
            ServiceError: AccessDeniedException for another account's, ResourceNotFoundException.
        """
        project = self._owned(arn, self.service.state.projects.get(arn))
        if project.gone is not None:
            raise not_found(arn)
        return project

    def dataset(self, arn: str) -> StoredDataset:
        """The caller's dataset; raises as `project`."""
        return self._owned(arn, self.service.state.datasets.get(arn))

    def version(self, arn: str) -> StoredVersion:
        """The caller's model version as it is now; raises as `project`."""
        return self._owned(arn, self.service.state.version(arn, now=self.now))

    def mine(self, arn: str) -> bool:
        """Whether `arn` lies in the caller's account and region."""
        whose = owner(arn)
        return whose.account == self.account and whose.region == self.region

    def _owned(self, arn: str, found: _Resource | None) -> _Resource:
        if owner(arn).account != self.account:
            raise access_denied(self.operation, arn)
        if found is None or not self.mine(arn):
            raise not_found(arn)
        return found
