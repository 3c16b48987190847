"""Limits of a run: deadline, cost, failures and file descriptors."""

from __future__ import annotations

import datetime as dt
import math
import resource
from collections.abc import Callable
from typing import Final

import anyio

from batchcl.errors import BatchclError, ErrorCode, StoppedError, TooManyFailuresError
from batchcl.events import Notice, Observer, Progress
from batchcl.job import Job
from batchcl.quantities import pluralize

__all__ = ["deadline_at", "exceeded_bound", "limit_to_descriptors", "watch_bounds"]

_OTHER_DESCRIPTORS: Final = 48
"""Used by the interpreter, the event loop, the output root's connections and the control plane."""

_DESCRIPTORS_PER_CALL: Final = 2
"""One connection to Rekognition, and one file or connection to S3."""

_CHECK_EVERY_S: Final = 1.0
_MIN_CALLED: Final = 100
"""A percentage of failures is compared only after this many images have been called for."""


def limit_to_descriptors(job: Job, observer: Observer) -> Job:
    """Return `job` with `max_in_flight` reduced to what the process's limit of open files allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    affordable = max(1, (soft - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CALL)
    if soft == resource.RLIM_INFINITY or job.max_in_flight <= affordable:
        return job
    text = (
        f"--max-in-flight was reduced from {job.max_in_flight:,} to {affordable:,}: this process may open only "
        f"{soft:,} files; raise the limit with `ulimit -n`"
    )
    observer.notice(Notice("max-in-flight", text, {"max_in_flight": affordable}, level="warning"))
    return job.model_copy(update={"max_in_flight": affordable})


def deadline_at(job: Job, *, begun_at: float, now: dt.datetime) -> float:
    """Return the job's deadline on the loop's clock; infinity without one. `begun_at` is `now` on that clock."""
    left_s = job.deadline_s(now)
    return math.inf if left_s is None else begun_at + left_s


async def watch_bounds(
    job: Job,
    progress: Progress,
    *,
    over_budget: Callable[[], StoppedError | None],
    ends_at: float,
    stop: Callable[[BatchclError], None],
    called_count: Callable[[], int],
) -> None:
    """Check the deadline, the budgets and the failures now and every second; call `stop` with the reason and return.

    `ends_at` is the deadline on the loop's clock.
    `over_budget` returns the error for a budget that is used up. `called_count` returns the number of images of the
    whole run that have been called for; percentages of failures refer to it.
    """
    while True:
        left_s = ends_at - anyio.current_time()
        reason = exceeded_bound(job, progress, left_s=left_s, called=called_count()) or over_budget()
        if reason is not None:
            stop(reason)
            return
        await anyio.sleep(_CHECK_EVERY_S)


def exceeded_bound(job: Job, progress: Progress, *, left_s: float, called: int) -> StoppedError | None:
    """Return the error for the first bound that is exceeded, or None. `left_s` is the time to the deadline."""
    if left_s <= 0:
        return StoppedError(f"the deadline of {job.deadline} has passed", code=ErrorCode.DEADLINE_REACHED)
    if job.max_failures is None:
        return None
    is_enough = job.tolerance.percent is None or called >= _MIN_CALLED
    if is_enough and job.tolerance.exceeded(failed=progress.failed, scored=called - progress.failed):
        return TooManyFailuresError(
            f"{pluralize(progress.failed, 'image')} failed, and --max-failures is {job.max_failures}; see "
            "`batchcl failures` for the reasons, and raise --max-failures"
        )
    return None
