"""Ends a run early: first by draining it, then within seconds.

A request may have a time limit (`--grace`), because a supervisor kills the process soon after its signal. The limit is
divided: calls in flight may take until `CALLS`, writes to the output root until `STORE`, stopping the model until
`MODEL`, and the run's records until `RECORDS`. What takes longer is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Final

import anyio

from batchcl.errors import ErrorCode, InterruptedRunError, StoppedError

__all__ = ["CALLS", "MODEL", "RECORDS", "STORE", "StopSignal"]

CALLS: Final = 0.4
STORE: Final = 0.64
MODEL: Final = 0.9
RECORDS: Final = 0.98
"""Shares of the time limit; of the default 25 s: 10, 16, 22.5 and 24.5 s."""


_MAX_RESERVE: Final = 0.1


class StopSignal:
    """Requests the end of a run. Pass it to `run` or `retry`, and call its methods from any thread.

    `request` drains the run: calls in flight finish, what is done is kept, and the model is stopped if the run started
    it. `hurry` limits stopping the model to a few seconds; its caller also cancels the run.

    Attributes:
        reserve_s: seconds of the time limit to reserve for work after the run; at most a tenth of the limit.
        on_abandoned: returns the message for a process that exits before the run ends: how the model is stopped.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._error: StoppedError | None = None
        self._hurried = False
        self._requested_at: float | None = None
        self._limit_s = math.inf
        self.reserve_s = 0.0
        self.on_abandoned: Callable[[], str] = str
        self._on_request: list[_Callback] = []
        self._on_hurry: list[_Callback] = []

    def request(self, reason: str, *, by_user: bool = False, limit_s: float = math.inf) -> None:
        """Drain the run; later requests have no effect.

        Args:
            reason: message of the error that the run raises.
            by_user: for ^C, which has its own exit code.
            limit_s: seconds until the run must have ended.
        """
        with self._lock:
            if self._error is not None:
                return
            self._limit_s = limit_s
            self._requested_at = anyio.current_time() if _running_loop() is not None else None
            self._error = (InterruptedRunError if by_user else StoppedError)(reason, code=ErrorCode.INTERRUPTED)
        _call_all(self._on_request)

    def hurry(self) -> None:
        """Limit stopping the model to a few seconds."""
        self._hurried = True
        _call_all(self._on_hurry)

    def exit_message(self) -> str:
        """The message for a process that exits now; may be empty."""
        return self.on_abandoned()

    @property
    def error(self) -> StoppedError | None:
        """The error that the run raises; None before a request."""
        return self._error

    @property
    def reserved_s(self) -> float:
        """Seconds at the end of the time limit that `ends_at` reserves for work after the run."""
        return min(self.reserve_s, _MAX_RESERVE * self._limit_s)

    def ends_at(self, share: float) -> float:
        """When `share` of the time limit has passed, on the event loop's clock; infinity without a limit."""
        if self._error is None or self._limit_s == math.inf:
            return math.inf
        if self._requested_at is None:  # the request came from a thread without an event loop
            self._requested_at = anyio.current_time()
        return self._requested_at + share * (self._limit_s - self.reserved_s)

    @contextmanager
    def bounded(self, share: float, *, shield: bool = False, max_s: float = math.inf) -> Iterator[anyio.CancelScope]:
        """Cancel the block when `share` of the time limit has passed, or after `max_s` seconds."""
        with anyio.CancelScope(shield=shield, deadline=anyio.current_time() + max_s) as scope:

            def shorten() -> None:
                scope.deadline = min(scope.deadline, self.ends_at(share))

            with self.calling(shorten):
                yield scope

    @contextmanager
    def calling(self, on_request: Callable[[], None]) -> Iterator[None]:
        """Call `on_request` in this event loop at a request during the block; at once if there was one before."""
        with _registered(self._on_request, on_request, was_called=lambda: self._error is not None):
            yield

    @contextmanager
    def calling_on_hurry(self, on_hurry: Callable[[], None]) -> Iterator[None]:
        """Call `on_hurry` at a `hurry` during the block; at once if there was one before."""
        with _registered(self._on_hurry, on_hurry, was_called=lambda: self._hurried):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block at a request, and raise `error`."""
        with anyio.CancelScope() as scope, self.calling(scope.cancel):
            yield
        if scope.cancelled_caught:
            assert self._error is not None
            raise self._error


@dataclass(frozen=True, slots=True, eq=False)
class _Callback:
    """`act`, to be called in `loop` from whichever thread."""

    loop: asyncio.AbstractEventLoop | None
    act: Callable[[], None]


@contextmanager
def _registered(
    callbacks: list[_Callback], act: Callable[[], None], *, was_called: Callable[[], bool]
) -> Iterator[None]:
    callback = _Callback(_running_loop(), act)
    callbacks.append(callback)
    try:
        if was_called():  # checked after the registration: a request from another thread is not missed
            act()
        yield
    finally:
        callbacks.remove(callback)


def _call_all(callbacks: list[_Callback]) -> None:
    here = _running_loop()
    for callback in tuple(callbacks):
        if callback.loop in (None, here):
            callback.act()
        else:
            with suppress(RuntimeError):  # the loop is closed: the run has ended
                callback.loop.call_soon_threadsafe(_call_if_registered, callbacks, callback)


def _call_if_registered(callbacks: list[_Callback], callback: _Callback) -> None:
    if callback in callbacks:
        callback.act()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
