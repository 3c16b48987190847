"""The pace as the engine sees it: `acquire` before each call, then report what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from aiolimiter import AsyncLimiter

from batchcl.pacing.controller import RateController

__all__ = ["AdaptivePacer", "Pacer", "PacerStatistics", "UnpacedPacer"]

_LOOK_AGAIN_S: Final = 0.1
"""A waiter looks again this often: the rate may have risen, or a turn may have been given back."""

_TICK_S: Final = 0.005
"""No sleep is shorter: at high rates, a few calls go out together rather than each after a wake-up of its own."""

_CATCH_UP_S: Final = 0.05
"""How much of a late wake-up may be caught up: timers are late by milliseconds, and the rate should hold on average."""


@dataclass(frozen=True, slots=True)
class PacerStatistics:
    """The pace just now."""

    rate_tps: float


class Pacer(Protocol):
    """Decides when the next call may go out. One task acquires; any may report.

    A call that has an answer is reported by `succeeded` or `throttled`, one that never reached the service by
    `unsent`. One without an answer says nothing about capacity and is not reported.
    """

    async def acquire(self) -> None:
        """Return when the next call may be sent. Being cancelled while waiting costs no turn."""
        ...

    def succeeded(self, *, sent_at: float) -> None:
        """A call that went out at `sent_at` (the loop's clock, s) has an answer that was not about capacity."""
        ...

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        """A call that went out at `sent_at` was refused, for the model's capacity or for another limit."""
        ...

    def sent(self) -> None:
        """A call goes out without waiting for its turn."""
        ...

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """The service was never asked in the turn taken at `sent_at`; `give_back` lets another call have it."""
        ...

    def statistics(self) -> PacerStatistics:
        """The pace just now."""
        ...


class AdaptivePacer:
    """Spaces calls evenly at the rate that a `RateController` finds, never above `max_tps`.

    The ceiling is an aiolimiter. A bucket of one call would lose what each late wake-up costs, so its bucket also
    holds 50 ms of calls: in any second at most `max_tps` + 5 % + 1 calls go out.
    """

    def __init__(self, controller: RateController, *, max_tps: float | None = None) -> None:
        self._controller = controller
        self._ceiling = None
        if max_tps is not None:
            bucket_calls = 1 + _CATCH_UP_S * max_tps
            self._ceiling = AsyncLimiter(bucket_calls, bucket_calls / max_tps)
        self._turn_at = 0.0

    async def acquire(self) -> None:
        """Return when the next call may be sent."""
        while True:
            now = anyio.current_time()
            due_at = max(self._turn_at + 1 / self._controller.rate_tps, now - _CATCH_UP_S)
            if due_at <= now:
                break
            await anyio.sleep(max(_TICK_S, min(due_at - now, _LOOK_AGAIN_S)))
        if self._ceiling is not None:
            await self._ceiling.acquire()
        self._turn_at = due_at
        self._controller.sent(anyio.current_time())

    def succeeded(self, *, sent_at: float) -> None:
        """Report an answer."""
        self._controller.succeeded(anyio.current_time(), sent_at=sent_at)

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        """Report a refusal."""
        self._controller.throttled(anyio.current_time(), sent_at=sent_at, by_model=by_model)

    def sent(self) -> None:
        """Count the call."""
        self._controller.sent(anyio.current_time())

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Forget the call; a turn that is given back makes the next one due earlier, and many are no burst."""
        self._controller.unsent(sent_at=sent_at)
        if give_back:
            self._turn_at -= 1 / self._controller.rate_tps

    def statistics(self) -> PacerStatistics:
        """The pace just now."""
        return PacerStatistics(self._controller.rate_tps)


class UnpacedPacer:
    """Never waits: for detectors without a limit, such as those of tests."""

    async def acquire(self) -> None:
        """Return at once, but let others run."""
        await anyio.lowlevel.checkpoint()

    def succeeded(self, *, sent_at: float) -> None:
        """Nothing to learn."""

    def throttled(self, *, sent_at: float, by_model: bool) -> None:
        """Nothing to learn."""

    def sent(self) -> None:
        """Nothing to count."""

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Nothing to give back."""

    def statistics(self) -> PacerStatistics:
        """No limit."""
        return PacerStatistics(float("inf"))
