"""Manifest lines as the service checks them: what of a line can be used, and what is wrong with the rest.

Codes, messages and places of the marks: Custom Labels guide, "Debugging datasets", "Debugging a failed model training"
and "Validation rules for manifest files". A broken part makes its label attribute or its box unusable, not the others
of the line; a line that can't even name its image is dropped from a dataset.
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
    "review",
]

BAD_SHARE: Final = 0.2
"""More than this share of bad lines fails a dataset or a training."""

MAX_ENTRIES: Final = 250_000
MAX_LABELS: Final = 250

_LONGEST_LINE: Final = 100_000
_LONGEST_LABEL: Final = 255
_MAX_BOXES: Final = 50
_RESIZED_SIDE: Final = 1280
_METADATA: Final = "-metadata"
_SOURCE_REF: Final = re.compile(r"s3://[0-9A-Za-z._-]{3,255}/(?s:.+)")
_OWN_KEYS: Final = frozenset({"cl-errors", "cl-warnings", "cl-metadata", "errors", "warnings"})
_SINGLE: Final = "groundtruth/image-classification"
_BOXES: Final = "groundtruth/object-detection"


class Problem(NamedTuple):
    """An error or a warning in the service's words."""

    code: str
    message: str


class Style(NamedTuple):
    """Names of the marks: a dataset's entries have others than the validation manifests of a training."""

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
    """What the service makes of one line.

    Attributes:
        line: the JSON object, without the marks of an earlier check.
        source_ref: the image; None where the line doesn't tell.
        truth: what of the line can be used to train or test; None where nothing can.
        labeled: somebody labelled the image, well or not.
        unfit: why no dataset can hold the line; None for a line that it can.
        errors: everything that is wrong with it, the whole line's first.
        warned: valid, but there is nothing in it to learn from.
    """

    line: bytes
    source_ref: str | None
    truth: GroundTruth | None
    labeled: bool
    unfit: Problem | None
    errors: tuple[Problem, ...]
    warned: bool


def review(line: bytes) -> ManifestEntry:
    """Check one line. Pure."""
    return _Review(line).entry()


def marked(line: bytes, style: Style, *, more: tuple[Problem, ...] = ()) -> bytes:
    """The line with its errors beside what they are about; `more` are errors of the whole line that others found."""
    found = _Review(line)
    if found.unfit is _UNREADABLE:
        return orjson.dumps({style.errors: _listed([_UNREADABLE])})
    document = found.document
    found.of_line.extend(more)
    for owner, problem in found.marks:
        owner.setdefault(style.errors, []).append(problem._asdict())
    if style.warnings is not None:
        for owner, problem in found.warnings:
            owner.setdefault(style.warnings, []).append(problem._asdict())
    if style.metadata is not None:
        document[style.metadata] = {"is_labeled": found.labeled}
    if found.of_line:
        document[style.errors] = _listed(found.of_line)
    return orjson.dumps(document)


def _listed(problems: list[Problem]) -> list[dict[str, str]]:
    return [p._asdict() for p in problems]


class _Review:
    """One walk over a line. `marks` are errors of parts of `document`, `of_line` those of the whole line."""

    def __init__(self, line: bytes) -> None:
        self.document: dict[str, Any] = {}
        self.marks: list[tuple[dict[str, Any], Problem]] = []
        self.warnings: list[tuple[dict[str, Any], Problem]] = []
        self.of_line: list[Problem] = []
        self.labeled = False
        self.truth: GroundTruth | None = None
        self.source_ref: str | None = None
        self.unfit = self._read(line)
        if self.unfit is not None:
            self.of_line.append(self.unfit)
        else:
            self._walk()

    def entry(self) -> ManifestEntry:
        line = self.line if self.unfit is not None else orjson.dumps(self.document)
        return ManifestEntry(
            line=line,
            source_ref=self.source_ref,
            truth=self.truth,
            labeled=self.labeled,
            unfit=self.unfit,
            errors=(*self.of_line, *(problem for _, problem in self.marks)),
            warned=bool(self.warnings) and self.truth is None and not self.of_line and not self.marks,
        )

    def _read(self, line: bytes) -> Problem | None:
        self.line = line
        if len(line) > _LONGEST_LINE and len(line.decode(errors="replace")) > _LONGEST_LINE:
            return _UNREADABLE
        try:
            document = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            orjson.dumps(document)  # it writes fewer levels than it reads
        except (ValueError, TypeError):
            return _UNREADABLE
        if not isinstance(document, dict):
            return _UNREADABLE
        self.document = _unmarked(document)
        source_ref = self.document.get("source-ref")
        if not source_ref:
            return _NO_SOURCE
        if not isinstance(source_ref, str) or not _SOURCE_REF.fullmatch(source_ref):
            return _BAD_SOURCE
        self.source_ref = source_ref
        return None

    def _walk(self) -> None:
        names = [
            key.removesuffix(_METADATA)
            for key in self.document
            if key.endswith(_METADATA) and key.removesuffix(_METADATA) in self.document
        ]
        if not names:
            if self.document.keys() > {"source-ref"}:
                self.of_line.append(_NO_ATTRIBUTES)
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
                self.of_line.append(_attribute_format(names[0]))
        elif empty:
            self.warnings.append((self.document, _NO_BOXES))
        if self.truth is not None and self.truth.task is None:  # the predictions of an evaluation are no truth
            self.truth = None
        if self.truth is None and not empty:
            self.of_line.append(_NO_VALID_ATTRIBUTES)


