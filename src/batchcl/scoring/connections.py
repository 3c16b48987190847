"""The service that a job talks to, AWS or a local emulator, and the job's model manager."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from batchcl.arns import ModelArn
from batchcl.aws.models import Units
from batchcl.aws.names import find_trained_model, region_in
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.errors import ModelError, UsageError
from batchcl.events import Observer, SafeObserver
from batchcl.job import Job
from batchcl.lifetime.lease_tags import lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease, RemoveSchedule
from batchcl.lifetime.scheduled_stop import ScheduledStop, remove_schedule
from batchcl.runs.layout import expand_home
from batchcl.stop_signal import StopSignal

__all__ = ["DEFAULT_STATE", "EMULATED_UNITS", "holder_name", "open_manager", "service_of"]

EMULATED_UNITS = Units(5)
"""The run's own emulator costs nothing, so it gets all there are."""


_ONCE: Final = ("StartProjectVersion", "StopProjectVersion", "TagResource")
"""What the manager and the lease repeat themselves: before each attempt they look whether it is still to be made."""


@asynccontextmanager
async def open_manager(
    job: Job,
    aws: Aws,
    model: ModelArn,
    *,
    run_id: str,
    root: str,
    observer: Observer,
    stopper: StopSignal,
    begun_at: float,
) -> AsyncIterator[ModelManager]:
    """The manager, whose connections are open during the block.

    Args:
        job: says how the model is started, how long its lease is, the deadline, and the role of the scheduled stop.
        aws: the session.
        model: the model.
        run_id: the run.
        root: its output root.
        observer: receives notices.
        stopper: ends waits early.
        begun_at: on the loop's clock, from which the deadline counts.
    """
    holder, observer = holder_name(run_id, root), SafeObserver(observer)
    deadline_s, role = job.deadline_s, job.scheduled_stop_role
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(aws.rekognition(region=model.region, once=_ONCE))
        clock = ServiceClock(control)
        remove: RemoveSchedule | None = None
        schedule: ScheduledStop | None = None
        if role is not None and deadline_s is not None and not job.emulator:
            scheduler = await stack.enter_async_context(aws.scheduler(region=model.region))
            remove = partial(remove_schedule, scheduler)
            schedule = ScheduledStop(
                scheduler,
                model,
                role=role,
                holder=holder,
                left_s=lambda: deadline_s - (anyio.current_time() - begun_at),
                now=clock.now,
                observer=observer,
            )
        lease = ModelLease(
            control,
            model,
            key=lease_key(holder),
            holder=holder,
            length_s=None if job.emulator else job.lease_s,
            schedule=schedule,
            remove_schedule=remove,
            now=clock.now,
        )
        yield ModelManager(
            control,
            model,
            units=job.units or (EMULATED_UNITS if job.emulator else None),
            keep=job.keep_model,
            free=job.emulator,
            lease=lease,
            observer=observer,
            stopper=stopper,
        )


def holder_name(run_id: str, root: str) -> str:
    """The run in words that tell it from all others: a directory is one on this machine."""
    return f"run {run_id} in {root}" if root.startswith("s3://") else f"run {run_id} in {socket.gethostname()}:{root}"


DEFAULT_STATE: Final = "~/.cache/batchcl/emulator"
"""Where `--emulator` keeps its projects and models unless it is told otherwise."""

EMULATED_TPS_PER_UNIT: Final = 10.0
"""A unit of the run's own emulator is faster than a real one: it is there to try things out."""


@asynccontextmanager
async def service_of(job: Job) -> AsyncIterator[tuple[Aws, ModelArn]]:
    """The session and the model that `job` means, for the time of the block.

    With `emulator` it starts one, which ends with the block; without `model` it has the emulator train one on
    handwritten digits, once.

    Raises:
        UsageError: the emulator's extra packages are missing.
        ModelError: there is no model of the given name, or the job's region is not that of the model's ARN.
        CredentialsError: there are none to look it up with, or AWS refuses them.
    """
    if not job.emulator:
        assert job.model is not None
        aws = Aws(AwsSettings(profile=job.profile, region=job.region))
        yield aws, await _found_emulator(aws, job.model)
        return
    state = await anyio.to_thread.run_sync(_emulator_state, str(job.emulator_state or DEFAULT_STATE))
    try:
        from batchcl.emulator.demo import demo_model
        from batchcl.emulator.process import running_emulator
        from batchcl.emulator.settings import EmulatorSettings
    except ImportError as error:
        raise UsageError(f"--emulator needs {error.name}; pip install 'batchcl[emulator]'") from error
    named = job.model or await demo_model(state)
    region = region_in(named) or Aws(AwsSettings(region=job.region, profile=job.profile)).region
    settings = EmulatorSettings(
        state=state,
        s3_endpoint_url=_s3_endpoint_url(region),
        tps_per_unit=EMULATED_TPS_PER_UNIT,
        exit_with_parent=True,
    )
    async with running_emulator(settings) as emulator:
        aws = _emulated(job, emulator.endpoint)
        yield aws, await _found_emulator(aws, named)


async def _found_emulator(aws: Aws, named: str) -> ModelArn:
    """The model of an ARN, which isn't looked up, or of a name."""
    if named.startswith("arn:"):
        model = ModelArn.parse(named)
        if aws.settings.region not in (None, model.region):
            raise ModelError(
                f"there is no model {model} in {aws.settings.region}, which --region names: it is in {model.region}; "
                "leave --region out"
            )
        return model
    await aws.check_credentials()
    async with aws.rekognition() as client:
        return await find_trained_model(client, named)


def _emulated(job: Job, endpoint: str) -> Aws:
    """A session whose Rekognition is the emulator, with its built-in credentials; S3 stays what it was."""
    return Aws(
        AwsSettings(
            profile=job.profile,
            region=job.region,
            rekognition_endpoint_url=endpoint,
            rekognition_credentials=StaticCredentials("emulator", "emulator"),
        )
    )


def _emulator_state(path: str) -> Path:
    try:
        return Path(expand_home(path)).absolute()
    except UsageError as error:
        raise UsageError(f"keeping the emulator's state failed: {error}; or pass --emulator-state DIR") from error


def _s3_endpoint_url(region: str) -> str:
    """Where the emulator reads S3 images: where the session does."""
    configured = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return configured or f"https://s3.{region}.amazonaws.com"
