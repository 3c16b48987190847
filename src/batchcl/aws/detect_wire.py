"""DetectCustomLabels over the wire: a tenth of the SDK's work for a call, and the same outcomes."""

from __future__ import annotations

import base64
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson

from batchcl.aws.arn import ModelArn
from batchcl.aws.classify import classify
from batchcl.aws.detection import asked_of, detection_of, s3_object
from batchcl.aws.refusal import read_refusal
from batchcl.aws.unanswered import malformed, redirected
from batchcl.aws.wire import Answer, Request, Wire
from batchcl.errors import CallError, ImageError
from batchcl.images import ImageRef
from batchcl.reading.base import ImageReader
from batchcl.reading.files import FileReader
from batchcl.scoring.outcome import Detection

__all__ = ["WireDetector"]

_HEADERS: Final = (
    ("Content-Type", "application/x-amz-json-1.1"),
    ("X-Amz-Target", "RekognitionService.DetectCustomLabels"),
)
_REFUSED: Final = 300
_ENCODED_ASIDE_BYTES: Final = 64 * 1024
_ELSEWHERE: Final = range(300, 400)
_REQUEST_ID: Final = "x-amzn-RequestId"


class WireDetector:
    """DetectCustomLabels through a `Wire`.

    Images that `reader` carries travel as bytes, the others as S3Object (with the version where the list named one).
    """

    def __init__(
        self,
        wire: Wire,
        model: ModelArn,
        *,
        min_confidence: float | None = None,
        max_results: int | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        self._wire = wire
        self._reader = reader or FileReader()
        self._arguments = asked_of(model, min_confidence=min_confidence, max_results=max_results)

    async def detect(self, image: ImageRef) -> Detection:
        """The labels of `image`; raises a `CallError` subclass, within the reader's and the wire's deadlines."""
        read_s = 0.0
        if self._reader.carries(image):
            begun_at = anyio.current_time()
            body = await self._inline(image)
            read_s = anyio.current_time() - begun_at
        else:
            body = self._body(s3_object(image))
        answer = await self._wire.send(Request(method="POST", headers=_HEADERS, body=body))
        if answer.status >= _REFUSED:
            raise self._refused(answer)
        try:
            said = orjson.loads(answer.body)
        except orjson.JSONDecodeError as error:
            raise malformed() from error
        return detection_of(said, answer.headers.get(_REQUEST_ID, ""), read_s=read_s)

    def _body(self, image: dict[str, Any]) -> bytes:
        try:
            return orjson.dumps({**self._arguments, "Image": image})
        except TypeError as error:
            raise ImageError("the key is no Unicode text", code="InvalidParameterException") from error

    async def _inline(self, image: ImageRef) -> bytes:
        """Megabytes are encoded aside, as they would hold all other calls up."""
        data = await self._reader.read(image)
        if len(data) < _ENCODED_ASIDE_BYTES:
            return self._with_bytes(data)
        return await anyio.to_thread.run_sync(self._with_bytes, data, abandon_on_cancel=True)

    def _with_bytes(self, data: bytes) -> bytes:
        return self._body({"Bytes": base64.b64encode(data).decode()})

    def _refused(self, answer: Answer) -> CallError:
        if answer.status in _ELSEWHERE:
            return redirected(self._wire.endpoint.url, answer.status, answer.headers.get("Location"))
        refusal = read_refusal(answer.status, answer.headers, answer.body)
        request_id = answer.headers.get(_REQUEST_ID, "")
        return classify(refusal.code, refusal.message, status=answer.status, request_id=request_id)
