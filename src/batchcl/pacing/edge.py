"""One limit in calls a second that nobody tells, found from refusals and kept at its edge. Pure arithmetic.

Between two refusals the service took just what it can take: calls sent minus calls refused, over the seconds between
them, *is* the capacity, whatever burst the service allows (the delivered rate of BBR, Cardwell et al., 2016). So a
refusal moves the estimate there instead of cutting blindly. The rate then starts one per cent below the estimate, is
back at it soon, probes a few per cent above it, and doubles every few seconds when no refusal comes: the plateau and
the convex growth of CUBIC (RFC 9438). Who is refused more seldom than others grows further before each refusal, and
who is refused early falls more, so that clients of one limit end with equal rates.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["FLOOR_TPS", "Edge"]

FLOOR_TPS: Final = 0.2

_BELOW: Final = 0.01
_RECOVERED: Final = 0.5
_PROBED: Final = 1.5
_ABOVE: Final = 0.04
_PERIOD_S: Final = 80.0
_PERIOD_POWER: Final = 0.75
_PERIOD_LEAST_S: Final = 2.0
_DOUBLING_START_S: Final = 1.0
_DOUBLING_LEAST_S: Final = 4.0
_DOUBLINGS_MOST: Final = 20.0
_TRUST_CALLS: Final = 60.0
_EARLY: Final = 0.04
_OVERSHOT: Final = 0.85
_HASTE: Final = 0.5
_HASTE_LEAST: Final = 0.25
_RISEN: Final = 1.15
_REACHED: Final = 0.7
_CALM: Final = 1.5
_MANY: Final = 5
_MANY_SHARE: Final = 0.2
_FALL_MOST: Final = 0.25
_SUDDEN: Final = 0.6
_QUEUED_SLOWER: Final = 3.0
_NEAR: Final = 0.2
_SLOWEST: Final = 8.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    sent_at: float
    number: int
    refused: int
    """How many had been refused before."""


class Edge:
    """The estimate of one limit, and the rate that follows from it.

    Args:
        start_tps: the first rate.
        known: whether `start_tps` is an estimate to probe from gently, rather than a guess to double from.
    """

    def __init__(self, start_tps: float, *, known: bool = False) -> None:
        self._limit_tps = start_tps if known else start_tps / (1 + _ABOVE)
        self._found = known
        self._haste = _HASTE_LEAST if known else 1.0  # there may be another number of units today
        self._age_s = self._period_s * (_RECOVERED if known else _PROBED)
        self._cut_at = -math.inf
        self._slowness = 1.0
        self._queues = False
        self._refused = 0
        self._last: _Refusal | None = None
        self._recent: deque[_Refusal] = deque(maxlen=_MANY)

    @property
    def limit_tps(self) -> float | None:
        """The limit, as far as it was found; None before the first refusal."""
        return self._limit_tps if self._found else None

    @property
    def _period_s(self) -> float:
        """Seconds from one probe to the next: shorter for higher rates, so that a like share of calls is refused."""
        return max(_PERIOD_LEAST_S, _PERIOD_S * self._haste / math.pow(self._limit_tps, _PERIOD_POWER))

    @property
    def _doubling_s(self) -> float:
        least_s = max(_DOUBLING_LEAST_S, self._period_s / 4) if self._found else _DOUBLING_START_S
        return least_s * self._slowness * (_QUEUED_SLOWER if self._queues else 1.0)

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        period_s = self._period_s
        phase = self._age_s / period_s
        if phase < _RECOVERED:
            share = 1 - _BELOW * (1 - phase / _RECOVERED)
        elif phase < _PROBED:
            share = 1 + _ABOVE * ((phase - _RECOVERED) / (_PROBED - _RECOVERED)) ** 2
        else:
            doublings = (self._age_s - _PROBED * period_s) / self._doubling_s
            share = (1 + _ABOVE) * math.exp2(min(_DOUBLINGS_MOST, doublings))
        return self._limit_tps * share

    def grow(self, seconds: float) -> None:
        """So long the rate was used without a refusal."""
        self._age_s += seconds

    def refused(self, now: float, *, sent_at: float, number: int) -> None:
        """The `number`th call, sent at `sent_at`, was refused."""
        before = self._last
        refusal = _Refusal(sent_at, number, self._refused)
        self._refused += 1
        self._recent.append(refusal)
        if self._falls(now):
            return
        if sent_at <= self._cut_at:
            return
        phase = self._age_s / self._period_s
        if not self._found or phase > _PROBED:
            reached_tps = self.rate_tps
            if reached_tps > _RISEN * self._limit_tps:
                self._haste = max(_HASTE_LEAST, self._haste * _HASTE)
            between_tps = self._limit_tps + _REACHED * (reached_tps - self._limit_tps)
            self._limit_tps = max(_OVERSHOT * reached_tps, between_tps) if self._found else _OVERSHOT * reached_tps
        else:
            if before is not None and sent_at > before.sent_at:
                taken = max(0, number - before.number - (refusal.refused - before.refused))
                weight = taken / (taken + _TRUST_CALLS)
                self._limit_tps += weight * (taken / (sent_at - before.sent_at) - self._limit_tps)
            if phase < 1:
                self._limit_tps *= 1 - _EARLY * (1 - phase)
            self._haste = min(1.0, self._haste * _CALM)
        self._last = refusal
        self._cut(now)

    def overrun(self, now: float, *, taken_tps: float) -> None:
        """Calls wait in a queue, of which `taken_tps` are answered a second."""
        if self._found and abs(taken_tps - self._limit_tps) < _NEAR * self._limit_tps:
            taken_tps = (taken_tps + self._limit_tps) / 2
        self._limit_tps = min(self.rate_tps, taken_tps)
        self._haste = 1.0
        self._queues = True
        self._last = None
        self._cut(now)

    def ramped_too_fast(self, now: float, *, sent_at: float) -> None:
        """A call sent at `sent_at` was refused for the ramp: go down, and up again more slowly."""
        if sent_at <= self._cut_at:
            return
        self._slowness = min(_SLOWEST, 2 * self._slowness)
        self._limit_tps = max(FLOOR_TPS, self.rate_tps * _SUDDEN / (1 + _ABOVE))
        self._age_s = self._period_s * _PROBED
        self._cut_at = now
        self._last = None

    def _falls(self, now: float) -> bool:
        """Whether so many of the last calls were refused that the limit must have fallen; if so, go there at once."""
        if len(self._recent) < _MANY:
            return False
        first, last = self._recent[0], self._recent[-1]
        calls, seconds = last.number - first.number, last.sent_at - first.sent_at
        refused = _MANY - 1
        if seconds <= 0 or refused < _MANY_SHARE * calls:
            return False
        taken_tps = (max(0, calls - refused) + 0.5) / seconds
        if taken_tps > 0.95 * self._limit_tps:
            return False
        self._limit_tps = max(taken_tps, self._limit_tps * _FALL_MOST)
        self._found = True
        self._last = last
        self._cut(now)
        return True

    def _cut(self, now: float) -> None:
        self._limit_tps = max(FLOOR_TPS, self._limit_tps)
        self._found = True
        self._cut_at = now
        self._age_s = 0.0
