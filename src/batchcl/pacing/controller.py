"""Controls the request rate by successes and refusals only. Pure computation: every method takes `now`.

The service publishes no limit. A run first doubles its rate every two seconds. The first refusal ends that phase: the
rate of accepted calls in the last seconds is taken as the capacity (the delivery rate of BBR, Cardwell et al., 2016),
and the rate then follows CUBIC's curve (RFC 9438): it is cut to a little below the capacity, returns to it soon, stays
there for a while, then grows faster and faster until the next refusal. Near a limit, calls are refused in proportion to
their number; so of two runs the faster one is cut more often and the slower one recovers sooner, and their rates
converge.

Refusals that do not depend on the rate must not reduce it. Right after a cut the rate is below the limit, where few
calls are refused. If refusals continue there for a while, their share is the chance of a random refusal, and the rate
is cut only if more calls are refused than chance explains.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["FLOOR_TPS", "START_TPS", "RateController"]

START_TPS: Final = 5.0
"""The first rate without a learned one: slightly less than the capacity of two inference units (pricing page)."""

FLOOR_TPS: Final = 0.5
"""The lowest rate: a lower one would detect rising capacity too late."""

# Tuned on the traces of benchmarks/pacing.py with seeds 1 to 4.
_DOUBLING_S: Final = 2.0  # time to double the first rate; with 1 s more calls are refused before the first cut
_WINDOW_S: Final = 4.0  # over which rates are measured; a longer window is wrong after a step of the capacity
_CUT: Final = 0.08  # below the capacity: with less, two runs converge slowly; with more, capacity is unused
_RECOVERY_S: Final = 3.4  # from a cut back to a capacity of one call a second; shorter means more refusals
_RECOVERY_POWER: Final = 0.15  # recovery time ~ capacity ** this: 5 s at 14 calls a second; 0 is unfair to slow runs
_PAUSE_S: Final = 1.0  # minimum between two cuts: a round trip, so that the first one takes effect
_PAUSE_CALLS: Final = 5  # minimum calls between two cuts, or clients without backoff starve a slow run
_USED: Final = 0.5  # the rate grows only if at least this share of it is used: an idle hour must not end in a burst

_CHANCE_MOST: Final = 0.15  # a larger share of refusals is never chance; the first doubling continues up to it
_CHANCE_MEMORY_S: Final = 90.0  # over which chance is measured; with more, another run's refusals count as chance
_CHANCE_DOUBT: Final = 2.0  # standard deviations subtracted from the measured share, as a few refusals prove little
_CHANCE_SPREAD: Final = 3.0  # standard deviations above the share that are still chance

_LATE_S: Final = 15.0
"""A response after this time means that calls are queued: a quarter of a call's deadline."""


