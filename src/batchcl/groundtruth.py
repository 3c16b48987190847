"""Parses one line of a SageMaker Ground Truth or Custom Labels manifest: the image, its labels and boxes.

Label attributes can have any name. A key is a label attribute if the line also has its name with `-metadata`; the
metadata's `type` gives its format. Types without image labels (label verification, segmentation, text) are ignored.
Sources: SageMaker guide, "Labeling job output data"; Custom Labels guide, "Creating a manifest file" and "Interpreting
the evaluation manifest snapshot".
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import orjson

from batchcl.errors import ErrorCode, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DETECTION",
    "METADATA",
    "MULTILABEL",
    "SINGLE_LABEL",
    "GroundTruth",
    "TruthBox",
    "attribute_types",
    "detection_attribute",
    "multilabel_attribute",
    "parse_extra",
    "parse_line",
    "selected_attributes",
]

METADATA: Final = "-metadata"
_SOURCE: Final = "source-ref"
_EVALUATION_DETAILS: Final = "rekognition-custom-labels-evaluation-details"
_EVALUATION_JOB: Final = "rekognition-custom-labels-evaluation-job"

SINGLE_LABEL: Final = "groundtruth/image-classification"
MULTILABEL: Final = "groundtruth/image-classification-multilabel"
DETECTION: Final = "groundtruth/object-detection"
_SUPPORTED_TYPES: Final = frozenset({SINGLE_LABEL, MULTILABEL, DETECTION})

T = TypeVar("T")

_NO_DATE: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class TruthBox:
    """The bounding box of one object, in pixels from the image's upper left corner."""

    label: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The content of one manifest line.

    Attributes:
        source_ref: the image as written: `s3://bucket/key` or a path.
        labels: the image's labels without duplicates, in the line's order; for object detection those of the boxes.
        boxes: the objects; empty for classification.
        image_size: (width, height) in pixels; None if the line does not state it.
        task: None for a line without labels, such as a bare `{"source-ref": …}`. An image that was labelled as empty
            has a task and no labels.
        bad_labels: an error for each malformed label. These are not in `labels` and `boxes`; if no valid label is
            left, `task` is None.
        extra: the line's keys other than `source-ref`, as compact JSON; None if there are none.
    """

    source_ref: str
    labels: tuple[str, ...] = ()
    boxes: tuple[TruthBox, ...] = ()
    image_size: tuple[int, int] | None = None
    task: Literal["classification", "detection"] | None = None
    bad_labels: tuple[str, ...] = ()
    extra: str | None = None

    def require_good_labels(self) -> None:
        """Raise `SourceError` if a label is malformed."""
        if self.bad_labels:
            raise SourceError(self.bad_labels[0], code=ErrorCode.MALFORMED_MANIFEST)


class _Attribute(NamedTuple):
    """A label attribute with its metadata; `kind` is the metadata's `type`."""

    name: str
    value: Any
    metadata: Mapping[str, Any]
    kind: str

    @property
    def adjusted(self) -> bool:
        return "adjustment-status" in self.metadata

    @property
    def created(self) -> dt.datetime:
        try:
            created = dt.datetime.fromisoformat(self.metadata["creation-date"])
        except (KeyError, TypeError, ValueError):
            return _NO_DATE
        return created if created.tzinfo else created.replace(tzinfo=dt.UTC)


