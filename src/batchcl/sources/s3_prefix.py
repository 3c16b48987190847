"""All objects below an S3 prefix, by ListObjectsV2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.aws.session import Aws
from batchcl.images import ImageRef
from batchcl.sources.base import Checked, Position

__all__ = ["S3PrefixSource"]


class S3PrefixSource:
    """Every object whose key starts with the prefix, in S3's own order.

    The prefix is a string, as S3 has it: `s3://b/2026` also lists `2026-old/x.jpg`; end it with `/` to mean a folder.
    Keys come exactly as they are: the SDK asks S3 to URL-encode its answer and decodes it again.
    """

    def __init__(self, uri: str, aws: Aws, *, region: str) -> None:
        self.description = uri
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._aws = aws
        self._region = region

    async def check(self) -> Checked:
        """Names the bucket; whether it can be reached is checked for all buckets of a run together."""
        return Checked(buckets=frozenset({self._bucket}))

    async def contains(self, image: ImageRef) -> bool:
        """Whether `image` has the prefix. One that names a version is another thing than the latest one."""
        return image.bucket == self._bucket and image.key.startswith(self._prefix) and image.version_id is None

    @property
    def repeated(self) -> int:
        """A bucket lists each key once."""
        return 0

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The objects in S3's pages; raises `RefusedError` or `SourceError` as the bucket has it."""
        async with self._aws.s3(region=self._region) as client:
            paginator = client.get_paginator("list_objects_v2")
            start = {} if after is None else {"StartAfter": after.key}
            try:
                async for page in paginator.paginate(Bucket=self._bucket, Prefix=self._prefix, **start):
                    if contents := page.get("Contents"):
                        yield [self._image(entry) for entry in contents]
            except (ClientError, BotoCoreError) as error:
                raise explain(error, f"listing {self.description}", self._bucket) from error

    def _image(self, entry: dict[str, Any]) -> ImageRef:
        key = entry["Key"]
        return ImageRef(
            uri=f"s3://{self._bucket}/{key}",
            bucket=self._bucket,
            key=key,
            etag=entry["ETag"].strip('"') or None,
            size_bytes=entry["Size"],
            last_modified=entry["LastModified"],
        )
