from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import SourceError
from batchcl.groundtruth import GroundTruth, TruthBox, multilabel_attribute, parse_extra, parse_line

URI = "s3://bucket/images/1.jpg"
SINGLE = "groundtruth/image-classification"
MULTI = "groundtruth/image-classification-multilabel"
DETECTION = "groundtruth/object-detection"
DETAILS = "rekognition-custom-labels-evaluation-details"


def line(**entry: Any) -> bytes:
    return orjson.dumps({"source-ref": URI, **entry})


def single(name: str, label: str, value: Any = 1, **metadata: Any) -> dict[str, Any]:
    return {name: value, f"{name}-metadata": {"class-name": label, "type": SINGLE, **metadata}}


def detection(name: str, label: str, **metadata: Any) -> dict[str, Any]:
    annotation = {"class_id": 7, "left": 10, "top": 20, "width": 30, "height": 40}
    value = {"image_size": [{"width": 640, "height": 480, "depth": 3}], "annotations": [annotation]}
    return {name: value, f"{name}-metadata": {"class-map": {"7": label}, "type": DETECTION, **metadata}}


def test_a_bare_line_names_an_image_and_nothing_else() -> None:
    assert parse_line(line()) == GroundTruth(source_ref=URI)


def test_other_keys_are_kept_as_compact_json() -> None:
    truth = parse_line('{"source-ref": "a/b.png", "patient": "Ł", "n": [1, 2.5]}')
    assert truth == GroundTruth(source_ref="a/b.png", extra='{"patient":"Ł","n":[1,2.5]}')


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse_line(b"\xef\xbb\xbf" + line()).source_ref == URI
    assert parse_line("\ufeff" + line().decode()).source_ref == URI


@pytest.mark.parametrize("value", [0, 1, "0", "dog", None])
def test_class_name_is_the_label_of_a_classification(value: Any) -> None:
    truth = parse_line(line(**single("A", "dog", value)))
    assert (truth.task, truth.labels, truth.boxes) == ("classification", ("dog",), ())


def test_without_class_name_the_class_map_or_text_is_used() -> None:
    mapped = {"A": 3, "A-metadata": {"class-map": {"3": "cat"}, "type": SINGLE}}
    assert parse_line(line(**mapped)).labels == ("cat",)
    assert parse_line(line(**{"A": "cat", "A-metadata": {"type": SINGLE}})).labels == ("cat",)


def test_several_classification_attributes_are_several_labels() -> None:
    entry = single("g", "dog", 0, confidence=0) | single("r", "cat", 1, confidence=1) | single("x", "dog", "7")
    assert parse_line(line(**entry)).labels == ("dog", "cat")


def test_a_multilabel_attribute_names_each_id() -> None:
    entry = {"M": [1, 0], "M-metadata": {"class-map": {"1": "bicycle", "0": "person"}, "type": MULTI}}
    assert parse_line(line(**entry)).labels == ("bicycle", "person")


def test_an_image_with_nothing_on_it_has_a_task_and_no_labels() -> None:
    none = {"M": [], "M-metadata": {"class-map": {}, "type": MULTI}}
    assert parse_line(line(**none)).task == "classification"
    empty = {"B": {"annotations": []}, "B-metadata": {"type": DETECTION}}
    assert parse_line(line(**empty)) == GroundTruth(
        source_ref=URI, task="detection", extra=orjson.dumps(empty).decode()
    )


def test_object_detection_has_boxes_and_the_image_size() -> None:
    truth = parse_line(line(**detection("B", "Echo Dot")))
    assert truth.task == "detection"
    assert truth.boxes == (TruthBox("Echo Dot", 10, 20, 30, 40),)
    assert truth.labels == ("Echo Dot",)
    assert truth.image_size == (640, 480)


def test_the_adjusted_attribute_of_a_chained_manifest_wins() -> None:
    entry = detection("B-adjusted", "new", **{"adjustment-status": "adjusted"}) | detection(
        "B", "old", **{"creation-date": "2030-01-01T00:00:00"}
    )
    assert parse_line(line(**entry)).labels == ("new",)
    assert parse_line(line(**entry), attribute="B").labels == ("old",)


def test_without_adjustment_the_latest_creation_date_wins() -> None:
    new = detection("C", "new", **{"creation-date": "2026-05-02T00:00:00.5"})
    old = detection("B", "old", **{"creation-date": "2026-05-01T23:00:00Z"})
    undated = detection("A", "undated")
    assert parse_line(line(**new, **old, **undated)).labels == ("new",)
    assert parse_line(line(**undated, **old, **new)).labels == ("new",)


def test_an_adjusted_classification_replaces_the_original() -> None:
    entry = single("A", "dog") | single("A2", "wolf", **{"adjustment-status": "adjusted"})
    assert parse_line(line(**entry)).labels == ("wolf",)


