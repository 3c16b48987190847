"""Average precision, compared with a slow reference implementation of the definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchcl.analysis.average_precision import average_precision


class Box(NamedTuple):
    uri: str
    label: str
    left: float
    top: float
    width: float
    height: float


class Detected(NamedTuple):
    uri: str
    label: str
    confidence: float
    left: float
    top: float
    width: float
    height: float


KINDS = {"uri": pl.String, "label": pl.String}
TRUTH = {**KINDS, **dict.fromkeys(("left", "top", "width", "height"), pl.Float64)}
DETECTED = {**KINDS, **dict.fromkeys(("confidence", "left", "top", "width", "height"), pl.Float64)}


def score(detected: list[Detected], truth: list[Box]) -> dict[str, float | None]:
    table = average_precision(
        pl.DataFrame(detected, schema=DETECTED, orient="row"), pl.DataFrame(truth, schema=TRUTH, orient="row")
    )
    return dict(table.select("label", "average_precision").iter_rows())


def iou(a: Detected, b: Box) -> float:
    wide = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    high = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    both = max(wide, 0) * max(high, 0)
    return both / (a.width * a.height + b.width * b.height - both)


def reference(detected: list[Detected], truth: list[Box], label: str) -> float | None:
    free = [box for box in truth if box.label == label]
    count = len(free)
    if not count:
        return None
    hits = []
    for each in sorted((each for each in detected if each.label == label), key=lambda each: -each.confidence):
        same = [box for box in free if box.uri == each.uri and iou(each, box) >= 0.5]
        hits.append(bool(same))
        if same:
            free.remove(max(same, key=lambda box: iou(each, box)))
    points = [(sum(hits[: n + 1]) / count, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    area = before = 0.0
    for recall in sorted({recall for recall, _ in points if recall}):
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


SIDE = st.sampled_from([0.5, 1.0, 1.25, 2.0])
POSITION = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])
NAMES = st.tuples(st.sampled_from(["i", "j"]), st.sampled_from(["cat", "dog"]))
SHAPE = st.tuples(POSITION, POSITION, SIDE, SIDE)
TRUTHS = st.lists(st.builds(lambda n, s: Box(*n, *s), NAMES, SHAPE), max_size=6, unique=True)
DETECTIONS = st.lists(st.tuples(NAMES, SHAPE, st.floats(0, 100)), max_size=8, unique_by=lambda each: each[2]).map(
    lambda drawn: [Detected(*names, confidence, *shape) for names, shape, confidence in drawn]
)


@given(DETECTIONS, TRUTHS)
def test_average_precision_equals_a_reference_implementation(detected: list[Detected], truth: list[Box]) -> None:
    scores = score(detected, truth)
    assert set(scores) == {each.label for each in detected} | {box.label for box in truth}
    for label, value in scores.items():
        assert value == pytest.approx(reference(detected, truth, label))


TIED = st.lists(st.tuples(st.sampled_from([50.0, 70.0, 90.0]), st.booleans(), st.floats(0, 0.5)), max_size=12)


@given(TIED, st.integers(0, 3))
@example([(50.0, True, 0.5), (50.0, False, 0.0)], 0)
@example([(50.0, True, 0.0), (50.0, False, 0.5)], 0)
def test_equal_confidences_are_one_step_like_in_scikit_learn(
    drawn: list[tuple[float, bool, float]], missed: int
) -> None:
    """Each box is on a separate image, so it is known which of them are correct."""
    detected = [Detected(str(n), "cat", confidence, at, 0, 0.5, 1) for n, (confidence, _, at) in enumerate(drawn)]
    truth = [Box(str(n), "cat", at, 0, 0.5, 1) for n, (_, right, at) in enumerate(drawn) if right]
    hits = len(truth)
    truth += [Box(f"missed {n}", "cat", 0, 0, 1, 1) for n in range(missed)]
    if not truth:
        assert score(detected, truth) in ({}, {"cat": None})
        return
    expected = 0.0
    if hits:
        from sklearn.metrics import precision_recall_curve  # takes a second

        precision, recall, _ = precision_recall_curve([right for _, right, _ in drawn], [c for c, _, _ in drawn])
        steps = -np.diff(recall) * hits / len(truth)
        expected = float((steps * np.maximum.accumulate(precision[:-1])).sum())
    assert score(detected, truth) == {"cat": pytest.approx(expected)}
    assert score(detected[::-1], truth[::-1]) == {"cat": pytest.approx(expected)}


def test_among_equal_confidences_the_best_fit_is_matched() -> None:
    """The loose box overlaps both true boxes, the tight one only the right one, independent of position."""
    for far in (0, 10):
        truth = [Box("i", "cat", abs(far - at) - 5, 0, 10, 10) for at in (0, 4)]
        loose, tight = (Detected("i", "cat", 90, abs(far - at) - 5, 0, 10, 10) for at in (3, 4))
        assert score([loose, tight], truth) == score([tight, loose], truth) == {"cat": 1.0}


def test_identical_true_boxes_are_separate_objects() -> None:
    truth = [Box("i", "cat", 0, 0, 1, 1)] * 2
    assert score([Detected("i", "cat", 90, 0, 0, 1, 1)], truth) == {"cat": 0.5}
    assert score([Detected("i", "cat", 90, 0, 0, 1, 1)] * 2, truth) == {"cat": 1.0}


def test_average_precision_of_a_worked_example() -> None:
    truth = [Box("i", "cat", 0, 0, 10, 10), Box("j", "cat", 0, 0, 10, 10), Box("k", "cat", 0, 0, 10, 10)]
    detected = [
        Detected("i", "cat", 90, 0, 0, 10, 10),  # precision 1, recall 1/3
        Detected("i", "cat", 80, 0, 0, 10, 9),  # a second box on a true box that is already matched
        Detected("j", "cat", 70, 0, 0, 10, 5),  # an IoU of exactly 0.5: precision 2/3, recall 2/3
        Detected("k", "cat", 60, 0, 0, 10, 4.9),  # just under
    ]
    assert score(detected, truth) == {"cat": pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)}


def test_precision_is_interpolated_from_the_right() -> None:
    truth = [Box("i", "cat", 0, 0, 1, 1), Box("j", "cat", 0, 0, 1, 1)]
    detected = [
        Detected("x", "cat", 99, 0, 0, 1, 1),
        Detected("i", "cat", 90, 0, 0, 1, 1),
        Detected("j", "cat", 80, 0, 0, 1, 1),
    ]
    assert score(detected, truth) == {"cat": pytest.approx(2 / 3)}


def test_higher_confidence_is_matched_before_a_better_fit() -> None:
    truth = [Box("i", "cat", 0, 0, 10, 10)]
    detected = [Detected("i", "cat", 60, 0, 0, 10, 10), Detected("i", "cat", 90, 0, 0, 10, 6)]
    table = average_precision(
        pl.DataFrame(detected, schema=DETECTED, orient="row"), pl.DataFrame(truth, schema=TRUTH, orient="row")
    )
    assert table.rows() == [("cat", 1, 2, 1, 1.0)]


def test_undetected_labels_score_zero_and_unknown_labels_null() -> None:
    assert score([Detected("i", "dog", 9, 0, 0, 1, 1)], [Box("i", "cat", 0, 0, 1, 1)]) == {"cat": 0.0, "dog": None}
    assert score([], []) == {}


def test_a_detected_box_matches_only_one_true_box() -> None:
    truth = [Box("i", "cat", 0, 0, 10, 10), Box("i", "cat", 2, 0, 10, 10)]
    detected = [Detected("i", "cat", 90, 1, 0, 10, 10), Detected("i", "cat", 80, 1, 0, 10, 9)]
    assert score(detected, truth) == {"cat": 1.0}


def test_a_box_matches_the_true_box_with_the_largest_overlap() -> None:
    loose, tight = Box("i", "cat", 0, 0, 10, 10), Box("i", "cat", 2, 0, 10, 10)
    detected = [Detected("i", "cat", 90, 1.8, 0, 10, 10), Detected("i", "cat", 80, -1, 0, 10, 10)]
    assert score(detected, [loose, tight]) == score(detected, [tight, loose]) == {"cat": 1.0}
