from __future__ import annotations

import json
from typing import Any

import pytest

from batchcl.errors import SourceError
from batchcl.workflow.evaluation import Confused, Mistake, evaluation_of

METRICS = {"Precision": 0.75, "Recall": 0.5, "F1Score": 0.6}
MATRIX = [{"GroundTruthLabel": "cap", "PredictedLabel": "watch", "Value": 0.25}]


def summary(aggregates: dict[str, Any]) -> bytes:
    document = {
        "Version": 1,
        "EvaluationDetails": {
            "EvaluationEndTimestamp": "2019-11-21T07:30:23.910943",
            "Labels": ["cap", "watch"],
            "NumberOfTrainingImages": 5216,
            "NumberOfTestingImages": 624,
        },
        "AggregatedEvaluationResults": aggregates,
        "LabelEvaluationResults": [
            {"Label": "cap", "NumberOfTestingImages": 390, "Metrics": {"Threshold": 0.2, **METRICS}},
            {"Label": "watch", "NumberOfTestingImages": 234, "Metrics": {"Threshold": 0.9, **METRICS, "F1Score": 0.9}},
        ],
    }
    return json.dumps(document).encode()


def seen(label: str, confidence: float, what: str, *, present: bool) -> dict[str, Any]:
    kinds = ("true-positive", "true-negative", "false-positive", "false-negative")
    details = {f"is-{kind}": kind == what for kind in kinds} | {"is-present-in-ground-truth": present}
    return {"confidence": confidence, "rekognition-custom-labels-evaluation-details": details, "class-name": label}


def image(uri: str, truths: tuple[str, ...], *predictions: dict[str, Any]) -> bytes:
    line: dict[str, Any] = {"source-ref": uri}
    for number, truth in enumerate(truths):
        line |= {
            f"t-{number}": 1,
            f"t-{number}-metadata": {"class-name": truth, "type": "groundtruth/image-classification"},
        }
    for number, prediction in enumerate(predictions):
        job = {"type": "groundtruth/image-classification", "job-name": "rekognition-custom-labels-evaluation-job"}
        line |= {f"e-{number}": 1, f"e-{number}-metadata": prediction | job}
    return json.dumps(line).encode()


LINES = [
    image(
        "s3://b/1",
        ("cap",),
        seen("cap", 0.8, "true-positive", present=True),
        seen("watch", 0.1, "true-negative", present=False),
    ),
    image(
        "s3://b/2",
        ("cap",),
        seen("cap", 0.15, "false-negative", present=True),
        seen("watch", 0.95, "false-positive", present=False),
    ),
    image(
        "s3://b/3",
        ("watch",),
        seen("watch", 0.99, "true-positive", present=True),
        seen("cap", 0.3, "false-positive", present=False),
    ),
]


@pytest.mark.parametrize(
    "aggregates", [{**METRICS, "ConfusionMatrix": MATRIX}, {"Metrics": {**METRICS, "ConfusionMatrix": MATRIX}}]
)
def test_both_documented_layouts_are_read(aggregates):
    found = evaluation_of(summary(aggregates))
    assert (found.f1, found.precision, found.recall, found.average_precision) == (0.6, 0.75, 0.5, None)
    assert (found.training_images, found.testing_images, found.ended) == (5216, 624, "2019-11-21T07:30:23.910943")
    assert found.confusion == (Confused(truth="cap", predicted="watch", share=0.25),)
    assert found.mistakes == ()


def test_labels_are_sorted_by_f1_without_counts_of_a_snapshot():
    best, worst = evaluation_of(summary(METRICS)).labels
    assert (best.label, best.f1, best.threshold, best.images) == ("watch", 0.9, 0.9, 234)
    assert (worst.label, worst.true_positives) == ("cap", None)


