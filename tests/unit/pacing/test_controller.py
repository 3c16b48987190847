from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.pacing.controller import FLOOR_TPS, START_TPS, RateController

Limit = Callable[[float], float]


class Bucket:
    """A token bucket of so many calls that refuses at once."""

    def __init__(self, tps: Limit, *, burst: float = 10.0) -> None:
        self._tps = tps
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def takes(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._tps(now))
        self._at = now
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True


class Drive:
    """Sends at the controller's own rate, each call answered after `latency_s`, and counts."""

    def __init__(self, controller: RateController, *, begin: float = 0.0) -> None:
        self.controller = controller
        self.now = begin
        self.taken = self.refused = 0

    def over(self, bucket: Bucket, seconds: float, *, sudden: bool = False, downloads: bool = False) -> Drive:
        until = self.now + seconds
        self.taken = self.refused = 0
        while self.now < until:
            self.controller.sent(self.now)
            if bucket.takes(self.now):
                self.taken += 1
                self.controller.succeeded(self.now + 1e-6, sent_at=self.now)
            else:
                self.refused += 1
                self.controller.throttled(self.now + 1e-6, sent_at=self.now, sudden=sudden, downloads=downloads)
            self.now += 1 / self.controller.rate_tps
        return self


def free(controller: RateController, begin: float, seconds: float, *, used_share: float = 1.0) -> float:
    """Send and succeed at a share of the controller's own rate for so long; returns the time then."""
    now = begin
    while now < begin + seconds:
        controller.sent(now)
        controller.succeeded(now)
        now += 1 / (controller.rate_tps * used_share)
    return now


def test_the_first_rate_is_the_guess_below_the_ceiling() -> None:
    assert RateController().rate_tps == pytest.approx(START_TPS)
    assert RateController(start_tps=12).rate_tps == pytest.approx(12)
    assert RateController(start_tps=12, learned=True).rate_tps == pytest.approx(12)
    assert RateController(start_tps=12, ceiling_tps=4).rate_tps == pytest.approx(4)


def test_a_guess_is_doubled_each_second_until_the_first_refusal() -> None:
    controller = RateController(start_tps=10)
    free(controller, 0, 3)
    assert controller.rate_tps == pytest.approx(80, rel=0.05)


def test_a_learned_rate_is_probed_gently_first() -> None:
    controller = RateController(start_tps=10, learned=True)
    free(controller, 0, 3)
    assert 10 <= controller.rate_tps < 10.5


@pytest.mark.parametrize("tps", [1, 2, 3, 14, 50, 200])
@pytest.mark.parametrize("burst_s", [0, 1])
def test_it_finds_a_limit_and_stays_at_its_edge(tps: float, burst_s: float) -> None:
    drive, bucket = Drive(RateController()), Bucket(lambda _: tps, burst=max(1.5, burst_s * tps))
    drive.over(bucket, 400)
    drive.over(bucket, 1000)
    assert drive.taken / (1000 * tps) > (0.975 if tps > 1 else 0.9)
    assert drive.refused / (drive.taken + drive.refused) < (0.02 if tps > 1 else 0.15)
    assert drive.controller.learned_tps == pytest.approx(tps, rel=0.05 if tps > 1 else 0.1)


def test_a_limit_that_falls_costs_a_handful_of_refusals() -> None:
    limit = [40.0]
    drive, bucket = Drive(RateController()), Bucket(lambda _: limit[0])
    drive.over(bucket, 200)
    limit[0] = 5.0
    drive.over(bucket, 20)
    assert drive.refused < 40
    drive.over(bucket, 60)
    assert drive.controller.learned_tps == pytest.approx(5, rel=0.15)


def test_a_limit_that_rises_is_found_in_half_a_minute() -> None:
    limit = [10.0]
    drive, bucket = Drive(RateController()), Bucket(lambda _: limit[0])
    drive.over(bucket, 200)
    limit[0] = 40.0
    drive.over(bucket, 40)
    drive.over(bucket, 20)
    assert drive.taken > 0.95 * 20 * 40


def test_refusals_of_calls_from_before_the_last_cut_say_nothing_new() -> None:
    controller = RateController(start_tps=100)
    for now in (4.0, 4.5, 4.9):
        controller.sent(now)
    controller.throttled(5.0, sent_at=4.9)
    cut = controller.rate_tps
    controller.throttled(5.1, sent_at=4.5)
    assert controller.rate_tps == pytest.approx(cut, rel=0.001)


def test_a_ramp_that_was_too_fast_is_taken_up_more_slowly() -> None:
    times = {}
    for sudden in (False, True):
        controller = RateController(start_tps=10)
        now = free(controller, 0, 2)
        if sudden:
            before = controller.rate_tps
            controller.throttled(now, sent_at=now, sudden=True)
            assert controller.rate_tps < 0.7 * before
            assert controller.learned_tps is None, "the ramp says nothing about the capacity"
        begin, reached = now, 3 * controller.rate_tps
        while controller.rate_tps < reached:
            now = free(controller, now, 0.1)
        times[sudden] = now - begin
    assert times[True] > 1.8 * times[False]


def test_s3s_limit_holds_while_it_lasts_and_leaves_the_models_limit_as_it_was() -> None:
    controller = RateController()
    drive = Drive(controller)
    drive.over(Bucket(lambda _: 20.0), 300)
    model = controller.learned_tps
    drive.over(Bucket(lambda _: 8.0, burst=1.5), 100, downloads=True)
    assert controller.rate_tps == pytest.approx(8, rel=0.1)
    assert controller.learned_tps == model
    drive.over(Bucket(lambda _: 20.0), 100)
    assert controller.rate_tps == pytest.approx(20, rel=0.1)


