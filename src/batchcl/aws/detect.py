"""DetectCustomLabels: the labels of one image, or a classified error.

Two implementations with the same results: batchcl's own client (`aws.http`), and aioboto3 (`--transport`).
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import aiohttp
import anyio
import anyio.to_thread
import orjson
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoRegionError,
    ParamValidationError,
    ReadTimeoutError,
    SSLError,
    UnknownEndpointError,
)

from batchcl.arns import ModelArn
from batchcl.aws.credentials import CredentialCache, call_error
from batchcl.aws.errors import (
    REDIRECTS,
    RedirectedError,
    classify,
    connection_error,
    error_code,
    error_message,
    is_keys_error,
    malformed_response,
    read_error,
    redirect_error,
)
from batchcl.aws.http import DEADLINE_S, HttpRequest, HttpResponse, SignedClient, open_signed_client
from batchcl.aws.session import Aws
from batchcl.aws.values import drop_none
from batchcl.choices import Transport
from batchcl.errors import CallError, CredentialsError, FatalCallError, ImageError
from batchcl.image_header import check_bytes
from batchcl.images import ImageReader, ImageRef, SkipReason
from batchcl.outcomes import Detection, Label

__all__ = ["Detector", "LimitsDetector", "SdkDetector", "SignedDetector", "open_detector", "parse_labels", "s3_object"]

_HEADERS: Final = (
    ("Content-Type", "application/x-amz-json-1.1"),
    ("X-Amz-Target", "RekognitionService.DetectCustomLabels"),
)
_REQUEST_ID: Final = "x-amzn-RequestId"
_INVALID_PARAMETER: Final = "InvalidParameterException"
_LOWEST_ERROR: Final = 300
_LARGE_IMAGE_BYTES: Final = 64 * 1024
_FATAL_ERRORS: Final = (NoRegionError, UnknownEndpointError)


class Detector(Protocol):
    """Scores one image. Safe for concurrent use."""

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a subclass of `CallError`."""
        ...


@asynccontextmanager
async def open_detector(
    aws: Aws,
    model: ModelArn,
    *,
    transport: Transport = Transport.AIOHTTP,
    min_confidence: float | None = None,
    max_results: int | None = None,
    reader: ImageReader,
    connections: int = 256,
) -> AsyncIterator[Detector]:
    """Open a detector for `model`; its connections are closed after the block.

    `reader` reads the images that are sent as bytes; the service fetches the other ones from S3. Keys that the service
    refuses are reloaded with both transports.

    Raises:
        RefusedError: there are no credentials, no endpoint, or the CA bundle can't be read.
    """
    if transport is Transport.AIOHTTP:
        async with open_signed_client(aws, "rekognition", region=model.region, connections=connections) as client:
            yield SignedDetector(client, model, min_confidence=min_confidence, max_results=max_results, reader=reader)
        return
    async with aws.rekognition(region=model.region, retries=False, connections=connections) as opened:
        yield SdkDetector(
            opened,
            model,
            keys=aws.credentials_of("rekognition"),
            min_confidence=min_confidence,
            max_results=max_results,
            reader=reader,
        )


class SignedDetector:
    """DetectCustomLabels through a `SignedClient`."""

    def __init__(
        self,
        client: SignedClient,
        model: ModelArn,
        *,
        min_confidence: float | None = None,
        max_results: int | None = None,
        reader: ImageReader,
    ) -> None:
        self._client = client
        self._reader = reader
        self._arguments = _arguments(model, min_confidence, max_results)

    async def detect(self, image: ImageRef) -> Detection:
        """See `Detector`. The deadlines are those of the reader and the client."""
        read_s = 0.0
        if self._reader.accepts(image):
            started_at = anyio.current_time()
            body = await self._inline_body(image)
            read_s = anyio.current_time() - started_at
        else:
            body = self._body(s3_object(image))
        response = await self._client.send(HttpRequest(method="POST", headers=_HEADERS, body=body))
        if response.status >= _LOWEST_ERROR:
            raise self._error(response)
        try:
            content = orjson.loads(response.body)
        except orjson.JSONDecodeError as error:
            raise malformed_response() from error
        return parse_labels(content, response.headers.get(_REQUEST_ID, ""), read_s=read_s)

    def _body(self, image: dict[str, Any]) -> bytes:
        try:
            return orjson.dumps({**self._arguments, "Image": image})
        except TypeError as error:
            raise ImageError("the key is not valid Unicode", code=_INVALID_PARAMETER) from error

    async def _inline_body(self, image: ImageRef) -> bytes:
        """Read and encode the image; a large one in a thread, because it would block the event loop."""
        data = await self._reader.read(image)
        if len(data) < _LARGE_IMAGE_BYTES:
            return self._encoded(data)
        return await anyio.to_thread.run_sync(self._encoded, data, abandon_on_cancel=True)

    def _encoded(self, data: bytes) -> bytes:
        return self._body({"Bytes": base64.b64encode(data).decode()})

    def _error(self, response: HttpResponse) -> CallError:
        if response.status in REDIRECTS:
            location = response.headers.get("Location")
            return redirect_error(
                RedirectedError(where=self._client.endpoint.url, status=response.status, location=location)
            )
        error = read_error(response.status, response.headers, response.body)
        request_id = response.headers.get(_REQUEST_ID, "")
        return classify(error.code, error.message, status=response.status, request_id=request_id)


