"""A few images, each with one call, and their answers as the service gave them: what `batchcl detect` does.

No list, no table, no pace: calls go through the SDK, which retries a few times by itself.
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
from batchcl.aws.names import find_trained_model, region_in
from batchcl.aws.session import Aws
from batchcl.errors import (
    CallError,
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
from batchcl.images import FITTABLE_EXTENSIONS, MAX_BYTES_FITTABLE, ImageReader, ImageRef, suffix_of
from batchcl.imaging.decode import require_pillow
from batchcl.imaging.fit import fit as fitted
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import ObjectReader
from batchcl.outcomes import Label, fit_may_help
from batchcl.quantities import MAX_INT32
from batchcl.sources.base import local_image, refuse_url, s3_image

__all__ = ["DetectResult", "ImageInput", "detect", "image_input"]

_AT_ONCE: Final = 4
_SLACK_S: Final = 60.0
"""For the SDK's pauses between attempts, and for reading and fitting the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image to look at: bytes that are there, or the place that they lie in."""

    name: str
    image: ImageRef | None = None
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectResult:
    """What became of one image.

    Attributes:
        name: as it was given.
        answer: the service's whole answer, `{"CustomLabels": […]}`; None where there is an error.
        error: why there is none.
        request_id: of the call, for AWS Support.
        fitted: what was changed before the image was sent; None where it went as it was.
    """

    name: str
    answer: dict[str, Any] | None = None
    error: CallError | None = None
    request_id: str = ""
    fitted: str | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        """The answer's labels, as the service ordered them; none where there is an error."""
        return () if self.answer is None else parse_labels(self.answer, self.request_id).labels


def image_input(image: str | os.PathLike[str] | bytes, *, version_id: str | None = None) -> ImageInput:
    """`s3://bucket/key`, a path, or the bytes themselves. Blocks for a look at the file.

    Raises:
        UsageError: a version is named of what isn't in S3.
        SourceError: the S3 URI is none, or the image is on the web.
    """
    name = "bytes" if isinstance(image, bytes) else os.fspath(image)
    if version_id is not None and not name.startswith("s3://"):
        raise UsageError(f"{name} isn't in S3, so it has no version; leave the version out")
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
    """Look at each image once; what became of them, in their order.

    Args:
        images: `s3://bucket/key`, paths or bytes; see `image_input`. Files and bytes, up to 4 MB, are sent; the
            service reads S3 objects itself.
        model: its ARN, or `project@version`. It must be RUNNING.
        aws: as the environment has it when left out. A region in its settings is called, also for an ARN of another
            one, which the service then refuses, as for the AWS CLI; without it, an ARN's region is.
        min_confidence: 0 to 100; left out, each label's assumed threshold decides.
        max_results: labels an image, highest confidence first.
        fit: shrink or convert what the service would refuse. Boxes stay ratios of the image as people see it.
        on_read: is told the bytes of each image, which are read for it where they needn't be otherwise.

    Raises:
        UsageError: an argument is wrong.
        CredentialsError: there are none, or AWS refuses them.
        ModelError: there is no such model, or it isn't RUNNING.
        RefusedError: the service refuses all calls.
    """
    if min_confidence is not None and not 0 <= min_confidence <= 100:  # noqa: PLR2004 - per cent
        raise UsageError(f"--min-confidence {min_confidence:g} is outside of 0 to 100")
    if max_results is not None and not 0 <= max_results <= MAX_INT32:
        raise UsageError(f"--max-results {max_results} is outside of 0 to {MAX_INT32}")
    if fit:
        require_pillow("--fit")
    asked = [
        each if isinstance(each, ImageInput) else await anyio.to_thread.run_sync(image_input, each) for each in images
    ]
    async with _opened(
        aws or Aws(), model, min_confidence=min_confidence, max_results=max_results, fit=fit, on_read=on_read
    ) as looker:
        return await looker.look(asked)


@asynccontextmanager
async def _opened(
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
            deadline_s=_deadline(aws),
        )


def _deadline(aws: Aws) -> float | None:
    """For one image: what the user's timeouts come to. None where one of them is for ever, as that was asked for."""
    connection = aws.settings.connection
    if connection.connect_timeout_s is None or connection.read_timeout_s is None:
        return None
    return connection.max_attempts * (connection.connect_timeout_s + connection.read_timeout_s) + _SLACK_S


