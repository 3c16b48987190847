"""Estimates of time and cost from what earlier sessions of a model have measured. Values in, values out.

- The rate of a session is its images divided by the seconds in which calls were made (billed as scoring or throttled;
  if the session did not pay for the model, all seconds from the first call to the last row). The rate of a number of
  units is the median over the images of its newest `NEWEST` sessions, so that a night in which others used the capacity
  does not change it. Its range is that of the sessions with at least 100 images in at least 60 s (`_ENOUGH`); if there
  are none, of all.
- A number of units whose sessions are shorter than that, all together, was not measured: its rate is scaled from the
  nearest number that was, in proportion to the units. If none was, 20 images in 10 s are enough. Sessions with
  auto-scaling measure only their own setting, as the number of units that they ran with is unknown.
- The other billed seconds of a session (start, idle, tail, stop) don't depend on its size: their median is added once.
- Nothing measured: `ASSUMED_TPS_PER_UNIT`, half or twice as fast, and so on. `Estimate.basis` says so.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from statistics import median
from typing import Final

from batchcl.lifetime.meter import BilledUse
from batchcl.quantities import Units
from batchcl.runs.spending import RunSpending
from batchcl.summary import SessionRecord

__all__ = [
    "ASSUMED_TPS_PER_UNIT",
    "MARGIN",
    "NEWEST",
    "Basis",
    "Estimate",
    "Limits",
    "Measurements",
    "Spread",
    "calling_s",
    "choose",
    "measure",
    "restart_images",
    "restart_seconds",
]

ASSUMED_TPS_PER_UNIT: Final = 2.8
"""Images per second of one inference unit in the example of AWS's pricing page; the real rate depends on the model."""

NEWEST: Final = 10
"""Sessions per number of units that count: a rate changes with the images, so old ones say little."""

_ENOUGH: Final = (100, 60.0)
"""Images and seconds: in a shorter session the first seconds, in which the rate is being found, weigh too much."""

_LITTLE: Final = (20, 10.0)
"""Better than an assumption."""

MARGIN: Final = 0.1
"""Added to the slow end of an estimate before it is compared with a deadline: as accurate are the estimates from one
night in the simulated jobs of tests/sim/test_estimates.py."""

_ASSUMED_FACTOR: Final = 2.0
_ASSUMED_OVERHEAD_S: Final = 10.0
"""Up to three seconds until RUNNING is noticed, the last responses, and the stop."""

_AS_GOOD: Final = 1.05
"""Choices that differ by less than 5 % count as equal, because rates are not known better: then fewer units win."""

_CALLING: Final = (BilledUse.SCORING, BilledUse.THROTTLED)


@dataclass(frozen=True, slots=True)
class Spread:
    """A typical value, the lowest and the highest."""

    typical: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The median and the range of `values`."""
        return cls(median(values), min(values), max(values))

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.typical * factor, self.low * factor, self.high * factor)

    def capped(self, most: float) -> Spread:
        """No value above `most`."""
        return Spread(min(self.typical, most), min(self.low, most), min(self.high, most))


_ASSUMED_START_S: Final = Spread(900.0, 300.0, 1800.0)
"""AWS's guide: "a few minutes" to 30 minutes."""


class Basis(StrEnum):
    """Where a rate comes from: measured with these units, scaled from others, or assumed."""

    MEASURED = "measured"
    SCALED = "scaled"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the rate, and the price.

    Attributes:
        max_tps: `--max-tps`; None without.
        account_tps: quota of calls per second of the account; exceeded rates that were measured prove a higher one.
        unit_hour_usd: price of a unit and hour; 0 for an emulated model.
    """

    max_tps: float | None
    account_tps: float
    unit_hour_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Time and cost of a job with a number of inference units. A run without calls doesn't start the model.

    Attributes:
        units: inference units; the minimum with auto-scaling.
        max_units: the maximum with auto-scaling; None without.
        is_requested: whether the job starts the model with these units.
        is_limited: whether the rate is bounded by `--max-tps` or the account's quota.
        basis: measured, scaled (from `measured_units`) or assumed.
        measured_units: units of the sessions that were measured, such as `2`; None if assumed.
        images_per_second: typical rate while calls are made.
        images_per_second_low: of the slowest session.
        images_per_second_high: of the fastest session.
        billed_s: typical seconds in which the model is RUNNING.
        billed_s_low: at the highest rate.
        billed_s_high: at the lowest rate.
        dollars: typical cost.
        dollars_low: at the highest rate.
        dollars_high: at the lowest rate.
        image_dollars: typical cost of one more image.
        needed_s: seconds to allow before a deadline: the longest start-up, and `billed_s_high` with a margin of 10 %.
    """

    units: int
    max_units: int | None = None
    is_requested: bool = False
    is_limited: bool
    basis: Basis
    measured_units: str | None
    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float
    billed_s: float
    billed_s_low: float
    billed_s_high: float
    dollars: float
    dollars_low: float
    dollars_high: float
    image_dollars: float
    needed_s: float


