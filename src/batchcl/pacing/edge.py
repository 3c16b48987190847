"""One limit in calls a second that nobody tells, found from refusals and kept at its edge. Pure arithmetic.

Between two refusals the service took just what it can take: calls sent minus calls refused, over the seconds between
them, *is* the capacity, whatever burst the service allows (the delivered rate of BBR, Cardwell et al., 2016). So a
refusal moves the estimate there instead of cutting blindly. The rate then starts one per cent below the estimate, is
back at it soon, probes a few per cent above it, and doubles every few seconds when no refusal comes: the plateau and
the convex growth of CUBIC (RFC 9438).

That holds for who is alone. One who is refused again and again before he has probed shares the limit with others, and
then everybody's exact estimate would only keep the shares as they are. So for half a minute at a time the rate climbs
and yields by AIMD (Chiu and Jain, 1989), small rates faster than large ones, which ends in equal shares. A rate that
is refused all the time yields little: others who don't yield at all must not drive it away altogether.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["FLOOR_TPS", "Edge"]

FLOOR_TPS: Final = 0.5
"""The lowest estimate: below it a change for the better would be noticed too late."""

# The curve of the rate after a refusal, in shares of the estimate, over a period of `_PERIOD_S / tps ** _PERIOD_POWER`:
# refusals then cost about half a per cent of the calls at 50 TPS and one at 3 TPS.
_BELOW: Final = 0.01
_RECOVERED: Final = 0.5  # periods until the rate is back at the estimate
_ABOVE: Final = 0.04
_PROBED: Final = 1.5  # periods until it is so much above it
_PERIOD_S: Final = 80.0
_PERIOD_POWER: Final = 0.75
_PERIOD_LEAST_S: Final = 2.0
_PERIOD_MOST_S: Final = 35.0
_PERIOD_PER_TPS_S: Final = 20.0  # shorter again below one unit's rate: such an estimate is likely to be too low
_DOUBLING_START_S: Final = 1.0
_DOUBLING_LEAST_S: Final = 4.0
_DOUBLINGS_MOST: Final = 20.0  # keeps an unlimited rate finite

# What a refusal does to the estimate.
_TRUST_CALLS: Final = 60.0  # a measurement over so many calls counts one half
_EARLY: Final = 0.04  # taken off when refused at once; less, the later in the period
_OVERSHOT: Final = 0.85  # of the rate that doubling had reached
_REACHED: Final = 0.7  # of the way there, when that wasn't far
_RISEN: Final = 1.15  # the limit is on the move: probe more often
_HASTE: Final = 0.5
_HASTE_LEAST: Final = 0.25
_CALM: Final = 1.5  # and less often again
_MANY: Final = 5  # refusals
_MANY_SHARE: Final = 0.35  # of the calls from the first to the last of them: the limit has fallen
_DENSE: Final = 3  # refusals at that share: it may have fallen
_FALL_MOST: Final = 0.25
_SUDDEN: Final = 0.6
_SLOWEST: Final = 8.0
_NEAR: Final = 0.2
_QUEUED_SLOWER: Final = 3.0  # a queue tells of itself late

# When the limit is taken for a shared one. Phases are in periods, and a refusal in time comes after phase 1.2 or so.
_TOO_EARLY: Final = 1.0
_IN_TIME: Final = 1.1
_IN_TIME_LEFT: Final = 0.5  # of the count of early refusals
_CROWDED: Final = 3.0  # early refusals
_UNSETTLED: Final = -1.0  # the count after a jump of the estimate, which may be refused early for itself
_MANY_SHARE_SHARED: Final = 0.75  # others' bursts look like a limit that falls
_FALL_MOST_SHARED: Final = 0.5

# How it is shared: climb by a share a second, yield by a share at a refusal.
_SHARED_S: Final = 30.0
_SHARED_AGAIN_S: Final = 10.0
_CLIMB_PER_S: Final = 0.01  # up to `_CLIMB_FULL_TPS`; above it less, so that small rates gain on large ones
_CLIMB_FULL_TPS: Final = 14.0
_CLIMB_POWER: Final = 0.4
_CLIMB_TPS_PER_S: Final = 0.02  # at least, for the same reason
_CLIMB_MOST_S: Final = 20.0  # then it doubles
_YIELD: Final = 0.1
_YIELD_FULL_S: Final = 4.0  # refused earlier than that, it yields in proportion

# When it is taken for one's own again: refused no earlier than this.
_QUIET_S: Final = 2.0
_QUIET_CALLS: Final = 10.0
_QUIET_CLIMBED: Final = 0.5  # of the time in which what was yielded is climbed again
_CLIMBED_S: Final = 10.0  # the rate climbed to counts as much as what was taken in so long
_ALONE_BELOW: Final = 0.98  # start below, so that one who is alone isn't refused early
_ALONE_CROWD: Final = 2.0  # one early refusal, and it is shared again


@dataclass(frozen=True, slots=True)
class _Refusal:
    sent_at: float
    number: int
    refused: int
    """How many had been refused before."""


def _taken_tps(before: _Refusal | None, refusal: _Refusal, expected_tps: float, *, doubt: float) -> float:
    """What was taken a second between two refusals; what was expected counts as much as `doubt` calls."""
    if before is None or refusal.sent_at <= before.sent_at:
        return expected_tps
    taken = max(0, refusal.number - before.number - (refusal.refused - before.refused))
    taken_tps = taken / (refusal.sent_at - before.sent_at)
    return expected_tps + taken / (taken + doubt) * (taken_tps - expected_tps)


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
        self._crowd = 0.0
        self._shared = False
        self._shared_until = -math.inf
        self._shared_from: _Refusal | None = None
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
        period_s = _PERIOD_S * self._haste / math.pow(self._limit_tps, _PERIOD_POWER)
        return max(_PERIOD_LEAST_S, min(_PERIOD_MOST_S, _PERIOD_PER_TPS_S * self._limit_tps, period_s))

    @property
    def _doubling_s(self) -> float:
        least_s = max(_DOUBLING_LEAST_S, self._period_s / 4) if self._found else _DOUBLING_START_S
        return least_s * self._slowness * (_QUEUED_SLOWER if self._queues else 1.0)

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        if self._shared:
            climbed = 1 + self._climb_per_s * min(_CLIMB_MOST_S, self._age_s)
            doublings = max(0.0, self._age_s - _CLIMB_MOST_S) / self._doubling_s
            return self._limit_tps * climbed * math.exp2(min(_DOUBLINGS_MOST, doublings))
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

    @property
    def shared(self) -> bool:
        """Whether others seem to use the limit too."""
        return self._shared

    @property
    def _climb_per_s(self) -> float:
        share_per_s = _CLIMB_PER_S * math.pow(min(1.0, _CLIMB_FULL_TPS / self._limit_tps), _CLIMB_POWER)
        return max(share_per_s, _CLIMB_TPS_PER_S / self._limit_tps)

    def grow(self, seconds: float) -> None:
        """So long the rate was used without a refusal."""
        self._age_s += seconds

    def refused(self, now: float, *, sent_at: float, number: int) -> None:
        """The `number`th call, sent at `sent_at`, was refused."""
        refusal = _Refusal(sent_at, number, self._refused)
        self._refused += 1
        self._recent.append(refusal)
        if self._falls(now) or sent_at <= self._cut_at:
            return
        if self._shared:
            self._yield(now, refusal)
        else:
            phase = self._age_s / self._period_s
            self._notice_others(now, phase, refusal)
            if not self._found or phase > _PROBED:
                self._settle()
            else:
                self._refine(refusal, phase)
        self._last = refusal
        self._cut(now)

    def _yield(self, now: float, refusal: _Refusal) -> None:
        """Leave a part of the rate to others, but little when refused all the time."""
        age_s = self._age_s
        self._limit_tps = self.rate_tps
        if now > self._shared_until:
            if self._is_quiet(age_s):
                self._be_alone(refusal)
                return
            self._shared_until, self._shared_from = now + _SHARED_AGAIN_S, refusal
        full_s = _YIELD_FULL_S * min(1.0, self._climb_per_s / _CLIMB_PER_S)
        self._limit_tps *= 1 - _YIELD * min(1.0, age_s / full_s)

    def _is_quiet(self, age_s: float) -> bool:
        """Whether a rate that has climbed for so long was refused as late as if nobody else took calls."""
        climbed_s = _QUIET_CLIMBED * _YIELD / self._climb_per_s
        return age_s > min(climbed_s, max(_QUIET_S, _QUIET_CALLS / self._limit_tps))

    def _be_alone(self, refusal: _Refusal) -> None:
        climbed_tps = self._limit_tps
        taken_tps = _taken_tps(self._shared_from, refusal, climbed_tps, doubt=_CLIMBED_S * climbed_tps)
        self._limit_tps = min(climbed_tps, _ALONE_BELOW * taken_tps)
        self._shared, self._crowd = False, _ALONE_CROWD

    def _settle(self) -> None:
        """The rate was doubling: it has passed the limit, nobody knows by how much."""
        reached_tps = self.rate_tps
        if reached_tps > _RISEN * self._limit_tps:
            self._haste = max(_HASTE_LEAST, self._haste * _HASTE)
        between_tps = self._limit_tps + _REACHED * (reached_tps - self._limit_tps)
        self._limit_tps = max(_OVERSHOT * reached_tps, between_tps) if self._found else _OVERSHOT * reached_tps
        self._crowd = min(self._crowd, _UNSETTLED)

    def _refine(self, refusal: _Refusal, phase: float) -> None:
        """Move to what was taken since the last refusal."""
        self._limit_tps = _taken_tps(self._last, refusal, self._limit_tps, doubt=_TRUST_CALLS)
        if phase < 1:
            self._limit_tps *= 1 - _EARLY * (1 - phase)
        self._haste = min(1.0, self._haste * _CALM)

    def _notice_others(self, now: float, phase: float, refusal: _Refusal) -> None:
        """Alone, a client is refused after it has probed; where refusals come before, others take calls too."""
        if phase < _TOO_EARLY:
            self._crowd += 1
        elif phase > _IN_TIME:
            self._crowd *= _IN_TIME_LEFT
        if self._crowd >= _CROWDED and not self._dense():
            self._shared, self._shared_until, self._shared_from = True, now + _SHARED_S, refusal

    def _dense(self) -> bool:
        """Whether the last refusals came so close together that the limit seems to fall."""
        if len(self._recent) < _DENSE:
            return False
        return _MANY_SHARE * (self._recent[-1].number - self._recent[-_DENSE].number) <= _DENSE - 1

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
        self._shared = False
        self._slowness = min(_SLOWEST, 2 * self._slowness)
        self._limit_tps = max(FLOOR_TPS, self.rate_tps * _SUDDEN / (1 + _ABOVE))
        self._age_s = self._period_s * _PROBED
        self._cut_at = now
        self._last = None

    def _falls(self, now: float) -> bool:
        """Whether so many of the last calls were refused that the limit must have fallen; if so, go there at once."""
        if len(self._recent) < _MANY:
            return False
        crowded = self._shared or now < self._shared_until + _SHARED_S
        first, last = self._recent[0], self._recent[-1]
        calls, seconds = last.number - first.number, last.sent_at - first.sent_at
        refused = _MANY - 1
        if seconds <= 0 or refused < (_MANY_SHARE_SHARED if crowded else _MANY_SHARE) * calls:
            return False
        taken_tps = (max(0, calls - refused) + 0.5) / seconds
        if taken_tps > 0.95 * self._limit_tps:
            return False
        all_refused = calls == refused
        most = _FALL_MOST_SHARED if crowded and not all_refused else _FALL_MOST
        self._limit_tps = max(taken_tps, self._limit_tps * most)
        self._crowd = min(self._crowd, _UNSETTLED)
        self._haste = _HASTE_LEAST  # it may have been too far
        self._found = True
        self._last = last
        self._cut(now)
        return True

    def _cut(self, now: float) -> None:
        self._limit_tps = max(FLOOR_TPS, self._limit_tps)
        self._found = True
        self._cut_at = now
        self._age_s = 0.0
