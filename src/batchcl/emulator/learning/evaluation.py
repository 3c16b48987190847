"""How good a trained model is on its test set, and each label's assumed threshold.

The assumed threshold is where the label's F1 score on the test set is best (Custom Labels guide, "Metrics for
evaluating your model"). A detection with a box is right if it overlaps an object of its label by half (IoU 0.5).
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
_UNKNOWN: Final = 0.5
_LOWEST: Final = 0.05


@dataclass(frozen=True, slots=True)
class HeldOutLabels:
    """What is on one image: its labels, and for object location as many boxes in ratios of the image."""

    labels: tuple[str, ...]
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """One label on the test set; all numbers but `images` are 0 to 1, at the assumed threshold."""

    label: str
    threshold: float
    precision: float
    recall: float
    f1: float
    average_precision: float
    images: int


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """A model on its test set; the aggregates are means over the labels that the test set has."""

    scores: tuple[LabelResult, ...]

    @property
    def thresholds(self) -> dict[str, float]:
        """Each label's assumed threshold, 0 to 1."""
        return {s.label: s.threshold for s in self.scores}

    def mean(self, name: str) -> float:
        """The mean of one number over the labels that the test set has; 0 if it has none."""
        values = [float(getattr(s, name)) for s in self.scores if s.images]
        return sum(values) / len(values) if values else 0.0


def evaluate(
    labels: Sequence[str], truths: Sequence[HeldOutLabels], seen: Sequence[Sequence[Prediction]]
) -> EvaluationResults:
    """Score each label; `seen` is what the model saw in each image, whatever the threshold."""
    scores = []
    for label in labels:
        confidences, right, wanted = _hits(label, truths, seen)
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


def average_precision(truths: Sequence[HeldOutLabels], seen: Sequence[Sequence[Prediction]]) -> Mapping[str, float]:
    """Area under each label's precision-recall curve (all points, interpolated), for the labels in `truths`."""
    labels = sorted({label for truth in truths for label in truth.labels})
    return {label: _area(*_hits(label, truths, seen)) for label in labels}


def matches(detections: Sequence[Prediction], truth: HeldOutLabels) -> list[bool]:
    """Whether each detection is right; an object counts for the most confident detection that overlaps it."""
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
    label: str, truths: Sequence[HeldOutLabels], seen: Sequence[Sequence[Prediction]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Confidences of all detections of `label`, which of them are right, and how many there are to find."""
    confidences: list[float] = []
    right: list[bool] = []
    for truth, detections in zip(truths, seen, strict=True):
        mine = [d for d in detections if d.label == label]
        confidences += [d.confidence for d in mine]
        right += matches(mine, truth)
    wanted = sum(
        truth.labels.count(label) if truth.boxes is not None else int(label in truth.labels) for truth in truths
    )
    return np.asarray(confidences), np.asarray(right, bool), wanted


def _best_threshold(confidences: np.ndarray, right: np.ndarray, wanted: int) -> float:
    """Between two confidences, where F1 is best; of equally good places the one nearest to a half."""
    if not right.any():
        return _UNKNOWN
    order = np.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], np.cumsum(right[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + wanted)
    below = np.append(ranked[1:], 0.0)
    good = [
        min(max(_UNKNOWN, float(below[n]) + 1e-4), float(ranked[n]))
        for n in np.flatnonzero(last & (f1 >= f1[last].max() - 1e-12))
    ]
    return max(_LOWEST, min(good, key=lambda place: abs(place - _UNKNOWN)))


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
