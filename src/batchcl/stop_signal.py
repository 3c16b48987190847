"""Ends a run early: first by draining it, then within seconds.

A request may have a time limit (`--grace`), because a supervisor kills the process soon after its signal. The limit is
divided: calls in flight may take until `CALLS`, writes to the output root until `STORE`, stopping the model until
`MODEL`, and the run's records until `RECORDS`. What takes longer is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from batchcl.errors import InterruptedRunError, StoppedError

__all__ = ["CALLS", "MODEL", "RECORDS", "STORE", "StopSignal"]

CALLS: Final = 0.4
STORE: Final = 0.64
MODEL: Final = 0.9
RECORDS: Final = 0.98
"""Shares of the time limit; of the default 25 s: 10, 16, 22.5 and 24.5 s."""


class StopSignal:
    """Requests the end of a `batchcl.run`. Call it in the run's event loop, for instance in a signal handler's task.

    `request` drains the run: calls in flight finish, what is done is kept, and the model is stopped if the run started
    it. `hurry` limits stopping the model to a few seconds; its caller also cancels the run.

    Attributes:
        on_abandoned: returns the message for a process that exits before the run ends: how the model is stopped.
    """

    def __init__(self) -> None:
        self._error: StoppedError | None = None
        self._hurried = False
        self._requested_at = 0.0
        self._limit_s = math.inf
        self.on_abandoned: Callable[[], str] = str
        self._on_request: list[Callable[[], None]] = []
        self._on_hurry: list[Callable[[], None]] = []

    def request(self, reason: str, *, by_user: bool = False, limit_s: float = math.inf) -> None:
        """Drain the run; later requests have no effect.

        Args:
            reason: message of the error that the run raises.
            by_user: for ^C, which has its own exit code.
            limit_s: seconds until the run must have ended.
        """
        if self._error is None:
            if limit_s != math.inf:
                self._requested_at, self._limit_s = anyio.current_time(), limit_s
            self._error = (InterruptedRunError if by_user else StoppedError)(reason)
            for callback in tuple(self._on_request):
                callback()

    def hurry(self) -> None:
        """Limit stopping the model to a few seconds."""
        self._hurried = True
        for callback in tuple(self._on_hurry):
            callback()

    def last_words(self) -> str:
        """The message for a process that exits now; may be empty."""
        return self.on_abandoned()

    @property
    def error(self) -> StoppedError | None:
        """The error that the run raises; None before a request."""
        return self._error

    def ends_at(self, share: float) -> float:
        """When `share` of the time limit has passed, on the event loop's clock; infinity without a limit."""
        return self._requested_at + share * self._limit_s

    @contextmanager
    def bounded(self, share: float, *, shield: bool = False, most_s: float = math.inf) -> Iterator[anyio.CancelScope]:
        """Cancel the block when `share` of the time limit has passed, or after `most_s` seconds."""
        with anyio.CancelScope(shield=shield, deadline=anyio.current_time() + most_s) as scope:

            def shorten() -> None:
                scope.deadline = min(scope.deadline, self.ends_at(share))

            with self.calling(shorten):
                yield scope

    @contextmanager
    def calling(self, on_request: Callable[[], None]) -> Iterator[None]:
        """Call `on_request` at a request during the block; at once if there was one before."""
        with _registered(self._on_request, on_request, already=self._error is not None):
            yield

    @contextmanager
    def calling_in_hurry(self, on_hurry: Callable[[], None]) -> Iterator[None]:
        """Call `on_hurry` at a `hurry` during the block; at once if there was one before."""
        with _registered(self._on_hurry, on_hurry, already=self._hurried):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block at a request, and raise `error`."""
        with anyio.CancelScope() as scope, self.calling(scope.cancel):
            yield
        if scope.cancelled_caught:
            assert self._error is not None
            raise self._error


@contextmanager
def _registered(callbacks: list[Callable[[], None]], callback: Callable[[], None], *, already: bool) -> Iterator[None]:
    callbacks.append(callback)
    try:
        if already:
            callback()
        yield
    finally:
        callbacks.remove(callback)
