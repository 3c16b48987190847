"""Which guards a job's model has: its lease, and the dead man's switch where there is a role for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio

from batchcl.aws.arn import ModelArn
from batchcl.aws.dead_man import DeadMansSwitch, remove_schedule
from batchcl.aws.guards import Guard
from batchcl.aws.leasing import LeaseGuard, NoLease, RemoveSchedule
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.job import Job
from batchcl.scoring.events import Observer

__all__ = ["guards_of", "holder_name"]


@asynccontextmanager
async def guards_of(
    job: Job, aws: Aws, model: ModelArn, control: Any, *, run_id: str, root: str, observer: Observer, begun_at: float
) -> AsyncIterator[tuple[Guard, ...]]:
    """The guards, with their connections open during the block; none for an emulated model, which costs nothing.

    Args:
        job: says how long a lease is, the deadline, and the role of the dead man's switch.
        aws: the session.
        model: the model.
        control: an open Rekognition client for the control plane.
        run_id: the run.
        root: its output root.
        observer: told what the guards have to say.
        begun_at: on the loop's clock, from which the deadline counts.
    """
    if job.emulator:
        yield ()
        return
    clock = ServiceClock(control)
    holder = holder_name(run_id, root)
    deadline_s, role = job.deadline_s, job.dead_man_role
    async with AsyncExitStack() as stack:
        remove: RemoveSchedule | None = None
        switches: list[Guard] = []
        if role is not None and deadline_s is not None:
            scheduler = await stack.enter_async_context(aws.scheduler(region=model.region))
            remove = partial(remove_schedule, scheduler)
            switches.append(
                DeadMansSwitch(
                    scheduler,
                    model,
                    role=role,
                    holder=holder,
                    left_s=lambda: deadline_s - (anyio.current_time() - begun_at),
                    now=clock.now,
                    observer=observer,
                )
            )
        lease: Guard
        if job.lease_s is None:
            lease = NoLease(control, model, holder=holder, now=clock.now, observer=observer)
        else:
            lease = LeaseGuard(
                control,
                model,
                holder=holder,
                length_s=job.lease_s,
                scheduled=role is not None,
                remove_schedule=remove,
                now=clock.now,
                observer=observer,
            )
        yield (lease, *switches)  # the lease first: it tells whoever stops the model that there is a schedule


def holder_name(run_id: str, root: str) -> str:
    """The run in words that tell it from all others: a directory is one on this machine."""
    return f"run {run_id} in {root}" if root.startswith("s3://") else f"run {run_id} in {socket.gethostname()}:{root}"
