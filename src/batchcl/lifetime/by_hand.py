"""Start a model without a run around it: what `batchcl model start` does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.models import IN_USE, Units, describe
from batchcl.aws.tags import untag
from batchcl.errors import ModelError
from batchcl.events import SilentObserver
from batchcl.lifetime.lease_tags import MANUAL_KEY, LeaseTag, Role
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease, RemoveSchedule, clear_leases
from batchcl.lifetime.state_machine import ModelState
from batchcl.stop_signal import StopSignal

__all__ = ["end_lease", "start", "start_for"]

_RELEASE_S: Final = 10.0


async def start(client: Any, arn: ModelArn, units: Units) -> None:
    """Ask the service to start the model; billing begins when it is RUNNING. Returns at once: see `wait`.

    A start whose answer was lost is decided by what the model does, and sent again where it doesn't start.

    Raises:
        ModelError: it runs already, or can't be started.
        UnreachableError: whether it was started can't be told.
    """
    await _manager(client, arn, units, None).start()


async def start_for(
    client: Any,
    arn: ModelArn,
    units: Units,
    *,
    seconds: float,
    holder: str,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None = None,
) -> LeaseTag:
    """Start a model by hand under a lease that ends `seconds` from now; `batchcl model reap` stops it then.

    Args:
        client: an open Rekognition client.
        arn: the model.
        units: to start it with.
        seconds: how long the lease lasts, the start included.
        holder: who wants it, in words.
        now: the service's clock.
        remove_schedule: deletes the schedule of this name, which a dead run may have left.

    Raises:
        ModelError: it runs already, or can't be started.
        UnreachableError: whether it was started can't be told; the lease stays.
        RefusedError: it can't be tagged; it isn't started then.
    """
    found = await describe(client, arn)  # before the tag: a model that somebody else started gets no lease of ours
    if found.status in IN_USE:
        raise ModelError(f"{arn.name} is {found.status} already; a lease is given to a model that is started")
    await clear_leases(client, arn, remove_schedule=remove_schedule)
    lease = ModelLease(client, arn, key=MANUAL_KEY, holder=holder, length_s=seconds, now=now)
    manager = _manager(client, arn, units, lease)
    try:
        await manager.start()
    except BaseException:
        if manager.state in {ModelState.NOT_OURS, ModelState.CLAIMED}:  # cancelled before a start was sent
            with anyio.move_on_after(_RELEASE_S, shield=True):
                await lease.release()
        raise
    assert lease.until is not None
    return LeaseTag(key=MANUAL_KEY, role=Role.STARTED, until=lease.until, holder=holder)


async def end_lease(client: Any, arn: ModelArn) -> None:
    """Remove the lease that `start_for` gave, if it did; raises `RefusedError`."""
    await untag(client, arn.text, [MANUAL_KEY])


def _manager(client: Any, arn: ModelArn, units: Units, lease: ModelLease | None) -> ModelManager:
    return ModelManager(
        client, arn, units=units, keep=True, lease=lease, observer=SilentObserver(), stopper=StopSignal()
    )
