"""Calls DetectCustomLabels for a few images and returns the responses: what `batchcl detect` does.

There is no work list, output root or pacing; the SDK makes the calls and retries them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import anyio
import anyio.to_thread

from batchcl.arns import ModelArn
from batchcl.aws.detect import SdkDetector, parse_labels, s3_object
from batchcl.aws.errors import code_of
from batchcl.aws.names import find_trained_model, region_in
from batchcl.aws.session import Aws
from batchcl.errors import (
    CallError,
    ErrorCode,
    FatalCallError,
    ImageError,
    ModelError,
    ModelNotReadyError,
    RefusedError,
    RejectedError,
    ThrottledError,
    TransientError,
    UsageError,
)
from batchcl.extras import require_extra
from batchcl.images import FITTABLE_EXTENSIONS, MAX_BYTES_FITTABLE, ImageReader, ImageRef, extension_of
from batchcl.imaging.fit import fit as fitted
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import ObjectReader
from batchcl.outcomes import Label, fit_may_help
from batchcl.quantities import MAX_INT32
from batchcl.sources.base import local_image, refuse_url, s3_image

__all__ = ["DetectResult", "ImageInput", "detect", "image_input"]

_MAX_CONCURRENT: Final = 4
_ALLOWANCE_S: Final = 60.0
"""Time for the SDK's pauses between attempts, and for reading and fitting the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image: its bytes, or a reference to a file or an S3 object."""

    name: str
    image: ImageRef | None = None
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectResult:
    """The response or the error of one image.

    Attributes:
        name: as the caller gave it.
        answer: the whole response of the service, `{"CustomLabels": […]}`; None if the call failed.
        error: why the call failed.
        request_id: of the call, for AWS Support.
        fitted: how the image was changed before it was sent; None if it was not changed.
    """

    name: str
    answer: dict[str, Any] | None = None
    error: CallError | None = None
    request_id: str = ""
    fitted: str | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels in the order of the response; empty if the call failed."""
        return () if self.answer is None else parse_labels(self.answer, self.request_id).labels


def image_input(image: str | os.PathLike[str] | bytes, *, version_id: str | None = None) -> ImageInput:
    """Make an `ImageInput` of `s3://bucket/key`, a path, or bytes. Blocks on file-system calls.

    Raises:
        UsageError: a version id was given for an image that is not in S3.
        SourceError: the S3 URI is not valid, or `image` is a URL.
    """
    name = "bytes" if isinstance(image, bytes) else os.fspath(image)
    if version_id is not None and not name.startswith("s3://"):
        raise UsageError(
            f"a version id was given for {name}, which is not in S3; remove the version id",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    if isinstance(image, bytes):
        return ImageInput(name=name, data=image)
    if name.startswith("s3://"):
        return ImageInput(name=name, image=replace(s3_image(name), version_id=version_id))
    refuse_url(name, what="the image")
    return ImageInput(name=name, image=local_image(name))


async def detect(
    images: Sequence[ImageInput | str | os.PathLike[str] | bytes],
    *,
    model: str,
    aws: Aws | None = None,
    min_confidence: float | None = None,
    max_results: int | None = None,
    fit: bool = False,
    on_read: Callable[[ImageInput, bytes], None] | None = None,
) -> list[DetectResult]:
    """Call the model once for each image and return the results in the order of `images`.

    Args:
        images: `s3://bucket/key`, paths or bytes; see `image_input`. Files and bytes, up to 4 MB, are sent; the
            service reads S3 objects itself.
        model: its ARN, or `project@version`. It must be RUNNING.
        aws: the session; default: made from the environment. If its settings name a region, that region is called,
            also for an ARN of another region, which the service then refuses, as with the AWS CLI; otherwise the
            region of the ARN.
        min_confidence: 0 to 100; default: each label's assumed threshold.
        max_results: labels per image, highest confidence first.
        fit: shrink or convert images that the service would refuse. Bounding boxes remain ratios of the image as it
            is displayed.
        on_read: receives each image with its bytes. S3 objects are downloaded for it.

    Raises:
        UsageError: an argument is not valid.
        CredentialsError: there are no credentials, or AWS refuses them.
        ModelError: there is no such model, or it is not RUNNING.
        RefusedError: the service refuses all calls.
    """
    if min_confidence is not None and not 0 <= min_confidence <= 100:  # noqa: PLR2004 - per cent
        raise UsageError(f"--min-confidence {min_confidence:g} is not between 0 and 100")
    if max_results is not None and not 0 <= max_results <= MAX_INT32:
        raise UsageError(f"--max-results {max_results} is not between 0 and {MAX_INT32}")
    if fit:
        require_extra("images", "--fit")
    inputs = [
        each if isinstance(each, ImageInput) else await anyio.to_thread.run_sync(image_input, each) for each in images
    ]
    async with _open_calls(
        aws or Aws(), model, min_confidence=min_confidence, max_results=max_results, fit=fit, on_read=on_read
    ) as calls:
        return await calls.detect_all(inputs)


@asynccontextmanager
async def _open_calls(
    aws: Aws, model: str, *, fit: bool, on_read: Callable[[ImageInput, bytes], None] | None, **options: Any
) -> AsyncIterator[_DetectCalls]:
    await aws.check_credentials()
    region = aws.settings.region or region_in(model) or aws.region
    async with aws.rekognition(region=region) as client, aws.s3(region=region) as s3:
        arn = await find_trained_model(client, model)
        reader = ObjectReader(s3)
        yield _DetectCalls(
            SdkDetector(client, arn, reader=reader, **options),
            arn,
            reader,
            fit=fit,
            on_read=on_read,
            deadline_s=_deadline_s(aws),
        )


def _deadline_s(aws: Aws) -> float | None:
    """Return the time limit of one image: all attempts with the session's timeouts; None if a timeout is disabled."""
    connection = aws.settings.connection
    if connection.connect_timeout_s is None or connection.read_timeout_s is None:
        return None
    return connection.max_attempts * (connection.connect_timeout_s + connection.read_timeout_s) + _ALLOWANCE_S


