"""Evaluation of a trained model from the files that its training wrote to S3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.aws.datasets import S3Location
from batchcl.aws.errors import error_code
from batchcl.aws.models import Model
from batchcl.errors import ModelError, SourceError
from batchcl.groundtruth import parse_line

__all__ = ["Confused", "LabelScore", "Mistake", "ModelEvaluation", "evaluate_model", "evaluation_of"]


async def evaluate_model(s3: Any, model: Model) -> ModelEvaluation:
    """The figures that the model's training came to, from its summary and its evaluation snapshot.

    Args:
        s3: an open S3 client.
        model: as `describe` gives it.

    Raises:
        ModelError: it has no evaluation, as it isn't trained.
        SourceError: summary or snapshot are gone from S3, or not what the guide says.
        CredentialsError: they may not be read.
    """
    if model.summary is None:
        reason = f": {model.message}" if model.message else ""
        raise ModelError(f"{model.name} has no evaluation, as it is {model.status}{reason}")
    summary = await _read_object(s3, model.summary)
    lines: list[bytes] = []
    for manifest in model.testing_manifests:
        lines += (await _read_object(s3, manifest)).splitlines()
    return evaluation_of(summary, lines)


async def _read_object(s3: Any, uri: str) -> bytes:
    where = S3Location.parse(uri)
    try:
        answer = await s3.get_object(Bucket=where.bucket, Key=where.key)
        async with answer["Body"] as body:
            data: bytes = await body.read()
    except ClientError as error:
        if error_code(error) in {"NoSuchKey", "404"}:
            raise SourceError(f"reading {uri} failed: there is no such object; it was deleted or moved") from error
        raise explain(error, f"reading {uri}", where.bucket) from error
    except BotoCoreError as error:
        raise explain(error, f"reading {uri}", where.bucket) from error
    return data


NONE: Final = "(none)"
"""Stands for the label of an image that has none."""

_METADATA: Final = "-metadata"
_DETAILS: Final = "rekognition-custom-labels-evaluation-details"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """A label's metrics on the test set, 0 to 1; counts are None where there is no snapshot.

    Attributes:
        label: its name.
        images: test images that have it.
        threshold: the confidence from which on the service takes it for present, 0 to 1.
        precision: of what was found, how much is right.
        recall: of what is there, how much was found.
        f1: the harmonic mean of both.
        true_positives: found and there, in images or, where objects are located, in objects.
        false_positives: found and not there.
        false_negatives: there and not found.
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
    """How many images of one label had another (or the same) as their surest one.

    `share` is of the label's images, 0 to 1; `images` is None where only the summary tells.
    """

    truth: str
    predicted: str
    share: float
    images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A wrong prediction: `kind` is `false positive` or `false negative`, `confidence` 0 to 1."""

    uri: str
    label: str
    kind: str
    confidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """The figures of one training; ratios are 0 to 1, and None where the summary doesn't have them.

    Attributes:
        f1: over all labels; `precision` and `recall` likewise.
        average_precision: mean over the labels, for models that locate objects; `average_recall` likewise.
        training_images: how many were learned from.
        testing_images: how many it was tested with.
        ended: when the evaluation ended, in the service's words.
        labels: the best F1 first.
        confusion: None for models that locate objects.
        mistakes: the surest first; empty without a snapshot.
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


@dataclass(frozen=True, slots=True)
class _Prediction:
    uri: str
    label: str
    confidence: float | None
    details: Mapping[str, Any]

    def is_(self, what: str) -> bool:
        return self.details.get(f"is-{what}") is True


@dataclass(slots=True)
class _Seen:
    """What the snapshot says: predictions, and images by their true and their surest label."""

    predictions: list[_Prediction] = field(default_factory=list)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: int = 0
    single: bool = True


