"""Billed seconds by use, and dollars by month."""

from __future__ import annotations

import datetime as dt

import pytest

from batchcl.lifetime.meter import BilledUse, Meter
from batchcl.summary import BILLED_USES

HOUR_S = 3600.0


class Clock:
    """A clock and the date that it shows."""

    def __init__(self, at: str) -> None:
        self.begun = dt.datetime.fromisoformat(at)
        self.now = 0.0

    def utcnow(self) -> dt.datetime:
        return self.begun + dt.timedelta(seconds=self.now)


def meter_at(at: str = "2026-11-10T22:00:00+00:00") -> tuple[Meter, Clock]:
    clock = Clock(at)
    return Meter(clock=lambda: clock.now, utcnow=clock.utcnow), clock


def test_each_second_has_one_use() -> None:
    meter, clock = meter_at()
    clock.now = 100
    meter.open(usd_per_second=8 / HOUR_S, ago_s=3)
    clock.now = 110
    meter.enter(BilledUse.SCORING)
    clock.now = 120
    meter.attribute({BilledUse.SCORING: 0.75, BilledUse.THROTTLED: 0.25})
    clock.now = 130
    meter.attribute({BilledUse.IDLE: 1.0})
    clock.now = 140
    meter.attribute({BilledUse.TAIL: 1.0})
    clock.now = 141
    meter.enter(BilledUse.STOP)
    clock.now = 150
    meter.close()
    clock.now = 1000
    bill = meter.read()
    assert bill.seconds == {"start": 13, "scoring": 8.5, "throttled": 2.5, "idle": 10, "tail": 10, "stop": 9}
    assert bill.dollars == pytest.approx(53 * 8 / HOUR_S, abs=1e-5)


def test_the_uses_of_records_are_those_of_the_meter() -> None:
    assert tuple(BILLED_USES) == tuple(BilledUse)


def test_nothing_is_billed_before_open_and_after_close() -> None:
    meter, clock = meter_at()
    clock.now = 50
    meter.enter(BilledUse.SCORING)
    meter.attribute({BilledUse.SCORING: 1.0})
    meter.close()
    assert not meter.was_opened
    assert meter.read().seconds == {}
    assert meter.read().dollars == 0


def test_a_reading_includes_the_time_not_attributed_yet() -> None:
    meter, clock = meter_at()
    meter.open(usd_per_second=1.0)
    meter.enter(BilledUse.SCORING)
    clock.now = 0.5
    assert meter.read().seconds == {"scoring": 0.5}
    assert meter.read().dollars == 0.5
    assert meter.read().seconds == {"scoring": 0.5}, "a reading counts nothing"


def test_a_restarted_model_continues_with_its_use() -> None:
    meter, clock = meter_at()
    meter.open(usd_per_second=1.0)
    meter.enter(BilledUse.SCORING)
    clock.now = 10
    meter.close()
    clock.now = 300
    meter.open(usd_per_second=1.0, ago_s=1)
    clock.now = 310
    meter.close()
    assert meter.read().seconds == {"scoring": 20, "start": 1}


def test_unattended_seconds_of_a_dead_session_are_idle() -> None:
    meter, clock = meter_at()
    clock.now = 5
    meter.open(usd_per_second=1.0, ago_s=40, use=BilledUse.IDLE)
    assert meter.read().seconds == {"idle": 40, "start": 0}
    assert meter.read().dollars == 40


def test_dollars_belong_to_the_utc_month_of_each_second() -> None:
    meter, clock = meter_at("2026-11-30T23:00:00+00:00")
    meter.open(usd_per_second=4 / HOUR_S, ago_s=HOUR_S)
    meter.enter(BilledUse.SCORING)
    clock.now = 3 * HOUR_S
    meter.close()
    assert meter.read().dollars_by_month == pytest.approx({"2026-11": 8.0, "2026-12": 8.0}, abs=1e-4)


def test_a_bill_over_several_months_has_all_of_them() -> None:
    meter, clock = meter_at("2026-10-31T00:00:00+02:00")
    meter.open(usd_per_second=1 / HOUR_S)
    clock.now = 40 * 24 * HOUR_S
    bill = meter.read().dollars_by_month
    assert list(bill) == ["2026-10", "2026-11", "2026-12"]
    assert bill["2026-11"] == pytest.approx(30 * 24, abs=1e-3)
    assert sum(bill.values()) == pytest.approx(40 * 24, abs=1e-3)


def test_billing_that_ended_earlier_is_removed_from_the_current_use_first() -> None:
    meter, clock = meter_at()
    meter.open(usd_per_second=1.0)
    meter.enter(BilledUse.SCORING)
    clock.now = 100
    meter.attribute({BilledUse.SCORING: 1.0})
    meter.enter(BilledUse.STOP)
    clock.now = 110
    meter.close(ago_s=5)
    assert meter.read().seconds == {"scoring": 100, "stop": 5}
    meter.open(usd_per_second=1.0)
    clock.now = 120
    meter.attribute({BilledUse.STOP: 1.0})
    meter.close(ago_s=20)
    assert meter.read().seconds == {"scoring": 100, "stop": 5}, "what was counted before it was opened last remains"


def test_a_closed_meter_may_be_closed_earlier() -> None:
    meter, clock = meter_at()
    meter.open(usd_per_second=1.0)
    meter.enter(BilledUse.SCORING)
    clock.now = 100
    meter.close()
    clock.now = 150
    meter.close()
    assert meter.read().seconds == {"scoring": 100}
    meter.close(ago_s=120)
    meter.close(ago_s=60)
    assert meter.read().seconds == {"scoring": 30}
    assert meter.read().dollars == 30


def test_removed_seconds_leave_their_month() -> None:
    meter, clock = meter_at("2026-11-30T23:00:00+00:00")
    meter.open(usd_per_second=4 / HOUR_S)
    clock.now = 2 * HOUR_S
    meter.attribute({BilledUse.SCORING: 1.0})
    meter.close(ago_s=1.5 * HOUR_S)
    assert meter.read().dollars_by_month == pytest.approx({"2026-11": 2.0, "2026-12": 0.0}, abs=1e-4)
    meter.close(ago_s=HOUR_S)
    assert meter.read().dollars == pytest.approx(2.0, abs=1e-4)


def test_no_more_is_removed_than_was_counted() -> None:
    meter, clock = meter_at()
    meter.open(usd_per_second=1.0)
    clock.now = 10
    meter.close(ago_s=100)
    assert meter.read().dollars == 0
    assert not any(meter.read().seconds.values())
