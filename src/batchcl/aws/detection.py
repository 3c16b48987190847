"""DetectCustomLabels' words: what a call is asked with, and what its answer means."""

from __future__ import annotations

from typing import Any

from batchcl.aws.arguments import given
from batchcl.aws.arn import ModelArn
from batchcl.aws.unanswered import malformed
from batchcl.images import ImageRef
from batchcl.scoring.outcome import Detection, Label

__all__ = ["asked_of", "detection_of", "s3_object"]


def asked_of(model: ModelArn, *, min_confidence: float | None, max_results: int | None) -> dict[str, Any]:
    """What all calls for a model have in common: everything but the `Image`."""
    return {"ProjectVersionArn": model.text} | given(MinConfidence=min_confidence, MaxResults=max_results)


def s3_object(image: ImageRef) -> dict[str, Any]:
    """The `Image` of a call for an object: by its exact name, with the version where the list named one."""
    named = {"Bucket": image.bucket, "Name": image.key}
    if image.version_id is not None:
        named["Version"] = image.version_id
    return {"S3Object": named}


def detection_of(answer: Any, request_id: str, *, read_s: float = 0.0) -> Detection:
    """The labels of a good answer's body, for which the image was read for so many seconds.

    Raises:
        TransientError: it lacks what the API promises, as it was cut on its way.
    """
    try:
        return Detection(tuple([_label(entry) for entry in answer["CustomLabels"]]), request_id, read_s)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise malformed() from error


def _label(entry: dict[str, Any]) -> Label:
    geometry = entry.get("Geometry") or {}
    box = geometry.get("BoundingBox")
    polygon = geometry.get("Polygon")
    name = entry["Name"]
    if not isinstance(name, str):
        raise TypeError("a label's name is text")
    return Label(
        name,
        float(entry["Confidence"]),
        None if not box else (float(box["Left"]), float(box["Top"]), float(box["Width"]), float(box["Height"])),
        None if not polygon else tuple((float(point["X"]), float(point["Y"])) for point in polygon),
    )
