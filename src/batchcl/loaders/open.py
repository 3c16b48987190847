"""The reader of a run: every image that travels as bytes, wherever it lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from batchcl.aws.session import Aws
from batchcl.images import MAX_BYTES_INLINE, ImageReader, ImageRef
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import ObjectReader

__all__ = ["open_reader"]


class _InlineReader:
    """Reads local files, archives' members, and objects of other regions. See `ImageReader`."""

    def __init__(self, stack: AsyncExitStack, aws: Aws, *, region: str, connections: int, most_bytes: int) -> None:
        self._stack = stack
        self._aws = aws
        self._region = region
        self._connections = connections
        self._most_bytes = most_bytes
        self._files = FileReader()
        self._lock = anyio.Lock()
        self._objects: dict[str, ObjectReader] = {}

    def carries(self, image: ImageRef) -> bool:
        """All that the service can't fetch itself."""
        return image.inline

    async def read(self, image: ImageRef) -> bytes:
        """The image's bytes, from its disk or from the region of its bucket."""
        if not image.bucket:
            return await self._files.read(image)
        region = image.region or self._region
        reader = self._objects.get(region)
        return await (reader or await self._open(region)).read(image)

    async def _open(self, region: str) -> ObjectReader:
        async with self._lock:
            if region not in self._objects:
                client = self._aws.s3(region=region, connections=self._connections)
                self._objects[region] = ObjectReader(
                    await self._stack.enter_async_context(client), most_bytes=self._most_bytes
                )
        return self._objects[region]


@asynccontextmanager
async def open_reader(
    aws: Aws, *, region: str, connections: int, most_bytes: int = MAX_BYTES_INLINE
) -> AsyncIterator[ImageReader]:
    """A reader of every image that travels as bytes; what it opened is closed at the end of the block.

    Args:
        aws: for what lies in S3.
        region: of buckets of which nothing else is known: the model's.
        connections: to a region's S3, at most.
        most_bytes: of an image in S3; a larger one fails.
    """
    async with AsyncExitStack() as stack:
        yield _InlineReader(stack, aws, region=region, connections=connections, most_bytes=most_bytes)
