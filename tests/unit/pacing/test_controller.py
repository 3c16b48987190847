from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.pacing.controller import FLOOR_TPS, START_TPS, RateController


def drive(controller: RateController, begin: float, seconds: float, *, used_share: float = 1.0) -> float:
    """Send and succeed at a share of the controller's own rate for so long; returns the time then."""
    now = begin
    while now < begin + seconds:
        controller.sent(now)
        controller.succeeded(now)
        now += 1 / (controller.rate_tps * used_share)
    return now


def throttled_once(rate_tps: float) -> RateController:
    """A controller that has left slow start, at `rate_tps` / 0.85 before."""
    controller = RateController(start_tps=rate_tps / 0.85)
    controller.sent(0.0)
    controller.succeeded(0.0)
    controller.throttled(0.0, sent_at=0.0)
    return controller


def test_the_first_rate_is_the_guess_below_the_ceiling() -> None:
    assert RateController().rate_tps == START_TPS
    assert RateController(start_tps=12).rate_tps == 12
    assert RateController(start_tps=12, ceiling_tps=4).rate_tps == 4


def test_until_the_first_throttle_the_rate_doubles_each_second() -> None:
    controller = RateController(start_tps=10)
    drive(controller, 0, 3)
    assert controller.rate_tps == pytest.approx(80, rel=0.05)


def test_after_a_throttle_the_rate_grows_by_a_small_share_a_second() -> None:
    controller = throttled_once(100)
    now = drive(controller, 0, 1)
    before = controller.rate_tps
    drive(controller, now, 10)
    assert controller.rate_tps / before == pytest.approx(1.03**10, rel=0.03)


def test_a_slow_rate_still_grows_by_a_tenth_a_second() -> None:
    controller = throttled_once(1)
    now = drive(controller, 0, 1)
    before = controller.rate_tps
    end = drive(controller, now, 10)
    assert (controller.rate_tps - before) / (end - now) == pytest.approx(0.1, rel=0.15)


def test_a_throttle_takes_a_share_and_a_sudden_one_takes_more() -> None:
    for sudden, rate in [(False, 85), (True, 60)]:
        controller = RateController(start_tps=100)
        controller.throttled(5.0, sent_at=4.9, sudden=sudden)
        assert controller.rate_tps == pytest.approx(rate)


def test_throttles_of_calls_from_before_the_decrease_say_nothing_new() -> None:
    controller = RateController(start_tps=100)
    controller.throttled(5.0, sent_at=4.9)
    for sent_at in (4.0, 4.95, 5.0):
        controller.throttled(5.1, sent_at=sent_at)
    assert controller.rate_tps == pytest.approx(85)
    controller.throttled(5.2, sent_at=5.01)
    assert controller.rate_tps == pytest.approx(85 * 0.85)


def test_the_rate_never_falls_below_the_floor() -> None:
    controller = RateController(start_tps=10)
    for now in range(1, 100):
        controller.throttled(now, sent_at=now)
    assert controller.rate_tps == FLOOR_TPS


def test_a_ceiling_below_the_floor_holds_after_throttles_too() -> None:
    controller = RateController(ceiling_tps=0.05)
    controller.throttled(1.0, sent_at=0.5)
    assert controller.rate_tps <= 0.05


def test_the_ceiling_stops_growth() -> None:
    controller = RateController(start_tps=10, ceiling_tps=25)
    drive(controller, 0, 5)
    assert controller.rate_tps == 25


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    controller = RateController(start_tps=10)
    now = drive(controller, 0, 2.5, used_share=0.3)
    before = controller.rate_tps
    drive(controller, now, 60, used_share=0.3)
    assert controller.rate_tps == before


def test_an_hour_without_calls_counts_as_one_second() -> None:
    controller = RateController(start_tps=10)
    controller.sent(0.0)
    controller.succeeded(0.0)
    controller.succeeded(3600.0)
    assert controller.rate_tps <= 20.0001


def test_a_rate_that_is_used_again_grows_again() -> None:
    controller = throttled_once(20)
    now = drive(controller, 0, 5, used_share=0.3)
    before = controller.rate_tps
    drive(controller, now, 5)
    assert controller.rate_tps > before


def test_it_finds_a_limit_and_stays_at_its_edge() -> None:
    limit_tps, bucket, now, served, refused = 40.0, 40.0, 0.0, 0, 0
    controller = RateController()
    while now < 300:
        step = 1 / controller.rate_tps
        now += step
        bucket = min(limit_tps, bucket + step * limit_tps)
        controller.sent(now)
        if bucket >= 1:
            bucket -= 1
            served += now > 60
            controller.succeeded(now)
        else:
            refused += now > 60
            controller.throttled(now, sent_at=now - 1e-6)
    assert served / (240 * limit_tps) > 0.9
    assert refused / (served + refused) < 0.05


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "succeeded", "throttled", "sudden"]),
            st.floats(min_value=0, max_value=1e5),
            st.floats(min_value=0, max_value=100),
        ),
        max_size=200,
    ),
    st.floats(min_value=0.01, max_value=1e4),
    st.one_of(st.sampled_from([math.inf, 0.05]), st.floats(min_value=0.01, max_value=1e4)),
)
def test_whatever_happens_the_rate_is_positive_and_below_the_ceiling(
    events: list[tuple[str, float, float]], start_tps: float, ceiling_tps: float
) -> None:
    controller = RateController(start_tps=start_tps, ceiling_tps=ceiling_tps)
    now = 0.0
    for kind, step, age in events:
        now += step
        if kind == "sent":
            controller.sent(now)
        elif kind == "succeeded":
            controller.succeeded(now)
        else:
            controller.throttled(now, sent_at=now - age, sudden=kind == "sudden")
        assert 0 < controller.rate_tps <= ceiling_tps
        assert not math.isnan(controller.rate_tps)
