"""What reads the bytes of an image, and what makes images ready for their call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from batchcl.errors import ImageError
from batchcl.images import ImageRef, SkipReason

__all__ = ["Prepared", "Preparer", "changed_archive", "whole_member"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image can be called for. `note` says what was changed; None where it goes as it is."""

    note: str | None = None


class Preparer(Protocol):
    """Makes images ready for their call, and holds what that takes until they are released."""

    def wants(self, image: ImageRef) -> bool:
        """Whether `image` has to be looked at before its first call."""
        ...

    def may_mend(self, error: ImageError) -> bool:
        """Whether what the service refused an image for may be mended."""
        ...

    def has_room(self) -> bool:
        """Whether another image may be made ready ahead of its turn; asked again after each release."""
        ...

    async def prepare(self, image: ImageRef) -> Prepared | SkipReason:
        """Make `image` ready for its next call, or say why it can't be.

        Raises:
            CallError: its bytes can't be had.
        """
        ...

    def release(self, image: ImageRef) -> None:
        """`image` has its outcome."""
        ...


def changed_archive(archive: str) -> ImageError:
    """What the images of an archive fail with that isn't the one that was listed."""
    return ImageError(f"the archive {archive} has changed since it was listed", code="ArchiveChanged")


def whole_member(image: ImageRef, data: bytes) -> bytes:
    """`data`, if that is all of the archive's member `image`; raises `ImageError`."""
    size = image.size_bytes or 0
    if len(data) != size:
        raise ImageError(f"the archive gave {len(data):,} of the image's {size:,} bytes", code="UnreadableArchive")
    return data
