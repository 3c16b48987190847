"""Which images of the sources a run takes: over all sources in order, each image once, those that pass the filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import anyio.to_thread

from batchcl.images import Bookmark, ImageRef, Pause, Position, check_limits, no_pause
from batchcl.sources.base import Source, named_images
from batchcl.sources.deduplication import Deduplication
from batchcl.sources.filters import FilterChain, Filters, SmallestRanks

__all__ = ["SelectedPage", "Selection"]


Earlier: TypeAlias = AsyncIterable[tuple[int, Sequence[ImageRef]]]
"""Images that were taken already, in order, each with the number of the first source that it may be of."""


_Pick: TypeAlias = tuple[int, int, Mapping[str, int]]
"""Which image of a page, and how many were repeated and filtered up to it."""


async def _paused(earlier: Earlier, pause: Pause) -> Earlier:
    async for number, images in earlier:
        yield number, images
        await pause(len(images))


@dataclass(frozen=True, slots=True, eq=False)
class SelectedPage:
    """What is taken of one page of a source.

    Attributes:
        images: those that are taken, at least one.
        source: its number.
        count: images of the source before the page.
        taken: images of the selection before the page.
        repeated: before the page.
        filtered: before the page.
        picked: where in the source's page the images were; None: its first ones, up to the last taken.
        cut: as in the bookmarks.
    """

    images: list[ImageRef]
    source: int
    count: int
    taken: int
    repeated: int
    filtered: Mapping[str, int]
    picked: Sequence[_Pick] | None
    cut: int | None

    def behind(self, number: int) -> Bookmark:
        """The bookmark behind the first `number` images, which are one at least."""
        at, repeated, filtered = number - 1, self.repeated, self.filtered
        if self.picked is not None:
            at, repeated, filtered = self.picked[at]
        position = Position(self.count + at + 1, self.images[number - 1].key)
        return Bookmark(self.source, position, self.taken + number, repeated, filtered=filtered, cut=self.cut)


class Selection:
    """The images of several sources that pass the filters, one source after the other.

    An image that was taken already, of the same source or an earlier one, is left out and counted in `repeated`.
    `elsewhere` are the buckets in other regions than the model's, with their region, which their images are told.
    """

    def __init__(
        self, sources: Sequence[Source], filters: Filters, *, elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self._sources = sources
        self._elsewhere = elsewhere or {}
        self._sieve = FilterChain(filters)
        self._sample = filters.sample
        self._rank = None if filters.sample is None else filters.sample.ranker()
        self._limit = filters.limit
        self._overlap = Deduplication(sources)
        self._repeated = 0
        self._filtered: Counter[str] = Counter()

    @property
    def filtered(self) -> dict[str, int]:
        """Images left out so far: by which filter, in the order in which they are asked → how many."""
        return dict(self._filtered)

    @property
    def repeated(self) -> int:
        """Images named more than once so far, beyond the first time."""
        return self._repeated

    async def pages(
        self, after: Bookmark | None = None, *, earlier: Earlier | None = None, pause: Pause = no_pause
    ) -> AsyncIterator[SelectedPage]:
        """The images from behind `after`, in pages of which none is empty, up to the limit.

        A sample of so many images takes the lists to be read to their end once more, before the first page.

        Args:
            after: a bookmark of an earlier reading of the same sources.
            earlier: the images up to there, which are needed where some may come again.
            pause: awaited with the number of images after each page of a source, also one of which none is taken.
        """
        cut = await self._cut() if after is None else after.cut
        async with aclosing(self._pages(after, earlier, cut=cut, limit=self._limit, pause=pause)) as pages:
            async for page in pages:
                yield page

    async def _cut(self) -> int | None:
        """The largest rank that is in the sample."""
        if self._sample is None or self._rank is None:
            return None
        if self._sample.count is None:
            return self._sample.cut()
        smallest = SmallestRanks(self._sample.count)
        async for page in self._pages(None, None, cut=None, limit=None):
            smallest.add([self._rank(image) for image in page.images])
        return smallest.largest()

    async def _pages(
        self,
        after: Bookmark | None,
        earlier: Earlier | None,
        *,
        cut: int | None,
        limit: int | None,
        pause: Pause = no_pause,
    ) -> AsyncGenerator[SelectedPage, None]:
        self._overlap = Deduplication(self._sources)
        if after is not None and self._overlap.possible:
            assert earlier is not None, "images may come again that were taken"
            await self._overlap.restore(after.source, _paused(earlier, pause))
        taken = 0 if after is None else after.taken
        self._repeated = 0 if after is None else after.repeated
        self._filtered = Counter() if after is None else Counter(after.filtered)
        for number, source in enumerate(self._sources):
            if after is not None and number < after.source:
                continue
            position = after.position if after is not None and number == after.source else None
            count = 0 if position is None else position.count
            async for listed in source.pages(position):
                images = listed
                if source.is_explicit and any(check_limits(image) is not None for image in listed):
                    images = await anyio.to_thread.run_sync(named_images, listed)
                room = None if limit is None else limit - taken
                page = await self._page(number, self._placed(images), room, count=count, taken=taken, cut=cut)
                count += len(images)
                if page.images:
                    taken += len(page.images)
                    yield page
                if limit is not None and taken >= limit:
                    return
                await pause(len(images))

    async def _page(
        self, number: int, images: list[ImageRef], room: int | None, *, count: int, taken: int, cut: int | None
    ) -> SelectedPage:
        """What is taken of a page of a source, where there is room for so many images."""
        repeated, filtered = self._repeated, dict(self._filtered)
        page = partial(
            SelectedPage, source=number, count=count, taken=taken, repeated=repeated, filtered=filtered, cut=cut
        )
        if self._sieve.takes_all and cut is None and not self._overlap.possible:
            return page(images[:room], picked=None)
        reasons = self._reasons(images, cut)
        fitting = [image for image, reason in zip(images, reasons, strict=True) if reason is None]
        fresh = iter(await self._overlap.fresh(number, fitting))
        most = None if cut is None or self._sample is None else self._sample.count
        picked: list[_Pick] = []
        for at, reason in enumerate(reasons):
            if len(picked) == room:
                break
            if reason is None and not next(fresh):
                self._repeated += 1
                continue
            if reason is not None or taken + len(picked) == most:  # what came since the sample was measured
                self._filtered[reason or "sample"] += 1
                continue
            if filtered != self._filtered:
                filtered = dict(self._filtered)
            picked.append((at, self._repeated, filtered))
        return page([images[at] for at, _, _ in picked], picked=picked)

    def _placed(self, images: list[ImageRef]) -> list[ImageRef]:
        if not self._elsewhere:
            return images
        regions = [self._elsewhere.get(image.bucket) for image in images]
        return [
            image if region is None else replace(image, region=region)
            for image, region in zip(images, regions, strict=True)
        ]

    def _reasons(self, images: Sequence[ImageRef], cut: int | None) -> list[str | None]:
        """For each image what takes it away, the sample last."""
        reasons, rank = self._sieve.reasons(images), self._rank
        if cut is None or rank is None:
            return reasons
        return [
            "sample" if reason is None and rank(image) > cut else reason
            for image, reason in zip(images, reasons, strict=True)
        ]
