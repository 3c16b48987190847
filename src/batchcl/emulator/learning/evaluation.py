"""Evaluates a model on its test set, and determines the assumed threshold of each label.

The assumed threshold is the one with the highest F1 score of the label on the test set (Custom Labels guide, "Metrics
for evaluating your model"). A prediction with a box is right if its IoU with an object of its label is at least 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchcl.emulator.learning.model import Box, Prediction

__all__ = ["EvaluationResults", "HeldOutLabels", "LabelResult", "average_precision", "evaluate", "matches"]

IOU: Final = 0.5
_DEFAULT_THRESHOLD: Final = 0.5
_MIN_THRESHOLD: Final = 0.05


@dataclass(frozen=True, slots=True)
class HeldOutLabels:
    """Ground truth of one image: its labels and, for object location, a box per label, as ratios of the image."""

    labels: tuple[str, ...]
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """Metrics of one label on the test set at its assumed threshold; 0 to 1, except `images`."""

    label: str
    threshold: float
    precision: float
    recall: float
    f1: float
    average_precision: float
    images: int


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """Metrics of a model on its test set."""

    scores: tuple[LabelResult, ...]

    @property
    def thresholds(self) -> dict[str, float]:
        """Each label's assumed threshold, 0 to 1."""
        return {s.label: s.threshold for s in self.scores}

    def mean(self, name: str) -> float:
        """The mean of a metric over the labels that the test set has; 0 if it has none."""
        values = [float(getattr(s, name)) for s in self.scores if s.images]
        return sum(values) / len(values) if values else 0.0


def evaluate(
    labels: Sequence[str], truths: Sequence[HeldOutLabels], predictions: Sequence[Sequence[Prediction]]
) -> EvaluationResults:
    """Compute the metrics of each label; `predictions` has all predictions for each image, whatever the threshold."""
    scores = []
    for label in labels:
        confidences, right, wanted = _hits(label, truths, predictions)
        threshold = _best_threshold(confidences, right, wanted)
        taken = confidences >= threshold
        hits = int(right[taken].sum())
        precision = hits / int(taken.sum()) if taken.any() else 0.0
        recall = hits / wanted if wanted else 0.0
        scores.append(
            LabelResult(
                label=label,
                threshold=threshold,
                precision=precision,
                recall=recall,
                f1=2 * precision * recall / (precision + recall) if hits else 0.0,
                average_precision=_area(confidences, right, wanted),
                images=sum(label in truth.labels for truth in truths),
            )
        )
    return EvaluationResults(tuple(scores))


def average_precision(
    truths: Sequence[HeldOutLabels], predictions: Sequence[Sequence[Prediction]]
) -> Mapping[str, float]:
    """Area under the precision-recall curve (interpolated at all points) of each label in `truths`."""
    labels = sorted({label for truth in truths for label in truth.labels})
    return {label: _area(*_hits(label, truths, predictions)) for label in labels}


def matches(detections: Sequence[Prediction], truth: HeldOutLabels) -> list[bool]:
    """Whether each prediction is right; an object is matched by the most confident prediction that overlaps it."""
    if truth.boxes is None:
        return [d.label in truth.labels for d in detections]
    right = [False] * len(detections)
    free = set(range(len(truth.boxes)))
    for n in sorted(range(len(detections)), key=lambda n: -detections[n].confidence):
        detection = detections[n]
        if detection.box is None:
            continue
        near = [(detection.box.overlap(truth.boxes[t]), t) for t in free if truth.labels[t] == detection.label]
        best, t = max(near, default=(0.0, -1))
        if best >= IOU:
            right[n] = True
            free.remove(t)
    return right


def _hits(
    label: str, truths: Sequence[HeldOutLabels], predictions: Sequence[Sequence[Prediction]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Confidences of all predictions of `label`, which of them are right, and the number in the ground truth."""
    confidences: list[float] = []
    right: list[bool] = []
    for truth, detections in zip(truths, predictions, strict=True):
        mine = [d for d in detections if d.label == label]
        confidences += [d.confidence for d in mine]
        right += matches(mine, truth)
    wanted = sum(
        truth.labels.count(label) if truth.boxes is not None else int(label in truth.labels) for truth in truths
    )
    return np.asarray(confidences), np.asarray(right, bool), wanted


def _best_threshold(confidences: np.ndarray, right: np.ndarray, wanted: int) -> float:
    """The threshold between two confidences with the highest F1; of several, the one closest to 0.5."""
    if not right.any():
        return _DEFAULT_THRESHOLD
    order = np.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], np.cumsum(right[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + wanted)
    below = np.append(ranked[1:], 0.0)
    good = [
        min(max(_DEFAULT_THRESHOLD, float(below[n]) + 1e-4), float(ranked[n]))
        for n in np.flatnonzero(last & (f1 >= f1[last].max() - 1e-12))
    ]
    return max(_MIN_THRESHOLD, min(good, key=lambda place: abs(place - _DEFAULT_THRESHOLD)))


def _area(confidences: np.ndarray, right: np.ndarray, wanted: int) -> float:
    if not wanted or not right.any():
        return 0.0
    order = np.argsort(-confidences, kind="stable")
    last = np.append(np.diff(confidences[order]) != 0, True)  # equal confidences are one step
    hits = np.cumsum(right[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.append(0, hits)) / wanted
    return float((steps * best_from_here).sum())
