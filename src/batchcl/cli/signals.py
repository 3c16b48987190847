"""Run something async until its end, a signal, or a second one."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

from batchcl.errors import BatchclError, InterruptedRunError, StoppedError
from batchcl.scoring.stopper import Stopper

__all__ = ["run_until_first_signal", "run_until_signalled"]

_T = TypeVar("_T")


def run_until_signalled(work: Callable[[Stopper], Awaitable[_T]]) -> _T:
    """Run `work` in a new event loop and return its result, or raise its error.

    The first SIGTERM or ^C drains. The second cancels at once, but for the stop of the model, which gets ten
    seconds. From the third on signals mean what they mean to any process.
    """
    return anyio.run(_run, work)


async def run_until_first_signal(work: Callable[[], Awaitable[_T]]) -> _T:
    """Await `work` and return its result; the first SIGTERM or ^C cancels it.

    Raises:
        InterruptedRunError: ^C.
        StoppedError: SIGTERM.
    """
    result: list[_T] = []
    error: BatchclError | None = None
    async with anyio.create_task_group() as group:

        async def listen(*, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
            nonlocal error
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for number in signals:
                    by_user = number == signal.SIGINT
                    error = InterruptedRunError("interrupted by ^C") if by_user else StoppedError("ended by SIGTERM")
                    group.cancel_scope.cancel()

        await group.start(listen)
        try:
            result.append(await work())
        except BatchclError as raised:
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    return result[0]


async def _run(work: Callable[[Stopper], Awaitable[_T]]) -> _T:
    stopper = Stopper()
    result: list[_T] = []
    error: BatchclError | None = None
    async with anyio.create_task_group() as group:
        await group.start(_listen, stopper, group.cancel_scope)
        try:
            result.append(await work(stopper))
        except BatchclError as raised:
            error = raised
        group.cancel_scope.cancel()
    if error is None and not result:
        error = stopper.error
    if error is not None:
        raise error
    return result[0]


async def _listen(
    stopper: Stopper, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            by_user = number == signal.SIGINT
            if stopper.error is None:
                stopper.request("interrupted by ^C" if by_user else "ended by SIGTERM", by_user=by_user)
            else:
                stopper.hurry()
                scope.cancel()
