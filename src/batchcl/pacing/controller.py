"""How fast to send: a request rate found from what became of the calls so far. Pure arithmetic on a given `now`.

`RateController` knows nothing about inference units, bursts or other clients. It keeps one `Edge` a limit: the calls
a second that the model takes, and the downloads a second that S3 grants the service, which may be lower for a while
and says nothing about the model. The lower one holds. Answers that come later and later count as a refusal does: see
`LatencyWatch`. A rate grows only while it is really used, so that an idle hour doesn't end in a burst.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from batchcl.pacing.edge import FLOOR_TPS, Edge
from batchcl.pacing.latency import DRAIN_SHARE, LatencyWatch

__all__ = ["FLOOR_TPS", "START_TPS", "RateController"]

START_TPS: Final = 5.0
"""Where a run begins that knows nothing: a little less than two inference units take (pricing page example)."""

_SHARED_JITTER: Final = 0.5
_WINDOW_S: Final = 1.0
_USED_SHARE: Final = 0.8
_MAX_STEP_S: Final = 1.0
_REMEMBERED_CALLS: Final = 1024


class RateController:
    """Tells the rate, in calls a second, from what became of the calls so far.

    Args:
        start_tps: the first rate.
        learned: whether `start_tps` was measured lately, and is probed from gently; a guess is doubled each second
            until the first refusal.
        ceiling_tps: never faster than this.
    """

    def __init__(self, *, start_tps: float = START_TPS, learned: bool = False, ceiling_tps: float = math.inf) -> None:
        self._ceiling_tps = ceiling_tps
        self._model = Edge(min(start_tps, ceiling_tps), known=learned)
        self._downloads: Edge | None = None
        self._latency = LatencyWatch()
        self._sent_at: deque[float] = deque(maxlen=_REMEMBERED_CALLS)
        self._sent = 0
        self._resolved = 0
        self._numbered_at = -math.inf
        self._grown_at: float | None = None
        self._window_at: float | None = None
        self._window_sent = 0
        self._window_tps = 0.0
        self._used = True
        self._refused = False

    @property
    def rate_tps(self) -> float:
        """Calls a second that may be sent now."""
        rate_tps = min(self._ceiling_tps, self._model.rate_tps)
        if self._downloads is not None:
            rate_tps = min(rate_tps, self._downloads.rate_tps)
        return rate_tps * DRAIN_SHARE if self._latency.draining else rate_tps

    @property
    def jitter_share(self) -> float:
        """By which share the gap between two calls should vary, at random: others' calls then meet the same chances.

        Evenly spaced calls at the edge of a limit take each token as it comes, and leave none to a client that calls
        now and then.
        """
        return _SHARED_JITTER if self._model.shared else 0.0

    @property
    def in_flight(self) -> int:
        """Calls that went out and have not ended."""
        return self._sent - self._resolved

    @property
    def learned_tps(self) -> float | None:
        """What the model takes, once it was found in this run; None before."""
        return self._model.limit_tps if self._refused else None

    def sent(self, now: float) -> None:
        """A call went out."""
        self._sent += 1
        self._sent_at.append(now)
        if self._window_at is None:
            self._window_at, self._window_tps = now, self.rate_tps
        elapsed = now - self._window_at
        if elapsed >= _WINDOW_S:
            self._used = self._window_sent + 1 >= _USED_SHARE * self._window_tps * elapsed
            self._window_at, self._window_sent, self._window_tps = now, 0, self.rate_tps
        self._window_sent += 1

    def succeeded(self, now: float, *, sent_at: float | None = None) -> None:
        """A call came back with an answer; `sent_at` tells how long it took."""
        self._resolved += 1
        self._grow(now)
        if sent_at is None:
            return
        answers_tps = self._latency.answered(now, sent_at=sent_at, in_flight=self.in_flight)
        if answers_tps is not None:
            self._refused = True
            self._model.overrun(now, taken_tps=answers_tps)

    def throttled(self, now: float, *, sent_at: float, sudden: bool = False, downloads: bool = False) -> None:
        """A call was refused for capacity.

        Args:
            now: when the refusal came.
            sent_at: when the call went out.
            sudden: the service blamed the ramp rather than the rate.
            downloads: it blamed S3's limit rather than the model's.
        """
        self._resolved += 1
        self._grow(now)
        if sudden:
            self._model.ramped_too_fast(now, sent_at=sent_at)
            return
        edge = self._model
        if downloads:
            if self._downloads is None:
                self._downloads = Edge(self.rate_tps, known=True)
            edge = self._downloads
        else:
            self._refused = True
        edge.refused(now, sent_at=sent_at, number=self._number(sent_at))

    def lost(self) -> None:
        """A call ended in a way that says nothing of the capacity: without an answer, or given up."""
        self._resolved += 1

    def unsent(self, *, sent_at: float) -> None:
        """What went out at `sent_at` never reached the service: it counts as if it hadn't been sent.

        Unless a refusal has been counted since, whose number must stay as it was for those that follow.
        """
        if sent_at > self._numbered_at:
            for index in range(len(self._sent_at) - 1, -1, -1):
                if self._sent_at[index] <= sent_at:
                    del self._sent_at[index]
                    self._sent -= 1
                    return
        self._resolved += 1

    def _grow(self, now: float) -> None:
        """Let the limit that holds be probed for the time that has passed."""
        seconds = 0.0 if self._grown_at is None else min(now - self._grown_at, _MAX_STEP_S)
        self._grown_at = now
        if not self._used or self._latency.draining or seconds <= 0:
            return
        edge = self._model
        if self._downloads is not None and self._downloads.rate_tps < edge.rate_tps:
            edge = self._downloads
        if edge.rate_tps < self._ceiling_tps:
            edge.grow(seconds)

    def _number(self, sent_at: float) -> int:
        """How many calls had gone out up to `sent_at`."""
        self._numbered_at = max(self._numbered_at, sent_at)
        later = 0
        for at in reversed(self._sent_at):
            if at <= sent_at:
                break
            later += 1
        return self._sent - later