class RateController:
    """Computes the request rate, in calls a second, from the results of the calls so far.

    Args:
        start_tps: the first rate.
        learned: `start_tps` was measured recently, so the rate grows slowly from it; otherwise it doubles every two
            seconds until the first cut.
        ceiling_tps: the maximum rate.
    """

    def __init__(self, *, start_tps: float = START_TPS, learned: bool = False, ceiling_tps: float = math.inf) -> None:
        self._ceiling_tps = ceiling_tps
        self._rate_tps = self._capacity_tps = max(FLOOR_TPS, start_tps)
        self._doubling = not learned
        self._recovery_s = _recovery_s(self._capacity_tps)  # from a cut back to the capacity
        self._age_s = self._recovery_s  # position on the curve: seconds since the cut in which the rate was used
        self._cut_at = -math.inf
        self._begun_at = math.inf
        self._sent: deque[float] = deque()  # since the last cut
        self._refused: deque[float] = deque()
        self._answered: deque[float] = deque()
        self._late = False
        self._chance = 0.0
        self._measured_at = 0.0
        self._measured_calls = self._measured_refused = 0.0
        self._below_limit = False
        self._below_calls = self._below_refused = 0
        self._answered_since_cut = False
        self._found_tps: float | None = None
        self._learned_tps = start_tps if learned else None
        self._sustained_tps = 0.0

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        rate_tps = self._rate_tps
        if self._late:
            rate_tps = min(rate_tps, (1 - _CUT) * len(self._answered) / _WINDOW_S)
        return min(self._ceiling_tps, max(FLOOR_TPS, rate_tps))

    @property
    def measured_tps(self) -> float | None:
        """The model's capacity as measured at the last cut; None before one."""
        return self._found_tps

    @property
    def capacity_tps(self) -> float | None:
        """The model's capacity as measured at the last cut, or else recently; None if unknown."""
        return self._learned_tps if self._found_tps is None else self._found_tps

    @property
    def sustained_tps(self) -> float | None:
        """The most responses a second over a whole window; None before the first window has passed."""
        return self._sustained_tps or None

    def sent(self, now: float) -> None:
        """Report that a call is sent."""
        self._begun_at = min(self._begun_at, now)
        elapsed_s = now - (self._sent[-1] if self._sent else max(self._cut_at, self._begun_at))
        self._sent.append(now)
        self._trim(now)
        if self._below_limit:
            self._below_calls += 1
            if self._age_s > self._recovery_s / 2:
                self._measure_chance(now)
        ended = len(self._answered) + len(self._refused)
        if not self._late and ended >= _USED * self._rate_tps * min(_WINDOW_S, now - self._begun_at):
            self._grow(min(1.0, elapsed_s))

    def succeeded(self, now: float, *, sent_at: float) -> None:
        """Report a response, other than a refusal for capacity, to the call sent at `sent_at`."""
        self._answered.append(now)
        self._answered_since_cut |= sent_at > self._cut_at
        self._late = now - sent_at > _LATE_S
        self._trim(now)
        if self._answered[0] < now - 0.9 * _WINDOW_S:
            self._sustained_tps = max(self._sustained_tps, min(self._rate_tps, len(self._answered) / _WINDOW_S))

    def throttled(self, now: float, *, sent_at: float, by_model: bool = True) -> None:
        """Report that a call was refused for capacity.

        Args:
            now: time of the refusal.
            sent_at: when the call was sent; refusals of calls from before the last cut are ignored.
            by_model: for the model's capacity, not for S3's limit or a sudden increase.
        """
        if sent_at <= self._cut_at:
            return
        self._refused.append(sent_at)
        self._trim(now)
        self._below_refused += self._below_limit
        expected = len(self._sent) * (_CHANCE_MOST if self._doubling else self._chance)
        is_unlikely = len(self._refused) > expected + _CHANCE_SPREAD * math.sqrt(expected)
        has_paused = now - self._cut_at >= _PAUSE_S and len(self._sent) >= _PAUSE_CALLS
        if is_unlikely and (self._doubling or has_paused):
            self._cut(now, by_model=by_model)

    def unsent(self, *, sent_at: float) -> None:
        """Report that the call sent at `sent_at` did not reach the service."""
        if self._sent and sent_at >= self._sent[0]:
            self._sent.pop()

    def _grow(self, elapsed_s: float) -> None:
        if self._rate_tps >= self._ceiling_tps:
            return
        if self._doubling:
            self._rate_tps *= 2 ** (elapsed_s / _DOUBLING_S)
        else:
            self._age_s += elapsed_s
            self._rate_tps = self._capacity_tps * (1 + _CUT * (self._age_s / self._recovery_s - 1) ** 3)

    def _cut(self, now: float, *, by_model: bool) -> None:
        """Set the capacity to the accepted rate of the window, and the rate below it."""
        self._measure_chance(now)
        sent, self._capacity_tps = self._sent, self._rate_tps
        if len(sent) > 1 and sent[-1] > sent[0]:
            sent_tps = (len(sent) - 1) / (sent[-1] - sent[0])
            accepted_tps = sent_tps * (1 - len(self._refused) / len(sent)) / (1 - self._chance)
            self._capacity_tps = max(FLOOR_TPS, min(self._rate_tps, accepted_tps))
        self._recovery_s = _recovery_s(self._capacity_tps)
        if by_model and self._answered_since_cut:
            self._found_tps = self._capacity_tps
        self._doubling, self._below_limit, self._answered_since_cut = False, True, False
        self._age_s = 0.0
        self._rate_tps = self._capacity_tps * (1 - _CUT)
        self._cut_at = now
        self._sent.clear()
        self._refused.clear()

    def _measure_chance(self, now: float) -> None:
        """Update the chance of a random refusal by the calls since the last cut, which were below the limit.

        They are ignored if so many were refused that the limit must have fallen.
        """
        if self._below_limit and self._below_refused <= 2 + _CHANCE_MOST * self._below_calls:
            decay = math.exp((self._measured_at - now) / _CHANCE_MEMORY_S)
            self._measured_calls = decay * self._measured_calls + self._below_calls
            self._measured_refused = decay * self._measured_refused + self._below_refused
            lower_bound = self._measured_refused - _CHANCE_DOUBT * math.sqrt(self._measured_refused)
            self._chance = min(_CHANCE_MOST, max(0.0, lower_bound) / max(1.0, self._measured_calls))
            self._measured_at = now
        self._below_limit, self._below_calls, self._below_refused = False, 0, 0

    def _trim(self, now: float) -> None:
        oldest = now - _WINDOW_S
        for times in (self._sent, self._refused, self._answered):
            while times and times[0] < oldest:
                times.popleft()


def _recovery_s(capacity_tps: float) -> float:
    return _RECOVERY_S * math.pow(capacity_tps, _RECOVERY_POWER)
