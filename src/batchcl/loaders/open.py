"""The image reader of a run: every image that is sent as bytes, local or in S3."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from batchcl.aws.session import Aws
from batchcl.images import MAX_BYTES_INLINE, ImageReader, ImageRef
from batchcl.loaders.files import FileReader

if TYPE_CHECKING:
    from batchcl.loaders.s3_objects import ObjectReader

__all__ = ["open_reader"]


class _InlineReader:
    """Reads local files, members of archives, and objects of other regions. See `ImageReader`."""

    def __init__(self, stack: AsyncExitStack, aws: Aws, *, region: str, connections: int, max_bytes: int) -> None:
        self._stack = stack
        self._aws = aws
        self._region = region
        self._connections = connections
        self._max_bytes = max_bytes
        self._files = FileReader()
        self._lock = anyio.Lock()
        self._objects: dict[str, ObjectReader] = {}

    def accepts(self, image: ImageRef) -> bool:
        """Whether the service can't fetch the image itself."""
        return image.inline

    async def read(self, image: ImageRef) -> bytes:
        """The image's bytes, from disk or from its bucket's region."""
        if not image.bucket:
            return await self._files.read(image)
        region = image.region or self._region
        reader = self._objects.get(region)
        return await (reader or await self._open(region)).read(image)

    async def _open(self, region: str) -> ObjectReader:
        from batchcl.loaders.s3_objects import ObjectReader

        async with self._lock:
            if region not in self._objects:
                client = self._aws.s3(region=region, connections=self._connections)
                self._objects[region] = ObjectReader(
                    await self._stack.enter_async_context(client), max_bytes=self._max_bytes
                )
        return self._objects[region]


@asynccontextmanager
async def open_reader(
    aws: Aws, *, region: str, connections: int, max_bytes: int = MAX_BYTES_INLINE
) -> AsyncIterator[ImageReader]:
    """Open a reader of all images that are sent as bytes; it is closed after the block.

    Args:
        aws: for images in S3.
        region: of buckets without a known region: the model's.
        connections: maximum per region.
        max_bytes: maximum size of an image in S3; larger ones fail.
    """
    async with AsyncExitStack() as stack:
        yield _InlineReader(stack, aws, region=region, connections=connections, max_bytes=max_bytes)
