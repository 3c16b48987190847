"""How fast to send: a request rate found from successes and throttles alone. Pure arithmetic on a given `now`.

The rate doubles each second until the first throttle (slow start), and then grows by a share of itself a second and
falls by a factor at a throttle: AIMD on the rate (Chiu and Jain, 1989), not on the number of calls in flight, because
the service limits calls a second and refuses fast. It grows only while the rate is really used, so that an idle hour
doesn't end in a burst; throttles of calls that were sent before the last decrease say nothing new.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["RateController"]

START_TPS: Final = 5.0
FLOOR_TPS: Final = 0.2
_SLOW_START_PER_S: Final = math.log(2)
_GROWTH_SHARE_PER_S: Final = 0.03
_GROWTH_MIN_TPS_PER_S: Final = 0.1
_DECREASE: Final = 0.85
_DECREASE_SUDDEN: Final = 0.6
_MAX_STEP_S: Final = 1.0
_WINDOW_S: Final = 1.0
_USED_SHARE: Final = 0.8


class RateController:
    """Tells the rate, in calls a second, from what became of the calls so far.

    Args:
        start_tps: the first rate: a guess, or what an earlier run learned.
        ceiling_tps: never faster than this.
    """

    def __init__(self, *, start_tps: float = START_TPS, ceiling_tps: float = math.inf) -> None:
        self._ceiling_tps = ceiling_tps
        self._rate_tps = min(start_tps, ceiling_tps)
        self._slow_start = True
        self._grown_at: float | None = None
        self._decreased_at = -math.inf
        self._window_at: float | None = None
        self._window_sent = 0
        self._window_tps = 0.0
        self._used = True

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        return self._rate_tps

    def sent(self, now: float) -> None:
        """A call went out."""
        if self._window_at is None:
            self._window_at, self._window_tps = now, self._rate_tps
        elapsed = now - self._window_at
        if elapsed >= _WINDOW_S:
            self._used = self._window_sent + 1 >= _USED_SHARE * self._window_tps * elapsed
            self._window_at, self._window_sent, self._window_tps = now, 0, self._rate_tps
        self._window_sent += 1

    def succeeded(self, now: float) -> None:
        """A call came back with an answer."""
        since = 0.0 if self._grown_at is None else min(now - self._grown_at, _MAX_STEP_S)
        self._grown_at = now
        if not self._used:
            return
        if self._slow_start:
            grown = self._rate_tps * math.exp(_SLOW_START_PER_S * since)
        else:
            grown = self._rate_tps + max(_GROWTH_MIN_TPS_PER_S, _GROWTH_SHARE_PER_S * self._rate_tps) * since
        self._rate_tps = min(grown, self._ceiling_tps)

    def throttled(self, now: float, *, sent_at: float, sudden: bool = False) -> None:
        """A call that went out at `sent_at` was refused; `sudden` when the service blamed the ramp."""
        if sent_at <= self._decreased_at:
            return
        self._slow_start = False
        self._grown_at = now
        self._decreased_at = now
        fallen_tps = self._rate_tps * (_DECREASE_SUDDEN if sudden else _DECREASE)
        self._rate_tps = min(self._ceiling_tps, max(FLOOR_TPS, fallen_tps))
