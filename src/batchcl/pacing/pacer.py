"""The pace as the engine sees it: `acquire` before each call, then tell what became of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from aiolimiter import AsyncLimiter

from batchcl.bell import Bell
from batchcl.pacing.controller import RateController

__all__ = ["AdaptivePacer", "Pacer", "PacerStatistics", "UnpacedPacer"]

_LOOK_AGAIN_S: Final = 0.25
"""A waiter looks again this often, so that a rate that rises while it waits is heard."""

_TICK_S: Final = 0.005
"""No sleep is shorter: at high rates, a few calls go out together rather than each after a wake-up of its own."""

_CATCH_UP_S: Final = 0.05
"""How much of a late start may be caught up: timers are late by milliseconds, and the rate should hold on average."""


@dataclass(frozen=True, slots=True)
class PacerStatistics:
    """The pace just now."""

    rate_tps: float


class Pacer(Protocol):
    """Decides when the next call may go out. One task acquires; any may tell.

    Each call that goes out ends in one of `succeeded`, `throttled`, `lost` and `unsent`.
    """

    async def acquire(self) -> None:
        """Return when the next call may be sent. Being cancelled while waiting costs no turn."""
        ...

    def succeeded(self, *, sent_at: float | None = None) -> None:
        """A call that went out at `sent_at` (the loop's clock, s) has an answer that was not about capacity."""
        ...

    def throttled(self, *, sent_at: float, sudden: bool, downloads: bool = False) -> None:
        """A call that went out at `sent_at` was refused: for its rate, a `sudden` ramp, or S3's `downloads`."""
        ...

    def sent(self) -> None:
        """A call goes out without waiting for its turn."""
        ...

    def lost(self) -> None:
        """A call ended in a way that says nothing of the capacity: without an answer, or given up."""
        ...

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """The service was never asked in the turn taken at `sent_at`; `give_back` lets another call have it."""
        ...

    def statistics(self) -> PacerStatistics:
        """The pace just now."""
        ...


class AdaptivePacer:
    """Spaces calls at the rate that a `RateController` finds, never above `max_tps`: evenly, unless others call too.

    The ceiling is an aiolimiter of one call a period, which has no burst to spend.
    """

    def __init__(
        self, controller: RateController, *, max_tps: float | None = None, rng: random.Random | None = None
    ) -> None:
        self._controller = controller
        self._rng = rng or random.Random()  # noqa: S311 - spacing, no secret
        self._gap = 1.0
        self._ceiling = None if max_tps is None else AsyncLimiter(1, 1 / max_tps)
        self._next_at = 0.0
        self._turns_back = 0
        self._given_back = Bell()

    async def acquire(self) -> None:
        """Return when the next call may be sent."""
        while not self._turns_back:
            now = anyio.current_time()
            due_at = max(self._next_at + self._gap / self._controller.rate_tps, now - _CATCH_UP_S)
            if due_at <= now:
                self._next_at = due_at
                break
            await self._given_back.wait(at_most_s=max(_TICK_S, min(due_at - now, _LOOK_AGAIN_S)))
        else:
            self._turns_back -= 1
        if self._ceiling is not None:
            await self._ceiling.acquire()
        self._gap = 1 + self._controller.jitter_share * self._rng.uniform(-1, 1)
        self._controller.sent(anyio.current_time())

    def succeeded(self, *, sent_at: float | None = None) -> None:
        """Let the rate grow, or fall where answers come late."""
        self._controller.succeeded(anyio.current_time(), sent_at=sent_at)

    def throttled(self, *, sent_at: float, sudden: bool, downloads: bool = False) -> None:
        """Let the rate fall."""
        self._controller.throttled(anyio.current_time(), sent_at=sent_at, sudden=sudden, downloads=downloads)

    def sent(self) -> None:
        """Count it."""
        self._controller.sent(anyio.current_time())

    def lost(self) -> None:
        """Count it."""
        self._controller.lost()

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Forget that it was sent; what is given back may be used at once, but never many at a time."""
        self._controller.unsent(sent_at=sent_at)
        if give_back:
            most = max(1, math.floor(_CATCH_UP_S * self._controller.rate_tps))
            self._turns_back = min(self._turns_back + 1, most)
            self._given_back.ring()

    @property
    def learned_tps(self) -> float | None:
        """What the model takes, once it was found; None before."""
        return self._controller.learned_tps

    def statistics(self) -> PacerStatistics:
        """The pace just now."""
        return PacerStatistics(self._controller.rate_tps)


class UnpacedPacer:
    """Never waits: for detectors without a limit, such as those of tests."""

    async def acquire(self) -> None:
        """Return at once, but let others run."""
        await anyio.lowlevel.checkpoint()

    def succeeded(self, *, sent_at: float | None = None) -> None:
        """Nothing to learn."""

    def throttled(self, *, sent_at: float, sudden: bool, downloads: bool = False) -> None:
        """Nothing to learn."""

    def sent(self) -> None:
        """Nothing to count."""

    def lost(self) -> None:
        """Nothing to count."""

    def unsent(self, *, sent_at: float, give_back: bool) -> None:
        """Nothing to give back."""

    def statistics(self) -> PacerStatistics:
        """No limit."""
        return PacerStatistics(float("inf"))
