"""Paces calls: the engine awaits `acquire` before each call and then reports its result."""

from __future__ import annotations

from typing import Final, Protocol

import anyio
from aiolimiter import AsyncLimiter

from batchcl.events import Pace
from batchcl.pacing.controller import RateController

__all__ = ["AdaptivePacer", "Pacer"]

_RECHECK_S: Final = 0.1
"""Longest sleep of a waiting call: meanwhile the rate may have risen, or a turn may have been returned."""

_TICK_S: Final = 0.005
"""Shortest sleep: at high rates a few calls are sent together, which saves wake-ups."""

_CATCH_UP_S: Final = 0.05
"""How much delay of a wake-up is made up for: timers are milliseconds late, and the average rate should be exact."""


class Pacer(Protocol):
    """Decides when the next call may be sent. One task acquires; any task may report.

    Every response is reported by `succeeded` or `throttled`, and a call that did not reach the service by `unsent`. A
    call without a response says nothing about capacity and is not reported. `sent_at` is a time on the event loop's
    clock, in seconds.
    """

    async def acquire(self) -> None:
        """Return when the next call may be sent. A cancelled wait takes no turn."""
        ...

    def succeeded(self, *, sent_at: float) -> None:
        """Report a response, other than a refusal for capacity, to the call sent at `sent_at`."""
        ...

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        """Report that the call sent at `sent_at` was refused: for the model's capacity, or for another limit."""
        ...

    def sent(self) -> None:
        """Report a call that is sent without `acquire`."""
        ...

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Report that the call of `sent_at` did not reach the service; `give_back` returns its turn."""
        ...

    def pace(self) -> Pace:
        """The current rate and the capacity."""
        ...


class AdaptivePacer:
    """Spaces calls evenly at the rate of a `RateController`, and at most `max_tps` a second.

    The ceiling is an aiolimiter. With a bucket of one call each late wake-up would reduce the rate, so its bucket holds
    another 50 ms of calls: in any second at most `max_tps` + 5 % + 1 calls are sent.

    Attributes:
        controller: computes the rate; may be replaced before the first call.
    """

    def __init__(self, controller: RateController, *, max_tps: float | None = None) -> None:
        self.controller = controller
        self._ceiling = None
        if max_tps is not None:
            bucket_calls = 1 + _CATCH_UP_S * max_tps
            self._ceiling = AsyncLimiter(bucket_calls, bucket_calls / max_tps)
        self._turn_at = 0.0

    async def acquire(self) -> None:
        """Return when the next call may be sent."""
        while True:
            now = anyio.current_time()
            due_at = max(self._turn_at + 1 / self.controller.rate_tps, now - _CATCH_UP_S)
            if due_at <= now:
                break
            await anyio.sleep(max(_TICK_S, min(due_at - now, _RECHECK_S)))
        if self._ceiling is not None:
            await self._ceiling.acquire()
        self._turn_at = due_at
        self.controller.sent(anyio.current_time())

    def succeeded(self, *, sent_at: float) -> None:
        """Report a response."""
        self.controller.succeeded(anyio.current_time(), sent_at=sent_at)

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        """Report a refusal."""
        self.controller.throttled(anyio.current_time(), sent_at=sent_at, by_model=by_model)

    def sent(self) -> None:
        """Count the call."""
        self.controller.sent(anyio.current_time())

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Forget the call; a returned turn makes the next call due earlier, but many of them cause no burst."""
        self.controller.unsent(sent_at=sent_at)
        if give_back:
            self._turn_at -= 1 / self.controller.rate_tps

    def pace(self) -> Pace:
        """The current rate and the capacity."""
        return Pace(self.controller.rate_tps, self.controller.capacity_tps)
