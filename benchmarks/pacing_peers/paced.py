"""A client that sends by a rate: batchcl's controller, the oracle, and AIMD on the rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pacing_peers.world import Capacity, Line, Loop

__all__ = ["AimdRate", "Oracle", "Pace", "Paced"]

_LOOK_AGAIN_S: Final = 0.1


class Pace(Protocol):
    """What decides about the rate: `batchcl.pacing.controller.RateController` is one."""

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        ...

    def sent(self, now: float) -> None:
        """A call went out."""
        ...

    def succeeded(self, now: float, *, sent_at: float) -> None:
        """A call came back with an answer."""
        ...

    def throttled(self, now: float, *, sent_at: float) -> None:
        """A call was refused."""
        ...


class Paced:
    """Sends evenly spaced calls at a pace, at most `most_in_flight` at once; what is refused is sent again."""

    def __init__(self, loop: Loop, line: Line, pace: Pace, *, most_in_flight: int = 256) -> None:
        self._loop = loop
        self._line = line
        self._pace = pace
        self._most = most_in_flight
        self._in_flight = 0
        self._last_at = loop.now
        self._waits = False
        loop.at(loop.now, self._turn)

    def _turn(self) -> None:
        now, pace = self._loop.now, self._pace
        while (due_at := max(self._last_at + 1 / pace.rate_tps, now - 0.05)) <= now:
            if self._in_flight >= self._most:
                self._waits = True
                return
            self._last_at = due_at
            self._in_flight += 1
            pace.sent(now)
            self._line.call(self._answered)
        self._loop.at(min(due_at, now + _LOOK_AGAIN_S), self._turn)

    def _answered(self, accepted: bool, sent_at: float) -> None:
        self._in_flight -= 1
        if accepted:
            self._pace.succeeded(self._loop.now, sent_at=sent_at)
        else:
            self._pace.throttled(self._loop.now, sent_at=sent_at)
        if self._waits:
            self._waits = False
            self._turn()


class Oracle(Pace):
    """Knows the capacity, and sends just that."""

    def __init__(self, loop: Loop, capacity: Capacity) -> None:
        self._now: Callable[[], float] = lambda: loop.now
        self._capacity = capacity

    @property
    def rate_tps(self) -> float:
        """The capacity just now."""
        return self._capacity.tps(self._now())

    def sent(self, now: float) -> None:
        """Nothing to learn."""

    def succeeded(self, now: float, *, sent_at: float) -> None:
        """Nothing to learn."""

    def throttled(self, now: float, *, sent_at: float) -> None:
        """Nothing to learn."""


class AimdRate(Pace):
    """AIMD on the rate (Chiu and Jain, 1989): doubling a second up to the first refusal, 3 % later, times 0.85."""

    def __init__(self) -> None:
        self._tps = 5.0
        self._slow_start = True
        self._grown_at = 0.0
        self._cut_at = -1.0

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        return self._tps

    def sent(self, now: float) -> None:
        """Nothing to learn."""

    def succeeded(self, now: float, *, sent_at: float) -> None:
        """Grow."""
        since = min(now - self._grown_at, 1.0)
        self._grown_at = now
        share = 1.0 if self._slow_start else 0.03
        self._tps += max(0.1, share * self._tps) * since

    def throttled(self, now: float, *, sent_at: float) -> None:
        """Fall, unless the call is older than the last fall."""
        if sent_at > self._cut_at:
            self._slow_start = False
            self._cut_at = self._grown_at = now
            self._tps = max(0.2, self._tps * 0.85)
