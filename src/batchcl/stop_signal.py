"""How a run is asked to end early: first gently, then in a hurry.

A request may have a time limit, as from the signal of a supervisor that kills soon afterwards. It is divided: calls in
flight have `CALLS` of it, the output root has until `STORE`, the stop of the model until `MODEL`, and the records of
the run until `RECORDS`. What is not over by then is given up, in this order.
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

from batchcl.errors import InterruptedRunError, StoppedError

__all__ = ["CALLS", "MODEL", "RECORDS", "STORE", "StopSignal"]

CALLS: Final = 0.4
STORE: Final = 0.64
MODEL: Final = 0.9
RECORDS: Final = 0.98
"""Shares of the time limit: 10, 16, 22.5 and 24.5 s of 25."""


class StopSignal:
    """Asks a run to end early. Pass it to a verb as `stop_signal`, and call it from any thread.

    The first `request` drains: calls in flight end, what is done is kept, the model that the run started is stopped.
    `hurry` bounds that stop to seconds; whoever calls it also cancels the run.

    Attributes:
        on_abandoned: returns what has to be reported if the process is ended with the run at work: who stops the model.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._error: StoppedError | None = None
        self._hurried = False
        self._requested_at: float | None = None
        self._limit_s = math.inf
        self.on_abandoned: Callable[[], str] = str
        self._on_request: list[_Callback] = []
        self._on_hurry: list[_Callback] = []

    def request(self, reason: str, *, by_user: bool = False, limit_s: float = math.inf) -> None:
        """Ask for the drain; later requests change nothing.

        Args:
            reason: of the error that the run raises.
            by_user: it is ^C, which has an exit code of its own.
            limit_s: the run gives up what is not over so long from now, such as the start of a model.
        """
        with self._lock:
            if self._error is not None:
                return
            self._limit_s = limit_s
            self._requested_at = anyio.current_time() if _running_loop() is not None else None
            self._error = (InterruptedRunError if by_user else StoppedError)(reason)
        _call_all(self._on_request)

    def hurry(self) -> None:
        """Give the model's stop a few seconds only."""
        self._hurried = True
        _call_all(self._on_hurry)

    def last_words(self) -> str:
        """What has to be reported if the process is ended now; empty for nothing."""
        return self.on_abandoned()

    @property
    def error(self) -> StoppedError | None:
        """What the run raises for the request; None while there was none."""
        return self._error

    def ends_at(self, share: float) -> float:
        """When `share` of the time limit is over, on the loop's clock; infinity without a limit or a request."""
        if self._error is None or self._limit_s == math.inf:
            return math.inf
        if self._requested_at is None:  # from a thread without a loop, a moment ago
            self._requested_at = anyio.current_time()
        return self._requested_at + share * self._limit_s

    @contextmanager
    def bounded(self, share: float, *, shield: bool = False, most_s: float = math.inf) -> Iterator[anyio.CancelScope]:
        """Cancel the block when `share` of the time limit is over, or after `most_s`."""
        with anyio.CancelScope(shield=shield, deadline=anyio.current_time() + most_s) as scope:

            def shorten() -> None:
                scope.deadline = min(scope.deadline, self.ends_at(share))

            with self.calling(shorten):
                yield scope

    @contextmanager
    def calling(self, on_request: Callable[[], None]) -> Iterator[None]:
        """Call `on_request` on this loop when the run is asked to end during the block, at once if it was before."""
        with _registered(self._on_request, on_request, was_called=lambda: self._error is not None):
            yield

    @contextmanager
    def calling_in_hurry(self, on_hurry: Callable[[], None]) -> Iterator[None]:
        """Likewise for `hurry`."""
        with _registered(self._on_hurry, on_hurry, was_called=lambda: self._hurried):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block when the run is asked to end, and raise `error`."""
        with anyio.CancelScope() as scope, self.calling(scope.cancel):
            yield
        if scope.cancelled_caught:
            assert self._error is not None
            raise self._error


@dataclass(frozen=True, slots=True, eq=False)
class _Callback:
    """`act`, to be called on `loop`, whichever thread asks for it."""

    loop: asyncio.AbstractEventLoop | None
    act: Callable[[], None]


@contextmanager
def _registered(
    callbacks: list[_Callback], act: Callable[[], None], *, was_called: Callable[[], bool]
) -> Iterator[None]:
    callback = _Callback(_running_loop(), act)
    callbacks.append(callback)
    try:
        if was_called():  # asked after the registration, so that a call from another thread is not missed
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
            with suppress(RuntimeError):  # the loop has ended, and the run with it
                callback.loop.call_soon_threadsafe(_call_if_registered, callbacks, callback)


def _call_if_registered(callbacks: list[_Callback], callback: _Callback) -> None:
    if callback in callbacks:
        callback.act()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
