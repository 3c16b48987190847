"""Intervals and tests of shares, against scipy and published examples, and how often they give false alarms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchcl.analysis import shares

Alarms = np.ndarray[Any, np.dtype[np.bool_]]

NIGHTS = 1000
IMAGES = 2000
LABELS = 10
BASE_SHARES = np.linspace(0.095, 0.105, LABELS)
MOST_ALARMS = 0.05 + 2 * math.sqrt(0.05 * 0.95 / NIGHTS)
"""Five percent and two standard errors."""


def test_wilson_intervals_equal_a_published_example() -> None:
    # Newcombe 1998, two-sided intervals for the single proportion, method 3: 81/263, 15/148, 0/20
    low, high = shares.wilson_intervals([81], 263)
    assert (round(low[0], 4), round(high[0], 4)) == (0.2553, 0.3662)
    low, high = shares.wilson_intervals([15], 148)
    assert (round(low[0], 4), round(high[0], 4)) == (0.0624, 0.1605)
    low, high = shares.wilson_intervals([0], 20)
    assert (round(low[0], 4), round(high[0], 4)) == (0.0, 0.1611)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [((48, 80), (56, 70), 0.0524, 0.3339), ((3, 10), (9, 10), 0.1705, 0.8090), ((0, 29), (5, 56), -0.0381, 0.1926)],
)
def test_differences_of_samples_equal_published_examples(
    a: tuple[int, int], b: tuple[int, int], low: float, high: float
) -> None:
    found = shares.difference_of_samples([a[0]], a[1], [b[0]], b[1])
    assert [round(float(each[0]), 4) for each in found] == [low, high]


def test_the_difference_of_pairs_equals_a_hand_computed_example() -> None:
    # lost 7, gained 1 of 21: b = 2/23, c = 8/23, -6/23 -+ 1.95996 * sqrt((10/23 - 36/529) / 23)
    low, high = shares.difference_of_pairs([7], [1], 21)
    assert (round(float(low[0]), 3), round(float(high[0]), 3)) == (-0.508, -0.013)
    low, high = shares.difference_of_pairs([0, 5], [0, 0], 5)
    assert np.all(low >= -1)
    assert low[0] < 0 < high[0]


def test_without_images_nothing_is_known() -> None:
    for low, high in (
        shares.wilson_intervals([0], 0),
        shares.difference_of_samples([0], 0, [3], 10),
        shares.difference_of_pairs([0], [0], 0),
    ):
        assert np.isnan(low).all()
        assert np.isnan(high).all()
    assert shares.fisher_p_values([0], 0, [3], 10).tolist() == [1.0]
    assert shares.mcnemar_p_values([0], [0]).tolist() == [1.0]
    assert shares.adjusted_p_values(np.array([])).tolist() == []


def test_p_values_equal_those_of_scipy() -> None:
    from scipy.stats import binomtest, fisher_exact  # takes a second

    random = np.random.default_rng(5)
    a, b = random.integers(0, 40, 50), random.integers(0, 60, 50)
    expected = [fisher_exact([[x, 40 - x], [y, 60 - y]]).pvalue for x, y in zip(a, b, strict=True)]
    assert shares.fisher_p_values(a, 40, b, 60) == pytest.approx(expected, abs=0)
    expected = [binomtest(int(y), int(x + y)).pvalue for x, y in zip(a, b, strict=True) if x + y]
    assert shares.mcnemar_p_values(a, b)[a + b > 0] == pytest.approx(expected, abs=0)


def test_p_values_equal_hand_computed_ones() -> None:
    # 5 of 5 that changed gained the label: 2 / 2^5; 1 and 3 of 4: 10 / 16
    assert shares.mcnemar_p_values([0, 1], [5, 3]) == pytest.approx([2 / 32, 10 / 16])
    # a lady tasting tea, 3 of 4 right: 34 / 70
    assert shares.fisher_p_values([3], 4, [1], 4) == pytest.approx([34 / 70])
    # Benjamini and Hochberg: 0.01 * 3 / 1, 0.02 * 3 / 2, 0.5
    assert shares.adjusted_p_values(np.array([0.01, 0.5, 0.02])) == pytest.approx([0.03, 0.5, 0.03])


def test_the_distance_is_the_mean_move_of_the_confidences() -> None:
    from scipy.stats import wasserstein_distance

    before, after = np.zeros(1001, int), np.zeros(1001, int)
    before[[500, 700]], after[[530, 700]] = 10, 20
    assert shares.confidence_distance(before, after, bin_width=0.1) == pytest.approx(1.5)
    expected = wasserstein_distance([50.0, 70.0], [53.0, 70.0])
    assert shares.confidence_distance(before, after, bin_width=0.1) == pytest.approx(expected)
    assert shares.confidence_distance(before, before, bin_width=0.1) == 0
    assert shares.confidence_distance(before, None, bin_width=0.1) is None


@cache
def fisher_p_value(a: int, b: int) -> float:
    if a > 100 and b - a < 25:
        return 1.0  # it is above 0.1, so it is never reported and affects no other
    return float(shares.fisher_p_values([a], IMAGES, [b], IMAGES)[0])


@cache
def mcnemar_p_value(lost: int, gained: int) -> float:
    return float(shares.mcnemar_p_values([lost], [gained])[0])


def alarms(p_value: Callable[[int, int], float], counts: np.ndarray[Any, np.dtype[np.int64]]) -> Alarms:
    """For each night and label, whether it is reported; `counts`: night, label, and the two counts of a test."""
    p_values = [[p_value(*sorted(each)) for each in night] for night in counts.tolist()]
    return np.array([shares.adjusted_p_values(np.array(each)) for each in p_values]) <= shares.FALSE_DISCOVERY_RATE


def alarms_of_samples(seed: int, *, shift: float) -> Alarms:
    """Both nights of a pair are independent samples; `shift` is of the first label."""
    random = np.random.default_rng(seed)
    after = BASE_SHARES + shift * (np.arange(LABELS) == 0)
    counts = [random.binomial(IMAGES, each, (NIGHTS, LABELS)) for each in (BASE_SHARES, after)]
    return alarms(fisher_p_value, np.stack(counts, axis=2))


def alarms_of_pairs(seed: int, *, shift: float) -> Alarms:
    """Both nights have the same images: a fifth of those with a label lose it, and as many others gain it."""
    random = np.random.default_rng(seed)
    lost = BASE_SHARES / 5
    gained = lost + shift * (np.arange(LABELS) == 0)
    counts = random.multinomial(IMAGES, np.stack([lost, gained, 1 - lost - gained], axis=1), (NIGHTS, LABELS))
    return alarms(mcnemar_p_value, counts[:, :, :2])


SIMULATED = pytest.mark.parametrize(("simulated", "at"), [(alarms_of_samples, 0), (alarms_of_pairs, 1)])


def documented(pattern: str) -> list[float]:
    """The numbers that docs/compare.md has in this place, for samples and for pairs."""
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    match = re.search(pattern, " ".join(page.split()))
    assert match is not None
    return [float(number) / 100 for number in match.groups()]


@SIMULATED
def test_nights_without_a_shift_seldom_give_an_alarm(simulated: Callable[..., Alarms], at: int) -> None:
    share = simulated(101, shift=0).any(axis=1).mean()
    assert 0 < share <= MOST_ALARMS
    pattern = r"reported as significant in ([\d.]+) % \(samples\) and ([\d.]+) % \(pairs\)"
    assert share == pytest.approx(documented(pattern)[at], abs=0.01)


@SIMULATED
def test_a_shift_of_five_points_is_detected(simulated: Callable[..., Alarms], at: int) -> None:
    found = simulated(102, shift=0.05)
    assert found[:, 0].mean() >= 0.9
    assert found[:, 0].mean() == pytest.approx(documented(r"was reported in ([\d.]+) % and ([\d.]+) %")[at], abs=0.01)
    false_among_reported = found[:, 1:].sum(axis=1) / np.maximum(found.sum(axis=1), 1)
    assert false_among_reported.mean() <= MOST_ALARMS