class _Attribute:
    """A label attribute; `value` and `metadata` are what of it can be used, None if nothing."""

    def __init__(self, whole: _Review, name: str) -> None:
        self._whole = whole
        self._name = name
        self.value: Any = None
        self.metadata: dict[str, Any] = {}
        self.empty = False
        value, metadata = whole.document[name], whole.document[name + _METADATA]
        if not isinstance(metadata, dict):
            whole.of_line.append(_METADATA_FORMAT)
            return
        kind = metadata.get("type")
        if isinstance(kind, str) and kind not in {_SINGLE, _BOXES}:
            words = f"The use case type of the {name}{_METADATA} label attribute metadata is unsupported."
            self._mark(metadata, Problem("ERROR_UNSUPPORTED_USE_CASE_TYPE", f"{words} Check the type field."))
        elif kind is None or not _common(metadata):
            self._mark(metadata, _METADATA_FORMAT)
        elif kind == _SINGLE:
            self._classification(value, metadata)
        else:
            self._detection(value, metadata)

    def _mark(self, owner: dict[str, Any], problem: Problem) -> None:
        self._whole.marks.append((owner, problem))

    def _classification(self, value: Any, metadata: dict[str, Any]) -> None:
        label = metadata.get("class-name")
        if not isinstance(value, int | str) or isinstance(value, bool):
            self._whole.of_line.append(_attribute_format(self._name))
        elif not isinstance(label, str) or not label or not _ratio(metadata.get("confidence")):
            self._mark(metadata, _METADATA_FORMAT)
        elif len(label) > _LONGEST_LABEL:
            self._mark(metadata, _LONG_LABEL)
        else:
            self.value, self.metadata = value, metadata

    def _detection(self, value: Any, metadata: dict[str, Any]) -> None:
        size = _size(value)
        if size is None:
            wrong = _attribute_format(self._name)
            self._mark(value, wrong) if isinstance(value, dict) else self._whole.of_line.append(wrong)
            return
        annotations, classes = value["annotations"], metadata.get("class-map")
        objects = metadata.get("objects")
        if not annotations:
            self.empty = True
            self._whole.warnings.append((value, _NO_ATTRIBUTE_BOXES))
        elif not isinstance(classes, dict) or not isinstance(objects, list):
            self._mark(metadata, _METADATA_FORMAT)
        elif not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
            self._mark(value, _BAD_SIZE)
        elif len(annotations) > _MAX_BOXES:
            self._mark(value, _MANY_BOXES)
        elif len(objects) != len(annotations) or not all(
            isinstance(o, dict) and _ratio(o.get("confidence")) for o in objects
        ):
            self._mark(metadata, _NO_BOX_CONFIDENCE)
        elif any(isinstance(label, str) and len(label) > _LONGEST_LABEL for label in classes.values()):
            self._mark(metadata, _LONG_LABEL)
        else:
            self._boxes(value, metadata, size)

    def _boxes(self, value: dict[str, Any], metadata: dict[str, Any], size: tuple[int, int]) -> None:
        good = []
        for annotation, found in zip(value["annotations"], metadata["objects"], strict=True):
            problem = _box_problem(annotation, metadata["class-map"], size)
            if problem is None:
                good.append((annotation, found))
            elif isinstance(annotation, dict):
                self._mark(annotation, problem)
            else:
                self._mark(value, problem)
        if not good:
            self._mark(value, _NO_VALID_BOXES)
            return
        self.value = {**value, "annotations": [annotation for annotation, _ in good]}
        self.metadata = {**metadata, "objects": [found for _, found in good]}


def _unmarked(document: dict[str, Any]) -> dict[str, Any]:
    """The line without what an earlier check wrote into it."""
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


def _common(metadata: dict[str, Any]) -> bool:
    date = metadata.get("creation-date")
    return metadata.get("human-annotated") in {"yes", "no"} and isinstance(date, str) and bool(date)


def _attribute_format(name: str) -> Problem:
    return Problem("ERROR_INVALID_LABEL_ATTRIBUTE_FORMAT", f"The format of the label attribute {name} is invalid.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ratio(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _size(value: Any) -> tuple[int, int] | None:
    """Width and height of a detection attribute that has the right form."""
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
    if not all(_number(side) for side in sides):
        return _OFF_FRAME
    label = classes.get(str(annotation.get("class_id")))
    if not isinstance(label, str) or not label:
        return _NO_CLASS
    left, top, width, height = (float(side) for side in sides)
    if min(left, top) < 0 or left + width > size[0] or top + height > size[1]:
        return _OFF_FRAME
    shrink = min(1.0, _RESIZED_SIDE / max(size))
    return _SMALL_BOX if min(width, height) * shrink <= 1 else None
