"""Rates, start-up and overhead of earlier sessions, and the estimates and choices that follow from them."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace
from typing import Any

import pytest

from batchcl.quantities import Units
from batchcl.runs.spending import RunSpending
from batchcl.scoring.estimates import (
    ASSUMED_TPS_PER_UNIT,
    NEWEST,
    Basis,
    Estimate,
    Limits,
    Measurements,
    choose,
    measure,
    restart_images,
    restart_seconds,
)
from batchcl.summary import SessionRecord

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/p/version/v/1700000000000"
BEGUN = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
LIMITS = Limits(max_tps=None, account_tps=50, unit_hour_usd=4.0)


def session(images: int, scoring_s: float, *, units: str = "1", **fields: Any) -> SessionRecord:
    billed = {"start": 2.0, "scoring": scoring_s, "throttled": 0.0, "idle": 0.0, "tail": 1.0, "stop": 1.0}
    values: dict[str, Any] = {"billed_s": billed, "start_s": 300.0} | fields
    return SessionRecord(number=0, images=images, units=units, seconds=scoring_s + 1, **values)


def run(*sessions: SessionRecord, model: str = MODEL) -> RunSpending:
    return RunSpending(run_id="r", model_arn=model, started_at=BEGUN, sessions=sessions)


def measured(*sessions: SessionRecord) -> Measurements:
    return measure([run(each) for each in sessions], MODEL)


def estimate(found: Measurements, calls: int, units: Units, *, max_tps: float | None = None) -> Estimate:
    return found.estimate(calls, units, limits=replace(LIMITS, max_tps=max_tps))


def test_the_rate_is_the_median_over_the_images_of_all_sessions():
    found = measured(session(1000, 250), session(800, 400), session(900, 300), session(100, 100))
    one = estimate(found, 4000, Units(1))
    assert (one.basis, one.images_per_second_low, one.images_per_second_high) == (Basis.MEASURED, 1.0, 4.0)
    assert one.images_per_second == 3.0
    assert one.billed_s == pytest.approx(4000 / 3 + 4)
    assert one.dollars == pytest.approx(one.billed_s * 4 / 3600)
    assert (one.billed_s_low, one.billed_s_high) == (4000 / 4 + 4, 4000 / 1 + 4)


def test_throttled_seconds_count_and_idle_ones_do_not():
    billed = {"start": 2.0, "scoring": 90.0, "throttled": 10.0, "idle": 500.0, "tail": 1.0, "stop": 1.0}
    one = estimate(measured(session(300, 0, billed_s=billed)), 300, Units(1))
    assert one.images_per_second == 3.0
    assert one.billed_s == 100 + 504


def test_the_overhead_is_a_median_so_an_hour_unattended_changes_nothing():
    unattended = session(500, 100, billed_s={"scoring": 100.0, "idle": 3600.0})
    found = measured(session(500, 100), unattended, session(500, 100))
    assert (found.overhead_s, found.start_s.typical, found.starts) == (4.0, 300.0, 3)


def test_a_session_that_did_not_pay_measures_the_rate_only():
    found = measured(session(303, 100, billed_s={}, start_s=None))
    assert estimate(found, 1, Units(1)).images_per_second == 3.0
    assert found.starts == 0


def test_only_the_newest_sessions_of_the_model_count():
    old, other = [session(1000, 1000)] * 3, run(session(1000, 1000), model=MODEL + "9")
    runs = [*map(run, old), *[run(session(1000, 200))] * NEWEST, other]
    one = measure(runs, MODEL).estimate(1, Units(1), limits=LIMITS)
    assert (one.images_per_second_low, one.images_per_second_high) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("units", "expected", "scaled_from"), [(2, 6.0, "2"), (1, 3.0, "2"), (3, 9.0, "2"), (4, 16.0, "5"), (5, 20.0, "5")]
)
def test_other_numbers_of_units_are_scaled_from_the_nearest(units, expected, scaled_from):
    found = measured(session(600, 100, units="2"), session(2000, 100, units="5"), session(90, 9, units="3"))
    each = estimate(found, 1000, Units(units))
    assert each.images_per_second == pytest.approx(expected)
    assert each.measured_units == scaled_from
    assert each.basis == (Basis.MEASURED if str(units) == scaled_from else Basis.SCALED)


def test_without_measurements_the_rate_is_assumed_with_a_wide_range():
    for found in (measured(), measured(session(19, 100)), measured(session(1000, 9.9))):
        each = estimate(found, 1000, Units(2))
        assert (each.basis, each.measured_units) == (Basis.ASSUMED, None)
        assert each.images_per_second == 2 * ASSUMED_TPS_PER_UNIT
        assert each.images_per_second_high == 4 * each.images_per_second_low
    assert measured().start_s.high == 1800


def test_a_short_session_counts_if_there_is_no_long_one():
    short = session(300, 20, units="3")
    assert estimate(measured(short), 1000, Units(3)).images_per_second == 15.0
    assert estimate(measured(short, session(300, 100)), 1000, Units(3)).images_per_second == 9.0


def test_limits_bound_the_rate_but_not_below_what_was_measured():
    found = measured(session(1200, 100, units="1"))
    at_five = estimate(found, 1000, Units(5))
    assert (at_five.images_per_second, at_five.is_limited) == (50.0, True)
    at_five = estimate(found, 1000, Units(5), max_tps=20.0)
    assert (at_five.images_per_second, at_five.billed_s) == (20.0, 1000 / 20 + 4)
    assert not estimate(found, 1000, Units(1)).is_limited
    fast = measured(session(8000, 100, units="5"))
    assert estimate(fast, 1000, Units(5)).images_per_second == 80.0


def test_auto_scaling_costs_per_image_what_its_minimum_costs():
    found = measured(session(600, 200, units="1"), session(900, 150, units="1:3"))
    scaled, fixed = estimate(found, 9000, Units(1, 3)), estimate(found, 9000, Units(1))
    assert (scaled.basis, scaled.images_per_second, scaled.max_units) == (Basis.MEASURED, 6.0, 3)
    assert scaled.dollars == pytest.approx(fixed.dollars)
    assert scaled.billed_s < fixed.billed_s


def test_a_job_without_calls_costs_nothing():
    each = estimate(measured(), 0, Units(3))
    assert (each.billed_s, each.dollars, each.needed_s) == (0, 0, 0)


@pytest.mark.parametrize(
    ("left_s", "highest", "units"),
    [(math.inf, 5, 1), (5000, 5, 1), (3000, 5, 2), (1500, 5, 4), (1500, 2, 2), (100, 5, 5)],
)
def test_the_fewest_units_that_meet_the_deadline_are_chosen(left_s, highest, units):
    """4,000 images take 1,004 s with one unit that scores 4 a second; the slow end is 1 a second."""
    found = measured(session(4000, 1000), session(100, 100))
    chosen = choose(found, 3600, left_s=left_s, highest=highest, limits=LIMITS)
    assert chosen.units == units
    slow_s = (300 + 3600 / units + 4) * 1.1
    assert chosen.needed_s == pytest.approx(slow_s)
    assert (chosen.needed_s <= left_s) == (left_s >= slow_s)


def test_units_that_the_limits_leave_idle_are_not_chosen():
    limits = Limits(max_tps=7.0, account_tps=50, unit_hour_usd=4)
    assert choose(measured(session(900, 300)), 50_000, left_s=60, highest=5, limits=limits).units == 3


def test_a_restart_pays_off_from_the_number_of_images_that_says_so():
    found = measured(session(900, 300))
    images = restart_images(found, now_tps=3.0, then_tps=9.0)
    for left, is_faster in ((images * 0.99, False), (images * 1.01, True)):
        assert (restart_seconds(found) + left / 9 < left / 3) is is_faster
    assert restart_images(found, now_tps=3.0, then_tps=3.0) == math.inf