def test_the_rate_never_falls_below_the_floor() -> None:
    controller = RateController(start_tps=10)
    for now in range(1, 1000):
        controller.sent(now)
        controller.throttled(now, sent_at=now)
    assert 0.9 * FLOOR_TPS <= controller.rate_tps < 1


def test_the_ceiling_stops_growth_and_is_forgotten_at_the_next_refusal() -> None:
    controller = RateController(start_tps=10, ceiling_tps=25)
    now = free(controller, 0, 500)
    assert controller.rate_tps == 25
    assert controller.learned_tps is None, "a ceiling is no capacity"
    controller.throttled(now, sent_at=now)
    assert 15 < controller.rate_tps < 25


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    controller = RateController(start_tps=10)
    now = free(controller, 0, 2.5, used_share=0.3)
    before = controller.rate_tps
    now = free(controller, now, 60, used_share=0.3)
    assert controller.rate_tps == before
    free(controller, now, 5)
    assert controller.rate_tps > before, "used again, it grows again"


def test_an_hour_without_calls_counts_as_one_second() -> None:
    controller = RateController(start_tps=10)
    controller.sent(0.0)
    controller.succeeded(0.0)
    controller.succeeded(3600.0)
    assert controller.rate_tps <= 20.0001


def test_one_who_is_refused_before_it_has_probed_shares_and_varies_its_gaps() -> None:
    controller = RateController()
    drive, bucket = Drive(controller), Bucket(lambda _: 20.0)
    drive.over(bucket, 300)
    assert controller.jitter_share == 0, "alone"
    rng = random.Random(5)

    class Crowded(Bucket):
        def takes(self, now: float) -> bool:  # noqa: ARG002 - chance decides
            return rng.random() > 0.05

    drive.over(Crowded(lambda _: 20.0), 60)
    assert controller.jitter_share > 0
    assert 1 < controller.rate_tps < 30
    drive.over(bucket, 300)
    assert controller.jitter_share == 0, "alone again"
    assert controller.rate_tps == pytest.approx(20, rel=0.05)


def test_refusals_that_never_end_do_not_drive_it_away() -> None:
    rng = random.Random(5)

    class Crowded(Bucket):
        def takes(self, now: float) -> bool:  # noqa: ARG002 - chance decides
            return rng.random() > 0.15

    drive = Drive(RateController())
    drive.over(Crowded(lambda _: 20.0), 600)
    drive.over(Crowded(lambda _: 20.0), 600)
    assert drive.taken / 600 > 0.6


@given(st.lists(st.sampled_from(["succeeded", "throttled", "downloads", "lost", "unsent"]), max_size=60), st.randoms())
def test_what_has_ended_is_not_in_flight(ends: list[str], rng: random.Random) -> None:
    controller = RateController()
    for number in range(len(ends)):
        controller.sent(float(number))
    assert controller.in_flight == len(ends)
    order = list(enumerate(ends))
    rng.shuffle(order)
    for left, (number, end) in zip(reversed(range(len(order))), order, strict=True):
        sent_at = number + 0.5
        if end == "succeeded":
            controller.succeeded(100.0, sent_at=sent_at)
        elif end == "lost":
            controller.lost()
        elif end == "unsent":
            controller.unsent(sent_at=sent_at)
        else:
            controller.throttled(100.0, sent_at=sent_at, downloads=end == "downloads")
        assert controller.in_flight == left


class Queue:
    """Answers `tps` calls a second, one after the other; each waits for those before it."""

    def __init__(self, *, latency_s: float) -> None:
        self.latency_s = latency_s
        self.free_at = 0.0
        self.answers: list[tuple[float, float]] = []

    def drive(self, controller: RateController, begin: float, seconds: float, *, tps: float) -> tuple[float, float]:
        """Send for so long; returns the time then and the latest wait."""
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


def test_a_service_that_queues_instead_of_refusing_is_found_and_its_queue_drained() -> None:
    controller, queue = RateController(), Queue(latency_s=0.3)
    now, _ = queue.drive(controller, 0, 300, tps=14)
    waits = []
    for _ in range(60):
        now, wait_s = queue.drive(controller, now, 5, tps=14)
        waits.append(wait_s)
    assert max(waits) < 8
    assert sum(waits) / len(waits) < 1.5
    assert controller.learned_tps == pytest.approx(14, rel=0.15)


def test_images_that_take_longer_are_no_queue() -> None:
    controller = RateController(start_tps=10, learned=True, ceiling_tps=10)
    queue = Queue(latency_s=0.2)
    now, _ = queue.drive(controller, 0, 60, tps=1000)
    queue.latency_s = 2.0
    now, _ = queue.drive(controller, now, 200, tps=1000)
    queue.drive(controller, now, 100, tps=1000)
    assert controller.rate_tps > 9


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "succeeded", "throttled", "sudden", "downloads"]),
            st.floats(min_value=0, max_value=1e5),
            st.floats(min_value=0, max_value=100),
        ),
        max_size=200,
    ),
    st.floats(min_value=0.01, max_value=1e4),
    st.booleans(),
    st.one_of(st.sampled_from([math.inf, 0.05]), st.floats(min_value=0.01, max_value=1e4)),
)
def test_whatever_happens_the_rate_is_positive_and_below_the_ceiling(
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
        else:
            controller.throttled(now, sent_at=now - age, sudden=kind == "sudden", downloads=kind == "downloads")
        assert 0 < controller.rate_tps <= ceiling_tps
        assert not math.isnan(controller.rate_tps)
