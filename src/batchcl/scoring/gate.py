"""Whether calls go out at all: not while the model isn't ready, nor while the service is out of order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from batchcl.errors import BatchclError, ModelNotReadyError, TransientError, UnreachableError
from batchcl.scoring.events import Notice, Observer
from batchcl.scoring.outages import Outages
from batchcl.scoring.seams import Recovery

__all__ = ["Gate"]

_OUTAGE_PAUSE_MAX_S: Final = 30.0


class Gate:
    """Open, until an error that concerns all calls closes it for as long as it takes to get over that.

    Args:
        recovery: gets over a model that isn't ready; an outage is sat out.
        observer: told when calls pause and when they go on.
        rng: for jitter.
        on_vain: told why calls can't go on.
    """

    def __init__(
        self, recovery: Recovery, *, observer: Observer, rng: random.Random, on_vain: Callable[[BatchclError], None]
    ) -> None:
        self._recovery = recovery
        self._observer = observer
        self._rng = rng
        self._on_vain = on_vain
        self._recovering = anyio.CancelScope()
        self._open = anyio.Event()
        self._open.set()
        self._resumed_at = float("-inf")
        self._pauses = 0
        self._outages = Outages()
        self._stopped = False

    async def passed(self) -> None:
        """Wait until it is open."""
        if not self._open.is_set():
            await self._open.wait()

    def heard(self) -> None:
        """The service has given a verdict on an image."""
        self._outages.answered()

    def succeeded(self) -> None:
        """The model has scored an image."""
        self._outages.answered()
        self._pauses = 0

    def blames_service(self, uri: str) -> bool:
        """Whether the call for an image has ended in a transient error as the service is out of order."""
        return self._outages.unanswered(uri, anyio.current_time())

    def close(self, error: ModelNotReadyError | TransientError, *, sent_at: float, tasks: TaskGroup) -> None:
        """Have one of `tasks` get over `error`; calls from before the last time it opened say nothing new."""
        if not self._open.is_set() or sent_at < self._resumed_at or self._stopped:
            return
        self._open = anyio.Event()
        self._pauses += 1
        self._observer.notice(Notice("paused", f"calls pause: {error}", {"code": error.code}))
        tasks.start_soon(self._recover, error)

    def stop(self) -> None:
        """No more calls will go out: end the wait for what would let them."""
        self._stopped = True
        self._recovering.cancel()

    async def _recover(self, error: ModelNotReadyError | TransientError) -> None:
        try:
            with self._recovering:
                if isinstance(error, TransientError):
                    await self._sit_out(error)
                else:
                    await self._recovery.recover(error, pauses=self._pauses)
                self._observer.notice(Notice("resumed", "calls go on"))
        except BatchclError as refusal:
            self._on_vain(refusal)
        self._resumed_at = anyio.current_time()
        self._open.set()

    async def _sit_out(self, error: TransientError) -> None:
        """Wait a little longer each time; no image pays with an attempt for an outage of the service."""
        now = anyio.current_time()
        if self._outages.is_hopeless(now):
            raise UnreachableError(
                f"the service has answered no call for {self._outages.lasted_s(now):.0f} s, the last error was: "
                f"{error}; check the endpoint and the network, and run again to continue"
            )
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * min(_OUTAGE_PAUSE_MAX_S, 2.0 ** (self._pauses - 1)))
