"""One line of a SageMaker Ground Truth or Custom Labels manifest: which image it names and what is on it.

The names of the label attributes are free. An attribute is found by its `-metadata` sibling and read by the
`type` in there; types that carry no image labels (label verification, segmentation, text) are left alone.
Sources: SageMaker guide, "Labeling job output data"; Custom Labels guide, "Creating a manifest file" and
"Interpreting the evaluation manifest snapshot".
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import orjson

from batchcl.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DETECTION",
    "METADATA",
    "MULTILABEL",
    "SINGLE_LABEL",
    "GroundTruth",
    "TruthBox",
    "chosen_attributes",
    "kinds_of",
    "multilabel",
    "parse_extra",
    "parse_line",
]

METADATA: Final = "-metadata"
_SOURCE: Final = "source-ref"
_EVALUATION_DETAILS: Final = "rekognition-custom-labels-evaluation-details"
_EVALUATION_JOB: Final = "rekognition-custom-labels-evaluation-job"

SINGLE_LABEL: Final = "groundtruth/image-classification"
MULTILABEL: Final = "groundtruth/image-classification-multilabel"
DETECTION: Final = "groundtruth/object-detection"
_READ: Final = frozenset({SINGLE_LABEL, MULTILABEL, DETECTION})

Read = TypeVar("Read")

_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class TruthBox:
    """One object on an image, in pixels of that image from its left upper corner."""

    label: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """What one manifest line says.

    Attributes:
        source_ref: the image exactly as written: `s3://bucket/key` or a path.
        labels: each label on the image once, in the line's order; those of the boxes for object detection.
        boxes: the objects; empty for classification.
        image_size: (width, height) in pixels; None where the line doesn't tell.
        task: None for a line without labels, such as a bare `{"source-ref": …}`. An image that was looked at
            and has nothing on it has a task and no labels.
        bad_labels: what is wrong with each label that can't be used; these are not among `labels` and `boxes`, and
            where no other is left, `task` is None.
        extra: the line's keys other than `source-ref` as compact JSON; None when there are none.
    """

    source_ref: str
    labels: tuple[str, ...] = ()
    boxes: tuple[TruthBox, ...] = ()
    image_size: tuple[int, int] | None = None
    task: Literal["classification", "detection"] | None = None
    bad_labels: tuple[str, ...] = ()
    extra: str | None = None

    def require_good_labels(self) -> None:
        """Raise `SourceError` where a label can't be used."""
        if self.bad_labels:
            raise SourceError(self.bad_labels[0])


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
            moment = dt.datetime.fromisoformat(self.metadata["creation-date"])
        except (KeyError, TypeError, ValueError):
            return _LONG_AGO
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def parse_line(line: bytes | str, *, attribute: str | None = None, strict: bool = False) -> GroundTruth:
    """Read one manifest line.

    Several classification attributes on a line are several labels of the image, which is how Custom Labels
    writes multi-label; their values and confidences are not looked at, as it doesn't either. Of several
    object-detection attributes (chained jobs) one is read: an adjusted one (`adjustment-status`) before the
    others, then the one with the latest `creation-date`. A line with both kinds is object detection. The
    predictions in an evaluation snapshot are not truth and are passed over.

    A label that breaks its own format is told in `bad_labels`; the image and its other labels are good.

    Args:
        line: JSON, UTF-8.
        attribute: read this attribute and no other; `extra` then holds no other one either.
        strict: refuse a line of which one of several chained attributes would have to be chosen by its date.

    Raises:
        SourceError: the line isn't a JSON object with a `source-ref`, or `attribute` isn't one of the line's. The
            message holds no line number: the caller knows it.
    """
    entry = _load(line)
    source_ref = entry.pop(_SOURCE, "")
    if not isinstance(source_ref, str):
        raise SourceError(f'reading a manifest line failed: its "source-ref" is no text: {repr(source_ref)[:80]}')
    if not source_ref:
        raise SourceError(
            'reading a manifest line failed: it has no "source-ref" with the image\'s S3 URI or path; '
            f"its keys are {_listed(entry)}"
        )
    return _parse(entry, source_ref, attribute, strict=strict)