@dataclass(frozen=True, slots=True)
class _Rate:
    tps: Spread
    basis: Basis
    units: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the sessions of a model have measured.

    Attributes:
        rates: images per second, by units such as `2` or `1:3`.
        sessions: how many sessions each rate comes from.
        overhead_s: median of the billed seconds without calls of a session.
        start_s: from the accepted start until RUNNING, which is not billed; assumed if `starts` is 0.
        starts: number of starts that were measured.
    """

    rates: Mapping[str, Spread]
    sessions: Mapping[str, int]
    overhead_s: float
    start_s: Spread
    starts: int

    def estimate(self, calls: float, units: Units, *, limits: Limits, is_requested: bool = False) -> Estimate:
        """Estimate `calls` calls with `units`."""
        rate, most = self._rate(units), self.most_tps(limits)
        tps = rate.tps.capped(most)
        billed = [calls / each + self.overhead_s if calls else 0.0 for each in (tps.typical, tps.high, tps.low)]
        dollars = [seconds * units.minimum * limits.unit_hour_usd / 3600 for seconds in billed]
        if units.highest > units.minimum:  # an image costs the same with any number of units
            fixed = self.estimate(calls, Units(units.minimum), limits=limits)
            most_units = units.highest / units.minimum
            expected = (fixed.dollars, fixed.dollars_low, fixed.dollars_high)
            dollars = [min(max(each, low), low * most_units) for each, low in zip(expected, dollars, strict=True)]
        return Estimate(
            units=units.minimum,
            max_units=units.maximum,
            is_requested=is_requested,
            is_limited=rate.tps.typical >= most,
            basis=rate.basis,
            measured_units=rate.units,
            images_per_second=tps.typical,
            images_per_second_low=tps.low,
            images_per_second_high=tps.high,
            billed_s=billed[0],
            billed_s_low=billed[1],
            billed_s_high=billed[2],
            dollars=dollars[0],
            dollars_low=dollars[1],
            dollars_high=dollars[2],
            image_dollars=units.minimum * limits.unit_hour_usd / 3600 / tps.typical,
            needed_s=(self.start_s.high + billed[2]) * (1 + MARGIN) if calls else 0.0,
        )

    def _rate(self, units: Units) -> _Rate:
        if (tps := self.rates.get(str(units))) is not None:
            return _Rate(tps, Basis.MEASURED, str(units))
        fixed = [Units.parse(text) for text in self.rates]
        measured = [each.minimum for each in fixed if each.maximum is None]
        if measured:
            nearest = min(measured, key=lambda each: (abs(each - units.minimum), each))
            return _Rate(self.rates[str(nearest)] * (units.minimum / nearest), Basis.SCALED, str(nearest))
        tps = Spread(1.0, 1 / _ASSUMED_FACTOR, _ASSUMED_FACTOR) * (ASSUMED_TPS_PER_UNIT * units.minimum)
        return _Rate(tps, Basis.ASSUMED, None)

    def most_tps(self, limits: Limits) -> float:
        """Calls per second that no number of units exceeds."""
        proven = max((each.high for each in self.rates.values()), default=0.0)
        return min(math.inf if limits.max_tps is None else limits.max_tps, max(limits.account_tps, proven))


def measure(runs: Iterable[RunSpending], model_arn: str) -> Measurements:
    """Return what the sessions of the model in `runs`, the oldest first, have measured."""
    sessions = [session for run in runs if run.model_arn == model_arn for session in run.sessions if session.images]
    by_units: dict[str, list[SessionRecord]] = defaultdict(list)
    for session in sessions:
        if session.units is not None and calling_s(session) > 0:
            by_units[session.units].append(session)
    newest = {units: of_units[-NEWEST:] for units, of_units in by_units.items()}
    measured: dict[str, list[SessionRecord]] = {}
    for least in (_ENOUGH, _LITTLE):
        measured = measured or {units: each for units, each in newest.items() if _are_enough(each, least)}
    overheads = [sum(each.billed_s.values()) - calling_s(each) for each in sessions if each.billed_s][-NEWEST:]
    starts = [each.start_s for each in sessions if each.start_s is not None][-NEWEST:]
    return Measurements(
        rates={units: _rate_of(of_units) for units, of_units in measured.items()},
        sessions={units: len(of_units) for units, of_units in measured.items()},
        overhead_s=median(overheads) if overheads else _ASSUMED_OVERHEAD_S,
        start_s=Spread.of(starts) if starts else _ASSUMED_START_S,
        starts=len(starts),
    )


def _rate_of(sessions: Sequence[SessionRecord]) -> Spread:
    """Return the median rate of all images, and the range of the sessions that are long enough."""
    long_enough = [each for each in sessions if _are_enough([each], _ENOUGH)] or sessions
    rates = [each.images / calling_s(each) for each in long_enough]
    typical = _median_rate(sessions)
    return Spread(typical, min(*rates, typical), max(*rates, typical))


def _median_rate(sessions: Sequence[SessionRecord]) -> float:
    rates = sorted((each.images / calling_s(each), each.images) for each in sessions)
    counts = list(accumulate(images for _, images in rates))
    return rates[bisect_left(counts, counts[-1] / 2)][0]


def _are_enough(sessions: Sequence[SessionRecord], least: tuple[int, float]) -> bool:
    images, seconds = sum(each.images for each in sessions), sum(map(calling_s, sessions))
    return images >= least[0] and seconds >= least[1]


def calling_s(session: SessionRecord) -> float:
    """Return the seconds in which calls were made; if the session did not pay for the model, all of its seconds."""
    if not session.billed_s:
        return session.seconds
    return sum(session.billed_s.get(use, 0.0) for use in _CALLING)


def choose(measurements: Measurements, calls: float, *, left_s: float, highest: int, limits: Limits) -> Estimate:
    """Return the estimate of the cheapest number of units that meets a deadline.

    Of those whose slow end meets it, the cheapest; of equal ones (within 5 %) the one with the fewest units. If none
    does, the fastest; of equal ones again the one with the fewest units.

    Args:
        measurements: of the model.
        calls: number of calls.
        left_s: seconds until the deadline; infinity without one.
        highest: the largest number of units.
        limits: what bounds the rate, and the price.
    """
    estimates = [measurements.estimate(calls, Units(units), limits=limits) for units in range(1, highest + 1)]
    in_time = [each for each in estimates if each.needed_s <= left_s]
    if in_time:
        cheapest = min(_cost(each) for each in in_time)
        return next(each for each in in_time if _cost(each) <= cheapest * _AS_GOOD)
    fastest = max(each.images_per_second_low for each in estimates)
    return next(each for each in estimates if each.images_per_second_low * _AS_GOOD >= fastest)


def _cost(estimate: Estimate) -> float:
    """Unit-seconds: the cost, also of a model that is free."""
    return estimate.billed_s * estimate.units


def restart_images(measurements: Measurements, *, now_tps: float, then_tps: float) -> float:
    """Return the number of images left from which stopping the model and starting it with more units saves time.

    Meanwhile `now_tps` would go on. The cost is nearly the same: an image costs the same with any number of units, and
    a starting model costs nothing. Infinity if `then_tps` is not faster.
    """
    if then_tps <= now_tps:
        return math.inf
    return restart_seconds(measurements) * now_tps * then_tps / (then_tps - now_tps)


def restart_seconds(measurements: Measurements) -> float:
    """Return the seconds without calls while the model is stopped and started."""
    return measurements.start_s.typical + measurements.overhead_s
