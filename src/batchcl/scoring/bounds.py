"""Bounds of a run in time, money, failures and file descriptors."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Final

import anyio

from batchcl.errors import BatchclError, StoppedError, TooManyFailuresError
from batchcl.events import Notice, Observer, Progress
from batchcl.job import Job
from batchcl.quantities import counted

__all__ = ["watch_bounds", "within_descriptors"]

_OTHER_DESCRIPTORS: Final = 48
"""Of the interpreter, the event loop, the output root's connections and the control plane."""

_DESCRIPTORS_PER_CALL: Final = 2
"""A connection, and a file or a connection to S3."""

_LOOK_EVERY_S: Final = 1.0
_ENOUGH_TO_JUDGE: Final = 100
"""A share of failures says nothing before so many images have their outcome."""


def within_descriptors(job: Job, observer: Observer) -> Job:
    """`job` with no more calls at a time than this process has file descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    affordable = max(1, (soft - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CALL)
    if soft == resource.RLIM_INFINITY or job.max_in_flight <= affordable:
        return job
    text = (
        f"at most {counted(affordable, 'call')} at a time rather than {job.max_in_flight:,}, as this process may open "
        f"only {soft:,} files; raise `ulimit -n`"
    )
    observer.notice(Notice("max-in-flight", text, {"max_in_flight": affordable}, level="warning"))
    return job.model_copy(update={"max_in_flight": affordable})


async def watch_bounds(
    job: Job,
    progress: Progress,
    *,
    begun_at: float,
    stop: Callable[[BatchclError], None],
    called_for: Callable[[], int],
) -> None:
    """Look every second, and call `stop` with the reason once a bound in time, money or failures is reached.

    `called_for` tells how many images of the whole run have been called for: a share of failures is one of these.
    """
    while True:
        await anyio.sleep(_LOOK_EVERY_S)
        elapsed_s = anyio.current_time() - begun_at
        if (reason := reached(job, progress, elapsed_s=elapsed_s, called_for=called_for())) is not None:
            stop(reason)
            return


def reached(job: Job, progress: Progress, *, elapsed_s: float, called_for: int) -> StoppedError | None:
    """The bound that is reached, or None."""
    if job.deadline_s is not None and elapsed_s >= job.deadline_s:
        return StoppedError(f"the deadline of {job.deadline} has passed; run again to continue")
    dollars = progress.dollars
    if job.max_cost is not None and dollars is not None and dollars >= job.max_cost:
        return StoppedError(
            f"the model has cost ${dollars:.2f}, and --max-cost is ${job.max_cost:.2f}; raise it to go on"
        )
    if job.max_failures is None:
        return None
    enough = job.tolerance.percent is None or called_for >= _ENOUGH_TO_JUDGE
    if enough and job.tolerance.exceeded(failed=progress.failed, scored=called_for - progress.failed):
        return TooManyFailuresError(
            f"{counted(progress.failed, 'image')} failed, and --max-failures is {job.max_failures}; see "
            "`batchcl failures` for why, and raise it to go on"
        )
    return None
