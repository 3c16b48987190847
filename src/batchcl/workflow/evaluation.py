"""Reads the evaluation of a trained model from the files that its training wrote to S3.

Formats: Custom Labels guide, "Reference: Training results summary file" and "Interpreting the evaluation manifest
snapshot".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import s3_error
from batchcl.aws.datasets import S3Location
from batchcl.aws.errors import error_code
from batchcl.aws.models import Model
from batchcl.errors import ErrorCode, ModelError, SourceError
from batchcl.groundtruth import parse_line

__all__ = ["Confused", "LabelScore", "Mistake", "ModelEvaluation", "evaluate_model", "evaluation_of"]

NONE: Final = "(none)"
"""The label of images without labels."""

_METADATA: Final = "-metadata"
_DETAILS: Final = "rekognition-custom-labels-evaluation-details"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """Metrics of one label on the test dataset, 0 to 1.

    Attributes:
        label: its name.
        images: test images with the label.
        threshold: the service's assumed threshold: it returns the label from this confidence on.
        precision: share of the predictions that are right.
        recall: share of the labels in the ground truth that were predicted.
        f1: harmonic mean of precision and recall.
        true_positives: predicted and in the ground truth; in images, or in objects for models that locate objects.
            None without a snapshot, like the other counts.
        false_positives: predicted and not in the ground truth.
        false_negatives: in the ground truth and not predicted.
    """

    label: str
    images: int | None
    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    true_positives: int | None = None
    false_positives: int | None = None
    false_negatives: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused:
    """One cell of the confusion matrix: images of label `truth` whose most confident prediction was `predicted`.

    `share` is the share of the images of `truth`, 0 to 1; `images` their number, None without a snapshot.
    """

    truth: str
    predicted: str
    share: float
    images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A wrong prediction: `kind` is `false positive` or `false negative`; `confidence` is 0 to 1."""

    uri: str
    label: str
    kind: str
    confidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """The evaluation of one training. Metrics are 0 to 1, and None if the summary doesn't have them.

    Attributes:
        f1: over all labels; `precision` and `recall` likewise.
        average_precision: mean over the labels, for models that locate objects; `average_recall` likewise.
        training_images: number of images in the training dataset.
        testing_images: number of images in the test dataset.
        ended: when the evaluation ended, as formatted by the service.
        labels: by F1, highest first.
        confusion: the confusion matrix; None for models that locate objects.
        mistakes: false positives first, then by confidence, highest first; empty without a snapshot.
    """

    f1: float | None
    precision: float | None
    recall: float | None
    average_precision: float | None
    average_recall: float | None
    training_images: int | None
    testing_images: int | None
    ended: str | None
    labels: tuple[LabelScore, ...]
    confusion: tuple[Confused, ...] | None
    mistakes: tuple[Mistake, ...] = ()


async def evaluate_model(s3: Any, model: Model) -> ModelEvaluation:
    """The evaluation of a model, from its summary file and its evaluation snapshot.

    Args:
        s3: an open S3 client.
        model: as returned by `describe`.

    Raises:
        ModelError: the model has no evaluation because it isn't trained.
        SourceError: the summary or the snapshot is missing from S3, or has another format.
        CredentialsError: the credentials may not read them.
    """
    if model.summary is None:
        reason = f": {model.message}" if model.message else ""
        raise ModelError(
            f"{model.name} has no evaluation because it is {model.status}{reason}", code=ErrorCode.MODEL_NOT_TRAINED
        )
    summary = await _read_object(s3, model.summary)
    lines: list[bytes] = []
    for manifest in model.testing_manifests:
        lines += (await _read_object(s3, manifest)).splitlines()
    return evaluation_of(summary, lines)


def evaluation_of(summary: bytes, snapshot: Iterable[bytes] = ()) -> ModelEvaluation:
    """Parse the summary file and the lines of the snapshot, if there is one.

    Raises:
        SourceError: one of them has another format than documented.
    """
    document = _load(summary, "the evaluation summary")
    aggregates = _part(document, "AggregatedEvaluationResults")
    metrics = aggregates | _part(aggregates, "Metrics")
    details = _part(document, "EvaluationDetails")
    parsed = _read_snapshot(snapshot)
    return ModelEvaluation(
        f1=_ratio(metrics, "F1Score"),
        precision=_ratio(metrics, "Precision"),
        recall=_ratio(metrics, "Recall"),
        average_precision=_ratio(metrics, "AveragePrecision"),
        average_recall=_ratio(metrics, "AverageRecall"),
        training_images=details.get("NumberOfTrainingImages"),
        testing_images=details.get("NumberOfTestingImages"),
        ended=details.get("EvaluationEndTimestamp"),
        labels=tuple(_labels(document, parsed)),
        confusion=_confusion(metrics.get("ConfusionMatrix"), parsed),
        mistakes=tuple(_mistakes(parsed)),
    )


async def _read_object(s3: Any, uri: str) -> bytes:
    where = S3Location.parse(uri)
    try:
        answer = await s3.get_object(Bucket=where.bucket, Key=where.key)
        async with answer["Body"] as body:
            data: bytes = await body.read()
    except ClientError as error:
        if error_code(error) in {"NoSuchKey", "404"}:
            raise SourceError(
                f"reading {uri} failed: the object does not exist. It was deleted or moved.",
                code=ErrorCode.SOURCE_NOT_FOUND,
            ) from error
        raise s3_error(error, f"reading {uri}", where.bucket) from error
    except BotoCoreError as error:
        raise s3_error(error, f"reading {uri}", where.bucket) from error
    return data


