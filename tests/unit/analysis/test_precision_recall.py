"""Curves, chosen thresholds, calibration and bootstrap intervals of one label, compared with scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from batchcl.analysis.precision_recall import (
    Criterion,
    Curve,
    LabelScores,
    _extended,
    _interval,
    _wilson,
    bootstrap,
    choose,
    reliability,
)

NOT_DETECTED = -1.0
CRITERIA = [Criterion(), Criterion("precision", 0.7), Criterion("recall", 0.8)]


def label_scores(truth: NDArray[np.bool_], score: NDArray[np.float32]) -> LabelScores:
    """One score per image; NOT_DETECTED is none."""
    order = np.argsort(-score, kind="stable")
    order = order[score[order] != NOT_DETECTED]
    return LabelScores(score[order], truth[order], order, np.flatnonzero(truth), truth.size)


def random_images(
    random: np.random.Generator, images: int, *, decimals: int = 2, detected: float = 0.7, positives: float = 0.3
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """True labels and scores with ties; a share of the images has no score."""
    truth = random.random(images) < positives
    truth[0] = True
    score = np.where(truth, random.normal(65, 18, images), random.normal(35, 18, images)).clip(0, 100).round(decimals)
    return truth, np.where(random.random(images) < detected, score, NOT_DETECTED).astype(np.float32)


@pytest.mark.parametrize("decimals", [-1, 0, 2])
@pytest.mark.parametrize("images", [2, 3, 50, 700])
def test_curve_equals_that_of_scikit_learn(images: int, decimals: int) -> None:
    from sklearn.metrics import f1_score, precision_recall_curve  # takes a second

    for seed in range(5):
        truth, score = random_images(np.random.default_rng(seed), images, decimals=decimals)
        curve = Curve.of(label_scores(truth, score))
        precision, recall, thresholds = precision_recall_curve(truth, score)
        detected = thresholds != NOT_DETECTED
        assert curve.thresholds[::-1].tolist() == thresholds[detected].tolist()
        assert curve.precision[::-1] == pytest.approx(precision[:-1][detected])
        assert curve.recall[::-1] == pytest.approx(recall[:-1][detected])
        at_some = [f1_score(truth, score >= threshold) for threshold in curve.thresholds[:20:4]]
        assert curve.f1[:20:4] == pytest.approx(at_some)


@pytest.mark.parametrize("decimals", [-1, 2])
def test_thresholds_equal_a_search_over_scikit_learns_curve(decimals: int) -> None:
    from sklearn.metrics import precision_recall_curve

    for seed in range(20):
        truth, score = random_images(np.random.default_rng(seed), 80, decimals=decimals)
        precision, recall, thresholds = precision_recall_curve(truth, score)
        points = [
            (float(t), p, r)
            for t, p, r in zip(thresholds, precision[:-1], recall[:-1], strict=True)
            if t != NOT_DETECTED
        ]
        best = max(2 * p * r / (p + r) if p + r else 0.0 for _, p, r in points)
        expected = {
            Criterion(): min(t for t, p, r in points if p + r and 2 * p * r / (p + r) == pytest.approx(best)),
            Criterion("precision", 0.7): min((t for t, p, _ in points if p >= 0.7), default=None),
            Criterion("recall", 0.5): max((t for t, _, r in points if r >= 0.5), default=None),
        }
        curve = Curve.of(label_scores(truth, score))
        for criterion, threshold in expected.items():
            at, reached = choose(curve, criterion)
            assert bool(reached) == (threshold is not None), criterion
            assert not reached or float(curve.thresholds[at]) == threshold, criterion


def test_an_unreachable_criterion_gives_the_nearest_threshold() -> None:
    truth = np.array([True, False, True, False, True])
    scores = label_scores(truth, np.array([80, 90, 70, 60, NOT_DETECTED], dtype=np.float32))
    curve = Curve.of(scores)
    for criterion, threshold in ((Criterion("precision", 0.9), 70), (Criterion("recall", 0.9), 70)):
        at, reached = choose(curve, criterion)
        assert not reached
        assert curve.thresholds[at] == threshold


def test_calibration_equals_that_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    truth, score = random_images(np.random.default_rng(3), 500, decimals=5, detected=1)
    found = reliability(score, truth, bins=10)
    share, mean = calibration_curve(truth, score / 100, n_bins=10)
    filled = found.detections > 0
    assert found.share_correct[filled] == pytest.approx(share)
    assert found.mean_confidence[filled] / 100 == pytest.approx(mean)
    assert found.brier_score == pytest.approx(brier_score_loss(truth, score / 100))
    weights = found.detections[filled] / found.detections.sum()
    assert found.expected_calibration_error == pytest.approx(float((weights * abs(share - mean)).sum()))


def test_a_bin_includes_its_lower_edge_and_the_last_bin_100() -> None:
    confidence = np.array([100, 99.9, 70.1, 10, 9.99, 0], dtype=np.float32)
    found = reliability(confidence, np.zeros(6, dtype=np.bool_), bins=1000)
    assert np.flatnonzero(found.detections).tolist() == [0, 99, 100, 701, 999]
    assert found.detections[999] == 2


def f1_at(truth: NDArray[np.bool_], score: NDArray[np.float32], threshold: float) -> float:
    predicted = score >= np.float32(threshold)
    return float(2 * np.sum(truth & predicted) / (np.sum(truth) + np.sum(predicted)))


def plain_bootstrap(
    truth: NDArray[np.bool_], score: NDArray[np.float32], criterion: Criterion, resamples: int
) -> tuple[list[float], list[float], float]:
    """In each resample, the threshold that is chosen and the F1 at the one chosen on all images; and the optimism."""
    random = np.random.default_rng(99)
    at, _ = choose(curve := Curve.of(label_scores(truth, score)), criterion)
    thresholds, f1, gains = [], [], []
    for _ in range(resamples):
        drawn = random.integers(truth.size, size=truth.size)
        resampled = Curve.of(label_scores(truth[drawn], score[drawn]))
        chosen, reached = choose(resampled, criterion)
        threshold = float(resampled.thresholds[chosen])
        thresholds.append(threshold if reached else np.inf)
        f1.append(f1_at(truth[drawn], score[drawn], float(curve.thresholds[at])))
        gains.append(f1_at(truth[drawn], score[drawn], threshold) - f1_at(truth, score, threshold))
    return sorted(thresholds), f1, float(np.mean(gains))


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
@pytest.mark.parametrize("images", [120, 2500])
def test_bootstrap_agrees_with_a_plain_one_over_images(images: int, criterion: Criterion) -> None:
    """Of 2,500 images, blocks of images are drawn and some thresholds skipped, which must not change the intervals."""
    truth, score = random_images(np.random.default_rng(8), images, detected=0.95)
    scores = label_scores(truth, score)
    thresholds, f1, _ = plain_bootstrap(truth, score, criterion, 400)
    found = bootstrap(scores, Curve.of(scores), criterion, resamples=1000, seed=0)
    assert found.threshold[0] is not None
    assert thresholds[2] <= found.threshold[0] <= thresholds[20]  # the 2.5 % quantile is the tenth of 400
    assert thresholds[-20] <= (found.threshold[1] or np.inf) <= thresholds[-3]
    low, high = np.quantile(f1, [0.025, 0.975])
    assert 0.9 <= (found.f1[1] - found.f1[0]) / (high - low) <= 1.3


def test_intervals_of_metrics_are_corrected_for_optimism() -> None:
    truth, score = random_images(np.random.default_rng(4), 60, detected=0.95, positives=0.2)
    scores = label_scores(truth, score)
    _, f1, optimism = plain_bootstrap(truth, score, Criterion(), 1000)
    found = bootstrap(scores, Curve.of(scores), Criterion(), resamples=1000, seed=0)
    assert optimism > 0.04
    assert found.f1[0] == pytest.approx(np.quantile(f1, 0.025) - optimism, abs=0.02)


def test_resamples_without_a_positive_do_not_count() -> None:
    """The only cat is missing in a third of the resamples."""
    truth = np.array([True, False, False])
    scores = label_scores(truth, np.array([90, 80, NOT_DETECTED], dtype=np.float32))
    found = bootstrap(scores, Curve.of(scores), Criterion("recall", 0.9), resamples=500, seed=0)
    assert found.threshold == (90, 90)


def test_bootstrap_depends_on_nothing_but_its_seed() -> None:
    scores = label_scores(*random_images(np.random.default_rng(8), 100))
    curve = Curve.of(scores)
    first, second, other = (bootstrap(scores, curve, Criterion(), resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_images_without_the_label_change_no_interval_much() -> None:
    """100,000 true negatives hardly change what is known about a label."""
    truth, score = random_images(np.random.default_rng(8), 100)
    few = label_scores(truth, score)
    many = LabelScores(few.confidence, few.correct, few.image, few.positive_image, 100_000)
    narrow, wide = (bootstrap(each, Curve.of(each), Criterion(), resamples=2000, seed=0).f1 for each in (few, many))
    assert narrow == pytest.approx(wide, abs=0.03)


def test_detections_of_one_image_are_resampled_together() -> None:
    """Ten boxes on each of ten images are worth ten images, not a hundred."""
    correct = np.repeat(np.arange(10) % 2 == 0, 10)
    image = np.repeat(np.arange(10), 10)
    scores = LabelScores(np.full(100, 90, dtype=np.float32), correct, image, image, 10)
    low, high = bootstrap(scores, Curve.of(scores), Criterion(), resamples=500, seed=0).precision
    assert high - low > 0.5


def test_95_percent_of_intervals_contain_the_metric_of_new_images() -> None:
    """The threshold is chosen on 150 images; its true precision, recall and F1 are known from 300,000."""
    random = np.random.default_rng(5)
    new = Curve.of(label_scores(*random_images(random, 300_000, decimals=3, detected=1)))
    contained = []
    for number in range(120):
        scores = label_scores(*random_images(random, 150, decimals=3, detected=1))
        criterion = CRITERIA[number % len(CRITERIA)]
        curve = Curve.of(scores)
        at, reached = choose(curve, criterion)
        found = bootstrap(scores, curve, criterion, resamples=150, seed=0)
        true = int(np.searchsorted(-new.thresholds, -curve.thresholds[at]))
        assert reached
        for (low, high), values in ((found.precision, new.precision), (found.recall, new.recall), (found.f1, new.f1)):
            contained.append(low <= values[true] <= high)
    assert 0.92 <= np.mean(contained) <= 0.99


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (7, 7), (95, 100), (1, 3)])
def test_minimal_interval_is_wilsons(part: int, whole: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(part, whole).proportion_ci(method="wilson")
    assert _wilson(part, whole) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_interval_contains_the_minimal_one_within_0_and_1() -> None:
    assert _extended((0.8, 0.9), (0.85, 1.1)) == (0.8, 1.0)
    assert _extended((None, None), (0.2, 0.3)) == (0.2, 0.3)
    assert _extended((-0.1, 0.9), (0.85, 0.95)) == (0.0, 0.95)


def test_infinite_ends_of_an_interval_are_none() -> None:
    assert _interval(np.array([np.nan, np.nan])) == (None, None)
    assert _interval(np.array([1.0, 2.0, np.inf, np.nan])) == (1.0, None)
    assert _interval(np.array([-np.inf, *range(100)])) == (1.0, 97.0)
