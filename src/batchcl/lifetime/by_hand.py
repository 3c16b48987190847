"""Start a model without a run: the implementation of `batchcl model start`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.models import IN_USE, describe
from batchcl.aws.tags import untag
from batchcl.errors import ErrorCode, ModelError
from batchcl.events import SilentObserver
from batchcl.lifetime.lease_tags import MANUAL_KEY, LeaseTag, Role
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease, RemoveSchedule, clear_leases
from batchcl.lifetime.state_machine import ModelState
from batchcl.quantities import Units
from batchcl.stop_signal import StopSignal

__all__ = ["end_lease", "start", "start_with_lease"]

_RELEASE_TIMEOUT_S: Final = 10.0


async def start(client: Any, arn: ModelArn, units: Units) -> None:
    """Send a start and return when the service has accepted it; billing begins when the model is RUNNING (see `wait`).

    If the response is lost, the model's status decides; the start is sent again if the model stays down.

    Raises:
        ModelError: the model is running already, or can't be started.
        UnreachableError: it is unknown whether it was started.
    """
    await _manager(client, arn, units, None).start()


async def start_with_lease(
    client: Any,
    arn: ModelArn,
    units: Units,
    *,
    seconds: float,
    holder: str,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None = None,
) -> LeaseTag:
    """Start a model with a lease that ends `seconds` from now; `batchcl model reap` then stops the model.

    Args:
        client: an open Rekognition client.
        arn: the model.
        units: inference units to start it with.
        seconds: duration of the lease, including the start.
        holder: text that identifies the holder in the tag.
        now: the service's clock.
        remove_schedule: deletes schedules by name, which dead runs may have left.

    Returns:
        The lease.

    Raises:
        ModelError: the model is running already, or can't be started.
        UnreachableError: it is unknown whether it was started; the lease stays.
        RefusedError: the model can't be tagged; it was not started.
    """
    model = await describe(client, arn)  # before tagging: a model that others have started gets no lease
    if model.status in IN_USE:
        raise ModelError(
            f"starting {arn.name} with a lease failed: it is {model.status} already; stop it first, or leave it to "
            "whoever started it",
            code=ErrorCode.RESOURCE_IN_USE,
        )
    await clear_leases(client, arn, remove_schedule=remove_schedule)
    lease = ModelLease(client, arn, key=MANUAL_KEY, holder=holder, length_s=seconds, now=now)
    manager = _manager(client, arn, units, lease)
    try:
        await manager.start()
    except BaseException:
        if manager.state in {ModelState.NOT_OURS, ModelState.CLAIMED}:  # no start was sent
            with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):
                await lease.release()
        raise
    assert lease.until is not None
    return LeaseTag(key=MANUAL_KEY, role=Role.STARTED, until=lease.until, holder=holder, since=lease.since)


async def end_lease(client: Any, arn: ModelArn) -> None:
    """Remove the lease of `start_with_lease`, if there is one. Raises `RefusedError`."""
    await untag(client, arn.text, [MANUAL_KEY])


def _manager(client: Any, arn: ModelArn, units: Units, lease: ModelLease | None) -> ModelManager:
    return ModelManager(
        client, arn, units=units, keep=True, lease=lease, observer=SilentObserver(), stop_signal=StopSignal()
    )
