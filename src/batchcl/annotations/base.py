"""Types shared by the formats, and the checks that all of them need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from batchcl.annotations.references import normalize_references
from batchcl.groundtruth import GroundTruth, TruthBox

__all__ = ["AnnotatedImage", "BadEntry", "BadLabelError", "annotated", "make_box", "pixels", "shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One image of an annotation file.

    Attributes:
        location: its position in the file, such as `task 12`.
        references: its names, the most specific first: `s3://bucket/key`, or a path with slashes.
        truth: its labels and boxes; `source_ref` is the first reference.
    """

    location: str
    references: tuple[str, ...]
    truth: GroundTruth


@dataclass(frozen=True, slots=True)
class BadEntry:
    """An entry of an annotation file that can't be used, and why."""

    location: str
    reason: str


class BadLabelError(ValueError):
    """A label that can't be used; the message is the reason."""


def annotated(
    location: str,
    names: Iterable[Any],
    *,
    boxes: Sequence[TruthBox] = (),
    labels: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    task: Literal["classification", "detection"] | None,
    bad_labels: Sequence[str] = (),
) -> AnnotatedImage | BadEntry:
    """An image with its labels.

    A dataset of Custom Labels has boxes or image-level labels: beside boxes, image-level labels without a box are
    reported as bad.

    Args:
        location: position in the file.
        names: what the file calls the image; what is not a name is ignored.
        boxes: in pixels.
        labels: of the whole image.
        size: (width, height) in pixels; None if the file does not state it.
        task: of an image without labels: None if nobody has labelled it, else the task of the other images.
        bad_labels: the reasons for those that can't be used.
    """
    references = normalize_references(name for name in names if isinstance(name, str) and name)
    if not references:
        return BadEntry(location, "it names no image")
    errors = list(bad_labels)
    found = tuple(dict.fromkeys(box.label for box in boxes))
    if boxes:
        errors += [f"{location}: the label {shown(each)} has no box" for each in labels if each not in found]
        task = "detection"
    elif labels:
        found, task = tuple(dict.fromkeys(labels)), "classification"
    elif errors:
        task = None
    truth = GroundTruth(
        source_ref=references[0],
        labels=found,
        boxes=tuple(boxes),
        image_size=size,
        task=task,
        bad_labels=tuple(errors),
    )
    return AnnotatedImage(location=location, references=references, truth=truth)


def make_box(label: str, left: Any, top: Any, width: Any, height: Any) -> TruthBox:
    """A box in pixels; raises `BadLabelError` if a side is not a number, or not positive."""
    sides = (left, top, width, height)
    if any(isinstance(side, bool) or not isinstance(side, int | float) or not math.isfinite(side) for side in sides):
        raise BadLabelError(f"a box of {shown(label)} has a side that is not a number")
    if width <= 0 or height <= 0:
        raise BadLabelError(f"a box of {shown(label)} is {width:g} by {height:g} pixels")
    return TruthBox(label, float(left), float(top), float(width), float(height))


def pixels(width: Any, height: Any) -> tuple[int, int] | None:
    """The size of an image; None if it is not stated."""
    sides = (width, height)
    if any(isinstance(side, bool) or not isinstance(side, int | float) or not math.isfinite(side) for side in sides):
        return None
    return (int(width), int(height)) if min(sides) >= 1 else None


def shown(value: object) -> str:
    """`value` for a message, shortened."""
    text = repr(value)
    most = 80
    return text if len(text) <= most else f"{text[:most]}…"
