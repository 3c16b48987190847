"""How a run is asked to end early: first gently, then in a hurry.

A request may have a time limit, as from the signal of a supervisor that kills soon afterwards. It is divided: calls in
flight have `CALLS` of it, the output root has until `STORE`, the stop of the model until `MODEL`, and the records of
the run until `RECORDS`. What is not over by then is given up, in this order.
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
"""Shares of the time limit: 10, 16, 22.5 and 24.5 s of 25."""


class StopSignal:
    """Given to `batchcl.run`. Call it from the run's event loop, for instance from a signal's task.

    The first `request` drains: calls in flight end, what is done is kept, the model that the run started is stopped.
    `hurry` bounds that stop to seconds; whoever calls it also cancels the run.

    Attributes:
        on_abandoned: returns what has to be reported if the process is ended with the run at work: who stops the model.
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
        """Ask for the drain; later requests change nothing.

        Args:
            reason: of the error that the run raises.
            by_user: it is ^C, which has an exit code of its own.
            limit_s: the run gives up what is not over so long from now, such as the start of a model.
        """
        if self._error is None:
            if limit_s != math.inf:
                self._requested_at, self._limit_s = anyio.current_time(), limit_s
            self._error = (InterruptedRunError if by_user else StoppedError)(reason)
            for act in tuple(self._on_request):
                act()

    def hurry(self) -> None:
        """Give the model's stop a few seconds only."""
        self._hurried = True
        for act in tuple(self._on_hurry):
            act()

    def last_words(self) -> str:
        """What has to be reported if the process is ended now; empty for nothing."""
        return self.on_abandoned()

    @property
    def error(self) -> StoppedError | None:
        """What the run raises for the request; None while there was none."""
        return self._error

    def ends_at(self, share: float) -> float:
        """When `share` of the time limit is over, on the loop's clock; infinity without a limit or a request."""
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
        """Call `on_request` when the run is asked to end during the block, at once if it was before."""
        with _registered(self._on_request, on_request, already=self._error is not None):
            yield

    @contextmanager
    def calling_in_hurry(self, on_hurry: Callable[[], None]) -> Iterator[None]:
        """Likewise for `hurry`."""
        with _registered(self._on_hurry, on_hurry, already=self._hurried):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block when the run is asked to end, and raise `error`."""
        with anyio.CancelScope() as scope, self.calling(scope.cancel):
            yield
        if scope.cancelled_caught:
            assert self._error is not None
            raise self._error


@contextmanager
def _registered(actions: list[Callable[[], None]], act: Callable[[], None], *, already: bool) -> Iterator[None]:
    actions.append(act)
    try:
        if already:
            act()
        yield
    finally:
        actions.remove(act)
