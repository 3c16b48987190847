"""All objects below an S3 prefix, by ListObjectsV2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from batchcl.aws.listing import open_pages
from batchcl.aws.listing_page import Page
from batchcl.aws.session import Aws
from batchcl.aws.transport import Transport
from batchcl.errors import SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import Checked
from batchcl.sources.key_ranges import MAX_REQUESTS, read_in_order
from batchcl.sources.repeats import NO_NAMES

__all__ = ["S3PrefixSource"]


class S3PrefixSource:
    """Every object whose key starts with the prefix, in S3's own order.

    The prefix is a string, as S3 has it: `s3://b/2026` also lists `2026-old/x.jpg`; end it with `/` to mean a folder.
    Keys come exactly as they are: S3 is asked to URL-encode its answer, which is decoded once.

    A listing is no snapshot. An object that is there throughout, with the same key, comes exactly once; one that is
    written or deleted while the listing goes on may come or not, and never twice.

    A long prefix is listed by 16 requests at a time where the server is S3 itself, which lists in UTF-8 binary order;
    other servers don't promise an order, so their pages are read one after the other, and so are those
    of the transport `aioboto3`.

    Keys that start with one of `leave_out` don't belong to the source: they are the output root's.
    """

    exhaustive = True
    repeats = NO_NAMES

    def __init__(
        self,
        uri: str,
        aws: Aws,
        *,
        region: str,
        transport: Transport = Transport.WIRE,
        leave_out: tuple[str, ...] = (),
        is_explicit: bool = False,
    ) -> None:
        self.is_explicit = is_explicit
        self.description = uri
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._aws = aws
        self._region = region
        self._transport = transport
        self._leave_out = leave_out

    async def check(self) -> Checked:
        """Names the bucket; whether it can be reached is checked for all buckets of a run together."""
        try:
            self._prefix.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.description!r} is no UTF-8, as S3's keys are; check the prefix") from error
        folders = tuple(f"s3://{self._bucket}/{prefix}" for prefix in self._leave_out)
        return Checked(buckets=frozenset({self._bucket}), left_out_folders=folders)

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """Whether they have the prefix, and are not left out."""
        return [
            image.bucket == self._bucket
            and image.key.startswith(self._prefix)
            and not image.key.startswith(self._leave_out)
            for image in images
        ]

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The objects in pages of at most a thousand; raises `RefusedError` or `SourceError` as the bucket has it."""
        opened = open_pages(
            self._aws,
            bucket=self._bucket,
            prefix=self._prefix,
            region=self._region,
            transport=self._transport,
            connections=MAX_REQUESTS,
        )
        async with opened as reader:
            async for page in read_in_order(reader, prefix=self._prefix, after=None if after is None else after.key):
                yield self._images(page)

    def _images(self, page: Page) -> list[ImageRef]:
        bucket, leave_out = self._bucket, self._leave_out
        root = f"s3://{bucket}/"
        return [
            ImageRef(
                uri=root + key,
                bucket=bucket,
                key=key,
                etag=etag,
                size_bytes=size,
                last_modified=modified,
                any_name=key == self._prefix,  # the user named the object itself
            )
            for key, etag, size, modified in zip(page.keys, page.etags, page.sizes, page.modified, strict=True)
            if not key.startswith(leave_out)
        ]
