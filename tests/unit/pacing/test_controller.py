from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.pacing.controller import FLOOR_TPS, START_TPS, RateController

Limit = Callable[[float], float]


class Bucket:
    """A token bucket that refuses calls over the limit, and a share of all calls at random."""

    def __init__(self, tps: Limit, *, burst: float = 10.0, at_random: float = 0.0) -> None:
        self._tps = tps
        self._burst = burst
        self._tokens = burst
        self._at = 0.0
        self._at_random = at_random
        self._rng = random.Random(7)

    def takes(self, now: float) -> bool:
        if self._rng.random() < self._at_random:
            return False
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._tps(now))
        self._at = now
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True


class Drive:
    """Sends at the controller's rate with immediate responses, and counts."""

    def __init__(self, controller: RateController) -> None:
        self.controller = controller
        self.now = 0.0
        self.taken = self.refused = 0

    def over(self, bucket: Bucket, seconds: float, *, by_model: bool = True, used_share: float = 1.0) -> Drive:
        until = self.now + seconds
        self.taken = self.refused = 0
        while self.now < until:
            self.controller.sent(self.now)
            if bucket.takes(self.now):
                self.taken += 1
                self.controller.succeeded(self.now + 1e-6, sent_at=self.now)
            else:
                self.refused += 1
                self.controller.throttled(self.now + 1e-6, sent_at=self.now, by_model=by_model)
            self.now += 1 / (self.controller.rate_tps * used_share)
        return self


def unlimited() -> Bucket:
    return Bucket(lambda _: 1e9, burst=1e9)


def test_the_first_rate_is_the_start_rate_or_the_ceiling() -> None:
    assert RateController().rate_tps == START_TPS
    assert RateController(start_tps=12, learned=True).rate_tps == 12
    assert RateController(start_tps=12, ceiling_tps=4).rate_tps == 4


def test_the_start_rate_doubles_every_two_seconds_until_a_cut() -> None:
    drive = Drive(RateController(start_tps=10)).over(unlimited(), 6)
    assert drive.controller.rate_tps == pytest.approx(80, rel=0.1)


def test_a_learned_rate_grows_slowly_at_first() -> None:
    drive = Drive(RateController(start_tps=10, learned=True)).over(unlimited(), 3)
    assert 10 <= drive.controller.rate_tps < 11


@pytest.mark.parametrize("tps", [2, 3, 14, 50, 200])
@pytest.mark.parametrize("burst_s", [0, 1])
def test_it_finds_a_limit_and_stays_at_its_edge(tps: float, burst_s: float) -> None:
    drive, bucket = Drive(RateController()), Bucket(lambda _: tps, burst=max(1.5, burst_s * tps))
    drive.over(bucket, 200).over(bucket, 400)
    assert drive.taken / (400 * tps) > (0.95 if tps > 3 else 0.93)
    assert drive.refused / (drive.taken + drive.refused) < (0.015 if tps > 10 else 0.07)
    assert drive.controller.measured_tps == pytest.approx(tps, rel=0.12)


def test_a_limit_that_falls_is_found_in_seconds() -> None:
    limit = [40.0]
    drive, bucket = Drive(RateController()), Bucket(lambda _: limit[0])
    drive.over(bucket, 200)
    limit[0] = 8.0
    assert drive.over(bucket, 10).refused < 80
    assert drive.over(bucket, 60).refused < 20
    assert drive.controller.measured_tps == pytest.approx(8, rel=0.15)


def test_a_limit_that_rises_is_found_in_half_a_minute() -> None:
    limit = [10.0]
    drive, bucket = Drive(RateController()), Bucket(lambda _: limit[0])
    drive.over(bucket, 200)
    limit[0] = 50.0
    drive.over(bucket, 30).over(bucket, 20)
    assert drive.taken > 0.95 * 20 * 50


