"""The result files of a training: the evaluation summary and the manifest snapshots.

Formats: Custom Labels guide, "Reference: Training results summary file" and "Interpreting the evaluation manifest
snapshot".
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.learning.evaluation import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchcl.emulator.learning.evaluation import HeldOutLabels
    from batchcl.emulator.learning.model import Box, Prediction
    from batchcl.emulator.learning.training import Example, Trained

__all__ = ["snapshot", "summary", "training_snapshot"]

_TRAINING_JOB: Final = "rekognition-custom-labels-training-job"
_EVALUATION_JOB: Final = "rekognition-custom-labels-evaluation-job"
_DETAILS: Final = "rekognition-custom-labels-evaluation-details"
_MIN_CONFIDENCE: Final = 0.05


def summary(trained: Trained, *, version_arn: str, ended: float) -> bytes:
    """The summary file, JSON; `ended` in seconds since the epoch."""
    evaluation = trained.evaluation
    aggregated: dict[str, Any] = {
        "Precision": evaluation.mean("precision"),
        "Recall": evaluation.mean("recall"),
        "F1Score": evaluation.mean("f1"),
    }
    if trained.model.locates:
        aggregated["AveragePrecision"] = evaluation.mean("average_precision")
        aggregated["AverageRecall"] = evaluation.mean("recall")
    else:
        aggregated["ConfusionMatrix"] = _confusion(trained)
    document = {
        "Version": 1,
        "EvaluationDetails": {
            "ProjectVersionArn": version_arn,
            "EvaluationEndTimestamp": dt.datetime.fromtimestamp(ended, dt.UTC).replace(tzinfo=None).isoformat(),
            "Labels": list(trained.model.labels),
            "NumberOfTrainingImages": len(trained.train),
            "NumberOfTestingImages": len(trained.test),
        },
        "AggregatedEvaluationResults": aggregated,
        "LabelEvaluationResults": [
            {
                "Label": score.label,
                "NumberOfTestingImages": score.images,
                "Metrics": {
                    "Threshold": score.threshold,
                    "Precision": score.precision,
                    "Recall": score.recall,
                    "F1Score": score.f1,
                },
            }
            for score in sorted(evaluation.scores, key=lambda s: -s.f1)
        ],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def training_snapshot(lines: Sequence[bytes], examples: Iterable[Example]) -> bytes:
    """The manifest lines that were used for training."""
    return b"".join(lines[e.number].strip() + b"\n" for e in examples)


def snapshot(trained: Trained, *, ended: float) -> bytes:
    """The test images, each with its labels, the predictions, and whether they are right."""
    created = dt.datetime.fromtimestamp(ended, dt.UTC).replace(tzinfo=None).isoformat()
    write = _boxes if trained.model.locates else _labels
    thresholds = trained.evaluation.thresholds
    written = []
    for example, seen in zip(trained.test, trained.predictions, strict=True):
        entry: dict[str, Any] = {"source-ref": example.source_ref}
        entry.update(_truth(example, trained.model.labels, created))
        entry.update(write(example, seen, thresholds, trained.model.labels, created))
        written.append(orjson.dumps(entry) + b"\n")
    return b"".join(written)


def _truth(example: Example, labels: Sequence[str], created: str) -> dict[str, Any]:
    """The ground truth of an image, as attributes of a training snapshot."""
    name = "rekognition-custom-labels-training"
    common = {"job-name": _TRAINING_JOB, "human-annotated": "yes", "creation-date": created}
    if example.truth.boxes is None:
        attributes: dict[str, Any] = {}
        for n, label in enumerate(example.truth.labels):
            attributes[f"{name}-{n}"] = 1
            kind = "groundtruth/image-classification"
            attributes[f"{name}-{n}-metadata"] = {"class-name": label, "confidence": 1.0, "type": kind, **common}
        return attributes
    number = {label: n for n, label in enumerate(labels)}
    pairs = list(zip(example.truth.labels, example.truth.boxes, strict=True))
    return {
        f"{name}-0": {
            "image_size": [{"width": example.size[0], "height": example.size[1], "depth": 3}],
            "annotations": [_annotation(number[label], box, example.size) for label, box in pairs],
        },
        f"{name}-0-metadata": {
            "objects": [{"confidence": 1.0} for _ in pairs],
            "class-map": {str(n): label for label, n in number.items()},
            "type": "groundtruth/object-detection",
            **common,
        },
    }


def _labels(
    example: Example,
    seen: Sequence[Prediction],
    thresholds: dict[str, float],
    labels: Sequence[str],
    created: str,
) -> dict[str, Any]:
    """An attribute for each label of the model: each is a prediction, positive or negative."""
    attributes: dict[str, Any] = {}
    confidence = {d.label: d.confidence for d in seen}
    for n, label in enumerate(labels):
        taken = confidence[label] >= thresholds[label]
        name = f"rekognition-custom-labels-evaluation-{n}"
        attributes[name] = int(taken)
        attributes[f"{name}-metadata"] = {
            "class-name": label,
            "confidence": confidence[label],
            "type": "groundtruth/image-classification",
            "job-name": _EVALUATION_JOB,
            "human-annotated": "no",
            "creation-date": created,
            _DETAILS: _details(taken=taken, present=label in example.truth.labels),
        }
    return attributes


def _boxes(
    example: Example,
    seen: Sequence[Prediction],
    thresholds: dict[str, float],
    labels: Sequence[str],
    created: str,
) -> dict[str, Any]:
    """One attribute with all predicted boxes, and all objects that were missed."""
    size = example.size
    number = {label: n for n, label in enumerate(labels)}
    predictions = [d for d in seen if d.confidence >= _MIN_CONFIDENCE]
    annotations: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for detection, right in zip(predictions, matches(predictions, example.truth), strict=True):
        assert detection.box is not None
        annotations.append(_annotation(number[detection.label], detection.box, size))
        taken = detection.confidence >= thresholds[detection.label]
        objects.append({"confidence": detection.confidence, _DETAILS: _details(taken=taken, present=right)})
    for label, box in _missed(example.truth, predictions):
        annotations.append(_annotation(number[label], box, size))
        objects.append({"confidence": 0.0, _DETAILS: _details(taken=False, present=True)})
    name = "rekognition-custom-labels-evaluation"
    return {
        name: {
            "image_size": [{"width": size[0], "height": size[1], "depth": 3}],
            "annotations": annotations,
        },
        f"{name}-metadata": {
            "confidence": max((d.confidence for d in predictions), default=0.0),
            "objects": objects,
            "class-map": {str(n): label for label, n in number.items()},
            "type": "groundtruth/object-detection",
            "job-name": _EVALUATION_JOB,
            "human-annotated": "no",
            "creation-date": created,
        },
    }


def _missed(truth: HeldOutLabels, seen: Sequence[Prediction]) -> list[tuple[str, Box]]:
    assert truth.boxes is not None
    free = list(zip(truth.labels, truth.boxes, strict=True))
    for detection, right in zip(seen, matches(seen, truth), strict=True):
        if right and detection.box is not None:
            box = detection.box
            mine = [pair for pair in free if pair[0] == detection.label]
            free.remove(max(mine, key=lambda pair: box.overlap(pair[1])))
    return free


def _details(*, taken: bool, present: bool) -> dict[str, Any]:
    return {
        "version": 1,
        "is-true-positive": taken and present,
        "is-true-negative": not taken and not present,
        "is-false-positive": taken and not present,
        "is-false-negative": not taken and present,
        "is-present-in-ground-truth": present,
        "ground-truth-labelling-jobs": [_TRAINING_JOB],
    }


def _annotation(number: int, box: Box, size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    return {
        "class_id": number,
        "left": round(box.left * width),
        "top": round(box.top * height),
        "width": max(1, round(box.width * width)),
        "height": max(1, round(box.height * height)),
    }


def _confusion(trained: Trained) -> list[dict[str, Any]]:
    """Confusion matrix: shares of each true label's images by the label predicted with the highest confidence."""
    pairs: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    for example, seen in zip(trained.test, trained.predictions, strict=True):
        for label in example.truth.labels:
            pairs[label, seen[0].label] += 1
            totals[label] += 1
    return [
        {"GroundTruthLabel": truth, "PredictedLabel": seen, "Value": count / totals[truth]}
        for (truth, seen), count in sorted(pairs.items())
    ]
