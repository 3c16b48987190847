"""Images that several sources of a run name: each counts once, and none is lost.

An image is left out only where an earlier source has brought it to the list. That one may name it is not enough: a
prefix has no object for each key of a key list that starts with it, and a filter may have left out what one source
tells of an image and take what another one tells.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Sequence

import anyio.to_thread

from batchcl.images import ImageRef
from batchcl.sources.base import Source
from batchcl.sources.repeats import Seen

__all__ = ["Overlap"]


class Overlap:
    """Tells which images of a source its earlier ones have brought.

    Two images are the same if they have the same name and version. S3's listings don't tell the version: there, they
    are the same if both have the same entity tag and time, to the second.

    Memory is 16 bytes, or 32 with an entity tag, for each image that is taken from one source and may be named by a
    later one. Nothing is kept of what two exhaustive sources share, as the later one names only what the earlier did.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._seen = Seen()

    @property
    def possible(self) -> bool:
        """Whether there are several sources."""
        return len(self._sources) > 1

    async def restore(self, number: int, earlier: AsyncIterable[tuple[int, Sequence[ImageRef]]]) -> None:
        """Go on in source `number`: `earlier` are images taken up to there, with the first source they may be of."""
        async for first, images in earlier:
            rest = range(number + (first == number), len(self._sources))
            if not rest:
                return
            await self._remember(images, rest)

    async def fresh(self, number: int, images: Sequence[ImageRef]) -> list[bool]:
        """For each image of source `number`, whether it is new, and remember those that are."""
        new = [True] * len(images)
        if number:
            named = await self._named_exhaustively(number, images)
            new = [
                not (known or any(name in self._seen for name in _wanted(image)))
                for image, known in zip(images, named, strict=True)
            ]
        if number + 1 < len(self._sources):
            taken = [image for image, is_new in zip(images, new, strict=True) if is_new]
            await self._remember(taken, range(number + 1, len(self._sources)))
        return new

    async def _named_exhaustively(self, number: int, images: Sequence[ImageRef]) -> list[bool]:
        """Which images the exhaustive source `number` need not name, as an earlier such source has done so."""
        found = [False] * len(images)
        if self._sources[number].exhaustive:
            for earlier in self._sources[:number]:
                if earlier.exhaustive:
                    found = [one or other for one, other in zip(found, await earlier.may_name(images), strict=True)]
        return found

    async def _remember(self, images: Sequence[ImageRef], numbers: range) -> None:
        """Take note of images that one of these sources may bring again."""
        due = [False] * len(images)
        for number in numbers:
            may_come = await self._sources[number].may_name(images)
            if any(may_come):
                named = await self._named_exhaustively(number, images)
                due = [one or (comes and not known) for one, comes, known in zip(due, may_come, named, strict=True)]
        names = [name for image, is_due in zip(images, due, strict=True) if is_due for name in _told(image)]
        if names:
            await anyio.to_thread.run_sync(self._seen.update, names)


def _told(image: ImageRef) -> Iterator[str]:
    """What an image is known by once it was taken."""
    yield f"{image.uri}\0{image.key}\0{image.version_id or ''}"
    if (content := _content(image)) is not None:
        yield f"{content}\0{image.version_id is not None}"


def _wanted(image: ImageRef) -> Iterator[str]:
    """What the same image would be known by: two that both tell a version are told apart by it alone."""
    yield f"{image.uri}\0{image.key}\0{image.version_id or ''}"
    if (content := _content(image)) is not None:
        yield f"{content}\0{image.version_id is None}"


def _content(image: ImageRef) -> str | None:
    if image.etag is None or image.last_modified is None:
        return None
    return f"{image.uri}\0{image.key}\0{image.etag}\0{image.last_modified:%Y-%m-%dT%H:%M:%S}"
