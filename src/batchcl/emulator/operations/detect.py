"""DetectCustomLabels."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from batchcl.emulator.errors import ApiError, invalid_parameter
from batchcl.emulator.image_rules import allowed_size, check_bytes, open_picture
from batchcl.emulator.learning.model import select
from batchcl.images import MAX_BYTES_S3

if TYPE_CHECKING:
    from batchcl.emulator.learning.model import Prediction, Predictor
    from batchcl.emulator.service import Call, EmulatorService

__all__ = ["detect_custom_labels"]

_MAX_CACHED: Final = 100_000


async def detect_custom_labels(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Detect labels in one image with a running model."""
    service = call.service
    image = parameters["Image"]
    if ("Bytes" in image) == ("S3Object" in image):
        raise invalid_parameter("Image must have either Bytes or S3Object.")
    version = call.version(parameters["ProjectVersionArn"])
    if version.status != "RUNNING":
        message = f"The model {version.arn} is not running; it is {version.status}."
        raise ApiError("ResourceNotReadyException", message)
    scaler = service.scale(version, now=call.now)
    if scaler is not None:
        scaler.offer()
    service.capacity.admit_inference(version.arn, units=version.units or 1, now=service.clock.monotonic())
    data = await _bytes(call, image)
    if service.capacity.depends_on_pixels:
        width, height = allowed_size(data)
        tokens = service.capacity.charge_pixels(version.arn, width * height)
        if scaler is not None:
            scaler.offer(tokens)
    latency_s = service.latency.draw()
    if latency_s:
        await anyio.sleep(latency_s)
    model, thresholds = await _model(call, version.arn)
    predictions = await _predict(service, version.arn, model, data)
    chosen = select(
        predictions,
        thresholds=thresholds,
        min_confidence=parameters.get("MinConfidence"),
        max_results=parameters.get("MaxResults"),
    )
    return {"CustomLabels": [_custom_label(d) for d in chosen]}


async def _predict(service: EmulatorService, arn: str, model: Predictor, data: bytes) -> list[Prediction]:
    """All predictions of the model, whatever the threshold; from the cache if inference is cached."""

    def detect() -> list[Prediction]:
        return model.detect(open_picture(data).image)

    if not service.settings.cached_inference:
        return await anyio.to_thread.run_sync(detect, limiter=service.threads)
    key = (arn, hashlib.blake2b(data, digest_size=16).digest())
    predictions = service.cached_predictions.get(key)
    if predictions is None:
        predictions = service.cached_predictions[key] = await anyio.to_thread.run_sync(detect, limiter=service.threads)
        if len(service.cached_predictions) > _MAX_CACHED:
            service.cached_predictions.popitem(last=False)
    return predictions


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


async def _model(call: Call, arn: str) -> tuple[Predictor, dict[str, float]]:
    """The version's model and thresholds, loaded from its file at the first image after a start."""
    from batchcl.emulator.learning.training import load

    models = call.service.models
    if arn not in models:
        models[arn] = await anyio.to_thread.run_sync(load, call.service.state.model_path(arn))
    return models[arn]


def _custom_label(detection: Prediction) -> dict[str, Any]:
    label: dict[str, Any] = {"Name": detection.label, "Confidence": detection.percent}
    if detection.box is not None:
        box = detection.box
        label["Geometry"] = {
            "BoundingBox": {"Width": box.width, "Height": box.height, "Left": box.left, "Top": box.top}
        }
    return label
