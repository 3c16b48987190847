"""All objects below an S3 prefix, by ListObjectsV2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final

import anyio

from batchcl.aws.listing import PageReader, open_pages
from batchcl.aws.listing_page import Page
from batchcl.aws.session import Aws
from batchcl.aws.transport import Transport
from batchcl.errors import BatchclError, SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import Checked, Position
from batchcl.sources.key_ranges import KeyRanges
from batchcl.sources.repeats import NO_NAMES

__all__ = ["S3PrefixSource", "read_in_order"]

_REQUESTS_AT_ONCE: Final = 16
_ROUND_PAGES: Final = 48
_ROOM_PAGES: Final = 160
"""At about 300 bytes an object, some 50 MB at the worst."""


class S3PrefixSource:
    """Every object whose key starts with the prefix, in S3's own order.

    The prefix is a string, as S3 has it: `s3://b/2026` also lists `2026-old/x.jpg`; end it with `/` to mean a folder.
    Keys come exactly as they are: S3 is asked to URL-encode its answer, which is decoded once.

    A listing is no snapshot. An object that is there throughout, with the same key, comes exactly once; one that is
    written or deleted while the listing goes on may come or not, and never twice.

    A long prefix is listed by 16 requests at a time where the server is S3 itself, which lists in UTF-8 binary order;
    other servers don't promise an order, so their pages are read one after the other, and so are those
    of the transport `aioboto3`.
    """

    exhaustive = True
    repeats = NO_NAMES

    def __init__(self, uri: str, aws: Aws, *, region: str, transport: Transport = Transport.WIRE) -> None:
        self.description = uri
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._aws = aws
        self._region = region
        self._transport = transport

    async def check(self) -> Checked:
        """Names the bucket; whether it can be reached is checked for all buckets of a run together."""
        try:
            self._prefix.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.description!r} is no UTF-8, as S3's keys are; check the prefix") from error
        return Checked(buckets=frozenset({self._bucket}))

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """Whether they have the prefix."""
        return [image.bucket == self._bucket and image.key.startswith(self._prefix) for image in images]

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The objects in pages of at most a thousand; raises `RefusedError` or `SourceError` as the bucket has it."""
        opened = open_pages(
            self._aws,
            bucket=self._bucket,
            prefix=self._prefix,
            region=self._region,
            transport=self._transport,
            connections=_REQUESTS_AT_ONCE,
        )
        async with opened as reader:
            async for page in read_in_order(reader, prefix=self._prefix, after=None if after is None else after.key):
                yield self._images(page)

    def _images(self, page: Page) -> list[ImageRef]:
        bucket = self._bucket
        root = f"s3://{bucket}/"
        return [
            ImageRef(uri=root + key, bucket=bucket, key=key, etag=etag, size_bytes=size, last_modified=modified)
            for key, etag, size, modified in zip(page.keys, page.etags, page.sizes, page.modified, strict=True)
        ]


async def read_in_order(
    reader: PageReader, *, prefix: str = "", after: str | None = None
) -> AsyncGenerator[Page, None]:
    """All pages behind `after`, none of them empty, in the order of a serial listing.

    It begins with one request and goes on with more and more, so that a reader of the first few images doesn't wait,
    or pay, for others. No request is under way while a page is looked at: a caller may leave at any time, in any task.

    Raises:
        BatchclError: the first one that a request ended with.
    """
    ranges = KeyRanges(prefix, after=after, room_pages=_ROOM_PAGES)
    wanted = 1
    while not ranges.is_over:
        await _read_round(reader, ranges, wanted)
        for page in ranges.take():
            yield page
        wanted = min(2 * wanted, _ROUND_PAGES)


async def _read_round(reader: PageReader, ranges: KeyRanges, wanted: int) -> None:
    """Read until so many pages can be taken, or all there are."""
    errors: list[BatchclError] = []
    arrived = anyio.Event()
    busy = 0

    async def work() -> None:
        nonlocal arrived, busy
        while ranges.ready_pages < wanted:
            part = ranges.next_range()
            if part is None:
                if not busy:
                    return
                await arrived.wait()
                continue
            busy += 1
            try:
                ranges.arrived(part, await reader.page(after=part.cursor, token=part.token))
            except BatchclError as error:
                errors.append(error)
                group.cancel_scope.cancel()
            busy -= 1
            arrived.set()
            arrived = anyio.Event()

    async with anyio.create_task_group() as group:
        for _ in range(_REQUESTS_AT_ONCE):
            group.start_soon(work)
    if errors:
        raise errors[0]
