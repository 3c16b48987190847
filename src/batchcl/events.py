"""What a run tells whoever watches it: counters to look at, and notices when something happens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from batchcl.outcomes import Counts, Outcome

__all__ = ["Notice", "Observer", "Progress", "SafeObserver", "SilentObserver", "Snapshot"]

_log: Final = logging.getLogger(__name__)
_RATE_WINDOW_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth a line: `kind` for machines, `text` for people, `fields` for both; `level` as logs have it."""

    kind: str
    text: str
    fields: dict[str, str | int | float | None] = field(default_factory=dict)
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counters of a run at one moment.

    Attributes:
        planned: images on the list so far, less those that another run has dealt with since; all of them once `listed`.
        listed: whether the list is complete.
        calls: calls that were sent, the throttled ones included.
        throttled: calls that were refused for capacity.
        images_per_second: outcomes with a call, over the last 15 s.
        eta_s: seconds to the end at that rate; None while it can't be told.
        dollars: what the model cost so far, at least; None where the run didn't start it.
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
        """Throttled calls of all calls, 0 to 1."""
        return self.throttled / self.calls if self.calls else 0.0


class Observer(Protocol):
    """Watches a run. Called from its event loop: it must return fast and not raise."""

    def started(self, progress: Progress) -> None:
        """The counters exist from here on; look at them when you like."""
        ...

    def notice(self, notice: Notice) -> None:
        """Something happened."""
        ...


class SilentObserver:
    """Watches nothing."""

    def started(self, progress: Progress) -> None:
        """Look away."""

    def notice(self, notice: Notice) -> None:
        """Look away."""


class SafeObserver:
    """Passes everything on to another observer until that raises, which is logged. It never ends or changes a run."""

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
    """The counters of a run. Whoever owns a number adds to it; `snapshot` shows them together.

    Attributes:
        pace: calls a second that the pacer lets go out just now; asked when a snapshot is taken.
    """

    def __init__(self, *, dollars: Callable[[], float | None] = lambda: None) -> None:
        self.planned = 0
        self.listed = False
        self.scored = 0
        self.failed = 0
        self.skipped = 0
        self.already_scored = 0
        self.already_failed = 0
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
        """The clock starts: the model is there, and the first call may go out."""
        self._started_at = now

    def end(self, now: float) -> None:
        """The clock stops: the last row is kept."""
        self._ended_at = now

    def count(self, outcome: Outcome) -> None:
        """Add an outcome that is kept."""
        self._called += outcome.attempts > 0
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
        """Add outcomes of an earlier session, which say nothing about the speed of this one."""
        self.scored += counts.scored
        self.failed += counts.failed
        self.skipped += counts.skipped
        self.already_scored += counts.already_scored
        self.already_failed += counts.already_failed

    @property
    def counts(self) -> Counts:
        """The outcomes so far."""
        return Counts(self.scored, self.failed, self.skipped, self.already_scored, self.already_failed)

    @property
    def dollars(self) -> float | None:
        """What the model has cost so far; None where that isn't this run's business."""
        return self._dollars()

    @property
    def done(self) -> int:
        """Images of the run with an outcome."""
        return self.counts.done

    @property
    def called(self) -> int:
        """Images of this session that cost a call and have their outcome."""
        return self._called

    def snapshot(self, now: float) -> Snapshot:
        """The counters at `now`, on the clock of `begin`."""
        started_at = now if self._started_at is None else self._started_at
        rate = self._rate(now, started_at)
        left = self.planned - self.done
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
            eta_s=left / rate if self.listed and rate > 0 else None,
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