def test_counts_confusion_and_mistakes_come_from_the_snapshot():
    found = evaluation_of(summary({**METRICS, "ConfusionMatrix": MATRIX}), [*LINES, b""])
    counts = {each.label: (each.true_positives, each.false_positives, each.false_negatives) for each in found.labels}
    assert counts == {"cap": (1, 1, 1), "watch": (1, 1, 0)}
    assert found.confusion == (
        Confused(truth="cap", predicted="cap", share=0.5, images=1),
        Confused(truth="cap", predicted="watch", share=0.5, images=1),
        Confused(truth="watch", predicted="watch", share=1.0, images=1),
    )
    assert found.mistakes == (
        Mistake(uri="s3://b/2", label="watch", kind="false positive", confidence=0.95),
        Mistake(uri="s3://b/3", label="cap", kind="false positive", confidence=0.3),
        Mistake(uri="s3://b/2", label="cap", kind="false negative", confidence=0.15),
    )


def test_with_multi_label_images_the_confusion_is_the_summarys():
    both = image("s3://b/4", ("cap", "watch"), seen("cap", 0.9, "true-positive", present=True))
    found = evaluation_of(summary({**METRICS, "ConfusionMatrix": MATRIX}), [*LINES, both])
    assert found.confusion == (Confused(truth="cap", predicted="watch", share=0.25),)


def test_an_image_without_labels_has_a_row_of_its_own():
    line = image("s3://b/5", (), seen("cap", 0.9, "false-positive", present=False))
    found = evaluation_of(summary(METRICS), [line])
    assert found.confusion == (Confused(truth="(none)", predicted="cap", share=1.0, images=1),)


def test_equal_confidences_are_ordered_by_label():
    """`evaluate` has the same rule: see test_evaluate.py."""
    both = [seen("watch", 0.6, "false-positive", present=False), seen("cap", 0.6, "true-positive", present=True)]
    found = evaluation_of(
        summary(METRICS), [image("s3://b/1", ("cap",), *both), image("s3://b/2", ("cap",), *both[::-1])]
    )
    assert found.confusion == (Confused(truth="cap", predicted="cap", share=1.0, images=2),)


def test_located_objects_are_counted_by_the_class_map():
    annotation = {"class_id": 0, "left": 1, "top": 1, "width": 9, "height": 9}
    truth = {"annotations": [annotation], "image_size": [{"width": 64, "height": 64, "depth": 3}]}
    kind = {"type": "groundtruth/object-detection", "class-map": {"0": "cap", "1": "watch"}}
    line = {
        "source-ref": "s3://b/1",
        "t": truth,
        "t-metadata": kind | {"objects": [{"confidence": 1}]},
        "rekognition-custom-labels-evaluation": {"annotations": [annotation, annotation | {"class_id": 1}]},
        "rekognition-custom-labels-evaluation-metadata": kind
        | {
            "job-name": "rekognition-custom-labels-evaluation-job",
            "objects": [
                seen("", 0.9, "true-positive", present=True),
                seen("", 0.4, "false-positive", present=False),
            ],
        },
    }
    found = evaluation_of(summary(METRICS | {"AveragePrecision": 0.7}), [json.dumps(line).encode()])
    assert found.average_precision == 0.7
    assert found.confusion is None
    assert {each.label: (each.true_positives, each.false_positives) for each in found.labels} == {
        "cap": (1, 0),
        "watch": (0, 1),
    }
    assert found.mistakes == (Mistake(uri="s3://b/1", label="watch", kind="false positive", confidence=0.4),)


@pytest.mark.parametrize("text", [b"", b"<html>", b"[]", b"{"])
def test_a_summary_or_snapshot_that_is_not_json_is_named(text):
    with pytest.raises(SourceError, match="the evaluation summary can't be read: it is not"):
        evaluation_of(text)
    if text:
        with pytest.raises(SourceError, match="line 2 of the evaluation snapshot can't be read: it is not"):
            evaluation_of(summary(METRICS), [LINES[0], text])


@pytest.mark.parametrize(
    "document", [b"{}", b'{"LabelEvaluationResults": [{}]}', b'{"AggregatedEvaluationResults": 1}']
)
def test_missing_metrics_of_a_summary_are_none(document):
    assert evaluation_of(document).f1 is None
