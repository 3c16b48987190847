"""What the operations share: the service with its state and clock, and the call that is being answered."""

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
    from batchcl.emulator.capacity import Capacity, Latency, Quotas
    from batchcl.emulator.dataset_files import DatasetFiles
    from batchcl.emulator.learning.model import Prediction, Predictor
    from batchcl.emulator.records import StoredDataset, StoredProject, StoredVersion
    from batchcl.emulator.settings import EmulatorSettings
    from batchcl.emulator.state import EmulatorState

__all__ = ["Call", "Clock", "EmulatorService", "ForwardClock", "SystemClock"]

_Resource = TypeVar("_Resource")


class Clock(Protocol):
    """Wall-clock time for what is stored and signed, monotonic time for what is measured."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed moment; never decreases."""
        ...


class SystemClock:
    """The clock of the machine."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine was started."""
        return time.monotonic()


class ForwardClock:
    """A clock that can be set ahead with `/_emulator/clock`, to skip what takes hours in the real service.

    Only wall-clock time is ahead: capacity and faults use monotonic time, and signatures are checked against the
    clients' clocks.
    """

    def __init__(self, base: Clock) -> None:
        self._base = base
        self.ahead_s = 0.0

    def time(self) -> float:
        """Seconds since the epoch, plus `ahead_s`."""
        return self._base.time() + self.ahead_s

    def signed_time(self) -> float:
        """Seconds since the epoch on the clock of clients, for signatures."""
        return self._base.time()

    def monotonic(self) -> float:
        """Seconds since the machine was started."""
        return self._base.monotonic()


@dataclass(slots=True, kw_only=True)
class EmulatorService:
    """The parts of an emulator.

    Attributes:
        settings: of the emulator.
        clock: the only source of time.
        state: projects, datasets, versions and policies.
        dataset_files: the entries of the datasets.
        buckets: images and manifests are read from here, and results are written here.
        capacity: the token buckets of accounts and models.
        quotas: of accounts.
        tasks: the task group of trainings and copies.
        threads: limits the number of images that are decoded and scored concurrently.
        models: loaded models with the assumed threshold of each label, by version ARN.
        cached_predictions: by version ARN and hash of the image, with --cached-inference; the oldest are dropped first.
        scalers: of running versions with MaxInferenceUnits, by version ARN.
        injector: the faults.
        latency: of images that are admitted.
        closing: whether the emulator is ending; a training checks it regularly.
    """

    settings: EmulatorSettings
    clock: ForwardClock
    state: EmulatorState
    dataset_files: DatasetFiles
    buckets: ObjectStore
    capacity: Capacity
    quotas: Quotas
    tasks: TaskGroup
    threads: anyio.CapacityLimiter
    models: dict[str, tuple[Predictor, dict[str, float]]] = field(default_factory=dict)
    cached_predictions: OrderedDict[tuple[str, bytes], list[Prediction]] = field(default_factory=OrderedDict)
    scalers: dict[str, AutoScaler] = field(default_factory=dict)
    injector: Injector = field(default_factory=Injector)
    latency: Latency
    closing: bool = False

    def scale(self, version: StoredVersion, *, now: float) -> AutoScaler | None:
        """Update the units of a running version to `now`, and return its scaler; None if it isn't scaled."""
        if version.metered_since is None or version.max_units is None or version.min_units is None:
            return None
        scaler = self.scalers.get(version.arn)
        if scaler is None:
            scaler = self.scalers[version.arn] = AutoScaler(
                min_units=version.min_units,
                max_units=version.max_units,
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
        """An object of a bucket in `region`, or whose region is unknown; see `ObjectStore.read`.

        Raises:
            ApiError: InvalidS3ObjectException, also for a bucket in another region.
        """
        bucket_region = await self._region_of(bucket)
        if bucket_region not in {None, region}:
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
            ApiError: AccessDeniedException if it is another account's, ResourceNotFoundException.
        """
        project = self._owned(arn, self.service.state.projects.get(arn))
        if project.gone is not None:
            raise not_found(arn)
        return project

    def dataset(self, arn: str) -> StoredDataset:
        """The caller's dataset; raises like `project`."""
        return self._owned(arn, self.service.state.datasets.get(arn))

    def version(self, arn: str) -> StoredVersion:
        """The caller's model version with its current status; raises like `project`."""
        return self._owned(arn, self.service.state.version(arn, now=self.now))

    def mine(self, arn: str) -> bool:
        """Whether `arn` is in the caller's account and region."""
        resource_owner = owner(arn)
        return resource_owner.account == self.account and resource_owner.region == self.region

    def _owned(self, arn: str, found: _Resource | None) -> _Resource:
        if owner(arn).account != self.account:
            raise access_denied(self.operation, arn)
        if found is None or not self.mine(arn):
            raise not_found(arn)
        return found
