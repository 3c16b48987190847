"""Virtual time, a service with a hidden capacity, and the line between a client and it.

An hour of service is a loop over a heap of events: nothing waits. Capacity is piecewise linear in time, so what could
have been served between two moments is exact.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

__all__ = [
    "BucketService",
    "Capacity",
    "Line",
    "Loop",
    "Meter",
    "QueueService",
    "RandomRefusals",
    "Service",
    "lognormal",
]

Act = Callable[..., object]

_TOKEN: Final = 1.0 - 1e-9
"""The sum of many small refills must not lose the token that it should have made."""


class Loop:
    """Runs what was scheduled, in order of time; `now` is the virtual clock, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Act, tuple[object, ...]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, act: Act, *args: object) -> None:
        """Call `act(*args)` at `when`."""
        heapq.heappush(self._events, (when, next(self._numbers), act, args))

    def run(self, until: float) -> None:
        """Go on to `until`; what is scheduled for later is left undone."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            self.now, _, act, args = pop(events)
            act(*args)
        self.now = until


class Capacity:
    """Images a second over time: linear between `points` of (seconds, tps); two at one moment are a step.

    Attributes:
        steps: when the capacity jumps, and the rates before and after.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._times = [at for at, _ in points]
        self._rates = [tps for _, tps in points]
        self._sums = [0.0]
        self.steps: list[tuple[float, float, float]] = []
        for (begin, low), (end, high) in itertools.pairwise(points):
            self._sums.append(self._sums[-1] + (end - begin) * (low + high) / 2)
            if begin == end and low != high:
                self.steps.append((begin, low, high))

    def tps(self, at: float) -> float:
        """The rate at a moment; the last one goes on for ever."""
        after = bisect_right(self._times, at)
        low = self._rates[after - 1]
        high = low if after == len(self._times) else self._rates[after]
        if low == high:
            return low
        begin, end = self._times[after - 1], self._times[after]
        return low + (high - low) * (at - begin) / (end - begin)

    def served_by(self, at: float) -> float:
        """Images that it could have served from 0 up to a moment."""
        after = bisect_right(self._times, at)
        before = after - 1
        return self._sums[before] + (at - self._times[before]) * (self._rates[before] + self.tps(at)) / 2


class Service(Protocol):
    """Takes a call in, or refuses it."""

    def arrive(self, now: float) -> float | None:
        """The seconds until the answer is ready; None when the call is refused for capacity."""
        ...


class BucketService:
    """A token bucket: what is over its rate is refused at once.

    Args:
        burst_s: seconds of its rate that the full bucket holds, but at least `burst_calls`.
        latency_s: draws the time that a call takes.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        latency_s: Callable[[], float],
        burst_s: float = 1.0,
        burst_calls: float = 1.0,
    ) -> None:
        self._capacity = capacity
        self._latency_s = latency_s
        self._burst_s = burst_s
        self._burst_calls = burst_calls
        self._tokens = max(burst_calls, burst_s * capacity.tps(0))
        self._served = 0.0

    def arrive(self, now: float) -> float | None:
        """Take a token, if there is one."""
        capacity = self._capacity
        served = capacity.served_by(now)
        burst = max(self._burst_calls, self._burst_s * capacity.tps(now))
        self._tokens = min(burst, self._tokens + served - self._served)
        self._served = served
        if self._tokens < _TOKEN:
            return None
        self._tokens -= 1
        return self._latency_s()


class QueueService:
    """One queue: calls wait instead of being refused, until `longest_s` of waiting stand in it."""

    def __init__(
        self, capacity: Capacity, *, latency_s: Callable[[], float], work: Callable[[], float], longest_s: float = 30.0
    ) -> None:
        self._capacity = capacity
        self._latency_s = latency_s
        self._work = work
        self._longest_s = longest_s
        self._free_at = 0.0

    def arrive(self, now: float) -> float | None:
        """Join the queue, unless it is too long."""
        begin = max(now, self._free_at)
        if begin - now > self._longest_s:
            return None
        self._free_at = begin + self._work() / self._capacity.tps(begin)
        return self._free_at - now + self._latency_s()


class RandomRefusals:
    """Refuses a share of all calls at random, whatever their rate, and passes the others on to `service`."""

    def __init__(self, service: Service, share: float, rng: random.Random) -> None:
        self._service = service
        self._share = share
        self._rng = rng

    def arrive(self, now: float) -> float | None:
        """Refuse by chance, or ask the service."""
        return None if self._rng.random() < self._share else self._service.arrive(now)


@dataclass(slots=True)
class Meter:
    """What one client got. The lists have an entry a second."""

    seconds: int
    sent: int = 0
    scored: int = 0
    throttled: int = 0
    lost: int = 0
    latency_s: float = 0.0
    scored_in: list[int] = field(init=False)
    throttled_in: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.scored_in = [0] * (self.seconds + 1)
        self.throttled_in = [0] * (self.seconds + 1)

    @property
    def throttled_share(self) -> float:
        """Refused calls of all calls, 0 to 1."""
        return self.throttled / self.sent if self.sent else 0.0


class Line:
    """Carries calls of one client to the service and the answers back; counts them where the service decides.

    Args:
        delay_s: draws the time of one way.
    """

    def __init__(self, loop: Loop, service: Service, meter: Meter, delay_s: Callable[[], float]) -> None:
        self._loop = loop
        self._service = service
        self._meter = meter
        self._delay_s = delay_s

    def call(self, answered: Callable[[bool, float], None]) -> None:
        """Send a call; `answered(accepted, sent_at)` follows."""
        self._meter.sent += 1
        now = self._loop.now
        self._loop.at(now + self._delay_s(), self._arrive, answered, now)

    def _arrive(self, answered: Callable[[bool, float], None], sent_at: float) -> None:
        now, meter = self._loop.now, self._meter
        takes_s = self._service.arrive(now)
        second = int(now)
        if takes_s is None:
            meter.throttled += 1
            meter.throttled_in[second] += 1
            self._loop.at(now + self._delay_s(), answered, False, sent_at)  # noqa: FBT003 - handed on
        else:
            meter.scored += 1
            meter.scored_in[second] += 1
            meter.latency_s += takes_s
            self._loop.at(now + takes_s + self._delay_s(), answered, True, sent_at)  # noqa: FBT003 - handed on


def lognormal(rng: random.Random, median: float, sigma: float, *, most: float = math.inf) -> Callable[[], float]:
    """Draws from a lognormal distribution, cut at `most`."""
    mu = math.log(median)
    return lambda: min(most, rng.lognormvariate(mu, sigma))
