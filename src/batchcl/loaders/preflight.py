"""Checks on a sample whether images can be read, before a model is started.

DetectCustomLabels reads S3 images with the caller's permissions: what the caller can't read, it refuses, while the
running model costs money.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.errors import S3_DENIED, error_code, error_message
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import CallError, CredentialsError, ErrorCode, RefusedError
from batchcl.images import ImageReader, ImageRef, check_limits
from batchcl.loaders.open import open_reader

__all__ = [
    "HEAD_BYTES",
    "SAMPLE_SIZE",
    "ProbeResult",
    "check_images_readable",
    "count_errors",
    "probe",
    "sample_images",
    "spelling_hint",
]

SAMPLE_SIZE: Final = 20
"""Images in the sample; as many as the rejected calls in a row that stop a run."""

HEAD_BYTES: Final = 64 * 1024
"""Enough for the size in pixels, which follows the EXIF data in photographs."""

_MISSING: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_EMPTY: Final = frozenset({"InvalidRange", "416"})
_NO_SUCH_FILE: Final = "NoSuchFile"
_UNREADABLE: Final = "UnreadableFile"
_NO_RESPONSE: Final = "NoResponse"
_DEADLINE_S: Final = 60.0
_MAX_SPELLING_CHECKS: Final = 3
"""How many missing images are looked up under other spellings."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of reading the beginning of an image.

    Attributes:
        image: the image.
        code: the error code; empty if it could be read.
        message: the error message.
        head: the first 64 KiB.
    """

    image: ImageRef
    code: str = ""
    message: str = ""
    head: bytes = b""

    @property
    def is_denied(self) -> bool:
        """Whether a permission is missing."""
        return self.code in S3_DENIED

    @property
    def is_missing(self) -> bool:
        """Whether there is no such image."""
        return self.code in _MISSING or self.code == _NO_SUCH_FILE


def sample_images(images: Sequence[ImageRef], *, most: int = SAMPLE_SIZE, fit: bool = False) -> list[ImageRef]:
    """At most `most` images, spread evenly over those that pass `check_limits`."""
    candidates = [image for image in images if check_limits(image, fit=fit) is None]
    count = min(most, len(candidates))
    return [candidates[n * len(candidates) // count] for n in range(count)]


async def probe(aws: Aws, images: Sequence[ImageRef], *, region: str) -> list[ProbeResult]:
    """Read the beginning of each image. `region` is that of buckets for which the image names none.

    Raises:
        CredentialsError: there are none.
    """
    async with AsyncExitStack() as stack:
        regions = {image.region or region for image in images if _is_object(image)}
        clients = {each: await stack.enter_async_context(aws.s3(region=each)) for each in sorted(regions)}
        reader = await stack.enter_async_context(open_reader(aws, region=region, connections=SAMPLE_SIZE))

        async def probe_one(image: ImageRef) -> ProbeResult:
            if _is_object(image):
                return await _probe_object(clients[image.region or region], image)
            if image.local and image.member is None:
                return await _probe_file(image)
            return await _probe_member(reader, image)

        return await gather(probe_one, images, at_once=SAMPLE_SIZE)


def _is_object(image: ImageRef) -> bool:
    return bool(image.bucket) and image.member is None


async def _probe_member(reader: ImageReader, image: ImageRef) -> ProbeResult:
    try:
        with anyio.fail_after(_DEADLINE_S):
            return ProbeResult(image, head=(await reader.read(image))[:HEAD_BYTES])
    except CallError as error:
        return ProbeResult(image, error.code, str(error))
    except TimeoutError:
        return ProbeResult(image, _UNREADABLE, f"reading {image.uri} took longer than {_DEADLINE_S:.0f} s")


async def spelling_hint(aws: Aws, results: Sequence[ProbeResult], *, region: str) -> str:
    """A hint if missing images exist under another spelling of their names; else an empty string."""
    missing = [each for each in results if each.is_missing or each.is_denied][:_MAX_SPELLING_CHECKS]
    if not missing:
        return ""
    from batchcl.spellings import spellings

    for result in missing:
        image = result.image
        if image.member is not None:
            continue
        others = list(spellings(image.key))
        probed = await probe(aws, [replace(image, key=other.name) for other in others], region=region)
        for other, candidate in zip(others, probed, strict=True):
            if not candidate.code:
                name = f"s3://{image.bucket}/{other.name}" if image.bucket else other.name
                return f"{image.uri} does not exist, but {name} does: the names are {other.what}; {other.advice}"
    return ""


def check_images_readable(results: Sequence[ProbeResult], *, is_all: bool = False, hint: str = "") -> None:
    """Raise if no image of a sample can be read for the same reason, so that no call could succeed.

    A few missing images become failures of the run. If a whole sample is missing, or all images of a smaller job
    (`is_all`), the model would be started for nothing. `hint` comes from `spelling_hint`.

    Raises:
        CredentialsError: access is denied.
        RefusedError: none of them exists.
    """
    if not results:
        return
    example = results[0]
    count = "the image" if len(results) == 1 else f"{len(results)} of {len(results)} sampled images"
    if all(each.is_denied or each.is_missing for each in results) and hint and (is_all or len(results) >= SAMPLE_SIZE):
        raise RefusedError(f"{count} can't be read: {hint}", code=ErrorCode.IMAGES_NOT_FOUND)
    if all(each.is_denied for each in results):
        version = " and s3:GetObjectVersion" if example.image.version_id else ""
        raise CredentialsError(
            f"{count} can't be read, such as {example.image.uri}: {example.message}; Custom Labels reads images with "
            f"its caller's permissions: allow s3:GetObject{version} on them, and kms:Decrypt if they are encrypted "
            "with a KMS key",
            is_access_denied=True,
        )
    if (is_all or len(results) >= SAMPLE_SIZE) and all(each.is_missing for each in results):
        which = "the image does" if len(results) == 1 else f"all {len(results)} images do" if is_all else f"{count} do"
        raise RefusedError(
            f"{which} not exist, such as {example.image.uri}; check the keys in the list, which are taken literally",
            code=ErrorCode.IMAGES_NOT_FOUND,
        )


def count_errors(results: Sequence[ProbeResult]) -> Counter[str]:
    """The number of unreadable images per error code."""
    return Counter(each.code for each in results if each.code)


async def _probe_object(client: Any, image: ImageRef) -> ProbeResult:
    arguments = {"Bucket": image.bucket, "Key": image.key}
    if image.version_id is not None:
        arguments["VersionId"] = image.version_id
    try:
        with anyio.fail_after(_DEADLINE_S):
            response = await client.get_object(**arguments, Range=f"bytes=0-{HEAD_BYTES - 1}")
            return ProbeResult(image, head=await _read_head(response["Body"]))
    except ClientError as error:
        code = error_code(error)
        if code in _EMPTY:
            return ProbeResult(image)
        return ProbeResult(image, code, f"{code}: {error_message(error)}")
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:  # transient: must not prevent a run
        return ProbeResult(image, _NO_RESPONSE, str(error) or type(error).__name__)


async def _read_head(body: Any) -> bytes:
    """The first bytes of a response, which may arrive in several parts. Closes the response."""
    head = b""
    try:
        while len(head) < HEAD_BYTES and (part := await body.read(HEAD_BYTES - len(head))):
            head += part
    finally:
        body.close()
    return head


async def _probe_file(image: ImageRef) -> ProbeResult:
    try:
        async with await anyio.open_file(image.key, "rb") as file:
            return ProbeResult(image, head=await file.read(HEAD_BYTES))
    except FileNotFoundError:
        return ProbeResult(image, _NO_SUCH_FILE, "no such file")
    except OSError as error:
        return ProbeResult(image, _UNREADABLE, error.strerror or str(error))
