"""How a run is asked to end early: first gently, then in a hurry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from batchcl.errors import InterruptedRunError, StoppedError

__all__ = ["Stopper"]


class Stopper:
    """Given to `batchcl.run`. Call it from the run's event loop, for instance from a signal's task.

    The first `request` drains: calls in flight end, what is done is kept, the model that the run started is stopped.
    `hurry` bounds that stop to seconds; whoever calls it also cancels the run.
    """

    def __init__(self) -> None:
        self._error: StoppedError | None = None
        self._hurried = False
        self._on_request: list[Callable[[], None]] = []
        self._on_hurry: list[Callable[[], None]] = []

    def request(self, reason: str, *, by_user: bool = False) -> None:
        """Ask for the drain; `by_user` for ^C, which has an exit code of its own. Later requests change nothing."""
        if self._error is None:
            self._error = (InterruptedRunError if by_user else StoppedError)(reason)
            for act in tuple(self._on_request):
                act()

    def hurry(self) -> None:
        """Give the model's stop a few seconds only."""
        self._hurried = True
        for act in tuple(self._on_hurry):
            act()

    @property
    def error(self) -> StoppedError | None:
        """What the run raises for the request; None while there was none."""
        return self._error

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
