"""Whether answers come late because calls wait in a queue: a service that is over its capacity need not refuse.

Compares windows of calls by the mean of the logarithm, which a few slow images don't move much, with the best window
so far (the shortest round trip of BBR and TCP Vegas). A queue's length follows from the calls in flight, and so does
the time that it takes to drain. If the calls in flight only follow the calls sent, and stay there in the second half
of that time, there was no queue: the images are larger, and their latency is the new normal.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["DRAIN_SHARE", "LatencyWatch"]

DRAIN_SHARE: Final = 0.7
"""The share of the capacity that is used while a queue drains."""

_WINDOW_CALLS: Final = 30
_WINDOW_S: Final = 1.0
"""A window is no shorter, however many answers it has: after a client's own hiccup hundreds come at once, and late."""

_QUEUED: Final = math.log(3.0)
_FORGET_A_WINDOW: Final = 0.005
_DRAINED: Final = 0.9
_STILL_THERE: Final = (0.6, 0.85)  # of the calls that were in flight, around DRAIN_SHARE
_STEADY: Final = 0.9
_LEAST_S: Final = 1e-3


class LatencyWatch:
    """Fed with every answer; tells when a queue has been found, and while it drains."""

    def __init__(self) -> None:
        self._normal: float | None = None
        self._sum = 0.0
        self._count = 0
        self._since: float | None = None
        self._drain_until: float | None = None
        self._look_from = -math.inf
        self._queued_in_flight = 0
        self._half_at = math.inf
        self._in_flight_at_half: int | None = None
        self._no_queue = False

    @property
    def draining(self) -> bool:
        """Whether a queue was found that is not gone yet."""
        return self._drain_until is not None

    def answered(self, now: float, *, sent_at: float, in_flight: int) -> float | None:
        """An answer came. Returns the answers a second just now when a queue is found, None otherwise.

        Args:
            now: when it came.
            sent_at: when the call went out.
            in_flight: calls that are still without an answer.
        """
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until, self._since = None, None
            self._look_from, self._no_queue = now, self._stays(in_flight)
        if self._drain_until is not None and self._in_flight_at_half is None and now >= self._half_at:
            self._in_flight_at_half = in_flight
        if self._drain_until is not None or sent_at < self._look_from:
            return None
        if self._since is None:
            self._since, self._sum, self._count = now, 0.0, 0
            return None
        self._sum += math.log(max(_LEAST_S, now - sent_at))
        self._count += 1
        seconds = now - self._since
        if self._count < _WINDOW_CALLS or seconds < _WINDOW_S:
            return None
        mean, answers_tps = self._sum / self._count, self._count / seconds
        self._since, self._sum, self._count = now, 0.0, 0
        return self._judge(now, mean, answers_tps=answers_tps, in_flight=in_flight)

    def _stays(self, in_flight: int) -> bool:
        """Whether fewer calls are in flight only as fewer were sent: a queue becomes shorter and shorter, or grows."""
        least, most = _STILL_THERE
        as_sent = least * self._queued_in_flight < in_flight < most * self._queued_in_flight
        return as_sent and in_flight > _STEADY * (self._in_flight_at_half or 0)

    def _judge(self, now: float, mean: float, *, answers_tps: float, in_flight: int) -> float | None:
        """What a window with this mean of the logarithm, and so many answers a second, says."""
        if self._normal is None or mean < self._normal:
            self._normal = mean
        if mean < self._normal + _QUEUED:
            self._normal += _FORGET_A_WINDOW
            self._no_queue = False
            return None
        if self._no_queue:
            self._normal, self._no_queue = mean, False
            return None
        queued = max(0.0, in_flight - answers_tps * math.exp(self._normal))
        self._drain_until = now + _DRAINED * queued / (answers_tps * (1 - DRAIN_SHARE))
        self._half_at, self._in_flight_at_half = (now + self._drain_until) / 2, None
        self._queued_in_flight = in_flight
        return answers_tps
