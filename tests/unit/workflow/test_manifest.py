from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.emulator.manifest import validate_line
from batchcl.errors import SourceError
from batchcl.groundtruth import DETECTION, MULTILABEL, SINGLE_LABEL, parse_line
from batchcl.workflow.manifest import check_line, manifest_line

CREATED = dt.datetime(2026, 11, 21, 13, 5, 6, 789000, tzinfo=dt.timezone(dt.timedelta(hours=1)))
URI = "s3://photos/a.png"


def converted(**attributes: Any) -> bytes:
    """The line with these attributes, after the check before an upload."""
    check_line(parse_line(orjson.dumps({"source-ref": URI} | attributes)), attributes)
    return manifest_line(URI, labels=(), attributes=attributes, created=CREATED)


def multi(*ids: int, **metadata: Any) -> dict[str, Any]:
    class_map = {str(n): f"label {n}" for n in ids}
    return {"job": list(ids), "job-metadata": {"class-map": class_map, "type": MULTILABEL} | metadata}


def single(**metadata: Any) -> dict[str, Any]:
    return {"l": 0, "l-metadata": {"class-name": "cat", "type": SINGLE_LABEL} | metadata}


def boxes(*places: dict[str, Any], size: Any = ({"width": 96, "height": 90},), **metadata: Any) -> dict[str, Any]:
    annotations = [{"class_id": 0, "left": 1, "top": 2, "width": 30, "height": 40} | place for place in places]
    value = {"annotations": annotations, "image_size": list(size)}
    return {"b": value, "b-metadata": {"class-map": {"0": "cat"}, "type": DETECTION} | metadata}


def test_a_written_line_can_be_parsed():
    line = manifest_line("s3://b/a b+%41.png", labels=("cat", "in box"), attributes=None, created=CREATED)
    truth = parse_line(line)
    assert (truth.source_ref, truth.labels, truth.task) == ("s3://b/a b+%41.png", ("cat", "in box"), "classification")


def test_each_label_is_an_attribute_as_documented():
    line = orjson.loads(manifest_line("s3://b/a.png", labels=("cat",), attributes=None, created=CREATED))
    assert line == {
        "source-ref": "s3://b/a.png",
        "label-0": 1,
        "label-0-metadata": {
            "class-name": "cat",
            "confidence": 1,
            "type": SINGLE_LABEL,
            "job-name": "labeling-job/label-0",
            "human-annotated": "yes",
            "creation-date": "2026-11-21T12:05:06.789",
        },
    }


def test_complete_attributes_are_kept():
    complete = single(**{"confidence": 0.25, "job-name": "j", "human-annotated": "no", "creation-date": "2026-01-01"})
    own: dict[str, Any] = complete | {"x": {"y": [1.5]}}
    assert orjson.loads(converted(**own)) == {"source-ref": URI} | own


def test_multi_label_attributes_are_split_by_label():
    line = orjson.loads(converted(**multi(3, 7, **{"confidence-map": {"7": 0.9}, "creation-date": "2026-01-01"})))
    assert [line[f"job-{n}-metadata"]["class-name"] for n in (0, 1)] == ["label 3", "label 7"]
    assert [line[f"job-{n}-metadata"]["confidence"] for n in (0, 1)] == [1, 0.9]
    assert line["job-0-metadata"]["creation-date"] == "2026-01-01"
    assert not any("map" in key for key in line["job-0-metadata"])
    assert "job" not in line


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [
        (multi(1, 2), ("label 1", "label 2")),
        (multi(), ()),
        (single(), ("cat",)),
        ({"l": 1, "l-metadata": {"class-map": {"1": "dog"}, "type": SINGLE_LABEL}}, ("dog",)),
        ({"l": "owl", "l-metadata": {"type": SINGLE_LABEL}}, ("owl",)),
        (boxes({}), ("cat",)),
        (boxes({}, {"left": 60}, objects=[{"confidence": 0.5}]), ("cat",)),
        (boxes({"left": 66.0, "top": 50}, size=({"width": 96, "height": 90, "depth": 1},)), ("cat",)),
        (single() | {"v": 0, "v-metadata": {"type": "groundtruth/label-verification"}}, ("cat",)),
        (boxes({}) | {"old": 1, "old-metadata": {"failure-reason": "x", "type": "groundtruth/text"}}, ("cat",)),
    ],
)
def test_converted_lines_are_valid_for_the_service(attributes: dict[str, Any], labels: tuple[str, ...]) -> None:
    line = converted(**attributes)
    entry = validate_line(line)
    assert entry.errors == ()
    assert parse_line(line).labels == labels
    assert (() if entry.truth is None else entry.truth.labels) == labels


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (boxes({"width": 500, "height": 500}), r"from \(1, 2\) to \(501, 502\) is outside of the image of 96 by 90"),
        (boxes({}, {"left": -1}), "is outside"),
        (boxes({"width": 1}), "too small to train"),
        (boxes({"width": 2, "height": 9}, size=({"width": 4000, "height": 90},)), "too small to train"),
        (boxes({"left": "1"}), "not a number of pixels"),
        (boxes({"width": 0}), "0 by 40 pixels"),
        (boxes({"class_id": 4}), "no name for class id 4"),
        (boxes({}, size=()), "no image_size"),
        (boxes({}, size=({"width": 5000, "height": 90},)), "5000 by 90 pixels"),
        (boxes(*[{}] * 51), "51 boxes"),
        (boxes({}, objects=[{"confidence": 2}]), "confidence of 'b' is 2"),
        (single(**{"class-name": "x" * 256}), "256 characters"),
        (single(confidence="high"), "confidence of 'l' is 'high'"),
        (multi(1, **{"confidence-map": {"1": True}}), "confidence of 'job' is True"),
        ({"Car-ref": "s3://b/x.json", "Car-ref-metadata": {"type": "groundtruth/video-object-detection"}}, "video"),
        (
            {"s": 1, "s-metadata": {"type": "groundtruth/semantic-segmentation"}},
            "no labels that Custom Labels supports",
        ),
        (single() | {"note": "x" * 100_000}, "more than 100,000 characters"),
    ],
)
def test_lines_that_the_service_cannot_use_are_refused(attributes: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError, match=why):
        converted(**attributes)


@given(st.lists(st.integers(0, 9)), st.booleans(), st.booleans())
def test_any_labels_survive_their_conversion(ids: list[int], sure: bool, dated: bool) -> None:
    metadata: dict[str, Any] = {"confidence-map": {str(n): n / 10 for n in ids}} if sure else {}
    line = converted(**multi(*ids, **(metadata | ({"creation-date": "2026-01-01T00:00:00"} if dated else {}))))
    assert parse_line(line).labels == tuple(dict.fromkeys(f"label {n}" for n in ids))
    assert validate_line(line).errors == ()
