"""Validates manifest lines like the service: which parts of a line can be used, and the errors in the others.

Error codes, messages and where they are written in a line: Custom Labels guide, "Debugging datasets", "Debugging a
failed model training" and "Validation rules for manifest files". An invalid part makes its label attribute or its box
unusable, not the others of the line. Lines without a valid source-ref can't be in a dataset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.image_header import MAX_SIDE, MIN_SIDE

if TYPE_CHECKING:
    from batchcl.groundtruth import GroundTruth

__all__ = [
    "BAD_SHARE",
    "DATASET",
    "MAX_ENTRIES",
    "MAX_LABELS",
    "VALIDATION",
    "ManifestEntry",
    "Problem",
    "Style",
    "validate_line",
]

BAD_SHARE: Final = 0.2
"""A dataset or training fails if a larger share of its lines is invalid."""

MAX_ENTRIES: Final = 250_000
MAX_LABELS: Final = 250

_MAX_LINE_LENGTH: Final = 100_000
_MAX_LABEL_LENGTH: Final = 255
_MAX_BOXES: Final = 50
_RESIZED_SIDE: Final = 1280
_METADATA: Final = "-metadata"
_SOURCE_REF: Final = re.compile(r"s3://[0-9A-Za-z._-]{3,255}/(?s:.+)")
_OWN_KEYS: Final = frozenset({"cl-errors", "cl-warnings", "cl-metadata", "errors", "warnings"})
_SINGLE: Final = "groundtruth/image-classification"
_BOXES: Final = "groundtruth/object-detection"


class Problem(NamedTuple):
    """An error or warning of the service."""

    code: str
    message: str


class Style(NamedTuple):
    """Keys that errors and warnings are written to; they differ between dataset entries and validation manifests."""

    errors: str
    warnings: str | None
    metadata: str | None


DATASET: Final = Style("cl-errors", None, "cl-metadata")
VALIDATION: Final = Style("errors", "warnings", None)

_UNREADABLE: Final = Problem("ERROR_INVALID_JSON_LINE", "The JSON Line has an invalid format.")
_NO_SOURCE: Final = Problem("ERROR_MISSING_SOURCE_REF", "The source-ref key is missing.")
_BAD_SOURCE: Final = Problem("ERROR_INVALID_SOURCE_REF_FORMAT", "The format of the source-ref value is invalid.")
_NO_ATTRIBUTES: Final = Problem("ERROR_NO_LABEL_ATTRIBUTES", "No label attributes found.")
_NO_VALID_ATTRIBUTES: Final = Problem("ERROR_NO_VALID_LABEL_ATTRIBUTES", "No valid label attributes found.")
_METADATA_FORMAT: Final = Problem(
    "ERROR_INVALID_LABEL_ATTRIBUTE_METADATA_FORMAT", "The format of the label attribute metadata is invalid."
)
_NO_BOX_CONFIDENCE: Final = Problem(
    "ERROR_MISSING_BOUNDING_BOX_CONFIDENCE", "One or more bounding boxes has a missing confidence value."
)
_NO_CLASS: Final = Problem("ERROR_MISSING_CLASS_MAP_ID", "One or more class ids is missing from the class map.")
_OFF_FRAME: Final = Problem("ERROR_INVALID_BOUNDING_BOX", "The bounding box has off frame values.")
_SMALL_BOX: Final = Problem("ERROR_BOUNDING_BOX_TOO_SMALL", "The height and width of the bounding box is too small.")
_MANY_BOXES: Final = Problem("ERROR_TOO_MANY_BOUNDING_BOXES", "There are more bounding boxes than the allowed maximum.")
_NO_VALID_BOXES: Final = Problem("ERROR_NO_VALID_ANNOTATIONS", "No valid annotations found.")
_BAD_SIZE: Final = Problem(
    "ERROR_INVALID_IMAGE_DIMENSION", "The image dimension(s) do not conform to allowed dimensions."
)
_LONG_LABEL: Final = Problem("ERROR_INVALID_LABEL_NAME_LENGTH", "The length of the label name is too long.")
INVALID_IMAGE: Final = Problem("ERROR_INVALID_IMAGE", "The image is invalid. Check S3 path and/or image properties.")
_UNANNOTATED: Final = Problem("WARNING_UNANNOTATED_RECORD", "Record is unannotated.")
_NO_BOXES: Final = Problem("WARNING_NO_ANNOTATIONS", "No annotations were found.")
_NO_ATTRIBUTE_BOXES: Final = Problem("WARNING_NO_ATTRIBUTE_ANNOTATIONS", "No attribute annotations were found.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """A validated manifest line.

    Attributes:
        line: the JSON object, without errors and warnings of an earlier validation.
        source_ref: URI of the image; None if missing or invalid.
        truth: the part of the line that can be used to train or test; None if there is none.
        labeled: whether the line has labels, valid or not.
        unfit: why the line can't be in a dataset; None if it can.
        errors: all errors, those of the whole line first.
        warned: whether the line is valid but has nothing to learn from.
    """

    line: bytes
    source_ref: str | None
    truth: GroundTruth | None
    labeled: bool
    unfit: Problem | None
    errors: tuple[Problem, ...]
    warned: bool


def validate_line(line: bytes) -> ManifestEntry:
    """Validate one line."""
    return _LineValidator(line).entry()


def with_errors(line: bytes, style: Style, *, more: tuple[Problem, ...] = ()) -> bytes:
    """The line with its errors next to the parts that they refer to; `more` are further errors of the whole line."""
    checked = _LineValidator(line)
    if checked.unfit is _UNREADABLE:
        return orjson.dumps({style.errors: _as_dicts([_UNREADABLE])})
    document = checked.document
    checked.line_errors.extend(more)
    for owner, problem in checked.part_errors:
        owner.setdefault(style.errors, []).append(problem._asdict())
    if style.warnings is not None:
        for owner, problem in checked.warnings:
            owner.setdefault(style.warnings, []).append(problem._asdict())
    if style.metadata is not None:
        document[style.metadata] = {"is_labeled": checked.labeled}
    if checked.line_errors:
        document[style.errors] = _as_dicts(checked.line_errors)
    return orjson.dumps(document)


def _as_dicts(problems: list[Problem]) -> list[dict[str, str]]:
    return [p._asdict() for p in problems]


class _LineValidator:
    """Validates one line. `part_errors` are errors of parts of `document`, `line_errors` errors of the whole line."""

    def __init__(self, line: bytes) -> None:
        self.document: dict[str, Any] = {}
        self.part_errors: list[tuple[dict[str, Any], Problem]] = []
        self.warnings: list[tuple[dict[str, Any], Problem]] = []
        self.line_errors: list[Problem] = []
        self.labeled = False
        self.truth: GroundTruth | None = None
        self.source_ref: str | None = None
        self.unfit = self._read(line)
        if self.unfit is not None:
            self.line_errors.append(self.unfit)
        else:
            self._check_attributes()

    def entry(self) -> ManifestEntry:
        line = self.line if self.unfit is not None else orjson.dumps(self.document)
        return ManifestEntry(
            line=line,
            source_ref=self.source_ref,
            truth=self.truth,
            labeled=self.labeled,
            unfit=self.unfit,
            errors=(*self.line_errors, *(problem for _, problem in self.part_errors)),
            warned=bool(self.warnings) and self.truth is None and not self.line_errors and not self.part_errors,
        )

    def _read(self, line: bytes) -> Problem | None:
        self.line = line
        if len(line) > _MAX_LINE_LENGTH and len(line.decode(errors="replace")) > _MAX_LINE_LENGTH:
            return _UNREADABLE
        try:
            document = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            orjson.dumps(document)  # its nesting limit for writing is lower than for reading
        except (ValueError, TypeError):
            return _UNREADABLE
        if not isinstance(document, dict):
            return _UNREADABLE
        self.document = _without_errors(document)
        source_ref = self.document.get("source-ref")
        if not source_ref:
            return _NO_SOURCE
        if not isinstance(source_ref, str) or not _SOURCE_REF.fullmatch(source_ref):
            return _BAD_SOURCE
        self.source_ref = source_ref
        return None

    def _check_attributes(self) -> None:
        names = [
            key.removesuffix(_METADATA)
            for key in self.document
            if key.endswith(_METADATA) and key.removesuffix(_METADATA) in self.document
        ]
        if not names:
            if self.document.keys() > {"source-ref"}:
                self.line_errors.append(_NO_ATTRIBUTES)
            else:
                self.warnings.append((self.document, _UNANNOTATED))
            return
        usable: dict[str, Any] = {"source-ref": self.source_ref}
        empty = 0
        for name in names:
            attribute = _Attribute(self, name)
            empty += attribute.empty
            self.labeled = self.labeled or not attribute.empty
            if attribute.value is not None:
                usable[name], usable[name + _METADATA] = attribute.value, attribute.metadata
        if len(usable) > 1:
            try:
                truth = parse_line(orjson.dumps(usable))
                truth.require_good_labels()
                self.truth = truth
            except SourceError:
                self.line_errors.append(_attribute_format(names[0]))
        elif empty:
            self.warnings.append((self.document, _NO_BOXES))
        if self.truth is not None and self.truth.task is None:  # predictions of an evaluation are not ground truth
            self.truth = None
        if self.truth is None and not empty:
            self.line_errors.append(_NO_VALID_ATTRIBUTES)


class _Attribute:
    """A label attribute; `value` and `metadata` are the parts that can be used, None if there are none."""

    def __init__(self, whole: _LineValidator, name: str) -> None:
        self._whole = whole
        self._name = name
        self.value: Any = None
        self.metadata: dict[str, Any] = {}
        self.empty = False
        value, metadata = whole.document[name], whole.document[name + _METADATA]
        if not isinstance(metadata, dict):
            whole.line_errors.append(_METADATA_FORMAT)
            return
        kind = metadata.get("type")
        if isinstance(kind, str) and kind not in {_SINGLE, _BOXES}:
            message = f"The use case type of the {name}{_METADATA} label attribute metadata is unsupported."
            self._add_error(metadata, Problem("ERROR_UNSUPPORTED_USE_CASE_TYPE", f"{message} Check the type field."))
        elif kind is None or not _has_required_fields(metadata):
            self._add_error(metadata, _METADATA_FORMAT)
        elif kind == _SINGLE:
            self._classification(value, metadata)
        else:
            self._detection(value, metadata)

    def _add_error(self, owner: dict[str, Any], problem: Problem) -> None:
        self._whole.part_errors.append((owner, problem))

    def _classification(self, value: Any, metadata: dict[str, Any]) -> None:
        label = metadata.get("class-name")
        if not isinstance(value, int | str) or isinstance(value, bool):
            self._whole.line_errors.append(_attribute_format(self._name))
        elif not isinstance(label, str) or not label or not _is_ratio(metadata.get("confidence")):
            self._add_error(metadata, _METADATA_FORMAT)
        elif len(label) > _MAX_LABEL_LENGTH:
            self._add_error(metadata, _LONG_LABEL)
        else:
            self.value, self.metadata = value, metadata

    def _detection(self, value: Any, metadata: dict[str, Any]) -> None:
        size = _size(value)
        if size is None:
            problem = _attribute_format(self._name)
            self._add_error(value, problem) if isinstance(value, dict) else self._whole.line_errors.append(problem)
            return
        annotations, classes = value["annotations"], metadata.get("class-map")
        objects = metadata.get("objects")
        if not annotations:
            self.empty = True
            self._whole.warnings.append((value, _NO_ATTRIBUTE_BOXES))
        elif not isinstance(classes, dict) or not isinstance(objects, list):
            self._add_error(metadata, _METADATA_FORMAT)
        elif not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
            self._add_error(value, _BAD_SIZE)
        elif len(annotations) > _MAX_BOXES:
            self._add_error(value, _MANY_BOXES)
        elif len(objects) != len(annotations) or not all(
            isinstance(o, dict) and _is_ratio(o.get("confidence")) for o in objects
        ):
            self._add_error(metadata, _NO_BOX_CONFIDENCE)
        elif any(isinstance(label, str) and len(label) > _MAX_LABEL_LENGTH for label in classes.values()):
            self._add_error(metadata, _LONG_LABEL)
        else:
            self._boxes(value, metadata, size)

    def _boxes(self, value: dict[str, Any], metadata: dict[str, Any], size: tuple[int, int]) -> None:
        good = []
        for annotation, entry in zip(value["annotations"], metadata["objects"], strict=True):
            problem = _box_problem(annotation, metadata["class-map"], size)
            if problem is None:
                good.append((annotation, entry))
            elif isinstance(annotation, dict):
                self._add_error(annotation, problem)
            else:
                self._add_error(value, problem)
        if not good:
            self._add_error(value, _NO_VALID_BOXES)
            return
        self.value = {**value, "annotations": [annotation for annotation, _ in good]}
        self.metadata = {**metadata, "objects": [entry for _, entry in good]}


def _without_errors(document: dict[str, Any]) -> dict[str, Any]:
    """The line without the errors and warnings of an earlier validation."""
    kept = {key: value for key, value in document.items() if key not in _OWN_KEYS}
    for key, value in kept.items():
        if isinstance(value, dict):
            part = {k: v for k, v in value.items() if k not in _OWN_KEYS}
            if isinstance(part.get("annotations"), list):
                part["annotations"] = [
                    {k: v for k, v in a.items() if k not in _OWN_KEYS} if isinstance(a, dict) else a
                    for a in part["annotations"]
                ]
            kept[key] = part
    return kept


def _has_required_fields(metadata: dict[str, Any]) -> bool:
    date = metadata.get("creation-date")
    return metadata.get("human-annotated") in {"yes", "no"} and isinstance(date, str) and bool(date)


def _attribute_format(name: str) -> Problem:
    return Problem("ERROR_INVALID_LABEL_ATTRIBUTE_FORMAT", f"The format of the label attribute {name} is invalid.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_ratio(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _size(value: Any) -> tuple[int, int] | None:
    """Width and height in a detection attribute; None if its format is invalid."""
    if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
        return None
    sizes = value.get("image_size")
    if not isinstance(sizes, list) or not sizes or not isinstance(sizes[0], dict):
        return None
    sides: list[Any] = [sizes[0].get(side) for side in ("width", "height", "depth")]
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _box_problem(annotation: Any, classes: dict[str, Any], size: tuple[int, int]) -> Problem | None:
    if not isinstance(annotation, dict):
        return _OFF_FRAME
    sides: list[Any] = [annotation.get(side) for side in ("left", "top", "width", "height")]
    if not all(_is_number(side) for side in sides):
        return _OFF_FRAME
    label = classes.get(str(annotation.get("class_id")))
    if not isinstance(label, str) or not label:
        return _NO_CLASS
    left, top, width, height = (float(side) for side in sides)
    if min(left, top) < 0 or left + width > size[0] or top + height > size[1]:
        return _OFF_FRAME
    scale = min(1.0, _RESIZED_SIDE / max(size))
    return _SMALL_BOX if min(width, height) * scale <= 1 else None
