"""One image, named by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import anyio.to_thread

from batchcl.images import ImageRef, Position
from batchcl.sources.base import Checked, local_image, s3_image
from batchcl.sources.repeats import NO_NAMES

__all__ = ["ImageSource"]


class ImageSource:
    """One image, named by itself."""

    exhaustive = False
    is_explicit = True
    repeats = NO_NAMES

    def __init__(self, name: str) -> None:
        self.description = name

    async def check(self) -> Checked:
        """Names the bucket of an image in S3; whether the image is there shows when it is called for."""
        return Checked(buckets=frozenset({self._image().bucket} - {""}))

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """One page of one."""
        if after is None:
            yield [await anyio.to_thread.run_sync(self._image)]

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """Whether it is this one."""
        own = self._image()
        return [(image.bucket, image.key) == (own.bucket, own.key) for image in images]

    def _image(self) -> ImageRef:
        return s3_image(self.description) if self.description.startswith("s3://") else local_image(self.description)
