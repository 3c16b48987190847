"""Checks, completes and converts manifest lines for Custom Labels, before images are uploaded.

Sources: Custom Labels guide, "Creating a manifest file", "Image-level labels in manifest files", "Object localization
in manifest files" and "Validation rules for manifest files". Custom Labels expects one attribute per label of an
image; Ground Truth writes one attribute for all of them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import orjson

from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import METADATA, MULTILABEL, SINGLE_LABEL, GroundTruth, attribute_types, selected_attributes
from batchcl.image_header import MAX_SIDE, MIN_SIDE

__all__ = ["MAX_LINES", "check_line", "is_unfinished", "manifest_line"]

MAX_LINES: Final = 250_000
"""Lines of a manifest (Custom Labels guide, "Guidelines and quotas")."""

_MAX_LABEL_LENGTH: Final = 255
_MAX_LINE_LENGTH: Final = 100_000
_MAX_BOXES: Final = 50
_TOLERANCE_PIXELS: Final = 1e-6
_RESIZED_SIDE: Final = 1280
"""Larger images are reduced to this side for training; a box must be larger than one pixel after that."""

_VIDEO: Final = "groundtruth/video-"


def check_line(truth: GroundTruth, attributes: Mapping[str, Any]) -> None:
    """Raise `SourceError` if the service can't use a manifest line, even after `manifest_line` has completed it.

    Args:
        truth: the line, as returned by `groundtruth.parse_line`.
        attributes: the line without its `source-ref`.
    """
    kinds = attribute_types(attributes)
    if any(kind.startswith(_VIDEO) for kind in kinds.values()):
        raise SourceError(
            "it is a line of a video manifest; Custom Labels only accepts images. Label single frames.",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    truth.require_good_labels()
    chosen = selected_attributes(attributes)
    if kinds and not chosen:
        types = ", ".join(f"{name} of type {kind}" for name, kind in kinds.items())
        raise SourceError(
            f"it has no labels that Custom Labels supports, only {types}. Use image or bounding box labels.",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    for label in truth.labels:
        if len(label) > _MAX_LABEL_LENGTH:
            raise SourceError(
                f"the label {label[:40]!r}… has {len(label)} characters; at most {_MAX_LABEL_LENGTH} are allowed",
                code=ErrorCode.MALFORMED_MANIFEST,
            )
    if truth.task == "detection":
        _check_boxes(truth)
    for name in chosen:
        for what in ("confidence", "confidence-map", "objects"):
            _check_confidences(name, attributes[name + METADATA].get(what))
    line = manifest_line("", labels=(), attributes=attributes, created=dt.datetime.now(dt.UTC))
    if len(line) + len(truth.source_ref) > _MAX_LINE_LENGTH:
        raise SourceError(f"it has more than {_MAX_LINE_LENGTH:,} characters", code=ErrorCode.MALFORMED_MANIFEST)


def is_unfinished(attributes: Mapping[str, Any]) -> bool:
    """Whether a line lacks something that the service requires and `manifest_line` adds."""
    line = orjson.loads(manifest_line("", labels=(), attributes=attributes, created=dt.datetime.now(dt.UTC)))
    del line["source-ref"]
    for name, value in line.items():
        given = attributes.get(name)
        if name.endswith(METADATA) and isinstance(given, dict) and "job-name" not in given:
            del value["job-name"]  # optional
    return bool(line != attributes)


def manifest_line(
    uri: str, *, labels: tuple[str, ...], attributes: Mapping[str, Any] | None, created: dt.datetime
) -> bytes:
    """A JSON line without the line feed.

    Args:
        uri: `s3://bucket/key`, not escaped.
        labels: image-level labels.
        attributes: of an existing line, instead of `labels`. Ground Truth's multi-label attributes are split into one
            attribute per label; missing confidences, `human-annotated` and `creation-date` are added; labels of types
            that Custom Labels doesn't support are removed.
        created: creation date of labels without one.
    """
    line: dict[str, Any] = {"source-ref": uri}
    if attributes is None:
        for number, label in enumerate(labels):
            line |= _label(f"label-{number}", label, {}, created)
        return orjson.dumps(line)
    chosen = selected_attributes(attributes)
    labelled = attribute_types(attributes)
    line |= {key: value for key, value in attributes.items() if key not in labelled and not key.endswith(METADATA)}
    for name in chosen:
        line |= _completed(name, attributes[name], attributes[name + METADATA], created)
    return orjson.dumps(line)


def _completed(name: str, value: Any, metadata: Mapping[str, Any], created: dt.datetime) -> dict[str, Any]:
    """The attribute in the form that Custom Labels requires: one per label."""
    kind = metadata["type"]
    if kind == MULTILABEL:
        confidences = metadata.get("confidence-map") or {}
        rest = {key: each for key, each in metadata.items() if key not in {"class-map", "confidence-map", "type"}}
        attributes: dict[str, Any] = {}
        for number, class_id in enumerate(dict.fromkeys(value)):
            confidence = {"confidence": confidences[str(class_id)]} if str(class_id) in confidences else {}
            attributes |= _label(f"{name}-{number}", metadata["class-map"][str(class_id)], rest | confidence, created)
        return attributes
    if kind == SINGLE_LABEL:
        label = metadata.get("class-name") or metadata.get("class-map", {}).get(str(value)) or value
        return _label(name, label, {key: each for key, each in metadata.items() if key != "class-map"}, created, value)
    boxes, given = value["annotations"], metadata.get("objects")
    objects: list[dict[str, Any]] = given if isinstance(given, list) and len(given) == len(boxes) else [{}] * len(boxes)
    size = value.get("image_size") or []
    sizes: list[dict[str, Any]] = size if isinstance(size, list) else [size]
    return {
        name: {**value, "image_size": [{"depth": 3, **each} for each in sizes]},
        name + METADATA: {
            **metadata,
            "objects": [{"confidence": 1, **each} for each in objects],
            **_origin(name, metadata, created),
        },
    }


def _label(name: str, label: str, metadata: Mapping[str, Any], created: dt.datetime, value: Any = 1) -> dict[str, Any]:
    return {
        name: value,
        name + METADATA: {
            "class-name": label,
            "confidence": 1,
            **{key: each for key, each in metadata.items() if key != "class-name"},
            "type": SINGLE_LABEL,
            **_origin(name, metadata, created),
        },
    }


def _origin(name: str, metadata: Mapping[str, Any], created: dt.datetime) -> dict[str, Any]:
    """The job, annotator and date that are required in the metadata of each attribute."""
    at = created.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    by = metadata.get("human-annotated")
    return {
        "job-name": metadata.get("job-name") or f"labeling-job/{name}",
        "human-annotated": by if by in {"yes", "no"} else "yes",
        "creation-date": metadata.get("creation-date") or at,
    }


def _check_boxes(truth: GroundTruth) -> None:
    if not truth.boxes:
        return
    if truth.image_size is None:
        raise SourceError(
            "its boxes can't be used: there is no image_size with width and height", code=ErrorCode.MALFORMED_MANIFEST
        )
    wide, high = truth.image_size
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in truth.image_size):
        raise SourceError(
            f"its image_size is {wide} by {high} pixels; {MIN_SIDE} to {MAX_SIDE} per side are allowed",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    if len(truth.boxes) > _MAX_BOXES:
        raise SourceError(
            f"it has {len(truth.boxes)} boxes; at most {_MAX_BOXES} are allowed", code=ErrorCode.MALFORMED_MANIFEST
        )
    for box in truth.boxes:
        right, bottom = box.left + box.width, box.top + box.height
        if min(box.left, box.top) < 0 or right > wide + _TOLERANCE_PIXELS or bottom > high + _TOLERANCE_PIXELS:
            raise SourceError(
                f"a box of {box.label!r} from ({box.left:g}, {box.top:g}) to ({right:g}, {bottom:g}) is outside of "
                f"the image of {wide} by {high} pixels",
                code=ErrorCode.MALFORMED_MANIFEST,
            )
        if min(box.width, box.height) * min(1.0, _RESIZED_SIDE / max(wide, high)) <= 1:
            raise SourceError(
                f"a box of {box.label!r} is {box.width:g} by {box.height:g} pixels of {wide} by {high}: too small to "
                "train with",
                code=ErrorCode.MALFORMED_MANIFEST,
            )


def _check_confidences(name: str, given: Any) -> None:
    """Check `given`: a confidence, a map of confidences, or a list of objects with one each; None if missing."""
    each = given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]
    for one in each:
        value = one.get("confidence") if isinstance(one, dict) else one
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SourceError(
                f"the confidence of {name!r} is {value!r}; it must be from 0 to 1", code=ErrorCode.MALFORMED_MANIFEST
            )
