"""What a run reports to an observer: live counters, and notices of events."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from batchcl.outcomes import Counts, Outcome, Scored

__all__ = ["Notice", "Observer", "Progress", "SafeObserver", "SilentObserver", "Snapshot"]

_log: Final = logging.getLogger(__name__)
_RATE_WINDOW_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Notice:
    """An event: stable `kind`, readable `text`, its values in `fields`, and a log `level`."""

    kind: str
    text: str
    fields: dict[str, str | int | float | None] = field(default_factory=dict)
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counters of a run at one moment.

    Attributes:
        planned: images on the work list so far, without those that another run has scored since.
        listed: whether the work list is complete.
        calls: calls sent, including throttled ones.
        throttled: calls refused for capacity.
        in_flight: calls without a response.
        elapsed_s: since the first call could be sent.
        images_per_second: outcomes with a call, over the last 15 s.
        rate_tps: calls a second that the pacer allows.
        eta_s: seconds to the end at `images_per_second`; None while unknown.
        dollars: minimum cost of the model so far; None if the run did not start it.
    """

    planned: int
    listed: bool
    scored: int
    failed: int
    skipped: int
    calls: int
    throttled: int
    in_flight: int
    elapsed_s: float
    images_per_second: float
    rate_tps: float
    eta_s: float | None
    dollars: float | None

    @property
    def done(self) -> int:
        """Images with an outcome."""
        return self.scored + self.failed + self.skipped

    @property
    def throttled_share(self) -> float:
        """Throttled calls divided by all calls, 0 to 1."""
        return self.throttled / self.calls if self.calls else 0.0


class Observer(Protocol):
    """Receives the progress of a run. Called in its event loop; must return quickly and not raise."""

    def started(self, progress: Progress) -> None:
        """Receive the run's live counters, which can be read at any time."""
        ...

    def notice(self, notice: Notice) -> None:
        """Receive an event."""
        ...


class SilentObserver:
    """Ignores everything."""

    def started(self, progress: Progress) -> None:
        """Do nothing."""

    def notice(self, notice: Notice) -> None:
        """Do nothing."""


class SafeObserver:
    """Forwards to another observer until that raises; the exception is logged and never affects the run."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def started(self, progress: Progress) -> None:
        """See `Observer`."""
        self._call(lambda: self._observer.started(progress))

    def notice(self, notice: Notice) -> None:
        """See `Observer`."""
        self._call(lambda: self._observer.notice(notice))

    def _call(self, method: Callable[[], None]) -> None:
        try:
            method()
        except Exception:  # noqa: BLE001 - whatever an observer raises, the run continues
            _log.exception("the observer %r failed and is not called again; the run continues", self._observer)
            self._observer = SilentObserver()


class Progress:
    """The live counters of a run. The parts of the run increment them; `snapshot` returns them together.

    Args:
        dollars: returns the minimum cost of the model so far; None if the run did not start it.

    Attributes:
        pace: returns the calls a second that the pacer allows.
    """

    def __init__(self, *, dollars: Callable[[], float | None] = lambda: None) -> None:
        self.planned = 0
        self.listed = False
        self.scored = 0
        self.failed = 0
        self.skipped = 0
        self.already_scored = 0
        self.already_failed = 0
        self.unlabelled = 0
        self.calls = 0
        self.throttled = 0
        self.in_flight = 0
        self.pace: Callable[[], float] = lambda: 0.0
        self._called = 0
        self._dollars = dollars
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._recent: deque[tuple[float, int]] = deque()

    def begin(self, now: float) -> None:
        """Start the clock: the model is running, and the first call can be sent."""
        self._started_at = now

    def end(self, now: float) -> None:
        """Stop the clock: the last row is committed."""
        self._ended_at = now

    def count(self, outcome: Outcome) -> None:
        """Add a committed outcome."""
        self._called += outcome.attempts > 0
        self.unlabelled += isinstance(outcome, Scored) and not outcome.labels
        match outcome.status:
            case "scored":
                self.scored += 1
            case "failed":
                self.failed += 1
            case "skipped":
                self.skipped += 1
            case "already_scored":
                self.already_scored += 1
            case "already_failed":
                self.already_failed += 1

    def add_earlier(self, counts: Counts) -> None:
        """Add outcomes of an earlier session, which don't count for the rate of this one."""
        self.scored += counts.scored
        self.failed += counts.failed
        self.skipped += counts.skipped
        self.already_scored += counts.already_scored
        self.already_failed += counts.already_failed
        self.unlabelled += counts.unlabelled

    @property
    def counts(self) -> Counts:
        """The outcomes so far."""
        return Counts(self.scored, self.failed, self.skipped, self.already_scored, self.already_failed, self.unlabelled)

    @property
    def dollars(self) -> float | None:
        """Minimum cost of the model so far; None if the run did not start it."""
        return self._dollars()

    @property
    def done(self) -> int:
        """Images of the run with an outcome."""
        return self.counts.done

    @property
    def called(self) -> int:
        """Images of this session that were called for and have an outcome."""
        return self._called

    def snapshot(self, now: float) -> Snapshot:
        """The counters at `now`, on the clock of `begin`."""
        started_at = now if self._started_at is None else self._started_at
        rate = self._rate(now, started_at)
        remaining = self.planned - self.done
        return Snapshot(
            planned=self.planned - self.already_scored - self.already_failed,
            listed=self.listed,
            scored=self.scored,
            failed=self.failed,
            skipped=self.skipped,
            calls=self.calls,
            throttled=self.throttled,
            in_flight=self.in_flight,
            elapsed_s=(now if self._ended_at is None else self._ended_at) - started_at,
            images_per_second=rate,
            rate_tps=self.pace(),
            eta_s=remaining / rate if self.listed and rate > 0 else None,
            dollars=self.dollars,
        )

    def _rate(self, now: float, started_at: float) -> float:
        called = self._called
        self._recent.append((now, called))
        while len(self._recent) > 1 and self._recent[0][0] < now - _RATE_WINDOW_S:
            self._recent.popleft()
        since, base = self._recent[0]
        if now - since < 1.0:
            since, base = started_at, 0
        return (called - base) / (now - since) if now > since else 0.0
