"""Clients that keep so many calls in flight: what a pool of threads or a semaphore does."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from pacing_peers.world import Line, Loop, Meter

__all__ = ["AimdConcurrency", "Call", "FullJitter", "Retries", "Workers"]

_LOOK_AGAIN_S: Final = 0.05
"""Who waits hears soon of a rate that has changed."""


@dataclass(slots=True)
class Call:
    """One image of a worker: how often it was tried, and what the retries keep of it."""

    attempts: int = 1
    context: dict[str, Any] = field(default_factory=dict)


class Retries(Protocol):
    """What a client does about refusals."""

    def wait_s(self) -> float:
        """Seconds to wait before sending; asked again after that, and 0 takes the turn."""
        ...

    def answered(self, call: Call) -> None:
        """The call came back with an answer."""
        ...

    def refused(self, call: Call) -> float | None:
        """Seconds until the call is tried again; None where the image is given up."""
        ...


class FullJitter:
    """Waits a random time up to a bound that doubles, and never gives up (AWS Architecture Blog, 2015)."""

    _BASE_S: Final = 0.1
    _MOST_S: Final = 20.0

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def wait_s(self) -> float:
        """Send at once."""
        return 0.0

    def answered(self, call: Call) -> None:
        """Nothing to keep."""

    def refused(self, call: Call) -> float | None:
        """Wait up to the bound."""
        return self._rng.uniform(0, min(self._MOST_S, self._BASE_S * 2.0 ** min(call.attempts, 20)))


class Workers:
    """`count` workers, each with one call at a time, from `from_s` to `to_s`."""

    def __init__(
        self,
        loop: Loop,
        line: Line,
        meter: Meter,
        retries: Retries,
        *,
        count: int,
        from_s: float = 0.0,
        to_s: float = float("inf"),
    ) -> None:
        self._loop = loop
        self._line = line
        self._meter = meter
        self._retries = retries
        self._to_s = to_s
        self._waiting: deque[Call] = deque()
        for number in range(count):
            loop.at(from_s + 0.01 * number, self._send, Call())

    def _send(self, call: Call) -> None:
        self._waiting.append(call)
        if len(self._waiting) == 1:
            self._turn()

    def _turn(self) -> None:
        """Send what waits, in order: of threads that wait for one token at a time, it doesn't matter who gets it."""
        while self._waiting:
            wait_s = self._retries.wait_s()
            if wait_s > 0:
                self._loop.at(self._loop.now + min(wait_s, _LOOK_AGAIN_S), self._turn)
                return
            call = self._waiting.popleft()
            if self._loop.now < self._to_s:
                self._line.call(partial(self._answered, call))

    def _answered(self, call: Call, accepted: bool, _sent_at: float) -> None:
        if accepted:
            self._retries.answered(call)
            self._send(Call())
            return
        delay_s = self._retries.refused(call)
        if delay_s is None:
            self._meter.lost += 1
            self._send(Call())
            return
        call.attempts += 1
        self._loop.at(self._loop.now + delay_s, self._send, call)


class AimdConcurrency:
    """AIMD on the calls in flight, as Netflix's concurrency-limits does it: one more a round, times 0.9."""

    _MOST: Final = 256

    def __init__(self, loop: Loop, line: Line) -> None:
        self._loop = loop
        self._line = line
        self._limit = 4.0
        self._in_flight = 0
        self._cut_at = -1.0
        loop.at(loop.now, self._fill)

    def _fill(self) -> None:
        while self._in_flight < int(self._limit):
            self._in_flight += 1
            self._line.call(self._answered)

    def _answered(self, accepted: bool, sent_at: float) -> None:
        self._in_flight -= 1
        if accepted:
            self._limit = min(self._MOST, self._limit + 1 / self._limit)
        elif sent_at > self._cut_at:
            self._cut_at = self._loop.now
            self._limit = max(1.0, 0.9 * self._limit)
        self._fill()