class _DetectCalls:
    """Asks for each image; the first error that concerns them all ends it."""

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
        self._slots = anyio.Semaphore(_AT_ONCE)
        self._failure: CallError | None = None

    async def look(self, images: Sequence[ImageInput]) -> list[DetectResult]:
        found: dict[int, DetectResult] = {}

        async def one(number: int, each: ImageInput) -> None:
            async with self._slots:
                try:
                    with anyio.fail_after(self._deadline_s):
                        found[number] = await self._answered(each)
                except TimeoutError:
                    late = TransientError("no answer in time", code="Timeout")
                    found[number] = DetectResult(name=each.name, error=late)
                except (FatalCallError, ModelNotReadyError) as error:
                    self._failure = self._failure or error
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for number, each in enumerate(images):
                group.start_soon(one, number, each)
        if self._failure is not None:
            raise self._as_refusal(self._failure) from self._failure
        self._refuse_general(list(found.values()))
        return [found[number] for number in range(len(images))]

    def _refuse_general(self, found: Sequence[DetectResult]) -> None:
        """Raise where no image was answered, and one of them for a reason that usually concerns all."""
        general = [each.error for each in found if isinstance(each.error, RejectedError) and each.error.is_general]
        if general and all(each.error is not None for each in found):
            raise self._as_refusal(general[0]) from general[0]

    async def _answered(self, each: ImageInput) -> DetectResult:
        try:
            if each.image is not None and each.image.bucket:
                return await self._of_object(each, each.image)
            return await self._of_bytes(each, await self._read(each))
        except (ImageError, ThrottledError, TransientError) as error:
            return DetectResult(name=each.name, error=error)

    async def _of_object(self, each: ImageInput, image: ImageRef) -> DetectResult:
        """The service reads the object; where it must be fitted, it travels from here."""
        data = None if self._on_read is None else await self._read(each)
        if self._fit and suffix_of(image.key.rpartition("/")[2]) in FITTABLE_EXTENSIONS:
            return await self._of_bytes(each, data or await self._read(each))
        try:
            answer, request_id = await self._detector.ask(s3_object(image))
        except ImageError as refusal:
            if not self._fit or not fit_may_help(refusal.code):
                raise
            return await self._of_bytes(each, data or await self._read(each), after=refusal)
        return _result(each, answer, request_id)

    async def _of_bytes(self, each: ImageInput, data: bytes, *, after: ImageError | None = None) -> DetectResult:
        changed = await anyio.to_thread.run_sync(fitted, data) if self._fit else None
        if changed is None and after is not None:
            raise after  # the picture is as it should be: the refusal was about something else
        answer, request_id = await self._detector.ask({"Bytes": data if changed is None else changed.data})
        return _result(each, answer, request_id, fitted=None if changed is None else changed.note)

    async def _read(self, each: ImageInput) -> bytes:
        data = each.data
        if data is None:
            assert each.image is not None
            if (each.image.size_bytes or 0) > MAX_BYTES_FITTABLE:
                text = f"{each.image.size_bytes:,} bytes, and files of up to {MAX_BYTES_FITTABLE:,} are read"
                raise ImageError(text, code="TooLarge")
            reader = next(reader for reader in self._readers if reader.carries(each.image))
            data = await reader.read(each.image)
        if self._on_read is not None:
            self._on_read(each, data)
        return data

    def _as_refusal(self, error: CallError) -> RefusedError:
        name = self._model.name
        if isinstance(error, ModelNotReadyError):
            why = str(error).rstrip(".")
            return ModelError(f"{why}; start {name} with `batchcl model start {name}`, and wait until it is RUNNING")
        return RefusedError(f"asking {name} failed: {error.code}: {error}")


def _result(each: ImageInput, answer: Any, request_id: str, *, fitted: str | None = None) -> DetectResult:
    """Raises `TransientError` where the answer is none of the API's."""
    parse_labels(answer, request_id)
    return DetectResult(name=each.name, answer=answer, request_id=request_id, fitted=fitted)
