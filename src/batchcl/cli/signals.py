"""Run something async until its end, a signal, or a second one."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

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
    error: BatchclError | None = None

    def on_signal(scope: anyio.CancelScope, *, by_user: bool) -> None:
        nonlocal error
        error = InterruptedRunError("interrupted by ^C") if by_user else StoppedError("ended by SIGTERM")
        scope.cancel()

    result = await _listening(work, on_signal)
    if error is not None:
        raise error
    return result[0]


async def _run(work: Callable[[Stopper], Awaitable[_T]]) -> _T:
    stopper = Stopper()

    def on_signal(scope: anyio.CancelScope, *, by_user: bool) -> None:
        if stopper.error is None:
            stopper.request("interrupted by ^C" if by_user else "ended by SIGTERM", by_user=by_user)
        else:
            stopper.hurry()
            scope.cancel()

    result = await _listening(partial(work, stopper), on_signal)
    if not result and stopper.error is not None:
        raise stopper.error
    return result[0]


class _OnSignal(Protocol):
    def __call__(self, scope: anyio.CancelScope, *, by_user: bool) -> None: ...


async def _listening(work: Callable[[], Awaitable[_T]], on_signal: _OnSignal) -> list[_T]:
    """Await `work` while each signal goes to `on_signal`; its result, or nothing where it was cancelled."""
    result: list[_T] = []
    error: BatchclError | None = None
    async with anyio.create_task_group() as group:
        await group.start(_listen, on_signal, group.cancel_scope)
        try:
            result.append(await work())
        except BatchclError as raised:
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    return result


async def _listen(
    on_signal: _OnSignal, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            on_signal(scope, by_user=number == signal.SIGINT)