def parse_extra(extra: str, source_ref: str, *, attribute: str | None = None) -> GroundTruth:
    """What `extra` of an earlier `GroundTruth` says of the image; `strict`, and otherwise as `parse_line`."""
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
    bad: list[str] = []
    if attributes[0].kind == DETECTION:
        boxes, size = _detection(attributes[0], source_ref, bad)
        labels = tuple(dict.fromkeys(box.label for box in boxes))
        return GroundTruth(
            source_ref=source_ref,
            labels=labels,
            boxes=boxes,
            image_size=size,
            task=None if bad and not boxes else "detection",
            bad_labels=tuple(bad),
            extra=extra,
        )
    named = [label for each in attributes for label in _classification(each, source_ref, bad)]
    return GroundTruth(
        source_ref=source_ref,
        labels=tuple(dict.fromkeys(named)),
        task=None if bad and not named else "classification",
        bad_labels=tuple(bad),
        extra=extra,
    )


def multilabel(name: str, labels: Sequence[str]) -> dict[str, Any]:
    """The attribute `name` with its metadata, as Ground Truth writes several labels of an image."""
    numbered = {str(at): label for at, label in enumerate(dict.fromkeys(labels))}
    metadata = {"class-map": numbered, "confidence-map": dict.fromkeys(numbered, 1), "type": MULTILABEL}
    return {name: [int(at) for at in numbered], f"{name}{METADATA}": metadata}


def chosen_attributes(entry: Mapping[str, Any]) -> list[str]:
    """The names of the label attributes that `parse_line` reads in a line."""
    return [each.name for each in _chosen(entry, "", None, strict=False)]


