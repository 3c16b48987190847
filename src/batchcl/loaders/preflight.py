"""Whether images can be read, tried on a few of them before anything is paid for.

DetectCustomLabels reads S3 images with its caller's permissions, so what the caller may not read it refuses, one paid
second after the other.
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
from batchcl.errors import CallError, CredentialsError, RefusedError
from batchcl.images import ImageReader, ImageRef, check_limits
from batchcl.loaders.open import open_reader
from batchcl.spellings import spellings

__all__ = ["HEAD_BYTES", "SAMPLE", "ProbeResult", "misspelled", "probe", "refusals", "refuse_unreadable", "sample_of"]

SAMPLE: Final = 20
"""So many images tell whether the others can be read; as many as a run calls for before it gives a bucket up."""

HEAD_BYTES: Final = 64 * 1024
"""Enough for the size in pixels, behind the EXIF data that cameras put first."""

_MISSING: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_EMPTY: Final = frozenset({"InvalidRange", "416"})
_GONE: Final = "NoSuchFile"
_UNREADABLE: Final = "UnreadableFile"
_UNANSWERED: Final = "Unanswered"
_DEADLINE_S: Final = 60.0
_MISSPELLED: Final = 3
"""So many missing images are looked for under other spellings."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What became of the attempt to read an image.

    Attributes:
        image: which one.
        code: S3's word for its refusal; empty where the image could be read.
        said: the refusal in words.
        head: the first 64 KiB of what could be read.
    """

    image: ImageRef
    code: str = ""
    said: str = ""
    head: bytes = b""

    @property
    def is_denied(self) -> bool:
        """Whether a permission is missing."""
        return self.code in S3_DENIED

    @property
    def is_missing(self) -> bool:
        """Whether there is no such image."""
        return self.code in _MISSING or self.code == _GONE


def sample_of(images: Sequence[ImageRef], *, most: int = SAMPLE, fit: bool = False) -> list[ImageRef]:
    """Images from all over `images` that a call would be made for, at most so many; see `check_limits` for `fit`."""
    called = [image for image in images if check_limits(image, fit=fit) is None]
    count = min(most, len(called))
    return [called[n * len(called) // count] for n in range(count)]


async def probe(aws: Aws, images: Sequence[ImageRef], *, region: str) -> list[ProbeResult]:
    """Read the beginning of each image where it lies: of S3's objects in `region`, or in the image's own.

    Raises:
        CredentialsError: there are none.
    """
    async with AsyncExitStack() as stack:
        regions = {image.region or region for image in images if _is_object(image)}
        clients = {each: await stack.enter_async_context(aws.s3(region=each)) for each in sorted(regions)}
        reader = await stack.enter_async_context(open_reader(aws, region=region, connections=SAMPLE))

        async def look(image: ImageRef) -> ProbeResult:
            if _is_object(image):
                return await _look_at_object(clients[image.region or region], image)
            if image.local and image.member is None:
                return await _look_at_file(image)
            return await _look_by(reader, image)

        return await gather(look, images, at_once=SAMPLE)


def _is_object(image: ImageRef) -> bool:
    return bool(image.bucket) and image.member is None


async def _look_by(reader: ImageReader, image: ImageRef) -> ProbeResult:
    try:
        with anyio.fail_after(_DEADLINE_S):
            return ProbeResult(image, head=(await reader.read(image))[:HEAD_BYTES])
    except CallError as error:
        return ProbeResult(image, error.code, str(error))
    except TimeoutError:
        return ProbeResult(image, _UNREADABLE, f"{image.uri} gave no answer in time")


async def misspelled(aws: Aws, looked: Sequence[ProbeResult], *, region: str) -> str:
    """What is wrong with the names of images that aren't there, where they are under another spelling; else empty."""
    for each in [each for each in looked if each.is_missing or each.is_denied][:_MISSPELLED]:
        image = each.image
        if image.member is not None:
            continue
        others = list(spellings(image.key))
        found = await probe(aws, [replace(image, key=other.name) for other in others], region=region)
        for other, there in zip(others, found, strict=True):
            if not there.code:
                name = f"s3://{image.bucket}/{other.name}" if image.bucket else other.name
                return f"{image.uri} is not there, and {name} is: the names are {other.what}; {other.advice}"
    return ""


def refuse_unreadable(looked: Sequence[ProbeResult], *, is_all: bool = False, hint: str = "") -> None:
    """Raise where the images of a whole sample can't be read for the same reason, so that no call could succeed.

    A few missing images are no reason: they end as failures of the run. Twenty of twenty are, and so are fewer where
    there are no others (`is_all`): the model would be started for nothing. `hint` is what `misspelled` found.

    Raises:
        CredentialsError: reading isn't allowed.
        RefusedError: none of them is there.
    """
    if not looked:
        return
    example = looked[0]
    count = "the image" if len(looked) == 1 else f"{len(looked)} of {len(looked)} sampled images"
    if all(each.is_denied or each.is_missing for each in looked) and hint and (is_all or len(looked) >= SAMPLE):
        raise RefusedError(f"{count} can't be read: {hint}")
    if all(each.is_denied for each in looked):
        version = " and s3:GetObjectVersion" if example.image.version_id else ""
        raise CredentialsError(
            f"{count} can't be read, such as {example.image.uri}: {example.said}; Custom Labels reads with the "
            f"permissions of who calls it: allow s3:GetObject{version} on them, and kms:Decrypt where a KMS key "
            "encrypts them",
            is_access_denied=True,
        )
    if (is_all or len(looked) >= SAMPLE) and all(each.is_missing for each in looked):
        which = "the image is" if len(looked) == 1 else f"all {len(looked)} images are" if is_all else f"{count} are"
        raise RefusedError(
            f"{which} not there, such as {example.image.uri}; check the keys of the list, which are taken as they are"
        )


def refusals(looked: Sequence[ProbeResult]) -> Counter[str]:
    """How many could not be read, by the reason's code."""
    return Counter(each.code for each in looked if each.code)


async def _look_at_object(client: Any, image: ImageRef) -> ProbeResult:
    named = {"Bucket": image.bucket, "Key": image.key}
    if image.version_id is not None:
        named["VersionId"] = image.version_id
    try:
        with anyio.fail_after(_DEADLINE_S):
            answer = await client.get_object(**named, Range=f"bytes=0-{HEAD_BYTES - 1}")
            return ProbeResult(image, head=await answer["Body"].read(HEAD_BYTES))
    except ClientError as error:
        code = error_code(error)
        if code in _EMPTY:
            return ProbeResult(image)
        return ProbeResult(image, code, f"{code}: {error_message(error)}")
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:  # a hiccup ends no run
        return ProbeResult(image, _UNANSWERED, str(error) or type(error).__name__)


async def _look_at_file(image: ImageRef) -> ProbeResult:
    try:
        async with await anyio.open_file(image.key, "rb") as file:
            return ProbeResult(image, head=await file.read(HEAD_BYTES))
    except FileNotFoundError:
        return ProbeResult(image, _GONE, "there is no such file")
    except OSError as error:
        return ProbeResult(image, _UNREADABLE, error.strerror or str(error))