def parse_line(line: bytes | str, *, attribute: str | None = None, strict: bool = False) -> GroundTruth:
    """Parse one manifest line.

    Each classification attribute is one label of the image, which is how Custom Labels writes multi-label images; like
    Custom Labels, this ignores their values and confidences. Of several object-detection attributes (chained jobs) one
    is used: an adjusted one (`adjustment-status`) before the others, then the one with the latest `creation-date`. A
    line with both kinds is object detection. Predictions in an evaluation snapshot are ignored.

    A malformed label is reported in `bad_labels`; the image and its other labels are used.

    Args:
        line: JSON, UTF-8.
        attribute: use only this attribute; `extra` then contains no other label attribute.
        strict: raise if one of several chained attributes would be chosen by its date.

    Raises:
        SourceError: the line is not a JSON object with a `source-ref`, or lacks `attribute`. The message has no line
            number; callers add it.
    """
    entry = _load(line)
    source_ref = entry.pop(_SOURCE, "")
    if not isinstance(source_ref, str):
        raise SourceError(
            f'reading a manifest line failed: its "source-ref" is not a string: {repr(source_ref)[:80]}',
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    if not source_ref:
        raise SourceError(
            'reading a manifest line failed: it has no "source-ref" with the image\'s S3 URI or path; '
            f"its keys are {_listed(entry)}",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    return _parse(entry, source_ref, attribute, strict=strict)


def parse_extra(extra: str, source_ref: str, *, attribute: str | None = None) -> GroundTruth:
    """Parse the `extra` of an earlier `GroundTruth`, as `parse_line` does with `strict`."""
    return _parse(_load(extra), source_ref, attribute, strict=True)


def _parse(entry: dict[str, Any], source_ref: str, attribute: str | None, *, strict: bool) -> GroundTruth:
    attributes = _chosen(entry, source_ref, attribute, strict=strict)
    if attribute is not None:
        for other in _attributes(entry):
            if other.name != attribute:
                del entry[other.name], entry[other.name + METADATA]
    extra = _dump(entry, source_ref) if entry else None
    if not attributes:
        return GroundTruth(source_ref=source_ref, extra=extra)
    errors: list[str] = []
    if attributes[0].kind == DETECTION:
        boxes, size = _detection(attributes[0], source_ref, errors)
        labels = tuple(dict.fromkeys(box.label for box in boxes))
        return GroundTruth(
            source_ref=source_ref,
            labels=labels,
            boxes=boxes,
            image_size=size,
            task=None if errors and not boxes else "detection",
            bad_labels=tuple(errors),
            extra=extra,
        )
    names = [label for each in attributes for label in _classification(each, source_ref, errors)]
    return GroundTruth(
        source_ref=source_ref,
        labels=tuple(dict.fromkeys(names)),
        task=None if errors and not names else "classification",
        bad_labels=tuple(errors),
        extra=extra,
    )


def multilabel_attribute(name: str, labels: Sequence[str]) -> dict[str, Any]:
    """The attribute `name` and its metadata for several labels of an image, in Ground Truth's format."""
    numbered = {str(at): label for at, label in enumerate(dict.fromkeys(labels))}
    metadata = {"class-map": numbered, "confidence-map": dict.fromkeys(numbered, 1), "type": MULTILABEL}
    return {name: [int(at) for at in numbered], f"{name}{METADATA}": metadata}


def detection_attribute(
    name: str,
    boxes: Sequence[TruthBox],
    image_size: tuple[int, int],
    *,
    confidences: Sequence[float] | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The attribute `name` and its metadata for the boxes of an image, in whole pixels.

    Args:
        name: of the attribute.
        boxes: in pixels.
        image_size: (width, height) in pixels.
        confidences: of the boxes, 0 to 1; 1 by default.
        more: other fields of the metadata.
    """
    numbers = {label: number for number, label in enumerate(sorted({box.label for box in boxes}))}
    width, height = image_size
    annotations = []
    for box in boxes:
        left, across = _whole_pixels(box.left, box.width, width)
        top, down = _whole_pixels(box.top, box.height, height)
        sides = {"left": left, "top": top, "width": across, "height": down}
        annotations.append({"class_id": numbers[box.label], **sides})
    return {
        name: {"image_size": [{"width": width, "height": height, "depth": 3}], "annotations": annotations},
        name + METADATA: {
            "objects": [{"confidence": each} for each in confidences or [1] * len(boxes)],
            "class-map": {str(number): label for label, number in numbers.items()},
            "type": DETECTION,
            **more,
        },
    }


def _whole_pixels(begin: float, length: float, side: int) -> tuple[int, int]:
    """Begin and length of a box along one side of the image; at least one pixel."""
    first = min(round(begin), side - 1)
    return first, max(round(begin + length) - first, 1)


def selected_attributes(entry: Mapping[str, Any]) -> list[str]:
    """The names of the label attributes that `parse_line` uses."""
    return [each.name for each in _chosen(entry, "", None, strict=False)]


def attribute_types(entry: Mapping[str, Any]) -> dict[str, str]:
    """All attributes with metadata, including those of unsupported types: name → the metadata's type."""
    kinds = {}
    for key, metadata in entry.items():
        name = key.removesuffix(METADATA)
        if name != key and name in entry and isinstance(metadata, dict):
            kinds[name] = str(metadata.get("type"))
    return kinds


def _load(line: bytes | str) -> dict[str, Any]:
    text = line.removeprefix(b"\xef\xbb\xbf") if isinstance(line, bytes) else line.removeprefix("\ufeff")
    try:
        entry = orjson.loads(text)
    except ValueError as error:
        raise SourceError(
            f"reading a manifest line failed: it is not JSON: {error}", code=ErrorCode.MALFORMED_MANIFEST
        ) from error
    if not isinstance(entry, dict):
        raise SourceError(
            f"reading a manifest line failed: it is a JSON {_kind(entry)}, not an object",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    return entry


def _dump(entry: dict[str, Any], source_ref: str) -> str:
    try:
        return orjson.dumps(entry).decode()
    except TypeError as error:  # orjson writes fewer levels than it reads
        raise SourceError(
            f"reading the manifest line of {source_ref} failed: {error}", code=ErrorCode.MALFORMED_MANIFEST
        ) from error


def _chosen(entry: Mapping[str, Any], source_ref: str, attribute: str | None, *, strict: bool) -> list[_Attribute]:
    """The attributes to use: one of object detection, or any number of classification."""
    attributes = _attributes(entry)
    if attribute is not None:
        return _named(entry, attributes, source_ref, attribute)
    candidates = [each for each in attributes if not _is_prediction(each)]
    boxes = [each for each in candidates if each.kind == DETECTION]
    adjusted = [each for each in boxes or candidates if each.adjusted]
    if not boxes and not adjusted:
        return candidates
    chained = adjusted or boxes
    if strict and len(chained) > 1:
        raise SourceError(
            f"reading the labels of {source_ref} failed: the line has several sets of labels: "
            f"{_listed(each.name for each in chained)}; select one with --attribute",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    return [_latest(chained)]


def _attributes(entry: Mapping[str, Any]) -> list[_Attribute]:
    """The supported label attributes; a failed labelling job writes metadata without a value."""
    attributes = []
    for key, metadata in entry.items():
        name = key.removesuffix(METADATA)
        if name == key or name not in entry or not isinstance(metadata, dict):
            continue
        kind = metadata.get("type")
        if isinstance(kind, str) and kind in _SUPPORTED_TYPES:
            attributes.append(_Attribute(name, entry[name], metadata, kind))
    return attributes


def _named(entry: Mapping[str, Any], attributes: list[_Attribute], source_ref: str, attribute: str) -> list[_Attribute]:
    matching = [each for each in attributes if each.name == attribute]
    if matching:
        return matching
    if attribute in entry:
        metadata = entry.get(attribute + METADATA)
        kind = metadata.get("type") if isinstance(metadata, dict) else None
        raise SourceError(
            f"reading the label attribute {attribute!r} of {source_ref} failed: the type {kind!r} in its metadata is "
            f"not supported; supported are {_listed(sorted(_SUPPORTED_TYPES))}",
            code=ErrorCode.MALFORMED_MANIFEST,
        )
    if not attributes:
        return []
    raise SourceError(
        f"reading the label attribute {attribute!r} of {source_ref} failed: the line has no such attribute; "
        f"it has {_listed(each.name for each in attributes)}",
        code=ErrorCode.MALFORMED_MANIFEST,
    )


def _latest(attributes: list[_Attribute]) -> _Attribute:
    numbered = enumerate(attributes)
    return max(numbered, key=lambda item: (item[1].adjusted, item[1].created, item[0]))[1]


def _is_prediction(attribute: _Attribute) -> bool:
    """Whether the attribute is a model's prediction in an evaluation snapshot."""
    metadata = attribute.metadata
    job = metadata.get("job-name")
    if _EVALUATION_DETAILS in metadata or (isinstance(job, str) and job.endswith(_EVALUATION_JOB)):
        return True
    objects = metadata.get("objects")
    return isinstance(objects, list) and any(isinstance(each, dict) and _EVALUATION_DETAILS in each for each in objects)


def _classification(attribute: _Attribute, source_ref: str, errors: list[str]) -> list[str]:
    """The valid labels; those that are malformed are reported in `errors`."""
    if attribute.kind != MULTILABEL:
        return _parse_each([attribute.value], lambda _: _single(attribute, source_ref), errors)
    if not isinstance(attribute.value, list):
        why = f"expected a list of class ids, got a {_kind(attribute.value)}"
        errors.append(str(_malformed(attribute, source_ref, why)))
        return []
    return _parse_each(attribute.value, lambda class_id: _class_name(attribute, source_ref, class_id), errors)


def _parse_each(values: Sequence[Any], parse: Callable[[Any], T], errors: list[str]) -> list[T]:
    """The parsed values; the errors that `parse` raises are added to `errors`."""
    parsed = []
    for value in values:
        try:
            parsed.append(parse(value))
        except SourceError as error:
            errors.append(str(error))
    return parsed


def _single(attribute: _Attribute, source_ref: str) -> str:
    name = attribute.metadata.get("class-name")
    if isinstance(name, str) and name:
        return name
    if name is not None:
        raise _malformed(attribute, source_ref, f'its "class-name" is {name!r}, not a name')
    if "class-map" in attribute.metadata:
        return _class_name(attribute, source_ref, attribute.value)
    if isinstance(attribute.value, str) and attribute.value:
        return attribute.value
    raise _malformed(attribute, source_ref, 'its metadata has no "class-name"')


def _detection(
    attribute: _Attribute, source_ref: str, errors: list[str]
) -> tuple[tuple[TruthBox, ...], tuple[int, int] | None]:
    """The valid boxes and the image's size; what is malformed is reported in `errors`."""
    value = attribute.value
    if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
        errors.append(str(_malformed(attribute, source_ref, 'expected an object with a list of "annotations"')))
        return (), None
    boxes = _parse_each(value["annotations"], lambda annotation: _box(attribute, source_ref, annotation), errors)
    sizes = _parse_each([value.get("image_size")], lambda size: _image_size(attribute, source_ref, size), errors)
    return tuple(boxes), sizes[0] if sizes else None


def _box(attribute: _Attribute, source_ref: str, annotation: object) -> TruthBox:
    if not isinstance(annotation, dict):
        raise _malformed(attribute, source_ref, f"an annotation is a {_kind(annotation)}, not an object")
    label = _class_name(attribute, source_ref, annotation.get("class_id"))
    left, top, width, height = (
        _number(attribute, source_ref, annotation, key) for key in ("left", "top", "width", "height")
    )
    if width <= 0 or height <= 0:
        raise _malformed(attribute, source_ref, f"a box of {label!r} is {width:g} by {height:g} pixels")
    return TruthBox(label, left, top, width, height)


def _number(attribute: _Attribute, source_ref: str, annotation: Mapping[str, Any], key: str) -> float:
    value = annotation.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _malformed(attribute, source_ref, f"{key!r} of a box is {value!r}, not a number of pixels")
    return float(value)


def _image_size(attribute: _Attribute, source_ref: str, value: object) -> tuple[int, int] | None:
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first == []:
        return None
    if isinstance(first, dict):
        sides: list[Any] = [first.get("width"), first.get("height")]
        if all(map(_is_pixels, sides)):
            return int(sides[0]), int(sides[1])
    raise _malformed(attribute, source_ref, '"image_size" has no width and height of at least one pixel')


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1


def _class_name(attribute: _Attribute, source_ref: str, class_id: object) -> str:
    class_map = attribute.metadata.get("class-map")
    if isinstance(class_id, bool) or not isinstance(class_id, int | str):
        raise _malformed(attribute, source_ref, f"a class id is {class_id!r}, not a number")
    name = class_map.get(str(class_id)) if isinstance(class_map, dict) else None
    if not isinstance(name, str) or not name:
        raise _malformed(attribute, source_ref, f'its "class-map" has no name for class id {class_id}')
    return name


def _malformed(attribute: _Attribute, source_ref: str, why: str) -> SourceError:
    return SourceError(
        f"reading the label attribute {attribute.name!r} of {source_ref} failed: {why}",
        code=ErrorCode.MALFORMED_MANIFEST,
    )


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", str: "string", list: "list", dict: "object", int: "number", float: "number"}
    return kinds[type(value)]


def _listed(names: Any) -> str:
    shown = [repr(name) for name in names]
    most = 8
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) + more) or "none"
