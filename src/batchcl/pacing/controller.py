"""How fast to send: a request rate found from successes and refusals only. Pure arithmetic on a given `now`.

The service publishes no limit. A run first doubles its rate every two seconds. A refusal that chance does not explain
ends that: the calls accepted in the last seconds are the capacity (the delivered rate of BBR, Cardwell et al., 2016),
and the rate continues on the curve of CUBIC (RFC 9438) around it: a little below, soon back at it, flat there, then
faster and faster until the next such refusal. Calls at the edge of a limit are refused in proportion to their number,
so of two runs the faster one is cut more often, and their rates become equal.

Refusals that do not depend on the rate must not slow it down. Right after a cut the rate is below the limit; the share
that is refused even there is taken for chance. Each call earns credit for twice that share, each refusal costs one
credit, and only a refusal without credit cuts the rate. Where nothing is refused by chance, every refusal cuts.
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

# Tuned on the traces of benchmarks/pacing.py with seeds 1 and 101, for capacity used first, then for calls refused,
# and checked on traces that are not there (1 to 700 calls a second, steps by 5, latencies from 50 ms to 3 s).
_DOUBLING_S: Final = 2.0  # of the first rate; in one second, a third more calls are refused before the first cut
_WINDOW_S: Final = 4.0  # over which rates are measured; longer ones are wrong after a step, and unfair to a second run
_CUT: Final = 0.12  # below the capacity after a cut: less is slow to make two runs equal, more leaves capacity unused
_RECOVERY_S: Final = 4.0  # until the rate is back at the capacity: shorter means more refusals, longer a later find
_RECOVERY_CALLS: Final = 15.0  # but at least so many calls, for capacities below four a second
_PAUSE_S: Final = 1.0  # between two cuts, so that the first one can show: a round trip
_PAUSE_CALLS: Final = 6  # and so many calls, or clients that never yield drive a slow run away
_USED: Final = 0.5  # a rate of which less is answered does not grow: an idle hour does not end in a burst

# Tuned on traces where 0.5 and 5 % of the calls are refused at random.
_CHANCE_FIRST: Final = 0.05  # share refused by chance, until it is measured
_CHANCE_MOST: Final = 0.15  # more than that is never taken for chance
_CHANCE_CALLS: Final = 10_000.0  # over which it is measured: with 0.5 %, that is 50 refusals
_CHANCE_LEAST: Final = 100.0  # calls before which a share is not known
_DOUBT: Final = 3.0  # standard deviations taken off it: a few early refusals are rather another client's doing
_TOLERANCE: Final = 2.0  # credit that a call earns, in shares refused by chance
_SPREAD: Final = 3.0  # the most credit, in standard deviations of the refusals that chance brings in a window
_SPREAD_CALLS: Final = 60.0  # which has at least so many calls, or the slower of two runs would tolerate less

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
        self._window_from = self._begun_at = math.inf
        self._sent: deque[float] = deque()
        self._refused: deque[float] = deque()
        self._answered: deque[float] = deque()
        self._late = False
        self._chance = _CHANCE_FIRST
        self._credit = self._most_credit
        self._below_limit = False
        self._below = _Sample()
        self._measured = _Sample()
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
        elapsed_s = now - self._sent[-1] if self._sent else 0.0
        self._window_from, self._begun_at = min(self._window_from, now), min(self._begun_at, now)
        self._sent.append(now)
        self._trim(now)
        self._credit = min(self._most_credit, self._credit + _TOLERANCE * self._chance)
        if self._below_limit:
            self._below.calls += 1
            if self._age_s > self._recovery_s / 2:
                self._measure_chance()
        ended = len(self._answered) + len(self._refused)
        if not self._late and ended >= _USED * self._rate_tps * min(_WINDOW_S, now - self._begun_at):
            self._grow(min(1.0, elapsed_s))

    def succeeded(self, now: float, *, sent_at: float) -> None:
        """A call that went out at `sent_at` has an answer that is not about capacity."""
        self._answered.append(now)
        self._answered_since_cut = True
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
        self._below.refused += self._below_limit
        self._credit -= 1
        paused = now - self._cut_at >= _PAUSE_S and len(self._sent) >= _PAUSE_CALLS
        if self._credit < 0 and (self._doubling or paused):
            self._cut(now, by_model=by_model)

    def unsent(self, *, sent_at: float) -> None:
        """What was sent at `sent_at` never reached the service."""
        if self._sent and sent_at >= self._sent[0]:
            self._sent.pop()

    @property
    def _recovery_s(self) -> float:
        return max(_RECOVERY_S, _RECOVERY_CALLS / self._capacity_tps)

    @property
    def _most_credit(self) -> float:
        return _SPREAD * math.sqrt(self._chance * max(_SPREAD_CALLS, self._rate_tps * _WINDOW_S))

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
        self._measure_chance()
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
        self._credit = self._most_credit
        self._cut_at = self._window_from = now
        self._sent.clear()
        self._refused.clear()

    def _measure_chance(self) -> None:
        """Count the calls since the last cut, which were below the limit, unless the limit has plainly fallen."""
        below, measured = self._below, self._measured
        if self._below_limit and below.refused <= 1 + _CHANCE_MOST * below.calls:
            fade = 0.5 if measured.calls > _CHANCE_CALLS else 1.0
            measured.calls = fade * measured.calls + below.calls
            measured.refused = fade * measured.refused + below.refused
            certain = max(0.0, measured.refused - _DOUBT * math.sqrt(measured.refused))
            self._chance = min(_CHANCE_MOST, certain / max(_CHANCE_LEAST, measured.calls))
        self._below_limit, self._below = False, _Sample()

    def _trim(self, now: float) -> None:
        for times in (self._sent, self._refused, self._answered):
            while times and times[0] < now - _WINDOW_S:
                times.popleft()


class _Sample:
    """Calls, and how many of them were refused."""

    __slots__ = ("calls", "refused")

    def __init__(self) -> None:
        self.calls = self.refused = 0.0
