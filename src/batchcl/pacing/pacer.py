"""The pace as the engine sees it: `acquire` before each call, then tell what became of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from aiolimiter import AsyncLimiter

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
    """Decides when the next call may go out. One task acquires; any may tell."""

    async def acquire(self) -> None:
        """Return when the next call may be sent. Being cancelled while waiting costs no turn."""
        ...

    def succeeded(self, *, sent_at: float | None = None) -> None:
        """A call that went out at `sent_at` (the loop's clock, s) has an answer that was not about capacity."""
        ...

    def throttled(self, *, sent_at: float, sudden: bool, downloads: bool = False) -> None:
        """A call that went out at `sent_at` was refused: for its rate, a `sudden` ramp, or S3's `downloads`."""
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

    async def acquire(self) -> None:
        """Return when the next call may be sent."""
        last_at = self._next_at
        while True:
            now = anyio.current_time()
            due_at = max(last_at + self._gap / self._controller.rate_tps, now - _CATCH_UP_S)
            if due_at <= now:
                break
            await anyio.sleep(max(_TICK_S, min(due_at - now, _LOOK_AGAIN_S)))
        if self._ceiling is not None:
            await self._ceiling.acquire()
        self._next_at = due_at
        self._gap = 1 + self._controller.jitter_share * self._rng.uniform(-1, 1)
        self._controller.sent(anyio.current_time())

    def succeeded(self, *, sent_at: float | None = None) -> None:
        """Let the rate grow, or fall where answers come late."""
        self._controller.succeeded(anyio.current_time(), sent_at=sent_at)

    def throttled(self, *, sent_at: float, sudden: bool, downloads: bool = False) -> None:
        """Let the rate fall."""
        self._controller.throttled(anyio.current_time(), sent_at=sent_at, sudden=sudden, downloads=downloads)

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

    def statistics(self) -> PacerStatistics:
        """No limit."""
        return PacerStatistics(float("inf"))
