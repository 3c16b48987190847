"""Errors of manifest lines, and which parts of a line can be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchcl.emulator.manifest import DATASET, VALIDATION, validate_line, with_errors
from unit.emulator.test_emulator_datasets import boxed, labelled


def changed(line: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with the value at `path` set, or removed for None."""
    copy: dict[str, Any] = json.loads(json.dumps(line))
    place: Any = copy
    for step in path[:-1]:
        place = place[step]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return copy


LABEL = labelled(1, "cat")
BOX = boxed(1, ("cat", 5))
CASES: list[tuple[dict[str, Any], list[str]]] = [
    (LABEL, []),
    (labelled(1, "cat", "dog"), []),
    (BOX, []),
    (changed(LABEL, "source-ref", to=None), ["ERROR_MISSING_SOURCE_REF"]),
    (changed(LABEL, "source-ref", to="https://b/k"), ["ERROR_INVALID_SOURCE_REF_FORMAT"]),
    (changed(LABEL, "l0-metadata", to=None), ["ERROR_NO_LABEL_ATTRIBUTES"]),
    (changed(LABEL, "l0", to=None), ["ERROR_NO_LABEL_ATTRIBUTES"]),
    (changed(LABEL, "l0", to=[1]), ["ERROR_INVALID_LABEL_ATTRIBUTE_FORMAT", "ERROR_NO_VALID_LABEL_ATTRIBUTES"]),
    (changed(LABEL, "l0-metadata", "class-name", to="x" * 256), ["ERROR_INVALID_LABEL_NAME_LENGTH"]),
    (changed(LABEL, "l0-metadata", "type", to="groundtruth/text"), ["ERROR_UNSUPPORTED_USE_CASE_TYPE"]),
    *(
        (changed(LABEL, "l0-metadata", key, to=value), ["ERROR_INVALID_LABEL_ATTRIBUTE_METADATA_FORMAT"])
        for key, value in (
            ("type", None),
            ("class-name", None),
            ("confidence", 2),
            ("human-annotated", "maybe"),
            ("creation-date", None),
        )
    ),
    (changed(BOX, "b", "image_size", to=[]), ["ERROR_INVALID_LABEL_ATTRIBUTE_FORMAT"]),
    (changed(BOX, "b", "image_size", 0, "width", to=63), ["ERROR_INVALID_IMAGE_DIMENSION"]),
    (changed(BOX, "b-metadata", "objects", to=[]), ["ERROR_MISSING_BOUNDING_BOX_CONFIDENCE"]),
    (changed(BOX, "b-metadata", "class-map", to={"7": "cat"}), ["ERROR_MISSING_CLASS_MAP_ID"]),
    (changed(BOX, "b", "annotations", 0, "left", to=-1), ["ERROR_INVALID_BOUNDING_BOX"]),
    (changed(BOX, "b", "annotations", 0, "left", to=600), ["ERROR_INVALID_BOUNDING_BOX"]),
    (changed(BOX, "b", "annotations", 0, "width", to=1), ["ERROR_BOUNDING_BOX_TOO_SMALL"]),
    (boxed(1, *[("cat", 5)] * 51), ["ERROR_TOO_MANY_BOUNDING_BOXES"]),
]


@pytest.mark.parametrize(("line", "codes"), CASES)
def test_every_documented_error_of_a_line(line: dict[str, Any], codes: list[str]) -> None:
    entry = validate_line(json.dumps(line).encode())
    assert {e.code for e in entry.errors} >= set(codes)
    assert bool(entry.errors) == bool(codes)
    assert (entry.truth is None) == bool(codes)
    for code in codes:
        assert code in with_errors(entry.line, VALIDATION).decode()


@pytest.mark.parametrize("line", [b"{", b"[]", b"3", b"", b'{"source-ref":"s3://bucket/k"' + b" " * 100_000 + b"}"])
def test_lines_that_are_not_json_are_replaced_by_their_error(line: bytes) -> None:
    entry = validate_line(line)
    assert entry.unfit is not None
    assert json.loads(with_errors(line, VALIDATION)) == {
        "errors": [{"code": "ERROR_INVALID_JSON_LINE", "message": "The JSON Line has an invalid format."}]
    }


def test_a_broken_part_leaves_the_others_usable() -> None:
    two = labelled(1, "cat", "dog")
    entry = validate_line(json.dumps(changed(two, "l0-metadata", "class-name", to=None)).encode())
    assert entry.truth is not None
    assert entry.truth.labels == ("dog",)
    assert entry.errors
    boxes = boxed(1, ("cat", 5), ("dog", 90), ("cow", 600))
    entry = validate_line(json.dumps(boxes).encode())
    assert entry.truth is not None
    assert [box.label for box in entry.truth.boxes] == ["cat", "dog"]


def test_images_without_labels_are_warnings() -> None:
    bare = validate_line(b'{"source-ref":"s3://bucket/1.png"}')
    assert bare.warned
    assert not bare.labeled
    assert b"WARNING_UNANNOTATED_RECORD" in with_errors(bare.line, VALIDATION)
    empty = validate_line(json.dumps(boxed(1)).encode())
    assert empty.warned
    assert empty.truth is None
    shown = json.loads(with_errors(empty.line, VALIDATION))
    assert shown["warnings"][0]["code"] == "WARNING_NO_ANNOTATIONS"
    assert shown["b"]["warnings"][0]["code"] == "WARNING_NO_ATTRIBUTE_ANNOTATIONS"
    assert json.loads(with_errors(empty.line, DATASET))["cl-metadata"] == {"is_labeled": False}


def test_listed_entries_can_be_submitted_again() -> None:
    for line, _ in CASES:
        entry = validate_line(json.dumps(line).encode())
        if entry.unfit is None:
            assert validate_line(with_errors(entry.line, DATASET)) == entry
            assert validate_line(with_errors(entry.line, VALIDATION)) == entry