class SdkDetector:
    """DetectCustomLabels through an aioboto3 client without retries.

    Args:
        client: an open Rekognition client.
        model: the model.
        keys: the client's credentials; a temporary failure then raises instead of waiting.
        min_confidence: 0 to 100; None for the model's own threshold.
        max_results: maximum labels of an image.
        reader: reads the images that are sent as bytes.
    """

    def __init__(
        self,
        client: Any,
        model: ModelArn,
        *,
        keys: CredentialCache | None = None,
        min_confidence: float | None = None,
        max_results: int | None = None,
        reader: ImageReader,
    ) -> None:
        self._client = client
        self._keys = keys
        self._reader = reader
        self._arguments = _arguments(model, min_confidence, max_results)

    async def detect(self, image: ImageRef) -> Detection:
        """See `Detector`. The deadlines are the reader's and `DEADLINE_S`."""
        started_at = anyio.current_time()
        payload = await self._payload(image)
        read_s = anyio.current_time() - started_at
        try:
            with anyio.fail_after(DEADLINE_S):
                response, request_id = await self.ask(payload)
        except TimeoutError as error:
            raise self._connection_error(error) from error
        return parse_labels(response, request_id, read_s=read_s)

    async def ask(self, image: dict[str, Any]) -> tuple[Any, str]:
        """Call the service without a deadline.

        Args:
            image: the request's `Image`: an S3Object or bytes.

        Returns:
            the response without its metadata, and the request's id.
        """
        try:
            if self._keys is not None:
                await self._keys.current()  # raises if credentials fail temporarily; the client would wait
            response = await self._client.detect_custom_labels(Image=image, **self._arguments)
        except CredentialsError as error:
            raise call_error(error) from error
        except ClientError as error:
            code, message = error_code(error), error_message(error)
            if self._keys is not None and is_keys_error(code, message):
                refusal = self._keys.refused("rekognition", f"{code}: {message}")
                if refusal is not None:
                    raise call_error(refusal) from refusal
            raise _from_client_error(error) from error
        except ParamValidationError as error:
            raise ImageError(" ".join(str(error).split()), code=_INVALID_PARAMETER) from error
        except UnicodeDecodeError as error:
            raise malformed_response() from error
        except _FATAL_ERRORS as error:
            raise FatalCallError(f"{error}; log in again", code="Credentials") from error
        except (BotoCoreError, aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise self._connection_error(error) from error
        except (AttributeError, TypeError, KeyError) as error:
            raise malformed_response() from error  # raised by botocore's parser for unexpected JSON
        if not isinstance(response, dict):
            return response, ""
        content = {name: value for name, value in response.items() if name != "ResponseMetadata"}
        return content, response.get("ResponseMetadata", {}).get("RequestId", "")

    async def _payload(self, image: ImageRef) -> dict[str, Any]:
        if not self._reader.accepts(image):
            return s3_object(image)
        return {"Bytes": await self._reader.read(image)}

    def _connection_error(self, error: Exception) -> CallError:
        """The error for aiobotocore's exception, by the exception of aiohttp that it wraps."""
        where = str(self._client.meta.endpoint_url)
        if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
            return connection_error(TimeoutError(), where=where)
        inner = error.kwargs.get("error") if isinstance(error, BotoCoreError) else None
        if isinstance(error, SSLError) and not isinstance(inner, aiohttp.ClientSSLError):
            inner = ssl.SSLCertVerificationError(str(error))
        return connection_error(inner if isinstance(inner, Exception) else error, where=where)


class LimitsDetector:
    """A detector that explains InvalidParameterException by the documented limit that the image violates.

    The service returns this code for too few pixels and an aspect ratio over 20:1, but also for other reasons; so the
    image is read and checked.
    """

    def __init__(self, inner: Detector, reader: ImageReader) -> None:
        self._inner = inner
        self._reader = reader

    async def detect(self, image: ImageRef) -> Detection:
        """See `Detector`."""
        try:
            return await self._inner.detect(image)
        except ImageError as error:
            violation = await self._violation(image) if error.code == _INVALID_PARAMETER else None
            if violation is None:
                raise
            raise ImageError(
                f"{violation.message} ({error.code}: {error})",
                code=violation.code,
                status=error.status,
                request_id=error.request_id,
            ) from error

    async def _violation(self, image: ImageRef) -> SkipReason | None:
        try:
            return check_bytes(await self._reader.read(image))
        except CallError:  # the service's error is reported unchanged
            return None


def _from_client_error(error: ClientError) -> CallError:
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode")
    return classify(
        str(error_code(error) or status or "Unknown"),
        error_message(error),
        status=status,
        request_id=str(metadata.get("RequestId", "")),
    )


def s3_object(image: ImageRef) -> dict[str, Any]:
    """The request's `Image` for an S3 object, with the version if the list names one."""
    location = {"Bucket": image.bucket, "Name": image.key}
    if image.version_id is not None:
        location["Version"] = image.version_id
    return {"S3Object": location}


def parse_labels(response: Any, request_id: str, *, read_s: float = 0.0) -> Detection:
    """Parse the JSON of a successful response.

    Raises:
        TransientError: it does not match the API, such as a truncated response.
    """
    try:
        return Detection(tuple([_label(entry) for entry in response["CustomLabels"]]), request_id, read_s)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise malformed_response() from error


def _arguments(model: ModelArn, min_confidence: float | None, max_results: int | None) -> dict[str, Any]:
    """The request's fields other than `Image`, which all calls share."""
    return {"ProjectVersionArn": model.text} | drop_none(MinConfidence=min_confidence, MaxResults=max_results)


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
