"""The precision-recall curve of one label, the threshold that meets a criterion, bootstrap intervals, calibration.

Pure numpy on the scores of one label; `analysis/thresholds.py` collects them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Criterion", "Curve", "Intervals", "LabelScores", "Reliability", "bootstrap", "choose", "reliability"]

_BLOCKS: Final = 500
_STEPS: Final = 500
"""The largest number of blocks of images that a bootstrap resamples, and of thresholds that it evaluates.

With fewer images and scores it is exact. Beyond that, 500 blocks estimate a standard error within 3 %, and 500 steps
are 0.2 % of the scores each; time and memory stay constant.
"""
_TAIL: Final = 0.025
_Z: Final = 1.959964
"""The standard normal quantile of 1 - `_TAIL`."""

Metric = Literal["f1", "precision", "recall"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a threshold is chosen for.

    `f1`: the best F1, of several thresholds the lowest. `precision`: the lowest threshold with at least the precision
    `at_least`. `recall`: the highest threshold with at least the recall `at_least`.
    """

    metric: Metric = "f1"
    at_least: float = 0.0

    def __str__(self) -> str:
        return "best F1" if self.metric == "f1" else f"{self.metric} of at least {self.at_least:g}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelScores:
    """The scores of one label on images with a ground truth.

    Attributes:
        confidence: of each detection, 0 to 100, 32 bits, descending.
        correct: whether the detection is right.
        image: the number of the image of each detection, 0 to `images` - 1.
        positive_image: the number of the image of each true label or object, detected or not.
        images: number of images.
    """

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    image: NDArray[np.integer[Any]]
    positive_image: NDArray[np.integer[Any]]
    images: int

    @property
    def images_behind(self) -> int:
        """The number of images with a positive, or of those with a detection if that is smaller."""
        return min(int(np.count_nonzero(np.bincount(each))) for each in (self.image, self.positive_image))

    @property
    def negative_images(self) -> int:
        """The number of images without a positive."""
        return self.images - int(np.count_nonzero(np.bincount(self.positive_image)))

    def from_confidence(self, lowest: float) -> LabelScores:
        """Without the detections below `lowest`."""
        kept = int(np.count_nonzero(self.confidence >= np.float32(lowest)))
        return LabelScores(
            self.confidence[:kept], self.correct[:kept], self.image[:kept], self.positive_image, self.images
        )


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Counts at each threshold, for one data set or for many resamples of it.

    Attributes:
        thresholds: the distinct confidences, descending; a detection counts if its confidence is not below it.
        true_positives: right detections, one per threshold (last axis).
        predicted: detections, likewise.
        positives: true labels or objects; the last axis has length 1.
    """

    thresholds: NDArray[np.float32]
    true_positives: NDArray[np.float64]
    predicted: NDArray[np.float64]
    positives: NDArray[np.float64]

    @classmethod
    def of(cls, scores: LabelScores) -> Curve:
        """The curve of `scores`."""
        last = np.flatnonzero(_is_last_of_each(scores.confidence))
        return cls(
            thresholds=scores.confidence[last],
            true_positives=np.cumsum(scores.correct, dtype=np.float64)[last],
            predicted=np.asarray(last + 1, dtype=np.float64),
            positives=np.array([float(scores.positive_image.size)]),
        )

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the detections that are right; NaN without detections."""
        return _ratio(self.true_positives, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the positives that were detected; NaN without positives."""
        return _ratio(self.true_positives, self.positives)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall; NaN with neither detections nor positives."""
        return _ratio(2 * self.true_positives, self.predicted + self.positives)


def choose(curve: Curve, criterion: Criterion) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The index of the threshold that meets `criterion` in each data set of `curve`, and whether there is one.

    If there is none, the index is that of the nearest threshold: with the highest precision or recall.
    """
    values = getattr(curve, criterion.metric)
    is_confidence = np.diff(curve.predicted, prepend=0) > 0  # of any detection of this data set
    values = np.where(is_confidence & ~np.isnan(values), values, -1.0)
    if criterion.metric == "f1":
        best = _last_highest(values)
        return best, np.take_along_axis(values, best[..., None], axis=-1)[..., 0] > 0
    enough = values >= criterion.at_least
    reached = enough.any(axis=-1)
    if criterion.metric == "precision":
        return np.where(reached, _last_highest(enough), _last_highest(values)), np.asarray(reached)
    return np.where(reached, np.argmax(enough, axis=-1), np.argmax(values, axis=-1)), np.asarray(reached)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of 95 %, lower and upper end; None for a threshold that the data do not bound."""

    threshold: tuple[float | None, float | None]
    precision: tuple[float, float]
    recall: tuple[float, float]
    f1: tuple[float, float]


def bootstrap(scores: LabelScores, curve: Curve, criterion: Criterion, *, resamples: int, seed: int) -> Intervals:
    """Bootstrap intervals: images are drawn with replacement, `resamples` times, and a threshold is chosen each time.

    The interval of the threshold is that of the chosen ones. Where none meets the criterion, it counts as infinite:
    above all confidences for a precision, below all for a recall.

    The intervals of the metrics are for new images at the threshold that `choose` finds on `curve`: percentiles of the
    resamples at this threshold, minus the optimism, because a threshold looks better on the images that it was chosen
    on. Optimism is how much better the thresholds of the resamples are on their own resample than on all images (Efron
    and Tibshirani, An Introduction to the Bootstrap, 17.6; the shift of the interval: Noma et al. 2021, Statistics in
    Medicine 40, 5691). They are extended to Wilson's interval, because resamples of a perfect result are all perfect.

    Args:
        scores: of one label; at least one detection.
        curve: `Curve.of(scores)`.
        criterion: to choose by.
        resamples: at least 1.
        seed: of the random numbers.
    """
    chosen = int(choose(curve, criterion)[0])
    kept = np.union1d(evenly(curve.thresholds.size, _STEPS), [chosen])
    resampled = _resampled(scores, curve, kept, resamples, np.random.default_rng(seed))
    steps, reached = choose(resampled, criterion)
    nowhere = {"f1": np.nan, "precision": np.inf, "recall": -np.inf}[criterion.metric]
    thresholds = np.where(reached, resampled.thresholds[steps].astype(np.float64), nowhere)
    thresholds[resampled.positives[:, 0] == 0] = np.nan

    def at_chosen(metric: Metric) -> NDArray[np.float64]:
        values = getattr(resampled, metric)
        gain = np.take_along_axis(values, steps[:, None], axis=1)[:, 0] - getattr(curve, metric)[kept[steps]]
        optimism = gain[~np.isnan(gain)].sum() / max(np.count_nonzero(~np.isnan(gain)), 1)
        return np.asarray(values[:, np.searchsorted(kept, chosen)] - optimism)

    right, found, positives = curve.true_positives[chosen], curve.predicted[chosen], curve.positives[0]
    low, high = _wilson(right, found + positives - right)
    return Intervals(
        threshold=_interval(thresholds),
        precision=_extended(_interval(at_chosen("precision")), _wilson(right, found)),
        recall=_extended(_interval(at_chosen("recall")), _wilson(right, positives)),
        # F1 grows with the share of right ones among all that are found or true, so its interval is that of the share
        f1=_extended(_interval(at_chosen("f1")), (2 * low / (1 + low), 2 * high / (1 + high))),
    )


def _resampled(
    scores: LabelScores, curve: Curve, kept: NDArray[np.int64], resamples: int, random: np.random.Generator
) -> Curve:
    """The curves of `resamples` resamples, at the thresholds `kept` of `curve`.

    Images without a detection and a positive of the label change no count, so only the others are drawn. Of more than
    `_BLOCKS` images, random blocks are drawn.
    """
    image = np.concatenate([scores.image, scores.positive_image])
    is_drawn = np.bincount(image) > 0
    images = int(np.count_nonzero(is_drawn))
    blocks = min(images, _BLOCKS)
    block_of = np.arange(images) % blocks
    if blocks < images:
        random.shuffle(block_of)
    block = block_of[np.cumsum(is_drawn)[image] - 1]
    all_blocks = max(round(scores.images * blocks / images), blocks)
    drawn = random.binomial(all_blocks, blocks / all_blocks, size=resamples)
    draws = np.repeat(np.arange(resamples) * blocks, drawn) + random.integers(blocks, size=int(drawn.sum()))
    weights = np.bincount(draws, minlength=resamples * blocks).reshape(resamples, blocks).astype(np.float64)

    is_last = _is_last_of_each(scores.confidence)
    step = np.asarray(np.searchsorted(kept, np.cumsum(is_last) - is_last))
    of_detection, of_positive = block[: scores.image.size], block[scores.image.size :]

    def counts(which: NDArray[np.bool_] | slice) -> NDArray[np.float64]:
        cell = of_detection[which] * kept.size + step[which]
        cells = np.bincount(cell, minlength=blocks * kept.size).reshape(blocks, kept.size)
        return np.cumsum(weights @ cells, axis=1)

    return Curve(
        thresholds=curve.thresholds[kept],
        true_positives=counts(scores.correct),
        predicted=counts(slice(None)),
        positives=(weights @ np.bincount(of_positive, minlength=blocks))[:, None],
    )


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How confidences compare with the share of right detections, in bins of equal width from 0 to 100.

    Attributes:
        detections: per bin; a bin includes its lower edge, the last one also 100.
        mean_confidence: per bin, 0 to 100; NaN if it is empty.
        share_correct: per bin, 0 to 1; NaN if it is empty.
        expected_calibration_error: mean of |confidence / 100 - share correct|, bins weighted by detections, 0 to 1.
        brier_score: mean of (confidence / 100 - correct)² over the detections, 0 to 1.
    """

    detections: NDArray[np.int64]
    mean_confidence: NDArray[np.float64]
    share_correct: NDArray[np.float64]
    expected_calibration_error: float
    brier_score: float


def reliability(confidence: NDArray[np.float32], correct: NDArray[np.bool_], *, bins: int) -> Reliability:
    """The calibration of at least one detection."""
    edges = (np.arange(1, bins) * 100 / bins).astype(np.float32)
    bin_of = np.searchsorted(edges, confidence, side="right")
    percent = confidence.astype(np.float64)
    detections = np.bincount(bin_of, minlength=bins)
    mean = _ratio(np.bincount(bin_of, weights=percent, minlength=bins), detections)
    share = _ratio(np.bincount(bin_of, weights=correct, minlength=bins), detections)
    gaps = np.nan_to_num(np.abs(mean / 100 - share))
    return Reliability(
        detections=detections,
        mean_confidence=mean,
        share_correct=share,
        expected_calibration_error=float(np.average(gaps, weights=detections)),
        brier_score=float(np.mean((percent / 100 - correct) ** 2)),
    )


def evenly(size: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices into `size` values, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.int64))


def _is_last_of_each(descending: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.append(descending[1:] != descending[:-1], np.ones(min(descending.size, 1), dtype=np.bool_))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole, dtype=np.float64)


def _last_highest(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last index of the highest value on the last axis: the lowest of equally good thresholds."""
    return np.asarray(values.shape[-1] - 1 - np.argmax(values[..., ::-1], axis=-1))


def _interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The central 95 % of `values` without NaN, as two of the values; None for an infinite end, or without values."""
    ordered = np.sort(values[~np.isnan(values)])
    if not ordered.size:
        return None, None
    ends = ordered[int(_TAIL * ordered.size)], ordered[-1 - int(_TAIL * ordered.size)]
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return low, high


def _wilson(part: float, whole: float) -> tuple[float, float]:
    """Wilson's interval of a proportion; `whole` above 0."""
    centre, half = part + _Z**2 / 2, _Z * math.sqrt(part * (whole - part) / whole + _Z**2 / 4)
    return (centre - half) / (whole + _Z**2), (centre + half) / (whole + _Z**2)


def _extended(interval: tuple[float | None, float | None], minimal: tuple[float, float]) -> tuple[float, float]:
    """The smallest interval within 0 to 1 that contains both."""
    low, high = interval
    return (
        max(min(low if low is not None else 1.0, float(minimal[0])), 0.0),
        min(max(high if high is not None else 0.0, float(minimal[1])), 1.0),
    )
