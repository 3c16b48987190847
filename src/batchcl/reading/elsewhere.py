"""Images in buckets of other regions than the model's, which the service doesn't read."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from batchcl.aws.session import Aws
from batchcl.images import MAX_BYTES_INLINE, ImageRef
from batchcl.reading.objects import ObjectReader

__all__ = ["ElsewhereReader"]


class ElsewhereReader:
    """Reads objects from the region that their bucket lies in. See `ImageReader`.

    Args:
        stack: closes the connections.
        aws: to reach S3 with.
        connections: to a region, at most.
        most_bytes: of an image; a larger one fails.
    """

    def __init__(
        self, stack: AsyncExitStack, aws: Aws, *, connections: int, most_bytes: int = MAX_BYTES_INLINE
    ) -> None:
        self._stack = stack
        self._aws = aws
        self._connections = connections
        self._most_bytes = most_bytes
        self._lock = anyio.Lock()
        self._readers: dict[str, ObjectReader] = {}

    def carries(self, image: ImageRef) -> bool:
        """Images that are told a region do."""
        return image.region is not None

    async def read(self, image: ImageRef) -> bytes:
        """The object's bytes, of the version that the list named."""
        assert image.region is not None
        reader = self._readers.get(image.region)
        return await (reader or await self._open(image.region)).read(image)

    async def _open(self, region: str) -> ObjectReader:
        async with self._lock:
            if region not in self._readers:
                client = await self._stack.enter_async_context(
                    self._aws.s3(region=region, connections=self._connections)
                )
                self._readers[region] = ObjectReader(client, most_bytes=self._most_bytes)
        return self._readers[region]
