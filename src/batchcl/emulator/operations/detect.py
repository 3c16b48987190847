"""DetectCustomLabels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from batchcl.emulator.faults import ServiceError, invalid_parameter
from batchcl.emulator.image_rules import check_bytes, open_picture
from batchcl.emulator.learning.model import select
from batchcl.images import MAX_BYTES_S3

if TYPE_CHECKING:
    from batchcl.emulator.learning.model import Detection, Model
    from batchcl.emulator.service import Call

__all__ = ["detect_custom_labels"]


async def detect_custom_labels(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Look at one image with a running model."""
    service = call.service
    image = parameters["Image"]
    if ("Bytes" in image) == ("S3Object" in image):
        raise invalid_parameter("Image must have either Bytes or S3Object.")
    version = call.version(parameters["ProjectVersionArn"])
    if version.status != "RUNNING":
        why = f"The model {version.arn} is not running; it is {version.status}."
        raise ServiceError("ResourceNotReadyException", why)
    service.capacity.admit_inference(version.arn, units=version.min_units or 1, now=service.clock.monotonic())
    data = await _bytes(call, image)
    if service.settings.latency_ms:
        await anyio.sleep(service.settings.latency_ms / 1000)
    model, thresholds = await _model(call, version.arn)

    def look() -> list[Detection]:
        return model.detect(open_picture(data).image)

    seen = await anyio.to_thread.run_sync(look, limiter=service.threads)
    chosen = select(
        seen,
        thresholds=thresholds,
        min_confidence=parameters.get("MinConfidence"),
        max_results=parameters.get("MaxResults"),
    )
    return {"CustomLabels": [_custom_label(d) for d in chosen]}


async def _bytes(call: Call, image: dict[str, Any]) -> bytes:
    if "Bytes" in image:
        data: bytes = image["Bytes"]
        check_bytes(data, inline=True)
        return data
    where = image["S3Object"]
    if not where.get("Bucket") or not where.get("Name"):
        raise invalid_parameter("S3Object must have Bucket and Name.")
    data = await call.service.read_object(
        where["Bucket"],
        where["Name"],
        region=call.region,
        limit_bytes=MAX_BYTES_S3,
        version_id=where.get("Version"),
    )
    check_bytes(data, inline=False)
    return data


async def _model(call: Call, arn: str) -> tuple[Model, dict[str, float]]:
    """The version's model; read from its file at the first image after a start."""
    from batchcl.emulator.learning.training import load  # noqa: PLC0415 - scikit-learn's friends take a while

    models = call.service.models
    if arn not in models:
        models[arn] = await anyio.to_thread.run_sync(load, call.service.state.model_path(arn))
    return models[arn]


def _custom_label(detection: Detection) -> dict[str, Any]:
    label: dict[str, Any] = {"Name": detection.label, "Confidence": min(100.0, detection.confidence * 100)}
    if detection.box is not None:
        box = detection.box
        label["Geometry"] = {
            "BoundingBox": {"Width": box.width, "Height": box.height, "Left": box.left, "Top": box.top}
        }
    return label
