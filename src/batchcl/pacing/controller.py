"""How fast to send: a request rate found from successes and refusals only. Pure arithmetic on a given `now`.

The service publishes no limit. A run first doubles its rate every two seconds. A refusal ends that: the calls accepted
in the last seconds are the capacity (the delivered rate of BBR, Cardwell et al., 2016), and the rate continues on the
curve of CUBIC (RFC 9438) around it: a little below, soon back at it, flat there, then faster and faster until the next
refusal. Calls at the edge of a limit are refused in proportion to their number, so of two runs the faster one is cut
more often, and the slower one recovers sooner: their rates become equal.

Refusals that do not depend on the rate must not slow it down. Right after a cut the rate is below the limit, and nearly
nothing is refused there. If refusals continue even there for a while, their share is taken for chance, and only more
than chance explains cuts the rate.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["FLOOR_TPS", "START_TPS", "RateController"]

START_TPS: Final = 5.0
"""The first rate of a run that knows nothing: a little less than two inference units take (pricing page example)."""

FLOOR_TPS: Final = 0.5
"""The lowest rate: below it a change for the better would be noticed too late."""

# Tuned on the traces of benchmarks/pacing.py with seeds 1 to 4.
_DOUBLING_S: Final = 2.0  # of the first rate; in one second, more calls are refused before the first cut
_WINDOW_S: Final = 4.0  # over which rates are measured; longer ones are wrong after a step
_CUT: Final = 0.08  # below the capacity after a cut: less is slow to make two runs equal, more leaves capacity unused
_RECOVERY_S: Final = 3.4  # until one call a second is back at its capacity: shorter means more refusals
_RECOVERY_POWER: Final = 0.15  # of the capacity, for others: 5 s at 14 calls a second; 0 is unfair to slow runs
_PAUSE_S: Final = 1.0  # between two cuts, so that the first one can show: a round trip
_PAUSE_CALLS: Final = 5  # and so many calls, or clients that never yield drive a slow run away
_USED: Final = 0.5  # a rate of which less is answered does not grow: an idle hour does not end in a burst

_CHANCE_MOST: Final = 0.15  # a larger share refused is never chance; the first doubling goes on up to it
_CHANCE_MEMORY_S: Final = 90.0  # over which chance is measured: longer, and another run's refusals add up to evidence
_CHANCE_DOUBT: Final = 2.0  # standard deviations by which the measured share is lowered: few refusals are no evidence
_CHANCE_SPREAD: Final = 3.0  # standard deviations above it that are chance, too

_LATE_S: Final = 15.0
"""Answers later than this mean that calls wait in a queue: a quarter of the deadline of a call."""


class RateController:
    """The rate, in calls a second, from what became of the calls so far.

    Args:
        start_tps: the first rate.
        learned: whether `start_tps` is a capacity measured lately, to probe from gently; otherwise it is doubled every
            two seconds until the first cut.
        ceiling_tps: never faster than this.
    """

    def __init__(self, *, start_tps: float = START_TPS, learned: bool = False, ceiling_tps: float = math.inf) -> None:
        self._ceiling_tps = ceiling_tps
        self._rate_tps = self._capacity_tps = max(FLOOR_TPS, start_tps)
        self._doubling = not learned
        self._age_s = self._recovery_s  # on the curve: seconds since the cut in which the rate was used
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
        self._sustained_tps = 0.0

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        rate_tps = self._rate_tps
        if self._late:
            rate_tps = min(rate_tps, (1 - _CUT) * len(self._answered) / _WINDOW_S)
        return min(self._ceiling_tps, max(FLOOR_TPS, rate_tps))

    @property
    def found_tps(self) -> float | None:
        """The model's capacity as measured at the last cut; None before one."""
        return self._found_tps

    @property
    def sustained_tps(self) -> float | None:
        """The most answers a second over a whole window; None before the first one has passed."""
        return self._sustained_tps or None

    def sent(self, now: float) -> None:
        """A call goes out."""
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
        """A call that went out at `sent_at` has an answer that is not about capacity."""
        self._answered.append(now)
        self._answered_since_cut |= sent_at > self._cut_at
        self._late = now - sent_at > _LATE_S
        self._trim(now)
        if self._answered[0] < now - 0.9 * _WINDOW_S:
            self._sustained_tps = max(self._sustained_tps, min(self._rate_tps, len(self._answered) / _WINDOW_S))

    def throttled(self, now: float, *, sent_at: float, by_model: bool = True) -> None:
        """A call that went out at `sent_at` was refused.

        Args:
            now: when the refusal came.
            sent_at: when the call went out; the last cut has answered those from before it.
            by_model: whether it says anything about the model's capacity; S3's limit and a sudden increase do not.
        """
        if sent_at <= self._cut_at:
            return
        self._refused.append(sent_at)
        self._trim(now)
        self._below_refused += self._below_limit
        by_chance = len(self._sent) * (_CHANCE_MOST if self._doubling else self._chance)
        unlikely = len(self._refused) > by_chance + _CHANCE_SPREAD * math.sqrt(by_chance)
        paused = now - self._cut_at >= _PAUSE_S and len(self._sent) >= _PAUSE_CALLS
        if unlikely and (self._doubling or paused):
            self._cut(now, by_model=by_model)

    def unsent(self, *, sent_at: float) -> None:
        """What was sent at `sent_at` never reached the service."""
        if self._sent and sent_at >= self._sent[0]:
            self._sent.pop()

    @property
    def _recovery_s(self) -> float:
        return _RECOVERY_S * math.pow(self._capacity_tps, _RECOVERY_POWER)

    def _grow(self, elapsed_s: float) -> None:
        if self._rate_tps >= self._ceiling_tps:
            return
        if self._doubling:
            self._rate_tps *= 2 ** (elapsed_s / _DOUBLING_S)
        else:
            self._age_s += elapsed_s
            self._rate_tps = self._capacity_tps * (1 + _CUT * (self._age_s / self._recovery_s - 1) ** 3)

    def _cut(self, now: float, *, by_model: bool) -> None:
        """Take what was accepted in the window for the capacity, and go below it."""
        self._measure_chance(now)
        sent, self._capacity_tps = self._sent, self._rate_tps
        if len(sent) > 1 and sent[-1] > sent[0]:
            sent_tps = (len(sent) - 1) / (sent[-1] - sent[0])
            accepted_tps = sent_tps * (1 - len(self._refused) / len(sent)) / (1 - self._chance)
            self._capacity_tps = max(FLOOR_TPS, min(self._rate_tps, accepted_tps))
        if by_model and self._answered_since_cut:
            self._found_tps = self._capacity_tps
        self._doubling, self._below_limit, self._answered_since_cut = False, True, False
        self._age_s = 0.0
        self._rate_tps = self._capacity_tps * (1 - _CUT)
        self._cut_at = now
        self._sent.clear()
        self._refused.clear()

    def _measure_chance(self, now: float) -> None:
        """Count the calls since the last cut, which were below the limit, unless the limit has plainly fallen."""
        if self._below_limit and self._below_refused <= 2 + _CHANCE_MOST * self._below_calls:
            kept = math.exp((self._measured_at - now) / _CHANCE_MEMORY_S)
            self._measured_calls = kept * self._measured_calls + self._below_calls
            self._measured_refused = kept * self._measured_refused + self._below_refused
            certain = self._measured_refused - _CHANCE_DOUBT * math.sqrt(self._measured_refused)
            self._chance = min(_CHANCE_MOST, max(0.0, certain) / max(1.0, self._measured_calls))
            self._measured_at = now
        self._below_limit, self._below_calls, self._below_refused = False, 0, 0

    def _trim(self, now: float) -> None:
        for times in (self._sent, self._refused, self._answered):
            while times and times[0] < now - _WINDOW_S:
                times.popleft()