def evaluation_of(summary: bytes, snapshot: Iterable[bytes] = ()) -> ModelEvaluation:
    """Read the summary file and, where there is one, the lines of the snapshot.

    Raises:
        SourceError: one of them isn't what the guide says.
    """
    document = _load(summary, "the evaluation summary")
    aggregates = _part(document, "AggregatedEvaluationResults")
    metrics = aggregates | _part(aggregates, "Metrics")
    details = _part(document, "EvaluationDetails")
    seen = _read_snapshot(snapshot)
    return ModelEvaluation(
        f1=_ratio(metrics, "F1Score"),
        precision=_ratio(metrics, "Precision"),
        recall=_ratio(metrics, "Recall"),
        average_precision=_ratio(metrics, "AveragePrecision"),
        average_recall=_ratio(metrics, "AverageRecall"),
        training_images=details.get("NumberOfTrainingImages"),
        testing_images=details.get("NumberOfTestingImages"),
        ended=details.get("EvaluationEndTimestamp"),
        labels=tuple(_labels(document, seen)),
        confusion=_confusion(metrics.get("ConfusionMatrix"), seen),
        mistakes=tuple(_mistakes(seen)),
    )


def _labels(document: dict[str, Any], seen: _Seen) -> list[LabelScore]:
    counts = {what: Counter[str]() for what in ("true-positive", "false-positive", "false-negative")}
    for prediction in seen.predictions:
        for what, counter in counts.items():
            counter[prediction.label] += prediction.is_(what)
    known = bool(seen.predictions)
    scores = []
    for each in document.get("LabelEvaluationResults") or ():
        metrics, label = each | _part(each, "Metrics"), str(each.get("Label", ""))
        right, wrong, missed = (counter[label] if known else None for counter in counts.values())
        scores.append(
            LabelScore(
                label=label,
                images=each.get("NumberOfTestingImages"),
                threshold=_ratio(metrics, "Threshold"),
                precision=_ratio(metrics, "Precision"),
                recall=_ratio(metrics, "Recall"),
                f1=_ratio(metrics, "F1Score"),
                true_positives=right,
                false_positives=wrong,
                false_negatives=missed,
            )
        )
    return sorted(scores, key=lambda score: (-(score.f1 or 0.0), score.label))


def _confusion(matrix: Any, seen: _Seen) -> tuple[Confused, ...] | None:
    """Counted from the snapshot where each image has at most one label; else the summary's shares."""
    if seen.images and seen.single and seen.pairs:
        totals: Counter[str] = Counter()
        for (truth, _), images in seen.pairs.items():
            totals[truth] += images
        return tuple(
            Confused(truth=truth, predicted=predicted, share=images / totals[truth], images=images)
            for (truth, predicted), images in sorted(seen.pairs.items())
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


def _mistakes(seen: _Seen) -> list[Mistake]:
    wrong = [
        Mistake(uri=each.uri, label=each.label, kind=kind, confidence=each.confidence)
        for each in seen.predictions
        for kind in ("false positive", "false negative")
        if each.is_(kind.replace(" ", "-"))
    ]
    return sorted(wrong, key=lambda each: (each.kind == "false negative", -(each.confidence or 0.0), each.uri))


def _read_snapshot(snapshot: Iterable[bytes]) -> _Seen:
    seen = _Seen()
    for number, line in enumerate(snapshot, start=1):
        if not line.strip():
            continue
        entry = _load(line, f"line {number} of the evaluation snapshot")
        uri = str(entry.get("source-ref", ""))
        whole = list(_image_level(entry, uri))
        seen.predictions += whole
        seen.predictions += _located(entry, uri)
        seen.images += 1
        if whole:
            truth = parse_line(line).labels
            seen.single = seen.single and len(truth) <= 1
            top = min(whole, key=lambda each: (-(each.confidence or 0.0), each.label))  # as in `evaluate`
            seen.pairs[truth[0] if truth else NONE, top.label] += 1
    return seen


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


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SourceError(f"{what} can't be read: it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"{what} can't be read: it is no JSON object")
    return document


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _ratio(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
