"""The protocol of preprocessing, and errors that several readers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from batchcl.errors import ImageError
from batchcl.images import ImageRef, SkipReason

__all__ = ["Prepared", "Preparer", "changed_archive", "whole_member"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image is ready for its call. `note` describes what was changed; None for an unchanged image."""

    note: str | None = None


class Preparer(Protocol):
    """Preprocesses images before their call, and keeps the changed bytes in memory until `release`."""

    def needs_preparation(self, image: ImageRef) -> bool:
        """Whether `image` must be prepared before its first call."""
        ...

    def may_fix(self, error: ImageError) -> bool:
        """Whether preparing an image may fix the reason for which the service refused it."""
        ...

    def has_capacity(self) -> bool:
        """Whether there is memory to prepare another image in advance; called again after each release."""
        ...

    async def prepare(self, image: ImageRef) -> Prepared | SkipReason:
        """Prepare `image` for its next call, or return why it can't be fixed.

        Raises:
            CallError: it can't be read.
        """
        ...

    def release(self, image: ImageRef) -> None:
        """Free the memory of `image`, which has its outcome."""
        ...


def changed_archive(archive: str) -> ImageError:
    """The error of a member whose archive has changed since it was listed."""
    return ImageError(f"the archive {archive} has changed since it was listed", code="ArchiveChanged")


def whole_member(image: ImageRef, data: bytes) -> bytes:
    """Return `data`, the bytes of an archive's member; raise `ImageError` if they are incomplete."""
    size = image.size_bytes or 0
    if len(data) != size:
        raise ImageError(
            f"the archive is truncated: it has {len(data):,} of the image's {size:,} bytes", code="UnreadableArchive"
        )
    return data
