"""What the emulator's operations share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from batchcl.emulator.arns import owner
from batchcl.emulator.faults import access_denied, not_found

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from batchcl.emulator.buckets import Buckets
    from batchcl.emulator.capacity import Capacity
    from batchcl.emulator.clock import Clock
    from batchcl.emulator.learning.model import Model
    from batchcl.emulator.settings import EmulatorSettings
    from batchcl.emulator.state import Dataset, Project, State, Version

__all__ = ["Call", "Service"]

_Resource = TypeVar("_Resource")


@dataclass(slots=True, kw_only=True)
class Service:
    """One emulator's parts.

    Attributes:
        settings: as given.
        clock: its one source of time.
        state: what it remembers.
        buckets: where objects come from and results go.
        capacity: what it lets through.
        tasks: where trainings run.
        threads: how many images are decoded and looked at, at once.
        models: trained models in use, by version ARN.
        closing: true once the emulator is told to end; a training looks at it now and then.
    """

    settings: EmulatorSettings
    clock: Clock
    state: State
    buckets: Buckets
    capacity: Capacity
    tasks: TaskGroup
    threads: anyio.CapacityLimiter
    models: dict[str, tuple[Model, dict[str, float]]] = field(default_factory=dict)
    closing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated call; `now` in seconds since the epoch."""

    service: Service
    operation: str
    account: str
    region: str
    now: float

    def project(self, arn: str) -> Project:
        """The caller's project.

        Raises:
            ServiceError: AccessDeniedException for another account's, ResourceNotFoundException.
        """
        return self._owned(arn, self.service.state.projects.get(arn))

    def dataset(self, arn: str) -> Dataset:
        """The caller's dataset; raises as `project`."""
        return self._owned(arn, self.service.state.datasets.get(arn))

    def version(self, arn: str) -> Version:
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
