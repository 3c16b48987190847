"""What a run reports to an observer: live counters, and notices of events."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from batchcl.outcomes import Counts, Outcome, Scored

__all__ = [
    "LATENCY_BOUNDS_S",
    "Latencies",
    "ModelUse",
    "Notice",
    "Observer",
    "Pace",
    "Progress",
    "SafeObserver",
    "SilentObserver",
    "Snapshot",
]

_log: Final = logging.getLogger(__name__)
_RATE_WINDOW_S: Final = 15.0

LATENCY_BOUNDS_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of `Latencies`, in seconds; a last bucket is unbounded."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event: stable `kind`, readable `text`, its values in `fields`, and a log `level`."""

    kind: str
    text: str
    fields: dict[str, str | int | float | None] = field(default_factory=dict)
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Pace:
    """The rate of calls at one moment.

    Attributes:
        rate_tps: calls a second that may be sent.
        capacity_tps: calls a second that the model accepts, measured in this session or recently; None if unknown.
    """

    rate_tps: float = 0.0
    capacity_tps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """The model at one moment.

    Attributes:
        status: as last described by the service, such as `STARTING`; None if it has not been described.
        units: minimum number of inference units; None if unknown.
        dollars: minimum cost so far; None if the run did not start the model.
    """

    status: str | None = None
    units: int | None = None
    dollars: float | None = None


class Latencies:
    """A histogram of the time from sending a call to its response, of calls that returned labels.

    Attributes:
        counts: calls by bucket of `LATENCY_BOUNDS_S` and the unbounded one; not cumulative.
        total_s: sum of all latencies, in seconds.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a call; a bucket includes its upper bound."""
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.total_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counters of a run at one moment.

    Attributes:
        planned: images on the work list so far, without those that another run has scored since.
        listed: whether the work list is complete.
        unlabelled: scored images without a label; they are also counted as `scored`.
        calls: calls sent, including throttled ones.
        throttled: calls refused for capacity.
        in_flight: calls without a response.
        elapsed_s: since the first call could be sent.
        images_per_second: outcomes with a call, over the last 15 s.
        rate_tps: calls a second that the pacer allows.
        capacity_tps: calls a second that the model was measured to accept; None if unknown.
        eta_s: seconds to the end at `images_per_second`; None while unknown.
        model_status: as last described by the service, such as `STARTING`; None if it has not been described.
        units: minimum number of inference units of the model; None if unknown.
        dollars: minimum cost of the model so far; None if the run did not start it.
    """

    planned: int
    listed: bool
    scored: int
    failed: int
    skipped: int
    unlabelled: int
    calls: int
    throttled: int
    in_flight: int
    elapsed_s: float
    images_per_second: float
    rate_tps: float
    capacity_tps: float | None
    eta_s: float | None
    model_status: str | None
    units: int | None
    dollars: float | None

    @property
    def done(self) -> int:
        """Images with an outcome."""
        return self.scored + self.failed + self.skipped

    @property
    def is_listing(self) -> bool:
        """Whether images are still being listed, and no call has been made yet."""
        return not self.listed and not self.done and not self.calls

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
        model: returns the state of the model.

    Attributes:
        pace: returns the rate of calls.
        latencies: of this session's calls.
    """

    def __init__(self, *, model: Callable[[], ModelUse] = ModelUse) -> None:
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
        self.pace: Callable[[], Pace] = Pace
        self.latencies = Latencies()
        self._called = 0
        self._model = model
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
        return self._model().dollars

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
        pace, model = self.pace(), self._model()
        return Snapshot(
            planned=self.planned - self.already_scored - self.already_failed,
            listed=self.listed,
            scored=self.scored,
            failed=self.failed,
            skipped=self.skipped,
            unlabelled=self.unlabelled,
            calls=self.calls,
            throttled=self.throttled,
            in_flight=self.in_flight,
            elapsed_s=(now if self._ended_at is None else self._ended_at) - started_at,
            images_per_second=rate,
            rate_tps=pace.rate_tps,
            capacity_tps=pace.capacity_tps,
            eta_s=remaining / rate if self.listed and rate > 0 else None,
            model_status=model.status,
            units=model.units,
            dollars=model.dollars,
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
