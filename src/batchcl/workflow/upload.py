"""Uploads images to S3 concurrently; objects that are already there are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import check_bucket, s3_error
from batchcl.aws.errors import S3_DENIED, error_code
from batchcl.concurrency import gather
from batchcl.errors import BatchclError, CredentialsError, ErrorCode, SourceError
from batchcl.workflow.local import LocalImage

__all__ = ["S3Folder", "Uploaded", "have_bucket", "put_object", "upload_images"]

_AT_ONCE: Final = 16
"""Concurrent uploads. With 15 MB per image they use at most 240 MB of memory."""

_BATCH: Final = 512
_DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class S3Folder:
    """A bucket and a prefix without leading and trailing slashes, which may be empty."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> S3Folder:
        """Read `s3://bucket` or `s3://bucket/prefix`; raises `SourceError`."""
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not bucket:
            raise SourceError(
                f"{text!r} is not a location in S3. Expected s3://bucket/prefix.", code=ErrorCode.INVALID_TARGET
            )
        return cls(bucket, prefix.strip("/"))

    def key(self, name: str) -> str:
        """The key of `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def uri(self, name: str) -> str:
        """The `s3://bucket/key` of `name` below the prefix."""
        return f"s3://{self.bucket}/{self.key(name)}"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Progress of an upload, in images; `there` counts those that were already in S3."""

    total: int
    there: int
    sent: int = 0
    sent_bytes: int = 0


async def have_bucket(s3: Any, bucket: str, *, region: str, create: bool = False) -> bool:
    """Check that the bucket exists and is in `region`. With `create`, create it if missing; True if it was created.

    Raises:
        SourceError: it doesn't exist, and `create` is False.
        RegionError: it is in another region, where Custom Labels can't read it.
        CredentialsError: the credentials have no access to it, or may not create it.
    """
    try:
        await check_bucket(s3, bucket, region=region)
    except SourceError:
        if not create:
            raise
    else:
        return False
    configuration = {} if region == _DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        await s3.create_bucket(Bucket=bucket, **configuration)
    except (ClientError, BotoCoreError) as error:
        raise _s3_error(error, f"creating the bucket {bucket}", bucket, "s3:CreateBucket") from error
    return True


async def upload_images(
    s3: Any, to: S3Folder, images: Sequence[LocalImage], *, on_progress: Callable[[Uploaded], None] = lambda _: None
) -> Uploaded:
    """Upload the images that aren't in S3 yet to their keys below `to`.

    An object with the same key, size and entity tag is skipped, so an interrupted upload is resumed. In a bucket that
    encrypts with a KMS key, entity tags don't depend on the bytes alone: there, all images are uploaded again.

    Args:
        s3: an open S3 client.
        to: where to upload the images.
        images: local files.
        on_progress: receives the progress before the first upload and after each batch of 512.

    Raises:
        CredentialsError: the credentials may not list or write the bucket.
        SourceError: a file has changed since it was read first, or can no longer be read.
        UnreachableError: S3 can't be reached.
    """
    existing = await _existing(s3, to)
    missing = [image for image in images if existing.get(to.key(image.key)) != (image.size_bytes, image.md5)]
    progress = Uploaded(total=len(images), there=len(images) - len(missing))
    on_progress(progress)

    async def send(image: LocalImage) -> int:
        data = await _read(image)
        await put_object(s3, to.bucket, to.key(image.key), data, content_type=_content_type(data))
        return len(data)

    for begin in range(0, len(missing), _BATCH):
        sizes = await gather(send, missing[begin : begin + _BATCH], at_once=_AT_ONCE)
        sent = progress.sent + len(sizes)
        progress = Uploaded(progress.total, progress.there, sent, progress.sent_bytes + sum(sizes))
        on_progress(progress)
    return progress


async def put_object(s3: Any, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
    """Write one object. Raises like `upload_images`."""
    try:
        await s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)
    except (ClientError, BotoCoreError) as error:
        raise _s3_error(error, f"writing s3://{bucket}/{key}", bucket, "s3:PutObject") from error


async def _existing(s3: Any, to: S3Folder) -> dict[str, tuple[int, str]]:
    """Size and entity tag of each object below the prefix, by key."""
    objects: dict[str, tuple[int, str]] = {}
    prefix = f"{to.prefix}/" if to.prefix else ""
    try:
        async for page in s3.get_paginator("list_objects_v2").paginate(Bucket=to.bucket, Prefix=prefix):
            for each in page.get("Contents", ()):
                objects[each["Key"]] = (each["Size"], each.get("ETag", "").strip('"'))
    except (ClientError, BotoCoreError) as error:
        raise s3_error(error, f"listing s3://{to.bucket}/{prefix}", to.bucket) from error
    return objects


async def _read(image: LocalImage) -> bytes:
    try:
        data = await anyio.Path(image.path).read_bytes()
    except OSError as error:
        raise SourceError(
            f"uploading {image.path} failed: reading it failed: {error.strerror or error}",
            code=ErrorCode.UNREADABLE_SOURCE,
        ) from error
    if len(data) != image.size_bytes:
        raise SourceError(
            f"uploading {image.path} failed: the file has changed meanwhile. Repeat the command.",
            code=ErrorCode.SOURCE_CHANGED,
        )
    return data


def _content_type(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def _s3_error(error: ClientError | BotoCoreError, doing: str, bucket: str, action: str) -> BatchclError:
    if isinstance(error, ClientError) and error_code(error) in S3_DENIED:
        return CredentialsError(f"{doing} failed: access denied. Allow {action} on {bucket}.", is_access_denied=True)
    return s3_error(error, doing, bucket)
