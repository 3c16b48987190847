"""The meter of a model that a run pays for: billed seconds by what they were used for, and dollars by month.

The service bills while the model is RUNNING. Each billed second is attributed once:

| use | when |
| -- | -- |
| start | from RUNNING until the first call can be sent: the run has to notice it |
| scoring | calls are made, or the next one waits for its turn because the model has no capacity for more |
| throttled | the share of refused calls, of the time in which calls are made |
| idle | no call is in flight, because no image is listed yet, the model is not ready, or nobody works on the run |
| tail | every image has been called for, and the last responses or retries are awaited |
| stop | from the last call until the service has accepted the stop |
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import anyio

__all__ = ["Bill", "BilledUse", "Meter", "elapsed"]


class BilledUse(StrEnum):
    """What a billed second was used for: `batchcl.summary.BILLED_USES`."""

    START = "start"
    SCORING = "scoring"
    THROTTLED = "throttled"
    IDLE = "idle"
    TAIL = "tail"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a session has to pay for.

    Attributes:
        seconds: billed seconds by use, of the model and not per unit.
        dollars_by_month: by UTC month, such as `2026-11`.
    """

    seconds: dict[str, float]
    dollars_by_month: dict[str, float]

    @property
    def dollars(self) -> float:
        """The sum."""
        return sum(self.dollars_by_month.values())


def elapsed() -> float:
    """The event loop's clock plus the time for which the machine was suspended, in which that clock stands still."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return anyio.current_time()
    suspended_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return anyio.current_time() + round(suspended_s, 1)


class Meter:
    """Attributes the time between `open` and `close`; may be opened several times.

    Args:
        clock: in seconds; continues while the machine is suspended, as the bill does.
        utcnow: current time, for the month.
    """

    def __init__(self, *, clock: Callable[[], float], utcnow: Callable[[], dt.datetime]) -> None:
        self._usd_per_second = 0.0
        self._clock = clock
        self._utcnow = utcnow
        self._use = BilledUse.START
        self._counted_until: float | None = None
        self._opened_at = self._closed_at = 0.0
        self._seconds: dict[BilledUse, float] = {}
        self._dollars: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether the model is billed now."""
        return self._counted_until is not None

    @property
    def was_opened(self) -> bool:
        """Whether the model was billed at some time."""
        return self.is_open or bool(self._seconds)

    def open(self, *, usd_per_second: float, ago_s: float = 0.0, use: BilledUse = BilledUse.START) -> None:
        """Begin to bill, if it is not open.

        Args:
            usd_per_second: price of all units.
            ago_s: seconds for which the model has been billed already.
            use: what they were used for.
        """
        if self._counted_until is None:
            self._usd_per_second = usd_per_second
            now = self._clock()
            self._counted_until = self._opened_at = now - max(0.0, ago_s)
            self._count({use: 1.0}, until=now)

    def close(self, *, ago_s: float = 0.0) -> None:
        """Stop billing.

        Args:
            ago_s: seconds since billing has ended. If they were attributed since the meter was opened last, they are
                removed, also if it is closed already.
        """
        until = self._clock() - max(0.0, ago_s)
        self._count({self._use: 1.0}, until=until)
        ended = self._closed_at if self._counted_until is None else self._counted_until
        self._counted_until = None
        excess_s = min(ended - max(until, self._opened_at), sum(self._seconds.values()))
        self._closed_at = ended - max(0.0, excess_s)
        if excess_s > 0:
            self._remove(excess_s, ended_ago_s=self._clock() - ended)

    def enter(self, use: BilledUse) -> None:
        """Attribute the time so far to the current use, and the time from now on to `use`."""
        self._count({self._use: 1.0}, until=self._clock())
        self._use = use

    def attribute(self, shares: Mapping[BilledUse, float]) -> None:
        """Attribute the time since the last call to several uses; `shares` add up to 1."""
        self._count(shares, until=self._clock())

    def read(self) -> Bill:
        """The bill so far; time that is not attributed yet belongs to the current use."""
        seconds = {use.value: round(spent, 3) for use, spent in self._seconds.items()}
        dollars = dict(self._dollars)
        if self._counted_until is not None:
            open_s = max(0.0, self._clock() - self._counted_until)
            seconds[self._use.value] = round(seconds.get(self._use.value, 0.0) + open_s, 3)
            self._add_dollars(dollars, open_s, ended_ago_s=0.0)
        return Bill(seconds=seconds, dollars_by_month={month: round(usd, 6) for month, usd in sorted(dollars.items())})

    def _count(self, shares: Mapping[BilledUse, float], *, until: float) -> None:
        if self._counted_until is None or until <= self._counted_until:
            return
        elapsed_s = until - self._counted_until
        for use, share in shares.items():
            if share > 0:
                self._seconds[use] = self._seconds.get(use, 0.0) + elapsed_s * share
        self._add_dollars(self._dollars, elapsed_s, ended_ago_s=self._clock() - until)
        self._counted_until = until

    def _remove(self, excess_s: float, *, ended_ago_s: float) -> None:
        """Remove the last `excess_s` seconds that were counted: from the current use, then from others."""
        self._add_dollars(self._dollars, excess_s, ended_ago_s=ended_ago_s, sign=-1)
        for use in (self._use, *sorted(self._seconds, key=self._seconds.__getitem__, reverse=True)):
            removed_s = min(excess_s, self._seconds.get(use, 0.0))
            if removed_s > 0:
                self._seconds[use] -= removed_s
                excess_s -= removed_s

    def _add_dollars(self, dollars: dict[str, float], seconds: float, *, ended_ago_s: float, sign: int = 1) -> None:
        """Add the price of `seconds` to the months in which they were, or subtract it if `sign` is -1."""
        until = self._utcnow().astimezone(dt.UTC) - dt.timedelta(seconds=ended_ago_s)
        while seconds > 0:
            month_begins = until.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            in_month_s = min(seconds, (until - month_begins).total_seconds())
            if in_month_s > 0:
                month = f"{month_begins:%Y-%m}"
                dollars[month] = dollars.get(month, 0.0) + sign * in_month_s * self._usd_per_second
                seconds -= in_month_s
            until = month_begins - dt.timedelta(microseconds=1)
