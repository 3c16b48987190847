"""The call: one image in, its labels or a classified error out."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol

import aiohttp
import anyio
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
    TokenRetrievalError,
    UnknownEndpointError,
)

from batchcl.aws.arn import ModelArn
from batchcl.aws.classify import EXPIRED_CODES, classify
from batchcl.aws.session import Aws
from batchcl.errors import CallError, FatalCallError, ImageError, TransientError
from batchcl.images import ImageRef
from batchcl.scoring.outcome import Detection, Label

__all__ = ["Detector", "RekognitionDetector", "open_detector"]

CALL_DEADLINE_S: Final = 60.0
"""No call takes longer than this, whatever the socket does."""

_FATAL_ERRORS: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    NoRegionError,
    UnknownEndpointError,
)


class Detector(Protocol):
    """Scores one image. Safe for many concurrent callers."""

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass that says what to do."""
        ...


class RekognitionDetector:
    """DetectCustomLabels through aioboto3 with the SDK's retries off.

    Local images travel as bytes, S3 images as S3Object (with the version where the list named one). Credentials that
    expire are looked up anew once per expiry; a second refusal is fatal.
    """

    def __init__(
        self,
        client: Any,
        model: ModelArn,
        *,
        min_confidence: float | None = None,
        max_results: int | None = None,
    ) -> None:
        self._client = client
        self._arguments: dict[str, Any] = {"ProjectVersionArn": model.text}
        if min_confidence is not None:
            self._arguments["MinConfidence"] = min_confidence
        if max_results is not None:
            self._arguments["MaxResults"] = max_results

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass within `CALL_DEADLINE_S`."""
        try:
            with anyio.fail_after(CALL_DEADLINE_S):
                payload = await _payload(image)
                answer = await self._client.detect_custom_labels(Image=payload, **self._arguments)
        except TimeoutError as error:
            raise TransientError("no answer in time", code="Timeout") from error
        except ClientError as error:
            raise _from_client_error(error) from error
        except ParamValidationError as error:
            raise ImageError(str(error), code="InvalidParameterException") from error
        except SSLError as error:
            raise FatalCallError(f"{error}; set AWS_CA_BUNDLE to your CA's file", code="Tls") from error
        except _FATAL_ERRORS as error:
            raise FatalCallError(f"{error}; log in again", code="Credentials") from error
        except (BotoCoreError, aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise TransientError(str(error) or type(error).__name__, code=type(error).__name__) from error
        except (AttributeError, TypeError, KeyError) as error:
            raise _malformed() from error  # botocore's parser met JSON of another shape
        return _detection(answer)


class _RenewingDetector:
    """A detector that opens a new session once when its credentials have expired."""

    def __init__(self, stack: AsyncExitStack, aws: Aws, model: ModelArn, options: dict[str, Any]) -> None:
        self._stack = stack
        self._aws = aws
        self._model = model
        self._options = options
        self._lock = anyio.Lock()
        self._current: RekognitionDetector | None = None

    async def open(self) -> None:
        connections = self._options["connections"]
        client = await self._stack.enter_async_context(
            self._aws.rekognition(region=self._model.region, retries=False, connections=connections)
        )
        self._current = RekognitionDetector(
            client,
            self._model,
            min_confidence=self._options["min_confidence"],
            max_results=self._options["max_results"],
        )

    async def detect(self, image: ImageRef) -> Detection:
        used = self._current
        assert used is not None
        try:
            return await used.detect(image)
        except FatalCallError as error:
            if error.code not in EXPIRED_CODES:
                raise
        async with self._lock:
            if self._current is used:
                self._aws = self._aws.renewed()
                await self.open()
            renewed = self._current
        assert renewed is not None
        return await renewed.detect(image)


@asynccontextmanager
async def open_detector(
    aws: Aws,
    model: ModelArn,
    *,
    min_confidence: float | None = None,
    max_results: int | None = None,
    connections: int = 256,
) -> AsyncIterator[Detector]:
    """A detector for `model`; its connections are closed at the end of the block."""
    options = {"min_confidence": min_confidence, "max_results": max_results, "connections": connections}
    async with AsyncExitStack() as stack:
        detector = _RenewingDetector(stack, aws, model, options)
        await detector.open()
        yield detector


async def _payload(image: ImageRef) -> dict[str, Any]:
    if not image.local:
        s3_object = {"Bucket": image.bucket, "Name": image.key}
        if image.version_id is not None:
            s3_object["Version"] = image.version_id
        return {"S3Object": s3_object}
    try:
        return {"Bytes": await anyio.Path(image.key).read_bytes()}
    except OSError as error:
        raise ImageError(f"the file can't be read: {error.strerror}", code="UnreadableFile") from error


def _from_client_error(error: ClientError) -> CallError:
    body = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    return classify(
        str(body.get("Code", "Unknown")),
        str(body.get("Message", "")),
        status=metadata.get("HTTPStatusCode"),
        request_id=str(metadata.get("RequestId", "")),
    )


def _detection(answer: dict[str, Any]) -> Detection:
    """Shape the answer; one that lacks what the API promises was cut on its way."""
    try:
        labels = tuple(_label(entry) for entry in answer["CustomLabels"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _malformed() from error
    return Detection(labels, str(answer.get("ResponseMetadata", {}).get("RequestId", "")))


def _malformed() -> TransientError:
    return TransientError("the answer has another shape than the API's", code="MalformedAnswer")


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
