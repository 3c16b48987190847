"""Opens the service that a job uses (AWS or a local emulator) and the manager of its model."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from batchcl.arns import ModelArn
from batchcl.aws.names import find_trained_model
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import ErrorCode, ModelError
from batchcl.events import Observer, SafeObserver
from batchcl.job import Job
from batchcl.lifetime.lease_tags import lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease, RemoveSchedule
from batchcl.quantities import MAX_UNITS, AutoUnits, Units
from batchcl.stop_signal import StopSignal

if TYPE_CHECKING:
    from batchcl.lifetime.scheduled_stop import ScheduledStop

__all__ = ["holder_name", "open_manager", "open_service", "start_units"]

EMULATED_UNITS: Final = Units(MAX_UNITS)
"""Units of the emulator that `--emulator` starts: the maximum, as they cost nothing."""

_NOT_RETRIED: Final = ("StartProjectVersion", "StopProjectVersion", "TagResource")
"""The SDK does not retry these: the manager and the lease do, after checking whether the call has taken effect."""


@asynccontextmanager
async def open_manager(
    job: Job,
    aws: Aws,
    model: ModelArn,
    *,
    run_id: str,
    root: str,
    observer: Observer,
    stop_signal: StopSignal,
    ends_at: float,
) -> AsyncIterator[ModelManager]:
    """Open the model manager of a run; its connections are closed at the end of the block.

    Args:
        job: how the model is started, the length of its lease, and the role of the scheduled stop.
        aws: the session.
        model: the model.
        run_id: the run.
        root: its output root.
        observer: receives notices.
        stop_signal: ends waits early.
        ends_at: the deadline on the loop's clock.
    """
    holder, observer = holder_name(run_id, root), SafeObserver(observer)
    role = job.scheduled_stop_role
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(aws.rekognition(region=model.region, once=_NOT_RETRIED))
        clock = ServiceClock(control)
        remove: RemoveSchedule | None = None
        schedule: ScheduledStop | None = None
        if role is not None and not aws.settings.is_emulator:
            from batchcl.lifetime.scheduled_stop import ScheduledStop, remove_schedule

            scheduler = await stack.enter_async_context(aws.scheduler(region=model.region))
            remove = partial(remove_schedule, scheduler)
            schedule = ScheduledStop(
                scheduler,
                model,
                role=role,
                holder=holder,
                left_s=lambda: ends_at - anyio.current_time(),
                now=clock.now,
                observer=observer,
            )
        lease = ModelLease(
            control,
            model,
            key=lease_key(holder),
            holder=holder,
            length_s=None if aws.settings.is_emulator else job.lease_s,
            schedule=schedule,
            remove_schedule=remove,
            now=clock.now,
        )
        yield ModelManager(
            control,
            model,
            units=start_units(job, is_emulator=aws.settings.is_emulator),
            keep=job.keep_model,
            is_free=aws.settings.is_emulator,
            lease=lease,
            observer=observer,
            stop_signal=stop_signal,
        )


def start_units(job: Job, *, is_emulator: bool) -> Units | AutoUnits | None:
    """Return the units to start the model with; an emulated model costs nothing, so it gets as many as it may have."""
    if not is_emulator:
        return job.units
    return Units(job.units.highest) if isinstance(job.units, AutoUnits) else job.units or EMULATED_UNITS


def holder_name(run_id: str, root: str) -> str:
    """Return text that identifies the run among all runs; a local root is qualified by the host name."""
    return f"run {run_id} in {root}" if root.startswith("s3://") else f"run {run_id} in {socket.gethostname()}:{root}"


async def open_service(job: Job, aws: Aws | None = None) -> tuple[Aws, ModelArn]:
    """Return the AWS session of `job`, or `aws` if given, and the ARN of its model.

    Raises:
        ModelError: no model has the given name, or the job's region is not that of the model's ARN.
        CredentialsError: there are no credentials, or AWS refuses them.
    """
    assert job.model is not None
    aws = aws or Aws(AwsSettings(profile=job.profile, region=job.region))
    return aws, await _resolve_model(aws, job.model)


async def _resolve_model(aws: Aws, name: str) -> ModelArn:
    """Parse an ARN without a request, or look up a name."""
    if name.startswith("arn:"):
        model = ModelArn.parse(name)
        if aws.settings.region not in (None, model.region):
            raise ModelError(
                f"model {model} is in {model.region}, and --region is {aws.settings.region}; remove --region or use "
                f"--region {model.region}",
                code=ErrorCode.WRONG_REGION,
            )
        return model
    await aws.check_credentials()
    async with aws.rekognition() as client:
        return await find_trained_model(client, name)
