"""Files of COCO, Label Studio and CVAT: what they contain, and one sentence for what they must not contain."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchcl.annotations import AnnotatedImage, BadEntry, annotation_format, files, read_annotations
from batchcl.errors import SourceError
from batchcl.groundtruth import TruthBox

COCO = {
    "images": [
        {"id": 7, "file_name": "a/1.jpg", "width": 200, "height": 100},
        {"id": 8, "coco_url": "https://photos.s3.eu-west-1.amazonaws.com/b/2%20x.jpg"},
        {"id": 9, "file_name": "3.jpg", "coco_url": "s3://photos/c/3.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20.5, 30, 40], "area": 1200, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "segmentation": [[1, 2, 3, 4]]},
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}],
}


def rectangle(label: str, **value: Any) -> dict[str, Any]:
    sides = {"x": 5, "y": 20, "width": 15, "height": 40, "rotation": 0, **value}
    return {
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 200,
        "original_height": 100,
        "value": sides | {"rectanglelabels": [label]},
    }


def choice(*labels: str, **more: Any) -> dict[str, Any]:
    return {"type": "choices", "to_name": "image", "value": {"choices": list(labels), **more}}


def task(*results: dict[str, Any], image: str = "s3://photos/1.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)}], **more}


def cvat(*images: str) -> bytes:
    return ("<annotations><version>1.1</version>" + "".join(images) + "</annotations>").encode()


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "file") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
        return path

    return write


def read(path: Path) -> list[AnnotatedImage | BadEntry]:
    form = annotation_format(path, "FILE")
    assert form is not None
    return list(read_annotations(path, "FILE", form))


def images(path: Path) -> list[AnnotatedImage]:
    found = read(path)
    assert all(isinstance(each, AnnotatedImage) for each in found), found
    return [each for each in found if isinstance(each, AnnotatedImage)]


def bad_labels(path: Path) -> str:
    return " ".join(text for image in images(path) for text in image.truth.bad_labels)


def test_coco_has_boxes_sizes_and_names(written):
    first, second, third = images(written(COCO))
    assert first.references == ("a/1.jpg",)
    assert first.truth.boxes == (TruthBox("cat", 10, 20.5, 30, 40), TruthBox("dog", 0, 0, 200, 100))
    assert first.truth.image_size == (200, 100)
    assert first.truth.labels == ("cat", "dog")
    assert second.references == ("s3://photos/b/2 x.jpg",)
    assert (second.truth.task, second.truth.labels, second.truth.image_size) == ("detection", (), None)
    assert third.references == ("s3://photos/c/3.jpg", "3.jpg"), "what is certain comes first"


def test_coco_without_boxes_has_labels_of_images(written):
    document = COCO | {"annotations": [{"id": n, "image_id": 7, "category_id": n} for n in (1, 3)]}
    truths = [image.truth for image in images(written(document))]
    assert [(truth.task, truth.labels) for truth in truths] == [
        ("classification", ("dog", "cat")),
        ("classification", ()),
        ("classification", ()),
    ]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"category_id": 2, "bbox": [0, 0, 1, 1]}, "no category with the id 2"),
        ({"category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 1}, "group of objects"),
        ({"category_id": 1, "segmentation": {"counts": "abc", "size": [1, 1]}}, "segmentation, but no bbox"),
        ({"category_id": 1, "bbox": [0, 0, 1]}, "not a list of four"),
        ({"category_id": 1, "bbox": [0, 0, "1", 1]}, "not a number"),
        ({"category_id": 1, "bbox": [0, 0, 0, 1]}, "0 by 1 pixels"),
    ],
)
def test_unusable_annotations_of_coco_are_reported(written, annotation, reason):
    path = written(COCO | {"annotations": [{"id": 1, "image_id": 7, **annotation}]})
    assert reason in bad_labels(path)
    assert images(path)[0].truth.task is None, "an image whose labels are unknown is not one without labels"


def test_entries_of_coco_without_an_image_are_reported(written):
    document = COCO | {"images": [{"id": 7}, {"file_name": "x.jpg"}, {"id": 7, "file_name": "y.jpg"}]}
    document |= {"annotations": [{"image_id": 1, "category_id": 1}, {"category_id": 1}]}
    reasons = [each.reason for each in read(written(document)) if isinstance(each, BadEntry)]
    assert reasons == [
        "it has no image_id",
        "it names no image",
        "it has no id",
        "another image has the id 7, too",
        "there is no image with this id",
    ]


def test_label_studio_has_choices_and_rectangles(written):
    choices, boxes, unlabelled, empty = images(
        written(
            [
                task(choice("cat", "dog"), choice("region", x=1)),
                task(
                    rectangle("cat"),
                    {"type": "textarea", "value": {"text": ["x"]}},
                    image="/data/upload/3/0123abcd-2.jpg",
                ),
                task(image="s3://photos/3.jpg") | {"annotations": [{"was_cancelled": True, "result": []}]},
                task(image="http://host:8080/data/local-files/?d=a%2Fb/4%20x.jpg"),
            ]
        )
    )
    assert (choices.truth.labels, choices.truth.task) == (("cat", "dog"), "classification")
    assert boxes.truth.boxes == (TruthBox("cat", 10, 20, 30, 40),)
    assert boxes.truth.image_size == (200, 100)
    assert boxes.references == ("0123abcd-2.jpg", "2.jpg")
    assert unlabelled.truth.task is None
    assert (empty.truth.task, empty.truth.labels, empty.references) == ("detection", (), ("a/b/4 x.jpg",))


def test_label_studio_uses_the_ground_truth_or_latest_annotation(written):
    old, new = (
        {"result": [choice(label)], "updated_at": at} for label, at in (("a", "2026-01-02"), ("b", "2026-01-01"))
    )
    tasks = [
        task() | {"annotations": [new, old]},
        task() | {"annotations": [old, new | {"ground_truth": True}]},
        task() | {"annotations": [], "predictions": [{"result": [choice("c")]}]},
    ]
    assert [image.truth.labels for image in images(written(tasks))] == [("a",), ("b",), ()]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (rectangle("cat", rotation=30), "rotated"),
        ({"type": "polygonlabels", "value": {}}, "shape polygonlabels is not supported"),
        (rectangle("cat") | {"original_width": None}, "no original_width"),
        (rectangle("cat", width=0), "0 by 40"),
        (rectangle(""), "no label"),
        ({"type": "choices", "value": {"choices": "cat"}}, "not a list"),
        ({"type": "choices"}, "no value"),
    ],
)
def test_unusable_results_of_label_studio_are_reported(written, result, reason):
    assert reason in bad_labels(written([task(result)]))


def test_tasks_without_one_image_are_reported(written):
    tasks = [{"data": {"a": "1.jpg", "b": "2.jpg"}, "annotations": []}, {"data": {"text": "x"}}, {"id": 1, "data": 3}]
    reasons = [each.reason for each in read(written(tasks)) if isinstance(each, BadEntry)]
    assert reasons == ["several fields of its data can be the image: 'a', 'b'", "it names no image", "it has no data"]


def test_cvat_has_boxes_and_tags(written):
    boxes, tags, empty = images(
        written(
            cvat(
                '<image id="4" name="a/1.jpg" width="200" height="100">'
                '<box label="cat" xtl="10.00" ytl="20.50" xbr="40.00" ybr="60.50" occluded="0" rotation="0.0">'
                '<attribute name="confidence">99</attribute></box></image>',
                '<image id="5" name="2.jpg" width="200" height="100"><tag label="dog"/><tag label="cat"/></image>',
                '<image id="6" name="3.jpg" width="200" height="100"/>',
            )
        )
    )
    assert boxes.truth.boxes == (TruthBox("cat", 10, 20.5, 30, 40),)
    assert (boxes.truth.image_size, boxes.references, boxes.location) == ((200, 100), ("a/1.jpg",), "image 4")
    assert (tags.truth.labels, tags.truth.task) == (("dog", "cat"), "classification")
    assert (empty.truth.labels, empty.truth.task) == ((), "classification")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<polygon label="cat" points="1,2;3,4;5,6"/>', "shape polygon is not supported"),
        ('<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" rotation="12.5"/>', "rotated"),
        ('<box label="cat" xtl="1" ytl="x" xbr="9" ybr="9"/>', "not a number"),
        ('<box label="cat" xtl="9" ytl="1" xbr="1" ybr="9"/>', "-8 by 8"),
        ('<box label="cat" xtl="1" ytl="1" xbr="inf" ybr="9"/>', "not a number"),
        ("<tag/>", "a tag has no label"),
        ('<box label="a" xtl="1" ytl="1" xbr="9" ybr="9"/><tag label="b"/>', "the label 'b' has no box"),
    ],
)
def test_unusable_shapes_of_cvat_are_reported(written, shape, reason):
    assert reason in bad_labels(written(cvat(f'<image id="0" name="1.jpg" width="99" height="99">{shape}</image>')))


MANIFEST = {"source-ref": "s3://b/1.jpg", "A": 1, "A-metadata": {"class-name": "x", "annotations": [1]}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (orjson.dumps(COCO), "coco"),
        (orjson.dumps(COCO, option=orjson.OPT_INDENT_2), "coco"),
        (b"\xef\xbb\xbf" + orjson.dumps(COCO), "coco"),
        (gzip.compress(orjson.dumps(COCO)), "coco"),
        (orjson.dumps({"info": {"text": "x" * 300_000}, **COCO})[:290_000], None),
        (b"\n  [\n]", "label-studio"),
        (orjson.dumps(task()), "label-studio"),
        (cvat(), "cvat"),
        (b'<?xml version="1.0"?>\n<x/>', "cvat"),
        (orjson.dumps(MANIFEST), None),
        (b"\n".join([orjson.dumps(MANIFEST)] * 2), None),
        (orjson.dumps({"images": [], "annotations": []}) + b"\n" + orjson.dumps(MANIFEST), None),
        (b"1.jpg,cat\n", None),
        (b"", None),
    ],
)
def test_the_format_is_detected_by_content(written, content, expected):
    assert annotation_format(written(content), "FILE") == expected


BOMB = b'<!DOCTYPE annotations [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (orjson.dumps(COCO)[:-20], "not valid JSON, or truncated: .*; export it again"),
        (b"[" * 100_000, "not valid JSON, or truncated: .*; export it again"),
        (b"[]", "not a list of Label Studio tasks .* but an empty list"),
        (b'[{"image": "1.jpg", "choice": "cat"}]', "not a list of Label Studio tasks .* not JSON-MIN"),
        (b'[{"image_id": 1, "category_id": 1, "score": 0.5}]', "not a list of Label Studio tasks"),
        ({"images": [], "categories": []}, 'needs the lists "images", "annotations" and "categories"'),
        (COCO | {"categories": [{"id": 1}]}, "a category has no id and name"),
        (COCO | {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories have the id 1"),
        (COCO | {"source-ref": "x"}, "can be a manifest or COCO"),
        (b"PK\x03\x04rest", "it is a ZIP archive; unpack it"),
        (cvat()[:-5], "not well-formed XML, or truncated"),
        (b"<annotation/>", "its root is 'annotation', not 'annotations'"),
        (cvat('<track id="0"/>'), "the tracks of a video"),
        (BOMB + cvat('<image name="&b;"/>'), "it has a DTD"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + cvat(), "it has a DTD"),
        (b'<?xml version="1.0" encoding="nonsense"?><annotations/>', "not well-formed XML"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(written, content, sentence):
    with pytest.raises(SourceError, match=f"^reading FILE failed: .*{sentence}") as refused:
        read(written(content))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("content", [orjson.dumps(COCO), cvat("<image/>" * 99)])
def test_files_over_the_limit_are_refused(written, content, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 300)
    with pytest.raises(SourceError, match=r"has more than 0 MB; split it"):
        read(written(content))


SMALL = [orjson.dumps(COCO), orjson.dumps([task(rectangle("x"), choice("y"))]), cvat("<image/>")]


@pytest.mark.parametrize("content", SMALL, ids=["coco", "label-studio", "cvat"])
def test_no_damage_of_a_file_raises_another_error(written, content):
    path = written(content)
    for at in range(0, len(content), 5):
        for value in (b"null", b"-1", b'"x"', b"[]", b"{}", b"1e999"):
            path.write_bytes(content[:at] + value + content[at + len(value) :])
            with suppress(SourceError):
                form = annotation_format(path, "FILE")
                found = [] if form is None else list(read_annotations(path, "FILE", form))
                assert all(isinstance(each, AnnotatedImage | BadEntry) for each in found)
