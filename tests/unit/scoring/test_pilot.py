"""The rate that a pilot measures, and its interval."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from batchcl.scoring.pilot import rate_of
from batchcl.summary import SessionRecord

IMAGES = 300
TRUE_TPS = 2.8


def session(seconds: float, *, images: int = IMAGES, units: str | None = "2", throttled: int = 1) -> SessionRecord:
    billed = {"start": 2.0, "scoring": 0.9 * seconds, "throttled": 0.1 * seconds, "tail": 3.0}
    return SessionRecord(number=0, images=images, units=units, billed_s=billed, throttled=throttled, calls=images)


@pytest.mark.parametrize(
    ("draw", "least", "most"),
    [
        pytest.param(lambda _: 1 / TRUE_TPS, 1.0, 1.0, id="constant"),
        pytest.param(lambda rng: rng.uniform(0.5, 1.5) / TRUE_TPS, 0.99, 1.0, id="images-of-different-sizes"),
        pytest.param(lambda rng: rng.expovariate(TRUE_TPS), 0.92, 0.98, id="as-different-as-the-interval-assumes"),
    ],
)
def test_the_interval_contains_the_true_rate(draw: Callable[[random.Random], float], least: float, most: float) -> None:
    rng, hits, tries = random.Random(0), 0, 400
    for _ in range(tries):
        rate = rate_of([session(sum(draw(rng) for _ in range(IMAGES)))])
        assert rate is not None
        hits += rate.tps_low <= TRUE_TPS <= rate.tps_high
    assert least <= hits / tries <= most


def test_sessions_with_the_newest_number_of_units_count_together() -> None:
    sessions = [session(10.0, units="1"), session(50.0, images=100), session(0.0, images=0), session(50.0, images=200)]
    rate = rate_of(sessions)
    assert rate is not None
    assert (rate.images, rate.units) == (300, "2")
    assert rate.tps == pytest.approx(3.0)
    assert rate.per_unit is not None
    assert rate.per_unit.typical == pytest.approx(1.5)


def test_a_rate_that_was_still_rising_is_a_lower_bound() -> None:
    rate = rate_of([session(100.0, throttled=0)])
    assert rate is not None
    assert rate.is_lower_bound
    short, long = rate_of([session(10.0)]), rate_of([session(100.0)])
    assert short is not None
    assert long is not None
    assert (short.is_lower_bound, long.is_lower_bound) == (True, False), "the rate rises in the first seconds"
    assert rate_of([session(0.0, images=0)]) is None


def test_without_units_there_is_no_rate_per_unit() -> None:
    rate = rate_of([session(100.0, units=None)])
    assert rate is not None
    assert rate.per_unit is None