def kinds_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The attributes with metadata, whether of labels that are read or of others: name → its metadata's type."""
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
        raise SourceError(f"reading a manifest line failed: it is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise SourceError(f"reading a manifest line failed: it is a JSON {_kind(entry)}, not an object")
    return entry


def _dump(entry: dict[str, Any], source_ref: str) -> str:
    try:
        return orjson.dumps(entry).decode()
    except TypeError as error:  # orjson writes fewer levels than it reads
        raise SourceError(f"reading the manifest line of {source_ref} failed: {error}") from error


def _chosen(entry: Mapping[str, Any], source_ref: str, attribute: str | None, *, strict: bool) -> list[_Attribute]:
    """The attributes to read: one of object detection, or any number of classification."""
    found = _attributes(entry)
    if attribute is not None:
        return _named(entry, found, source_ref, attribute)
    candidates = [each for each in found if not _is_prediction(each)]
    boxes = [each for each in candidates if each.kind == DETECTION]
    adjusted = [each for each in boxes or candidates if each.adjusted]
    if not boxes and not adjusted:
        return candidates
    chained = adjusted or boxes
    if strict and len(chained) > 1:
        raise SourceError(
            f"reading the labels of {source_ref} failed: the line has {_listed(each.name for each in chained)}, of "
            "which one counts; say which with --attribute"
        )
    return [_latest(chained)]


def _attributes(entry: Mapping[str, Any]) -> list[_Attribute]:
    """Those with value and metadata; a failed labelling job leaves metadata alone."""
    found = []
    for key, metadata in entry.items():
        name = key.removesuffix(METADATA)
        if name == key or name not in entry or not isinstance(metadata, dict):
            continue
        kind = metadata.get("type")
        if isinstance(kind, str) and kind in _READ:
            found.append(_Attribute(name, entry[name], metadata, kind))
    return found


def _named(entry: Mapping[str, Any], found: list[_Attribute], source_ref: str, attribute: str) -> list[_Attribute]:
    matching = [each for each in found if each.name == attribute]
    if matching:
        return matching
    if attribute in entry:
        metadata = entry.get(attribute + METADATA)
        kind = metadata.get("type") if isinstance(metadata, dict) else None
        raise SourceError(
            f"reading the label attribute {attribute!r} of {source_ref} failed: its metadata gives the type "
            f"{kind!r}, and batchcl reads {_listed(sorted(_READ))}"
        )
    if not found:
        return []
    raise SourceError(
        f"reading the label attribute {attribute!r} of {source_ref} failed: the line has none of that name; "
        f"it has {_listed(each.name for each in found)}"
    )


def _latest(attributes: list[_Attribute]) -> _Attribute:
    numbered = enumerate(attributes)
    return max(numbered, key=lambda item: (item[1].adjusted, item[1].created, item[0]))[1]


def _is_prediction(attribute: _Attribute) -> bool:
    """Whether the attribute is a model's answer in an evaluation snapshot."""
    metadata = attribute.metadata
    job = metadata.get("job-name")
    if _EVALUATION_DETAILS in metadata or (isinstance(job, str) and job.endswith(_EVALUATION_JOB)):
        return True
    objects = metadata.get("objects")
    return isinstance(objects, list) and any(isinstance(each, dict) and _EVALUATION_DETAILS in each for each in objects)


def _classification(attribute: _Attribute, source_ref: str, bad: list[str]) -> list[str]:
    """The labels; what is wrong with the others goes to `bad`."""
    if attribute.kind != MULTILABEL:
        return _good([attribute.value], lambda _: _single(attribute, source_ref), bad)
    if not isinstance(attribute.value, list):
        bad.append(str(_broken(attribute, source_ref, f"expected a list of class ids, got a {_kind(attribute.value)}")))
        return []
    return _good(attribute.value, lambda class_id: _class_name(attribute, source_ref, class_id), bad)


def _good(values: Sequence[Any], read: Callable[[Any], Read], bad: list[str]) -> list[Read]:
    """What `read` makes of the values; what it raises goes to `bad`."""
    found = []
    for value in values:
        try:
            found.append(read(value))
        except SourceError as error:
            bad.append(str(error))
    return found


def _single(attribute: _Attribute, source_ref: str) -> str:
    name = attribute.metadata.get("class-name")
    if isinstance(name, str) and name:
        return name
    if name is not None:
        raise _broken(attribute, source_ref, f'its "class-name" is {name!r}, not a name')
    if "class-map" in attribute.metadata:
        return _class_name(attribute, source_ref, attribute.value)
    if isinstance(attribute.value, str) and attribute.value:
        return attribute.value
    raise _broken(attribute, source_ref, 'its metadata has no "class-name"')


def _detection(
    attribute: _Attribute, source_ref: str, bad: list[str]
) -> tuple[tuple[TruthBox, ...], tuple[int, int] | None]:
    """The boxes and the image's size; what is wrong with the others goes to `bad`."""
    value = attribute.value
    if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
        bad.append(str(_broken(attribute, source_ref, 'expected an object with a list of "annotations"')))
        return (), None
    boxes = _good(value["annotations"], lambda annotation: _box(attribute, source_ref, annotation), bad)
    sizes = _good([value.get("image_size")], lambda size: _image_size(attribute, source_ref, size), bad)
    return tuple(boxes), sizes[0] if sizes else None


def _box(attribute: _Attribute, source_ref: str, annotation: object) -> TruthBox:
    if not isinstance(annotation, dict):
        raise _broken(attribute, source_ref, f"an annotation is a {_kind(annotation)}, not an object")
    label = _class_name(attribute, source_ref, annotation.get("class_id"))
    left, top, width, height = (
        _number(attribute, source_ref, annotation, key) for key in ("left", "top", "width", "height")
    )
    if width <= 0 or height <= 0:
        raise _broken(attribute, source_ref, f"a box of {label!r} is {width:g} by {height:g} pixels")
    return TruthBox(label, left, top, width, height)


def _number(attribute: _Attribute, source_ref: str, annotation: Mapping[str, Any], key: str) -> float:
    value = annotation.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _broken(attribute, source_ref, f"{key!r} of a box is {value!r}, not a number of pixels")
    return float(value)


def _image_size(attribute: _Attribute, source_ref: str, value: object) -> tuple[int, int] | None:
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first == []:
        return None
    if isinstance(first, dict):
        sides: list[Any] = [first.get("width"), first.get("height")]
        if all(map(_is_pixels, sides)):
            return int(sides[0]), int(sides[1])
    raise _broken(attribute, source_ref, '"image_size" has no width and height of at least one pixel')


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1


def _class_name(attribute: _Attribute, source_ref: str, class_id: object) -> str:
    class_map = attribute.metadata.get("class-map")
    if isinstance(class_id, bool) or not isinstance(class_id, int | str):
        raise _broken(attribute, source_ref, f"a class id is {class_id!r}, not a number")
    name = class_map.get(str(class_id)) if isinstance(class_map, dict) else None
    if not isinstance(name, str) or not name:
        raise _broken(attribute, source_ref, f'its "class-map" has no name for class id {class_id}')
    return name


def _broken(attribute: _Attribute, source_ref: str, why: str) -> SourceError:
    return SourceError(f"reading the label attribute {attribute.name!r} of {source_ref} failed: {why}")


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
