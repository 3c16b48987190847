"""Run async work until it ends, or until signals end it.

Supervisors kill a process some time after their signal, so the first signal starts a time limit (`--grace`), after
which a thread ends the process, whatever hangs. ^C at a terminal has no limit: the user sees the
progress and may press it again.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, Protocol, TypeVar

import anyio
from anyio.abc import TaskStatus

from batchcl.cli.streams import set_footer, write_line
from batchcl.errors import BatchclError, ErrorCode, ExitCode, InterruptedRunError, StoppedError, UsageError
from batchcl.stop_signal import StopSignal

__all__ = ["GRACE_S", "SIGNALS", "run_until_first_signal", "run_until_signalled"]

if sys.platform == "win32":
    raise UsageError(
        "this command needs signals that Windows does not have; run it in WSL, or on Linux or macOS",
        code=ErrorCode.UNSUPPORTED_SYSTEM,
    )

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end a command in an orderly way; SIGHUP (a closed terminal) unless `nohup` ignores it."""

GRACE_S: Final = 25.0
"""Seconds; AWS Batch and Fargate kill 30 s after their signal."""

_EXIT_S: Final = 0.5

_T = TypeVar("_T")


def run_until_signalled(work: Callable[[StopSignal], Awaitable[_T]], *, grace_s: float) -> _T:
    """Run `work` in a new event loop and return its result, or raise its error.

    The first of `SIGNALS` drains the run within `grace_s`. The second cancels it at once, except that the stop of the
    model gets ten seconds. A closed terminal may send SIGHUP twice; that counts as one.
    """
    with ExitStack() as timers:  # also of what the event loop waits for at its end
        return anyio.run(_run, work, grace_s, timers)


async def run_until_first_signal(work: Callable[[], Awaitable[_T]]) -> _T:
    """Await `work` and return its result; the first of `SIGNALS` cancels it.

    Raises:
        InterruptedRunError: ^C.
        StoppedError: another signal.
    """
    error: BatchclError | None = None

    def on_signal(scope: anyio.CancelScope, number: signal.Signals) -> None:
        nonlocal error
        kind = InterruptedRunError if number is signal.SIGINT else StoppedError
        if error is None:
            error = kind(_reason(number), code=ErrorCode.INTERRUPTED)
            timers.callback(_end_process_after(GRACE_S, number).cancel)
        scope.cancel()

    with ExitStack() as timers:
        result = await _listening(work, on_signal)
    if error is not None:
        raise error
    return result[0]


async def _run(work: Callable[[StopSignal], Awaitable[_T]], grace_s: float, timers: ExitStack) -> _T:
    stop_signal = StopSignal()
    seen: set[signal.Signals] = set()

    def on_signal(scope: anyio.CancelScope, number: signal.Signals) -> None:
        is_repeated = number is signal.SIGHUP and number in seen
        seen.add(number)
        if stop_signal.error is None:
            limit_s = math.inf if number is signal.SIGINT and sys.stderr.isatty() else grace_s
            stop_signal.request(_reason(number), by_user=number is signal.SIGINT, limit_s=limit_s)
            if limit_s != math.inf:
                timers.callback(_end_process_after(limit_s, number, last_words=stop_signal.exit_message).cancel)
        elif not is_repeated:
            stop_signal.hurry()
            scope.cancel()

    result = await _listening(partial(work, stop_signal), on_signal)
    if not result and stop_signal.error is not None:  # the cancellation has replaced the run's own error
        text = "; ".join(filter(None, [str(stop_signal.error), stop_signal.exit_message()]))
        raise type(stop_signal.error)(text, code=stop_signal.error.code)
    return result[0]


class _OnSignal(Protocol):
    def __call__(self, scope: anyio.CancelScope, number: signal.Signals, /) -> None: ...


async def _listening(work: Callable[[], Awaitable[_T]], on_signal: _OnSignal) -> list[_T]:
    """Await `work` and pass signals to `on_signal`. Returns its result, or an empty list if it was cancelled."""
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
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    handled = [number for number in SIGNALS if not (is_nohup and number is signal.SIGHUP)]
    with anyio.open_signal_receiver(*handled) as signals:
        task_status.started()
        async for number in signals:
            on_signal(scope, number)


def _end_process_after(
    limit_s: float, number: signal.Signals, *, last_words: Callable[[], str] = str
) -> threading.Timer:
    """End the process with a sentence after `limit_s`, unless the timer is cancelled before."""

    def end() -> None:
        set_footer("")
        text = f"{_reason(number)}, and not finished after {limit_s:.0f} s; uncommitted images will be scored again"
        write_line("; ".join(filter(None, [text, last_words()])), event="error", level="error")
        os._exit(ExitCode.INTERRUPTED if number is signal.SIGINT else ExitCode.STOPPED)

    timer = threading.Timer(limit_s - _EXIT_S, end)
    timer.daemon = True
    timer.start()
    return timer


def _reason(number: signal.Signals) -> str:
    return "interrupted by ^C" if number is signal.SIGINT else f"ended by {number.name}"