@dataclass(frozen=True, slots=True)
class _Prediction:
    uri: str
    label: str
    confidence: float | None
    details: Mapping[str, Any]

    def is_result(self, what: str) -> bool:
        return self.details.get(f"is-{what}") is True


@dataclass(slots=True)
class _Snapshot:
    """Contents of a snapshot: all predictions, and image counts by (true label, most confident label)."""

    predictions: list[_Prediction] = field(default_factory=list)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: int = 0
    single_label: bool = True


def _read_snapshot(lines: Iterable[bytes]) -> _Snapshot:
    snapshot = _Snapshot()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _load(line, f"line {number} of the evaluation snapshot")
        uri = str(entry.get("source-ref", ""))
        image_level = list(_image_level(entry, uri))
        snapshot.predictions += image_level
        snapshot.predictions += _located(entry, uri)
        snapshot.images += 1
        if image_level:
            truth = parse_line(line).labels
            snapshot.single_label = snapshot.single_label and len(truth) <= 1
            top = min(image_level, key=lambda each: (-(each.confidence or 0.0), each.label))  # ties as in `evaluate`
            snapshot.pairs[truth[0] if truth else NONE, top.label] += 1
    return snapshot


def _image_level(entry: dict[str, Any], uri: str) -> Iterator[_Prediction]:
    for name, metadata in entry.items():
        if name.endswith(_METADATA) and isinstance(metadata, dict) and isinstance(metadata.get(_DETAILS), dict):
            yield _Prediction(
                uri, str(metadata.get("class-name", "")), _ratio(metadata, "confidence"), metadata[_DETAILS]
            )


def _located(entry: dict[str, Any], uri: str) -> Iterator[_Prediction]:
    for name, metadata in entry.items():
        if not name.endswith(_METADATA) or not isinstance(metadata, dict):
            continue
        objects = metadata.get("objects")
        value = entry.get(name.removesuffix(_METADATA))
        if not isinstance(objects, list) or not isinstance(value, dict):
            continue
        names = _part(metadata, "class-map")
        for annotation, each in zip(value.get("annotations") or (), objects, strict=False):
            if isinstance(each, dict) and isinstance(each.get(_DETAILS), dict) and isinstance(annotation, dict):
                label = str(names.get(str(annotation.get("class_id")), ""))
                yield _Prediction(uri, label, _ratio(each, "confidence"), each[_DETAILS])


def _labels(document: dict[str, Any], snapshot: _Snapshot) -> list[LabelScore]:
    counts = {what: Counter[str]() for what in ("true-positive", "false-positive", "false-negative")}
    for prediction in snapshot.predictions:
        for what, counter in counts.items():
            counter[prediction.label] += prediction.is_result(what)
    has_snapshot = bool(snapshot.predictions)
    scores = []
    for each in document.get("LabelEvaluationResults") or ():
        metrics, label = each | _part(each, "Metrics"), str(each.get("Label", ""))
        hits, false, missed = (counter[label] if has_snapshot else None for counter in counts.values())
        scores.append(
            LabelScore(
                label=label,
                images=each.get("NumberOfTestingImages"),
                threshold=_ratio(metrics, "Threshold"),
                precision=_ratio(metrics, "Precision"),
                recall=_ratio(metrics, "Recall"),
                f1=_ratio(metrics, "F1Score"),
                true_positives=hits,
                false_positives=false,
                false_negatives=missed,
            )
        )
    return sorted(scores, key=lambda score: (-(score.f1 or 0.0), score.label))


def _confusion(matrix: Any, snapshot: _Snapshot) -> tuple[Confused, ...] | None:
    """Counted from the snapshot if each image has at most one label; otherwise the shares of the summary."""
    if snapshot.images and snapshot.single_label and snapshot.pairs:
        totals: Counter[str] = Counter()
        for (truth, _), images in snapshot.pairs.items():
            totals[truth] += images
        return tuple(
            Confused(truth=truth, predicted=predicted, share=images / totals[truth], images=images)
            for (truth, predicted), images in sorted(snapshot.pairs.items())
        )
    if not isinstance(matrix, list):
        return None
    return tuple(
        Confused(
            truth=str(each.get("GroundTruthLabel", "")),
            predicted=str(each.get("PredictedLabel", "")),
            share=float(each.get("Value", 0.0)),
        )
        for each in matrix
    )


def _mistakes(snapshot: _Snapshot) -> list[Mistake]:
    wrong = [
        Mistake(uri=each.uri, label=each.label, kind=kind, confidence=each.confidence)
        for each in snapshot.predictions
        for kind in ("false positive", "false negative")
        if each.is_result(kind.replace(" ", "-"))
    ]
    return sorted(wrong, key=lambda each: (each.kind == "false negative", -(each.confidence or 0.0), each.uri))


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SourceError(
            f"{what} can't be read: it is not valid JSON: {error}", code=ErrorCode.CORRUPT_FILE
        ) from error
    if not isinstance(document, dict):
        raise SourceError(f"{what} can't be read: it is not a JSON object", code=ErrorCode.CORRUPT_FILE)
    return document


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _ratio(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
