"""Images that are named more than once, by one source or by several: each counts once, and none is lost.

An image is left out only where it was taken before. That it was named is not enough: a prefix has no object for each
key of a key list that starts with it, and of two rows about an image a filter may take the second.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Sequence

import anyio.to_thread
import polars as pl

from batchcl.images import ImageRef
from batchcl.name_set import NameSet
from batchcl.sources.base import Source, name_of

__all__ = ["Deduplication"]


class Deduplication:
    """Tells which images were taken before.

    Two images are the same if they have the same name and version. S3's listings don't tell the version: there, they
    are the same if both have the same entity tag and time, to the second.

    Memory is 16 bytes, or 32 with an entity tag, for each image that is taken and may come again. Nothing is kept of
    what two exhaustive sources share, as the later one names only what the earlier one did.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._seen = NameSet()

    @property
    def possible(self) -> bool:
        """Whether an image may come more than once."""
        return len(self._sources) > 1 or any(source.repeats for source in self._sources)

    async def restore(self, number: int, earlier: AsyncIterable[tuple[int, Sequence[ImageRef]]]) -> None:
        """Go on in source `number`: `earlier` are images taken up to there, with the first source they may be of."""
        repeats = self._sources[number].repeats
        async for first, images in earlier:
            rest = range(number + (first == number), len(self._sources))
            if not rest and not repeats:
                return
            await self._remember(images, rest)
            await self._note([images[at] for at in repeats.among(_names(images))])

    async def fresh(self, number: int, images: Sequence[ImageRef]) -> list[bool]:
        """For each image of source `number`, whether it is new, and remember those that are."""
        new = [True] * len(images)
        repeats = self._sources[number].repeats
        names = _names(images) if repeats else pl.Series(dtype=pl.String)
        places = repeats.among(names)
        for place, is_first in zip(places, names.gather(places).is_first_distinct(), strict=True):
            new[place] = is_first
        named = await self._named_exhaustively(number, images)
        for at in range(len(images)) if number else places:
            new[at] = new[at] and not named[at] and not any(name in self._seen for name in _wanted(images[at]))
        await self._note([images[at] for at in places if new[at]])
        if number + 1 < len(self._sources):
            taken = [image for image, is_new in zip(images, new, strict=True) if is_new]
            await self._remember(taken, range(number + 1, len(self._sources)))
        return new

    async def _note(self, images: Sequence[ImageRef]) -> None:
        """Take note of images that their own source brings again."""
        if images:
            await anyio.to_thread.run_sync(self._seen.update, [_exact(image) for image in images])

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


def _names(images: Sequence[ImageRef]) -> pl.Series:
    return pl.Series([name_of(image) for image in images], dtype=pl.String)


def _exact(image: ImageRef) -> str:
    return f"{image.uri}\0{image.key}\0{image.version_id or ''}"


def _told(image: ImageRef) -> Iterator[str]:
    """What an image is known by once it was taken."""
    yield _exact(image)
    if (content := _content(image)) is not None:
        yield f"{content}\0{image.version_id is not None}"


def _wanted(image: ImageRef) -> Iterator[str]:
    """What the same image would be known by: two that both tell a version are told apart by it alone."""
    yield _exact(image)
    if (content := _content(image)) is not None:
        yield f"{content}\0{image.version_id is None}"


def _content(image: ImageRef) -> str | None:
    if image.etag is None or image.last_modified is None:
        return None
    return f"{image.uri}\0{image.key}\0{image.etag}\0{image.last_modified:%Y-%m-%dT%H:%M:%S}"
