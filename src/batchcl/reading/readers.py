"""The reader of a run: one for all kinds of places."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from batchcl.aws.session import Aws
from batchcl.images import MAX_BYTES_INLINE, ImageRef
from batchcl.reading.archives import ArchiveReader
from batchcl.reading.base import ImageReader
from batchcl.reading.elsewhere import ElsewhereReader
from batchcl.reading.files import FileReader

__all__ = ["FirstReader", "open_reader"]


class FirstReader:
    """Has each image read by the first of several readers that carries it. See `ImageReader`."""

    def __init__(self, readers: Sequence[ImageReader]) -> None:
        self._readers = readers

    def carries(self, image: ImageRef) -> bool:
        """Whether one of them does."""
        return any(reader.carries(image) for reader in self._readers)

    async def read(self, image: ImageRef) -> bytes:
        """What that one reads."""
        return await next(reader for reader in self._readers if reader.carries(image)).read(image)


@asynccontextmanager
async def open_reader(
    aws: Aws, *, region: str, connections: int, most_bytes: int = MAX_BYTES_INLINE
) -> AsyncIterator[ImageReader]:
    """A reader of every image that travels as bytes; what it opened is closed at the end of the block.

    Args:
        aws: for what lies in S3.
        region: of the model's buckets.
        connections: to any place, at most.
        most_bytes: of an image in a bucket of another region.
    """
    async with AsyncExitStack() as stack:
        elsewhere = ElsewhereReader(stack, aws, connections=connections, most_bytes=most_bytes)
        archives = ArchiveReader(aws, region=region)
        stack.callback(archives.close)
        yield FirstReader([archives, elsewhere, FileReader()])
