"""Selects a run's images: all sources in order, without duplicates, filtered, sampled and limited."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import anyio.to_thread

from batchcl.images import Bookmark, ImageRef, Pause, Position, check_limits, no_pause
from batchcl.sources.base import Source, with_any_extension
from batchcl.sources.deduplication import Deduplication
from batchcl.sources.filters import FilterChain, Filters, SmallestRanks

__all__ = ["SelectedPage", "Selection"]


EarlierImages: TypeAlias = AsyncIterable[tuple[int, Sequence[ImageRef]]]
"""Images that were selected before, in order, each batch with the number of the first source that may name them."""

_Pick: TypeAlias = tuple[int, int, Mapping[str, int]]
"""Position of an image in its page, and the counts of duplicates and filtered images up to it."""


async def _with_pauses(earlier: EarlierImages, pause: Pause) -> EarlierImages:
    async for number, images in earlier:
        yield number, images
        await pause(len(images))


@dataclass(frozen=True, slots=True, eq=False)
class SelectedPage:
    """The selected images of one page of a source.

    Attributes:
        images: the selected images, at least one.
        source: the number of the source.
        count: images of the source before the page.
        taken: selected images before the page.
        duplicates: duplicates before the page.
        filtered: images excluded before the page, by filter.
        picked: the positions of `images` in the source's page; None if they are its first ones, without gaps.
        max_rank: the largest rank in the sample, as in `Bookmark`.
    """

    images: list[ImageRef]
    source: int
    count: int
    taken: int
    duplicates: int
    filtered: Mapping[str, int]
    picked: Sequence[_Pick] | None
    max_rank: int | None

    def behind(self, number: int) -> Bookmark:
        """The bookmark after the first `number` images, at least one."""
        at, duplicates, filtered = number - 1, self.duplicates, self.filtered
        if self.picked is not None:
            at, duplicates, filtered = self.picked[at]
        position = Position(self.count + at + 1, self.images[number - 1].key)
        return Bookmark(self.source, position, self.taken + number, duplicates, filtered=filtered, cut=self.max_rank)


class Selection:
    """The images of several sources that pass the filters, one source after the other.

    An image that was selected before, from the same or an earlier source, is excluded and counted in `duplicates`.
    `elsewhere` maps buckets outside the model's region to their region, which is stored in their images.
    """

    def __init__(
        self, sources: Sequence[Source], filters: Filters, *, elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self._sources = sources
        self._bucket_regions = elsewhere or {}
        self._filters = FilterChain(filters)
        self._sample = filters.sample
        self._rank = None if filters.sample is None else filters.sample.ranker()
        self._limit = filters.limit
        self._deduplication = Deduplication(sources)
        self._duplicates = 0
        self._filtered: Counter[str] = Counter()

    @property
    def filtered(self) -> dict[str, int]:
        """Images excluded so far: filter → count, in the order of the filters."""
        return dict(self._filtered)

    @property
    def duplicates(self) -> int:
        """Duplicates so far."""
        return self._duplicates

    async def pages(
        self, after: Bookmark | None = None, *, earlier: EarlierImages | None = None, pause: Pause = no_pause
    ) -> AsyncIterator[SelectedPage]:
        """The images after the bookmark `after`, in non-empty pages, up to the limit.

        For a sample of a fixed count, all sources are read once more before the first page.

        Args:
            after: a bookmark of an earlier pass over the same sources.
            earlier: the images selected up to `after`; required where duplicates are possible.
            pause: awaited after each page of a source, even if none of its images is selected, with its length.
        """
        max_rank = await self._max_rank() if after is None else after.cut
        async with aclosing(self._pages(after, earlier, max_rank=max_rank, limit=self._limit, pause=pause)) as pages:
            async for page in pages:
                yield page

    async def _max_rank(self) -> int | None:
        """The largest rank in the sample; None without a sample."""
        if self._sample is None or self._rank is None:
            return None
        if self._sample.count is None:
            return self._sample.max_rank()
        smallest = SmallestRanks(self._sample.count)
        async for page in self._pages(None, None, max_rank=None, limit=None):
            smallest.add([self._rank(image) for image in page.images])
        return smallest.largest()

    async def _pages(
        self,
        after: Bookmark | None,
        earlier: EarlierImages | None,
        *,
        max_rank: int | None,
        limit: int | None,
        pause: Pause = no_pause,
    ) -> AsyncGenerator[SelectedPage, None]:
        self._deduplication = Deduplication(self._sources)
        if after is not None and self._deduplication.possible:
            assert earlier is not None, "needed to detect duplicates of images selected before"
            await self._deduplication.restore(after.source, _with_pauses(earlier, pause))
        taken = 0 if after is None else after.taken
        self._duplicates = 0 if after is None else after.duplicates
        self._filtered = Counter() if after is None else Counter(after.filtered)
        for number, source in enumerate(self._sources):
            if after is not None and number < after.source:
                continue
            position = after.position if after is not None and number == after.source else None
            count = 0 if position is None else position.count
            async for listed in source.pages(position):
                images = listed
                if source.is_explicit and any(check_limits(image) is not None for image in listed):
                    images = await anyio.to_thread.run_sync(with_any_extension, listed)
                remaining = None if limit is None else limit - taken
                page = await self._page(
                    number, self._with_regions(images), remaining, count=count, taken=taken, max_rank=max_rank
                )
                count += len(images)
                if page.images:
                    taken += len(page.images)
                    yield page
                if limit is not None and taken >= limit:
                    return
                await pause(len(images))

    async def _page(
        self,
        number: int,
        images: list[ImageRef],
        remaining: int | None,
        *,
        count: int,
        taken: int,
        max_rank: int | None,
    ) -> SelectedPage:
        """Select from a page of source `number` at most `remaining` images (None: no limit)."""
        duplicates, filtered = self._duplicates, dict(self._filtered)
        page = partial(
            SelectedPage,
            source=number,
            count=count,
            taken=taken,
            duplicates=duplicates,
            filtered=filtered,
            max_rank=max_rank,
        )
        if self._filters.is_empty and max_rank is None and not self._deduplication.possible:
            return page(images[:remaining], picked=None)
        reasons = self._reasons(images, max_rank)
        passing = [image for image, reason in zip(images, reasons, strict=True) if reason is None]
        is_new = iter(await self._deduplication.new(number, passing))
        max_count = None if max_rank is None or self._sample is None else self._sample.count
        picked: list[_Pick] = []
        for at, reason in enumerate(reasons):
            if len(picked) == remaining:
                break
            if reason is None and not next(is_new):
                self._duplicates += 1
                continue
            if reason is not None or taken + len(picked) == max_count:  # added since the sample was determined
                self._filtered[reason or "sample"] += 1
                continue
            if filtered != self._filtered:
                filtered = dict(self._filtered)
            picked.append((at, self._duplicates, filtered))
        return page([images[at] for at, _, _ in picked], picked=picked)

    def _with_regions(self, images: list[ImageRef]) -> list[ImageRef]:
        if not self._bucket_regions:
            return images
        regions = [self._bucket_regions.get(image.bucket) for image in images]
        return [
            image if region is None else replace(image, region=region)
            for image, region in zip(images, regions, strict=True)
        ]

    def _reasons(self, images: Sequence[ImageRef], max_rank: int | None) -> list[str | None]:
        """For each image the filter that excludes it, `sample` last; None where it passes."""
        reasons, rank = self._filters.reasons(images), self._rank
        if max_rank is None or rank is None:
            return reasons
        return [
            "sample" if reason is None and rank(image) > max_rank else reason
            for image, reason in zip(images, reasons, strict=True)
        ]
