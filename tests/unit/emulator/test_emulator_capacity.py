from __future__ import annotations

import contextlib

import pytest

from batchcl.emulator.capacity import Capacity, TokenBucket
from batchcl.emulator.errors import ApiError


def let_through(bucket: TokenBucket, *, rate: float, offered: float, seconds: float, start: float = 0.0) -> int:
    return sum(bucket.take(now=start + n / offered, rate=rate) for n in range(round(seconds * offered)))


def test_a_bucket_lets_its_rate_through_in_the_long_run() -> None:
    bucket = TokenBucket(2.8, now=0.0)
    assert let_through(bucket, rate=2.8, offered=100, seconds=1000) == pytest.approx(2.8 * 1001, abs=2)


def test_a_burst_is_at_most_one_second_of_the_rate() -> None:
    bucket = TokenBucket(50, now=0.0)
    assert sum(bucket.take(now=0.0, rate=50) for _ in range(500)) == 50
    assert sum(bucket.take(now=100.0, rate=50) for _ in range(500)) == 50


def test_a_slow_bucket_still_lets_single_calls_through() -> None:
    bucket = TokenBucket(0.1, now=0.0)
    assert [bucket.take(now=float(t), rate=0.1) for t in (0, 1, 9.9, 10, 11)] == [True, False, False, True, False]


def test_a_client_exactly_at_the_rate_is_never_refused() -> None:
    bucket = TokenBucket(7, now=0.0)
    for _ in range(7):
        bucket.take(now=0.0, rate=7)
    assert all(bucket.take(now=(n + 1) / 7, rate=7) for n in range(10_000))


def test_a_lower_rate_applies_at_once() -> None:
    bucket = TokenBucket(40, now=0.0)
    let_through(bucket, rate=40, offered=40, seconds=5)
    assert let_through(bucket, rate=5, offered=100, seconds=10, start=5.0) == pytest.approx(55, abs=2)


def test_a_clock_that_goes_back_adds_no_tokens() -> None:
    bucket = TokenBucket(1, now=100.0)
    assert bucket.take(now=100.0, rate=1)
    assert not any(bucket.take(now=now, rate=1) for now in (50.0, 10.0, 100.0))


def test_a_model_takes_as_many_images_as_its_units() -> None:
    for units in (1, 3, 5):
        capacity = Capacity(tps_per_unit=2.8, account_tps=1e9, control_tps=1e9)
        taken = 0
        refusals = set()
        for n in range(60_000):
            try:
                capacity.admit_inference("arn", units=units, now=n / 100)
            except ApiError as error:
                refusals.add((error.code, str(error)))
            else:
                taken += 1
        assert taken == pytest.approx(2.8 * units * 601, abs=3)
        assert refusals == {("ProvisionedThroughputExceededException", "Provisioned Rate exceeded")}


@pytest.mark.parametrize(("megapixels", "units"), [(0.01, 1), (1, 1), (1, 4), (12, 1), (12, 5)])
def test_an_image_takes_a_units_seconds_per_megapixel(megapixels: float, units: int) -> None:
    capacity = Capacity(tps_per_unit=2.8, account_tps=1e9, control_tps=1e9, seconds_per_megapixel=0.2)
    taken = 0
    for n in range(60_000):
        with contextlib.suppress(ApiError):
            capacity.admit_inference("arn", units=units, now=n / 100)
            capacity.charge_pixels("arn", round(megapixels * 1e6))
            taken += 1
    assert taken == pytest.approx(600 * units / (1 / 2.8 + 0.2 * megapixels), rel=0.01)


def test_a_burst_of_large_images_is_paid_for_by_later_ones() -> None:
    bucket = TokenBucket(4, now=0.0)
    assert sum(bucket.take(now=0.0, rate=4) for _ in range(9)) == 4
    bucket.charge(4 * 5.0)
    assert [bucket.take(now=now, rate=4) for now in (5.0, 5.24, 5.25, 5.26, 5.5)] == [False, False, True, False, True]


def test_each_operation_account_and_region_has_its_own_bucket() -> None:
    capacity = Capacity(tps_per_unit=1, account_tps=2, control_tps=1)
    who = {"account": "1", "region": "a"}
    capacity.admit_call("CreateProject", **who, now=0.0)
    with pytest.raises(ApiError, match="Provisioned Rate exceeded"):
        capacity.admit_call("CreateProject", **who, now=0.0)
    capacity.admit_call("DescribeProjects", **who, now=0.0)
    capacity.admit_call("CreateProject", account="2", region="a", now=0.0)
    capacity.admit_call("CreateProject", account="1", region="b", now=0.0)
    for _ in range(2):
        capacity.admit_call("DetectCustomLabels", **who, now=0.0)
    with pytest.raises(ApiError):
        capacity.admit_call("DetectCustomLabels", **who, now=0.0)
