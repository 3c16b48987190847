"""A job's model manager, with the connections that it works on."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import anyio

from batchcl.aws.arn import ModelArn
from batchcl.aws.lifecycle import Units
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.job import Job
from batchcl.lifetime.leases import lease_key
from batchcl.lifetime.leasing import ModelLease, RemoveSchedule
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.scheduled_stop import ScheduledStop, remove_schedule
from batchcl.scoring.events import Contained, Observer
from batchcl.scoring.stopper import Stopper

__all__ = ["EMULATED_UNITS", "holder_name", "open_manager"]

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
    stopper: Stopper,
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
    holder, observer = holder_name(run_id, root), Contained(observer)
    deadline_s, role = job.deadline_s, job.dead_man_role
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