def test_the_predictions_of_an_evaluation_snapshot_are_not_truth() -> None:
    entry = single("rekognition-custom-labels-training-0", "Football") | single(
        "rekognition-custom-labels-evaluation-0", "Rugby", **{DETAILS: {"version": 1, "is-true-positive": False}}
    )
    assert parse_line(line(**entry)).labels == ("Football",)
    boxes = detection("training", "Cap", objects=[{"confidence": 1}]) | detection(
        "evaluation", "Hat", objects=[{"confidence": 0.9, DETAILS: {}}], **{"creation-date": "2030-01-01"}
    )
    assert parse_line(line(**boxes)).labels == ("Cap",)
    assert parse_line(line(**boxes), attribute="evaluation").labels == ("Hat",)


def test_other_types_and_failed_jobs_are_ignored() -> None:
    verification = {
        "V": "1",
        "V-metadata": {"class-name": "bad", "type": "groundtruth/label-verification"},
        "F-metadata": {"failure-reason": "timeout", "type": SINGLE},
    }
    truth = parse_line(line(**verification))
    assert (truth.task, truth.labels) == (None, ())
    assert parse_line(line(**verification, **single("A", "dog"))).labels == ("dog",)


def test_a_named_attribute_must_exist_on_a_line_with_labels() -> None:
    assert parse_line(line(), attribute="B").task is None
    with pytest.raises(SourceError, match=r"'B'.*no such attribute.*'A'"):
        parse_line(line(**single("A", "dog")), attribute="B")
    odd = {"V": 1, "V-metadata": {"type": "groundtruth/semantic-segmentation"}}
    with pytest.raises(SourceError, match="semantic-segmentation"):
        parse_line(line(**odd), attribute="V")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        ("\ud800", "not JSON"),
        (b"[1]", "JSON list"),
        (b"null", "JSON null"),
        (b"3", "JSON number"),
        (b"[" * 100_000, "not JSON"),
        (b'{"source-ref":"a","x":' + b"[" * 500 + b"]" * 500 + b"}", "a failed"),
        (b'{"source":"text"}', "source-ref.*'source'"),
        (b'{"source-ref":""}', "source-ref"),
        (b'{"source-ref":7}', 'its "source-ref" is not a string: 7'),
    ],
)
def test_malformed_lines_are_refused_with_a_reason(text: bytes | str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        parse_line(text)


def broken_box(**change: Any) -> dict[str, Any]:
    entry = detection("B", "x")
    entry["B"]["annotations"][0].update(change)
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"A": 1, "A-metadata": {"type": SINGLE}}, 'no "class-name"'),
        ({"A": 1, "A-metadata": {"type": SINGLE, "class-name": 3}}, "'A'.*class-name"),
        ({"A": 1, "A-metadata": {"type": SINGLE, "class-name": ""}}, "class-name"),
        ({"M": 1, "M-metadata": {"type": MULTI}}, "a list of class ids, got a number"),
        ({"M": [8], "M-metadata": {"type": MULTI, "class-map": {"1": "x"}}}, "no name for class id 8"),
        ({"M": [True], "M-metadata": {"type": MULTI, "class-map": {"True": "x"}}}, "class id is True"),
        ({"B": 1, "B-metadata": {"type": DETECTION}}, "annotations"),
        ({"B": {"annotations": [3]}, "B-metadata": {"type": DETECTION}}, "number, not an object"),
        (broken_box(class_id=9), "class id 9"),
        (broken_box(left="10"), "'left'"),
        (broken_box(top=None), "'top'"),
        (broken_box(width=0), "0 by 40"),
        (broken_box(height=-1), "30 by -1"),
    ],
)
def test_a_malformed_label_is_reported_with_its_image(entry: dict[str, Any], why: str) -> None:
    truth = parse_line(line(**entry))
    assert (truth.source_ref, truth.labels, truth.boxes, truth.task) == (URI, (), (), None)
    with pytest.raises(SourceError, match=why) as caught:
        truth.require_good_labels()
    assert URI in str(caught.value)


def test_valid_labels_beside_a_malformed_one_are_used() -> None:
    boxes = detection("B", "x")
    good = boxes["B"]["annotations"][0]
    boxes["B"]["annotations"] = [good | {"width": 0}, good, good | {"class_id": 99}]
    located = parse_line(line(**boxes))
    assert (located.task, located.labels, len(located.boxes), len(located.bad_labels)) == ("detection", ("x",), 1, 2)
    whole = parse_line(line(**single("A", "dog"), C=1, **{"C-metadata": {"type": SINGLE}}))
    assert (whole.task, whole.labels, len(whole.bad_labels)) == ("classification", ("dog",), 1)
    several = {"M": [1, 8], "M-metadata": {"type": MULTI, "class-map": {"1": "x"}}}
    assert (parse_line(line(**several)).labels, len(parse_line(line(**several)).bad_labels)) == (("x",), 1)


@pytest.mark.parametrize("size", [[{"width": 0, "height": 1}], [{}], "640x480", [5]])
def test_a_malformed_image_size_is_a_bad_label(size: Any) -> None:
    entry = detection("B", "x")
    entry["B"]["image_size"] = size
    truth = parse_line(line(**entry))
    assert (truth.labels, truth.image_size) == (("x",), None)
    with pytest.raises(SourceError, match="image_size"):
        truth.require_good_labels()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NAME = TEXT.filter(lambda name: name != "source-ref" and not name.endswith("-metadata"))
