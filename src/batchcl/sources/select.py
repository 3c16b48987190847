"""Which images of the sources a run takes: globs and a limit, over all sources in order, each image once."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from batchcl.images import ImageRef
from batchcl.sources.base import Position, Source

__all__ = ["Bookmark", "Filters", "Selected", "Selection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """An image is taken when it fits any `include` (or there is none) and no `exclude`.

    Globs know `*`, `?` and `[…]`, tell upper from lower case, and `*` crosses `/`. One without `/` is held against the
    last part of the key, one with `/` against the whole key (for a local file: its path).
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where the list of a run stands.

    Attributes:
        source: number of the source, from 0.
        position: of the last image in it.
        taken: images that passed the filters so far.
        repeated: images left out so far because an earlier source names them too.
        known: images left out so far because their version has a result.
        filtered: images left out so far by the filters.
    """

    source: int
    position: Position
    taken: int
    repeated: int = 0
    known: int = 0
    filtered: int = 0


@dataclass(frozen=True, slots=True)
class Selected:
    """An image that the run takes, and the bookmark behind it."""

    image: ImageRef
    bookmark: Bookmark


_Pick: TypeAlias = tuple[int, int, int]
"""Which image of a page, and how many were repeated and filtered up to it."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What is taken of one page of a source.

    Attributes:
        source: its number.
        count: images of the source before the page.
        taken: images of the selection before the page.
        images: of the page.
        picked: those that are taken; None: all.
        repeated: before the page.
        filtered: before the page.
    """

    source: int
    count: int
    taken: int
    images: list[ImageRef]
    picked: list[_Pick] | None
    repeated: int
    filtered: int

    @property
    def size(self) -> int:
        return len(self.images) if self.picked is None else len(self.picked)

    def picks(self) -> Iterable[_Pick]:
        if self.picked is not None:
            return self.picked
        return ((at, self.repeated, self.filtered) for at in range(len(self.images)))


class Selection:
    """The images of several sources that pass the filters, one source after the other.

    An image that an earlier source names already is left out and counted in `repeated`.
    """

    def __init__(self, sources: Sequence[Source], filters: Filters) -> None:
        self._sources = sources
        self._included = [_Glob(pattern) for pattern in filters.include]
        self._excluded = [_Glob(pattern) for pattern in filters.exclude]
        self._limit = filters.limit
        self._repeated = 0
        self._filtered = 0

    @property
    def filtered(self) -> int:
        """Images left out by the filters so far."""
        return self._filtered

    @property
    def repeated(self) -> int:
        """Images named more than once so far, beyond the first time."""
        return self._repeated + sum(source.repeated for source in self._sources)

    async def pages(self, after: Bookmark | None = None) -> AsyncIterator[list[Selected]]:
        """The images from behind `after`, in pages of which none is empty, up to the limit."""
        async for part in self._parts(after):
            number, count, taken = part.source, part.count, part.taken
            yield [
                Selected(
                    part.images[at],
                    Bookmark(
                        number, Position(count + at + 1, part.images[at].key), taken + n, repeated, filtered=filtered
                    ),
                )
                for n, (at, repeated, filtered) in enumerate(part.picks(), 1)
            ]

    async def images(self) -> AsyncIterator[list[ImageRef]]:
        """All images as `pages` has them, without bookmarks: for who won't go on where this was cut."""
        async for part in self._parts(None):
            yield part.images if part.picked is None else [part.images[at] for at, _, _ in part.picked]

    async def _parts(self, after: Bookmark | None) -> AsyncIterator[_Part]:
        taken = 0 if after is None else after.taken
        self._repeated = 0 if after is None else after.repeated
        self._filtered = 0 if after is None else after.filtered
        for number, source in enumerate(self._sources):
            if after is not None and number < after.source:
                continue
            position = after.position if after is not None and number == after.source else None
            count = 0 if position is None else position.count
            async for images in source.pages(position):
                room = None if self._limit is None else self._limit - taken
                part = await self._part(number, images, room, count=count, taken=taken)
                count += len(images)
                if part.size:
                    taken += part.size
                    yield part
                if self._limit is not None and taken >= self._limit:
                    return

    async def _part(self, number: int, images: list[ImageRef], room: int | None, *, count: int, taken: int) -> _Part:
        """What is taken of a page of a source, where there is room for so many images."""
        begun = self._repeated, self._filtered
        if not number and not self._included and not self._excluded:
            return _Part(number, count, taken, images[:room], None, *begun)
        picked: list[_Pick] = []
        for at, image in enumerate(images):
            if len(picked) == room:
                break
            if await self._takes(image, self._sources[:number]):
                picked.append((at, self._repeated, self._filtered))
        return _Part(number, count, taken, images, picked, *begun)

    async def _takes(self, image: ImageRef, earlier: Sequence[Source]) -> bool:
        included = not self._included or any(glob.fits(image.key) for glob in self._included)
        if not included or any(glob.fits(image.key) for glob in self._excluded):
            self._filtered += 1
            return False
        for source in earlier:
            if await source.contains(image):
                self._repeated += 1
                return False
        return True


class _Glob:
    def __init__(self, pattern: str) -> None:
        self._whole = "/" in pattern
        self._match = re.compile(fnmatch.translate(pattern)).match

    def fits(self, key: str) -> bool:
        return self._match(key if self._whole else key.rpartition("/")[2]) is not None