@pytest.mark.parametrize("share", [0.005, 0.05])
@pytest.mark.parametrize("tps", [14.0, 50.0, 200.0])
def test_refusals_at_random_do_not_slow_it_down(share: float, tps: float) -> None:
    drive, bucket = Drive(RateController()), Bucket(lambda _: tps, at_random=share)
    drive.over(bucket, 200).over(bucket, 300)
    assert drive.taken / (300 * tps) > 0.9
    assert drive.refused / (drive.taken + drive.refused) < 2 * share + 0.03


@pytest.mark.parametrize("share", [0.005, 0.05])
def test_a_rate_without_limit_grows_through_refusals_at_random(share: float) -> None:
    drive = Drive(RateController(ceiling_tps=300)).over(Bucket(lambda _: 1e9, burst=1e9, at_random=share), 150)
    assert drive.controller.rate_tps == 300
    drive.over(Bucket(lambda _: 1e9, burst=1e9, at_random=share), 30)
    assert drive.taken > 0.9 * (1 - share) * 30 * 300


def test_after_refusals_at_random_have_ended_each_one_cuts_again() -> None:
    drive, calm = Drive(RateController()), Bucket(lambda _: 14.0)
    drive.over(Bucket(lambda _: 14.0, at_random=0.05), 600).over(calm, 3600).over(calm, 600)
    assert drive.refused < 0.02 * drive.taken


def test_refusals_of_calls_before_the_last_cut_are_ignored() -> None:
    drive = Drive(RateController(start_tps=20)).over(Bucket(lambda _: 20.0), 60)
    controller, now = drive.controller, drive.now
    while controller.rate_tps > 0.9 * 20:
        drive.over(Bucket(lambda _: 10.0), 1)
        now = drive.now
    before = controller.rate_tps
    for _ in range(50):
        controller.throttled(now + 2, sent_at=now - 30)
    assert controller.rate_tps == before


@pytest.mark.parametrize("by_model", [True, False])
def test_other_limits_cut_the_rate_but_not_the_capacity(*, by_model: bool) -> None:
    drive = Drive(RateController()).over(Bucket(lambda _: 20.0), 200)
    drive.over(Bucket(lambda _: 8.0, burst=1.5), 100, by_model=by_model)
    assert drive.controller.rate_tps == pytest.approx(8, rel=0.2)
    assert drive.controller.measured_tps == pytest.approx(8 if by_model else 20, rel=0.15)
    drive.over(Bucket(lambda _: 20.0), 100)
    assert drive.controller.rate_tps == pytest.approx(20, rel=0.2)


def test_without_responses_the_rate_falls_to_the_floor() -> None:
    drive = Drive(RateController(start_tps=10)).over(Bucket(lambda _: 0.0, burst=0.0), 1000)
    assert FLOOR_TPS <= drive.controller.rate_tps < 1
    assert drive.controller.measured_tps is None
    assert drive.controller.sustained_tps is None


def test_the_ceiling_stops_growth_and_is_sustained() -> None:
    drive = Drive(RateController(start_tps=10, ceiling_tps=25)).over(unlimited(), 500)
    assert drive.controller.rate_tps == 25
    assert drive.controller.measured_tps is None, "a ceiling is no capacity"
    assert drive.controller.sustained_tps == pytest.approx(25, rel=0.02)
    drive.over(Bucket(lambda _: 12.0, burst=1.5), 30)
    assert drive.controller.rate_tps == pytest.approx(12, rel=0.2)


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    drive = Drive(RateController(start_tps=10)).over(unlimited(), 10, used_share=0.3)
    before = drive.controller.rate_tps
    assert drive.over(unlimited(), 60, used_share=0.3).controller.rate_tps == before
    assert drive.over(unlimited(), 10).controller.rate_tps > before, "used again, it grows again"


def test_an_idle_hour_counts_as_one_second() -> None:
    drive = Drive(RateController(start_tps=10)).over(unlimited(), 5)
    before = drive.controller.rate_tps
    drive.now += 3600
    drive.controller.sent(drive.now)
    assert drive.controller.rate_tps <= 1.5 * before


def test_unsent_calls_do_not_make_the_rate_grow() -> None:
    controller, now = RateController(start_tps=10), 0.0
    for _ in range(1000):
        controller.sent(now)
        controller.unsent(sent_at=now)
        now += 1 / controller.rate_tps
    assert controller.rate_tps < 12


