"""DetectCustomLabels through aioboto3: for odd set-ups, and what the wire is measured against."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import anyio
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
    UnknownEndpointError,
)

from batchcl.aws.answers import error_code, error_words
from batchcl.aws.arn import ModelArn
from batchcl.aws.classify import EXPIRED_CODES, classify
from batchcl.aws.detection import asked_of, detection_of, s3_object
from batchcl.aws.session import Aws
from batchcl.aws.unanswered import malformed, unanswered
from batchcl.errors import CallError, FatalCallError, ImageError
from batchcl.images import ImageRef
from batchcl.reading.base import ImageReader
from batchcl.reading.files import FileReader
from batchcl.scoring.outcome import Detection

__all__ = ["RenewingDetector", "SdkDetector"]

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


class SdkDetector:
    """DetectCustomLabels through aioboto3 with the SDK's retries off.

    Images that `reader` carries travel as bytes, the others as S3Object (with the version where the list named one).
    """

    def __init__(
        self,
        client: Any,
        model: ModelArn,
        *,
        min_confidence: float | None = None,
        max_results: int | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        self._client = client
        self._reader = reader or FileReader()
        self._arguments = asked_of(model, min_confidence=min_confidence, max_results=max_results)

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass within the reader's deadline and `CALL_DEADLINE_S`."""
        begun_at = anyio.current_time()
        payload = await self._payload(image)
        read_s = anyio.current_time() - begun_at
        try:
            with anyio.fail_after(CALL_DEADLINE_S):
                answer, request_id = await self.ask(payload)
        except TimeoutError as error:
            raise self._lost(error) from error
        return detection_of(answer, request_id, read_s=read_s)

    async def ask(self, image: dict[str, Any]) -> tuple[Any, str]:
        """The service's whole answer about `image`, as the API has its input, and the request's id.

        Raises a `CallError` subclass. The caller sets a deadline.
        """
        try:
            answer = await self._client.detect_custom_labels(Image=image, **self._arguments)
        except ClientError as error:
            raise _from_client_error(error) from error
        except ParamValidationError as error:
            raise ImageError(" ".join(str(error).split()), code="InvalidParameterException") from error
        except UnicodeDecodeError as error:
            raise malformed() from error
        except _FATAL_ERRORS as error:
            raise FatalCallError(f"{error}; log in again", code="Credentials") from error
        except (BotoCoreError, aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise self._lost(error) from error
        except (AttributeError, TypeError, KeyError) as error:
            raise malformed() from error  # botocore's parser met JSON of another shape
        if not isinstance(answer, dict):
            return answer, ""
        metadata = answer.get("ResponseMetadata", {})
        return {name: said for name, said in answer.items() if name != "ResponseMetadata"}, metadata.get(
            "RequestId", ""
        )

    async def _payload(self, image: ImageRef) -> dict[str, Any]:
        if not self._reader.carries(image):
            return s3_object(image)
        return {"Bytes": await self._reader.read(image)}

    def _lost(self, error: Exception) -> CallError:
        """Aiobotocore wraps what aiohttp raised; that is what tells what happened."""
        where = str(self._client.meta.endpoint_url)
        if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
            return unanswered(TimeoutError(), where=where)
        inner = error.kwargs.get("error") if isinstance(error, BotoCoreError) else None
        if isinstance(error, SSLError) and not isinstance(inner, aiohttp.ClientSSLError):
            inner = ssl.SSLCertVerificationError(str(error))
        return unanswered(inner if isinstance(inner, Exception) else error, where=where)


class RenewingDetector:
    """An `SdkDetector` that opens a new session once when its credentials have expired; a second refusal is fatal."""

    def __init__(self, stack: AsyncExitStack, aws: Aws, model: ModelArn, *, connections: int, **options: Any) -> None:
        self._stack = stack
        self._aws = aws
        self._model = model
        self._connections = connections
        self._options = options
        self._lock = anyio.Lock()
        self._current: SdkDetector | None = None

    async def open(self) -> None:
        """Open the client."""
        client = await self._stack.enter_async_context(
            self._aws.rekognition(region=self._model.region, retries=False, connections=self._connections)
        )
        self._current = SdkDetector(client, self._model, **self._options)

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass that says what to do."""
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


def _from_client_error(error: ClientError) -> CallError:
    metadata = error.response.get("ResponseMetadata", {})
    return classify(
        str(error_code(error) or metadata.get("HTTPStatusCode") or "Unknown"),
        error_words(error),
        status=metadata.get("HTTPStatusCode"),
        request_id=str(metadata.get("RequestId", "")),
    )