class _DetectCalls:
    """Calls the model for each image; the first error that concerns all images ends the calls."""

    def __init__(
        self,
        detector: SdkDetector,
        model: ModelArn,
        objects: ObjectReader,
        *,
        fit: bool,
        on_read: Callable[[ImageInput, bytes], None] | None,
        deadline_s: float | None,
    ) -> None:
        self._detector = detector
        self._model = model
        self._readers: tuple[ImageReader, ...] = (objects, FileReader())
        self._fit = fit
        self._on_read = on_read
        self._deadline_s = deadline_s
        self._slots = anyio.Semaphore(_MAX_CONCURRENT)
        self._failure: CallError | None = None

    async def detect_all(self, images: Sequence[ImageInput]) -> list[DetectResult]:
        results: dict[int, DetectResult] = {}

        async def one(number: int, each: ImageInput) -> None:
            async with self._slots:
                try:
                    with anyio.fail_after(self._deadline_s):
                        results[number] = await self._detect(each)
                except TimeoutError:
                    late = TransientError("no response in time", code="Timeout")
                    results[number] = DetectResult(name=each.name, error=late)
                except (FatalCallError, ModelNotReadyError) as error:
                    self._failure = self._failure or error
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for number, each in enumerate(images):
                group.start_soon(one, number, each)
        if self._failure is not None:
            raise self._refusal(self._failure) from self._failure
        self._check_not_all_refused(list(results.values()))
        return [results[number] for number in range(len(images))]

    def _check_not_all_refused(self, results: Sequence[DetectResult]) -> None:
        """Raise if every image failed, and at least one for a reason that usually concerns all images."""
        general = [each.error for each in results if isinstance(each.error, RejectedError) and each.error.is_general]
        if general and all(each.error is not None for each in results):
            raise self._refusal(general[0]) from general[0]

    async def _detect(self, each: ImageInput) -> DetectResult:
        try:
            if each.image is not None and each.image.bucket:
                return await self._detect_object(each, each.image)
            return await self._detect_bytes(each, await self._read(each))
        except (ImageError, ThrottledError, TransientError) as error:
            return DetectResult(name=each.name, error=error)

    async def _detect_object(self, each: ImageInput, image: ImageRef) -> DetectResult:
        """Let the service read the object; if it has to be fitted, download it and send its bytes."""
        data = None if self._on_read is None else await self._read(each)
        if self._fit and extension_of(image.key.rpartition("/")[2]) in FITTABLE_EXTENSIONS:
            return await self._detect_bytes(each, data or await self._read(each))
        try:
            answer, request_id = await self._detector.ask(s3_object(image))
        except ImageError as error:
            if not self._fit or not fit_may_help(error.code):
                raise
            return await self._detect_bytes(each, data or await self._read(each), after=error)
        return _result(each, answer, request_id)

    async def _detect_bytes(self, each: ImageInput, data: bytes, *, after: ImageError | None = None) -> DetectResult:
        changed = await anyio.to_thread.run_sync(fitted, data) if self._fit else None
        if changed is None and after is not None:
            raise after  # the image needs no fitting, so the service had another reason to refuse it
        answer, request_id = await self._detector.ask({"Bytes": data if changed is None else changed.data})
        return _result(each, answer, request_id, fitted=None if changed is None else changed.note)

    async def _read(self, each: ImageInput) -> bytes:
        data = each.data
        if data is None:
            assert each.image is not None
            if (each.image.size_bytes or 0) > MAX_BYTES_FITTABLE:
                text = f"it has {each.image.size_bytes:,} bytes; the limit is {MAX_BYTES_FITTABLE:,} bytes"
                raise ImageError(text, code="TooLarge")
            reader = next(reader for reader in self._readers if reader.accepts(each.image))
            data = await reader.read(each.image)
        if self._on_read is not None:
            self._on_read(each, data)
        return data

    def _refusal(self, error: CallError) -> RefusedError:
        """The error with which all calls end because of `error`."""
        name = self._model.name
        if isinstance(error, ModelNotReadyError):
            reason = str(error).rstrip(".")
            return ModelError(
                f"{reason}; start {name} with `batchcl model start {name}`, and wait until it is RUNNING",
                code=ErrorCode.MODEL_NOT_RUNNING,
            )
        return RefusedError(f"calling {name} failed: {error.code}: {error}", code=code_of(error))


def _result(each: ImageInput, answer: Any, request_id: str, *, fitted: str | None = None) -> DetectResult:
    """Raise `TransientError` for a malformed response."""
    parse_labels(answer, request_id)
    return DetectResult(name=each.name, answer=answer, request_id=request_id, fitted=fitted)