def test_clients_without_backoff_do_not_starve_it() -> None:
    """5 to 10 % of the calls are refused at random, capacity 20 per second; the last case is a rare slow one."""
    cases = [(seed, 0.05 + 0.05 * seed / 24) for seed in range(25)] + [(30324809, 0.08823966356811964)]
    rates_tps = []
    for seed, share in cases:
        bucket = Bucket(lambda _: 20.0, at_random=share)
        bucket._rng.seed(seed)
        rates_tps.append(Drive(RateController()).over(bucket, 300).over(bucket, 300).taken / 300)
    assert statistics.median(rates_tps) > 17
    assert min(rates_tps) > 1


class Queue:
    """Processes `tps` calls a second in order; each call waits for those before it."""

    def __init__(self, *, latency_s: float) -> None:
        self.latency_s = latency_s
        self.free_at = 0.0
        self.answers: list[tuple[float, float]] = []

    def drive(self, controller: RateController, begin: float, seconds: float, *, tps: float) -> tuple[float, float]:
        """Send for `seconds`; returns the time at the end and the last call's wait."""
        now = send_at = begin
        while now < begin + seconds:
            due_at = self.answers[0][0] if self.answers else math.inf
            if due_at <= send_at:
                now, sent_at = self.answers.pop(0)
                controller.succeeded(now, sent_at=sent_at)
                continue
            now = send_at
            controller.sent(now)
            self.free_at = max(now, self.free_at) + 1 / tps
            self.answers.append((self.free_at + self.latency_s, now))
            send_at = now + 1 / controller.rate_tps
        return now, self.free_at - now


@pytest.mark.parametrize("tps", [3.0, 14.0])
def test_a_queue_stays_far_shorter_than_the_deadline_of_a_call(tps: float) -> None:
    controller, queue = RateController(), Queue(latency_s=0.3)
    now, _ = queue.drive(controller, 0, 300, tps=tps)
    for _ in range(60):
        now, wait_s = queue.drive(controller, now, 5, tps=tps)
        assert 0 < wait_s < 40


def test_slow_images_are_not_a_queue() -> None:
    controller, queue = RateController(start_tps=10, learned=True, ceiling_tps=10), Queue(latency_s=0.2)
    now, _ = queue.drive(controller, 0, 60, tps=1000)
    queue.latency_s = 3.0
    queue.drive(controller, now, 300, tps=1000)
    assert controller.rate_tps == 10


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "succeeded", "throttled", "other limit", "unsent"]),
            st.floats(min_value=0, max_value=1e5),
            st.floats(min_value=0, max_value=100),
        ),
        max_size=200,
    ),
    st.floats(min_value=0.01, max_value=1e4),
    st.booleans(),
    st.one_of(st.sampled_from([math.inf, 0.05]), st.floats(min_value=0.01, max_value=1e4)),
)
def test_the_rate_is_always_positive_and_below_the_ceiling(
    events: list[tuple[str, float, float]], start_tps: float, learned: bool, ceiling_tps: float
) -> None:
    controller = RateController(start_tps=start_tps, learned=learned, ceiling_tps=ceiling_tps)
    now = 0.0
    for kind, step, age in events:
        now += step
        if kind == "sent":
            controller.sent(now)
        elif kind == "succeeded":
            controller.succeeded(now, sent_at=now - age)
        elif kind == "unsent":
            controller.unsent(sent_at=now - age)
        else:
            controller.throttled(now, sent_at=now - age, by_model=kind == "throttled")
        assert 0 < controller.rate_tps <= ceiling_tps
        assert math.isfinite(controller.rate_tps)


def test_the_capacity_is_a_learned_rate_until_it_is_measured() -> None:
    assert RateController(start_tps=9.0).capacity_tps is None
    assert RateController(start_tps=9.0, learned=True).capacity_tps == 9.0
    drive = Drive(RateController(start_tps=9.0, learned=True)).over(Bucket(lambda _: 20.0), 60)
    assert drive.controller.capacity_tps == drive.controller.measured_tps is not None
