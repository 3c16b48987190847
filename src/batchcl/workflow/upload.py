"""Bringing images to S3: what is there already stays, the rest goes up, so many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import check_bucket, explain
from batchcl.aws.errors import S3_DENIED, error_code
from batchcl.concurrency import gather
from batchcl.errors import BatchclError, CredentialsError, SourceError
from batchcl.workflow.local import LocalImage

__all__ = ["S3Folder", "Uploaded", "have_bucket", "put_object", "upload_images"]

_AT_ONCE: Final = 16
"""Uploads at a time; at 15 MB an image they take at most 240 MB of memory."""

_BATCH: Final = 512
_DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class S3Folder:
    """A bucket and a prefix without slashes around it; the prefix may be empty."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> S3Folder:
        """Read `s3://bucket` or `s3://bucket/prefix`; raises `SourceError`."""
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not bucket:
            raise SourceError(f"{text!r} names no place in S3; it looks like s3://bucket/prefix")
        return cls(bucket, prefix.strip("/"))

    def key(self, name: str) -> str:
        """The key of what is called `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def uri(self, name: str) -> str:
        """`s3://bucket/key` of what is called `name` below the prefix."""
        return f"s3://{self.bucket}/{self.key(name)}"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """How far an upload is, in images; `there` were in S3 already."""

    total: int
    there: int
    sent: int = 0
    sent_bytes: int = 0


async def have_bucket(s3: Any, bucket: str, *, region: str, create: bool = False) -> bool:
    """Check that the bucket is there and lies in `region`; with `create`, make it if it isn't. True if it was made.

    Raises:
        SourceError: there is none, and none was to be made.
        RegionError: it lies in another region, where Custom Labels can't read it.
        CredentialsError: the credentials don't reach it, or may not make it.
    """
    try:
        await check_bucket(s3, bucket, region=region)
    except SourceError:
        if not create:
            raise
    else:
        return False
    where = {} if region == _DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        await s3.create_bucket(Bucket=bucket, **where)
    except (ClientError, BotoCoreError) as error:
        raise _explained(error, f"making the bucket {bucket}", bucket, "s3:CreateBucket") from error
    return True


async def upload_images(
    s3: Any, to: S3Folder, images: Sequence[LocalImage], *, on_progress: Callable[[Uploaded], None] = lambda _: None
) -> Uploaded:
    """Upload the images whose bytes aren't in S3 yet, below `to`, under their keys.

    An object of the same key, size and entity tag is taken for the same and left alone, so an upload that was cut off
    goes on where it stopped. In a bucket that encrypts with a KMS key entity tags say nothing of the bytes: there
    everything goes up again.

    Args:
        s3: an open S3 client.
        to: where to.
        images: what.
        on_progress: told before the first one and after each batch of 512.

    Raises:
        CredentialsError: the credentials may not list or write the bucket.
        SourceError: a file has changed since it was looked at, or can't be read any more.
        UnreachableError: S3 doesn't answer.
    """
    there = await _existing(s3, to)
    missing = [image for image in images if there.get(to.key(image.key)) != (image.size_bytes, image.md5)]
    progress = Uploaded(total=len(images), there=len(images) - len(missing))
    on_progress(progress)

    async def send(image: LocalImage) -> int:
        data = await _read(image)
        await put_object(s3, to.bucket, to.key(image.key), data, content_type=_type(data))
        return len(data)

    for begin in range(0, len(missing), _BATCH):
        sizes = await gather(send, missing[begin : begin + _BATCH], at_once=_AT_ONCE)
        sent = progress.sent + len(sizes)
        progress = Uploaded(progress.total, progress.there, sent, progress.sent_bytes + sum(sizes))
        on_progress(progress)
    return progress


async def put_object(s3: Any, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
    """Put one object; raises as `upload_images` does."""
    try:
        await s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)
    except (ClientError, BotoCoreError) as error:
        raise _explained(error, f"writing s3://{bucket}/{key}", bucket, "s3:PutObject") from error


async def _existing(s3: Any, to: S3Folder) -> dict[str, tuple[int, str]]:
    """Size and entity tag of each object below the prefix, by key."""
    found: dict[str, tuple[int, str]] = {}
    prefix = f"{to.prefix}/" if to.prefix else ""
    try:
        async for page in s3.get_paginator("list_objects_v2").paginate(Bucket=to.bucket, Prefix=prefix):
            for each in page.get("Contents", ()):
                found[each["Key"]] = (each["Size"], each.get("ETag", "").strip('"'))
    except (ClientError, BotoCoreError) as error:
        raise explain(error, f"listing s3://{to.bucket}/{prefix}", to.bucket) from error
    return found


async def _read(image: LocalImage) -> bytes:
    try:
        data = await anyio.Path(image.path).read_bytes()
    except OSError as error:
        raise SourceError(f"uploading {image.path} failed: it can't be read: {error.strerror or error}") from error
    if len(data) != image.size_bytes:
        raise SourceError(f"uploading {image.path} failed: it has changed while this went on; start again")
    return data


def _type(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def _explained(error: ClientError | BotoCoreError, doing: str, bucket: str, action: str) -> BatchclError:
    if isinstance(error, ClientError) and error_code(error) in S3_DENIED:
        return CredentialsError(f"{doing} failed: access denied; allow {action} on {bucket}", is_access_denied=True)
    return explain(error, doing, bucket)
