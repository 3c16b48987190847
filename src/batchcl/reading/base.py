"""What reads the bytes of an image."""

from __future__ import annotations

from typing import Protocol

from batchcl.images import ImageRef

__all__ = ["ImageReader"]


class ImageReader(Protocol):
    """Reads the images that travel to the service as bytes. Safe for many concurrent callers."""

    def carries(self, image: ImageRef) -> bool:
        """Whether `image` travels as bytes, rather than as the name of an object that the service fetches itself."""
        ...

    async def read(self, image: ImageRef) -> bytes:
        """The whole bytes of an `image` that it carries. The caller sets a deadline.

        Raises:
            ImageError: they can't be had, whatever the attempt; `code` is a stable word for the tables.
            TransientError: the next attempt may get them.
            FatalCallError: nor can those of any other image, until somebody changes something.
        """
        ...
