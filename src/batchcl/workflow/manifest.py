"""Manifest lines for Custom Labels: checked, completed and converted before anything is uploaded.

Sources: Custom Labels guide, "Creating a manifest file", "Image-level labels in manifest files", "Object localization
in manifest files" and "Validation rules for manifest files". Several labels of an image are several attributes there;
Ground Truth writes them as one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import METADATA, MULTILABEL, SINGLE_LABEL, GroundTruth, chosen_attributes, kinds_of
from batchcl.image_header import MAX_SIDE, MIN_SIDE

__all__ = ["MAX_LINES", "check_line", "is_unfinished", "manifest_line"]

MAX_LINES: Final = 250_000
"""Lines of a manifest; source: developer guide, "Guidelines and quotas"."""

_LONGEST_LABEL: Final = 255
_LONGEST_LINE: Final = 100_000
_MAX_BOXES: Final = 50
_SLACK_PIXELS: Final = 1e-6
_RESIZED_SIDE: Final = 1280
"""The service shrinks larger images to this for training, and a box has to be larger than one pixel then."""

_VIDEO: Final = "groundtruth/video-"


def check_line(truth: GroundTruth, attributes: Mapping[str, Any]) -> None:
    """Raise `SourceError` where the service couldn't use what a manifest line says, however it is completed.

    Args:
        truth: the line, as `groundtruth.parse_line` reads it.
        attributes: the line without its `source-ref`.
    """
    kinds = kinds_of(attributes)
    if any(kind.startswith(_VIDEO) for kind in kinds.values()):
        raise SourceError("it is a line of a video manifest, and Custom Labels takes images; label single frames")
    truth.require_good_labels()
    chosen = chosen_attributes(attributes)
    if kinds and not chosen:
        named = ", ".join(f"{name} of type {kind}" for name, kind in kinds.items())
        raise SourceError(f"it has no labels that Custom Labels takes, but {named}; use image or bounding box labels")
    for label in truth.labels:
        if len(label) > _LONGEST_LABEL:
            raise SourceError(
                f"the label {label[:40]!r}… has {len(label)} characters, and {_LONGEST_LABEL} are allowed"
            )
    if truth.task == "detection":
        _check_boxes(truth)
    for name in chosen:
        for what in ("confidence", "confidence-map", "objects"):
            _check_confidences(name, attributes[name + METADATA].get(what))
    line = manifest_line("", labels=(), attributes=attributes, created=dt.datetime.now(dt.UTC))
    if len(line) + len(truth.source_ref) > _LONGEST_LINE:
        raise SourceError(f"it has more than {_LONGEST_LINE:,} characters")


def is_unfinished(attributes: Mapping[str, Any]) -> bool:
    """Whether `manifest_line` would change what the service needs of a line."""
    line = orjson.loads(manifest_line("", labels=(), attributes=attributes, created=dt.datetime.now(dt.UTC)))
    del line["source-ref"]
    for name, value in line.items():
        given = attributes.get(name)
        if name.endswith(METADATA) and isinstance(given, dict) and "job-name" not in given:
            del value["job-name"]  # the service needs none
    return bool(line != attributes)


def manifest_line(
    uri: str, *, labels: tuple[str, ...], attributes: Mapping[str, Any] | None, created: dt.datetime
) -> bytes:
    """One JSON line without its end.

    Args:
        uri: `s3://bucket/key`, exactly.
        labels: of the whole image.
        attributes: what an existing line says, instead of `labels`. Labels in Ground Truth's multi-label form become
            attributes of their own, and missing confidences, `human-annotated` and `creation-date` are added. Labels
            that Custom Labels doesn't take are left out.
        created: when the labels were given, where the line doesn't tell.
    """
    line: dict[str, Any] = {"source-ref": uri}
    if attributes is None:
        for number, label in enumerate(labels):
            line |= _label(f"label-{number}", label, {}, created)
        return orjson.dumps(line)
    chosen = chosen_attributes(attributes)
    labelled = kinds_of(attributes)
    line |= {key: value for key, value in attributes.items() if key not in labelled and not key.endswith(METADATA)}
    for name in chosen:
        line |= _completed(name, attributes[name], attributes[name + METADATA], created)
    return orjson.dumps(line)


def _completed(name: str, value: Any, metadata: Mapping[str, Any], created: dt.datetime) -> dict[str, Any]:
    """The attribute as Custom Labels wants it; several for several labels."""
    kind = metadata["type"]
    if kind == MULTILABEL:
        sure = metadata.get("confidence-map") or {}
        rest = {key: each for key, each in metadata.items() if key not in {"class-map", "confidence-map", "type"}}
        attributes: dict[str, Any] = {}
        for number, class_id in enumerate(dict.fromkeys(value)):
            given = {"confidence": sure[str(class_id)]} if str(class_id) in sure else {}
            attributes |= _label(f"{name}-{number}", metadata["class-map"][str(class_id)], rest | given, created)
        return attributes
    if kind == SINGLE_LABEL:
        label = metadata.get("class-name") or metadata.get("class-map", {}).get(str(value)) or value
        return _label(name, label, {key: each for key, each in metadata.items() if key != "class-map"}, created, value)
    boxes, said = value["annotations"], metadata.get("objects")
    objects: list[dict[str, Any]] = said if isinstance(said, list) and len(said) == len(boxes) else [{}] * len(boxes)
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
    """Where the labels are from, as the metadata of any attribute has to say."""
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
        raise SourceError("its boxes can't be used, as it gives no image_size with width and height")
    wide, high = truth.image_size
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in truth.image_size):
        raise SourceError(f"its image_size is {wide} by {high} pixels, and {MIN_SIDE} to {MAX_SIDE} are allowed a side")
    if len(truth.boxes) > _MAX_BOXES:
        raise SourceError(f"it has {len(truth.boxes)} boxes, and {_MAX_BOXES} are allowed")
    for box in truth.boxes:
        right, bottom = box.left + box.width, box.top + box.height
        if min(box.left, box.top) < 0 or right > wide + _SLACK_PIXELS or bottom > high + _SLACK_PIXELS:
            raise SourceError(
                f"a box of {box.label!r} from ({box.left:g}, {box.top:g}) to ({right:g}, {bottom:g}) lies outside of "
                f"the image of {wide} by {high} pixels"
            )
        if min(box.width, box.height) * min(1.0, _RESIZED_SIDE / max(wide, high)) <= 1:
            raise SourceError(
                f"a box of {box.label!r} is {box.width:g} by {box.height:g} pixels of {wide} by {high}: too small to "
                "learn from"
            )


def _check_confidences(name: str, given: Any) -> None:
    """`given` is a confidence, a map of them, or a list of objects with one each; None where it is to be added."""
    each = given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]
    for one in each:
        value = one.get("confidence") if isinstance(one, dict) else one
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SourceError(f"the confidence of {name!r} is {value!r}, and 0 to 1 is allowed")