PIXELS = st.integers(1, 10_000)
AS_WRITTEN = st.sampled_from([orjson.dumps, lambda entry: orjson.dumps(entry).decode()])


@given(TEXT, st.dictionaries(NAME, TEXT, min_size=1), st.integers(0, 9), AS_WRITTEN)
def test_any_labels_written_as_repeated_attributes_are_read_back(
    uri: str, labels: dict[str, str], value: int, write: Any
) -> None:
    entry: dict[str, Any] = {"source-ref": uri}
    for name, label in labels.items():
        entry |= single(name, label, value)
    truth = parse_line(write(entry))
    assert (truth.source_ref, truth.labels) == (uri, tuple(dict.fromkeys(labels.values())))
    entry.pop("source-ref")
    assert truth.extra is not None
    assert orjson.loads(truth.extra) == entry


@given(TEXT, NAME, st.lists(st.tuples(TEXT, PIXELS, PIXELS, PIXELS, PIXELS)), st.tuples(PIXELS, PIXELS), AS_WRITTEN)
def test_any_boxes_written_are_read_back(
    uri: str, name: str, boxes: list[tuple[str, int, int, int, int]], size: tuple[int, int], write: Any
) -> None:
    ids = {label: at for at, label in enumerate(dict.fromkeys(box[0] for box in boxes))}
    keys = ("left", "top", "width", "height")
    entry = {
        "source-ref": uri,
        name: {
            "image_size": [{"width": size[0], "height": size[1], "depth": 3}],
            "annotations": [{"class_id": ids[label], **dict(zip(keys, box, strict=True))} for label, *box in boxes],
        },
        f"{name}-metadata": {"class-map": {str(at): each for each, at in ids.items()}, "type": DETECTION},
    }
    truth = parse_line(write(entry))
    assert truth.boxes == tuple(TruthBox(*box) for box in boxes)
    assert (truth.source_ref, truth.image_size, truth.labels) == (uri, size, tuple(ids))


@given(TEXT, NAME, st.lists(TEXT, unique=True), AS_WRITTEN)
def test_any_multilabel_line_is_read_back(uri: str, name: str, labels: list[str], write: Any) -> None:
    class_map = {str(at): label for at, label in enumerate(labels)}
    metadata = {"class-map": class_map, "type": MULTI}
    entry = {"source-ref": uri, name: list(range(len(labels))), f"{name}-metadata": metadata}
    assert parse_line(write(entry)).labels == tuple(labels)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    ["class-map", "class-name", "annotations", "image_size", "objects", "class_id", "1", "left"]
                ),
                x,
            )
        ),
    ),
    st.sampled_from([SINGLE, MULTI, DETECTION]),
    st.booleans(),
)
def test_any_attribute_is_parsed_or_a_source_error(value: Any, kind: str, inside: bool) -> None:
    metadata = {"type": kind, "class-map": value} if inside else {"type": kind, "class-map": {"1": "x"}}
    with suppress(SourceError):
        parse_line(line(**{"A": value, "A-metadata": metadata}))


def test_strict_parsing_requires_one_of_chained_attributes() -> None:
    originals = detection("B", "old") | detection("C", "new", **{"creation-date": "2026-05-02T00:00:00"})
    with pytest.raises(SourceError, match=r"several sets of labels: 'B', 'C'; select one with --attribute"):
        parse_line(line(**originals), strict=True)
    assert parse_line(line(**originals), attribute="B", strict=True).labels == ("old",)
    one_adjusted = originals | detection("D", "best", **{"adjustment-status": "adjusted"})
    assert parse_line(line(**one_adjusted), strict=True).labels == ("best",)
    two_adjusted = one_adjusted | detection("E", "late", **{"adjustment-status": "unadjusted"})
    with pytest.raises(SourceError, match="'D', 'E'"):
        parse_line(line(**two_adjusted), strict=True)
    several_labels = single("A", "dog") | single("B", "cat")
    assert parse_line(line(**several_labels), strict=True).labels == ("dog", "cat")


def test_a_named_attribute_is_the_only_one_that_is_kept() -> None:
    entry = single("A", "dog") | detection("B", "old") | detection("C", "new") | {"patient": 7}
    truth = parse_line(line(**entry), attribute="C")
    assert truth.extra is not None
    assert list(orjson.loads(truth.extra)) == ["C", "C-metadata", "patient"]
    assert parse_extra(truth.extra, URI) == truth


@given(TEXT, st.lists(TEXT, unique=True))
def test_the_extra_of_a_line_parses_to_the_same_labels(uri: str, labels: list[str]) -> None:
    truth = parse_line(orjson.dumps({"source-ref": uri} | multilabel_attribute("labels", labels)))
    assert truth.labels == tuple(labels)
    assert truth.extra is not None
    assert parse_extra(truth.extra, uri) == truth
